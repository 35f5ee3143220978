"""Does a live Ollama write functions, calls and results into prompts as they were trained?"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from training.checks.served_prompts import SPARE, Prompts, Trained, count, hold
from training.data import Turn, tool_form
from training.errors import UserError
from training.ollama import Server, asking
from training.ollama.asking import Prompt
from training.ollama.modelfile import NATIVE
from training.ollama.server import Refused

REFUSED = "refused"
NO_TOOLS = f"TEMPLATE knows none; Ollama {NATIVE} and later use the chat template in the GGUF, which does"
COUNTED = 2  # prompts; each is read by the model
CAPABILITY = "tools"  # by which a server says that it takes requests with functions

# As clients write them: in an order that is not Ollama's.
OFFERED: tuple[dict[str, object], ...] = (
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": 'The weather of a town, in °C & with "quotes" <b>.',
            "parameters": {
                "type": "object",
                "properties": {
                    "town": {"type": "string", "description": "台北, or another"},
                    "days": {"description": "How many", "type": "integer", "enum": [1, 2, 7]},
                    "place": {
                        "type": "object",
                        "properties": {"street": {"type": "string"}, "number": {"type": ["integer", "null"]}},
                        "required": ["street"],
                    },
                    "tags": {"type": "array", "items": {"type": "string", "description": "a tag"}},
                },
                "required": ["town"],
            },
        },
    },
    {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}},
)


@dataclass(frozen=True)
class Chat:
    """A conversation with functions: its turns up to where the model is asked, and those that are offered."""

    name: str
    turns: tuple[Turn, ...]
    offered: tuple[dict[str, object], ...] = OFFERED

    def messages(self) -> Prompt:
        """The messages as a client of Ollama sends them."""
        return [_sent(turn) for turn in self.turns]


def _sent(turn: Turn) -> dict[str, object]:
    more = json.loads(turn.more) if turn.more else {}
    if "name" in more:
        more["tool_name"] = more.pop("name")  # Ollama's word
    return {"role": turn.role, "content": turn.content, **more}


def _called(*calls: tuple[str, dict[str, object]], text: str = "") -> Turn:
    made = [
        {"id": f"call0000{number}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for number, (name, arguments) in enumerate(calls)
    ]
    return Turn("assistant", text, more=json.dumps({"tool_calls": made}, ensure_ascii=False))


def _gave(text: str, name: str = "weather", number: int = 0) -> Turn:
    return Turn("tool", text, more=json.dumps({"tool_call_id": f"call0000{number}", "name": name}))


def chats() -> Iterator[Chat]:
    """Conversations with functions, calls and results, each up to where the model is to answer."""
    asked, system = Turn("user", "How is the weather in 台北?"), Turn("system", "Be brief.")
    place: dict[str, object] = {"street": 'Rue "d\'Or" & <b>', "number": 7, "a": {"z": [1, None], "b": True}}
    one = _called(("weather", {"town": "台北", "days": 2, "place": place}))
    two = _called(("weather", {"town": "Oslo"}), ("now", {}))
    yield Chat("functions", (asked,))
    yield Chat("a function", (asked,), OFFERED[:1])
    yield Chat("a system message and functions", (system, asked))
    yield Chat("functions, two questions", (asked, Turn("assistant", "Where?"), Turn("user", "There.")))
    yield Chat("a call and its result", (asked, one, _gave('{"degrees": 20.5, "sky": "clear"}')))
    yield Chat("a system message, a call and its result", (system, asked, one, _gave("rain")))
    yield Chat("two calls and their results", (asked, two, _gave("rain"), _gave("12:00", "now", 1)))
    yield Chat("a call after words", (asked, _called(("now", {}), text="Let me see."), _gave("12:00", "now")))
    answered = (asked, one, _gave("rain"), Turn("assistant", "It rains."), Turn("user", "And tomorrow?"))
    yield Chat("a call, an answer and a question", answered)
    yield Chat("two calls one after the other", (*answered, one, _gave("sun")))
    yield Chat("a call and its result, no functions offered", (asked, one, _gave("rain")), ())


def asked(server: Server, name: str, trained: Trained, shown: Mapping[str, object]) -> Prompts | None:
    """What a server does with functions, where rows had them; None where it takes none with this model. `shown`: what it
    tells of the model. Of rows that kept their own form a difference is no failure: it was asked for.
    """
    if not trained.tools or trained.template is None:
        return Prompts()
    capabilities = shown.get("capabilities")
    if not isinstance(capabilities, list) or CAPABILITY not in capabilities:
        return None
    return compare(server, name, trained)


def figure(found: Prompts | None) -> str:
    """What was found, in a few words; "" where nothing was asked, or the server does not tell."""
    if found is None:
        return REFUSED
    if not found.conversations or found.rendered_differently is None:
        return ""
    return f"{found.conversations - found.rendered_differently} of {found.conversations}"


def notes(server: Server, name: str, found: Prompts | None, trained: Trained) -> list[str]:
    """What is to be said of it that is no failure."""
    if found is None:
        return [f"rows were trained with functions, and this Ollama refuses requests with them: {NO_TOOLS}"]
    told = []
    if trained.tools == tool_form.OWN and found.failures:
        told.append(f"functions are served otherwise than trained, as TOOL_FORM = own has it: {found.failures[0]}")
    if found.conversations and (words := _without_ids(server, name)):
        told.append(f"a call without an id is refused, and Ollama's own have none that would do: {words}")
    return told


def compare(server: Server, name: str, trained: Trained) -> Prompts:
    """Hold the server's prompts for conversations with functions against the trained ones. The server takes functions."""
    found = Prompts()
    for chat in chats():
        offered = json.dumps(chat.offered, ensure_ascii=False) if chat.offered else ""
        turns = chat.turns
        if trained.tools == tool_form.OLLAMA:
            offered, turns = tool_form.tools(offered, {}), tuple(tool_form.turn(turn)[0] for turn in turns)
        try:
            right = trained.written(turns, offered)
        except UserError:  # the template does not take it
            continue
        if len(trained.tokens(right[0])) > trained.num_ctx - SPARE:
            continue
        try:
            served = asking.rendered(server, name, chat.messages(), chat.offered)
        except Refused as refused:
            hold_refused(found, chat, refused)
            continue
        if served is None:
            found.rendered_differently = None
            return found
        found.conversations += 1
        hold(found, trained, chat.name, right, served)
        if found.counted < COUNTED:
            _counted(found, server, name, trained, chat, served)
    return found


def hold_refused(found: Prompts, chat: Chat, refused: Refused) -> None:
    """A chat that was trained and that the server does not take is one that it writes differently."""
    found.conversations += 1
    found.rendered_differently = (found.rendered_differently or 0) + 1
    found.failures.append(f"{chat.name}: the server refuses it: {refused.message}")


def _without_ids(server: Server, name: str) -> str:
    """What the server says of a call without an id, as most clients of Ollama send them; "" where it takes it.

    Some chat templates (Mistral's) refuse all but ids of nine signs, which no server of today makes.
    """
    chat = next(chat for chat in chats() if any("tool_calls" in turn.more for turn in chat.turns))
    messages = [_sent(turn) for turn in chat.turns]
    for message in messages:
        message.pop("tool_call_id", None)
        calls = message.get("tool_calls")
        if isinstance(calls, list):
            message["tool_calls"] = [{"function": call["function"]} for call in calls]
    try:
        asking.rendered(server, name, messages, chat.offered)
    except Refused as refused:
        return refused.message
    return ""


def _counted(found: Prompts, server: Server, name: str, trained: Trained, chat: Chat, served: str) -> None:
    right = len(trained.tokens(served))
    count(found, chat.name, asking.counted(server, name, chat.messages(), chat.offered), {right})
