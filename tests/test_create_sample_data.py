"""The sample files: real rows in every format that is read, written whole, by any Python without packages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from training import create_sample_data
from training.data import BadRow, Row, rows
from training.data.reading import Reading
from training.settings import table

SCRIPT = ROOT / "training" / "create_sample_data.py"


def run(*arguments: str | Path) -> subprocess.CompletedProcess:
    """The script in a bare Python: -S leaves the installed packages out."""
    command = [sys.executable, "-S", str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=60)


@pytest.mark.slow
def test_the_paths_written_are_all_that_stands_on_stdout(tmp_path: Path) -> None:
    done = run("--output-dir", tmp_path / "new" / "samples")
    assert (done.returncode, done.stderr) == (0, "")
    written = [Path(line) for line in done.stdout.splitlines()]
    assert sorted(written) == sorted((tmp_path / "new" / "samples").iterdir())
    assert {path.name for path in written} == set(create_sample_data.samples())


def test_sample_data_is_a_list_of_ten_different_chinese_instructions(tmp_path: Path) -> None:
    create_sample_data.write(tmp_path)
    found = json.loads((tmp_path / "sample_data.json").read_text(encoding="utf-8"))
    assert len(found) == len({row["instruction"] for row in found}) == len({row["output"] for row in found}) == 10
    for row in found:
        assert set(row) == {"instruction", "input", "output"}
        assert any("\u4e00" <= letter <= "\u9fff" for letter in row["instruction"])


@pytest.mark.parametrize("name", list(create_sample_data.samples()))
def test_every_sample_is_read_without_a_bad_row(name: str, tmp_path: Path) -> None:
    create_sample_data.write(tmp_path)
    found = list(rows.read(tmp_path / name))
    assert len(found) >= 3
    assert [row for row in found if isinstance(row, BadRow)] == []


def test_the_samples_show_every_format_of_the_reader(tmp_path: Path) -> None:
    create_sample_data.write(tmp_path)
    for form in table.FORMATS:
        good = [
            name
            for name in create_sample_data.samples()
            if isinstance(next(rows.read(tmp_path / name, Reading(form))), Row)
        ]
        assert good, form


def test_no_role_in_front_is_left_in_a_turn(tmp_path: Path) -> None:
    create_sample_data.write(tmp_path)
    for name in ("sample_prompt_completion.jsonl", "sample_text_turns.jsonl"):
        found = [tuple(turn.content for turn in row.messages) for row in rows.read(tmp_path / name)]
        assert found == create_sample_data.PROMPTS


def test_its_own_files_are_replaced_whole_and_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "sample_text.txt").write_text("x" * 100_000, encoding="utf-8")
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    create_sample_data.write(tmp_path)
    assert (tmp_path / "sample_text.txt").read_text(encoding="utf-8") == create_sample_data.samples()["sample_text.txt"]
    assert {path.name for path in tmp_path.iterdir()} == {*create_sample_data.samples(), "mine.txt"}
    assert (tmp_path / "mine.txt").read_text(encoding="utf-8") == "mine"


@pytest.mark.slow
def test_a_file_in_the_place_of_the_folder_is_the_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = run("--output-dir", tmp_path / "file")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"--output-dir {tmp_path / 'file'}: is a file, not a folder\n"


@pytest.mark.slow
def test_a_folder_that_cannot_be_made_is_the_machines(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = run("--output-dir", tmp_path / "file" / "below")
    assert (done.returncode, done.stdout) == (3, "")
    assert (
        done.stderr == f"{tmp_path / 'file' / 'below'} cannot be written: Not a directory; --output-dir names another\n"
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_the_machines(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    done = run("--output-dir", tmp_path)
    tmp_path.chmod(0o700)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == f"{tmp_path} cannot be written: Permission denied; --output-dir names another\n"
