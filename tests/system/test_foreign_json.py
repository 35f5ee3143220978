"""JSON that others wrote: told by file and field, never a traceback, never without end."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from training.system import foreign_json
from training.system.foreign_json import COUNT, MOMENT, NUMBER, TEXT, Damaged

KINDS = {"name": TEXT, "step": COUNT, "started": MOMENT.or_none(), "loss": NUMBER}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[]", r"is not a JSON object: it holds \[\]"),
        (b"", "cannot be read as JSON: Expecting value"),
        (b"\xff\xfe", "cannot be read as JSON: 'utf-8' codec"),
        (b"[" * 100_000, "nested more than 100 levels deep"),
        (b'{"a":' * 500 + b"1" + b"}" * 500, "nested more than 100 levels deep"),
        (b'{"name": 7}', "name = 7 is no text"),
        (b'{"step": -1}', "step = -1 is no whole number from 0 on"),
        (b'{"step": true}', "step = true is no whole number"),
        (b'{"started": 1e300}', "started = 1e.300 is no moment"),
        (b'{"loss": NaN}', "loss = NaN is no finite number"),
        (b'{"loss": 1' + b"0" * 500 + b"}", "is no finite number"),
        (b'{"loss": 1' + b"0" * 5000 + b"}", "cannot be read as JSON"),
    ],
)
def test_what_is_wrong_with_a_file_is_told_with_its_name_and_the_field(
    content: bytes, said: str, tmp_path: Path
) -> None:
    file = tmp_path / "status.json"
    file.write_bytes(content)
    with pytest.raises(Damaged, match=said) as caught:
        foreign_json.read(file, KINDS)
    assert str(caught.value).startswith(str(file))
    assert len(str(caught.value)) < 400


def test_every_field_that_does_not_fit_is_told_at_once_and_unknown_ones_are_none_of_its_business(
    tmp_path: Path,
) -> None:
    file = tmp_path / "status.json"
    file.write_text('{"name": [], "step": "3", "started": null, "later": {"a": 1}}')
    with pytest.raises(Damaged) as caught:
        foreign_json.read(file, KINDS)
    assert [problem.removeprefix(f"{file}: ") for problem in caught.value.problems] == [
        "name = [] is no text",
        'step = "3" is no whole number from 0 on',
    ]


def test_what_is_no_file_or_too_large_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, said in ((tmp_path / "pipe", "it is no file"), (tmp_path, "it is no file"), (tmp_path / "x", "No such")):
        with pytest.raises(Damaged, match=said):
            foreign_json.read(path)
    (tmp_path / "large").write_bytes(b"{}" + b" " * 100)
    with pytest.raises(Damaged, match="102 bytes, and 100 at most"):
        foreign_json.read(tmp_path / "large", most=100)
