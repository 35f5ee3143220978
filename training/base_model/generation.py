"""What a model's generation_config.json says."""

from __future__ import annotations

import json
from typing import Any


def generation_eos(base: Any) -> list[int]:
    """The end tokens that generation_config.json names, else config.json."""
    file = base.path / "generation_config.json"
    named = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    found = named.get("eos_token_id", base.config.get("eos_token_id"))
    return found if isinstance(found, list) else [found] if found is not None else []
