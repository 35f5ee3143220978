"""The small JSON files of a model folder: what of them is relied on, here and in the libraries that read them.

A wrong one is told by file and field before anything is loaded. Bounds are far beyond any model: they keep a file of a
few bytes from asking for all of the memory.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.base_model import safetensors_file
from training.system import foreign_json
from training.system.foreign_json import (
    NUMBER,
    OBJECT,
    OBJECTS,
    TABLE,
    TEXT,
    TEXTS,
    TRUTH,
    WHOLE,
    Damaged,
    Kind,
    is_whole,
)

CONFIG, GENERATION, TOKENIZER, ADAPTER = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "adapter_config.json",
)
DTYPE = re.compile(r"(torch\.)?(auto|half|float|double|b?float\d+(_\w+)?)")


def _up_to(most: int) -> Kind:
    return Kind(f"whole number from 1 to {most:,}", lambda value: is_whole(value) and 1 <= value <= most)


def _ids(value: object) -> bool:
    return value is None or all(WHOLE.fits(one) for one in (value if isinstance(value, list) else [value]))


def _dtype(value: object) -> bool:
    return value is None or isinstance(value, dict) or (isinstance(value, str) and bool(DTYPE.fullmatch(value)))


IDS = Kind("token id, list of them or null", _ids)
TOKEN = Kind("token (a text, an object or null)", lambda value: value is None or isinstance(value, (str, dict)))
TEMPLATE = Kind("template", lambda value: value is None or isinstance(value, (str, dict)) or OBJECTS.fits(value))
CONFIG_KINDS: dict[str, Kind] = {
    "vocab_size": _up_to(1 << 24),
    "hidden_size": _up_to(1 << 20),
    "num_hidden_layers": _up_to(1 << 12),
    "num_attention_heads": _up_to(1 << 12),
    "num_key_value_heads": _up_to(1 << 12).or_none(),
    "head_dim": _up_to(1 << 16).or_none(),
    "max_position_embeddings": _up_to(1 << 31),
    "sliding_window": WHOLE.or_none(),
    "num_labels": _up_to(1 << 20),
    **dict.fromkeys(("id2label", "label2id", "text_config", "rope_scaling", "rope_parameters"), OBJECT.or_none()),
    **dict.fromkeys(("dtype", "torch_dtype"), Kind("dtype such as bfloat16", _dtype)),
    **dict.fromkeys(("tie_word_embeddings", "is_encoder_decoder"), TRUTH.or_none()),
    "architectures": TEXTS.or_none(),
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), IDS),
    **dict.fromkeys(("rms_norm_eps", "rope_theta", "initializer_range"), NUMBER.or_none()),
}
GENERATION_KINDS: dict[str, Kind] = {
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), IDS),
    **dict.fromkeys(("temperature", "top_k", "top_p", "min_p", "repetition_penalty"), NUMBER.or_none()),
    # Of these transformers also takes 131072.0.
    **dict.fromkeys(("max_length", "max_new_tokens", "num_beams"), NUMBER.or_none()),
    "do_sample": TRUTH.or_none(),
}
TOKENIZER_KINDS: dict[str, Kind] = {
    **dict.fromkeys((f"{name}_token" for name in ("bos", "eos", "unk", "pad", "sep", "cls", "mask")), TOKEN),
    **dict.fromkeys(("add_bos_token", "add_eos_token", "add_prefix_space"), TRUTH.or_none()),
    "model_max_length": NUMBER.or_none(),
    "tokenizer_class": TEXT.or_none(),
    "fast_tokenizer_files": TEXTS.or_none(),
    "added_tokens_decoder": TABLE.or_none(),
    "chat_template": TEMPLATE,
}
ADAPTER_KINDS: dict[str, Kind] = {
    "r": _up_to(1 << 20),
    "lora_alpha": NUMBER,
    "peft_type": TEXT.or_none(),
    "base_model_name_or_path": TEXT.or_none(),
    **dict.fromkeys(("rank_pattern", "alpha_pattern"), OBJECT.or_none()),
    **dict.fromkeys(("use_dora", "use_rslora", "fan_in_fan_out"), TRUTH.or_none()),
    "modules_to_save": TEXTS.or_none(),
}


INDEX_KINDS: dict[str, Kind] = {
    "weight_map": Kind(
        "object of files' names",
        lambda value: isinstance(value, dict) and all(isinstance(name, str) for name in value.values()),
    ),
}
FILES: dict[str, Mapping[str, Kind]] = {
    CONFIG: CONFIG_KINDS,
    GENERATION: GENERATION_KINDS,
    TOKENIZER: TOKENIZER_KINDS,
    "special_tokens_map.json": {},
    "added_tokens.json": {},
    safetensors_file.INDEX: INDEX_KINDS,
}


def read(file: Path) -> dict[str, Any]:
    """One of the files of a model or adapter. Damaged, with the field, where it is not what it should be."""
    return _checked(foreign_json.read(file, kinds_of(file.name)), str(file))


def parse(raw: bytes, where: str) -> dict[str, Any]:
    """A config.json that is not in a folder yet."""
    return _checked(foreign_json.parse(raw, where, CONFIG_KINDS), where)


def kinds_of(name: str) -> Mapping[str, Kind]:
    """What the fields of a file of this name must be."""
    return ADAPTER_KINDS if name == ADAPTER else FILES.get(name, {})


def problems(folder: Path) -> list[str]:
    """What is wrong with the JSON files of a model folder, file by file."""
    found: list[str] = []
    for name in FILES:
        if (folder / name).exists():
            try:
                read(folder / name)
            except Damaged as damage:
                found += damage.problems
    return found


def _checked(found: dict[str, Any], where: str) -> dict[str, Any]:
    """What a model that also sees pictures says of its text stands in text_config."""
    inner = found.get("text_config")
    if isinstance(inner, dict) and (wrong := foreign_json.misfits(inner, CONFIG_KINDS)):
        raise Damaged([f"{where}: text_config: {problem}" for problem in wrong])
    return found
