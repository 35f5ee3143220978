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
