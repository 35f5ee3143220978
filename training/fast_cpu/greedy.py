"""Greedy answers by the hand-written layers (decoder.py), for the evaluation that comes after a training.

What generate() leaves lying on a CPU: a token of a small model is mostly the start of some thousand little operations,
PEFT's among them. Here the projections are joined as in training, the adapters are cast once for all tokens, and base and
tuned model answer in one pass: weights are read once for both, and the adapters act on the rows of the tuned one alone.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch
from torch.nn.functional import scaled_dot_product_attention

from training.fast_cpu import few_rows, policy
from training.fast_cpu.attention import Rows
from training.fast_cpu.inference import logits
from training.fast_cpu.model_parts import base_of
from training.llama import circles

if TYPE_CHECKING:
    from training.fast_cpu.decoder import Decoder, Group, Layer

    Adapter = tuple[torch.Tensor | None, torch.Tensor | None]

    class Attend(Protocol):
        """What a layer, of this number, attends to, of q, k and v side by side."""

        def __call__(
            self, number: int, qkv: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor
        ) -> torch.Tensor: ...


# Bytes of keys and values that are kept at once, and prompt tokens that are read together.
KEPT, READ = 1 << 29, 1024
# How far, in nats, the model itself may have a token of an answer behind its first choice, where rounding decides. bf16 keeps
# 8 bits: of two logits around 40 it tells no less than a quarter apart (0.19 was seen in answers of SmolLM2-135M).
NEAR, NEAR_IN_BF16 = 0.1, 1.0


class Unsound(Exception):
    """The answers are not the model's; its text says how far off they are."""


def answers(
    decoder: Decoder, prompts: Sequence[Sequence[int]], most: Sequence[int], end_ids: Sequence[int], base: bool
) -> tuple[list[list[int]], list[list[int]]]:
    """The tokens of greedy answers: of the base model (none unless `base`), and of the tuned one.

    Each up to and with its end token, or to where it goes round in circles, at most `most` tokens. Raises Unsound where the
    model, given a first answer as a whole, would have chosen other tokens.
    """
    found: tuple[list[list[int]], list[list[int]]] = [], []
    with torch.no_grad():
        for group in _groups(decoder, prompts, most, 2 if base else 1):
            asked, limits = [list(prompts[number]) for number in group], [most[number] for number in group]
            of_group = _together(decoder, asked, limits, end_ids, base)
            for kept, new in zip(found, of_group, strict=True):
                kept.extend(new)
    return found


def _groups(decoder: Decoder, prompts: Sequence[Sequence[int]], most: Sequence[int], times: int) -> Iterator[list[int]]:
    """Numbers of neighbouring prompts that are answered together: as many as KEPT bytes hold, each `times`."""
    token = 2 * len(decoder.layers) * decoder.groups * _width(decoder) * decoder.head.weight.element_size() * times
    sizes = [len(ids) + limit for ids, limit in zip(prompts, most, strict=True)]
    group: list[int] = []
    for number, size in enumerate(sizes):
        if group and (len(group) + 1) * max(size, *(sizes[one] for one in group)) * token > KEPT:
            yield group
            group = []
        group.append(number)
    if group:
        yield group


def _together(
    decoder: Decoder, prompts: list[list[int]], most: list[int], end_ids: Sequence[int], base: bool
) -> tuple[list[list[int]], list[list[int]]]:
    untuned = len(prompts) if base else 0
    everyone, limits = prompts * (1 + base), most * (1 + base)
    growing = [_Answer(limit, len(ids) - 1) for ids, limit in zip(everyone, limits, strict=True)]
    passes = _Passes(decoder)
    _grow(passes, everyone, growing, set(end_ids).__contains__, untuned)
    for first in range(0, len(everyone), len(prompts)):
        passes.require_sound(everyone[first], growing[first].ids, tuned=first >= untuned)
    found = [one.ids for one in growing]
    return found[:untuned], found[untuned:]


@dataclass
class _Answer:
    """One answer as it grows. `most`: tokens that it may take; `at`: the position of its last token."""

    most: int
    at: int
    ids: list[int] = field(default_factory=list)

    def take(self, token: int, ends: Callable[[int], bool]) -> bool:
        """Add a token. Whether the answer goes on after it."""
        self.ids.append(token)
        self.at += 1
        return not (ends(token) or len(self.ids) >= self.most or circles.goes_round(self.ids))


def _grow(
    passes: _Passes,
    prompts: Sequence[Sequence[int]],
    growing: Sequence[_Answer],
    ends: Callable[[int], bool],
    untuned: int,
) -> None:
    """Let the answers grow to their ends, a token of each in a pass. `untuned`: how many of the first are the base's."""
    kept = _Kept(passes.decoder, len(prompts), max(one.at + 1 + one.most for one in growing))
    # Of the rows that are computed those that have come to their end are left out once they are half of them.
    rows = list(range(len(prompts)))
    first = passes.read(prompts, kept, untuned)
    going = {number for number in rows if growing[number].take(first[number], ends)}
    while going:
        if 2 * len(going) <= len(rows):
            kept.keep([at for at, number in enumerate(rows) if number in going])
            rows = [number for number in rows if number in going]
        last = [growing[number].ids[-1] for number in rows]
        places = [growing[number].at for number in rows]
        chosen = passes.step(last, places, kept, sum(number < untuned for number in rows))
        taken = zip(rows, chosen, strict=True)
        going = {number for number, token in taken if number in going and growing[number].take(token, ends)}


class _Kept:
    """Keys (turned) and values of the tokens that were read: of each layer [rows, KV, tokens, D]."""

    def __init__(self, decoder: Decoder, rows: int, tokens: int) -> None:
        shape = (rows, decoder.groups, tokens, _width(decoder))
        like = decoder.head.weight
        self.keys, self.values = ([like.new_zeros(shape) for _ in decoder.layers] for _ in range(2))

    def keep(self, rows: Sequence[int]) -> None:
        """Leave all other rows out."""
        chosen = torch.tensor(rows)
        for parts in (self.keys, self.values):
            for number, part in enumerate(parts):
                parts[number] = part[chosen]


class _Passes:
    """Passes through the layers, in which the first rows are the base model's: no adapter acts on them."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self.adapters: dict[int, Adapter] = {
            id(group): group.adapters() for layer in decoder.layers for group in layer.groups
        }

    def read(self, prompts: Sequence[Sequence[int]], kept: _Kept, untuned: int) -> list[int]:
        """Read prompts into `kept`; the token after each."""
        chosen: list[int] = []
        group: list[int] = []
        for number in range(len(prompts)):
            group.append(number)
            following = len(prompts[number + 1]) if number + 1 < len(prompts) else READ
            if sum(len(prompts[one]) for one in group) + following > READ:
                chosen += self._read([prompts[one] for one in group], kept, group[0], untuned - group[0])
                group = []
        return chosen

    def _read(self, prompts: Sequence[Sequence[int]], kept: _Kept, row: int, untuned: int) -> list[int]:
        """Neighbouring prompts, whose keys and values go to `row` and those after it."""
        lengths = [len(ids) for ids in prompts]
        ends = list(itertools.accumulate(lengths))
        rows, ids = Rows(lengths), torch.tensor([token for ids in prompts for token in ids])

        def attend(number: int, qkv: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
            layer = self.decoder.layers[number]
            _, keys, values = self._heads(layer, qkv, cosine, sine)
            for at, (end, length) in enumerate(zip(ends, lengths, strict=True)):
                own = slice(end - length, end)
                kept.keys[number][row + at, :, :length] = keys[own].transpose(0, 1)
                kept.values[number][row + at, :, :length] = values[own].transpose(0, 1)
            return self.decoder.attention(layer, qkv, cosine, sine, rows)

        states = self._states(ids, rows.positions, sum(lengths[: max(0, untuned)]), attend)
        return self._chosen(states[torch.tensor(ends) - 1])

    def step(self, tokens: Sequence[int], places: Sequence[int], kept: _Kept, untuned: int) -> list[int]:
        """Read a token of each row, at its place in that; the token after it."""
        at, rows, heads = torch.tensor(places), torch.arange(len(tokens)), self.decoder.heads
        until, like = max(places) + 1, self.decoder.head.weight
        later = torch.arange(until)[None, None, None] > at[:, None, None, None]
        mask = like.new_zeros(later.shape).masked_fill_(later, -torch.inf)

        def attend(number: int, qkv: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
            layer = self.decoder.layers[number]
            query, key, value = self._heads(layer, qkv, cosine, sine)
            keys, values = kept.keys[number], kept.values[number]
            keys[rows, :, at], values[rows, :, at] = key, value
            # The queries of a group stand at one place, so they go as one head's queries, and no key is copied for them.
            asked = query.view(len(tokens), self.decoder.groups, heads // self.decoder.groups, -1)
            scale = layer.own.self_attn.scaling
            seen = scaled_dot_product_attention(asked, keys[:, :, :until], values[:, :, :until], mask, scale=scale)
            return seen.reshape(len(tokens), -1)

        return self._chosen(self._states(torch.tensor(tokens), at, untuned, attend))

    def require_sound(self, prompt: Sequence[int], answer: Sequence[int], tuned: bool) -> None:
        """Unsound unless an answer's tokens are the model's first choices when it reads all of them, or near them."""
        ids = torch.tensor([*prompt, *answer[:-1]])
        rows = Rows([len(ids)])

        def attend(number: int, qkv: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
            return self.decoder.attention(self.decoder.layers[number], qkv, cosine, sine, rows)

        states = self._states(ids, rows.positions, 0 if tuned else len(ids), attend)[len(prompt) - 1 :]
        chosen, near = torch.tensor(answer), NEAR_IN_BF16 if states.dtype == torch.bfloat16 else NEAR
        for part, taken in zip(states.split(policy.HEAD_CHUNK), chosen.split(policy.HEAD_CHUNK), strict=True):
            found = logits(self.decoder, part)
            behind = found.amax(-1) - found.gather(1, taken[:, None])[:, 0]
            if not bool((behind <= near).all()):  # NaN is not
                raise Unsound(f"a token of an answer is {float(behind.max()):.3g} nats behind the model's first choice")

    def _states(self, ids: torch.Tensor, positions: torch.Tensor, untuned: int, attend: Attend) -> torch.Tensor:
        """The last hidden states [N, hidden] of tokens [N], of which the first `untuned` are the base model's."""
        states, cosine, sine = self.decoder.begun(ids, positions)
        projected, pending = functools.partial(self._projected, untuned=untuned), torch.zeros_like(states)
        for number, layer in enumerate(self.decoder.layers):
            attended = functools.partial(attend, number, cosine=cosine, sine=sine)
            states, pending = layer.passed(states, pending, projected, attended)
        return self.decoder.ended(states, pending)

    def _projected(self, group: Group, inputs: torch.Tensor, untuned: int) -> torch.Tensor:
        result = few_rows.linear(inputs, group.weight, group.bias, self.decoder.by)
        down, up = self.adapters[id(group)]
        if down is not None and up is not None and untuned < len(inputs):
            result[untuned:].addmm_(inputs[untuned:] @ down.t(), up.t())
        return result

    def _heads(
        self, layer: Layer, qkv: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries [N, H, D], keys and values [N, KV, D], queries and keys turned."""
        heads, groups = self.decoder.heads, self.decoder.groups
        query, key, value = qkv.view(len(qkv), heads + 2 * groups, -1).split((heads, groups, groups), dim=1)
        # Of some families.
        norms = [getattr(layer.own.self_attn, name, None) for name in ("q_norm", "k_norm")]
        query, key = (part if norm is None else norm(part) for part, norm in zip((query, key), norms, strict=True))
        return _turned(query, cosine, sine), _turned(key, cosine, sine), value

    def _chosen(self, states: torch.Tensor) -> list[int]:
        found: list[int] = logits(self.decoder, states).argmax(-1).tolist()
        return found


def _turned(heads: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Heads [N, heads, D] by the angles of their places [N, D]."""
    one, other = heads.chunk(2, dim=-1)
    return heads * cosine[:, None] + torch.cat((-other, one), dim=-1) * sine[:, None]


def _width(decoder: Decoder) -> int:
    """Dimensions of a head."""
    outputs = sum(base_of(module).out_features for module in decoder.layers[0].qkv.modules)
    return int(outputs // (decoder.heads + 2 * decoder.groups))
