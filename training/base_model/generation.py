"""What a model's generation_config.json says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from training.base_model.sources import BaseModel

FILE = "generation_config.json"


def config(folder: Path) -> dict[str, Any]:
    """The generation_config.json of a model folder; nothing where it has none."""
    file = folder / FILE
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return found


def generation_eos(base: BaseModel) -> list[int]:
    """The end tokens that generation_config.json names, else config.json."""
    found = config(base.path).get("eos_token_id", base.config.get("eos_token_id"))
    return found if isinstance(found, list) else [found] if found is not None else []
