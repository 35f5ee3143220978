"""The chat of a model as Ollama is to hold it, from the template that it was trained with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

from training import ollama
from training.data import ChatTemplate, chat_template
from training.data.encoding import THOUGHT
from training.data.turns import THOUGHTS
from training.ollama import Chat
from training.ollama.tool_parts import Functions, Message


def chat_of(template: ChatTemplate, adds_bos: bool) -> Chat:
    """How a model chats. adds_bos: the tokenizer of its GGUF file puts BOS in front of a prompt by itself."""

    def with_functions(messages: Sequence[Message], offered: Functions, add_generation_prompt: bool) -> str:
        return with_thoughts(messages, offered, add_generation_prompt, True)

    def with_thoughts(messages: Sequence[Message], offered: Functions, add_generation_prompt: bool, think: bool) -> str:
        tools = json.dumps(list(offered), ensure_ascii=False) if offered else ""
        chat = [_trained(template, message) for message in messages]
        return chat_template.prompt_served(template, chat, add_generation_prompt, tools, think)

    # Where the chat template knows thoughts, later servers use TEMPLATE for functions only if it knows them, too.
    thinks = (template.thinks or template.tools_by_name) and ollama.knows_thoughts(template.exported)
    return Chat(
        lambda messages, add_generation_prompt: chat_template.prompt_served(template, messages, add_generation_prompt),
        with_functions=with_functions if template.tools_by_name else None,
        with_thoughts=with_thoughts if thinks else None,
        jinja=template.exported,
        bos=template.bos,
        eos=template.eos,
        adds_bos=adds_bos,
        system=template.system,
    )


def _trained(template: ChatTemplate, message: Message) -> Mapping[str, object]:
    """A message with its thoughts where they were trained (`encoding.in_room`)."""
    thoughts = str(message.get("thinking", ""))
    if not thoughts:
        return message
    rest = {name: value for name, value in message.items() if name != "thinking"}
    if THOUGHT in template.jinja:
        return {**rest, "content": f"<think>\n{thoughts}\n{THOUGHT}\n\n{message['content']}"}
    return {**rest, **dict.fromkeys(THOUGHTS, thoughts)}


def functions_by_name(template: ChatTemplate) -> ChatTemplate:
    """The template with `tools_by_name` where a TEMPLATE can write functions as it does, so that all servers use TEMPLATE.

    Where it cannot, servers before 0.30 take no functions, and later ones use the chat template in the GGUF file.
    """
    by_name = replace(template, tools_by_name=True)
    return by_name if ollama.writes_functions(chat_of(by_name, adds_bos=False)) else template
