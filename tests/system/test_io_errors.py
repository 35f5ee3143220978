"""What is said of a read or a write that failed, and temporary folders that outlive nobody."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support.paths import ROOT
from training.system import files, io_errors, temporary


def test_each_error_of_a_disk_names_the_file_and_what_would_do(tmp_path):
    for code, remedy in io_errors.REMEDIES.items():
        said = io_errors.told(OSError(code, "x", str(tmp_path / "file")))
        assert said == f"{tmp_path / 'file'}: {os.strerror(code)}; {remedy}"


def test_a_full_disk_and_one_without_inodes_are_told_apart(tmp_path, monkeypatch):
    full = OSError(errno.ENOSPC, "x", str(tmp_path / "new" / "file"))
    disk = SimpleNamespace(f_files=100, f_favail=7, f_bavail=3, f_frsize=4096)
    monkeypatch.setattr(os, "statvfs", lambda path: disk)
    assert io_errors.told(full) == f"{tmp_path}/new/file: the disk is full, 12,288 bytes are free; make room first"
    disk.f_favail = 0
    assert io_errors.told(full).endswith(
        "no more files fit on this disk (no inodes are left, `df -i`): remove files first"
    )
    # A file system that does not count them.
    disk.f_files = 0
    assert "the disk is full" in io_errors.told(full)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RuntimeError("I/O error: Input/output error (os error 5)"), errno.EIO),
        (Exception("No space left on device (os error 28)"), errno.ENOSPC),
        (RuntimeError("[Errno 104] Connection reset by peer"), None),
        (ValueError("size mismatch"), None),
    ],
)
def test_what_libraries_say_in_words_of_their_own_is_known(error, code):
    assert io_errors.number(error) == code
    assert io_errors.is_one(error) == (code is not None)


def test_an_end_of_a_connection_is_no_error_of_a_disk_and_a_write_of_torch_without_a_reason_is():
    assert not io_errors.is_one(ConnectionResetError(errno.ECONNRESET, "x"))
    failed = RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed\nstack")
    assert io_errors.is_one(failed)
    assert "look whether the disk is full" in io_errors.told(failed, Path("/runs"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "ends", "words"),
    [
        ("from training import finetune; raise SystemExit(str(finetune.not_written({error}, None)))", 1, "; nothing was begun"),
        (
            "from training import export\ndef fail(path): raise {error}\nexport.Job.of_run = fail\n"
            "raise SystemExit(export.main([{run!r}]))",
            1,
            "\nthe run in {run} is as safe as it was",
        ),
    ],
)  # fmt: skip
def test_where_a_drive_fails_before_a_run_is_open_it_is_told_what_is_safe(tmp_path, code, ends, words):
    run, error = str(tmp_path), f"OSError({errno.EIO}, 'x', '/a/file')"
    command = [sys.executable, "-c", code.format(error=error, run=run)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout) == (ends, "")
    said = f"/a/file: {os.strerror(errno.EIO)}; {io_errors.REMEDIES[errno.EIO]}{words.format(run=run)}"
    assert said in done.stderr and "Traceback" not in done.stderr


def test_a_file_that_is_in_its_place_is_no_failure_when_the_half_written_one_cannot_be_removed(tmp_path, monkeypatch):
    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EIO, "x", str(path))

    monkeypatch.setattr(Path, "unlink", refuse)
    files.write_text(tmp_path / "file", "whole")
    assert (tmp_path / "file").read_text(encoding="utf-8") == "whole"


def test_a_temporary_folder_whose_process_is_gone_is_removed_by_the_next_and_others_are_left(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    gone, young, strange = (tmp_path / f"finetune-{name}" for name in ("logits-1.held", "trial-2.held", "own"))
    for path in (gone, young, strange):
        (path / "in").mkdir(parents=True)
    past = time.time() - 2 * temporary.YOUNG
    with temporary.folder("alive") as alive:
        for path in (gone, strange, alive):
            os.utime(path, (past, past))
        with temporary.folder("logits") as folder:
            assert sorted(tmp_path.iterdir()) == sorted([alive, young, strange, folder])
            assert folder.stat().st_mode & 0o777 == 0o700
    assert sorted(tmp_path.iterdir()) == sorted([young, strange])
