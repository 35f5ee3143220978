"""Small random models of many architectures."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from training.base_model import gguf_tokenizer
from training.llama import gguf_file
from training.to_gguf import conversion

SMALL = {
    "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 64,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 256, "mlp_only_layers": []}
# Gemma-3: llama.cpp takes every sixth layer for one with full attention, as all its sizes have it
SLIDING = {"sliding_window": 16, "layer_types": ["sliding_attention"] * 5 + ["full_attention"], "num_hidden_layers": 6}
# name -> tokenizer (of the embedded model, or of a vocabulary that llama.cpp brings), configuration, LoRA
ARCHITECTURES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llama": ("smollm", {"rope_parameters": {**LLAMA3, "original_max_position_embeddings": 128}}, {}),
    "mistral": ("llama-spm", {"sliding_window": None}, {"use_rslora": True}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}, {}),  # transformers cuts the words of a Qwen2 its own way
    "qwen3": ("smollm", {}, {"use_dora": True}),
    "gemma3_text": ("llama-spm", {**SLIDING, "query_pre_attn_scalar": 64}, {}),
    "phi3": ("phi-3", {"sliding_window": None}, {}),
    "qwen3_moe": ("smollm", EXPERTS, {
        "target_modules": ["q_proj", "v_proj"], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"],
    }),
}  # fmt: skip


def tokenizer_into(folder: Path, kind: str, embedded: Path, space_prefix: bool = True) -> int:
    """Write tokenizer files into a folder; gives the size of the vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "smollm":
        for file in embedded.iterdir():
            if file.name.startswith(("tokenizer", "chat_template")):
                shutil.copy(file, folder)
        return json.loads((embedded / "config.json").read_text())["vocab_size"]
    gguf = gguf_file.read(conversion.CONVERTER.parent / "models" / f"ggml-vocab-{kind}.gguf")
    vocabulary = gguf_tokenizer.read(gguf)
    vocabulary = replace(vocabulary, space_prefix=vocabulary.space_prefix and space_prefix)
    gguf_tokenizer.save(gguf_tokenizer.build(vocabulary), vocabulary, folder, 512)
    return len(vocabulary.tokens)


def random_model(folder: Path, kind: str, **config: Any) -> None:
    """A random model in bf16; biases and norms are random too: what is all 0 or 1 cannot be seen to be mixed up."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **config), dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.add_(torch.randn_like(parameter) * 0.1)
            if name.endswith("mlp.gate.weight"):
                parameter.mul_(50)  # a random router's experts are so near a tie that rounding to f16 swaps them
    model.to(torch.bfloat16).save_pretrained(folder)  # which writes experts one by one, as their makers do


def random_adapter(base: Path, folder: Path, **lora: Any) -> None:
    """What PEFT saves after a training that changed every part of the adapter."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **lora}
    model = get_peft_model(model, LoraConfig(**settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.05)
            if "magnitude" in name:
                parameter.mul_(1.1)
    model.save_pretrained(folder)
