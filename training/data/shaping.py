"""A row in the shape of another kind of row that trains the same: what prepare_data.py writes."""

from __future__ import annotations

import json
from pathlib import Path

from training.data import columns, rows
from training.data.reading import Reading
from training.data.record import Record
from training.data.rows import Row
from training.data.turns import Turn

TYPES = ("alpaca", "qa", "chat", "text")


def shaped(record: Record, row: Row, path: Path, format_type: str) -> dict[str, object] | str:
    """The fields of a row of `format_type` that trains what `row` trains; or why there is none."""
    if format_type == "text":
        if (
            rows.interpret(record, path, Reading("text")) == row
        ):  # plain, or written as turns: the reader tells it again
            name = next(name for name in record.fields if columns.usual((name,), "text").fields or name == "text")
            return {"text": str(record.fields[name]).strip()}
        return "turns are no text row; --format-type chat takes them"
    if row.messages is None:
        return "plain text has no question; --format-type text takes it"
    if format_type == "chat":
        tools = {"tools": json.loads(row.tools)} if row.tools else {}
        return {"messages": [_message(turn) for turn in row.messages], **tools}
    if row.tools or any(turn.thoughts or turn.more or not turn.trained for turn in row.messages):
        return f"{format_type} has no place for tools, thoughts, or turns that are not learned; --format-type chat has"
    *system, question, answer = (turn.content.strip() for turn in row.messages)
    if len(row.messages) != 2 + (row.messages[0].role == "system"):
        return f"{format_type} takes one question and one answer; --format-type chat takes a longer conversation"
    above: dict[str, object] = {"system": system[0]} if system else {}
    if format_type == "qa":
        return {**above, "input": question, "output": answer}
    fields = {"instruction": question, "input": "", "output": answer}
    if "instruction" in record.fields and rows.interpret(_plain(record), path, Reading("alpaca")) == row:
        # Its input stays apart.
        fields |= {name: str(record.fields.get(name) or "").strip() for name in ("instruction", "input")}
    return {**above, **fields}


def _plain(record: Record) -> Record:
    """The record's own instruction and input, and what answers them."""
    names = ("instruction", "input", "output", "response", "system")
    return Record(record.line, {name: record.fields[name] for name in names if name in record.fields})


def _message(turn: Turn) -> dict[str, object]:
    """A turn as a message that is read again as the same turn."""
    message: dict[str, object] = {"role": turn.role, "content": turn.content.strip()}
    if turn.thoughts:
        message["reasoning_content"] = turn.thoughts
    if turn.more:
        message |= json.loads(turn.more)
    return message if turn.trained else {**message, "weight": 0}
