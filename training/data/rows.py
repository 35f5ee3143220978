"""What a row means: the formats of a data file, told apart row by row, become turns or plain text. Standard library only."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from training.data import columns, lost_fields, markup, pairs, private, tool_calls, tool_form, turns
from training.data.columns import KNOWN, PAIRS
from training.data.reading import PLAIN, Reading
from training.data.record import BadRow, Record
from training.data.row_files import records
from training.data.turns import Turn
from training.data.values import NOTHING, Bad, is_blank, sound, written_list
from training.settings.prompt_template import PromptTemplate
from training.settings.table import FORMATS
from training.system.wording import listed, shorten


@dataclass(frozen=True)
class Row:
    """One sample: `messages` (system?, then user and assistant in turn, an assistant last), or plain `text`.

    `tools`: the functions that it offers, as the JSON text of OpenAI's list; "" for none. `unused`: fields of the row that
    hold something and are not trained. `read_as`: how it was read, where that is worth saying. `private`: kinds of private
    things in it (private.WHAT), where they are to be told.
    """

    messages: tuple[Turn, ...] | None
    text: str | None
    file: str
    line: int
    tools: str = ""
    unused: tuple[str, ...] = field(default=(), compare=False)
    read_as: tuple[str, ...] = field(default=(), compare=False)
    private: tuple[str, ...] = field(default=(), compare=False)

    def has_aside(self) -> bool:
        """Whether the row has anything besides texts that are learned as they stand: few rows do."""
        for turn in self.messages or ():  # noqa: SIM110 (it is asked of every row, and any() takes twice as long)
            if turn.thoughts or turn.more or not turn.trained:
                return True
        return bool(self.tools)


WOULD_DO = (
    "messages; conversations; instruction + output (or response), with input if need be; prompt + completion; "
    "input + output; or text"
)


def read(path: Path, reading: Reading = PLAIN) -> Iterator[Row | BadRow]:
    """Yield every row of `path` in order, or why it is bad, with its line. Never raises for a bad row.

    With a PROMPT_TEMPLATE the user's turn is what the template makes of the row's columns.
    Raises UserError when the file as a whole cannot be read.
    """
    for record in records(path, encoding=reading.encoding):
        yield record if isinstance(record, BadRow) else interpret(record, path, reading)


def interpret(record: Record, path: Path, reading: Reading = PLAIN) -> Row | BadRow:
    """What one record of the file `path` means, or why it is bad. Never raises for a bad row."""
    said = list(record.read_as)
    try:
        fields = _named(record.fields, reading, said)
        found = _format(fields, reading)
        messages, text = _meaning(fields, found, reading, said)
        if text is not None and reading.format == "auto":
            _whole(text, path)
        unused = _unused(fields, found, reading.template)
        lost_fields.refuse(fields, found, reading, record.fields, unused)
        tools = _offered(fields) if messages else ""
        messages = turns.with_marked_calls(messages, said) if tools and messages else messages
        if reading.tool_form == tool_form.OLLAMA and (tools or any(turn.more for turn in messages or ())):
            messages, tools = _in_form(messages or (), tools, said)
    except Bad as bad:
        header = "; the first line of a CSV file must name the columns" if _is_unnamed_table(bad, path) else ""
        named = "".join(f" ({one})" for one in said if one.startswith(columns.TAKEN))
        return BadRow(str(path), record.line, f"{bad}{header}{named}")
    row = Row(messages, text, str(path), record.line, tools, unused, tuple(dict.fromkeys(said)) if said else ())
    return row if reading.on_private == "off" else _about_private(row, reading)


def _about_private(row: Row, reading: Reading) -> Row | BadRow:
    """The row as ON_PRIVATE wants it where it holds private things: told of, masked, or refused."""
    turns_ = row.messages or ()
    texts = [row.text or "", *(text for turn in turns_ for text in (turn.content, turn.thoughts))]
    kinds = private.kinds(texts, [row.tools, *(turn.more for turn in turns_)])
    if not kinds:
        return row
    if reading.on_private == "stop":
        held = listed([private.WHAT[kind] for kind in kinds])
        return BadRow(row.file, row.line, f"holds {held}: ON_PRIVATE = mask writes a mask in its place, warn learns it")
    if reading.on_private == "warn":
        return replace(row, private=kinds)
    key = reading.mask_key
    said = tuple(f"with {private.WHAT[kind]}, masked (ON_PRIVATE = mask)" for kind in kinds)
    return replace(
        row,
        read_as=(*row.read_as, *said),
        messages=tuple(private.masked_turn(turn, key) for turn in turns_) if row.messages is not None else None,
        text=None if row.text is None else private.masked(row.text, key),
        tools=private.masked_json(row.tools, key),
    )


def _offered(fields: Mapping[str, object]) -> str:
    """The functions that a row offers, as the JSON text of OpenAI's list, by either of its names for them; "" for none."""
    named = [name for name in tool_calls.OFFERS if tool_calls.is_offer(fields.get(name))]
    texts = {tool_calls.offered(fields[name], name) for name in named}
    if len(texts) > 1:
        raise Bad(f"{' and '.join(named)} offer different functions: leave one")
    return texts.pop() if texts else ""


def _in_form(messages: tuple[Turn, ...], tools: str, said: list[str]) -> tuple[tuple[Turn, ...], str]:
    """A row with its functions and calls as Ollama serves them."""
    lost: tool_form.Lost = {}
    formed, offered = [tool_form.turn(turn) for turn in messages], tool_form.tools(tools, lost)
    if offered != tools or any(changed for _, changed in formed):
        said.append(tool_form.FORMED)
    if tool_form.has_long_numbers(offered, *(turn.more for turn, _ in formed)):
        said.append(tool_form.LONG_NUMBERS)
    said += [tool_form.left_out(shorten(name)) for name in lost]
    return tuple(turn for turn, _ in formed), offered


def _is_unnamed_table(bad: Bad, path: Path) -> bool:
    """Whether a CSV file seems to begin with a row, and not with the names of its columns."""
    return str(bad).startswith("no known fields") and not {".csv", ".tsv"}.isdisjoint(map(str.lower, path.suffixes))


def _named(fields: Mapping[str, object], reading: Reading, said: list[str]) -> Mapping[str, object]:
    """The row's fields under the names that are known here."""
    if reading.columns:
        fields = columns.by_setting(fields, reading.columns)
        if not columns.KNOWN.isdisjoint(reading.columns):
            return fields
    if columns.needs_no_names(tuple(fields)) or (reading.template and fields.keys() <= columns.EXACT):
        return fields
    own = {name for _, name in reading.template.columns} if reading.template else set()
    names = tuple(name for name, value in fields.items() if value is not None and name not in own)
    found = columns.usual(names, reading.format)
    if found.refused:
        raise Bad(found.refused)
    if not found.fields:
        return fields
    said.append(found.said)
    renamed = {found.fields.get(name, name): value for name, value in fields.items() if name in found.fields}
    return {**{name: value for name, value in fields.items() if name not in found.fields}, **renamed}


def _format(fields: Mapping[str, object], reading: Reading) -> str | tuple[str, str]:
    """The row's format: "messages", "conversations" or "text", or the names of its (question, answer) fields."""
    format, template = reading.format, reading.template
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
    if template and not there.isdisjoint(name for known in PAIRS.values() for one in known for name in one):
        raise Bad(_no_known_fields(fields, reading))
    for name, known in PAIRS.items():
        for one in known:
            if format in ("auto", name) and there.issuperset(one):
                return one
    if format in ("auto", "text") and "text" in there:
        return "text"
    raise Bad(_no_known_fields(fields, reading))


def _meaning(
    fields: Mapping[str, object], found: str | tuple[str, str], reading: Reading, said: list[str]
) -> tuple[tuple[Turn, ...] | None, str | None]:
    """The turns of a row, or its plain text."""
    if not isinstance(found, str):
        asked = fields[found[0]]
        if isinstance(asked, list) and (found[0] == "prompt" or (asked and isinstance(asked[0], dict))):
            return _prompt_and_completion(fields, found, reading, said), None
        return turns.checked(pairs.pair(fields, found, reading, said), reading.join_turns, said), None
    if found != "text":
        return _conversation(fields, found, reading, said), None
    text = sound(fields["text"], "text")
    if is_blank(text):
        raise Bad("text is empty")
    written = markup.written_turns(text)
    if not written and reading.format == "auto" and (marked := markup.in_markup(text)):
        said.append(f"with text in the chat markup of {marked[0]}, read as conversations; FORMAT = text keeps it plain")
        written = marked[1]
    if not written and reading.format == "auto" and (begun := markup.PART.match(text)):
        raise Bad(
            f"text begins with {begun[1]!r}, as a part of a conversation in chat markup, and is no whole one: rows are whole "
            "conversations, and each line of a TXT file is a row; FORMAT = text learns it as plain text"
        )
    return (turns.checked(written, reading.join_turns, said), None) if written else (None, text)


def _whole(text: str, path: Path) -> None:
    """Raise Bad for a line of a TXT file that is a turn of a conversation: each would be learned by itself."""
    spoken = markup.SPOKEN.match(text)
    mark = spoken[0].strip() if spoken else markup.half(text)
    if mark and ".txt" in path.suffixes:
        raise Bad(
            f"text begins with {mark!r}, as a turn, and holds no whole conversation: each line of a TXT file is a row; write "
            "rows of messages, or FORMAT = text learns each line as plain text"
        )


def _conversation(fields: Mapping[str, object], name: str, reading: Reading, said: list[str]) -> tuple[Turn, ...]:
    """The turns of {messages: [{role, content}]} or {conversations: [{from, value}]}; either spelling in either field."""
    wanted = (
        [one for _, one in reading.template.columns if one not in ("instruction", "input")] if reading.template else []
    )
    if wanted:
        raise Bad(f"PROMPT_TEMPLATE wants the column {wanted[0]}, which a row of turns does not have")
    return turns.checked([*_system(fields), *turns.read(fields[name], name, said)], reading.join_turns, said)


def _system(fields: Mapping[str, object]) -> list[Turn]:
    """The system text in a field of its own; null and blank are none."""
    value = fields.get("system")
    text = "" if value is None else sound(value, "system")
    return [Turn("system", text)] if text.strip() else []


def _prompt_and_completion(
    fields: Mapping[str, object], names: tuple[str, str], reading: Reading, said: list[str]
) -> tuple[Turn, ...]:
    """TRL's {prompt: [messages], completion: [messages]}: of the answers, those in the completion are learned."""
    question, answer = names
    asked = turns.read(fields[question], question, said)
    asked = [replace(turn, trained=False) if turn.role == "assistant" else turn for turn in asked]
    value = [fields[answer]] if isinstance(fields[answer], dict) else fields[answer]
    text = [Turn("assistant", sound(value, answer))] if isinstance(value, str) else None
    answered = turns.read(value, answer, said) if text is None else text
    if not answered:
        raise Bad(f"the answer is empty: {answer} holds no turns")
    return turns.checked([*_system(fields), *asked, *answered], reading.join_turns, said)


# ---- what is not used, and what is missing -----------------------------------------------------------------------


def _unused(
    fields: Mapping[str, object], found: str | tuple[str, str], template: PromptTemplate | None
) -> tuple[str, ...]:
    """The fields of a good row that hold something and are left out; of a turn as "messages: name"."""
    if isinstance(found, str):
        used = {found, "system"} if found != "text" else {found}
    else:
        question, answer = found
        used = {question, answer, "system", *(name for name in turns.THOUGHTS if turns.is_thought(fields.get(name)))}
        used |= {"input"} if question == "instruction" else set()
        used |= {"context"} if pairs.is_context(fields.get("context")) else set()
        used = used - {"context"} | {name for _, name in template.columns} if template else used
        used |= {"history"} if pairs.is_history(fields.get("history")) else set()
    if len(fields) <= len(used) and fields.keys() <= used and found not in ("messages", "conversations"):
        return ()
    used |= {name for name in tool_calls.OFFERS if found != "text" and tool_calls.is_offer(fields.get(name))}
    unused = [name for name in fields if name not in used and fields[name] not in NOTHING]
    held = written_list(fields[found], found) if found in ("messages", "conversations") else None
    for turn in held if isinstance(held, list) else ():
        if isinstance(turn, dict) and len(turn) > 2 and not turns.is_exchange(turn):
            unused += [f"{found}: {name}" for name in _unused_of_turn(turn)]
    return tuple(dict.fromkeys(unused))


def _unused_of_turn(turn: Mapping[str, object]) -> Iterator[str]:
    used = set(turns.keys_of(turn))
    if any(turns.is_thought(turn.get(name)) for name in turns.THOUGHTS):
        used.add("reasoning_details")  # OpenRouter's, which say the same again
    if not isinstance(turn.get("role"), str) or turns.ROLES.get(str(turn["role"]).casefold()) == "tool":
        used |= {"tool_call_id", "name"}
    for name, value in turn.items():
        if name in used or name in turns.KNOWN or value in NOTHING:
            continue
        if not (name in turns.THOUGHTS and turns.is_thought(value)):
            yield name


def _no_known_fields(fields: Mapping[str, object], reading: Reading) -> str:
    format, template = reading.format, reading.template
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
        known = PAIRS.get(format)
        wanted = " or ".join(" + ".join(one) for one in known) if known else format
        return f"fields found: {found}; FORMAT = {format} wants {wanted}"
    return f"no known fields (found: {found}); what would do: {WOULD_DO}{_meant(fields)}"


# Columns that no question and no answer stand in, whatever else a table has.
NEITHER = columns.all_bare("id index idx timestamp date time email email_address status type kind zeitstempel 时间戳")


def _is_neither(name: str) -> bool:
    return columns.bare(name) in NEITHER or re.search(r"(?:_id|_idx|_index| ID|Id)\Z", name) is not None


def _preferred(fields: Mapping[str, object]) -> str:
    """How the preferred ones alone are taken, for a message."""
    chosen = fields.get("chosen")
    if isinstance(chosen, (str, list)):
        asks = [name for name in fields if columns.bare(name) in columns.QUESTIONS and isinstance(fields[name], str)]
        if isinstance(chosen, str) and "prompt" not in asks and (asked := [name for name in asks if fields[name]]):
            given = ["instruction", "input"][: len(asked)] if len(asked) < 3 else []
            if given and columns.bare(asked[0]) != "input":
                named = ", ".join(f"{field}: {shorten(name)}" for field, name in zip(given, asked, strict=True))
                return f", but COLUMNS = {named}, output: chosen takes the preferred ones"
        whole = "text: chosen" if isinstance(chosen, str) else "messages: chosen"
        # Of messages, the prompt is a part where it is messages itself, and said again where it is a text.
        way = "prompt: prompt, completion: chosen" if isinstance(fields.get("prompt"), type(chosen)) else whole
        return f", but COLUMNS = {way} takes the preferred ones"
    return ": write what is preferred as rows of messages"


def _meant(fields: Mapping[str, object]) -> str:
    """What the one who wrote fields that are not known may have had in mind, for a message."""
    if {"chosen", "rejected"} <= fields.keys() or {"preferred_output", "non_preferred_output"} <= fields.keys():
        return f"; preference pairs are not trained here{_preferred(fields)}"
    if not {"role", "from", "speaker"}.isdisjoint(fields) and not {"content", "value", "text"}.isdisjoint(fields):
        return "; the row is one message, and a row must hold a whole conversation, as messages"
    for name, value in fields.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            turned = not {"role", "from"}.isdisjoint(value[0])
            what = f"messages: {shorten(name)}" if turned else ""
            return f"; {shorten(name)} holds a list of objects: " + (
                f"COLUMNS = {what} takes it" if turned else "if these are the rows, the file must be that list alone"
            )
    told = [name for name in fields if not _is_neither(str(name)) and fields[name] not in NOTHING]
    if len(fields) > 1:
        first, second = [*told, *fields][:2] if len(told) > 1 else list(fields)[:2]
        return f"; or COLUMNS says what they hold, as in COLUMNS = instruction: {shorten(first)}, output: {shorten(second)}"
    return ""
