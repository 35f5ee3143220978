"""What a GGUF file must say so that a reader makes of a prompt what training made of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from training.base_model import load_tokenizer
from training.data import ChatTemplate, chat_template, encoding
from training.data.fast_tokenising import tokeniser

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


PLACE, TEMPLATE = "tokenizer.ggml.", "tokenizer.chat_template"


def tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder."""
    return load_tokenizer(folder)


def pairs(words: PreTrainedTokenizerBase, template: ChatTemplate | None) -> dict[str, bool | int | str]:
    """The metadata with which a reader makes of a prompt what training made of it. `template` None: plain text."""
    found: dict[str, bool | int | str] = {f"{PLACE}add_eos_token": False}
    for name in ("bos", "eos"):
        if (number := getattr(words, f"{name}_token_id")) is not None:
            found[f"{PLACE}{name}_token_id"] = number
    if (end := end_id(words, template)) != words.eos_token_id and end is not None:
        found[f"{PLACE}eot_token_id"] = end
    adds = _adds_bos(words, template)
    if adds is not None:
        found[f"{PLACE}add_bos_token"] = adds
    return found | ({TEMPLATE: template.exported} if template else {})


def _adds_bos(tokenizer: PreTrainedTokenizerBase, template: ChatTemplate | None) -> bool | None:
    """Whether a reader must put BOS in front; None where either is right, for the template writes it and a reader
    that adds one leaves that out."""
    prompts = chat_template.samples(template)[:1] if template else []
    if not prompts or tokenizer.bos_token_id is None:
        return encoding.adds_bos_cached(tokenizer)
    written = prompts[0].startswith(tokenizer.bos_token)
    begins = encoding.with_bos(tokeniser(tokenizer)(prompts)[0], tokenizer)[:1] == [tokenizer.bos_token_id]
    return None if begins and written else begins


def end_id(tokenizer: PreTrainedTokenizerBase, template: ChatTemplate | None) -> int | None:
    """The token that ends a trained answer."""
    end: int | None = tokenizer.eos_token_id
    if template is not None and template.turn_end and not template.eos_follows:
        end = tokeniser(tokenizer)([template.turn_end])[0][-1]
    return end
