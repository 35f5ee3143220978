"""Losses by the hand-written layers (decoder.py), row by row, for the evaluation that comes after a training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import cross_entropy

from training.fast_cpu import few_rows, policy

if TYPE_CHECKING:
    from training.fast_cpu.decoder import Decoder

IGNORED = -100


def losses(decoder: Decoder, rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[float]:
    """For each row (ids, labels) the mean cross-entropy in nats over its trained tokens, of which it has one at least.

    Rows are computed together; the caller sees to their number. What they begin with alike is computed once.
    """
    lengths = [len(ids) for ids, _ in rows]
    ids = torch.tensor([token for row, _ in rows for token in row])
    each, start = [], 0
    with torch.no_grad():
        states, computed = decoder.of_rows(ids, lengths)
        for length, (_, labels) in zip(lengths, rows, strict=True):
            wanted = [at for at in range(1, length) if labels[at] != IGNORED]
            places = torch.tensor(wanted) - 1 + start
            targets = torch.tensor([labels[at] for at in wanted])
            each.append(_loss(decoder, states[places if computed is None else computed[places]], targets))
            start += length
    return each


def _loss(decoder: Decoder, states: torch.Tensor, targets: torch.Tensor) -> float:
    total = 0.0
    for part, wanted in zip(states.split(policy.HEAD_CHUNK), targets.split(policy.HEAD_CHUNK), strict=True):
        total += float(cross_entropy(logits(decoder, part), wanted, reduction="sum"))
    return total / len(targets)


def logits(decoder: Decoder, states: torch.Tensor) -> torch.Tensor:
    """What the output layer makes of states [tokens, hidden]: [tokens, vocabulary], in float32 at least."""
    found = few_rows.linear(states, decoder.head.weight, decoder.head.bias, decoder.by)
    return found if found.dtype == torch.float64 else found.float()
