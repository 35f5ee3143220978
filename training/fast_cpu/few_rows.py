"""Products of a few rows with a frozen weight (few_rows.c): what the next token of some answers takes (greedy.py)."""

from __future__ import annotations

import torch

from training.fast_cpu import functions, kernels
from training.fast_cpu.functions import Weight
from training.fast_cpu.products import Products

# Beyond so many rows a library's product is as quick, though it lays the weight out anew (benchmarks/few_rows_speed.py).
MOST = 32


def linear(x: torch.Tensor, weight: Weight, bias: torch.Tensor | None, by: Products) -> torch.Tensor:
    """x W^T + bias, of x [rows, inputs] and W [outputs, inputs]; by the library `by` where rows are many, or not float32."""
    if not isinstance(weight, torch.Tensor) or not _fits(x, weight):
        return functions.linear(x, weight, bias, by)
    result = x.new_empty(len(x), len(weight))
    kernels.call("few_rows", x, x.contiguous(), weight, bias, result, len(x), x.shape[1], len(weight))
    return result


def _fits(x: torch.Tensor, weight: torch.Tensor) -> bool:
    return (
        len(x) <= MOST
        and x.dtype == weight.dtype == torch.float32
        and weight.is_contiguous()
        and hasattr(kernels.load(), "few_rows_f32")
    )
