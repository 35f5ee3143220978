"""DATASET_FILE as a list: which files it names, with which share, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training import settings
from training.errors import UserError
from training.settings import Override, data_files
from training.settings.data_files import DataFile


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "old").mkdir()
    for name in ("a.jsonl", "b.jsonl", "old/2.jsonl", "old/1.jsonl", "old/x.csv", "c,d.jsonl", "e*2"):
        (tmp_path / name).write_text('{"prompt": "a", "completion": "b"}\n', "utf-8")
    return tmp_path


def load(folder: Path, written: str) -> settings.Settings:
    config = folder / "config.ini"
    config.write_text(f"[Dataset]\nDATASET_FILE = {written}\n", "utf-8")
    return settings.load(config)


def named(folder: Path, written: str) -> list[tuple[str, float]]:
    found = data_files.named(load(folder, written).dataset.dataset_file)
    return [(str(one.path.relative_to(folder)), one.share) for one in found]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("a.jsonl", [("a.jsonl", 1)]),
        ("a.jsonl, b.jsonl", [("a.jsonl", 1), ("b.jsonl", 1)]),
        ("a.jsonl,b.jsonl*2", [("a.jsonl", 1), ("b.jsonl", 2)]),
        ("a.jsonl * 0.5, b.jsonl", [("a.jsonl", 0.5), ("b.jsonl", 1)]),
        ("old/*.jsonl", [("old/1.jsonl", 1), ("old/2.jsonl", 1)]),
        ("old/*.jsonl*3, a.jsonl", [("old/1.jsonl", 3), ("old/2.jsonl", 3), ("a.jsonl", 1)]),
        ("a.jsonl*2", [("a.jsonl", 2)]),
        # Files that are there by that name are no list.
        ("c,d.jsonl", [("c,d.jsonl", 1)]),
        (r"a.jsonl, c\,d.jsonl", [("a.jsonl", 1), ("c,d.jsonl", 1)]),
        ("e*2", [("e*2", 1)]),
    ],
)
def test_files_shares_and_patterns(folder: Path, written: str, expected: list) -> None:
    assert named(folder, written) == expected


def test_a_runs_own_settings_name_the_same_files(folder: Path) -> None:
    given = load(folder, r"a.jsonl, c\,d.jsonl*2, old/*.jsonl*0.5")
    (folder / "elsewhere").mkdir()
    copy = folder / "elsewhere" / "config.ini"
    copy.write_text(given.to_ini(), "utf-8")
    again = settings.load(copy)
    assert data_files.named(again.dataset.dataset_file) == data_files.named(given.dataset.dataset_file)
    assert again == given


def test_on_the_command_line_relative_names_start_where_one_stands(folder: Path, monkeypatch) -> None:
    monkeypatch.chdir(folder / "old")
    (folder / "config.ini").write_text("[Model]\n", "utf-8")
    given = settings.load(
        folder / "config.ini", [Override("Dataset", "DATASET_FILE", "1.jsonl, ../a.jsonl*2", "--data")]
    )
    assert [one.path for one in data_files.named(given.dataset.dataset_file)] == [
        folder / "old/1.jsonl",
        folder / "a.jsonl",
    ]


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("a.jsonl, none.jsonl", "no such file ({}/none.jsonl)"),
        ("a.jsonl, old", "is a folder; a file is expected ({}/old)"),
        ("a.jsonl, old/*.txt", "no file matches {}/old/*.txt"),
        ("a.jsonl, a.jsonl", "{}/a.jsonl is named twice; a.jsonl*2 takes its rows twice"),
        ("old/1.jsonl, old/*.jsonl", "{}/old/1.jsonl is named twice; 1.jsonl*2 takes its rows twice"),
        ("a.jsonl, , b.jsonl", "expected files with commas between them"),
        ("a.jsonl*0", "a.jsonl*0: a share must be above 0 and at most 100"),
        ("a.jsonl*-1", "a.jsonl*-1: a share must be above 0 and at most 100"),
        ("a.jsonl*-0.5", "a.jsonl*-0.5: a share must be above 0 and at most 100"),
        ("a.jsonl*50%", "no file matches {}/a.jsonl*50%; a share is a number above 0, as in a.jsonl*0.5"),
        ("a.jsonl*half", "no file matches {}/a.jsonl*half; a share is a number above 0, as in a.jsonl*0.5"),
        ("a.jsonl*101", "a.jsonl*101: a share must be above 0 and at most 100"),
    ],
)
def test_what_is_no_list_of_files_is_refused(folder: Path, written: str, reason: str) -> None:
    with pytest.raises(UserError) as raised:
        load(folder, written)
    assert f"[Dataset] DATASET_FILE = {written}: {reason.format(folder)}" in str(raised.value)


def test_too_many_files_are_refused(folder: Path, monkeypatch) -> None:
    monkeypatch.setattr(data_files, "MOST", 1)
    with pytest.raises(UserError, match="2 files match .*; 1 are the most"):
        load(folder, "old/*.jsonl")


def test_a_file_of_the_list_is_not_validated_on(folder: Path) -> None:
    (folder / "config.ini").write_text(
        "[Dataset]\nDATASET_FILE = a.jsonl, b.jsonl\nVALIDATION_FILE = b.jsonl\n", "utf-8"
    )
    with pytest.raises(UserError, match="the model would be validated on its training rows"):
        settings.load(folder / "config.ini")


@given(
    st.lists(
        st.tuples(st.text("ab,* \\é", min_size=1, max_size=6), st.sampled_from([1.0, 2.0, 0.25])),
        min_size=1,
        max_size=4,
    )
)
def test_what_is_written_is_read_back(files: list) -> None:
    listed = [DataFile(Path(f"/x/{name.strip()}.jsonl"), share) for name, share in files if not name.endswith("\\")]
    if listed:
        assert list(data_files.parts(", ".join(one.written() for one in listed))) == listed
