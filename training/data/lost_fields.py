"""Fields whose loss would change what is learned, beside those that a row is read by: refused, once per kind, with what decides.

A text that says again what is learned anyway is no loss, as Alpaca's `text` does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from training.data import columns, pairs, turns
from training.data.reading import Reading
from training.data.values import NOTHING, Bad, is_blank
from training.system.wording import shorten

ASKING = ("instruction", "prompt", "input", "text")
PICTURES = ("image", "images", "video", "videos", "audio", "audios")
CHOICES = ("choices", "options", "选项")
# Which FORMAT reads rows of these question fields.
FORMATS_OF = {"instruction": "alpaca", "prompt": "prompt", "input": "input"}


def refuse(
    fields: Mapping[str, object], found: str | tuple[str, str], reading: Reading, own: Mapping[str, object]
) -> None:
    """Raise Bad where a row that nobody said how to read would lose what belongs to it. `own`: the row as it is written."""
    if len(fields) < 2 + isinstance(found, tuple) or reading.format != "auto" or reading.columns or reading.template:
        return
    format = found if isinstance(found, str) else FORMATS_OF[found[0]]
    _about_pictures(fields, format)
    if found == "text":
        _one_message(fields)
        _beside_text(fields)
    elif isinstance(found, str):
        _not_wanted(fields, format)
        _beside_turns(fields, found)
    else:
        _not_wanted(fields, format)
        _beside_pair(fields, found, _named(own))


def _not_wanted(fields: Mapping[str, object], format: str) -> None:
    """An answer that is marked as a bad one, as rows for KTO are."""
    label = fields.get("label")
    if label is False or (isinstance(label, str) and label.strip().casefold() == "false"):
        raise Bad(
            "label is false, as of an answer that is not wanted (KTO), and it would be learned: leave such rows out "
            f"(ON_BAD_ROW = skip does); FORMAT = {format} learns them all"
        )


def _about_pictures(fields: Mapping[str, object], format: str) -> None:
    """A row about a picture or a sound: the question means nothing without it."""
    for name, value in fields.items():
        if value not in NOTHING and columns.bare(str(name)) in PICTURES:
            raise Bad(
                f"{shorten(name)} holds what the row is about, and pictures and the like are not trained; "
                f"FORMAT = {format} goes on without it"
            )


def _one_message(fields: Mapping[str, object]) -> None:
    """A text that is one message of a conversation, which stands in a row of its own."""
    role = fields.get("role")
    if isinstance(role, str) and role.strip().casefold() in {*turns.ROLES, "prompter"}:
        raise Bad(
            f"role is {shorten(role)!r} beside text: the row is one message, and a row must hold a whole conversation, as "
            "messages; FORMAT = text learns each message by itself"
        )


def _beside_pair(fields: Mapping[str, object], found: tuple[str, str], named: Mapping[str, str]) -> None:
    question, answer = found
    asked, answered = fields[question], fields[answer]
    if not isinstance(asked, str) or not isinstance(answered, str):
        return
    ask, reply = (shorten(named.get(name, name)) for name in found)
    for name, held in _choices(fields):
        if held:
            raise Bad(
                f"{shorten(name)} holds the choices that the question gives, and would be left out: write them into the question; "
                f"COLUMNS = {question}: {ask}, {answer}: {reply} goes on without them"
            )
    used = " ".join(str(fields.get(name) or "") for name in (question, *["input"] * (question == "instruction")))
    for name in ASKING:
        value = fields.get(name)
        if name == question or (question == "instruction" and name == "input") or not isinstance(value, str):
            continue
        if is_blank(value) or value.strip() in used or (asked.strip() in value and answered.strip() in value):
            continue
        first = (ask, shorten(name)) if name in ("text", "input") else (shorten(name), ask)
        raise Bad(
            f"{name} holds text beside {question} and {answer}, and would be left out: "
            f"COLUMNS = instruction: {first[0]}, input: {first[1]}, output: {reply} takes it; "
            f"COLUMNS = {question}: {ask}, {answer}: {reply} goes on without it"
        )


def _beside_text(fields: Mapping[str, object]) -> None:
    """A passage beside a question and its answer is what the question is about."""
    text = fields["text"]
    others = tuple(
        name for name, value in fields.items() if name != "text" and isinstance(value, str) and not is_blank(value)
    )
    named = columns.usual(others) if len(others) > 1 else columns.Named({})
    if named.refused:
        raise Bad(f"text holds text beside questions and answers: {named.refused}; FORMAT = text learns text alone")
    if not named.fields or not isinstance(text, str):
        return
    by_field = {field: name for name, field in named.fields.items()}
    pair = next((one for known in columns.PAIRS.values() for one in known if by_field.keys() >= set(one)), None)
    if pair is None or all(str(fields[by_field[name]]).strip() in text for name in pair):
        return
    ask, reply = (shorten(by_field[name]) for name in pair)
    raise Bad(
        f"text, {ask} and {reply} all hold text: COLUMNS = instruction: {ask}, input: text, output: {reply} learns the answer "
        "to the question about the text; FORMAT = text learns text alone"
    )


def _beside_turns(fields: Mapping[str, object], found: str) -> None:
    """What was said or read before a conversation belongs to it."""
    said = str(fields[found])
    for name in ("history", "context"):
        value = fields.get(name)
        is_held = pairs.is_history(value) if name == "history" else isinstance(value, str) and not is_blank(value)
        if is_held and not (isinstance(value, str) and value.strip() in said):
            raise Bad(
                f"{name} stands beside {found}, and would be left out: write it into the turns; "
                f"FORMAT = {found} goes on without it"
            )


def _choices(fields: Mapping[str, object]) -> Iterator[tuple[str, bool]]:
    for name, value in fields.items():
        if columns.bare(str(name)) in CHOICES:
            is_list = isinstance(value, (list, dict)) and bool(value)
            yield name, is_list or isinstance(value, str) and value.lstrip()[:1] in ("[", "{")


def _named(own: Mapping[str, object]) -> dict[str, str]:
    """Of the fields that were taken by the usual names, which column each is."""
    names = tuple(name for name, value in own.items() if value is not None)
    return {field: name for name, field in columns.usual(names).fields.items()}
