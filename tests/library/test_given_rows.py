"""Rows that a program holds in memory: which are taken, and what is said of the others."""

import json
from collections import UserDict
from types import MappingProxyType

import pytest

from training.data import row_files
from training.errors import UserError
from training.library import given_rows

ROWS = [{"instruction": "你好？", "response": "您好。\n请说。"}, {"prompt": "a", "completion": "b"}]


class Table:
    """What datasets.Dataset has: columns that every row has, empty ones as None."""

    column_names = ("instruction", "response", "input")

    def __iter__(self):
        return iter([{**ROWS[0], "input": None}])


class Frame:
    """What a table of pandas has."""

    iloc = None

    def to_dict(self, kind):
        assert kind == "records"
        return ROWS


def test_a_path_stays_what_it_is(tmp_path):
    assert given_rows.file_of("rows.jsonl", tmp_path) == "rows.jsonl"
    assert given_rows.file_of(tmp_path / "x.csv", tmp_path) == tmp_path / "x.csv"
    assert list(tmp_path.iterdir()) == []


def test_rows_are_written_once_where_a_resumed_run_finds_them(tmp_path):
    file = given_rows.file_of(ROWS, tmp_path / "out")
    assert file.parent == tmp_path / "out" / "data" and file.name.startswith("rows-")
    assert [record.fields for record in row_files.records(file)] == ROWS
    assert given_rows.file_of(iter(ROWS), tmp_path / "out") == file
    assert given_rows.file_of(ROWS[:1], tmp_path / "out") != file
    assert file.stat().st_mode & 0o077 == 0  # they are private


def test_tables_give_their_rows(tmp_path):
    assert json.loads(given_rows.file_of(Table(), tmp_path).read_text("utf-8")) == ROWS[0]
    assert given_rows.file_of(Frame(), tmp_path) == given_rows.file_of(ROWS, tmp_path)


def test_rows_that_are_no_dict_and_read_like_one_are_taken(tmp_path):
    file = given_rows.file_of([UserDict(ROWS[0]), MappingProxyType(ROWS[1])], tmp_path)
    assert file == given_rows.file_of(ROWS, tmp_path)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([], "there are no rows in it"),
        ({"train": ROWS, "test": ROWS}, r"holds several things \(train, test\); name one of them"),
        ([ROWS[0], "text"], "row 2 is a str; a row is a dict"),
        ([ROWS[0], {"text": object()}], "row 2 cannot be written as JSON: Object of type object is not JSON"),
        ([{"text": float("nan")}], "row 1 cannot be written as JSON"),
        ([ROWS[0], {"prompt": "a\ud800", "completion": "b"}], "row 2 holds half a character"),
        ([{"\ud800": "a"}], "row 1 holds half a character"),
        (7, "takes a path, a list of dicts or a datasets.Dataset, not int"),
    ],
)
def test_what_is_no_rows_is_said_so_and_nothing_is_written(tmp_path, data, said):
    with pytest.raises(UserError, match=f"^data_path=: .*{said}"):
        given_rows.file_of(data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_rows_of_settings_that_are_refused_are_not_left_behind(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(UserError, match="no such model"), given_rows.held(ROWS, out) as path:
        assert path.is_file()
        raise UserError("no such model")
    assert list(tmp_path.iterdir()) == []
    # Those that were there before, and a folder that was, stay.
    kept = given_rows.file_of(ROWS, out)
    for rows in (ROWS, ROWS[:1]):
        with pytest.raises(UserError), given_rows.held(rows, out):
            raise UserError("no such model")
    assert [kept] == list((out / given_rows.FOLDER).iterdir())
    with given_rows.held(ROWS[:1], out) as path:
        pass
    assert path.is_file()


@pytest.mark.slow
def test_a_data_set_of_the_library_itself_gives_its_rows(tmp_path):
    import datasets

    table = datasets.Dataset.from_list(
        [{**ROWS[0], "prompt": None, "completion": None}, {"prompt": "a", "completion": "b"}]
    )
    written = given_rows.file_of(table, tmp_path).read_text("utf-8").splitlines()
    assert [json.loads(line) for line in written] == ROWS
    with pytest.raises(UserError, match=r"holds several things \(train, test\); name one of them"):
        given_rows.file_of(datasets.DatasetDict(train=table, test=table), tmp_path)
