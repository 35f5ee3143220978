"""The merge against PEFT's own, and the proof of it: broken on purpose, it must say which tensor is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from training import merge as merging
from training import proof

pytestmark = pytest.mark.tiny

SMALL = {
    "vocab_size": 120,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 16}
FAMILIES = {
    "llama": ("LlamaConfig", {}),
    "qwen2": ("Qwen2Config", {"tie_word_embeddings": True}),  # biases on q, k and v; a tied head
    "qwen3": ("Qwen3Config", {"head_dim": 16}),
    "gemma3": ("Gemma3TextConfig", {"head_dim": 16, "sliding_window": 16}),  # tied by default
    "mistral": ("MistralConfig", {}),
    "phi3": ("Phi3Config", {}),  # q, k and v in one tensor, gate and up in another
    "qwen3_moe": ("Qwen3MoeConfig", EXPERTS),
}


def model_of(family: str, seed: int = 0, **settings):
    """A random model with a family's real classes, in float32, with every parameter (biases too) away from 0."""
    import torch
    import transformers

    name, own = FAMILIES[family]
    config = getattr(transformers, name)(**{**SMALL, **own, **settings})
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return model


def save_base(
    folder: Path, family: str, dtype: str = "bfloat16", shard: str = "50KB", seed: int = 0, **settings
) -> Path:
    """A base model folder in several shards."""
    import torch

    model_of(family, seed, **settings).to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=shard)
    return folder


def save_adapter(folder: Path, base: Path, trained: bool = True, **settings) -> Path:
    """An adapter for a base, made and saved by PEFT itself; `trained` gives every part of it random values."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    wanted = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **settings}
    model = get_peft_model(model, LoraConfig(**wanted))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and trained:
                shift = torch.randn_like(parameter) * 0.05
                parameter.mul_(1 + shift.abs()) if "magnitude" in name else parameter.add_(shift)
    model.save_pretrained(folder)
    return folder


def state(folder: Path) -> dict:
    """Every tensor of a model folder."""
    from safetensors.torch import load_file

    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def oracle(base: Path, adapter: Path):
    """The model as PEFT itself merges it, in float32."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return PeftModel.from_pretrained(model, adapter).merge_and_unload()


def agree(base: Path, adapter: Path, merged: Path, dtype: str = "bfloat16", head: bool = True) -> None:
    """Every tensor that transformers reads from the merged folder is PEFT's, rounded once."""
    import torch
    from transformers import AutoModelForCausalLM

    expected = oracle(base, adapter).state_dict()
    found = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32).state_dict()
    assert found.keys() == expected.keys()
    steps = {"bfloat16": 2.0**-8, "float16": 2.0**-11}[dtype]  # half a step, relative to the value
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=steps * 1.01, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


ADAPTERS = {
    "plain": {},
    "all-linear": {"target_modules": "all-linear"},
    "rslora": {"use_rslora": True, "r": 8},
    "dora": {"use_dora": True},
    "dora and rslora on all": {"use_dora": True, "use_rslora": True, "target_modules": "all-linear"},
    "patterns": {"rank_pattern": {"v_proj": 2, "layers.1.self_attn.q_proj": 6}, "alpha_pattern": {"q_proj": 3}},
    "all biases": {"bias": "all"},
    "the adapted biases": {"bias": "lora_only"},
}


@pytest.mark.parametrize("settings", ADAPTERS.values(), ids=ADAPTERS)
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_merge_equals_pefts_own_merge(family: str, settings: dict, tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", family)
    adapter = save_adapter(tmp_path / "adapter", base, **settings)
    record = merging.merge(base, adapter, tmp_path / "merged")
    agree(base, adapter, tmp_path / "merged")
    figures = proof.verify(base, adapter, tmp_path / "merged")
    assert figures.targeted == figures.changed == record.targeted > 0
    assert figures.max_ulp <= 0.5
    assert figures.untrained == figures.lost == 0


@pytest.mark.parametrize("family", ["qwen3", "gemma3", "mistral", "phi3"])
def test_every_family_merges_on_all_its_linear_layers(family: str, tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", family)
    adapter = save_adapter(tmp_path / "adapter", base, target_modules="all-linear")
    merging.merge(base, adapter, tmp_path / "merged")
    agree(base, adapter, tmp_path / "merged")
    assert proof.verify(base, adapter, tmp_path / "merged").changed > 0
