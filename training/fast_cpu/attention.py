"""Attention on packed rows with the backward pass written by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from training.fast_cpu import kernels, policy
from training.fast_cpu.functions import Gradients, sums

if TYPE_CHECKING:
    from training.fast_cpu import functions

    class Context(functions.Context):
        """What is kept besides tensors."""

        split: _Split
        scale: float
        normed: tuple[bool, bool]


class Attention(Function):
    """Causal attention within each row, from q, k and v side by side [N, (H + 2 KV) D] to [N, H D].

    Queries and keys are normed a head where `query_norm` and `key_norm` [D] are given (Qwen3), then turned by `cosine` and
    `sine` [N, D]. Inside, every row is [KV, tokens, G, D], one row after the other in one flat tensor, so that the queries
    of a group meet their keys in one product of dense matrices. The probabilities are computed again in the backward pass,
    one product more of seven: kept, they would be a quarter to half of all that is kept, and they grow with the square of
    the length.
    """

    @staticmethod
    def forward(
        ctx: Context, qkv: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor, rows: Rows, heads: int, groups: int,
        scale: float, query_norm: torch.Tensor | None, key_norm: torch.Tensor | None, eps: float,
    ) -> torch.Tensor:  # fmt: skip
        split = _Split(qkv.shape, heads, groups, rows)
        parts = qkv.split(split.sizes, dim=1)
        normed = [_head_norm(part, weight, eps) for part, weight in zip(parts[:2], (query_norm, key_norm), strict=True)]
        query = split.to_heads(normed[0].result, 0, cosine, sine)
        key = split.to_heads(normed[1].result, 1, cosine, sine)
        value = split.to_heads(parts[2], 2)
        result = _attention(split, query, key, value, scale)
        ctx.save_for_backward(query, key, value, cosine, sine, *normed[0].kept, *normed[1].kept)
        ctx.split, ctx.scale, ctx.normed = split, scale, (bool(normed[0].kept), bool(normed[1].kept))
        return split.from_heads(result, 0, qkv.new_empty(split.tokens, split.sizes[0]))

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, gradient: torch.Tensor) -> Gradients:
        query, key, value, cosine, sine, *kept = ctx.saved_tensors
        split, scale = ctx.split, ctx.scale
        outer = split.to_heads(gradient.contiguous(), 0)
        for_query, for_key, for_value = _attention_backward(split, query, key, value, outer, scale)
        result = torch.empty(split.tokens, split.width, dtype=query.dtype)
        into = result.split(split.sizes, dim=1)
        split.from_heads(for_value, 2, into[2])
        for number, turned in enumerate((for_query, for_key)):
            if not ctx.normed[number]:
                split.from_heads(turned, number, into[number], cosine, sine)
                continue
            flat = split.from_heads(turned, number, torch.empty_like(into[number]), cosine, sine)
            weight, part, inverse, *kept = kept
            into[number].copy_(_head_norm_backward(flat, weight, part, inverse).view(flat.shape))
        return result, *(None,) * 9


def _attention(
    split: _Split, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
) -> torch.Tensor:
    """The attention of rows of heads, in the form of `query`."""
    result = torch.empty_like(query)
    if split.by_vectors(query):
        kernels.call("attention", query, query, key, value, result, *split.texts(), float(scale))
        return result
    for block in split.rows.blocks:
        probabilities = _probabilities(split, query, key, block, scale)
        _product(probabilities, split.keys(value, block), split.queries(result, block))
    return result


def _attention_backward(
    split: _Split, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, outer: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients for `query`, `key` and `value`, from that of the attention, `outer`."""
    for_query, for_key, for_value = map(torch.empty_like, (query, key, value))
    if split.by_vectors(query):
        tensors = (query, key, value, outer, for_query, for_key, for_value)
        kernels.call("attention_backward", query, *tensors, *split.texts(), float(scale))
        return for_query, for_key, for_value
    # Of rows of several blocks; in float, for bf16 would lose the small.
    sums: dict[int, list[torch.Tensor]] = {}
    for block in split.rows.blocks:
        probabilities = _probabilities(split, query, key, block, scale)
        incoming, asked = split.queries(outer, block), split.queries(query, block)
        for_scores = torch.bmm(incoming, split.keys(value, block).transpose(1, 2))
        kernels.call("softmax_backward", query, for_scores, probabilities, *split.scores(block), float(scale))
        _product(for_scores, split.keys(key, block), split.queries(for_query, block))
        targets = [split.keys(for_value, block), split.keys(for_key, block)]
        for number, (left, right) in enumerate(((probabilities, incoming), (for_scores, asked))):
            if block.whole:
                _product(left.transpose(1, 2), right, targets[number])
                continue
            row = sums.setdefault(block.start, [split.zeros(key, block) for _ in targets])[number]
            row[:, : block.end] += torch.bmm(left.transpose(1, 2), right)
            if block.end == block.keys:
                targets[number].copy_(row)
    return for_query, for_key, for_value


def _product(left: torch.Tensor, right: torch.Tensor, into: torch.Tensor) -> None:
    """A batch of matrix products into a view; written there directly where it is dense."""
    if into.is_contiguous():
        torch.bmm(left, right, out=into)
    else:
        into.copy_(torch.bmm(left, right))


@dataclass(frozen=True)
class _Block:
    """Some queries of one row: `count` from its own token `first` on, of the row that begins at token `start`."""

    start: int
    first: int
    count: int
    length: int  # tokens of the row
    before: int  # keys that all of its tokens see
    key_start: int

    @property
    def end(self) -> int:
        """Keys that these queries may see."""
        return self.before + self.first + self.count

    @property
    def keys(self) -> int:
        """Keys that the row's last token sees."""
        return self.before + self.length

    @property
    def whole(self) -> bool:
        """Whether it is all of its row."""
        return self.count == self.length


class Rows:
    """The rows of a micro-batch that stand one after the other: where each begins, and their blocks of queries.

    A row may go on where others have ended (shared.py): each of its tokens then sees the keys of the `befores` tokens
    before it, too. `sources`: of all keys, row after row, the tokens that they are of; None where each row has its own.
    """

    def __init__(
        self, lengths: Sequence[int], befores: Sequence[int] | None = None, sources: torch.Tensor | None = None
    ) -> None:
        befores = befores or [0] * len(lengths)
        self.counts, self.befores = torch.tensor(lengths), torch.tensor(befores)  # of each row
        self.firsts = self.counts.cumsum(0) - self.counts
        keys = self.counts + self.befores
        self.key_firsts = keys.cumsum(0) - keys
        self.longest = int(keys.max())
        self.queries = Places(self.firsts, self.counts)
        self.keys = Places(self.key_firsts, keys, sources) if sources is not None else self.queries
        self.positions = torch.arange(int(self.counts.sum())) - (self.firsts - self.befores).repeat_interleave(
            self.counts
        )
        self.blocks: list[_Block] = []
        start = key_start = 0
        for length, before in zip(lengths, befores, strict=True):
            self.blocks += [
                _Block(start, at, min(policy.BLOCK, length - at), length, before, key_start)
                for at in range(0, length, policy.BLOCK)
            ]
            start, key_start = start + length, key_start + before + length


class Places:
    """Where the vectors of rows lie: of each, the row's first one and how many that has; with `sources` also whose they are."""

    def __init__(self, firsts: torch.Tensor, counts: torch.Tensor, sources: torch.Tensor | None = None) -> None:
        self.starts, self.lengths = firsts.repeat_interleave(counts), counts.repeat_interleave(counts)
        self.sources = self.copies = self.begins = None
        if sources is not None:
            # Of each token its copies, those of the first token first.
            self.sources, self.copies = sources, sources.argsort(stable=True)
            self.begins = torch.nn.functional.pad(torch.bincount(sources).cumsum(0), (1, 0))

    def __len__(self) -> int:
        return len(self.starts)


class _Split:
    """Where q, k and v (parts 0, 1, 2) lie in a row of qkv, and the way to rows of [KV, tokens, G, D] and back."""

    def __init__(self, shape: Sequence[int], heads: int, groups: int, rows: Rows) -> None:
        self.tokens, self.width = shape
        self.dim = self.width // (heads + 2 * groups)
        self.groups, self.group, self.rows = groups, heads // groups, rows
        self.sizes = (heads * self.dim, groups * self.dim, groups * self.dim)

    def to_heads(
        self, part: torch.Tensor, number: int, cosine: torch.Tensor | None = None, sine: torch.Tensor | None = None
    ) -> torch.Tensor:
        """A part [N, its size], whose rows may lie apart, as a flat tensor of rows."""
        places = self._places(number)
        result = part.new_empty(len(places) * self.sizes[number])
        where = (places.sources, places.starts, places.lengths)
        shape = (len(places), self.groups, self._group(number), self.dim)
        kernels.call("to_heads", part, part, part.stride(0), cosine, sine, *where, result, *shape)
        return result

    def from_heads(
        self,
        flat: torch.Tensor,
        number: int,
        into: torch.Tensor,
        cosine: torch.Tensor | None = None,
        sine: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The way back; fills and gives `into`, whose rows may lie apart. Of a token with copies their sum."""
        places = self._places(number)
        turned, where, heads = (cosine, sine), (places.starts, places.lengths), (self.tokens, self.groups)
        if places.begins is not None:
            copies = (places.begins, places.copies)
            kernels.call("sum_heads", flat, flat, into.stride(0), *turned, *copies, *where, into, *heads, self.dim)
        else:
            shape = (*heads, self._group(number), self.dim)
            kernels.call("from_heads", flat, flat, into.stride(0), *turned, *where, into, *shape)
        return into

    def _places(self, number: int) -> Places:
        return self.rows.queries if number == 0 else self.rows.keys

    def _group(self, number: int) -> int:
        return self.group if number == 0 else 1

    def by_vectors(self, like: torch.Tensor) -> bool:
        """Whether attention.c is taken; it gives each head of each row to one thread."""
        enough = len(self.rows.counts) * self.groups >= torch.get_num_threads()
        return self.dim % 16 == 0 and enough and kernels.attends(like.dtype)

    def texts(self) -> tuple[torch.Tensor | int, ...]:
        """What attention.c is told of the rows: room to work in, where each begins, how long each is, and the shape."""
        rows = self.rows
        room = kernels.scratch(rows.longest, self.dim)
        where = (rows.firsts, rows.counts, rows.key_firsts, rows.befores)
        return room, *where, len(rows.counts), rows.longest, self.groups, self.group, self.dim

    def queries(self, flat: torch.Tensor, block: _Block) -> torch.Tensor:
        """[KV, count x G, D] of a block."""
        row = self._row(flat, block.start, block.length, self.group)
        return row[:, block.first * self.group : (block.first + block.count) * self.group]

    def keys(self, flat: torch.Tensor, block: _Block) -> torch.Tensor:
        """[KV, end, D]: the keys or values that a block may see."""
        return self._row(flat, block.key_start, block.keys, 1)[:, : block.end]

    def zeros(self, like: torch.Tensor, block: _Block) -> torch.Tensor:
        """[KV, keys of the row, D] in the dtype of sums."""
        return torch.zeros(self.groups, block.keys, self.dim, dtype=sums(like))

    def _row(self, flat: torch.Tensor, start: int, length: int, group: int) -> torch.Tensor:
        size = self.groups * group * self.dim  # of a token
        row = flat[start * size : (start + length) * size]
        return row.view(self.groups, length * group, self.dim)

    def scores(self, block: _Block) -> tuple[int, int, int, int, int]:
        """What the softmax must know of a block's scores: rows, columns, rows a head, group, first position."""
        a_head = block.count * self.group
        return self.groups * a_head, block.end, a_head, self.group, block.before + block.first


def _probabilities(split: _Split, query: torch.Tensor, key: torch.Tensor, block: _Block, scale: float) -> torch.Tensor:
    """The attention of a block's queries to the keys before them, [KV, count x G, end]."""
    scores = torch.bmm(split.queries(query, block), split.keys(key, block).transpose(1, 2))
    kernels.call("softmax", query, scores, *split.scores(block), float(scale))
    return scores


@dataclass(frozen=True)
class _Normed:
    """A part after its norm, and what the backward pass needs of it."""

    result: torch.Tensor
    kept: tuple[torch.Tensor, ...]  # weight, what was normed, and the inverses of its lengths


def _head_norm(part: torch.Tensor, weight: torch.Tensor | None, eps: float) -> _Normed:
    if weight is None:
        return _Normed(part, ())
    flat = part.reshape(-1, weight.shape[0])  # a copy: the rows of qkv lie apart
    result, inverse = torch.empty_like(flat), torch.empty(len(flat), dtype=sums(flat))
    kernels.call("rms_norm", flat, flat, None, weight, None, result, inverse, *flat.shape, float(eps))
    return _Normed(result.view(part.shape), (weight, flat, inverse))


def _head_norm_backward(
    gradient: torch.Tensor, weight: torch.Tensor, flat: torch.Tensor, inverse: torch.Tensor
) -> torch.Tensor:
    result = torch.empty_like(flat)
    kernels.call("rms_norm_backward", flat, gradient, None, flat, weight, inverse, result, *flat.shape)
    return result
