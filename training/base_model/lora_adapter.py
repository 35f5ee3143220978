"""What a PEFT LoRA adapter changes in a base model: read from its two files, and matched to the base's tensors.

Nothing is skipped in silence: a tensor of the adapter that is not understood, finds no tensor in the base, or does
not fit its shape is an error. A merge that leaves something out trains for nothing.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, TypeVar, cast

from training.base_model import model_json, safetensors_file
from training.base_model.safetensors_file import Tensor
from training.errors import RunError
from training.system.foreign_json import Damaged

if TYPE_CHECKING:
    import torch

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
ROOT = "base_model.model."  # what PEFT puts before the name of every module

# How the trained parts of one module end in the adapter's file (peft/utils/save_and_load.py takes the adapter's name
# out of them, and ".weight" off DoRA's magnitude).
PARTS = {
    ".lora_A.weight": "a",
    ".lora_B.weight": "b",
    ".lora_embedding_A": "embedding_a",
    ".lora_embedding_B": "embedding_b",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
    ".base_layer.weight": "copy",  # the base's own embedding, which PEFT saves beside a targeted one
    ".base_layer.bias": "bias",
    ".bias": "bias",
    ".weight": "replaced",  # modules_to_save
}
# Settings of PEFT under which merged is not base + scaling * B A (or base is no longer the base), all off by default.
FOREIGN = (
    *("alora_invocation_tokens", "arrow_config", "fan_in_fan_out", "kasa_config", "layer_replication", "lora_bias"),
    *("monteclora_config", "trainable_token_indices", "use_bdlora", "use_qalora", "velora_config"),
)
KEEPS_BASE = (True, False, "gaussian", "eva", "orthogonal")  # initial weights that leave the base as it is


Value = TypeVar("Value")


class Config(TypedDict, total=False):
    """What is read of adapter_config.json."""

    r: int
    lora_alpha: float
    rank_pattern: Mapping[str, int] | None
    alpha_pattern: Mapping[str, float] | None
    use_rslora: bool
    use_dora: bool
    target_parameters: Sequence[str] | None


class Scale(TypedDict):
    """The fields of a Change that say how B A is scaled."""

    rank: int
    alpha: float
    rslora: bool


@dataclass(frozen=True)
class Change:
    """What happens to the rows `start` to `stop` of one tensor [rows, width] of the base.

    kind "lora": + alpha / rank * B A (alpha / sqrt(rank) with rslora), then, with a magnitude (DoRA), every row scaled
    to that length; "embedding": the same with (B A) transposed; "replaced": the adapter's tensor `b` takes its place.
    `expert` is (index, count) where A [count * rank, in] and B [out, rank * count] hold the factors of all experts.
    """

    module: str
    kind: str
    target: Tensor
    start: int
    stop: int
    b: Tensor
    a: Tensor | None = None
    magnitude: Tensor | None = None
    rank: int = 0
    alpha: float = 0.0
    rslora: bool = False
    expert: tuple[int, int] = (0, 1)
    first_row: int = 0  # of B: where this tensor's rows begin in a B that serves several (gate and up of an expert)

    @property
    def scaling(self) -> float:
        """The factor of B A (PEFT: lora_alpha / r, with rank-stabilised LoRA lora_alpha / sqrt(r))."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


def factors(change: Change) -> tuple[torch.Tensor, torch.Tensor]:
    """B [rows of the target, rank] and A [rank, width] of a change, in the adapter's own dtype."""
    assert change.a is not None
    a, b = _whole(change.a), _whole(change.b)
    if change.kind == "embedding":  # A [rank, vocabulary], B [width, rank]: the update is (B A) transposed
        return a.T, b.T
    index, count = change.expert
    rows = change.stop - change.start
    a = a.view(count, change.rank, -1)[index]
    return b[change.first_row : change.first_row + rows, index::count], a


@lru_cache(maxsize=4)  # the experts of a layer share one A and one B
def _whole(tensor: Tensor) -> torch.Tensor:
    return safetensors_file.read_rows(tensor)


def changes(base: dict[str, Tensor], adapter: Path, tied: bool = False) -> list[Change]:
    """Every change that the adapter makes to the tensors of `base`; reads headers only, so it is quick for any size.

    `tied`: the base has one tensor for embedding and head; a change of "lm_head" then finds the embedding.
    Raises RunError naming the tensor (or the setting of the adapter) that cannot be merged.
    """
    config = _config(adapter)
    names = _Names(base, tied)
    modules: dict[str, dict[str, Tensor]] = {}
    for name, tensor in safetensors_file.header(adapter / WEIGHTS)[0].items():
        if tensor.dtype not in safetensors_file.FLOATS:
            raise RunError("merge", f"the adapter's {name} is {tensor.dtype}, not a 16 or 32-bit float")
        suffix = next((end for end in PARTS if name.endswith(end)), None)
        if suffix is None or not name.startswith(ROOT):
            raise RunError("merge", f"the adapter holds {name}, which is no part of a LoRA adapter known here")
        modules.setdefault(name[len(ROOT) : -len(suffix)], {})[PARTS[suffix]] = tensor
    if not modules:
        raise RunError("merge", f"the adapter in {adapter} is empty: nothing was trained")
    found = [change for module, parts in modules.items() for change in _module(module, parts, config, names)]
    for change in found:
        if change.target.dtype not in safetensors_file.FLOATS:
            raise RunError(
                "merge",
                f"{change.target.name} of the base is {change.target.dtype}: an adapter is merged into 16-bit weights, "
                "never into quantised ones; name the 16-bit model as BASE_MODEL_NAME",
            )
    return found


@contextmanager
def tying_known() -> Iterator[None]:
    """PEFT warns whoever targets a tied head or embedding that merging may go wrong; to_gguf/merging.py gives each its own matrix."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`")
        yield


def _config(adapter: Path) -> Config:
    """adapter_config.json; RunError when it is missing or asks for something that is not base + scaling * B A."""
    try:
        config: dict[str, object] = model_json.read(adapter / CONFIG)
    except Damaged as damage:
        raise RunError("merge", f"{adapter} is no PEFT adapter: {str(damage).replace(f'{adapter}/', '')}") from None
    if not (adapter / WEIGHTS).is_file():
        raise RunError("merge", f"{adapter} is no PEFT adapter: {WEIGHTS} is missing")
    if config.get("peft_type") != "LORA":
        raise RunError("merge", f"the adapter is of PEFT type {config.get('peft_type')}; only LORA can be merged")
    foreign = [f"{key} = {config[key]}" for key in FOREIGN if config.get(key)]
    if config.get("init_lora_weights", True) not in KEEPS_BASE:
        foreign.append(f"init_lora_weights = {config['init_lora_weights']} (it rewrites the base's weights)")
    if foreign:
        raise RunError("merge", f"the adapter was made with {', '.join(foreign)}, which cannot be merged here")
    # PEFT's own file: it wrote these fields itself.
    return cast(Config, config)


def _pattern(patterns: Mapping[str, Value] | None, module: str, default: Value) -> Value:
    """PEFT's rank_pattern and alpha_pattern: the first key that matches the end of the module's name decides."""
    for key, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default


class _Names:
    """Finds the tensor of a module: by PEFT's own name, or by the one that differs only in the wrappers in front.

    The name of a layer in memory and on disk may differ by "model." or "language_model." (AutoModel's checkpoints,
    Gemma-3's before transformers 4.52), which transformers renames while loading.
    """

    def __init__(self, base: dict[str, Tensor], tied: bool) -> None:
        self.base, self.tied = base, tied
        self.bare: dict[str, list[str]] = {}
        for name in base:
            self.bare.setdefault(self._strip(name), []).append(name)

    @staticmethod
    def _strip(name: str) -> str:
        return re.sub(r"^((model|language_model)\.)*", "", name)

    def find(self, name: str) -> Tensor | None:
        """The base's tensor of that name, or None. RunError when two answer to it."""
        if name in self.base:
            return self.base[name]
        found = self.bare.get(self._strip(name), [])
        if len(found) > 1:
            raise RunError("merge", f"{name} of the adapter may be {' or '.join(found)} of the base")
        if not found and self.tied and self._strip(name) == "lm_head.weight":
            return self.find("model.embed_tokens.weight")
        return self.base[found[0]] if found else None

    def require(self, name: str) -> Tensor:
        """The base's tensor of that name. RunError when there is none."""
        tensor = self.find(name)
        if tensor is None:
            raise RunError("merge", f"the adapter changes {name}, which the base does not have: is it another model's?")
        return tensor


def _module(module: str, parts: dict[str, Tensor], config: Config, names: _Names) -> list[Change]:
    """The changes of one module: its weight's, and its bias's."""
    made: list[Change] = []
    if "bias" in parts:
        made.append(_replaced(module, names.require(f"{module}.bias"), parts["bias"]))
    if "copy" in parts and parts["copy"].shape != names.require(f"{module}.weight").shape:
        target = names.require(f"{module}.weight")
        raise _misfit(target, parts["copy"].name, parts["copy"].shape, target.shape)
    if "replaced" in parts:
        made.append(_replaced(module, names.require(f"{module}.weight"), parts["replaced"]))
    kind = "embedding" if "embedding_a" in parts else "lora"
    a, b = (parts.get(key) for key in (("embedding_a", "embedding_b") if kind == "embedding" else ("a", "b")))
    if a is None and b is None:
        return made
    if a is None or b is None:
        raise RunError("merge", f"the adapter holds only one of the two factors of {module}")
    if re.search(r"\.experts(\.base_layer)?$", module):
        return [*made, *_experts(module, a, b, config, names)]
    scale = _scale(config, module)
    weight = names.require(f"{module}.weight")
    magnitude = _magnitude(module, kind, parts, config)
    made.append(Change(module, kind, weight, 0, weight.rows, a=a, b=b, magnitude=magnitude, **scale))
    _fits(made[-1])
    return made


def _scale(config: Config, module: str) -> Scale:
    return {
        "rank": _pattern(config.get("rank_pattern"), module, config["r"]),
        "alpha": _pattern(config.get("alpha_pattern"), module, config["lora_alpha"]),
        "rslora": bool(config.get("use_rslora")),
    }


def _experts(module: str, a: Tensor, b: Tensor, config: Config, names: _Names) -> list[Change]:
    """The changes of a mixture of experts, whose experts share one A [count * rank, in] and one B [out, rank * count].

    transformers 5 holds the experts of a layer in two tensors, gate_up_proj and down_proj; the checkpoint may hold them
    so, or a tensor for each expert's gate_proj, up_proj and down_proj. PEFT wraps the module once for each parameter in
    their order, so that the last one is at "experts" and the one before at "experts.base_layer" (lora.ParamWrapper).
    """
    experts = module.removesuffix(".base_layer")
    ends = {target.rsplit(".", 1)[-1] for target in config.get("target_parameters") or ()}
    wanted = [parameter for parameter in ("gate_up_proj", "down_proj") if parameter in ends]
    if len(wanted) < (1 if module == experts else 2):
        raise RunError("merge", f"adapter_config.json does not say which parameter of {experts} was trained")
    parameter = wanted[-1] if module == experts else wanted[0]
    scale = _scale(config, f"{experts}.{parameter}")
    count, fused = a.shape[0] // scale["rank"], names.find(f"{experts}.{parameter}")
    made = []
    for index in range(count):
        first = 0
        for target in [fused] if fused else _expert(experts, index, parameter, names):
            rows = target.rows // count if fused else target.rows
            start = index * rows if fused else 0
            made.append(
                Change(
                    module, "lora", target, start, start + rows,
                    a=a, b=b, expert=(index, count), first_row=first, **scale,
                )
            )  # fmt: skip
            first += rows
    # [experts, in, out] (Llama 4, gpt-oss) would pass for [experts, out, in] where the two are equal.
    whole = fused is None or (fused.shape[0] == count and fused.shape[1] != fused.shape[2])
    rows, width, rank = first, made[-1].target.width, scale["rank"]
    if not whole or names.find(f"{experts}.{count}.down_proj.weight") is not None:
        raise RunError("merge", f"the adapter's {module} does not fit the experts of the base")
    for part, shape in ((a, (count * rank, width)), (b, (rows, rank * count))):
        if part.shape != shape:
            raise _misfit(made[-1].target, part.name, part.shape, shape)
    return made


def _expert(experts: str, index: int, parameter: str, names: _Names) -> list[Tensor]:
    parts = ("gate_proj", "up_proj") if parameter == "gate_up_proj" else ("down_proj",)
    return [names.require(f"{experts}.{index}.{part}.weight") for part in parts]


def _replaced(module: str, target: Tensor, by: Tensor) -> Change:
    if by.shape != target.shape:
        raise _misfit(target, by.name, by.shape, target.shape)
    return Change(module, "replaced", target, 0, target.rows, by)


def _magnitude(module: str, kind: str, parts: dict[str, Tensor], config: Config) -> Tensor | None:
    if bool(config.get("use_dora")) != ("magnitude" in parts):
        raise RunError("merge", f"use_dora is {config.get('use_dora')}, but {module} does not agree: a damaged adapter")
    if kind == "embedding" and "magnitude" in parts:
        raise RunError("merge", f"DoRA on an embedding ({module}) cannot be merged; leave it out of TARGET_MODULES")
    return parts.get("magnitude")


def _fits(change: Change) -> None:
    """RunError unless the shapes of the factors are those that the target and the rank ask for."""
    rows, width, rank = change.stop - change.start, change.target.width, change.rank
    expected: dict[Tensor | None, tuple[int, ...]] = {change.a: (rank, width), change.b: (rows, rank)}
    if change.kind == "embedding":
        expected = {change.a: (rank, rows), change.b: (width, rank)}
    if change.magnitude is not None:
        expected[change.magnitude] = (rows,)
    for part, shape in expected.items():
        if part is not None and part.shape != shape:
            raise _misfit(change.target, part.name, part.shape, shape)


def _misfit(target: Tensor, name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> RunError:
    return RunError(
        "merge",
        f"the adapter's {name} is {list(found)}, but {target.name} of the base, {list(target.shape)}, asks for "
        f"{list(expected)}: the adapter was trained on another model",
    )
