"""An export as DATASET_FILE: read where it says who answers, refused with what makes rows of it where it does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support import exports
from training import chats
from training.data import Row, rows
from training.errors import UserError


@pytest.fixture
def every(tmp_path: Path) -> dict[str, Path]:
    return exports.every(tmp_path)


@pytest.mark.parametrize(
    ("kind", "question", "answer"),
    [
        ("chatgpt", "When was Rome founded?", "In 753 BC ."),
        ("claude", "Sum it up.\n\nOslo is large.", "Oslo: large."),
        ("openwebui", "How hot?", "80 °C."),
    ],
)
@pytest.mark.parametrize("indent", [None, 2])
def test_conversations_with_an_assistant_are_rows(kind: str, question: str, answer: str, indent, every) -> None:
    every[kind].write_text(json.dumps(json.loads(every[kind].read_text("utf-8")), indent=indent), "utf-8")
    (row,) = rows.read(every[kind])
    assert isinstance(row, Row) and row.messages
    texts = [turn.content for turn in row.messages if turn.role != "system"]
    assert texts[:2] == [question, answer]
    named = f"that are conversations of {chats.NAMES[kind]}, of which the branch is read that was shown last"
    assert named in row.read_as


def test_conversations_without_an_answer_are_counted_and_not_bad(every) -> None:
    (row,) = rows.read(every["chatgpt"])
    assert row.read_as[-1] == "that ends an export of which 1 conversation without an answer were left out"


@pytest.mark.parametrize("kind", ["whatsapp", "telegram", "discord", "wechat-csv"])
def test_an_export_that_does_not_say_who_answers_is_refused_with_the_command(kind: str, every) -> None:
    with pytest.raises(UserError) as raised:
        list(rows.read(every[kind]))
    said = str(raised.value)
    assert said.startswith(f"{every[kind]}: is an export of {chats.NAMES[kind]}, not a file of rows; prepare_data.py")
    assert "training/prepare_data.py --input" in said and "--my-name 'YOUR NAME'" in said


def test_an_export_of_which_nothing_can_be_learned_is_refused_and_says_so(tmp_path: Path) -> None:
    path = exports.as_json(tmp_path / "conversations.json", exports.CHATGPT[1:])
    with pytest.raises(
        UserError, match=r"conversations.json: is an export of conversations of which nothing can be learned"
    ):
        list(rows.read(path))


def test_rows_with_a_mapping_and_a_title_are_no_conversations_of_chatgpt(tmp_path: Path) -> None:
    row = {"title": "t", "mapping": {"a": 1, "b": {"title": "x"}}, "instruction": "Who?", "output": "Me."}
    path = exports.as_json(tmp_path / "a.json", [row, {**row, "mapping": {}}])
    first, second = rows.read(path)
    assert isinstance(first, Row) and isinstance(second, Row)
    assert first.messages and [turn.content for turn in first.messages] == ["Who?", "Me."]
