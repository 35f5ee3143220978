"""The decoder of a Llama-like model by hand, for LoRA training on a CPU: the same numbers, in fewer passes over memory.

What it does otherwise than transformers + PEFT:
- The rows of a micro-batch are joined without padding; attention stays within each row, and skips what lies in the
  future of a whole block of queries.
- Projections that read the same input are one product (q, k, v; gate, up), and so are their adapters. The frozen weights
  are not copied: the model's own become views of the joined ones.
- Frozen weights get no gradient, adapters multiply in the model's dtype from float32 masters.
- What is no matrix product (norms, rotation, softmax, SwiGLU, cross-entropy) is one pass each, forward and backward,
  in kernels.c.
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

from training import kernels

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")  # whose layers are built of exactly these parts
BLOCK = 256  # queries taken together; keys after them are not multiplied
KEPT_UP_TO = 512  # tokens of a row; its attention probabilities are kept for the backward pass, else computed again
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
        positions = torch.cat([torch.arange(length) for length in lengths])[None]
        cosine, sine = (part[0].to(states.dtype).contiguous() for part in self.model.rotary_emb(states, positions))
        repeat = self.model.gradient_checkpointing and self.model.training
        pending = torch.zeros_like(states)  # what the layer before has computed and not yet added
        for layer in self.layers:
            arguments = (layer, states, pending, cosine, sine, lengths)
            if repeat:
                states, pending = torch.utils.checkpoint.checkpoint(self._layer, *arguments, use_reentrant=False)
            else:
                states, pending = self._layer(*arguments)
        return AddNorm.apply(states, pending, self.model.norm.weight, self.model.norm.variance_epsilon)[1]

    def _layer(self, layer: Layer, states: Any, pending: Any, cosine: Any, sine: Any, lengths: Sequence[int]) -> Any:
        own, attention = layer.own, layer.own.self_attn
        norm = own.input_layernorm
        states, inner = AddNorm.apply(states, pending, norm.weight, norm.variance_epsilon)
        inner = project(layer.qkv, inner)
        head_norms = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
        inner = Attention.apply(
            inner, cosine, sine, lengths, self.heads, self.groups, attention.scaling,
            *(norm.weight if norm is not None else None for norm in head_norms),
            head_norms[0].variance_epsilon if head_norms[0] is not None else 0.0,
        )  # fmt: skip
        norm = own.post_attention_layernorm
        states, inner = AddNorm.apply(states, project(layer.out, inner), norm.weight, norm.variance_epsilon)
        return states, project(layer.down, SwiGLU.apply(project(layer.gate_up, inner)))


def unsupported(causal_lm: Any) -> str:
    """Why this model's layers are not to be computed here; empty when they are."""
    config = causal_lm.config
    if config.model_type not in FAMILIES or config.hidden_act != "silu":
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
    `sine` [N, D]. Inside, everything is [KV, tokens, G, D], so that the queries of a group meet their keys in one product.
    """

    @staticmethod
    def forward(
        ctx: Any, qkv: Any, cosine: Any, sine: Any, lengths: Sequence[int], heads: int, groups: int, scale: float,
        query_norm: Any, key_norm: Any, eps: float,
    ) -> torch.Tensor:  # fmt: skip
        split = _Split(qkv, heads, groups)
        normed = [
            _head_norm(part, weight, eps) for part, weight in zip(split.parts[:2], (query_norm, key_norm), strict=True)
        ]
        query = split.to_heads(normed[0].result, 0, cosine, sine)
        key = split.to_heads(normed[1].result, 1, cosine, sine)
        value = split.to_heads(split.parts[2], 2, None, None)
        result = torch.empty_like(query)
        kept = []
        for block in _blocks(lengths):
            probabilities = _probabilities(query, key, block, scale)
            block.queries(result).copy_(
                torch.bmm(probabilities, block.keys(value)).view(groups, block.count, -1, split.dim)
            )
            if block.length <= KEPT_UP_TO:
                kept.append(probabilities)
        ctx.save_for_backward(
            query, key, value, cosine, sine, query_norm, key_norm, *normed[0].kept, *normed[1].kept, *kept
        )
        ctx.split, ctx.lengths, ctx.scale = split.without_tensors(), lengths, scale
        return split.from_heads(result, 0, None, None, split.empty(0))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
        query, key, value, cosine, sine, query_norm, key_norm, *kept = ctx.saved_tensors
        split, scale = ctx.split, ctx.scale
        normed = []
        for weight in (query_norm, key_norm):
            normed.append((weight, *((kept.pop(0), kept.pop(0)) if weight is not None else (None, None))))
        outer = split.to_heads(gradient.contiguous(), 0, None, None)
        for_query = torch.empty_like(query)
        # A row of several blocks sums up what they have to say about its keys: in float, for bf16 would lose the small.
        single = all(block.whole for block in _blocks(ctx.lengths))
        for_key, for_value = (
            torch.empty_like(key) if single else torch.zeros_like(key, dtype=_sums(key)) for _ in "kv"
        )
        kept_probabilities = iter(kept)
        for block in _blocks(ctx.lengths):
            if block.length <= KEPT_UP_TO:
                probabilities = next(kept_probabilities)
            else:
                probabilities = _probabilities(query, key, block, scale)
            incoming, asked, keys = block.rows(outer), block.rows(query), block.keys(key)
            for_scores = torch.bmm(incoming, block.keys(value).transpose(1, 2))
            rows = probabilities.shape[0] * probabilities.shape[1]
            kernels.call("softmax_backward", query, for_scores, probabilities, rows, block.end, float(scale))
            block.queries(for_query).copy_(torch.bmm(for_scores, keys).view(block.queries(for_query).shape))
            for target, left, right in ((for_value, probabilities, incoming), (for_key, for_scores, asked)):
                found = torch.bmm(left.transpose(1, 2), right)
                if single:
                    block.keys(target).copy_(found)
                else:
                    block.keys(target).add_(found)
        result = torch.empty(query.shape[1], split.width, dtype=query.dtype)
        for number, (found, turned) in enumerate(((for_query, True), (for_key, True), (for_value, False))):
            found = found.to(query.dtype)
            angles = (cosine, sine) if turned else (None, None)
            part = result[:, split.columns(number)]
            if number < 2 and normed[number][0] is not None:
                flat = split.from_heads(found, number, *angles, split.empty(number))
                part.copy_(_head_norm_backward(flat, *normed[number]).view(part.shape))
            else:
                split.from_heads(found, number, *angles, part)
        return result, *(None,) * 9


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

    def queries(self, tensor: torch.Tensor) -> torch.Tensor:
        """[KV, count, G, D] of a tensor [KV, N, G, D]."""
        return tensor[:, self.start + self.first : self.start + self.end]

    def rows(self, tensor: torch.Tensor) -> torch.Tensor:
        """The same as [KV, count x G, D]."""
        return self.queries(tensor).flatten(1, 2)

    def keys(self, tensor: torch.Tensor) -> torch.Tensor:
        """[KV, end, D] of keys or values [KV, N, 1, D]."""
        return tensor[:, self.start : self.start + self.end, 0]


def _blocks(lengths: Sequence[int]) -> list[_Block]:
    blocks, start = [], 0
    for length in lengths:
        blocks += [_Block(start, first, min(BLOCK, length - first), length) for first in range(0, length, BLOCK)]
        start += length
    return blocks


def _probabilities(query: torch.Tensor, key: torch.Tensor, block: _Block, scale: float) -> torch.Tensor:
    """The attention of a block's queries to the keys before them, [KV, count x G, end]."""
    scores = torch.bmm(block.rows(query), block.keys(key).transpose(1, 2))
    groups, rows, columns = scores.shape
    kernels.call("softmax", query, scores, groups * rows, columns, rows, query.shape[2], block.first, float(scale))
    return scores


class _Split:
    """Where q, k and v lie in a row of qkv, and the way to [KV, N, G, D] and back. Part 0 is q, 1 is k, 2 is v."""

    def __init__(self, qkv: torch.Tensor, heads: int, groups: int) -> None:
        self.dim = qkv.shape[1] // (heads + 2 * groups)
        self.groups, self.group = groups, heads // groups
        self.tokens, self.width, self.dtype = *qkv.shape, qkv.dtype
        self.sizes = (heads * self.dim, groups * self.dim, groups * self.dim)
        self.parts: tuple[torch.Tensor, ...] = qkv.split(self.sizes, dim=1)

    def without_tensors(self) -> _Split:
        """Itself, for the backward pass, which does not need qkv."""
        self.parts = ()
        return self

    def columns(self, number: int) -> slice:
        start = sum(self.sizes[:number])
        return slice(start, start + self.sizes[number])

    def empty(self, number: int) -> torch.Tensor:
        return torch.empty(self.tokens, self.sizes[number], dtype=self.dtype)

    def _shape(self, number: int) -> tuple[int, int, int, int]:
        return self.tokens, self.groups, self.group if number == 0 else 1, self.dim

    def to_heads(self, part: torch.Tensor, number: int, cosine: Any, sine: Any) -> torch.Tensor:
        tokens, groups, group, dim = self._shape(number)
        result = part.new_empty(groups, tokens, group, dim)
        kernels.call("to_heads", part, part, part.stride(0), cosine, sine, result, tokens, groups, group, dim)
        return result

    def from_heads(
        self, heads: torch.Tensor, number: int, cosine: Any, sine: Any, result: torch.Tensor
    ) -> torch.Tensor:
        """Fills and gives `result`, whose rows may lie apart."""
        shape = self._shape(number)
        kernels.call("from_heads", heads, heads, result.stride(0), cosine, sine, result, *shape)
        return result


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
