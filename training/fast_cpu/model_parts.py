"""The parts of a Llama-like model that the hand-written layers read, as their classes in transformers and PEFT have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, TypeGuard, cast

import torch

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class Adapted(Protocol):
    """A projection with LoRA adapters (peft.tuners.lora.Linear)."""

    base_layer: torch.nn.Linear
    lora_A: Mapping[str, torch.nn.Linear]  # noqa: N815  PEFT's name
    lora_B: Mapping[str, torch.nn.Linear]  # noqa: N815
    lora_dropout: Mapping[str, torch.nn.Module]
    scaling: Mapping[str, float]
    use_dora: Mapping[str, bool]
    active_adapters: Sequence[str]
    disable_adapters: bool
    merged: bool


Projection = torch.nn.Linear | Adapted


class Norm(Protocol):
    """An RMS norm."""

    weight: torch.Tensor
    variance_epsilon: float


class SelfAttention(Protocol):
    """Grouped-query attention; in some families queries and keys have norms of their own, q_norm and k_norm."""

    q_proj: Projection
    k_proj: Projection
    v_proj: Projection
    o_proj: Projection
    scaling: float


class FeedForward(Protocol):
    """A gated feed-forward."""

    gate_proj: Projection
    up_proj: Projection
    down_proj: Projection


class DecoderLayer(Protocol):
    """One layer."""

    self_attn: SelfAttention
    mlp: FeedForward
    input_layernorm: Norm
    post_attention_layernorm: Norm


class DecoderStack(Protocol):
    """All layers, with what is before and after them."""

    layers: Sequence[DecoderLayer]
    norm: Norm
    config: PretrainedConfig
    gradient_checkpointing: bool
    training: bool

    def embed_tokens(self, ids: torch.Tensor) -> torch.Tensor:
        """The hidden states that the first layer reads."""

    def rotary_emb(self, states: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine and sine of the angles at these positions."""


def is_adapted(projection: Projection) -> TypeGuard[Adapted]:
    """Whether there are adapters on it."""
    return hasattr(projection, "lora_A")


def base_of(projection: Projection) -> torch.nn.Linear:
    """The frozen projection itself."""
    if is_adapted(projection):
        return projection.base_layer
    # A TypeGuard says nothing of what it has not let through.
    return cast("torch.nn.Linear", projection)
