"""Base models that a test describes by hand: of a folder that need not hold one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from training.base_model import BaseModel


def a_base_model(path: Path, **fields: Any) -> BaseModel:
    """A folder as a base model, with some of its fields."""
    values = {"name": path.name, "kind": "folder", "revision": None, "config": {}, "parameters": 0, "max_length": None}
    return BaseModel(path=path, **(values | fields))
