"""How the rows of a file are to be read, where they do not say it themselves: the settings of [Dataset] that decide."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from training.errors import UserError
from training.settings import Settings, column_names, prompt_template
from training.settings.prompt_template import PromptTemplate
from training.settings.table import FORMATS


@dataclass(frozen=True)
class Reading:
    """FORMAT, PROMPT_TEMPLATE, COLUMNS (field -> the column that holds it), ENCODING, JOIN_TURNS, TOOL_FORM, NULL_WORDS,
    ON_PRIVATE.

    mask_key: what the masks of ON_PRIVATE are made with, so that nobody without the data finds a way back.
    """

    format: str = "auto"
    template: PromptTemplate | None = None
    columns: Mapping[str, str] | None = None
    encoding: str = "auto"
    join_turns: bool | str = "auto"
    tool_form: str = "own"
    null_words: str = "stop"
    on_private: str = "off"
    mask_key: bytes = b""

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise UserError(f"[Dataset] FORMAT = {self.format}: must be one of {', '.join(FORMATS)}")


PLAIN = Reading()


def of_settings(settings: Settings) -> Reading:
    """The reading that [Dataset] asks for."""
    section = settings.dataset
    return Reading(
        format=section.format,
        template=prompt_template.parse(section.prompt_template) if section.prompt_template else None,
        columns=column_names.parse(section.columns) if section.columns else None,
        encoding=section.encoding,
        join_turns=section.join_turns,
        tool_form=section.tool_form,
        null_words=section.null_words,
        on_private=section.on_private,
    )
