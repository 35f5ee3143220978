"""Rows of a question and its answer in fields of their own, and what may stand beside them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace

from training.data import markup, tool_calls, turns
from training.data.reading import Reading
from training.data.record import describe
from training.data.turns import Turn
from training.data.values import Bad, is_blank, sound, written_list
from training.settings.prompt_template import PromptTemplate
from training.system.wording import shorten

ROLE_IN_FRONT = re.compile(r"(?:用户|助手)(?:: |：)")
OPTIONAL = ("input", "context", "system")  # null is the same as absent: pandas and Arrow write it for a missing value
# The field that asks -> the FORMAT that takes its rows as they stand, where it is another than alpaca.
FORMAT_OF = {"prompt": "prompt", "input": "input"}
# What pandas, SQL and spreadsheets write where there is no value.
ERRORS = frozenset(  # of Excel, in English, German and French
    ["#n/a", "#ref!", "#name?", "#value!", "#div/0!", "#num!", "#null!", "#spill!", "#calc!"]
    + ["#nv", "#bezug!", "#wert!", "#zahl!", "#valeur!", "#nom?", "#nombre!", "#nul!"]
)
NULL_WORDS = frozenset(("nan", "none", "null", "na", "n/a", "<na>", "nil", "nat", "\\n")) | ERRORS
# Those of them that nobody writes into a field that may be empty: "None" and "N/A" people do.
MACHINE_WORDS = frozenset(("nan", "<na>", "nat")) | ERRORS
# What Alpaca's rows and those made after them have for an input where there is none.
NO_INPUT = frozenset(("<noinput>", "<no input>", "noinput", "no input", "no input."))
WITHOUT_INPUT = "with an input that says that there is none, taken so"
SPAN = {"text", "answer_start"}  # an answer as SQuAD's tables have it: the texts, and where each stands in the context
SPANNED = "with answers as SQuAD's tables have them, of which the text is taken"


def pair(fields: Mapping[str, object], names: tuple[str, str], reading: Reading, said: list[str]) -> list[Turn]:
    """The turns of a question and its answer, in the fields of these names, after those of the row's history."""
    question, answer = names
    fields = _as_meant(fields, names, reading, said)
    user = _question(fields, question, reading.template)
    calls = tool_calls.answered(fields[answer], fields, answer) if len(fields) > 2 else []
    reply = answer if calls else sound(fields[answer], answer)
    if question == "prompt":  # the Go host writes each with its role in front
        user, reply = _without_role(user), _without_role(reply)
    if is_blank(user):
        raise Bad(f"{question} is empty")
    if is_blank(reply):
        raise Bad(f"the answer is empty: {answer} holds no text")
    if len(reply) < 12 and reading.null_words != "keep" and reply.strip().casefold() in NULL_WORDS:
        raise Bad(f"the answer is {_null(reply)}; NULL_WORDS = keep learns it as it stands")
    for name, value in fields.items():
        if isinstance(value, str) and 2 < len(value) < 12:
            _check_null(value, name, question, reading)
    system = _text(fields, "system")
    above = [Turn("system", system)] if system.strip() else []
    history = _history(fields["history"], said) if is_history(fields.get("history")) else []
    thoughts = turns.thoughts_in(fields, "", reply) if len(fields) > 2 else ""
    if calls:
        said.append(tool_calls.CALLED)
        more = json.dumps({"tool_calls": calls}, ensure_ascii=False)
        return [*above, *history, Turn("user", user), Turn("assistant", "", thoughts=thoughts, more=more)]
    plain = reading.format != "auto" or reading.template or thoughts
    if not plain:
        asked = str(fields[question]) if user in str(fields[question]) else user  # also a role in front is a mark
        if talk := _in_markup(user, reply, FORMAT_OF.get(question, "alpaca"), said) or _in_turns(
            asked, reply, FORMAT_OF.get(question, "alpaca"), said
        ):
            return [*above, *history, *talk]
    return [*above, *history, Turn("user", user), Turn("assistant", reply, thoughts=thoughts)]


def _as_meant(
    fields: Mapping[str, object], names: tuple[str, str], reading: Reading, said: list[str]
) -> Mapping[str, object]:
    """The fields with what stands for no input left out, and an answer that is a table's way to write a text as that."""
    question, answer = names
    given = fields.get("input") if question == "instruction" else None
    is_short = isinstance(given, str) and len(given) < 12 and reading.null_words != "keep"
    if is_short and str(given).strip().casefold() in NO_INPUT:
        said.append(WITHOUT_INPUT)
        fields = {**fields, "input": ""}
    reply = fields[answer]
    if isinstance(reply, str) and reading.format == "auto" and (found := IN_A_LIST.match(reply)):
        raise Bad(
            f"{answer} is a list of one text, written as a text ({shorten(found[0])}): write the text alone; "
            f"FORMAT = {FORMAT_OF.get(question, 'alpaca')} learns it as it stands"
        )
    held = written_list(reply, answer) if isinstance(reply, str) and IS_SPAN.match(reply) else reply
    if not isinstance(held, Mapping) or held.keys() != SPAN:
        return fields
    texts = held["text"] if isinstance(held["text"], list) else [held["text"]]
    texts = list(dict.fromkeys(sound(one, f"{answer}: text") for one in texts))
    if len(texts) > 1:
        raise Bad(f"{answer} holds {len(texts)} different answers: leave one")
    said.append(SPANNED)
    return {**fields, answer: texts[0] if texts else ""}


IN_A_LIST = re.compile(r"""\A\s*\[\s*(?:'[^'\[\]]*'|"[^"\[\]]*")\s*\]\s*\Z""")
IS_SPAN = re.compile(r"""\A\s*\{\s*['"](?:text|answer_start)['"]\s*:""")


def _question(fields: Mapping[str, object], question: str, template: PromptTemplate | None) -> str:
    """What the user says: the question, and what it is about."""
    if template:
        return template.user(_columns(fields, question, template))
    parts = [_text(fields, question)]
    if question == "instruction":
        parts.append(_text(fields, "input"))
    if is_context(fields.get("context")):
        parts.append(_context(fields))
        if question == "instruction" and parts[1].strip() and parts[2].strip():
            raise Bad(
                "input and context both hold text: COLUMNS says which of them is the input, "
                "as in COLUMNS = instruction: instruction, input: context, output: output"
            )
    return "\n\n".join(part for part in parts if part.strip()) if len(parts) > 1 else parts[0]


def _in_markup(user: str, reply: str, format: str, said: list[str]) -> list[Turn] | None:
    """The turns of a question and an answer that hold the chat markup of a model; None for all others.

    The model's own template would put its marks around these again.
    """
    if user.lstrip()[:1] not in markup.FIRST or not (found := markup.in_markup(user + reply, format)):
        return None
    name, talk = found
    if talk[-1].role != "assistant" or (name == "Alpaca" and talk[0].role == "system"):
        return None  # words in front of headings are the question's own
    said.append(
        f"with questions in the chat markup of {name}, read as conversations; FORMAT = {format} keeps them plain"
    )
    # Of the answers, the one that the row has as such is learned.
    return [*(replace(turn, trained=turn.role != "assistant") for turn in talk[:-1]), talk[-1]]


def _in_turns(user: str, reply: str, format: str, said: list[str]) -> list[Turn] | None:
    """The turns of a question that is written as turns (Human: ... Assistant:) up to its answer; None for all others."""
    talk = markup.written_prompt(user, reply)
    if not talk:
        return None
    said.append(f"with questions that are written as turns, read as conversations; FORMAT = {format} keeps them plain")
    return [*(replace(turn, trained=turn.role != "assistant") for turn in talk[:-1]), talk[-1]]


def _check_null(value: str, name: str, question: str, reading: Reading) -> None:
    """A field beside the answer that is a missing value would stand in the question as a word."""
    if value.strip().casefold() not in MACHINE_WORDS or reading.null_words == "keep":
        return
    template = [column for _, column in reading.template.columns] if reading.template else []
    if name in (*OPTIONAL, question, *template):
        raise Bad(f"{name} is {_null(value)}: leave it empty; NULL_WORDS = keep learns it as it stands")


def _null(value: str) -> str:
    """A missing value as it is told, with who writes it so."""
    who = "Excel writes an error" if value.lstrip().startswith("#") else "pandas and databases write a missing value"
    return f"{value.strip()!r}, as {who}"


def is_context(value: object) -> bool:
    """Whether the field of that name holds what a question is about, as text or as passages that were found."""
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(one, str) for one in value))


def _context(fields: Mapping[str, object]) -> str:
    value = fields["context"]
    if isinstance(value, list):
        return "\n\n".join(sound(one, "context") for one in value)
    return sound(value, "context")


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
    return sound(value, name)


def _without_role(text: str) -> str:
    """`text` without a role in front: at the start only, and only once; anywhere else it is the user's own text."""
    found = ROLE_IN_FRONT.match(text)
    return text[found.end() :] if found else text


def is_history(value: object) -> bool:
    """Whether the field of that name holds turns: in other tables it is about a past of another kind."""
    if isinstance(value, str):
        return value.lstrip().startswith("[") or markup.written_turns(value) is not None
    return isinstance(value, list) and bool(value)


def _history(value: object, said: list[str]) -> list[Turn]:
    """The earlier turns: LLaMA-Factory's [[question, answer], ...], a list of messages, or turns that are written out."""
    value = written_list(value, "history")
    if isinstance(value, str):
        return markup.written_turns(sound(value, "history")) or []
    if not isinstance(value, list):
        raise Bad(f"history is {describe(value)}, not a list of [question, answer]")
    if value and isinstance(value[0], dict):
        return turns.read(value, "history", said)
    earlier: list[Turn] = []
    for number, one in enumerate(value, 1):
        if not isinstance(one, list) or len(one) != 2:
            raise Bad(f"history, turn {number} is {describe(one)}, not [question, answer]")
        earlier.append(Turn("user", sound(one[0], f"history, turn {number}")))
        earlier.append(Turn("assistant", sound(one[1], f"history, turn {number}")))
    return earlier
