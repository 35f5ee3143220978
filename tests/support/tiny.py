"""A tiny random model and a run on it: real in every part, trained in seconds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path


def write_tiny_model(folder: Path, embedded: Path) -> None:
    """Write `tiny_model` into a folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = json.loads((embedded / "config.json").read_text(encoding="utf-8"))
    small = LlamaConfig(
        vocab_size=config["vocab_size"], hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True, bos_token_id=config["bos_token_id"],
        eos_token_id=config["eos_token_id"], pad_token_id=config.get("pad_token_id"),
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(small).to(torch.bfloat16).save_pretrained(folder)
    for file in embedded.iterdir():
        if file.name.startswith(("tokenizer", "special", "vocab", "merges", "chat_template")):
            shutil.copy(file, folder)


def write_tiny_config(tmp_path: Path, tiny_model: Path) -> Path:
    """Write `tiny_config` and its rows into a folder."""
    rows = [{"instruction": f"What is {i} and {i}?", "output": f"It is {2 * i}."} for i in range(1, 17)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = tmp_path / "config.ini"
    config.write_text(
        f"""[Model]
BASE_MODEL_NAME = {tiny_model}
NEW_MODEL_NAME = tiny
[Dataset]
DATASET_FILE = rows.jsonl
VALIDATION_SPLIT = 0.2
[Training]
PER_DEVICE_TRAIN_BATCH_SIZE = 2
GRADIENT_ACCUMULATION_STEPS = 2
LEARNING_RATE = 1e-3
MAX_STEPS = 6
SAVE_STEPS = 2
EVAL_STEPS = 3
""",
        encoding="utf-8",
    )
    return config
