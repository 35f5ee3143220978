"""The products of float32 inputs with frozen weights, by the library that is quickest at them on this CPU.

torch gives them to MKL, which does not use all that the CPUs of other makers have; oneDNN, which torch brings along,
does on those with AVX-512, and OpenBLAS, which NumPy brings along, on those without (benchmarks/README.md). Which of them
is quickest is measured in half a second, kept with the machine and stored with a run's checkpoints, for the order of the
sums differs: two runs with the same settings shall have the same losses. In bf16 torch takes oneDNN by itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch.nn import functional

from training.fast_cpu import kernels, openblas
from training.system import files

# Rounds of a measurement, and seconds of processor time after which the fewer will do.
ROUNDS, FEWEST, LONGEST = 12, 4, 0.6
# Another library is taken where it needs less than this share of the time: measurements differ by some per cent.
CLEARLY = 0.92
SHAPE = (512, 1024, 2048)  # tokens, inputs and outputs that are tried


@dataclass(frozen=True)
class Products:
    """What multiplies. `into` takes the result of `back`; for that of `linear` it is room that may be left unused."""

    name: str
    # (x, W, bias, into): x W^T + bias.
    linear: Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None], torch.Tensor]
    # (gradient, W, into): gradient W.
    back: Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
    # (a, b, to): a b, added to `to`, which is changed, where that is given; thin ones, those of adapters.
    thin: Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
    # The frozen weights of the layers are kept in 8 bits, and multiplied by int8.py; these are for the rest.
    in_8_bits: bool = False


def _torch(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, into: torch.Tensor | None = None
) -> torch.Tensor:
    if into is None or bias is not None:
        return functional.linear(x, weight, bias)
    return torch.mm(x, weight.t(), out=into)


def _torch_back(gradient: torch.Tensor, weight: torch.Tensor, into: torch.Tensor | None) -> torch.Tensor:
    return torch.mm(gradient, weight) if into is None else torch.mm(gradient, weight, out=into)


def _torch_thin(a: torch.Tensor, b: torch.Tensor, to: torch.Tensor | None) -> torch.Tensor:
    return a @ b if to is None else to.addmm_(a, b)


def _onednn(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, into: torch.Tensor | None = None
) -> torch.Tensor:
    return cast("torch.Tensor", torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], ""))


def _onednn_back(gradient: torch.Tensor, weight: torch.Tensor, into: torch.Tensor | None) -> torch.Tensor:
    result = _onednn(gradient, weight.t(), None)
    return result if into is None else into.copy_(result)


def _openblas(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, into: torch.Tensor | None = None
) -> torch.Tensor:
    if bias is None:
        return openblas.product(x, weight.t(), into)
    result = x.new_empty(len(x), len(weight)) if into is None else into
    return openblas.product(x, weight.t(), result.copy_(bias.expand_as(result)), adds=True)


def _openblas_thin(a: torch.Tensor, b: torch.Tensor, to: torch.Tensor | None) -> torch.Tensor:
    return openblas.product(a, b, to, adds=to is not None)


TORCH = Products("torch", _torch, _torch_back, _torch_thin)
ONEDNN = Products("onednn", _onednn, _onednn_back, _torch_thin)
OPENBLAS = Products("openblas", _openblas, openblas.product, _openblas_thin)


PREFIX = "int8 "


def in_8_bits(rest: Products) -> Products:
    """With the weights of the layers in 8 bits."""
    return dataclasses.replace(rest, name=PREFIX + rest.name, in_8_bits=True)


def named(name: str | None) -> Products:
    """Those of a run that was begun before; a run of an older version had torch's."""
    if name is not None and name.startswith(PREFIX):
        return in_8_bits(named(name.removeprefix(PREFIX)))
    return next((one for one in others() if one.name == name), TORCH)


def others() -> list[Products]:
    """Those that can be had here beside torch's own."""
    there = ((ONEDNN, _has_onednn()), (OPENBLAS, openblas.possible()))
    return [one for one, can in there if can]


def chosen(dtype: torch.dtype) -> Products:
    """The quicker ones for a model of this dtype: as measured before on this machine, else now."""
    if dtype != torch.float32 or not others():
        return TORCH
    place = _place()
    try:
        return named(json.loads(place.read_text(encoding="utf-8"))["products"])
    # Not measured yet, or no record of ours.
    except (OSError, ValueError, KeyError, TypeError):
        found = quicker()
    with contextlib.suppress(OSError):
        files.write_json(place, {"products": found.name})
    return found


def quicker(seconds: Callable[[Callable[[], object]], float] | None = None) -> Products:
    """Measure all in turn. `seconds`: of the processors, that a call takes: other programs hardly change it."""
    seconds = seconds or _seconds
    tokens, inputs, outputs = SHAPE
    # torch.manual_seed is the run's.
    x, weight, gradient = (torch.ones(size) for size in ((tokens, inputs), (outputs, inputs), (tokens, outputs)))
    ways = (TORCH, *others())
    for way in ways:  # the first call sets buffers up
        way.linear(x, weight, None, None)
        way.back(gradient, weight, None)
    best = dict.fromkeys((way.name for way in ways), (float("inf"), float("inf")))
    began = time.process_time()
    for number in range(ROUNDS):
        for way in ways:
            forward = seconds(functools.partial(way.linear, x, weight, None, None))
            back = seconds(functools.partial(way.back, gradient, weight, None))
            best[way.name] = (min(best[way.name][0], forward), min(best[way.name][1], back))
        if number + 1 >= FEWEST and time.process_time() - began > LONGEST:
            break
    quickest = min(ways, key=lambda way: sum(best[way.name]))
    return quickest if sum(best[quickest.name]) < CLEARLY * sum(best[TORCH.name]) else TORCH


def _seconds(call: Callable[[], object]) -> float:
    began = time.process_time()
    call()
    return time.process_time() - began


def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _place() -> Path:
    """The record of this CPU, with this torch and so many threads, under switches that change what libraries do."""
    switches = [os.environ.get(name, "") for name in ("ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")]
    said = [*switches, torch.__version__, str(torch.get_num_threads()), repr(kernels.cpu())]
    return kernels.CACHE / f"products-{hashlib.sha256(' '.join(said).encode()).hexdigest()[:16]}.json"
