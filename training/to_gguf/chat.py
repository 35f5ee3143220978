"""The chat of a model as Ollama is to hold it, from the template that it was trained with."""

from __future__ import annotations

from training.data import ChatTemplate, chat_template
from training.ollama import Chat


def chat_of(template: ChatTemplate, adds_bos: bool) -> Chat:
    """How a model chats. adds_bos: the tokenizer of its GGUF file puts BOS in front of a prompt by itself."""
    return Chat(
        lambda messages, add_generation_prompt: chat_template.prompt_served(template, messages, add_generation_prompt),
        jinja=template.exported,
        bos=template.bos,
        eos=template.eos,
        adds_bos=adds_bos,
        system=template.system,
    )
