"""What a row means: the formats of a data file, told apart row by row, become turns or plain text. Standard library only."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from training.data.record import BadRow, Record, describe
from training.data.row_files import records
from training.errors import UserError
from training.settings.prompt_template import PromptTemplate
from training.system.wording import shorten


@dataclass(frozen=True)
class Turn:
    """One message: `role` is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True)
class Row:
    """One sample: `messages` (system?, then user and assistant in turn, an assistant last), or plain `text`.

    `unused`: fields of the row that hold something and are not trained.
    """

    messages: tuple[Turn, ...] | None
    text: str | None
    file: str
    line: int
    unused: tuple[str, ...] = field(default=(), compare=False)


# FORMAT -> the fields that make a row one of it; the first whose fields are all there wins.
PAIRS = {
    "alpaca": (("instruction", "output"), ("instruction", "response")),
    "prompt": (("prompt", "completion"),),
    "input": (("input", "output"),),
}
FORMATS = ("auto", "messages", "conversations", *PAIRS, "text")
WOULD_DO = (
    "messages; conversations; instruction + output (or response), with input if need be; prompt + completion; "
    "input + output; or text"
)
ROLES = {
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model"), "assistant"),
    "system": "system",
}
ROLE_IN_FRONT = re.compile(r"(?:用户|助手)(?:: |：)")
WRITTEN_TURN = re.compile(r"^(系统|System|用户|User|Human|助手|Assistant)[:：][ \t]?", re.MULTILINE)
WRITTEN_ROLES = {"系统": "system", "System": "system", "助手": "assistant", "Assistant": "assistant"}
OPTIONAL = ("input", "system")  # null is the same as absent: pandas and Arrow write it for a missing value


class _Bad(Exception):
    """Why this row cannot be trained on."""


def read(path: Path, format: str = "auto", prompt_template: PromptTemplate | None = None) -> Iterator[Row | BadRow]:
    """Yield every row of `path` in order, or why it is bad, with its line. Never raises for a bad row.

    `format` is one of FORMATS. With a `prompt_template` the user's turn is what the template makes of the row's columns.
    Raises UserError when the file as a whole cannot be read.
    """
    if format not in FORMATS:
        raise UserError(f"[Dataset] FORMAT = {format}: must be one of {', '.join(FORMATS)}")
    for record in records(path):
        yield record if isinstance(record, BadRow) else interpret(record, path, format, prompt_template)


def interpret(
    record: Record, path: Path, format: str = "auto", prompt_template: PromptTemplate | None = None
) -> Row | BadRow:
    """What one record of the file `path` means, or why it is bad. Never raises for a bad row."""
    try:
        messages, text = _interpret(record.fields, format, prompt_template)
    except _Bad as bad:
        header = "; the first line of a CSV file must name the columns" if _is_unnamed_table(bad, path) else ""
        return BadRow(str(path), record.line, f"{bad}{header}")
    return Row(messages, text, str(path), record.line, _unused(record.fields, format, prompt_template))


def _is_unnamed_table(bad: _Bad, path: Path) -> bool:
    """Whether a CSV file seems to begin with a row, and not with the names of its columns."""
    return str(bad).endswith(WOULD_DO) and not {".csv", ".tsv"}.isdisjoint(map(str.lower, path.suffixes))


def _unused(fields: Mapping[str, object], format: str, template: PromptTemplate | None) -> tuple[str, ...]:
    """The fields of a good row that hold something and are left out; of a turn as "messages: name"."""
    found = _format(fields, format, template)
    if not isinstance(found, str):
        question, answer = found
        used = {question, answer, "system", *(("input",) if question == "instruction" else ())}
        used |= {name for _, name in template.columns} if template else set()
        return tuple(name for name in fields if name not in used and fields[name] not in NOTHING)
    unused = [name for name in fields if name not in (found, "system") and fields[name] not in NOTHING]
    if found != "text":
        turns = fields[found]
        for turn in turns if isinstance(turns, list) else ():
            if len(turn) > 2:
                keys = ("from", "value") if "from" in turn and "role" not in turn else ("role", "content")
                unused += [f"{found}: {name}" for name in turn if name not in keys and turn[name] not in NOTHING]
    elif fields.get("system") not in NOTHING:
        unused.append("system")
    return tuple(dict.fromkeys(unused))


NOTHING: tuple[object, ...] = (None, "", [], {})  # empty values: dropping them loses nothing


def _interpret(
    fields: Mapping[str, object], format: str, template: PromptTemplate | None
) -> tuple[tuple[Turn, ...] | None, str | None]:
    found = _format(fields, format, template)
    if not isinstance(found, str):
        return _pair(fields, found, template), None
    if found != "text":
        return _turns(fields, found, template), None
    text = _text(fields, "text")
    if _is_blank(text):
        raise _Bad("text is empty")
    turns = _written_turns(text)
    return (_checked(turns), None) if turns else (None, text)


def _pair(fields: Mapping[str, object], names: tuple[str, str], template: PromptTemplate | None) -> tuple[Turn, ...]:
    """The turns of a question and its answer, in the fields of these names."""
    question, answer = names
    if template:
        user = template.user(_columns(fields, question, template))
    elif question == "instruction":
        user = "\n\n".join(part for part in (_text(fields, "instruction"), _text(fields, "input")) if part.strip())
    else:
        user = _text(fields, question)
    reply = _text(fields, answer)
    if question == "prompt":  # the Go host writes each with its role in front
        user, reply = _without_role(user), _without_role(reply)
    if _is_blank(user):
        raise _Bad(f"{question} is empty")
    if _is_blank(reply):
        raise _Bad(f"the answer is empty: {answer} holds no text")
    system = _text(fields, "system")
    return (*((Turn("system", system),) if system.strip() else ()), Turn("user", user), Turn("assistant", reply))


def _format(fields: Mapping[str, object], format: str, template: PromptTemplate | None) -> str | tuple[str, str]:
    """The row's format: "messages", "conversations" or "text", or the names of its (question, answer) fields."""
    there = {name for name, value in fields.items() if value is not None}
    for name in ("messages", "conversations"):
        if format in ("auto", name) and name in there:
            return name
    if template:  # its columns may have any name; {response} is whichever field holds answers
        answer = next((name for name in ("output", "response", "completion") if name in there), None)
        if answer and all(name in there for _, name in template.columns if name not in ("instruction", "input")):
            question = next((name for name in ("instruction", "prompt", "input") if name in there), "")
            if question or not any(name == "instruction" for _, name in template.columns):
                return question, answer
    if template and not there.isdisjoint(name for pairs in PAIRS.values() for pair in pairs for name in pair):
        raise _Bad(_no_known_fields(fields, format, template))
    for name, pairs in PAIRS.items():
        for pair in pairs:
            if format in ("auto", name) and there.issuperset(pair):
                return pair
    if format in ("auto", "text") and "text" in there:
        return "text"
    raise _Bad(_no_known_fields(fields, format, template))


def _no_known_fields(fields: Mapping[str, object], format: str, template: PromptTemplate | None) -> str:
    found = ", ".join(shorten(str(name)) for name in list(fields)[:8]) + (", …" if len(fields) > 8 else "")
    nulls = [name for name, value in fields.items() if value is None and name in KNOWN]
    if nulls:
        return f"{nulls[0]} is null, not {'a list' if nulls[0] in FORMATS[1:3] else 'text'} (fields found: {found})"
    if not fields:
        found = "none"
    if template:
        wanted = ", ".join(name for _, name in template.columns)
        return (
            f"fields found: {found}; PROMPT_TEMPLATE wants {wanted}, and output, response or completion for the answer"
        )
    if format != "auto":
        pairs = PAIRS.get(format)
        wanted = " or ".join(" + ".join(pair) for pair in pairs) if pairs else format
        return f"fields found: {found}; FORMAT = {format} wants {wanted}"
    return f"no known fields (found: {found}); what would do: {WOULD_DO}{_meant(fields)}"


def _meant(fields: Mapping[str, object]) -> str:
    """What the one who wrote fields that are not known may have had in mind, for a message."""
    if {"chosen", "rejected"} <= fields.keys():
        return "; preference pairs are not trained here, but chosen may be renamed to completion"
    if {"question", "answer"} <= fields.keys():
        return "; training/prepare_data.py turns question + answer into rows"
    if small := [name for name in fields if name not in KNOWN and name.strip().lower() in KNOWN]:
        return f"; {shorten(small[0])!r} is written {small[0].strip().lower()!r}"
    for name, value in fields.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            return f"; {shorten(name)} holds a list of objects: if these are the rows, the file must be that list alone"
    return ""


KNOWN = {"messages", "conversations", "text", *(name for pairs in PAIRS.values() for pair in pairs for name in pair)}


def _columns(fields: Mapping[str, object], question: str, template: PromptTemplate) -> dict[str, str]:
    """The values of the template's columns. {instruction} is whatever asks; {input} only comes beside an instruction."""
    values = {}
    for _, name in template.columns:
        if name == "instruction":
            values[name] = _text(fields, question)
        elif name == "input":
            values[name] = _text(fields, "input") if question == "instruction" or question == "" else ""
        else:
            values[name] = _text(fields, name)
        if question == "prompt":
            values[name] = _without_role(values[name])
    return values


def _text(fields: Mapping[str, object], name: str) -> str:
    """The text of a field; an optional one that is absent is ""."""
    value = fields.get(name)
    if value is None and name in OPTIONAL:
        return ""
    return _sound(value, name)


INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff\u00ad"  # zero-width characters, which web pages leave behind


def _is_blank(text: str) -> bool:
    """Whether nothing of the text can be seen."""
    bare = text.strip()
    return not bare or (bare[0] in INVISIBLE and not bare.translate(dict.fromkeys(map(ord, INVISIBLE))).strip())


def _sound(value: object, name: str) -> str:
    """`value` when it is text that a tokenizer can take."""
    if not isinstance(value, str):
        quotes = "; write it in quotes" if isinstance(value, (int, float)) and not isinstance(value, bool) else ""
        parts = isinstance(value, list) and value and isinstance(value[0], dict) and "type" in value[0]
        only = "; a turn is one text here: pictures and other parts are not trained" if parts else ""
        raise _Bad(f"{name} is {describe(value)}, not text{quotes}{only}")
    if "\0" in value:
        raise _Bad(f"{name} holds a NUL character")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            code = ord(value[error.start])
            if 0xDC80 <= code <= 0xDCFF:  # how the readers hand on a byte that is not UTF-8
                raise _Bad(f"{name} is not UTF-8: byte 0x{code - 0xDC00:02x}") from None
            raise _Bad(f"{name} holds half a character (a lone surrogate, \\u{code:04x})") from None
    return value


def _without_role(text: str) -> str:
    """`text` without a role in front: at the start only, and only once; anywhere else it is the user's own text."""
    found = ROLE_IN_FRONT.match(text)
    return text[found.end() :] if found else text


def _turns(fields: Mapping[str, object], name: str, template: PromptTemplate | None) -> tuple[Turn, ...]:
    """The turns of {messages: [{role, content}]} or {conversations: [{from, value}]}; either spelling in either field."""
    turns = fields[name]
    if not isinstance(turns, list):
        inside = "; it is JSON inside of a text: write the list itself" if str(turns).lstrip().startswith("[") else ""
        raise _Bad(f"{name} is {describe(turns)}, not a list of turns{inside}")
    columns = [column for _, column in template.columns if column not in ("instruction", "input")] if template else []
    if columns:
        raise _Bad(f"PROMPT_TEMPLATE wants the column {columns[0]}, which a row of turns does not have")
    result = []
    system = _text(fields, "system")
    if system.strip():
        result.append(Turn("system", system))
    for number, turn in enumerate(turns, 1):
        where = f"{name}, turn {number}"
        if not isinstance(turn, dict):
            raise _Bad(f"{where} is {describe(turn)}, not an object with role and content")
        keys = ("from", "value") if "from" in turn and "role" not in turn else ("role", "content")
        for key in keys:
            if key not in turn:
                raise _Bad(f"{where} has no {key} (found: {', '.join(map(shorten, turn)) or 'nothing'})")
        if turn.get("tool_calls"):
            raise _Bad(f"{where} holds tool calls, which are not trained here")
        role = _sound(turn[keys[0]], f"{where}: {keys[0]}")
        if role not in ROLES:
            raise _Bad(f"{where}: role {shorten(role)!r} is not known; system, user and assistant are")
        result.append(Turn(ROLES[role], _sound(turn[keys[1]], f"{where}: {keys[1]}")))
    return _checked(result)


def _checked(turns: list[Turn]) -> tuple[Turn, ...]:
    """The turns as a model must see them. An empty system text is the same as none."""
    if turns and turns[0].role == "system" and not turns[0].content.strip():
        turns = turns[1:]
    talk = turns[1:] if turns and turns[0].role == "system" else turns
    if not talk:
        raise _Bad("there are no turns")
    for number, turn in enumerate(talk):
        expected = "assistant" if number % 2 else "user"
        if turn.role != expected:
            after = f"after {talk[number - 1].role}" if number else "first"
            raise _Bad(f"roles do not alternate: {turn.role} comes {after}, {expected} was expected")
        if _is_blank(turn.content):
            raise _Bad("the answer is empty" if turn.role == "assistant" else "the user's turn is empty")
    if talk[-1].role == "user":
        raise _Bad("the last turn is the user's: the answer is missing")
    return tuple(turns)


def _written_turns(text: str) -> list[Turn] | None:
    """The turns of a text written as `User: ...` / `Assistant: ...` (or 用户 / 助手); None for any other text.

    Only a text that starts with a role and holds an answer counts: prose may well have a line that begins with "User:".
    """
    text = text.strip()
    marks = list(WRITTEN_TURN.finditer(text))
    roles = [WRITTEN_ROLES.get(mark[1], "user") for mark in marks]
    if not marks or marks[0].start() != 0 or "assistant" not in roles or "user" not in roles:
        return None
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    return [Turn(role, text[mark.end() : end].strip()) for role, mark, end in zip(roles, marks, ends, strict=True)]
