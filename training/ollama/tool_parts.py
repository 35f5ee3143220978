"""The pieces of a chat template around functions, calls and their results, and the proof that they are the whole of it.

Templates of the Hermes kind (Qwen2.5, Qwen3 and many after them) list the functions, each as JSON, in the system turn,
write a call as its name and its arguments as JSON after what the answer says, and gather the results of calls in a turn.
What a Go template is handed are maps: the names of parameters and of arguments come in the order of the alphabet, whatever
the client sent. So the pieces are proved, and rows are trained, in that order.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from training.ollama.template_parts import NotPieces, Pieces, Refusal, common_prefix, difference

Message = Mapping[str, object]
Functions = Sequence[Mapping[str, object]]
# (messages, functions that are offered, add_generation_prompt) -> text
RenderTools = Callable[[Sequence[Message], Functions, bool], str]


@dataclass(frozen=True)
class CallPieces:
    """The fixed texts around calls and what they gave. The arguments stand as JSON, with a space after `,` and `:`."""

    first: str  # before the name of the first call of an answer without text
    after_text: str
    next: str
    arguments: str  # between name and arguments
    end: str
    results: str  # before the first of neighbouring results
    result: str  # before each
    result_end: str
    results_end: str


@dataclass(frozen=True)
class ToolPieces:
    """The fixed texts around functions, each of which stands as JSON in one line, and around calls."""

    after_system: str  # between a system text and the first function
    alone: str  # in place of the beginning of a system turn and its text
    before_function: str
    offered: str  # after the last function
    calls: CallPieces
    conversations: int = 0  # how many were compared


def as_json(value: object) -> str:
    """JSON as chat templates write it, and as TEMPLATE makes it of Go's."""
    return json.dumps(value, ensure_ascii=False)


def call(*calls: tuple[str, Mapping[str, object]], text: str = "") -> Message:
    """An answer that calls functions: a name and its arguments each."""
    made = [
        {"type": "function", "function": {"name": name, "arguments": arguments}, "id": f"call0000{number}"}
        for number, (name, arguments) in enumerate(calls)
    ]
    return {"role": "assistant", "content": text, "tool_calls": made}


def result(text: str, name: str = "weather", number: int = 0) -> Message:
    """What a call gave."""
    return {"role": "tool", "content": text, "tool_call_id": f"call0000{number}", "name": name}


def function(name: str, description: str = "", **properties: object) -> Mapping[str, object]:
    """A function as Ollama writes it."""
    parameters = {"type": "object", "properties": properties}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def said(role: str, content: str) -> Message:
    return {"role": role, "content": content}


OFFERED: Functions = (
    function(
        "weather",
        'The weather, in °C & with "quotes" <b>, \\ and \u2028.\n',
        days={"type": "integer", "enum": [1, 2.5, "x", None, True]},
        town={"type": "string", "description": "台北, or: {{ another }}"},
    ),
    function("now"),
)


def battery() -> Iterator[tuple[str, Sequence[Message], Functions]]:
    """Conversations to compare on, each up to where the model is asked: name, messages, functions that are offered."""
    asked, system = said("user", "How is the weather in 台北?"), said("system", "Be brief: {{ x }}.")
    one = call(("weather", {"days": 2, "place": {"a": [1, None], "b": 'Rue "d\'Or" & <b>\\u003c\n'}, "town": "台北"}))
    two = call(("weather", {"town": "Oslo"}), ("now", {}))
    three = call(("now", {}), ("now", {}), ("weather", {"town": "y, z: a"}), text="Let me see.")
    answered = (asked, one, result("rain"), said("assistant", "It rains."), said("user", "And tomorrow?"))
    for first in ((), (system,), (said("system", ""),)):
        for offered in (OFFERED, OFFERED[:1], ()):
            if not offered and first and not first[0]["content"]:
                continue  # the pieces for plain chats tell what becomes of it
            yield "a question", (*first, asked), offered
            yield "a call and its result", (*first, asked, one, result('{"degrees": 20.5}\n\n x')), offered
            yield "two calls", (*first, asked, two, result("rain"), result("12:00", "now", 1)), offered
            yield (
                "three calls after words",
                (*first, asked, three, *(result("12", "now", n) for n in range(3))),
                offered,
            )
            yield "a call, an answer and a question", (*first, *answered), offered
            yield "two calls one after the other", (*first, *answered, one, result("sun")), offered
            yield "two questions", (*first, asked, said("assistant", "Where?"), said("user", "There.")), offered


def join(pieces: Pieces, tools: ToolPieces, messages: Sequence[Message], offered: Functions) -> str:
    """The prompt put together from the pieces, as TEMPLATE writes it: `template_parts.join` with functions.

    What a message has under "before" stands before its content (thought_parts.py).
    """
    out: list[str] = []
    rest = list(messages)
    system = rest[0]["content"] if rest[0]["role"] == "system" else None
    if offered:
        out += [tools.alone] if system is None else [pieces.system_before, str(system), tools.after_system]
        out += [tools.before_function + as_json(one) for one in offered]
        out.append(tools.offered)
        rest = rest[system is not None :]
    elif system is None:
        out.append(pieces.default)
    for i, message in enumerate(rest):
        if message["role"] == "tool":
            out.append(_result(tools.calls, rest, i))
        elif message.get("tool_calls"):
            out += [pieces.answer_before, _calls(tools.calls, message), pieces.answer_after]
        elif message["role"] == "assistant" and i == len(rest) - 1:
            out += [pieces.continued_before, _content(message)]
        else:
            out.append(_plain(pieces, message))
    if rest[-1]["role"] != "assistant":
        out.append(pieces.generation)
    return pieces.bos + "".join(out)


def _content(message: Message) -> str:
    return f"{message.get('before', '')}{message['content']}"


def _plain(pieces: Pieces, message: Message) -> str:
    around = {
        "system": (pieces.system_before, pieces.system_after),
        "user": (pieces.user_before, pieces.user_after),
        "assistant": (pieces.answer_before, pieces.answer_after),
    }
    before, after = around[str(message["role"])]
    return f"{before}{_content(message)}{after}"


def _calls(pieces: CallPieces, message: Message) -> str:
    out, text = _content(message), str(message["content"])
    calls = message["tool_calls"]
    assert isinstance(calls, list)
    for number, one in enumerate(calls):
        out += pieces.next if number else pieces.after_text if text else pieces.first
        out += one["function"]["name"] + pieces.arguments + as_json(one["function"]["arguments"]) + pieces.end
    return out


def _result(pieces: CallPieces, messages: Sequence[Message], at: int) -> str:
    first = at == 0 or messages[at - 1]["role"] != "tool"
    last = at == len(messages) - 1 or messages[at + 1]["role"] != "tool"
    written = f"{pieces.result}{messages[at]['content']}{pieces.result_end}"
    return (pieces.results if first else "") + written + (pieces.results_end if last else "")


def derive(render: RenderTools, pieces: Pieces) -> ToolPieces | Refusal:
    """Find the pieces with marker texts, and keep them only when they are proved. `pieces`: those of plain chats."""
    try:
        found = _probe(render, pieces)
    except NotPieces as problem:
        return Refusal(str(problem))
    except Exception as error:  # whatever a template raises means: this chat is not allowed
        return Refusal(f"the chat template refuses a chat with functions: {error}")
    return _prove(render, pieces, found)


def _prove(render: RenderTools, pieces: Pieces, tools: ToolPieces) -> ToolPieces | Refusal:
    compared = 0
    for name, messages, offered in battery():
        try:
            wanted = render(messages, offered, True)
        except Exception as error:
            return Refusal(f"{name}: the chat template refuses it: {error}")
        if (got := join(pieces, tools, messages, offered)) != wanted:
            return Refusal(f"{name}: {difference(wanted, got)}")
        compared += 1
    return replace(tools, conversations=compared)


_Q, _S, _R, _X = "Questionmarker", "Systemmarker", "Returnmarker", "Textmarker"
_ONE, _OTHER = function("Onemarker"), function("Othermarker")


def _probe(render: RenderTools, pieces: Pieces) -> ToolPieces:
    if pieces.system != "turn":
        raise NotPieces("system messages have no turn of their own")
    question, system = said("user", _Q), said("system", _S)
    one, other = as_json(_ONE), as_json(_OTHER)
    start, before, rest, _ = _split(render([question], [_ONE, _OTHER], True), one, other, _Q)
    opening, after, again, _ = _split(render([system, question], [_ONE], True), _S, one, _Q)
    start, opening = start.removeprefix(pieces.bos), opening.removeprefix(pieces.bos)
    if opening != pieces.system_before or again != rest:
        raise NotPieces("functions stand elsewhere than in the system turn")
    return ToolPieces(
        after_system=_less(after, end=before),
        alone=_less(start, end=before),
        before_function=before,
        offered=_less(rest, end=pieces.user_before),
        calls=_probe_calls(render, pieces),
    )


def _probe_calls(render: RenderTools, pieces: Pieces) -> CallPieces:
    question, first, second = said("user", _Q), ("Firstmarker", {"a": "Apple"}), ("Secondmarker", {"b": "Bread"})
    apple, bread = as_json(first[1]), as_json(second[1])
    asked = [question, call(first, second), result(f"{_R}1"), result(f"{_R}2", number=1)]
    text = render(asked, [_ONE], True).partition(as_json(_ONE))[2]
    markers = _Q, first[0], apple, second[0], bread, f"{_R}1", f"{_R}2"
    _, before, arguments, between, again, after, between_results, end = _split(text, *markers)
    text = render([question, call(first, text=_X), result(_R)], [_ONE], True).partition(as_json(_ONE))[2]
    after_text = _split(text, _Q, _X, first[0], apple, _R)[2]
    if arguments != again:
        raise NotPieces("calls are not written alike")
    call_end = common_prefix((between, after))
    end = _less(end, end=pieces.generation)
    result_end = common_prefix((between_results, end))
    before_result = _less(between_results, start=result_end)
    return CallPieces(
        first=_less(before, start=pieces.user_after + pieces.answer_before),
        after_text=after_text,
        next=_less(between, start=call_end),
        arguments=arguments,
        end=call_end,
        results=_less(_less(after, start=call_end + pieces.answer_after), end=before_result),
        result=before_result,
        result_end=result_end,
        results_end=_less(end, start=result_end),
    )


def _split(text: str, *markers: str) -> list[str]:
    """The texts around markers that must stand in `text` once each, in this order."""
    parts = []
    for marker in markers:
        if text.count(marker) != 1:
            raise NotPieces(
                "functions, calls or results are not written as JSON in one line, once each, in their order"
            )
        part, _, text = text.partition(marker)
        parts.append(part)
    return [*parts, text]


def _less(text: str, start: str = "", end: str = "") -> str:
    """`text` without what it begins and ends with."""
    if not (text.startswith(start) and text.endswith(end)):
        raise NotPieces("turns with functions, calls or results are not written as other turns are")
    return text[len(start) : len(text) - len(end)]
