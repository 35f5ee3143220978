"""Fields whose loss would change what is learned, beside those that a row is read by: refused, once per kind, with what decides.

A text that says again what is learned anyway is no loss, as Alpaca's `text` does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

from training.data import columns, pairs, turns
from training.data.reading import Reading
from training.data.values import NOTHING, Bad, is_blank
from training.system.wording import shorten

# Fields that say of an answer, by false, that it is a bad one: KTO's, LLaMA-Factory's, those of tools for labels.
WANTED = columns.all_bare(
    "label kto_tag kto_label desirable is_desirable accepted is_accepted approved is_approved is_correct"
)
# What stands in the thumbs of a chat program below an answer that nobody liked.
FEEDBACK = columns.all_bare("feedback user_feedback rating user_rating thumbs vote reaction")
DISLIKED = frozenset(("thumbs_down", "thumbsdown", "thumbs down", "👎", "dislike", "disliked", "downvote"))
# What people want learned of a text, where it stands beside it: what it is of, or what was made of it.
LABELS = columns.all_bare(
    "label labels intent sentiment summary summaries highlights translation 标签 標籤 摘要 总结 總結"
)
# What an answer was thought out with, under names that are not turns.THOUGHTS.
THOUGHT = re.compile(
    r"(?:\w+[_ -])?(?:co_?t|chain[_ -]?of[_ -]?thoughts?|thoughts?|think|thinking|reasoning|rationales?)"
    r"(?:[_ -]?(?:content|text|traces?|trajectory|trajectories|steps|process|chain|details))?|(?:推理|思维|思考)(?:链|过程|内容)?",
    re.IGNORECASE,
)
# Fields of a turn that say which part of it is learned, or that may say yes and no by the same value.
MASKS = columns.all_bare("mask masked is_masked loss_mask train_mask train_detail")
ASKING = ("instruction", "prompt", "input", "text")
PICTURES = ("image", "images", "video", "videos", "audio", "audios")
CHOICES = ("choices", "options", "选项")
# Which FORMAT reads rows of these question fields.
FORMATS_OF = {"instruction": "alpaca", "prompt": "prompt", "input": "input"}


def refuse(
    fields: Mapping[str, object],
    found: str | tuple[str, str],
    reading: Reading,
    own: Mapping[str, object],
    unused: Sequence[str],
) -> None:
    """Raise Bad where a row that nobody said how to read would lose what belongs to it. `own`: the row as it is written;
    `unused`: the fields of it that are left out, those of turns as "messages: name"."""
    if reading.format != "auto" or reading.template or not (unused or len(fields) > 1 + isinstance(found, tuple)):
        return
    format = found if isinstance(found, str) else FORMATS_OF[found[0]]
    telling = _telling(tuple(unused)) if unused else ()
    _about_turns(telling, format)
    if reading.columns:
        return
    _about_pictures(fields, format)
    _about_weights(fields, telling, format)
    _about_thoughts(fields, found, telling, format)
    if found == "text":
        _one_message(fields)
        _beside_text(fields)
    elif isinstance(found, str):
        _not_wanted(fields, telling, format)
        _beside_turns(fields, found)
    else:
        _not_wanted(fields, telling, format)
        _beside_pair(fields, found, _named(own))


@lru_cache(maxsize=1024)  # rows of a file have the same fields
def _telling(unused: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the fields that are left out whose names may say what is to be learned."""
    names = {name: columns.bare(name.rpartition(": ")[2]) for name in unused}
    known = WANTED | FEEDBACK | MASKS | set(turns.LEARNED)
    return tuple(name for name, bare in names.items() if bare in known or THOUGHT.fullmatch(name.rpartition(": ")[2]))


def _not_wanted(fields: Mapping[str, object], unused: Sequence[str], format: str) -> None:
    """An answer that is marked as a bad one, as rows for KTO are."""
    for name in unused:
        value = fields.get(name)
        told = value.strip().casefold() if isinstance(value, str) and len(value) < 12 else value
        if (told is False or told == "false") and columns.bare(name) in WANTED:
            why = "as of an answer that is not wanted (KTO)"
        elif isinstance(told, str) and told in DISLIKED and columns.bare(name) in FEEDBACK:
            why = "as below an answer that nobody liked"
        else:
            continue
        shown = "false" if value is False else shorten(str(value).lower())
        raise Bad(
            f"{shorten(name)} is {shown}, {why}, and it would be learned: leave such rows out "
            f"(ON_BAD_ROW = skip does); FORMAT = {format} learns them all"
        )


def _about_weights(fields: Mapping[str, object], unused: Sequence[str], format: str) -> None:
    """A row that says of itself that it is not learned, or only in part."""
    for name in turns.LEARNED:
        value = fields.get(name)
        if name not in unused or not (
            value is False or (name == "weight" and isinstance(value, (int, float)) and 0 <= value < 1)
        ):
            continue
        if value:
            raise Bad(
                f"{name} = {shorten(str(value))} beside the answer: a row is learned whole (1) or left out (0), there is no "
                f"weight between; FORMAT = {format} learns it whole"
            )
        raise Bad(
            f"{name} is {str(value).lower()} beside the answer, and it would be learned: leave such rows out "
            f"(ON_BAD_ROW = skip does); FORMAT = {format} learns them all"
        )


def _about_turns(unused: Sequence[str], format: str) -> None:
    """What a turn says of itself that would change what is learned of it."""
    for name in unused:
        field, _, name = name.rpartition(": ")
        if not field:
            continue
        if columns.bare(name) in MASKS:
            raise Bad(
                f"{field}: {shorten(name)} stands in a turn, and does not say in one way what is learned of it: write "
                f'"train": true or false; FORMAT = {format} goes on without it'
            )
        if THOUGHT.fullmatch(name) and name not in turns.THOUGHTS:
            raise Bad(
                f"{field}: {shorten(name)} stands in a turn, and may hold what its answer was thought out with: "
                f"reasoning_content is the name to learn that; FORMAT = {format} goes on without it"
            )


def _about_thoughts(
    fields: Mapping[str, object], found: str | tuple[str, str], unused: Sequence[str], format: str
) -> None:
    """What an answer was thought out with, where it may be meant to be learned."""
    if not isinstance(found, tuple):
        return
    answer = str(fields[found[1]])
    for name in unused:
        value = fields.get(name)
        held = value if isinstance(value, list) else [value]
        texts = [one for one in held if isinstance(one, str)]
        if not THOUGHT.fullmatch(name) or name in turns.THOUGHTS or len(texts) < len(held):
            continue
        if not all(is_blank(one) or one.strip() in answer for one in texts):
            does = (
                f"COLUMNS = reasoning_content: {shorten(name)} learns it"
                if isinstance(value, str)
                else "reasoning_content takes one text"
            )
            raise Bad(
                f"{shorten(name)} may hold what the answer was thought out with, and would be left out: {does}; "
                f"FORMAT = {format} goes on without it"
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
    """A passage beside a question and its answer is what the question is about; an answer beside a text, what it gives."""
    text = fields["text"]
    _answered(fields, str(text))
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


def _answered(fields: Mapping[str, object], text: str) -> None:
    """A text with what it is to give, as tables for classes and summaries have them."""
    held = [
        name
        for name, value in fields.items()
        if name != "text" and value not in NOTHING and _is_given(name, value, text)
    ]
    if held and not any(columns.bare(name) in columns.QUESTIONS for name in fields):
        first = shorten(held[0])
        takes = (
            "rows of instruction + output learn it as the answer"
            if isinstance(fields[held[0]], list)
            else f"COLUMNS = instruction: text, output: {first} learns it as the answer"
        )
        raise Bad(f"{first} stands beside text, and would be left out: {takes}; FORMAT = text learns text alone")


def _is_given(name: str, value: object, text: str) -> bool:
    known = columns.bare(name)
    if known in LABELS:
        return not isinstance(value, (bool, dict)) and not (isinstance(value, str) and value.strip() in text)
    is_text = isinstance(value, str) and not is_blank(value) and value.strip() not in text
    return is_text and known in (columns.ANSWERS | columns.LESSER_ANSWERS)


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
