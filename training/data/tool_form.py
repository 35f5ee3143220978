"""Functions and calls as Ollama hands them to a chat template: in an order of its own, and without what it does not keep.

Ollama reads them into structures and writes these out again (api/types.go; the same in 0.24 and 0.32), whatever the
client sent; llama.cpp then adds an empty description. A row that is written otherwise would be trained with a prompt that
is never served.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any

from training.data.turns import Turn

OLLAMA, OWN = "ollama", "own"  # TOOL_FORM
Lost = dict[str, None]  # names of fields that Ollama does not hand on, in the order in which they were met
Made = Callable[[object, Lost], object]

FORMED = "with functions or calls that Ollama writes otherwise: trained as it does (TOOL_FORM = own keeps the row's)"
LONG_NUMBERS = (
    "with numbers of more than six digits in functions or calls: where Ollama (0.30 and later) writes prompts by the chat "
    "template in the GGUF file, it writes six of them"
)
EXACT = 1 << 63  # from here on llama.cpp reads a whole number as none
WRITTEN_OUT_FROM, WRITTEN_OUT = 1e-6, 1e21  # between them Go writes all digits of a number


def left_out(name: str) -> str:
    """What is said of a field of a function that Ollama does not hand on."""
    return f"with {name} in a function, which Ollama leaves out and which is not learned (TOOL_FORM = own learns it)"


def tools(text: str, lost: Lost) -> str:
    """The functions that a row offers, as JSON text, in Ollama's form. `lost`: gets what is left out of them."""
    if not text:
        return ""
    found = [{"type": "function", "function": _function(one["function"], lost)} for one in json.loads(text)]
    return json.dumps(found, ensure_ascii=False)


def turn(one: Turn) -> tuple[Turn, bool]:
    """A turn with its calls in Ollama's form, and whether their arguments were written otherwise."""
    if not one.more or one.role != "assistant":
        return one, False
    more = json.loads(one.more)
    before = [call["function"]["arguments"] for call in more["tool_calls"]]
    after = [{name: _any(value) for name, value in arguments.items()} for arguments in before]
    # In the order in which llama.cpp hands a call to a template that writes out the whole of it.
    more["tool_calls"] = [
        {"type": "function", "function": {"name": call["function"]["name"], "arguments": arguments}, "id": call["id"]}
        for call, arguments in zip(more["tool_calls"], after, strict=True)
    ]
    return replace(one, more=json.dumps(more, ensure_ascii=False)), json.dumps(before) != json.dumps(after)


def by_name(functions: Sequence[Mapping[str, object]]) -> list[dict[str, object]]:
    """Functions in Ollama's form as a TEMPLATE gets them: their parameters in the order of their names."""
    return [_function_by_name(one) for one in functions]


def _function_by_name(one: Mapping[str, object]) -> dict[str, object]:
    function = one["function"]
    parameters = function.get("parameters") if isinstance(function, dict) else None
    properties = parameters.get("properties") if isinstance(parameters, dict) else None
    if not (isinstance(function, dict) and isinstance(parameters, dict) and isinstance(properties, dict)):
        return dict(one)
    ordered = {**parameters, "properties": {name: properties[name] for name in sorted(properties)}}
    return {**one, "function": {**function, "parameters": ordered}}


def calls_by_name(message: dict[str, object]) -> dict[str, object]:
    """A message in Ollama's form with the arguments of its calls as a TEMPLATE gets them: in the order of their names."""
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return message
    found = [{**call, "function": {**call["function"], "arguments": _ordered(call)}} for call in calls]
    return {**message, "tool_calls": found}


def _ordered(call: Mapping[str, Mapping[str, Mapping[str, object]]]) -> dict[str, object]:
    arguments = call["function"]["arguments"]
    return {name: arguments[name] for name in sorted(arguments)}


def has_long_numbers(*texts: str) -> bool:
    """Whether there are numbers in JSON texts that llama.cpp would write otherwise: it writes six digits of a fraction."""
    return any(_has_long(json.loads(text)) for text in texts if text)


def _has_long(value: object) -> bool:
    if isinstance(value, dict):
        return any(_has_long(one) for one in value.values())
    if isinstance(value, list):
        return any(_has_long(one) for one in value)
    if isinstance(value, float):
        return math.isfinite(value) and float(f"{value:.6g}") != value
    return isinstance(value, int) and abs(value) >= EXACT


def json_as_go(value: object, ensure_ascii: bool = False, **form: Any) -> str:
    """JSON as a TEMPLATE writes it, for the `tojson` of a chat template: it differs in numbers only."""
    if ensure_ascii or form:  # no TEMPLATE writes that
        return json.dumps(value, ensure_ascii=ensure_ascii, **form)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_text(str(name))}: {json_as_go(one)}" for name, one in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(json_as_go(one) for one in value) + "]"
    return _number_as_go(value) if isinstance(value, float) and math.isfinite(value) else _text(value)


def _text(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _number_as_go(value: float) -> str:
    """As Go's encoding/json writes it: 0.00001, where Python has 1e-05, and 1e-7 for 1e-07."""
    written = Decimal(repr(value))
    if value == 0 or WRITTEN_OUT_FROM <= abs(value) < WRITTEN_OUT:
        return "-0" if str(value) == "-0.0" else str(int(written)) if value.is_integer() else f"{written:f}"
    return re.sub("(e[-+])0", r"\1", repr(value))


def _function(function: Mapping[str, object], lost: Lost) -> dict[str, object]:
    parameters = function.get("parameters")
    if parameters in (None, {}):  # llama.cpp refuses a function whose parameters have no properties
        parameters = {"type": "object"}
    made = _parameters(parameters, lost) if isinstance(parameters, dict) else parameters
    _miss(function, ("name", "description", "parameters"), lost)
    return {"name": function["name"], "description": function.get("description") or "", "parameters": made}


def _parameters(held: Mapping[str, object], lost: Lost) -> dict[str, object]:
    found: dict[str, object] = {"type": held.get("type") or ""}
    _write(found, held, ("$defs", "items", "required"), {}, lost)
    found["properties"] = _properties(held.get("properties") or {}, lost)
    _miss(held, ("type", "$defs", "items", "required", "properties"), lost)
    return found


def _properties(held: object, lost: Lost) -> object:
    return {name: _property(one, lost) for name, one in held.items()} if isinstance(held, dict) else held


def _property(held: object, lost: Lost) -> object:
    if not isinstance(held, dict):
        return held
    found: dict[str, object] = {}
    kinds: Mapping[str, Made] = {"anyOf": _each, "type": _kind, "properties": _properties}
    names = ("anyOf", "type", "items", "description", "enum", "properties", "required")
    _write(found, held, names, kinds, lost)
    _miss(held, names, lost)
    return found


def _write(
    found: dict[str, object], held: Mapping[str, object], names: tuple[str, ...], kinds: Mapping[str, Made], lost: Lost
) -> None:
    """Put the fields of these names into `found`, in this order, but for those that are empty, as Go leaves them out."""
    for name in names:
        value = held.get(name)
        if value is None or (value in ("", []) and name != "items") or (name == "anyOf" and not value):
            continue
        found[name] = kinds[name](value, lost) if name in kinds else _any(value)


def _each(value: object, lost: Lost) -> object:
    return [_property(one, lost) for one in value] if isinstance(value, list) else value


def _kind(value: object, lost: Lost) -> object:
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _any(value: object) -> object:
    """A value of no fixed form: Go sorts the names within it, and knows one kind of number."""
    if isinstance(value, dict):
        return {name: _any(value[name]) for name in sorted(value)}
    if isinstance(value, list):
        return [_any(one) for one in value]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return _number(value)
    return value


def _number(value: int | float) -> int | float:
    try:
        written = Decimal(repr(float(value)))
    except OverflowError:
        return value
    if not written.is_finite():
        return value
    whole = written == written.to_integral_value() and abs(written) < EXACT
    return int(written) if whole else float(value)


def _miss(held: Mapping[str, object], kept: tuple[str, ...], lost: Lost) -> None:
    lost.update(dict.fromkeys(name for name in held if name not in kept))
