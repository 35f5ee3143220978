"""A conversation as the text of a chat template writes it, compiled and filled in as transformers does."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from training.data import tool_form
from training.data.turns import THOUGHTS, Turn
from training.errors import UserError
from training.system import privacy

if TYPE_CHECKING:
    from jinja2 import Template

# What a rendering may have: characters of the template's own (tools and rules are some thousands), copies of the chat.
MOST_WRITTEN, MOST_COPIES = 4_000_000, 4
MOST_WORDS = 500  # characters of a template's own words that are told


def rendered(
    jinja: str,
    special: Mapping[str, str],
    messages: Iterable[Turn | Mapping[str, Any]],
    add_generation_prompt: bool,
    today: datetime.date | None = None,
    handed: Mapping[str, object] | None = None,
    as_go: bool = False,
) -> str:
    """A conversation by the template `jinja`. `special`: special tokens by their names in it; `today`: what it is told of the
    date, else it asks the clock; `handed`: what it gets besides; `as_go`: numbers in JSON as Go writes them.

    UserError where it refuses the messages, or writes what no tokenizer takes.
    """
    import jinja2

    dated = {"strftime_now": today.strftime} if today else {}
    chat = [message(one) if isinstance(one, Turn) else dict(one) for one in messages]
    try:
        compiled, known = _compiled(jinja, as_go)
        names = {**known, **special, **dated, **(handed or {}), "messages": chat}
        names["add_generation_prompt"] = add_generation_prompt
        text = _joined(compiled.root_render_func(compiled.new_context(names, shared=True)), chat)
    except MemoryError:
        raise
    except Exception as error:
        # Whatever a template does is the template's refusal, in words that a terminal may see.
        words = str(error) if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: {error}"
        raise UserError(f"the chat template refuses: {privacy.visible(words[:MOST_WORDS])}") from None
    if "\0" in text or not (text.isascii() or _is_sound(text)):
        raise UserError("the chat template writes a NUL character or half a character, which no tokenizer takes")
    return text


def message(turn: Turn) -> dict[str, Any]:
    """A turn as templates take it."""
    message: dict[str, Any] = {"role": turn.role, "content": turn.content}
    if turn.thoughts:
        message |= dict.fromkeys(THOUGHTS, turn.thoughts)
    return {**message, **json.loads(turn.more)} if turn.more else message


def _joined(parts: Iterable[str], chat: Sequence[Mapping[str, Any]]) -> str:
    """The whole of a rendering. ValueError where it is too long for what it is made of."""
    most = MOST_WRITTEN + MOST_COPIES * sum(len(str(turn[name])) for turn in chat for name in turn if name != "role")
    found, size = [], 0
    for part in parts:
        found.append(part)
        size += len(part)
        if size > most:
            raise ValueError(f"it writes more than {most:,} characters")
    return "".join(found)


def _is_sound(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


@lru_cache(maxsize=8)
def _compiled(jinja: str, as_go: bool) -> tuple[Template, dict[str, object]]:
    """The template as transformers' `render_jinja_template` compiles it, and all names that it hands to one without tools.

    Put together once, and not for every text: it is half of the time that rendering a short chat takes. as_go: numbers in
    JSON are written as a TEMPLATE writes them.
    """
    from transformers.utils import chat_template_utils

    compiled = chat_template_utils._compile_jinja_template(jinja)
    if as_go:
        environment = compiled.environment.overlay()
        environment.filters = environment.filters | {"tojson": tool_form.json_as_go}
        compiled = environment.from_string(jinja)
    return compiled, {**compiled.globals, "tools": None, "documents": None}
