"""The decoder of a Llama-like model by hand, for LoRA training on a CPU: the same numbers, in fewer passes over memory.

What it does otherwise than transformers + PEFT:
- The rows of a micro-batch are joined without padding; attention stays within each row, and skips what lies in the
  future of a whole block of queries.
- Projections that read the same input are one product (q, k, v; gate, up), and so are their adapters. The frozen weights
  are not copied: the model's own become views of the joined ones.
- Rows that begin alike are computed once for what they share (shared.py), where `shares`.
- Frozen weights may be kept in 8 bits (int8.py), or as oneDNN lays them out (packed.py); the model's own are then left as
  they are.
- Frozen weights get no gradient, adapters multiply in the model's dtype from float32 masters.
- What is no matrix product (norms, rotation, softmax, SwiGLU, cross-entropy) is one pass each, forward and backward,
  in kernels.c. Attention is all in attention.c on CPUs whose vector units multiply the type: float, and mostly bf16.
Shapes: N tokens of the micro-batch, H heads in KV groups of G, D dimensions a head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch

from training.fast_cpu import int8, kernels, packed, policy, shared
from training.fast_cpu.attention import Attention, Rows
from training.fast_cpu.functions import AddNorm, LoraLinear, SwiGLU, Weight
from training.fast_cpu.int8 import Int8
from training.fast_cpu.model_parts import (
    DecoderLayer,
    DecoderStack,
    Norm,
    Projection,
    SelfAttention,
    base_of,
    is_adapted,
)
from training.fast_cpu.products import TORCH, Products

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Group:
    """Projections of the same input as one: `weight` [sum of outputs, inputs] and `bias` are frozen and joined."""

    modules: tuple[Projection, ...]
    weight: Weight
    bias: torch.Tensor | None

    def adapters(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """A [ranks, inputs] and B [outputs, ranks] (scaled) of all of them, in the dtype of the model's weights."""
        down, up, dtype = [], [], base_of(self.modules[0]).weight.dtype
        for module in self.modules:
            if is_adapted(module) and not module.disable_adapters:
                name = module.active_adapters[0]
                down.append(module.lora_A[name].weight)
                up.append(module.lora_B[name].weight * module.scaling[name])
            else:
                up.append(base_of(module).weight.new_zeros(base_of(module).out_features, 0))
        if not down:
            return None, None
        return torch.cat(down).to(dtype), torch.block_diag(*(part.to(dtype) for part in up))


@dataclass(frozen=True)
class Layer:
    """One decoder layer."""

    own: DecoderLayer  # the model's
    qkv: Group
    out: Group
    gate_up: Group
    down: Group

    @property
    def groups(self) -> tuple[Group, ...]:
        """All of its projections."""
        return self.qkv, self.out, self.gate_up, self.down

    def passed(
        self,
        states: torch.Tensor,
        pending: torch.Tensor,
        projected: Callable[[Group, torch.Tensor], torch.Tensor],
        attend: Callable[[torch.Tensor], torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The states [N, hidden] with what was `pending`, and what this layer has computed and not yet added.

        `projected` gives the outputs of a group for inputs, `attend` what tokens attend to, of q, k and v side by side.
        """
        norm = self.own.input_layernorm
        states, inner = AddNorm.apply(states, pending, norm.weight, norm.variance_epsilon)
        inner = projected(self.out, attend(projected(self.qkv, inner)))
        norm = self.own.post_attention_layernorm
        states, inner = AddNorm.apply(states, inner, norm.weight, norm.variance_epsilon)
        return states, projected(self.down, SwiGLU.apply(projected(self.gate_up, inner)))


class Decoder:
    """The hidden states of a causal language model with LoRA, for training. Made once; holds the joined weights."""

    def __init__(
        self, causal_lm: PreTrainedModel, shares: bool = True, by: Products = TORCH, packs: bool = False
    ) -> None:
        if why := unsupported(causal_lm, by.in_8_bits):
            raise ValueError(why)
        self.model = _stack(causal_lm)
        self.head = cast("torch.nn.Linear", causal_lm.get_output_embeddings())
        config = causal_lm.config
        self.heads, self.groups = config.num_attention_heads, config.num_key_value_heads
        self.shares, self.by = shares, by
        # Tokens computed, and tokens, of the last micro-batch whose rows began alike.
        self.shared: tuple[int, int] | None = None
        self.window = getattr(config, "sliding_window", None) if _slides(config) else None
        self.in_8_bits = by.in_8_bits
        with torch.no_grad():
            self.packs = packs and not self.in_8_bits and _packs_exactly(self.model.layers[0])
            how = _in_8_bits if self.in_8_bits else _packed if self.packs else _joined
            self.layers = [Layer(layer, *map(how, _groups(layer))) for layer in self.model.layers]

    def of_rows(self, ids: torch.Tensor, lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The last hidden states of rows that stand one after the other in `ids` [N], and where each token's are among them
        [N]; None where they are in the rows' own order, for nothing is shared."""
        alike = shared.found(ids, lengths) if self.shares else None
        if alike is None:
            return self.hidden(ids, Rows(lengths)), None
        self.shared = len(alike.ids), len(ids)
        return self.hidden(alike.ids, alike.rows), alike.places

    def hidden(self, ids: torch.Tensor, rows: Rows) -> torch.Tensor:
        """The last hidden states [N, hidden] of rows that stand one after the other in `ids` [N]."""
        states, cosine, sine = self.begun(ids, rows.positions)
        repeat = self.model.gradient_checkpointing and self.model.training
        pending = torch.zeros_like(states)  # what the layer before has computed and not yet added
        for layer in self.layers:
            arguments = (layer, states, pending, cosine, sine, rows)
            if repeat:
                states, pending = torch.utils.checkpoint.checkpoint(self._layer, *arguments, use_reentrant=False)
            else:
                states, pending = self._layer(*arguments)
        return self.ended(states, pending)

    def begun(self, ids: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The states [N, hidden] of tokens before the first layer, and cosines and sines of their positions [N, D]."""
        states = self.model.embed_tokens(ids)
        angles = self.model.rotary_emb(states, positions[None])
        cosine, sine = (part[0].to(states.dtype).contiguous() for part in angles)
        return states, cosine, sine

    def ended(self, states: torch.Tensor, pending: torch.Tensor) -> torch.Tensor:
        """The last hidden states [N, hidden], of what the last layer gives."""
        norm = self.model.norm
        last: torch.Tensor = AddNorm.apply(states, pending, norm.weight, norm.variance_epsilon)[1]
        return last

    def sound(self) -> bool:
        """Whether the products of a first layer's weights in 8 bits are what they should be."""
        if not self.in_8_bits:
            return True
        one = self.layers[0]
        weights = (group.weight for group in one.groups)
        dtype = base_of(one.down.modules[0]).weight.dtype
        return all(int8.sound(weight, dtype) for weight in weights if isinstance(weight, Int8))

    def set_aside(self) -> None:
        """Give back the memory of the model's own weights, where they stand in a file and 8 bits are multiplied."""
        if self.in_8_bits:
            for layer in self.layers:
                int8.set_aside([base_of(module).weight for group in layer.groups for module in group.modules])

    def _layer(
        self,
        layer: Layer,
        states: torch.Tensor,
        pending: torch.Tensor,
        cosine: torch.Tensor,
        sine: torch.Tensor,
        rows: Rows,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return layer.passed(
            states,
            pending,
            lambda group, inputs: project(group, inputs, self.by),
            lambda qkv: self.attention(layer, qkv, cosine, sine, rows),
        )

    def attention(
        self, layer: Layer, qkv: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor, rows: Rows
    ) -> torch.Tensor:
        """What the tokens of rows attend to in a layer, from their projections side by side."""
        own = layer.own.self_attn
        head_norms: list[Norm | None] = [getattr(own, name, None) for name in ("q_norm", "k_norm")]
        found: torch.Tensor = Attention.apply(
            qkv, cosine, sine, rows, self.heads, self.groups, own.scaling,
            *(norm.weight if norm is not None else None for norm in head_norms),
            head_norms[0].variance_epsilon if head_norms[0] is not None else 0.0,
        )  # fmt: skip
        return found


def _stack(causal_lm: PreTrainedModel) -> DecoderStack:
    """The decoder of a model that `unsupported` has nothing against."""
    return cast("DecoderStack", causal_lm.get_decoder())


def unsupported(causal_lm: PreTrainedModel, in_8_bits: bool = False) -> str:
    """Why this model's layers are not to be computed here; empty when they are. `in_8_bits`: with such weights."""
    config = causal_lm.config
    if config.model_type not in policy.FAMILIES or config.hidden_act != "silu":
        return f"no hand-written layers for {config.model_type}"
    if getattr(config, "attention_dropout", 0):
        return "the model has dropout in its attention"
    for layer in _stack(causal_lm).layers:
        attention, mlp = layer.self_attn, layer.mlp
        for module in (*_qkv(attention), attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj):
            weight = base_of(module).weight
            why = _unsupported(module)
            if in_8_bits and not why:
                why = int8.unsuited(weight.shape[0], weight.shape[1], weight.dtype)
            if why:
                return why
    return ""


def _unsupported(module: Projection) -> str:
    base = base_of(module)
    weight = base.weight
    if (
        not isinstance(base, torch.nn.Linear)
        or str(weight.dtype) not in kernels.SUFFIXES
        or weight.device.type != "cpu"
    ):
        return f"a {type(base).__name__} of {weight.dtype} on {weight.device}"
    if any(parameter.requires_grad for parameter in base.parameters()):
        return "more than adapters is trained"
    if not is_adapted(module):
        return ""
    if len(module.active_adapters) != 1 or module.merged:
        return "more than one adapter"
    name = module.active_adapters[0]
    if module.use_dora.get(name) or name not in module.lora_A or module.lora_B[name].bias is not None:
        return "an adapter that is not plain LoRA"
    if not isinstance(module.lora_dropout[name], torch.nn.Identity):
        return "LORA_DROPOUT is not 0"
    return ""


def _slides(config: PretrainedConfig) -> bool:
    kinds = getattr(config, "layer_types", None)
    return "sliding_attention" in kinds if kinds else bool(getattr(config, "sliding_window", None))


def _qkv(attention: SelfAttention) -> tuple[Projection, Projection, Projection]:
    return attention.q_proj, attention.k_proj, attention.v_proj


def _groups(layer: DecoderLayer) -> tuple[tuple[Projection, ...], ...]:
    """The projections of a layer, those that read the same input together."""
    attention, mlp = layer.self_attn, layer.mlp
    return _qkv(attention), (attention.o_proj,), (mlp.gate_proj, mlp.up_proj), (mlp.down_proj,)


def _weights(modules: tuple[Projection, ...]) -> list[torch.Tensor]:
    return [base_of(module).weight.data for module in modules]


def _in_8_bits(modules: tuple[Projection, ...]) -> Group:
    """One weight in 8 bits for several projections. Theirs stay, for evaluations and what is compared with them."""
    return Group(modules, int8.rounded(_weights(modules)), _joined_bias([base_of(module) for module in modules]))


def _packed(modules: tuple[Projection, ...]) -> Group:
    """The same, as oneDNN lays them out."""
    return Group(modules, packed.packed(_weights(modules)), _joined_bias([base_of(module) for module in modules]))


def _packs_exactly(layer: DecoderLayer) -> bool:
    """Whether packed weights give the same products here, to the last bit."""
    groups = [_weights(modules) for modules in _groups(layer)]
    return packed.possible(groups[0][0].dtype) and all(packed.equal(packed.packed(group), group) for group in groups)


def _joined(modules: tuple[Projection, ...]) -> Group:
    """One weight for several projections, of which theirs become views: no second copy in memory."""
    bases = [base_of(module) for module in modules]
    if len(bases) == 1:
        return Group(modules, bases[0].weight.data, None if bases[0].bias is None else bases[0].bias.data)
    weight = _neighbours([base.weight.data for base in bases])
    if weight is not None:  # joined before, for a training
        return Group(modules, weight, _joined_bias(bases))
    weight = torch.cat([base.weight.data for base in bases])
    for base, part in zip(bases, weight.split([base.out_features for base in bases]), strict=True):
        base.weight.data = part
    return Group(modules, weight, _joined_bias(bases))


def _neighbours(weights: list[torch.Tensor]) -> torch.Tensor | None:
    """The whole of which weights are the parts, one after the other; None where they are not."""
    first, end = weights[0], weights[0].storage_offset()
    for weight in weights:
        same = weight.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not (same and weight.is_contiguous() and weight.storage_offset() == end):
            return None
        end += weight.numel()
    return first.as_strided((sum(len(weight) for weight in weights), first.shape[1]), first.stride())


def _joined_bias(bases: list[torch.nn.Linear]) -> torch.Tensor | None:
    if all(base.bias is None for base in bases):
        return None
    return torch.cat([b.weight.new_zeros(b.out_features) if b.bias is None else b.bias.data for b in bases])


def project(group: Group, inputs: torch.Tensor, by: Products = TORCH) -> torch.Tensor:
    """The projections of `inputs` [N, inputs] side by side, [N, outputs], adapters included."""
    outputs: torch.Tensor = LoraLinear.apply(inputs, group.weight, group.bias, *group.adapters(), by)
    return outputs
