"""The chat template that a model brings along: in its tokenizer, or in one of the files in which tools have left it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from training.base_model import BaseModel, model_json
from training.errors import UserError
from training.system import foreign_json
from training.system.foreign_json import Damaged

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEFAULT, TOOLS = "default", "tool_use"  # of several templates of one model, the one for chats, and the one for tools
OWN = "the model's own"  # begins what is said of where such a template is from


def find(base: BaseModel | None, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str] | None:
    """The model's own template, and where it is from. UserError where it has several and none is the one for chats."""
    named: dict[str, str] = {}
    for held in _held(base, tokenizer):
        named = {**_texts(held), **named}
        if DEFAULT in named:
            return named[DEFAULT], OWN
    if len(named) > 1:  # for tools and retrieval, say
        raise UserError(
            f"the model has chat templates named {', '.join(sorted(named))} and none named {DEFAULT}: copy the one to train "
            "with into a file, and name that as [Model] CHAT_TEMPLATE"
        )
    return next(((text, f"{OWN}, named {name}") for name, text in named.items()), None)


def named(wanted: str, base: BaseModel | None, tokenizer: PreTrainedTokenizerBase) -> str:
    """The model's own template of that name. UserError where it has none."""
    found: dict[str, str] = {}
    for held in _held(base, tokenizer):
        found = {**_texts(held), **found}
        if wanted in found:
            return found[wanted]
    there = f"it has {', '.join(sorted(found))}" if found else "it has none at all"
    raise UserError(f"[Model] CHAT_TEMPLATE = {wanted}: the model has no chat template of its own named so: {there}")


def for_tools(tokenizer: PreTrainedTokenizerBase, taken: str) -> bool:
    """Whether the model has a template of its own for chats with tools, and it is another than the one `taken`.

    transformers and llama.cpp take it where a chat offers tools.
    """
    return _texts(getattr(tokenizer, "chat_template", None)).get(TOOLS, taken) != taken


def _held(base: BaseModel | None, tokenizer: PreTrainedTokenizerBase) -> Iterator[object]:
    """What may hold templates, the first one first.

    Where there is additional_chat_templates/ and no chat_template.jinja, transformers forgets what tokenizer_config.json
    says. chat_template.json is of older models; transformers reads it for processors alone.
    """
    yield getattr(tokenizer, "chat_template", None)
    if base is None:
        return
    if (base.path / "chat_template.jinja").is_file():
        yield (base.path / "chat_template.jinja").read_text(encoding="utf-8")
    for name in ("tokenizer_config.json", "chat_template.json"):
        if (base.path / name).is_file():
            yield _in_json(base.path / name)


def _in_json(file: Path) -> object:
    try:
        return foreign_json.read(file, {"chat_template": model_json.TEMPLATE}).get("chat_template")
    except Damaged as error:
        raise UserError(f"{error}; repair it, or set [Model] CHAT_TEMPLATE") from None


def _texts(held: object) -> dict[str, str]:
    """Templates by their names: of one text, a table, or a list of tables with name and template."""
    if isinstance(held, str):
        held = {DEFAULT: held}
    elif isinstance(held, list):
        held = {str(one.get("name")): one.get("template") for one in held if isinstance(one, Mapping)}
    pairs = held.items() if isinstance(held, Mapping) else ()
    return {name: text for name, text in pairs if isinstance(text, str) and text}
