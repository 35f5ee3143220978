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
from training.errors import Lost, MachineError, RunError, UserError
from training.pipeline.export_stages import Told
from training.runs import checkpoint
from training.system import files, io_errors, shell, temporary


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
        (
            RuntimeError("unable to open file </a b/x.safetensors> in read-only mode: No such file or directory (2)"),
            errno.ENOENT,
        ),
        (RuntimeError("unable to mmap 96 bytes from file </x>: Input/output error (5)"), errno.EIO),
        (RuntimeError("unable to find a file </x> that is: good (2 of 3)"), None),
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
    unread = RuntimeError("PytorchStreamReader failed reading file data/0: file read failed")
    assert io_errors.is_one(unread) and not io_errors.may_be_full(unread)
    assert io_errors.may_be_full(failed) and io_errors.may_be_full(OSError(errno.ENOSPC, "x"))
    assert io_errors.told(unread, Path("/r")).startswith(f"a file under /r could not be read ({unread}): the drive, ")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "ends", "words"),
    [
        ("from training.pipeline import failures; raise SystemExit(str(failures.not_written({error}, None)))", 1, "; nothing was begun"),
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


def raised(error: BaseException) -> BaseException:
    """A user's mistake that a reader made of an error."""
    try:
        try:
            raise error
        except BaseException:
            raise UserError("/m: its config.json cannot be read") from None
    except UserError as made:
        return made


def test_the_drive_behind_what_a_reader_took_for_a_damaged_file_is_found_and_a_missing_file_is_no_drives_fault():
    failed = OSError(errno.EIO, "x", "/m/config.json")
    assert io_errors.behind(raised(failed)) is failed
    for error in (OSError(errno.ENOENT, "x", "/m"), ValueError("bad"), ConnectionResetError(errno.EIO, "x")):
        assert io_errors.behind(raised(error)) is None


def test_what_a_library_says_of_a_drive_is_told_with_the_file_and_what_would_do():
    ours = UserError("/m: its tokenizer cannot be read: Stale file handle (os error 116)")
    assert io_errors.behind(ours) is ours
    assert io_errors.instead(str(ours), ours) == f"{ours}; {io_errors.REMEDIES[errno.ESTALE]}"
    assert io_errors.instead(f"it; {io_errors.REMEDIES[errno.ESTALE]}", ours).count("mount it again") == 1
    named = raised(OSError(errno.EIO, "x", "/m/config.json"))
    assert (
        io_errors.instead(str(named), named) == f"/m/config.json: Input/output error; {io_errors.REMEDIES[errno.EIO]}"
    )
    assert io_errors.instead("words", ValueError("x")) == "words"
    theirs = RuntimeError("I/O error: Input/output error (os error 5)\nmore")
    said = f"/runs: I/O error: Input/output error (os error 5); {io_errors.REMEDIES[errno.EIO]}"
    assert io_errors.told(theirs, Path("/runs")) == said


def test_the_drive_that_a_started_program_died_of_is_read_from_its_last_words():
    lines = ["OSError: [Errno 5] Input/output error: '/m/a b.json'", "more"]
    assert (found := io_errors.quoted(lines)) and (found.errno, found.filename) == (errno.EIO, "/m/a b.json")
    assert io_errors.quoted(["FileNotFoundError: [Errno 2] No such file or directory: '/m'", "[Errno 5]"]) is None
    of_rust = "Exception: Stale file handle (os error 116)"
    of_cpp = "RuntimeError: basic_filebuf::underflow error reading the file: Stale file handle"
    for line in ("OSError: [Errno 116] Stale file handle", of_rust, of_cpp):
        assert io_errors.number(RuntimeError(line)) == errno.ESTALE
        assert (found := io_errors.quoted([line])) and (found.errno, found.filename) == (errno.ESTALE, None)


def test_an_error_of_a_run_says_what_is_safe_and_one_of_a_drive_is_nobodys_mistake(tmp_path):
    from training import runs
    from training.pipeline import failures

    run = runs.create(tmp_path)
    (run.path / runs.CONFIG).write_text("", encoding="utf-8")
    run.update(stage="merge")
    failed = raised(OSError(errno.EIO, "x", "/m/config.json"))
    words = f"/m/config.json: Input/output error; {io_errors.REMEDIES[errno.EIO]}"
    safe = f"nothing was trained yet; `{shell.lasting('run.sh', '--resume', run.path)}` begins again"
    assert str(failures.in_full(failed, run)) == f"merge: {words}\n{safe}"
    before = failures.in_full(failed, None)
    assert (str(before), before.exit_code) == (f"{words}; nothing was begun", 3)
    assert str(failures.in_full(RunError("model", "no"), run)) == f"model: no\n{safe}"
    assert str(failures.in_full(RunError("model", "no", "safe"), run)) == "model: no\nsafe"
    lost = failures.in_full(Lost("training", "process 0 was killed"), run)
    assert isinstance(lost, Lost) and str(lost) == f"training: process 0 was killed\n{safe}"
    for other in (Told("model", "no"), UserError("no"), MachineError("no")):
        assert failures.in_full(other, run) is other
    assert checkpoint.where(run.path / runs.CHECKPOINTS).endswith(
        f"; `{shell.lasting('run.sh', '--resume', run.path)}` begins again"
    )


def test_where_what_is_safe_cannot_be_read_either_how_to_go_on_is_told_all_the_same(tmp_path, monkeypatch):
    from training import runs
    from training.pipeline import failures

    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, "x", "/runs/checkpoints")

    run = runs.create(tmp_path)
    (run.path / runs.CONFIG).write_text("", encoding="utf-8")
    monkeypatch.setattr(checkpoint, "newest", refuse)
    said = f"what is safe there cannot be read now; `{shell.lasting('run.sh', '--resume', run.path)}` goes on from it"
    assert failures.what_is_safe(run) == checkpoint.where(run.path / runs.CHECKPOINTS) == said


def test_a_run_whose_drive_does_not_answer_is_named_and_hides_no_other_one(tmp_path, monkeypatch, logged):
    from training import runs

    first, second = runs.create(tmp_path), runs.create(tmp_path)
    real = Path.exists

    def exists(path: Path) -> bool:
        if path == first.path / runs.STATUS:
            raise OSError(errno.EIO, "x", str(path))
        return real(path)

    monkeypatch.setattr(Path, "exists", exists)
    assert [run.path for run in runs.history(tmp_path)] == [second.path]
    assert logged[-1].startswith(f"{first.path / runs.STATUS}: Input/output error; ")
    assert logged[-1].endswith("; this run is left out")
