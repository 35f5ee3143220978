"""Frozen weights in bf16 as oneDNN lays them out for its products: laid out once, the same numbers sooner.

Else every product lays out its weight anew, which takes a sixth of its time, and of a product of few tokens half. A
weight has one layout for each direction: a copy in memory for either, so this is for machines that have some to spare
(plan/memory_fit.packs). The model's own weights stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch

# Tokens of a product for which a layout is made. Others take it as it is.
TOKENS = 1024
# Tokens of the products that are compared: several blocks of rows, and a rest. Each number costs the compiling of its products.
TRIED = 261


@dataclass(frozen=True)
class Packed:
    """A frozen weight [outputs, inputs] in oneDNN's own layouts: of itself, and of its transpose."""

    forward: torch.Tensor
    back: torch.Tensor


def possible(dtype: torch.dtype) -> bool:
    """Whether this torch can do it for weights of a type on this CPU; of float32 it gains little."""
    ops = torch.ops.mkldnn
    there = all(
        hasattr(ops, name) for name in ("_linear_pointwise", "_reorder_linear_weight", "_is_mkldnn_bf16_supported")
    )
    if dtype != torch.bfloat16 or not torch.backends.mkldnn.is_available() or not there:
        return False
    # A CPU without the units, and without AVX-512 to stand in for them, has no such products.
    return bool(ops._is_mkldnn_bf16_supported())


def packed(weights: Sequence[torch.Tensor]) -> Packed:
    """Several weights that read the same input, side by side, laid out as one."""
    whole = torch.cat(list(weights)) if len(weights) > 1 else weights[0].contiguous()
    lay_out = torch.ops.mkldnn._reorder_linear_weight
    return Packed(lay_out(whole, TOKENS), lay_out(whole.t().contiguous(), TOKENS))


def linear(x: torch.Tensor, weight: Packed, bias: torch.Tensor | None) -> torch.Tensor:
    """x W^T + bias, of x [tokens, inputs]."""
    return _product(x, weight.forward, bias)


def back(gradient: torch.Tensor, weight: Packed) -> torch.Tensor:
    """gradient W, of a gradient [tokens, outputs]."""
    return _product(gradient, weight.back, None)


def _product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return cast("torch.Tensor", torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], ""))


def equal(weight: Packed, weights: Sequence[torch.Tensor]) -> bool:
    """Whether the products are those of the weights as they were, to the last bit: a run that is resumed with less memory,
    or more, must go on with the same losses."""
    whole = torch.cat(list(weights))
    outputs, inputs = whole.shape
    # torch.manual_seed is the run's.
    x, gradient = (
        torch.arange(TRIED * size, dtype=torch.float32).sin().view(TRIED, size).to(whole.dtype)
        for size in (inputs, outputs)
    )
    forward = torch.equal(linear(x, weight, None), torch.nn.functional.linear(x, whole))
    return forward and torch.equal(back(gradient, weight), gradient @ whole)
