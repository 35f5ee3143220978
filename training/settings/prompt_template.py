"""PROMPT_TEMPLATE: a text with {instruction}, {input}, {response} and other columns, and the chat template that follows from it."""

from __future__ import annotations

import json
import string
from collections.abc import Mapping
from dataclasses import dataclass

from training.errors import UserError

WHERE = "[Dataset] PROMPT_TEMPLATE"


@dataclass(frozen=True)
class PromptTemplate:
    """`prefix` what the user writes `middle` the answer `suffix`.

    `columns` are (label, name): the text in front of a column, and its name. The first label is "": it belongs to `prefix`.
    """

    prefix: str
    columns: tuple[tuple[str, str], ...]
    middle: str
    suffix: str

    def user(self, values: Mapping[str, str]) -> str:
        """What stands where a user writes. A column that is empty goes, and its label with it.

        So a row without an {input} trains exactly the prompt that a single question is asked with later.
        """
        parts: list[str] = []
        for label, name in self.columns:
            if values[name].strip():
                parts += [label if parts else "", values[name]]
        return "".join(parts)

    def jinja(self, end: str) -> str:
        """The chat template: the same text around each turn; `end` is a Jinja expression ("eos_token") or ""."""
        prefix, middle, suffix = (
            json.dumps(text, ensure_ascii=False) for text in (self.prefix, self.middle, self.suffix)
        )
        close = f"{suffix} + {end}" if end else suffix
        return (
            "{%- for message in messages -%}"
            "{%- if message['role'] == 'system' -%}{{- message['content'] + '\\n\\n' -}}"
            "{%- elif message['role'] == 'user' -%}{{- " + prefix + " + message['content'] -}}"
            "{%- else -%}{{- " + middle + " + message['content'] + " + close + " -}}"
            "{%- endif -%}{%- endfor -%}"
            "{%- if add_generation_prompt -%}{{- " + middle + " -}}{%- endif -%}"
        )


def parse(text: str) -> PromptTemplate:
    """Take a PROMPT_TEMPLATE apart. Raises UserError when no template for answering follows from it."""
    try:
        pieces = list(string.Formatter().parse(text))
    except ValueError:
        raise UserError(
            f"{WHERE}: a brace has no partner; a brace that is meant as text is written twice: {{{{ or }}}}"
        ) from None
    names = [name for _, name, _, _ in pieces if name is not None]
    for _, name, spec, conversion in pieces:
        if name is not None and (not name.isidentifier() or spec or conversion):
            written = name + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")
            raise UserError(
                f"{WHERE}: {{{written}}} is not the name of a column; a brace that is meant as text is written twice"
            )
    problem = _problem(names)
    if problem:
        raise UserError(f"{WHERE}: {problem}")
    literals = _literals(pieces)
    columns = tuple((literals[i] if i else "", name) for i, name in enumerate(names[:-1]))
    return PromptTemplate(literals[0], columns, literals[-2], literals[-1])


def _problem(names: list[str]) -> str:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        return f"{{{twice[0]}}} stands twice, so the prompt for an answer does not follow from it"
    if "response" not in names:
        return "{response} is missing: it marks where the answer stands"
    if len(names) == 1:
        return "only {response} is there: {instruction} (or another column) must stand in front of it"
    if names[-1] != "response":
        return f"{{{names[-1]}}} stands after {{response}}, so the prompt for an answer would hold what comes after it"
    return ""


def _literals(pieces: list[tuple[str, str | None, str | None, str | None]]) -> list[str]:
    """The texts before, between and after the columns. The parser splits a text at {{ and }}: put it together again."""
    literals = [""]
    for literal, name, _, _ in pieces:
        literals[-1] += literal
        if name is not None:
            literals.append("")
    return literals
