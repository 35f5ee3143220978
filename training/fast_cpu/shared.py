"""Rows of a micro-batch that begin alike are computed once for what they share: a system text, the turns of one talk.

What a token's states are depends on the tokens before it alone. So the rows become a tree of pieces: each piece holds
tokens that some rows have in common, and follows the piece of what more of them share. Every part of a layer but the
attention works on tokens one by one, and sees each piece once. In the attention a piece's queries see the keys of all
before it. The losses are those of all rows, and the gradients, which are sums over rows, meet in the shared tokens:
both are equal to the plain way's but for the order of the sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from training.fast_cpu import policy
from training.fast_cpu.attention import Rows


@dataclass(frozen=True)
class Shared:
    """The pieces of rows: `ids` [U] and `rows` are what is computed, one piece after the other.

    `places` [N]: for each token of the rows, which of the computed ones it is.
    """

    ids: torch.Tensor
    rows: Rows
    places: torch.Tensor


class _Piece(NamedTuple):
    """Tokens `start` to `end` of the rows `members`, which are equal up to `end`; `parent`: the piece before it."""

    members: list[int]
    start: int
    end: int
    parent: int | None


def found(ids: torch.Tensor, lengths: Sequence[int]) -> Shared | None:
    """What rows that stand one after the other in `ids` [N] share; None where it would not pay."""
    if len(lengths) < 2:
        return None
    rows = [row.tolist() for row in ids.split(list(lengths))]
    pieces = _pieces(rows)
    computed = sum(piece.end - piece.start for piece in pieces)
    if computed > (1 - policy.LEAST_SAVED) * len(ids):
        return None
    return _arranged(ids, lengths, pieces)


def _pieces(rows: Sequence[list[int]]) -> list[_Piece]:
    """The tree: every piece stands after its parent, and no two that have more than a few tokens in common are apart."""
    # Rows that begin alike are neighbours in this order.
    order = sorted(range(len(rows)), key=lambda row: rows[row])
    common = [_common(rows[one], rows[other]) for one, other in zip(order, order[1:], strict=False)]
    pieces: list[_Piece] = []
    # Neighbours order[first : last], equal up to `start`, the end of the piece `parent`.
    waiting: list[tuple[int, int, int, int | None]] = [(0, len(order), 0, None)]
    while waiting:
        first, last, start, parent = waiting.pop()
        begin = first
        for at in range(first + 1, last + 1):
            if at < last and common[at - 1] >= start + policy.LEAST_SHARED:
                continue
            members, own = order[begin:at], parent
            end = min(common[begin : at - 1], default=len(rows[members[0]]))
            if end > start:
                own = len(pieces)
                pieces.append(_Piece(members, start, end, parent))
            if len(members) > 1 and end > start:
                waiting.append((begin, at, end, own))
            begin = at
    return pieces


def _common(one: list[int], other: list[int]) -> int:
    """How many tokens two rows begin with alike."""
    most = min(len(one), len(other))
    if one[:most] == other[:most]:
        return most
    return next(at for at in range(most) if one[at] != other[at])


def _arranged(ids: torch.Tensor, lengths: Sequence[int], pieces: Sequence[_Piece]) -> Shared:
    firsts = torch.tensor([0, *lengths]).cumsum(0).tolist()
    places = torch.empty(len(ids), dtype=torch.long)
    chosen, sources, at = [], [], 0
    # Of each piece, the computed tokens up to its end.
    paths: list[torch.Tensor] = []
    for piece in pieces:
        size = piece.end - piece.start
        own = torch.arange(at, at + size)
        for row in piece.members:
            places[firsts[row] + piece.start : firsts[row] + piece.end] = own
        chosen.append(ids[firsts[piece.members[0]] + piece.start :][:size])
        paths.append(own if piece.parent is None else torch.cat([paths[piece.parent], own]))
        sources.append(paths[-1])
        at += size
    rows = Rows([p.end - p.start for p in pieces], [p.start for p in pieces], torch.cat(sources))
    return Shared(torch.cat(chosen), rows, places)
