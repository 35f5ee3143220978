"""The decoder of a Llama-like model by hand, for LoRA training on a CPU: the same numbers, in fewer passes over memory.

What it does otherwise than transformers + PEFT:
- The rows of a micro-batch are joined without padding; attention stays within each row, and skips what lies in the
  future of a whole block of queries.
- Projections that read the same input are one product (q, k, v; gate, up), and so are their adapters. The frozen weights
  are not copied: the model's own become views of the joined ones.
- Frozen weights get no gradient, adapters multiply in the model's dtype from float32 masters.
- What is no matrix product (norms, rotation, softmax, SwiGLU, cross-entropy) is one pass each, forward and backward,
  in kernels.c. Attention in bf16 is all in attention.c on CPUs whose vector units multiply bf16.
Shapes: N tokens of the micro-batch, H heads in KV groups of G, D dimensions a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional

from training import fast_cpu, kernels

CHUNK = 512  # trained tokens whose logits are held at once


@dataclass(frozen=True)
class Group:
    """Projections of the same input as one: `weight` [sum of outputs, inputs] and `bias` are frozen and joined."""

    modules: tuple[Any, ...]
    weight: torch.Tensor
    bias: torch.Tensor | None

    def adapters(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """A [ranks, inputs] and B [outputs, ranks] (scaled) of all of them, in the dtype of the weight."""
        adapted = [(m.lora_A, m.lora_B, m.scaling, m.active_adapters[0]) if _adapted(m) else None for m in self.modules]
        if not any(adapted):
            return None, None
        down = [one[0][one[3]].weight for one in adapted if one]
        up = [
            one[1][one[3]].weight * one[2][one[3]] if one else self.weight.new_zeros(_base(m).out_features, 0)
            for one, m in zip(adapted, self.modules, strict=True)
        ]
        dtype = self.weight.dtype
        return torch.cat(down).to(dtype), torch.block_diag(*[b.to(dtype) for b in up])


@dataclass(frozen=True)
class Layer:
    """One decoder layer."""

    own: Any  # the model's
    qkv: Group
    out: Group
    gate_up: Group
    down: Group


class Decoder:
    """The hidden states of a causal language model with LoRA, for training. Made once; holds the joined weights."""

    def __init__(self, causal_lm: Any) -> None:
        if why := unsupported(causal_lm):
            raise ValueError(why)
        self.model = causal_lm.get_decoder()
        self.head = causal_lm.get_output_embeddings()
        config = causal_lm.config
        self.heads, self.groups = config.num_attention_heads, config.num_key_value_heads
        self.window = getattr(config, "sliding_window", None) if _slides(config) else None
        with torch.no_grad():
            self.layers = [_joined_layer(layer) for layer in self.model.layers]

    def hidden(self, ids: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """The last hidden states [N, hidden] of rows that stand one after the other in `ids` [N]."""
        states = self.model.embed_tokens(ids)
        rows = Rows(lengths)
        angles = self.model.rotary_emb(states, rows.positions[None])
        cosine, sine = (part[0].to(states.dtype).contiguous() for part in angles)
        repeat = self.model.gradient_checkpointing and self.model.training
        pending = torch.zeros_like(states)  # what the layer before has computed and not yet added
        for layer in self.layers:
            arguments = (layer, states, pending, cosine, sine, rows)
            if repeat:
                states, pending = torch.utils.checkpoint.checkpoint(self._layer, *arguments, use_reentrant=False)
            else:
                states, pending = self._layer(*arguments)
        return AddNorm.apply(states, pending, self.model.norm.weight, self.model.norm.variance_epsilon)[1]

    def _layer(self, layer: Layer, states: Any, pending: Any, cosine: Any, sine: Any, rows: Rows) -> Any:
        own, attention = layer.own, layer.own.self_attn
        norm = own.input_layernorm
        states, inner = AddNorm.apply(states, pending, norm.weight, norm.variance_epsilon)
        inner = project(layer.qkv, inner)
        head_norms = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
        inner = Attention.apply(
            inner, cosine, sine, rows, self.heads, self.groups, attention.scaling,
            *(norm.weight if norm is not None else None for norm in head_norms),
            head_norms[0].variance_epsilon if head_norms[0] is not None else 0.0,
        )  # fmt: skip
        norm = own.post_attention_layernorm
        states, inner = AddNorm.apply(states, project(layer.out, inner), norm.weight, norm.variance_epsilon)
        return states, project(layer.down, SwiGLU.apply(project(layer.gate_up, inner)))


def unsupported(causal_lm: Any) -> str:
    """Why this model's layers are not to be computed here; empty when they are."""
    config = causal_lm.config
    if config.model_type not in fast_cpu.FAMILIES or config.hidden_act != "silu":
        return f"no hand-written layers for {config.model_type}"
    if getattr(config, "attention_dropout", 0):
        return "the model has dropout in its attention"
    for layer in causal_lm.get_decoder().layers:
        attention, mlp = layer.self_attn, layer.mlp
        for module in (*_qkv(attention), attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj):
            if why := _unsupported(module):
                return why
    return ""


def _unsupported(module: Any) -> str:
    base = _base(module)
    weight = base.weight
    if (
        not isinstance(base, torch.nn.Linear)
        or str(weight.dtype) not in kernels.SUFFIXES
        or weight.device.type != "cpu"
    ):
        return f"a {type(base).__name__} of {weight.dtype} on {weight.device}"
    if any(parameter.requires_grad for parameter in base.parameters()):
        return "more than adapters is trained"
    if base is module:
        return ""
    if len(module.active_adapters) != 1 or module.merged:
        return "more than one adapter"
    name = module.active_adapters[0]
    if module.use_dora.get(name) or name not in module.lora_A or module.lora_B[name].bias is not None:
        return "an adapter that is not plain LoRA"
    if not isinstance(module.lora_dropout[name], torch.nn.Identity):
        return "LORA_DROPOUT is not 0"
    return ""


def _slides(config: Any) -> bool:
    kinds = getattr(config, "layer_types", None)
    return "sliding_attention" in kinds if kinds else bool(getattr(config, "sliding_window", None))


def _qkv(attention: Any) -> tuple[Any, Any, Any]:
    return attention.q_proj, attention.k_proj, attention.v_proj


def _base(module: Any) -> Any:
    """The frozen projection itself."""
    return module.base_layer if hasattr(module, "lora_A") else module


def _adapted(module: Any) -> bool:
    return hasattr(module, "lora_A") and not module.disable_adapters


def _joined_layer(layer: Any) -> Layer:
    attention, mlp = layer.self_attn, layer.mlp
    groups = (_qkv(attention), (attention.o_proj,), (mlp.gate_proj, mlp.up_proj), (mlp.down_proj,))
    return Layer(layer, *map(_joined, groups))


def _joined(modules: tuple[Any, ...]) -> Group:
    """One weight for several projections, of which theirs become views: no second copy in memory."""
    bases = [_base(module) for module in modules]
    if len(bases) == 1:
        return Group(modules, bases[0].weight.data, None if bases[0].bias is None else bases[0].bias.data)
    weight = torch.cat([base.weight.data for base in bases])
    for base, part in zip(bases, weight.split([base.out_features for base in bases]), strict=True):
        base.weight.data = part
    biases = [base.bias for base in bases]
    joined = None
    if any(bias is not None for bias in biases):
        joined = torch.cat([weight.new_zeros(b.out_features) if b.bias is None else b.bias.data for b in bases])
    return Group(modules, weight, joined)


def project(group: Group, inputs: torch.Tensor) -> torch.Tensor:
    """The projections of `inputs` [N, inputs] side by side, [N, outputs], adapters included."""
    return LoraLinear.apply(inputs, group.weight, group.bias, *group.adapters())


class LoraLinear(Function):
    """x W^T + bias + (x A^T) B^T with a frozen W: gradients for x, A and B alone. A and B may be None."""

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, bias: Any, down: Any, up: Any) -> torch.Tensor:
        result = functional.linear(x, weight, bias)
        if down is None:
            ctx.save_for_backward(weight)
            return result
        inner = x @ down.t()
        ctx.save_for_backward(weight, down, up, x, inner)
        return result.addmm_(inner, up.t())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
        weight, *adapter = ctx.saved_tensors
        for_x = gradient @ weight if ctx.needs_input_grad[0] else None
        if not adapter:
            return for_x, None, None, None, None
        down, up, x, inner = adapter
        for_inner = gradient @ up
        if for_x is not None:
            for_x.addmm_(for_inner, down)
        return for_x, None, None, for_inner.t() @ x, gradient.t() @ inner


class AddNorm(Function):
    """(x + added, RMS norm of that): the residual stream and what the next part reads."""

    @staticmethod
    def forward(ctx: Any, x: Any, added: Any, weight: Any, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
        total, normed = torch.empty_like(x), torch.empty_like(x)
        rows, width = x.shape
        inverse = torch.empty(rows, dtype=_sums(x))
        kernels.call("rms_norm", x, x, added.contiguous(), weight, total, normed, inverse, rows, width, float(eps))
        ctx.save_for_backward(total, weight, inverse)
        return total, normed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, for_total: Any, for_normed: Any) -> tuple[Any, ...]:
        total, weight, inverse = ctx.saved_tensors
        result = torch.empty_like(total)
        gradients = for_normed.contiguous(), for_total.contiguous()
        kernels.call("rms_norm_backward", total, *gradients, total, weight, inverse, result, *total.shape)
        return result, result, None, None


class SwiGLU(Function):
    """silu(gate) * up of gate and up side by side, [N, 2 x width]."""

    @staticmethod
    def forward(ctx: Any, both: torch.Tensor) -> torch.Tensor:
        rows, width = both.shape[0], both.shape[1] // 2
        result = both.new_empty(rows, width)
        kernels.call("swiglu", both, both, result, rows, width)
        ctx.save_for_backward(both)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        (both,) = ctx.saved_tensors
        result = torch.empty_like(both)
        kernels.call("swiglu_backward", both, gradient.contiguous(), both, result, both.shape[0], both.shape[1] // 2)
        return result


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
        ctx: Any, qkv: Any, cosine: Any, sine: Any, rows: Rows, heads: int, groups: int, scale: float,
        query_norm: Any, key_norm: Any, eps: float,
    ) -> torch.Tensor:  # fmt: skip
        split = _Split(qkv.shape, heads, groups, rows)
        parts = qkv.split(split.sizes, dim=1)
        normed = [_head_norm(part, weight, eps) for part, weight in zip(parts[:2], (query_norm, key_norm), strict=True)]
        query = split.to_heads(normed[0].result, 0, cosine, sine)
        key = split.to_heads(normed[1].result, 1, cosine, sine)
        value = split.to_heads(parts[2], 2)
        result = _attention(split, query, key, value, scale)
        norms = (query_norm, key_norm, *normed[0].kept, *normed[1].kept)
        ctx.save_for_backward(query, key, value, cosine, sine, *norms)
        ctx.split, ctx.scale = split, scale
        return split.from_heads(result, 0, qkv.new_empty(split.tokens, split.sizes[0]))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
        query, key, value, cosine, sine, query_norm, key_norm, *kept = ctx.saved_tensors
        split, scale = ctx.split, ctx.scale
        norms = [(w, kept.pop(0), kept.pop(0)) if w is not None else None for w in (query_norm, key_norm)]
        outer = split.to_heads(gradient.contiguous(), 0)
        for_query, for_key, for_value = _attention_backward(split, query, key, value, outer, scale)
        result = torch.empty(split.tokens, split.width, dtype=query.dtype)
        into = result.split(split.sizes, dim=1)
        split.from_heads(for_value, 2, into[2])
        for number, found in enumerate((for_query, for_key)):
            if norms[number] is None:
                split.from_heads(found, number, into[number], cosine, sine)
            else:
                flat = split.from_heads(found, number, torch.empty_like(into[number]), cosine, sine)
                into[number].copy_(_head_norm_backward(flat, *norms[number]).view(flat.shape))
        return result, *(None,) * 9


def _attention(split: _Split, query: Any, key: Any, value: Any, scale: float) -> torch.Tensor:
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
    split: _Split, query: Any, key: Any, value: Any, outer: Any, scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients for `query`, `key` and `value`, from that of the attention, `outer`."""
    for_query, for_key, for_value = map(torch.empty_like, (query, key, value))
    if split.by_vectors(query):
        tensors = (query, key, value, outer, for_query, for_key, for_value)
        kernels.call("attention_backward", query, *tensors, *split.texts(), float(scale))
        return for_query, for_key, for_value
    sums: dict[int, list[torch.Tensor]] = {}  # of rows of several blocks; in float, for bf16 would lose the small
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
            if block.end == block.length:
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
    """Some queries of one row: `count` from position `first` of the row that begins at token `start`."""

    start: int
    first: int
    count: int
    length: int  # tokens of the row

    @property
    def end(self) -> int:
        """Keys that these queries may see."""
        return self.first + self.count

    @property
    def whole(self) -> bool:
        """Whether it is all of its row."""
        return self.count == self.length


class Rows:
    """The rows of a micro-batch that stand one after the other: where each begins, and their blocks of queries."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self.counts = torch.tensor(lengths)  # of each row
        self.firsts = self.counts.cumsum(0) - self.counts
        self.longest = max(lengths)
        self.lengths = self.counts.repeat_interleave(self.counts)  # [N], of each token's row
        self.starts = self.firsts.repeat_interleave(self.counts)
        self.positions = torch.arange(len(self.starts)) - self.starts
        self.blocks, start = [], 0
        for length in lengths:
            self.blocks += [
                _Block(start, at, min(fast_cpu.BLOCK, length - at), length) for at in range(0, length, fast_cpu.BLOCK)
            ]
            start += length


class _Split:
    """Where q, k and v (parts 0, 1, 2) lie in a row of qkv, and the way to rows of [KV, tokens, G, D] and back."""

    def __init__(self, shape: Sequence[int], heads: int, groups: int, rows: Rows) -> None:
        self.tokens, self.width = shape
        self.dim = self.width // (heads + 2 * groups)
        self.groups, self.group, self.rows = groups, heads // groups, rows
        self.sizes = (heads * self.dim, groups * self.dim, groups * self.dim)

    def to_heads(self, part: torch.Tensor, number: int, cosine: Any = None, sine: Any = None) -> torch.Tensor:
        """A part [N, its size], whose rows may lie apart, as a flat tensor of rows."""
        result = part.new_empty(self.tokens * self.sizes[number])
        places = (self.rows.starts, self.rows.lengths)
        kernels.call("to_heads", part, part, part.stride(0), cosine, sine, *places, result, *self._shape(number))
        return result

    def from_heads(self, flat: Any, number: int, into: Any, cosine: Any = None, sine: Any = None) -> torch.Tensor:
        """The way back; fills and gives `into`, whose rows may lie apart."""
        places = (self.rows.starts, self.rows.lengths)
        kernels.call("from_heads", flat, flat, into.stride(0), cosine, sine, *places, into, *self._shape(number))
        return into

    def _shape(self, number: int) -> tuple[int, int, int, int]:
        return self.tokens, self.groups, self.group if number == 0 else 1, self.dim

    def by_vectors(self, like: torch.Tensor) -> bool:
        """Whether attention.c is taken; it gives each head of each row to one thread."""
        enough = len(self.rows.counts) * self.groups >= torch.get_num_threads()
        return like.dtype == torch.bfloat16 and self.dim % 16 == 0 and enough and kernels.attends()

    def texts(self) -> tuple[Any, ...]:
        """What attention.c is told of the rows: room to work in, where each begins, how long each is, and the shape."""
        rows = self.rows
        room = kernels.scratch(rows.longest, self.dim)
        return room, rows.firsts, rows.counts, len(rows.counts), rows.longest, self.groups, self.group, self.dim

    def queries(self, flat: torch.Tensor, block: _Block) -> torch.Tensor:
        """[KV, count x G, D] of a block."""
        row = self._row(flat, block, self.group)
        return row[:, block.first * self.group : block.end * self.group]

    def keys(self, flat: torch.Tensor, block: _Block) -> torch.Tensor:
        """[KV, end, D]: the keys or values that a block may see."""
        return self._row(flat, block, 1)[:, : block.end]

    def zeros(self, like: torch.Tensor, block: _Block) -> torch.Tensor:
        """[KV, tokens of the row, D] in the dtype of sums."""
        return torch.zeros(self.groups, block.length, self.dim, dtype=_sums(like))

    def _row(self, flat: torch.Tensor, block: _Block, group: int) -> torch.Tensor:
        size = self.groups * group * self.dim  # of a token
        row = flat[block.start * size : (block.start + block.length) * size]
        return row.view(self.groups, block.length * group, self.dim)

    def scores(self, block: _Block) -> tuple[int, int, int, int, int]:
        """What the softmax must know of a block's scores: rows, columns, rows a head, group, first position."""
        a_head = block.count * self.group
        return self.groups * a_head, block.end, a_head, self.group, block.first


def _probabilities(split: _Split, query: Any, key: Any, block: _Block, scale: float) -> torch.Tensor:
    """The attention of a block's queries to the keys before them, [KV, count x G, end]."""
    scores = torch.bmm(split.queries(query, block), split.keys(key, block).transpose(1, 2))
    kernels.call("softmax", query, scores, *split.scores(block), float(scale))
    return scores


@dataclass(frozen=True)
class _Normed:
    """A part after its norm, and what the backward pass needs of it."""

    result: torch.Tensor
    kept: tuple[torch.Tensor, ...]


def _head_norm(part: torch.Tensor, weight: torch.Tensor | None, eps: float) -> _Normed:
    if weight is None:
        return _Normed(part, ())
    flat = part.reshape(-1, weight.shape[0])  # a copy: the rows of qkv lie apart
    result, inverse = torch.empty_like(flat), torch.empty(len(flat), dtype=_sums(flat))
    kernels.call("rms_norm", flat, flat, None, weight, None, result, inverse, *flat.shape, float(eps))
    return _Normed(result.view(part.shape), (flat, inverse))


def _head_norm_backward(gradient: Any, weight: Any, flat: Any, inverse: Any) -> torch.Tensor:
    result = torch.empty_like(flat)
    kernels.call("rms_norm_backward", flat, gradient, None, flat, weight, inverse, result, *flat.shape)
    return result


def _sums(tensor: torch.Tensor) -> torch.dtype:
    """The dtype in which the kernels keep sums."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


class HeadLoss(Function):
    """The sum of the cross-entropies of hidden states [trained tokens, hidden] under a frozen output layer.

    The gradient is computed in the same pass, chunk by chunk: no logits are kept, and none computed twice.
    """

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: Any, bias: Any, targets: torch.Tensor) -> torch.Tensor:
        total = 0.0
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for start in range(0, len(targets), CHUNK):
            part, wanted = hidden[start : start + CHUNK], targets[start : start + CHUNK].contiguous()
            logits = functional.linear(part, weight, bias)
            total += kernels.call("cross_entropy", logits, logits, wanted, *logits.shape)
            if gradient is not None:
                torch.mm(logits, weight, out=gradient[start : start + CHUNK])
        ctx.save_for_backward(gradient)
        return torch.tensor(total, dtype=_sums(hidden))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: torch.Tensor) -> tuple[Any, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * outer.to(gradient.dtype), None, None, None
