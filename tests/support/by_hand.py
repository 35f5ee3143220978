"""Small random models with an adapter, and their losses and gradients by the hand-written layers or by their own."""

from __future__ import annotations

import pytest

SHAPE = {
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 101,
    "max_position_embeddings": 2048,
}
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def adapted(family: str = "llama", targets=ALL, dtype="float64", **more):
    """A random model of a family with a random adapter."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **{**SHAPE, **more}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "bias" in name:
                parameter.normal_(1, 0.3)
    lora = {"r": 4, "lora_alpha": 6, "target_modules": list(targets), "init_lora_weights": False}
    return get_peft_model(model.to(getattr(torch, dtype)), LoraConfig(**lora)).to(getattr(torch, dtype)).train()


def batch(lengths=(9, 17, 1, 12)):
    """Rows of unequal length, padded on the right; the first third of each is not trained."""
    import torch

    torch.manual_seed(1)
    width = max(lengths)
    ids = torch.randint(0, SHAPE["vocab_size"], (len(lengths), width))
    at = torch.arange(width)[None]
    mask = (at < torch.tensor(lengths)[:, None]).long()
    trained = mask.bool() & (at >= torch.tensor(lengths)[:, None] // 3)
    return {"input_ids": ids, "labels": torch.where(trained, ids, -100), "attention_mask": mask}


def measured(model, inputs, decoder=None):
    """Loss and gradients, by the model's own forward pass or by the hand-written layers."""
    from training.fast_cpu import fast_loss

    model.zero_grad()
    value = fast_loss.loss(model.get_base_model(), inputs, None, decoder) if decoder else model(**inputs).loss
    value.backward()
    return float(value.detach()), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def needs_vectors(dtype):
    """Skips a test where attention.c is not for this CPU and type."""
    from training.fast_cpu import kernels

    if not kernels.attends(dtype):
        pytest.skip(f"the vector units of this CPU do not multiply {dtype}, or it has matrix units")
