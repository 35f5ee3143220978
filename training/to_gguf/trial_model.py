"""A random model of two layers, to try the converter and the quantiser before hours are spent on training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.base_model import kept_files
from training.system import foreign_code

LAYERS, HIDDEN, HEADS = 2, 256, 4  # K-quants want rows of 256
# Keys of a config.json that say how large a model is -> the trial's value. What is not in the config is not added.
SMALL: dict[str, int] = {
    "num_hidden_layers": LAYERS,
    "n_layer": LAYERS,
    "num_layers": LAYERS,
    "hidden_size": HIDDEN,
    "n_embd": HIDDEN,
    "intermediate_size": 2 * HIDDEN,
    "n_inner": 2 * HIDDEN,
    "moe_intermediate_size": HIDDEN,
    "shared_expert_intermediate_size": HIDDEN,
    "num_attention_heads": HEADS,
    "n_head": HEADS,
    "head_dim": HIDDEN // HEADS,
    "query_pre_attn_scalar": HIDDEN // HEADS,
    "max_position_embeddings": 512,
    "max_window_layers": LAYERS,
}
AT_MOST: dict[str, int] = {
    "num_key_value_heads": HEADS,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "n_routed_experts": 4,
    "sliding_window": 32,  # tokens; small enough to be seen in a short text
}


def make(folder: Path, config: Mapping[str, object] | None, tokenizer: Path | None) -> str:
    """Write the model to `folder`; gives its architecture. See trial.ready for what it looks like."""
    import torch
    from safetensors.torch import save_model
    from transformers import AutoConfig, AutoModelForCausalLM

    folder.mkdir(parents=True)
    if config is None or tokenizer is None:
        size = _own_tokenizer(folder)
        config = LLAMA | {"vocab_size": size}
    else:
        for file in kept_files.tokenizer_files(tokenizer):
            kept_files.copy(file, folder / file.name)
            foreign_code.forget(folder / file.name)
    small = AutoConfig.for_model(**shrunk(config))
    with torch.random.fork_rng(devices=[]):  # the run's own random numbers stay as they were
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(small, dtype=torch.bfloat16)
    small.architectures = [type(model).__name__]
    small.save_pretrained(folder)
    save_model(model, str(folder / "model.safetensors"))  # save_pretrained would draw a progress bar
    return type(model).__name__


LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    **{key: SMALL[key] for key in ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads")},
    "num_key_value_heads": HEADS,
    "max_position_embeddings": 512,
}


def ignores_window(folder: Path, gguf: Path) -> bool:
    """Whether llama.cpp computes this model as if it had no sliding window; of a model without one, or with windows in
    some layers only, nothing is said. folder, gguf: the small model, and the file that was made of it."""
    import numpy as np
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from training.llama import process

    config = AutoConfig.from_pretrained(folder)
    window, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None) or ()
    if not isinstance(window, int) or set(kinds) - {"sliding_attention"}:
        return False
    ids = [number % config.vocab_size for number in range(3, 7 * 4 * window, 7)]

    def predicted(**change: object) -> np.ndarray:
        """The predictions behind the window, as transformers computes them."""
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **change)
        with torch.inference_mode():
            logits: np.ndarray = model(torch.tensor([ids])).logits[0, window:].numpy()
        return logits

    full = {"layer_types": ["full_attention"] * len(kinds)} if kinds else {}
    theirs = process.logits(gguf, [ids])[0][window:]
    with_window, without = predicted(), predicted(sliding_window=None, **full)
    return bool(3 * np.abs(without - theirs).mean() < np.abs(with_window - theirs).mean())


def shrunk(config: Mapping[str, object]) -> dict[str, Any]:
    """The same architecture in small. The vocabulary stays: the converter compares it with the tokenizer."""
    left_out = ("transformers_version", "quantization_config")
    small: dict[str, Any] = foreign_code.without({key: part for key, part in config.items() if key not in left_out})
    for key, value in SMALL.items():
        if key in small and small[key] is not None:
            small[key] = value
    for key, most in AT_MOST.items():
        if isinstance(small.get(key), int):
            small[key] = min(small[key], most)
    if isinstance(small.get("num_key_value_heads"), int):  # it must divide the number of heads
        small["num_key_value_heads"] = next(n for n in (4, 2, 1) if n <= small["num_key_value_heads"])
    if isinstance(small.get("layer_types"), list):
        small["layer_types"] = small["layer_types"][:LAYERS]
    for key in ("rope_scaling", "rope_parameters"):
        if isinstance(small.get(key), Mapping):
            small[key] = _positions(small[key], small.get("partial_rotary_factor"))
    if isinstance(small.get("text_config"), Mapping):
        small["text_config"] = shrunk(small["text_config"])
    return small


def _positions(scaling: Mapping[str, Any], partial: float | None) -> dict[str, Any]:
    """LongRoPE (Phi-3.5, Phi-4-mini) has a factor for every pair of rotated dimensions, and there are fewer of them."""
    pairs = int(HIDDEN // HEADS * (partial or scaling.get("partial_rotary_factor") or 1.0)) // 2
    return {
        key: value[:pairs] if key in ("long_factor", "short_factor") and isinstance(value, list) else value
        for key, value in scaling.items()
    }


def _own_tokenizer(folder: Path) -> int:
    """Train a SentencePiece tokenizer of some hundred pieces on its own alphabet; gives its size.

    SentencePiece, because the converter recognises a byte-level BPE only when it is a known model's.
    """
    import io

    import sentencepiece

    text = [f"{a}{b} {b}{a} {i}" for i, (a, b) in enumerate(zip("abcdefghijklm" * 8, "nopqrstuvwxyz" * 8, strict=True))]
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text),
        model_writer=written,
        vocab_size=384,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(written.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=written.getvalue()).get_piece_size()
