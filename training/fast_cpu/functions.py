"""Layers of a decoder with the backward pass written by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from training.fast_cpu import int8, kernels, packed, policy, products
from training.fast_cpu.int8 import Int8
from training.fast_cpu.packed import Packed

Weight = torch.Tensor | Int8 | Packed  # a frozen one
# Of all that a function took; None for what gets none.
Gradients = tuple[torch.Tensor | None, ...]

if TYPE_CHECKING:
    from torch.autograd.function import FunctionCtx

    class Context(FunctionCtx):
        """What a function keeps for its backward pass. torch's own class does not say all of it."""

        saved_tensors: tuple[torch.Tensor, ...]
        needs_input_grad: tuple[bool, ...]
        by: products.Products
        weight: Weight


def linear(x: torch.Tensor, weight: Weight, bias: torch.Tensor | None, by: products.Products) -> torch.Tensor:
    """x W^T + bias."""
    if isinstance(weight, Packed):
        return packed.linear(x, weight, bias)
    return int8.linear(x, weight, bias) if isinstance(weight, Int8) else by.linear(x, weight, bias, None)


def back(gradient: torch.Tensor, weight: Weight, by: products.Products) -> torch.Tensor:
    """gradient W."""
    if isinstance(weight, Packed):
        return packed.back(gradient, weight)
    return int8.back(gradient, weight) if isinstance(weight, Int8) else by.back(gradient, weight, None)


class LoraLinear(Function):
    """x W^T + bias + (x A^T) B^T with a frozen W: gradients for x, A and B alone. A and B may be None."""

    @staticmethod
    def forward(
        ctx: Context,
        x: torch.Tensor,
        weight: Weight,
        bias: torch.Tensor | None,
        down: torch.Tensor | None,
        up: torch.Tensor | None,
        by: products.Products = products.TORCH,
    ) -> torch.Tensor:
        # A frozen weight is nothing that could be changed before the backward pass.
        ctx.by, ctx.weight = by, weight
        result = linear(x, weight, bias, by)
        if down is None or up is None:
            return result
        inner = by.thin(x, down.t(), None)
        ctx.save_for_backward(down, up, x, inner)
        return by.thin(inner, up.t(), result)

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, gradient: torch.Tensor) -> Gradients:
        adapter, weight = ctx.saved_tensors, ctx.weight
        for_x = back(gradient, weight, ctx.by) if ctx.needs_input_grad[0] else None
        if not adapter:
            return for_x, *(None,) * 5
        down, up, x, inner = adapter
        thin = ctx.by.thin
        for_inner = thin(gradient, up, None)
        if for_x is not None:
            thin(for_inner, down, for_x)
        return for_x, None, None, thin(for_inner.t(), x, None), thin(gradient.t(), inner, None), None


class AddNorm(Function):
    """(x + added, RMS norm of that): the residual stream and what the next part reads."""

    @staticmethod
    def forward(
        ctx: Context, x: torch.Tensor, added: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        total, normed = torch.empty_like(x), torch.empty_like(x)
        rows, width = x.shape
        inverse = torch.empty(rows, dtype=sums(x))
        kernels.call("rms_norm", x, x, added.contiguous(), weight, total, normed, inverse, rows, width, float(eps))
        ctx.save_for_backward(total, weight, inverse)
        return total, normed

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, for_total: torch.Tensor, for_normed: torch.Tensor) -> Gradients:
        total, weight, inverse = ctx.saved_tensors
        result = torch.empty_like(total)
        gradients = for_normed.contiguous(), for_total.contiguous()
        kernels.call("rms_norm_backward", total, *gradients, total, weight, inverse, result, *total.shape)
        return result, result, None, None


class SwiGLU(Function):
    """silu(gate) * up of gate and up side by side, [N, 2 x width]."""

    @staticmethod
    def forward(ctx: Context, both: torch.Tensor) -> torch.Tensor:
        rows, width = both.shape[0], both.shape[1] // 2
        result = both.new_empty(rows, width)
        kernels.call("swiglu", both, both, result, rows, width)
        ctx.save_for_backward(both)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, gradient: torch.Tensor) -> torch.Tensor:
        (both,) = ctx.saved_tensors
        result = torch.empty_like(both)
        kernels.call("swiglu_backward", both, gradient.contiguous(), both, result, both.shape[0], both.shape[1] // 2)
        return result


def sums(tensor: torch.Tensor) -> torch.dtype:
    """The dtype in which the kernels keep sums."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


class HeadLoss(Function):
    """The sum of the cross-entropies of hidden states [trained tokens, hidden] under a frozen output layer.

    `times`: how often each of them counts; None: once. The gradient is computed in the same pass, chunk by chunk: no logits
    are kept, and none computed twice.
    """

    @staticmethod
    def forward(
        ctx: Context,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        times: torch.Tensor | None = None,
        by: products.Products = products.TORCH,
    ) -> torch.Tensor:
        total = 0.0
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        # Memory for those of one chunk: the system would hand it out anew for each, page by page.
        room = hidden.new_empty(min(len(targets), policy.HEAD_CHUNK), len(weight))
        for start in range(0, len(targets), policy.HEAD_CHUNK):
            chunk = slice(start, start + policy.HEAD_CHUNK)
            part, wanted = hidden[chunk], targets[chunk].contiguous()
            logits = by.linear(part, weight, bias, room[: len(part)])
            counted = None if times is None else times[chunk].contiguous()
            total += kernels.call("cross_entropy", logits, logits, wanted, counted, *logits.shape)
            if gradient is not None:
                by.back(logits, weight, gradient[chunk])
            # Where they are not in `room`: before the next chunk's are there.
            del logits
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return torch.tensor(total, dtype=sums(hidden))

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, outer: torch.Tensor) -> Gradients:
        (gradient,) = ctx.saved_tensors
        return gradient * outer.to(gradient.dtype), *(None,) * 5
