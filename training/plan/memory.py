"""Will it fit? What a run takes of the memory that it trains in, part by part, from the model's config and the settings.

On a CPU benchmarks/memory_plan.py holds the sum against measured peaks. For GPUs it is reckoned the same way from what
each library keeps; no card has measured it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from training.fast_cpu import policy
from training.settings import Settings
from training.system.wording import gigabytes
from training.train import sharding
from training.train.engine import EAGER_UP_TO

# Python with torch, transformers, trl and datasets loaded, before any weight, 0.58 GB, and what oneDNN and malloc hold
# besides (the rest of measured peaks, over nine shapes). On a card kernels that are loaded with their first use and cuBLAS'
# work space are put at 0.3 GB: what is free there is asked after this process's own context was made, which is no part of it.
PROGRAM = {"cpu": 720_000_000, "gpu": 300_000_000}
# Bytes a trained parameter on a CPU: the adapter once more while safetensors writes it.
SAVED = 4
# On a CPU the peak is so much above what the kept tensors add up to (measured): malloc's holes, temporaries. Of the
# hand-written layers, which keep less, they are a larger part.
HOLES, HOLES_BY_HAND = 1.05, 1.3
# Bytes a trained parameter, by a part of the optimizer's name; AdamW takes 8.
STATE = {
    "8bit": 2.1,
    "adafactor": 0.1,
    "sgd": 0,
    "lion": 4,
    "adagrad": 4,
    "rmsprop": 4,
}
# Bytes a weight: 4 bits, and a scale for each 64 weights that is itself 8 bits (bitsandbytes, double_quant).
PACKED, SCALES = 0.5, 0.016
NF4 = PACKED + SCALES
# Bytes a token and word where the output layer is trained: all tokens at once, and the adapter's own logits (measured).
TRAINED_HEAD = 24
TRL_CHUNK = 256  # tokens whose logits TRL's chunked_nll holds at once
# Bytes that Unsloth's fused cross-entropy takes at most, by cutting the tokens into chunks.
FUSED = 1_000_000_000


@dataclass(frozen=True)
class Shape:
    """What of a model decides its memory. `blocks` counts the weights of the layers, which 4 bits apply to."""

    parameters: int
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    model_type: str = ""
    dtype: str = ""  # of the weights in its files, as far as its config says

    @property
    def embeddings(self) -> int:
        """Weights outside of the layers, which stay in 16 bit: one matrix where head and embedding are tied, else two."""
        per_layer = self.layer_weights
        one = self.vocabulary * self.hidden
        return 2 * one if self.parameters - self.layers * per_layer > 1.5 * one else one

    @property
    def layer_weights(self) -> int:
        """Weights of one dense layer: attention and the gated feed-forward."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        return attention + 3 * self.hidden * self.inner

    @property
    def linear(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of a layer's linear modules, by their usual names."""
        query, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = {
            "q_proj": (self.hidden, query),
            "k_proj": (self.hidden, keys),
            "v_proj": (self.hidden, keys),
            "o_proj": (query, self.hidden),
        }
        feed = {"gate_proj": (self.hidden, self.inner), "up_proj": (self.hidden, self.inner)}
        return attention | feed | {"down_proj": (self.inner, self.hidden)}


def shape(config: Mapping[str, object], parameters: int) -> Shape:
    """The shape of a model from its config.json; what a config does not say is taken as in a Llama of 7B."""
    hidden = number(config, "hidden_size", 4096)
    heads = number(config, "num_attention_heads", 32)
    return Shape(
        parameters=parameters,
        hidden=hidden,
        inner=number(config, "intermediate_size", 4 * hidden),
        layers=number(config, "num_hidden_layers", 32),
        heads=heads,
        kv_heads=number(config, "num_key_value_heads", heads),
        head_dim=number(config, "head_dim", hidden // heads),
        vocabulary=number(config, "vocab_size", 32_000),
        model_type=str(_of_text(config).get("model_type") or ""),
        dtype=str(config.get("dtype") or config.get("torch_dtype") or ""),
    )


def number(config: Mapping[str, object], name: str, usual: int) -> int:
    """A number in a config.json, or in its part about the text; `usual` where it says none."""
    value = _of_text(config).get(name)
    return value if isinstance(value, int) and value else usual


def _of_text(config: Mapping[str, object]) -> Mapping[str, object]:
    """The part of a config.json that the language model is described in: a model that also sees pictures has several."""
    text = config.get("text_config")
    return text if isinstance(text, Mapping) and text else config


def estimate(
    settings: Settings, model: Shape, longest: int, adapter: int | None = None, packs: bool = False
) -> dict[str, int]:
    """Bytes by part, for micro-batches whose longest row has `longest` tokens. `adapter`: its parameters, where counted.
    `packs`: frozen weights are laid out for their products.

    `settings` has its automatic choices made; GRADIENT_CHECKPOINTING = auto counts as false.
    """
    adapter = adapter_parameters(settings, model) if adapter is None else adapter
    tokens = settings.training.per_device_train_batch_size * longest
    on_cpu, processes = settings.hardware.device == "cpu", settings.hardware.num_processes
    # Bytes a trained parameter: what the processes add up.
    summed = 4 if settings.processes > 1 else 0
    parts = {
        "program": PROGRAM["cpu" if on_cpu else "gpu"],
        "weights": _packed(settings, model) if packs else weights(settings, model),
        # 4 bytes of it, 4 of its gradient
        "adapter and optimizer": int(
            adapter * (8 + _state(settings.training.optim) + (SAVED if on_cpu else 0) + summed)
        ),
        "activations": activations(settings, model, tokens, longest) + _joined_adapters(settings, model, adapter),
        "logits": _logits(settings, model, tokens),
    }
    # All processes on a CPU take of the same memory; a card has one of them.
    return {name: size * (processes if on_cpu else 1) for name, size in parts.items()}


def adapter_parameters(settings: Settings, model: Shape) -> int:
    """Trainable parameters of the adapter, from the config alone: r x (inputs + outputs) of every targeted module."""
    wanted = set(settings.lora.target_modules)
    sizes = [sum(size) for name, size in model.linear.items() if "all-linear" in wanted or name in wanted]
    outside = len(wanted & {"lm_head", "embed_tokens"}) * (model.vocabulary + model.hidden)
    return settings.lora.r * (model.layers * sum(sizes) + outside)


def _state(optim: str) -> float:
    return next((size for name, size in STATE.items() if name in optim), 8)


def weights(settings: Settings, model: Shape) -> int:
    """Bytes of the frozen base model. Loading it takes no more than training does: in 4 bits transformers reads one matrix in
    16 bit at a time (core_model_loading.py of 5.17: it uses no threads where it quantises)."""
    if sharding.wanted(settings):
        return _spread_weights(settings, model)
    if settings.hardware.fast_cpu == policy.INT8 and policy.by_hand(settings, model.model_type):
        return _in_8_bits(settings, model)
    return whole_weights(settings, model) + _unpacked(settings, model)


def whole_weights(settings: Settings, model: Shape) -> int:
    """Bytes of the model; where it is spread, as rank 0 reads it, in the machine's memory."""
    scales = SCALES if settings.quantization.load_in_4bit else 0
    return cut_weights(settings, model) + int(scales * _within(model))


def cut_weights(settings: Settings, model: Shape) -> int:
    """The same without what each rank keeps whole of a model that is spread: the scales of weights in 4 bits."""
    return model.embeddings * _width(settings) + int(_within(model) * _width_within(settings))


def _within(model: Shape) -> int:
    """Weights of the layers, of a model with experts all of them."""
    return model.parameters - model.embeddings


def _width_within(settings: Settings) -> float:
    """Bytes of a weight of the layers, without its scale."""
    return PACKED if settings.quantization.load_in_4bit else _width(settings)


def _unpacked(settings: Settings, model: Shape) -> int:
    """Bytes of the largest matrix of a layer that is at work, which in 4 bits stands in 16 then."""
    largest = max(inputs * outputs for inputs, outputs in model.linear.values())
    return largest * _width(settings) if settings.quantization.load_in_4bit else 0


def _spread_weights(settings: Settings, model: Shape) -> int:
    """Bytes that a rank has of a model spread over all (train/sharding.py): its share, and what is put together of it.

    That is what stands outside of the layers; the layer that is at work; and what FSDP2 gathers the next one in, which it
    lets go of with the one after: two layers, or once more what is outside.
    """
    width, processes = _width(settings), settings.processes
    outside, layer = model.embeddings * width, int(_width_within(settings) * _within(model) / model.layers)
    together = outside + layer + max(outside, 2 * layer) + _unpacked(settings, model)
    scales = whole_weights(settings, model) - cut_weights(settings, model)
    share = cut_weights(settings, model) // processes
    if settings.hardware.device == "cpu":
        # Rank 0's whole model stands beside the shares while these are made of it.
        return share + scales + max(together, share)
    if sharding.offloaded(settings):
        # Of the layers the shares of two, on their way.
        share = (outside + 2 * layer) // processes
    return share + scales + together


def beside_cards(settings: Settings, model: Shape) -> int:
    """Bytes of this machine's memory that a model takes which is spread over cards: machine 0 reads it whole, and lets go of
    it as the shares are made; those that stay in its memory are of all its processes."""
    read = 0 if settings.hardware.machine_rank else whole_weights(settings, model)
    if not sharding.offloaded(settings):
        return read
    width = _width_within(settings)
    # torch keeps memory that a card may fetch from in powers of two (CachingHostAllocator).
    pinned = sum(_power_of_two(width * i * o / settings.processes) for i, o in model.linear.values()) * model.layers
    held = max(pinned, _layers_share(settings, model)) * settings.hardware.num_processes
    return max(read, held) + PROGRAM["cpu"] * settings.hardware.num_processes


def over_the_bus(settings: Settings, model: Shape) -> int:
    """Bytes that each card fetches from the machine's memory in a step: its share of the layers, forward and backward."""
    return 2 * settings.training.gradient_accumulation_steps * _layers_share(settings, model)


def _layers_share(settings: Settings, model: Shape) -> int:
    return int(_within(model) * _width_within(settings)) // settings.processes


def _power_of_two(size: float) -> int:
    return 1 << max(0, math.ceil(size) - 1).bit_length()


def _in_8_bits(settings: Settings, model: Shape) -> int:
    """Bytes of the weights with those of the layers in 8 bits (fast_cpu/int8.py). The exact ones beside them stay in the
    model's file, whose pages the system takes back; where they are in another dtype there, they are in memory."""
    return _beside_exact(settings, model, 1)


def _packed(settings: Settings, model: Shape) -> int:
    """The same with those of the layers laid out for the products of either direction (fast_cpu/packed.py)."""
    return _beside_exact(settings, model, 2 * _width(settings))


def _beside_exact(settings: Settings, model: Shape, each: int) -> int:
    layers = sum(inputs * outputs for inputs, outputs in model.linear.values()) * model.layers
    width, in_file = _width(settings), {"bfloat16": "bf16", "float32": "fp32"}.get(model.dtype)
    exact = 0 if in_file == settings.hardware.precision else width
    return (model.parameters - layers) * width + layers * (each + exact)


def _width(settings: Settings) -> int:
    """Bytes of a number in the model: fp16 on a CPU is not there."""
    return 4 if settings.hardware.precision == "fp32" else 2


def activations(settings: Settings, model: Shape, tokens: int, longest: int) -> int:
    """Bytes kept for the backward pass of one micro-batch, and what one layer needs while it is gone through."""
    one = tokens * _kept(settings, model, longest)
    if settings.hardware.device == "cpu":
        one = int((HOLES_BY_HAND if policy.by_hand(settings, model.model_type) else HOLES) * one)
    if settings.training.gradient_checkpointing is not True:
        return model.layers * one + one
    inputs = tokens * model.hidden * _width(settings) * (2 if policy.by_hand(settings, model.model_type) else 1)
    offloaded = settings.hardware.engine == "unsloth" and settings.hardware.device != "cpu"
    return (2 if offloaded else model.layers) * inputs + 2 * one


def _kept(settings: Settings, model: Shape, longest: int) -> int:
    """Bytes a token and layer that autograd keeps, the base being frozen (transformers' Llama, PEFT's LoRA).

    Two norms in float32; the inputs of the targeted modules, on a CPU with a model in 16 bit a copy of PEFT's in float32 for
    each module; queries, keys, values and output of the attention; the gate before and after its activation, and the
    other factor. On a CPU the attention's probabilities too, as the measured peaks say: eager keeps them in float32 and
    in the model's width, SDPA in the model's width. A GPU's fused attention keeps none.
    """
    if policy.by_hand(settings, model.model_type):
        return _kept_by_hand(settings, model)
    width, on_cpu = _width(settings), settings.hardware.device == "cpu"
    wanted = set(settings.lora.target_modules)
    targeted = [size[0] for name, size in model.linear.items() if "all-linear" in wanted or name in wanted]
    if not on_cpu:
        # Autocast reads them as they are (train/ranks.py).
        copies = width * _targeted_inputs(settings, model)
    else:
        copies = 4 * sum(targeted) if width == 2 else 4 * sum(set(targeted))
    attention = 4 * model.heads * model.head_dim
    kept = 8 * model.hidden + copies + width * (attention + 3 * model.inner)
    if on_cpu:
        again = 4 if eager(settings, longest) and width == 2 else 0
        kept += model.heads * longest * (width + again)
    return kept


def _kept_by_hand(settings: Settings, model: Shape) -> int:
    """The same of fast_cpu/decoder.py: the residual stream twice, queries, keys, values, gate and up, and the inputs of what
    is targeted (one for those that share it)."""
    heads = (model.heads + 2 * model.kv_heads) * model.head_dim
    return _width(settings) * (2 * model.hidden + heads + 2 * model.inner + _targeted_inputs(settings, model))


def _targeted_inputs(settings: Settings, model: Shape) -> int:
    """Numbers a token in the inputs of a layer's targeted modules, one for those that read the same."""
    wanted = set(settings.lora.target_modules)
    inputs = [("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",)]
    return sum(model.linear[names[0]][0] for names in inputs if wanted & {"all-linear", *names})


def _joined_adapters(settings: Settings, model: Shape, adapter: int) -> int:
    """Bytes of the adapters of one micro-batch as fast_cpu/decoder.py multiplies them: in the model's width, those that read the
    same input joined, which for B (half of an adapter) is mostly zeros beside the two or three parts."""
    return 2 * adapter * _width(settings) if policy.by_hand(settings, model.model_type) else 0


def eager(settings: Settings, longest: int) -> bool:
    """Whether attention is plain matrix products: on a CPU with transformers, for short rows (engine.EAGER_UP_TO)."""
    return settings.hardware.device == "cpu" and settings.hardware.engine == "transformers" and longest <= EAGER_UP_TO


def _logits(settings: Settings, model: Shape, tokens: int) -> int:
    """Bytes of the output layer: 16 bit and float32 logits, their probabilities and gradients, for a chunk of tokens."""
    a_token = model.vocabulary * 16
    if settings.hardware.engine == "unsloth" and settings.hardware.device != "cpu":
        return min(tokens * a_token, FUSED)
    if policy.by_hand(settings, model.model_type):
        # It works in place. The plain way, which it is compared with at first, takes a chunk.
        return max(
            min(tokens, policy.HEAD_CHUNK) * model.vocabulary * _width(settings), min(tokens, TRL_CHUNK) * a_token
        )
    if policy.taken(settings):
        return min(tokens, policy.LOSS_CHUNK) * a_token
    if "lm_head" in settings.lora.target_modules:
        return tokens * model.vocabulary * TRAINED_HEAD
    return min(tokens, TRL_CHUNK) * a_token


def words(parts: dict[str, int]) -> str:
    """The sum and its parts, for the log."""
    return (
        f"{gigabytes(sum(parts.values()))} ({', '.join(f'{name} {gigabytes(size)}' for name, size in parts.items())})"
    )
