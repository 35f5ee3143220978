"""Calls of tools and what they gave, in the forms that OpenAI, Anthropic and ShareGPT write them; all become OpenAI's."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from training.data.record import describe
from training.data.values import NOTHING, Bad, sound, sound_inside, written_list
from training.system.wording import shorten

Call = dict[str, object]
# Some templates (Mistral's) take calls with an id of nine letters and digits only.
ID_LENGTH, ID_SIGNS = 9, "0123456789abcdefghijklmnopqrstuvwxyz"


def calls_of(turn: Mapping[str, object], where: str, place: int) -> list[Call]:
    """The calls in a message's `tool_calls`, or in the `function_call` of OpenAI's older form. `place`: its number."""
    held = turn.get("tool_calls")
    if held in NOTHING:
        older = turn.get("function_call")
        return [] if older in NOTHING else [_call(older, f"{where}: function_call", place)]
    held = written_list(held, f"{where}: tool_calls")
    if not isinstance(held, list):
        raise Bad(f"{where}: tool_calls is {describe(held)}, not a list of calls")
    return [_call(one, f"{where}: call {number}", place + number) for number, one in enumerate(held, 1)]


def written(value: object, where: str, place: int) -> list[Call]:
    """The calls that are the text of a message: {"name": ..., "arguments": ...}, or a list of such."""
    held = written_list(value, where)
    calls = held if isinstance(held, list) else [held]
    return [_call(one, where, place + number) for number, one in enumerate(calls, 1)]


# Calls that an answer has within its text, in the marks of Hermes and Qwen, and those around what came of them.
MARKED_CALL = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.DOTALL)
MARKED_RESULT = re.compile(r"\s*<tool_response>\s*(.*?)\s*</tool_response>\s*", re.DOTALL)
BEGINS_CALL = "<tool_call>"


def marked(text: str, where: str, place: int) -> tuple[str, list[Call]]:
    """A text without the calls that are marked in it, and these."""
    found = [written(one, where, place + number) for number, one in enumerate(MARKED_CALL.findall(text), 1)]
    return MARKED_CALL.sub("", text).strip(), [call for calls in found for call in calls]


def unmarked(results: str) -> list[str]:
    """What tools gave, without the marks around each; a text that is not all in such marks as it is."""
    found: list[str] = MARKED_RESULT.findall(results)
    return found if found and not MARKED_RESULT.sub("", results) else [results]


def _call(value: object, where: str, place: int) -> Call:
    """A call as {"id", "type", "function": {"name", "arguments": object}}."""
    inner = value.get("function", value) if isinstance(value, dict) else value
    if not isinstance(value, dict) or not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
        raise Bad(f"{where} is {describe(value)}, not a call with the name of a function and its arguments")
    arguments = inner.get("arguments", inner.get("parameters", inner.get("input")))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError):
            raise Bad(f"{where}: the arguments of {shorten(inner['name'])} are a text that is not JSON") from None
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        raise Bad(f"{where}: the arguments of {shorten(inner['name'])} are {describe(arguments)}, not an object")
    sound_inside(inner, where)
    own = value.get("id", value.get("tool_use_id"))
    made = own if isinstance(own, str) and own else _id(inner["name"], arguments, place)
    return {"id": made, "type": "function", "function": {"name": inner["name"], "arguments": arguments}}


def _id(name: str, arguments: Mapping[str, object], place: int) -> str:
    """An id for a call that has none: the same for the same call in the same place."""
    text = json.dumps([name, arguments, place], sort_keys=True)
    number = int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "little")
    signs = []
    for _ in range(ID_LENGTH):
        number, sign = divmod(number, len(ID_SIGNS))
        signs.append(ID_SIGNS[sign])
    return "".join(signs)


CALLED = "with answers that are a list of calls, beside the functions that they call, taken as calls"
OF_A_CALL = {"name", "arguments"}


def answered(value: object, fields: Mapping[str, object], where: str) -> list[Call]:
    """The calls that an answer is which is a list of them, in a row that offers functions (xLAM); none for another answer."""
    if isinstance(value, str) and not (value.lstrip().startswith(("[", "{")) and '"arguments"' in value):
        return []
    if not isinstance(value, (str, list, dict)) or not any(is_offer(fields.get(name)) for name in OFFERS):
        return []
    try:
        held = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return []
    calls = held if isinstance(held, list) else [held]
    if not calls or not all(isinstance(one, dict) and one.keys() >= OF_A_CALL and len(one) <= 4 for one in calls):
        return []
    return [_call(one, where, number) for number, one in enumerate(calls, 1)]


# The fields of a row that offer functions; the second is of OpenAI's older form.
OFFERS = ("tools", "functions")
NAMED = frozenset(("name", "function"))  # fields one of which an offered function has


def is_offer(value: object) -> bool:
    """Whether the field `tools` of a row holds functions: in other tables it may be about tools of another kind."""
    if isinstance(value, dict):
        return bool(NAMED & value.keys())
    if isinstance(value, str):
        return value.lstrip().startswith(("[", "{")) and ('"name"' in value or "'name'" in value)
    if not isinstance(value, list) or not value:
        return False
    return all(
        bool(NAMED & one.keys()) if isinstance(one, dict) else isinstance(one, str) and is_offer(f"[{one}]")
        for one in value
    )


def offered(value: object, where: str = "tools") -> str:
    """The functions that a row offers, as the JSON text of OpenAI's list; "" for none."""
    held = written_list(value, where)
    if held in NOTHING:
        return ""
    if isinstance(held, dict):  # the only one
        held = [held]
    if not isinstance(held, list):
        raise Bad(f"{where} is {describe(held)}, not a list of functions")
    found = []
    for number, one in enumerate(held, 1):
        one = written_list(one, where)
        inner = one.get("function", one) if isinstance(one, dict) else one
        if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
            raise Bad(f"{where}: function {number} is {describe(one)} without a name")
        if "input_schema" in inner:  # Anthropic's word
            inner = {name: part for name, part in inner.items() if name != "input_schema"} | {
                "parameters": inner["input_schema"]
            }
        sound_inside(inner, where)
        found.append({"type": "function", "function": inner})
    return json.dumps(found, ensure_ascii=False)


@dataclass
class Parts:
    """What a message holds that is a list of parts. results: (id of the call, what it gave)."""

    texts: list[str] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    results: list[tuple[object, str]] = field(default_factory=list)
    thoughts: str = ""


def is_parts(content: object) -> bool:
    """Whether what a message holds is a list of parts that say their kind."""
    return isinstance(content, list) and all(
        isinstance(one, dict) and isinstance(one.get("type"), str) for one in content
    )


def parts(content: list[object], where: str, place: int) -> Parts:
    """The parts of a message: texts, and with Anthropic calls, results and thoughts. Pictures and others are refused."""
    found = Parts()
    for number, part in enumerate(content, 1):
        if isinstance(part, str):
            found.texts.append(sound(part, where))
            continue
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(part, dict) or not isinstance(kind, str):
            raise Bad(f"{where} is a list, not text")
        if kind in ("text", "input_text", "output_text"):
            found.texts.append(sound(part.get("text"), f"{where}, part {number}"))
        elif kind == "thinking":
            found.thoughts += sound(part.get("thinking"), f"{where}, part {number}")
        elif kind == "tool_use":
            found.calls.append(_call(part, f"{where}, part {number}", place + number))
        elif kind == "tool_result":
            found.results.append((part.get("tool_use_id"), _result(part.get("content"), f"{where}, part {number}")))
        else:
            raise Bad(f"{where}, part {number} is of the kind {shorten(kind)!r}: pictures and the like are not trained")
    return found


def _result(value: object, where: str) -> str:
    """What a tool gave, as one text."""
    if isinstance(value, list):
        return "".join(parts(value, where, 0).texts)
    return sound("" if value is None else value, where)
