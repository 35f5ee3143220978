"""What a model's generation_config.json says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.base_model import model_json

if TYPE_CHECKING:
    from training.base_model.sources import BaseModel

FILE = "generation_config.json"


def config(folder: Path) -> dict[str, Any]:
    """The generation_config.json of a model folder; nothing where it has none."""
    file = folder / FILE
    return model_json.read(file) if file.is_file() else {}


def generation_eos(base: BaseModel) -> list[int]:
    """The end tokens that generation_config.json names, else config.json."""
    found = config(base.path).get("eos_token_id", base.config.get("eos_token_id"))
    return found if isinstance(found, list) else [found] if found is not None else []
