"""Faster training on a CPU, with the same rows, masks, hyper-parameters and losses ([Hardware] FAST_CPU).

What TRL's plain path leaves lying on a CPU (benchmarks/train_speed.py measures each):
- Matrix products of a few dozen tokens run at half the speed of those of several hundred. The rows of one optimizer step
  are taken together where they are short: 2 rows x 4 batches become 8 x 1. The loss is a mean over all trained tokens
  of the step in either case.
- TRL computes the output layer for whole chunks of 256 tokens, and a second time in the backward pass. Short answers
  train a few dozen: here it is computed for these, once.
- The layers of the usual architectures are computed by hand, without padding, in fewer passes over memory
  (decoder.py), and what rows begin with alike is computed once (shared.py).
The trainer stays TRL's. At the start the loss and the gradients of one micro-batch are compared with the plain path's.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING

from loguru import logger

from training.fast_cpu import policy

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from training.fast_cpu.decoder import Decoder

    Batch = dict[str, torch.Tensor]

# Tokens of a row on which the fast path is compared with the plain one: more than a block of attention.c, and a part of the
# next. The plain path takes seconds for every hundred of them, on a CPU at which MKL is slow.
PROVED = 96
# How far the fast path may be from the plain one, relative: of the loss, and of the gradients taken together. bf16 keeps 8
# bits: on SmolLM2-135M both ways are 6 % off the gradients in float32, in other directions (7 % off each other).
TOLERANCES = {"torch.bfloat16": (2e-2, 0.3)}
# In float32, where only the order of the sums differs.
EXACT = (1e-3, 1e-2)
# With weights, and what is multiplied, in 8 bits (benchmarks/README.md): SmolLM2-135M's gradients are 22 % off.
IN_8_BITS = (3e-2, 0.4)


def without_8_bits() -> str:
    """Why weights cannot be multiplied in 8 bits on this machine; empty where they can."""
    from training.fast_cpu import kernels
    from training.fast_cpu.kernels import Unavailable

    try:
        found = kernels.multiplies_bytes()
    except Unavailable as error:
        return str(error)
    return "" if found else "this CPU's vector units have no products of bytes (AVX2, AVX-VNNI or AVX512-VNNI)"


def built() -> str:
    """Compile the kernels of the hand-written layers, if that is still to be done; why not where that fails, else empty."""
    from training.fast_cpu import kernels
    from training.fast_cpu.kernels import Unavailable

    try:
        kernels.load()
    except Unavailable as error:
        return f"training without the hand-written layers for CPUs: {error}"
    return ""


def layers(
    causal_lm: PreTrainedModel,
    shares: bool = True,
    by: str | None = "",
    in_8_bits: bool = False,
    packs: bool = False,
) -> Decoder | None:
    """The hand-written layers of a model, or None where they do not fit; the log says why.

    `shares`: rows that begin alike are computed once for what they share. `by`: whose products (products.py) a run that was
    begun before had; "": the quickest ones, or those with weights `in_8_bits`. `packs`: there is memory to lay weights out.
    """
    from training.fast_cpu import products
    from training.fast_cpu.decoder import Decoder

    # Where they cannot be, that was said before training.
    if built():
        return None
    try:
        taken = products.chosen(causal_lm.dtype) if by == "" else products.named(by)
        return Decoder(causal_lm, shares, products.in_8_bits(taken) if in_8_bits else taken, packs)
    except ValueError as error:
        logger.info("training without the hand-written layers for CPUs: {}", error)
        return None


def loss(
    causal_lm: PreTrainedModel, inputs: Batch, num_items: torch.Tensor | int | None, decoder: Decoder | None = None
) -> torch.Tensor:
    """Cross-entropy over the trained tokens of a micro-batch: their sum over `num_items`, or their mean where it is None.

    `inputs`: input_ids and labels [rows, tokens], with attention_mask, or with position_ids that begin again at each of
    the rows that are joined; labels of -100 are not trained. `decoder`: what `layers` gave.
    """
    import torch

    if decoder is not None:
        ids, labels, lengths = joined(inputs)
        if decoder.window is None or max(lengths) <= decoder.window:
            with torch.autocast("cpu", enabled=False):  # the dtypes are chosen there, part by part
                total, count = _loss_by_hand(decoder, ids, labels, lengths)
            return total / (count if num_items is None else num_items)
    rest = {name: value for name, value in inputs.items() if name != "labels"}
    hidden: torch.Tensor = causal_lm.get_decoder()(**rest, use_cache=False).last_hidden_state
    labels = inputs["labels"][:, 1:]
    trained = labels != -100
    states, targets = hidden[:, :-1][trained], labels[trained]
    head = causal_lm.get_output_embeddings()
    total = hidden.new_zeros((), dtype=torch.float32)
    for start in range(0, len(targets), policy.LOSS_CHUNK):
        logits = head(states[start : start + policy.LOSS_CHUNK]).float()
        total = total + torch.nn.functional.cross_entropy(
            logits, targets[start : start + policy.LOSS_CHUNK], reduction="sum"
        )
    return total / (len(targets) if num_items is None else num_items)


def _loss_by_hand(
    decoder: Decoder, ids: torch.Tensor, labels: torch.Tensor, lengths: list[int]
) -> tuple[torch.Tensor, int]:
    """The sum over the trained tokens, and how many they are."""
    import torch

    from training.fast_cpu.functions import HeadLoss

    states, computed = decoder.of_rows(ids, lengths)
    # What stands after each token; nothing after the last of a row.
    wanted = labels.roll(-1)
    wanted[[end - 1 for end in itertools.accumulate(lengths)]] = -100
    trained = (wanted != -100).nonzero().squeeze(1)
    places, targets, times = trained, wanted[trained], None
    if computed is not None:
        # Rows may train the same token after the same beginning, too.
        pairs = torch.stack((computed[trained], targets), 1)
        pairs, times = pairs.unique(dim=0, return_counts=True)
        places, targets = pairs[:, 0], pairs[:, 1].contiguous()
    head = decoder.head
    return HeadLoss.apply(picked(states, places), head.weight, head.bias, targets, times, decoder.by), len(trained)


def picked(states: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """The states [places, hidden] at `places`, where one may be there several times."""
    # `states[places]` adds the gradients of such a one up in whatever order its threads come (atomic additions, in
    # float32): a resumed run would not have the losses of an undisturbed one.
    return states.index_select(0, places)


def joined(inputs: Batch) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """The real tokens of a micro-batch and their labels, row after row, [N], and how many tokens each row has."""
    ids, labels, mask = inputs["input_ids"], inputs["labels"], inputs.get("attention_mask")
    if mask is not None:
        real = mask.bool()
        return ids[real], labels[real], [length for length in real.sum(1).tolist() if length]
    positions = inputs.get("position_ids")
    if positions is None:
        starts = list(range(0, ids.numel(), ids.shape[1]))
    else:
        starts = (positions.flatten() == 0).nonzero().flatten().tolist()
    ends = [*starts[1:], ids.numel()]
    return ids.flatten(), labels.flatten(), [end - start for start, end in zip(starts, ends, strict=True)]


def plain_head(causal_lm: PreTrainedModel) -> bool:
    """Whether the logits are nothing but the output layer's: no soft cap, no scale, no expert loss beside them."""
    config = causal_lm.config.get_text_config()
    extras = ("final_logit_softcapping", "logit_scale", "logits_scaling", "output_router_logits")
    return not any(getattr(config, name, None) for name in extras)


def sample(inputs: Batch) -> Batch:
    """Two rows of a micro-batch, PROVED tokens of each, with every token trained: enough to tell two ways apart.

    They are made to begin alike, as other rows of the training may. All of the micro-batch would take a large model's time
    and, the plain way keeping more, its memory.
    """
    few = {name: value[:2, :PROVED].clone() for name, value in inputs.items()}
    _begin_alike(few)
    mask, positions = few.get("attention_mask"), few.get("position_ids")
    left_out = (mask == 0) if mask is not None else (positions == 0) if positions is not None else None
    labels = few["input_ids"] if left_out is None else few["input_ids"].masked_fill(left_out, -100)
    return {**few, "labels": labels}


def _begin_alike(few: Batch) -> None:
    """Give two rows one beginning, of half the shorter one; in place. Of rows that are joined, and of which no two are long
    enough, two equally long ones are made."""
    ids, positions = few["input_ids"], few.get("position_ids")
    if positions is not None and sum(length >= policy.LEAST_SHARED for length in joined(few)[2]) < 2:
        positions.copy_(positions.new_ones(positions.shape).cumsum(1) - 1)
        half = positions.shape[1] // 2
        positions[:, half:] -= half
    mask, (*_, lengths) = few.get("attention_mask"), joined(few)
    if len(lengths) < 2:
        return
    real = (ids == ids if mask is None else mask.bool()).flatten().nonzero().squeeze(1)
    one, other = sorted(real.split(lengths), key=len)[-2:]
    same = min(len(one), max(policy.LEAST_SHARED, len(one) // 2))
    ids.view(-1)[one[:same]] = ids.view(-1)[other[:same]]


def agrees(
    model: torch.nn.Module, plain: Callable[[], torch.Tensor], fast: Callable[[], torch.Tensor], in_8_bits: bool = False
) -> bool:
    """Compare two ways to the loss of one micro-batch: value and gradients. Leaves no gradient behind.

    `plain` and `fast` return a loss; both start from the same random state, so that dropout is the same.
    """
    import torch

    state = torch.get_rng_state()
    measured = []
    for way in (plain, fast):
        model.zero_grad(set_to_none=True)
        torch.set_rng_state(state)
        loss = way()
        loss.backward()
        gradients = [p.grad.detach().float().flatten() for p in model.parameters() if p.grad is not None]
        measured.append((float(loss.detach()), torch.cat(gradients)))
        model.zero_grad(set_to_none=True)
    torch.set_rng_state(state)
    (value, gradient), (fast_value, fast_gradient) = measured
    off = abs(fast_value - value) / max(abs(value), 1e-6)
    turned = float((fast_gradient - gradient).norm() / gradient.norm().clamp(min=1e-12))
    logger.debug("fast path: loss off by {:.2g}, gradients by {:.2g} of the plain path's", off, turned)
    usual = TOLERANCES.get(str(next(model.parameters()).dtype), EXACT)
    most_off, most_turned = IN_8_BITS if in_8_bits else usual
    return off <= most_off and turned <= most_turned
