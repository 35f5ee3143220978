"""Does a live Ollama write thoughts into prompts as they were trained, with thinking on and off?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from training.checks.served_prompts import SPARE, Prompts, Trained, count, hold
from training.checks.served_tools import CAPABILITY as TOOLS
from training.errors import UserError
from training.ollama import Server, asking, thought_parts
from training.ollama.server import Refused
from training.ollama.template_parts import CONTINUED
from training.ollama.tool_parts import Functions, Message
from training.to_gguf.chat import chat_of

CAPABILITY = "thinking"  # by which a server says that it takes `think`
COUNTED = 2  # prompts; each is read by the model
WAYS = {"": None, ", with thinking off": False}  # a request that says nothing has it on


def asked(
    server: Server, name: str, trained: Trained, shown: Mapping[str, object], exceptions: Sequence[str]
) -> Prompts:
    """What a server does with thoughts, where TEMPLATE may write them and the server knows them with this model.

    `shown`: what it tells of the model. `exceptions`: kinds of chat that may differ.
    """
    found = Prompts()
    chat = None if trained.template is None else chat_of(trained.template, adds_bos=False)
    capabilities = shown.get("capabilities")
    if chat is None or chat.with_thoughts is None or not isinstance(capabilities, list):
        return found
    if CAPABILITY not in capabilities:
        return found
    for kind, what, messages, offered in thought_parts.battery(bool(trained.tools) and TOOLS in capabilities):
        if kind == CONTINUED or thought_parts.of_thoughts(kind) in exceptions:
            continue
        for way, think in WAYS.items():
            try:
                right = chat.with_thoughts(messages, offered, True, think is not False)
            except UserError:  # the template does not take it
                continue
            if len(trained.tokens(right)) <= trained.num_ctx - SPARE:
                _held(found, server, name, trained, (f"{what}{way}", messages, offered, think, right))
    return found


def figure(found: Prompts) -> str:
    """What was found, in a few words; "" where nothing was asked, or the server does not tell."""
    if not found.conversations or found.rendered_differently is None:
        return ""
    return f"{found.conversations - found.rendered_differently} of {found.conversations}"


def notes(found: Prompts) -> list[str]:
    """What is to be said where the server writes by another template than ours: those take thoughts in ways of their own."""
    return [f"thoughts are served otherwise than trained: {words}" for words in found.failures[:1]]


def _held(
    found: Prompts,
    server: Server,
    name: str,
    trained: Trained,
    chat: tuple[str, Sequence[Message], Functions, bool | None, str],
) -> None:
    """Hold the server's prompt for a chat against the trained one, and of the first ones its count of tokens."""
    what, messages, offered, think, right = chat
    prompt = [_sent(message) for message in messages]
    try:
        served = asking.rendered(server, name, prompt, offered, think)
    except Refused as refused:
        found.conversations += 1
        found.rendered_differently = (found.rendered_differently or 0) + 1
        found.failures.append(f"{what}: the server refuses it: {refused.message}")
        return
    if served is None:
        found.rendered_differently = None
        return
    found.conversations += 1
    hold(found, trained, what, [right], served)
    if found.counted < COUNTED:
        count(found, what, asking.counted(server, name, prompt, offered, think), {len(trained.tokens(served))})


def _sent(message: Message) -> Message:
    """A message as a client of Ollama sends it."""
    if "name" not in message:
        return message
    rest = {key: value for key, value in message.items() if key != "name"}
    return {**rest, "tool_name": message["name"]}
