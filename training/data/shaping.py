"""A row in the shape of another kind of row that trains the same: what prepare_data.py writes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from training.data import columns, private, rows
from training.data.reading import PLAIN, Reading
from training.data.record import Record
from training.data.rows import Row
from training.data.turns import Turn

TYPES = ("alpaca", "qa", "chat", "text")


def shaped(record: Record, row: Row, path: Path, format_type: str, reading: Reading = PLAIN) -> dict[str, object] | str:
    """The fields of a row of `format_type` that trains what `row` trains; or why there is none. `reading`: how it was read."""
    if format_type == "text":
        fields = _text(record, row, path, reading)
        return fields if fields else "turns are no text row; --format-type chat takes them"
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
    # Its input stays apart, where it has one and no more than that.
    own = {name: _masked(record.fields.get(name), reading) for name in ("instruction", "input")}
    apart = {**above, **fields, **own}
    return apart if own["instruction"] and _trains(apart, row, path, reading, "alpaca") else {**above, **fields}


def _text(record: Record, row: Row, path: Path, reading: Reading) -> dict[str, object] | None:
    """A row of text that is plain, or written as turns, which the reader tells again; None for another."""
    if row.messages is None:
        return {"text": (row.text or "").strip()}
    taken = columns.by_setting(record.fields, reading.columns) if reading.columns else record.fields
    name = next((name for name in taken if columns.usual((name,), "text").fields or name == "text"), "")
    fields: dict[str, object] = {"text": _masked(taken.get(name), reading)}
    return fields if _trains(fields, row, path, reading, "text") else None


def _trains(fields: dict[str, object], row: Row, path: Path, reading: Reading, format: str) -> bool:
    """Whether what is written trains what was read, but for outer white space."""
    how = replace(reading, format=format, columns=None, template=None, on_private="off")
    again = rows.interpret(Record(row.line, fields), path, how)
    return isinstance(again, Row) and _bare(again) == _bare(row)


def _bare(row: Row) -> Row:
    return replace(
        row, messages=row.messages and tuple(replace(one, content=one.content.strip()) for one in row.messages)
    )


def _masked(value: object, reading: Reading) -> str:
    """A field as it is written, with masks where the row is to have them; "" where it is no text."""
    text = value.strip() if isinstance(value, str) else ""
    return private.masked(text, reading.mask_key) if reading.on_private == "mask" else text


def _message(turn: Turn) -> dict[str, object]:
    """A turn as a message that is read again as the same turn."""
    message: dict[str, object] = {"role": turn.role, "content": turn.content.strip()}
    if turn.thoughts:
        message["reasoning_content"] = turn.thoughts
    if turn.more:
        message |= json.loads(turn.more)
    return message if turn.trained else {**message, "weight": 0}
