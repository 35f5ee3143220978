"""An importance matrix: how strongly each input of every weight matrix is used. llama.cpp's smallest types need one.

It is what llama.cpp's own tool (tools/imatrix) measures, taken in PyTorch instead: the mean square of each input over the
tokens of training rows. Quantising then spends its few levels on the weights that matter. As there, embedding and output
matrix have none: llama.cpp keeps them in types that need none.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.errors import RunError
from training.evaluation import reference
from training.evaluation.reference import TooLarge
from training.llama import GGUF, gguf_file
from training.llama.gguf_file import Tensor

if TYPE_CHECKING:
    import numpy as np
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel

STAGE = "importance matrix"
CHUNK = 512  # tokens run at once; rows are joined and cut, as llama.cpp's tool does with its text
MOST = 16384  # tokens taken of the training rows at most: 32 pieces, so that it costs one pass of minutes, not of hours
FLOOR = 1e-6  # of the mean: an input that was never used has no weight at all, and blocks of them no scale
BLOCK = 1 << 24  # weights read at a time where the two models are compared
EMBEDDINGS = ("token_embd.weight", "output.weight", "per_layer_token_embd.weight")
# Column by column, the sum of squared weights in the GGUF file is the model's, but for rounding to f16.
MOST_APART = 0.01


@dataclass(frozen=True)
class Importance:
    """What was measured: for the log and the report. `idle`: experts that no token reached; all inputs count alike there."""

    tokens: int
    tensors: int
    idle: int
    dtype: str
    seconds: float


def write(folder: Path, f16: Path, ids: Sequence[int], out: Path) -> Importance:
    """Run the model `folder` over the tokens `ids`; write `out`, an .npz with a float32 row for each expert and tensor.

    f16: the GGUF file made of the same folder, which names the tensors. RunError where memory does not allow to run the
    model, or where what a tensor is multiplied with cannot be told, which depends on the architecture.
    """
    import numpy as np

    started = time.monotonic()
    gguf = gguf_file.read(f16)
    if not ids:
        raise RunError(
            STAGE, "there are no training rows to take it from; choose a method that needs none, such as q3_k_m"
        )
    with reference.opened(folder) as model:
        if isinstance(model, TooLarge):
            raise RunError(STAGE, f"the model must be run for it, and {model.reason}; q3_k_m and q2_k need none")
        seen = _observed(model.model, ids)
        named = _named(gguf, seen)
        _prove(gguf, named, dict(model.model.named_parameters()))
        dtype = model.dtype
    rows = {name: _rows(*seen[parameter]) for parameter, names in named.items() for name in names}
    with out.open("wb") as file:  # a path would be given the ending .npz
        np.savez(file, **rows)  # type: ignore[arg-type]  # its stub fears that a tensor is named allow_pickle
    idle = sum(int((counts == 0).sum()) for _, counts in seen.values())
    return Importance(len(ids), len(rows), idle, dtype, round(time.monotonic() - started, 1))


def joined(rows: Sequence[Sequence[int]], most: int = MOST) -> list[int]:
    """The tokens of rows, one after the other: at most `most`, taken from all over the rows rather than from the first."""
    found: list[int] = []
    for step in range(8):
        for row in rows[step::8]:
            if len(found) + len(row) > most:
                return found or list(row[:most])
            found += row
    return found


# ---- what a matrix is multiplied with -----------------------------------------------------------------------------


def _observed(model: PreTrainedModel | PeftModel, ids: Sequence[int]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """For every parameter that inputs are multiplied with: sums of squares [experts, inputs], and tokens [experts]."""
    import torch

    if hasattr(model, "set_experts_implementation"):
        # One linear() an expert; the fused ways show no single expert's inputs.
        model.set_experts_implementation("eager")
    found: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    places: dict[int, tuple[str, int]] = {}
    for name, parameter in model.named_parameters():
        if parameter.dim() not in (2, 3):
            continue
        experts = parameter.shape[0] if parameter.dim() == 3 else 1
        each = parameter.numel() // experts * parameter.element_size()
        places |= {parameter.data_ptr() + each * expert: (name, expert) for expert in range(experts)}
        found[name] = (
            torch.zeros(experts, parameter.shape[-1], dtype=torch.float64),
            torch.zeros(experts, dtype=torch.int64),
        )

    def tell(inputs: torch.Tensor, weight: torch.Tensor) -> None:
        if (place := places.get(weight.data_ptr())) is None:
            return
        name, expert = place
        sums, counts = found[name]
        inputs = inputs.reshape(-1, inputs.shape[-1])
        sums[expert] += inputs.float().square().sum(dim=0).double()
        counts[expert] += len(inputs)

    with torch.inference_mode(), _listening(tell):
        for low in range(0, len(ids), CHUNK):
            model(input_ids=torch.tensor([list(ids[low : low + CHUNK])]), use_cache=False, logits_to_keep=1)
    return {name: seen for name, seen in found.items() if bool(seen[1].any())}


@contextmanager
def _listening(tell: Callable[[torch.Tensor, torch.Tensor], None]) -> Iterator[None]:
    """Tell of every torch.nn.functional.linear: hooks on modules would miss those of experts, which have no module."""
    import torch
    from torch.overrides import TorchFunctionMode

    class Listener(TorchFunctionMode):
        def __torch_function__(
            self,
            function: Callable[..., object],
            types: object,
            args: tuple[object, ...] = (),
            kwargs: dict[str, object] | None = None,
        ) -> object:
            if function is torch.nn.functional.linear:
                named: dict[str, Any] = {**dict(zip(("input", "weight"), args, strict=False)), **(kwargs or {})}
                tell(named["input"], named["weight"])
            return function(*args, **(kwargs or {}))

    with Listener():
        yield


# ---- whose it is in the GGUF file -----------------------------------------------------------------------------------


def _named(gguf: GGUF, seen: Iterable[str]) -> dict[str, list[str]]:
    """For each observed parameter the tensors of the GGUF file that it became. RunError when one is left without."""
    from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map

    architecture = next((key for key, name in MODEL_ARCH_NAMES.items() if name == gguf.architecture), MODEL_ARCH.LLAMA)
    names = get_tensor_name_map(architecture, int(gguf.of_architecture("block_count", 0)))
    found: dict[str, list[str]] = {}
    for parameter in seen:
        stem = parameter.removesuffix(".weight").replace("language_model.", "")
        parts = [stem]
        if stem.endswith("experts.gate_up_proj"):  # one tensor in transformers, two in the file
            parts = [stem.replace("gate_up_proj", part) for part in ("gate_proj", "up_proj")]
        tensors = [f"{names.get_name(part)}.weight" for part in parts]
        if all(name in gguf.tensors and name not in EMBEDDINGS for name in tensors):
            found[parameter] = tensors
    known = {name for tensors in found.values() for name in tensors}
    missing = [name for name, tensor in gguf.tensors.items() if _is_matrix(name, tensor) and name not in known]
    if missing:
        raise RunError(
            STAGE,
            f"none can be made for the architecture {gguf.architecture}: what {missing[0]} is multiplied with was not "
            f"seen ({len(missing)} such tensors); q3_k_m and q2_k need none",
        )
    return found


def _is_matrix(name: str, tensor: Tensor) -> bool:
    """Whether llama.cpp would quantise it: a matrix that the converter wrote in 16 bits (it keeps routers in float32)."""
    return len(tensor.shape) > 1 and tensor.kind_name in ("F16", "BF16") and name not in EMBEDDINGS


def _prove(gguf: GGUF, named: dict[str, list[str]], parameters: Mapping[str, torch.Tensor]) -> None:
    """RunError unless the tensors have the columns of their parameter, in its order: rows the converter may permute."""
    import numpy as np

    for parameter, names in named.items():
        weight = parameters[parameter].detach()
        weight = weight if weight.dim() == 3 else weight[None]
        ours = np.stack([_squares(part.float().numpy()) for part in weight])
        theirs = functools.reduce(np.add, (_columns(gguf, gguf.tensors[name], len(weight)) for name in names))
        if ours.shape != theirs.shape or np.abs(theirs - ours).max() > MOST_APART * max(ours.mean(), 1e-12):
            raise RunError(
                STAGE,
                f"none can be made for the architecture {gguf.architecture}: {' and '.join(names)} has its columns in another "
                f"order than {parameter}; q3_k_m and q2_k need none",
            )


def _columns(gguf: GGUF, tensor: Tensor, experts: int) -> np.ndarray:
    """Sums of squares [experts, columns] of a tensor of the file, read in blocks."""
    import numpy as np

    if experts > 1:
        return np.stack([_squares(gguf.values(tensor, expert, 1)[0]) for expert in range(experts)])
    step = max(1, BLOCK // tensor.shape[-1])
    blocks = (_squares(gguf.values(tensor, low, step)) for low in range(0, tensor.shape[0], step))
    return functools.reduce(np.add, blocks)[None]


def _squares(rows: np.ndarray) -> np.ndarray:
    import numpy as np

    sums: np.ndarray = np.square(rows, dtype=np.float64).sum(axis=0)
    return sums


def _rows(sums: torch.Tensor, counts: torch.Tensor) -> np.ndarray:
    """Means of squares [experts, inputs]; an expert that no token reached weighs all its inputs alike, as in llama.cpp."""
    means = sums / counts.clamp_min(1)[:, None]
    means[counts == 0] = 1.0
    means = means.clamp_min(FLOOR * float(means.mean()) or FLOOR)
    found: np.ndarray = means.float().numpy()
    return found
