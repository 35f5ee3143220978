"""Does a chat template know tools? Those that do not leave them out without a word, and the row would be learned without."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from training.data.chat_template import ChatTemplate, as_served
from training.data.turns import Turn
from training.errors import UserError

NAME, ARGUMENT, GIVEN = "probetool", "probeargument", "proberesult"
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": NAME,
            "description": "A probe.",
            "parameters": {"type": "object", "properties": {ARGUMENT: {"type": "string"}}},
        },
    }
]
CALL = {"id": "probe0001", "type": "function", "function": {"name": NAME, "arguments": {ARGUMENT: "value"}}}
ASKED = Turn("user", "Probe?")
CALLED = Turn("assistant", "", more=json.dumps({"tool_calls": [CALL]}))
RESULT = Turn("tool", GIVEN, more=json.dumps({"tool_call_id": "probe0001", "name": NAME}))


class Room(NamedTuple):
    """What of a conversation with tools a template writes."""

    tools: bool
    calls: bool
    results: bool


def check(template: ChatTemplate, messages: Sequence[Turn], tools: str) -> None:
    """UserError where the template would leave out the tools, calls or results of a row, or servers would take another."""
    if template.tools_apart:
        raise UserError(
            "the row has tools, and the model writes chats with tools by a template of its own, named tool_use: "
            "CHAT_TEMPLATE = tool_use learns and serves all rows by that one, CHAT_TEMPLATE = default by the one for chats"
        )
    room = of(template.jinja, tuple(template.special.items()))
    held = (
        ("tools are offered", bool(tools), room.tools),
        ("a tool is called", any(turn.role == "assistant" and turn.more for turn in messages), room.calls),
        ("a tool's result stands", any(turn.role == "tool" for turn in messages), room.results),
    )
    for what, there, written in held:
        if there and not written:
            raise UserError(
                f"{what} in the row, and the chat template writes none: take a model whose template knows tools, "
                "or a template that does as CHAT_TEMPLATE"
            )


@lru_cache(maxsize=8)
def of(jinja: str, special: tuple[tuple[str, str], ...]) -> Room:
    """What a template writes of tools, found by asking it."""
    template = ChatTemplate(jinja=jinja, source="", special=dict(special))
    answered = (ASKED, CALLED, RESULT)

    def written(turns: Sequence[Turn], handed: Mapping[str, object], sign: str) -> bool:
        try:
            return sign in as_served(template, turns, jinja, handed)
        except UserError:
            return False

    offered: dict[str, object] = {"tools": TOOLS}
    return Room(
        tools=written((ASKED,), offered, NAME),
        calls=any(written(answered, handed, ARGUMENT) for handed in ({}, {"tools": None}))
        or _more_often(template, answered, offered),
        results=any(written(answered, handed, GIVEN) for handed in ({}, offered)),
    )


def _more_often(template: ChatTemplate, turns: Sequence[Turn], offered: Mapping[str, object]) -> bool:
    """Whether a call is written besides the offer of the same tool, by a template that writes calls beside tools only."""
    try:
        with_call = as_served(template, turns, template.jinja, offered)
        without = as_served(template, turns[:1], template.jinja, offered)
    except UserError:
        return False
    return with_call.count(ARGUMENT) > without.count(ARGUMENT)
