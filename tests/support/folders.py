"""Folders of models and adapters."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from training.base_model import safetensors_file


def write(file: Path, entries: dict) -> Path:
    """A safetensors file of zeros."""
    size = sum(math.prod(shape) * safetensors_file.SIZES[dtype] for dtype, shape in entries.values())
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(safetensors_file.encode_header(entries, {"format": "pt"}) + bytes(size))
    return file


CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "max_position_embeddings": 512}


def folder(path: Path, config: dict[str, Any] | None = None, **change: Any) -> Path:
    """A model folder with one small tensor; `change` goes into config.json."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps((config or CONFIG) | change))
    (path / "tokenizer.json").write_text("{}")
    content = safetensors_file.encode_header({"a.weight": ("BF16", (3, 5))}, {}) + bytes(30)
    (path / "model.safetensors").write_bytes(content)
    return path
