"""A tiny random model and a run on it: real in every part, trained in seconds."""

from __future__ import annotations

import json
import shutil
import string
from dataclasses import replace
from pathlib import Path

from training.base_model import gguf_tokenizer
from training.llama import gguf_file
from training.to_gguf import conversion

# Of Llama 2's vocabulary: where the special pieces and the bytes end, and how many of its pieces are kept besides letters.
BYTES_END, FIRST = 259, 640
LETTERS = "▁" + string.printable


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


def write_smallest_model(folder: Path, embedded: Path, layers: int = 1) -> None:
    """Write a model of one layer and some 700 pieces of SentencePiece into a folder: a run on it is four times as quick.

    Those are the first of Llama 2's, which llama.cpp brings, so that every text is cut as llama.cpp cuts it.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    vocabulary = gguf_tokenizer.read(
        gguf_file.read(conversion.CONVERTER.parent / "models" / "ggml-vocab-llama-spm.gguf")
    )
    letters = [n for n, piece in enumerate(vocabulary.tokens) if n >= FIRST and len(piece) == 1 and piece in LETTERS]
    kept = [*range(FIRST), *letters]
    tokens = [vocabulary.tokens[n] for n in kept]
    begin, end = 1, 2
    tokens[begin], tokens[end] = "<|im_start|>", "<|im_end|>"
    attributes = {at: vocabulary.special["attributes"][n] for at, n in enumerate(kept) if n < BYTES_END}
    ends = {"bos": begin, "eos": end, "eot": end, "pad": end, "end": [end], "add_bos": False, "add_eos": False}
    small = replace(
        vocabulary, tokens=tokens, scores=[vocabulary.scores[n] for n in kept], space_prefix=False,
        special={**vocabulary.special, **ends, "attributes": attributes},
    )  # fmt: skip
    folder.mkdir(exist_ok=True)
    gguf_tokenizer.save(gguf_tokenizer.build(small), small, folder, 512)
    shutil.copy(embedded / "chat_template.jinja", folder)
    config = LlamaConfig(
        vocab_size=len(tokens), hidden_size=256, intermediate_size=256 * layers, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True, bos_token_id=begin,
        eos_token_id=end, pad_token_id=end,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


def write_tiny_config(tmp_path: Path, tiny_model: Path) -> Path:
    """Write `tiny_config` and its rows into a folder.

    One thread: there are as many workers of the tests as cores, and threads that wait for each other on cores that others
    have take twice the work and time of one.
    """
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
[Hardware]
NUM_THREADS = 1
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
