"""Frozen weights in 8 bits, and products with them ([Hardware] FAST_CPU = int8): int8.c.

A weight has one scale for each output. What it is multiplied with is rounded to 8 bits, too, with one scale for each
token; before that both are turned in blocks by a Hadamard matrix, which spreads the few large numbers that hidden states
have over many. Adapters, and all that is no product with a frozen weight, are in the model's dtype; so is the output
layer, whose gradients are too unequal for 8 bits.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from training.fast_cpu import kernels

LARGEST_BLOCK = 64
# By how much rounding both factors, and the result to bf16, may change a product: usually 1 %.
NOISE = 0.1
# Inputs or outputs whose sums of products of two bytes stay within 32 bits.
MOST = 2**31 // (255 * 127)
# madvise: the pages of a file may go; what else is there is kept (Linux 5.4).
PAGEOUT = 21


@dataclass(frozen=True)
class Int8:
    """A frozen weight [outputs, inputs]: `values` in 8 bits, turned in blocks of `block` inputs, and `scales` [outputs]."""

    values: torch.Tensor
    scales: torch.Tensor
    block: int


def unsuited(outputs: int, inputs: int, dtype: torch.dtype) -> str:
    """Why a weight cannot be taken; empty when it can."""
    if not kernels.multiplies_bytes():
        return "this CPU's vector units have no products of bytes"
    if dtype not in (torch.float32, torch.bfloat16):
        return f"8 bits stand for weights in bf16 or float32, not in {dtype}"
    if outputs % 4 or inputs % 4 or max(outputs, inputs) > MOST:
        return f"a weight of {outputs} x {inputs} does not fit the dot products of four bytes"
    return ""


def rounded(weights: Sequence[torch.Tensor]) -> Int8:
    """One weight in 8 bits of several that read the same input, side by side."""
    first, outputs = weights[0], sum(len(weight) for weight in weights)
    inputs = first.shape[1]
    block = next(size for size in (LARGEST_BLOCK, 32, 16, 8, 4) if inputs % size == 0)
    values, scales = torch.empty(outputs, inputs, dtype=torch.int8), torch.empty(outputs)
    at = 0
    for weight in weights:
        part = slice(at, at + len(weight))
        _round(weight.contiguous(), None, values[part], scales[part], block, 0)
        at += len(weight)
    return Int8(values, scales, block)


def widened(weight: Int8) -> torch.Tensor:
    """What the 8 bits stand for, in float32."""
    turned = weight.values.float() * weight.scales[:, None]
    result = torch.empty_like(turned)
    kernels.call("int8_turned", result, turned, result, *turned.shape, weight.block)
    return result


def sound(weight: Int8, dtype: torch.dtype) -> bool:
    """Whether the products with a weight are what they should be, for some made-up rows: else the kernel is at fault."""
    exact = widened(weight)
    for way, wanted, size in ((_linear, exact.t(), exact.shape[1]), (back, exact, exact.shape[0])):
        rows = torch.arange(7 * size, dtype=torch.float32).sin().view(7, size)
        right = rows @ wanted
        if not float((way(rows.to(dtype), weight).float() - right).norm()) <= NOISE * float(right.norm()):
            return False
    return True


def _linear(x: torch.Tensor, weight: Int8) -> torch.Tensor:
    return linear(x, weight, None)


def linear(x: torch.Tensor, weight: Int8, bias: torch.Tensor | None) -> torch.Tensor:
    """x W^T + bias, of x [tokens, inputs]."""
    (rows, inputs), outputs = x.shape, len(weight.scales)
    given, of_rows = _bytes(x, None, weight.block)
    result = x.new_empty(rows, outputs)
    sizes = rows, inputs, outputs
    kernels.call("int8_product", result, given, of_rows, weight.values, weight.scales, result, *sizes, 0)
    return result if bias is None else result.add_(bias)


def back(gradient: torch.Tensor, weight: Int8) -> torch.Tensor:
    """gradient W, of a gradient [tokens, outputs]."""
    (rows, outputs), inputs = gradient.shape, weight.values.shape[1]
    # The scales of the outputs are on the side that is summed: they go into what is rounded.
    given, of_rows = _bytes(gradient, weight.scales, 1)
    turned = torch.empty(rows, inputs)
    kernels.call("int8_product", turned, given, of_rows, weight.values, None, turned, rows, outputs, inputs, 1)
    result = gradient.new_empty(rows, inputs)
    kernels.call("int8_turned", result, turned, result, rows, inputs, weight.block)
    return result


def _bytes(x: torch.Tensor, factors: torch.Tensor | None, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    values, scales = torch.empty(x.shape, dtype=torch.uint8), torch.empty(len(x))
    _round(x.contiguous(), factors, values, scales, block, int(kernels.load().int8_offset()))
    return values, scales


def _round(
    x: torch.Tensor, factors: torch.Tensor | None, values: torch.Tensor, scales: torch.Tensor, block: int, offset: int
) -> None:
    kernels.call("int8_round", x, x, factors, values, scales, *x.shape, block, offset)


def in_files(weights: Sequence[torch.Tensor]) -> int:
    """Bytes of the weights that stand in a file (Linux; elsewhere 0): memory is not theirs until they are computed with."""
    spans = [[int(end, 16) for end in addresses.split("-")] for addresses, *_ in kernels.mapped_files()]
    places = [(weight.data_ptr(), weight.nbytes) for weight in weights]
    return sum(size for at, size in places if any(first <= at < end for first, end in spans))


def set_aside(weights: Sequence[torch.Tensor]) -> None:
    """Give the memory of exact weights back, where they stand in a file: they are read again when they are asked for."""
    try:
        advise = ctypes.CDLL(None, use_errno=True).madvise
    except (OSError, AttributeError):
        return
    for weight in weights:
        first = -(-weight.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        size = weight.data_ptr() + weight.nbytes - first
        if size > 0:
            # Where this fails, they stay.
            advise(ctypes.c_void_p(first), ctypes.c_size_t(size), ctypes.c_int(PAGEOUT))
