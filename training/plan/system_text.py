"""Whose system text goes into the model where nobody gave one."""

from __future__ import annotations

from collections.abc import Iterator

from training.data import ChatTemplate, Turn, chat_template
from training.data.chat_template import QUESTION, SYSTEM
from training.errors import UserError
from training.system import wording


def own_system_text(template: ChatTemplate) -> str:
    """The system text that the model's own template puts where a conversation has none; "" where it puts none."""
    question = Turn("user", QUESTION)
    try:
        bare = chat_template.render(template, [question])
        before, _, after = chat_template.render(template, [Turn("system", SYSTEM), question]).partition(SYSTEM)
    except UserError:
        return ""
    if not after or not bare.startswith(before) or not bare.endswith(after):
        return ""
    text = bare[len(before) : len(bare) - len(after)].strip()
    return text if any(map(str.isalpha, text)) else ""


def line(template: ChatTemplate) -> Iterator[str]:
    """The line of the plan that tells whose system text goes into the model where nobody gave one."""
    text = "" if template.system else own_system_text(template)
    if text:
        yield (
            f"system text: the model's own, “{wording.shorten(text, 120)}”, in training and in Ollama; "
            "--set Model.SYSTEM_PROMPT=TEXT puts yours in its place"
        )
