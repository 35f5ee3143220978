"""What this machine is: its processors, memory and cards, and the versions of what matters here.

It is asked before anything is loaded or downloaded; what follows from it is decided in plan/choices.py.
"""

from __future__ import annotations

import math
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from training.system import control_groups
from training.system.wording import gigabytes

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "unsloth", "llama_cpp_python", "gguf")
# The variables that say which cards a process sees: CUDA's, of which ROCm obeys both, and XPU's.
CARDS = (("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"), ("ZE_AFFINITY_MASK",))
_cards: dict[str, str] = {}  # them, as the caller had set them


@dataclass(frozen=True)
class Gpu:
    """One accelerator as torch describes it."""

    name: str
    memory: int  # bytes
    capability: tuple[int, int]
    free: int | None = None  # bytes; other programs may hold the rest


@dataclass(frozen=True)
class Machine:
    """What was found. Sizes are bytes; `memory` is what this process may use (a container's limit counts)."""

    python: str
    system: str
    cpu: str
    cores: int  # physical cores this process may run on
    bf16_unit: str | None  # "amx_bf16", "avx512_bf16" or None
    memory: int
    memory_available: int
    gpus: tuple[Gpu, ...]
    backend: str | None  # "cuda", "rocm", "xpu", or None without an accelerator
    versions: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """The record as JSON-able values, for the report."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The machine in a few lines for the log."""
        unit = f"{self.bf16_unit} (bf16)" if self.bf16_unit else "no bf16 units"
        lines = [
            f"Python {self.python} on {self.system}",
            f"CPU {self.cpu}, {self.cores} cores, {unit}; memory {gigabytes(self.memory_available)} free of "
            f"{gigabytes(self.memory)}",
        ]
        lines += [
            f"GPU {g.name}, {_free(g)}{gigabytes(g.memory)}, compute capability {g.capability[0]}.{g.capability[1]}"
            for g in self.gpus
        ]
        lines.append(" ".join(f"{name} {version}" for name, version in self.versions.items()))
        return lines


def show_one_card(device: str, number: int = 0) -> None:
    """Let this process see one card only: the one that DEVICE names, or the one of this number. Before torch looks for them.

    With several in sight the trainer spreads each batch over all of them (nn.DataParallel), and Unsloth the model.
    A card is counted among those that the caller's own variable shows; one that is not there is then found missing.
    """
    global _cards
    _cards = {name: os.environ[name] for names in CARDS for name in names if name in os.environ}
    os.environ.update(card(int(device.partition(":")[2] or number)))


def card(number: int) -> dict[str, str]:
    """The variables that let a process see one card only, of those that this program's caller shows."""
    chosen = {}
    for names in CARDS:
        given = [name for name in names if name in _cards]
        for name in given:
            shown = [one.strip() for one in _cards[name].split(",") if one.strip()]
            if shown:  # set to nothing: no card shall be seen
                chosen[name] = shown[number] if number < len(shown) else "-1"
        if not given:
            chosen[names[-1]] = str(number)
    return chosen


@contextmanager
def variables(values: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for a while."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def processors() -> set[int]:
    """The numbers of the processors that this process may run on; two hyper-threads are two of them."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def inspect() -> Machine:
    """Look at this machine. Imports torch, since only torch knows what it can use."""
    import psutil
    import torch

    total, available = memory()
    gpus, backend = _gpus(torch)
    return Machine(
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()}",
        cpu=_cpu_name(),
        cores=_physical_cores(psutil),
        bf16_unit=_bf16_unit(),
        memory=total,
        memory_available=available,
        gpus=gpus,
        backend=backend,
        versions=versions(),
    )


def memory() -> tuple[int, int]:
    """Bytes of memory that this process may use, and how many of them are free; a container's limit counts."""
    import psutil

    found = psutil.virtual_memory()
    limit, free = control_groups.memory() or (found.total, found.available)
    return min(found.total, limit), min(found.available, free)


def _free(gpu: Gpu) -> str:
    return "" if gpu.free is None else f"{gigabytes(gpu.free)} free of "


def cards(kind: str) -> int:
    """How many cards this program's caller shows; counted in another process, for this one is to see its own only."""
    variables = {name: value for name, value in os.environ.items() if not any(name in names for names in CARDS)}
    count = f"import torch; print(torch.{kind.partition(':')[0]}.device_count())"
    counted = subprocess.run(
        [sys.executable, "-c", count], env=variables | _cards, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    return int(counted.stdout) if counted.returncode == 0 else 0


def versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _gpus(torch: ModuleType) -> tuple[tuple[Gpu, ...], str | None]:
    if torch.cuda.is_available():
        backend = "rocm" if torch.version.hip else "cuda"
        described = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        free = [torch.cuda.mem_get_info(i)[0] for i in range(len(described))]
        cards = (Gpu(d.name, d.total_memory, (d.major, d.minor), f) for d, f in zip(described, free, strict=True))
        return tuple(cards), backend
    if hasattr(torch, "xpu") and torch.xpu.is_available():
        described = [torch.xpu.get_device_properties(i) for i in range(torch.xpu.device_count())]
        return tuple(Gpu(d.name, d.total_memory, (0, 0)) for d in described), "xpu"
    return (), None


def _physical_cores(psutil: ModuleType) -> int:
    """Physical cores among those this process may use: two hyper-threads share one set of matrix units. No more than a
    container has the time of, whose threads would stand still for the rest of each period."""
    allowed = len(processors())
    share = math.ceil(control_groups.processors() or allowed)
    return max(1, min(psutil.cpu_count(logical=False) or allowed, allowed, share))


def _cpuinfo() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    first = path.read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}


def _cpu_name() -> str:
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def _bf16_unit() -> str | None:
    flags = _cpuinfo().get("flags", "").split()
    return next((unit for unit in ("amx_bf16", "avx512_bf16") if unit in flags), None)


def busy() -> str:
    """A word of warning beside what was measured where the machine was not ours alone."""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    return f", beside other programs: load {load:.1f} on {cores} cores" if load > 1.5 * cores else ""


def oom_kills() -> int | None:
    """How many processes the kernel has killed because memory ran out, on this machine, since it started."""
    try:
        for line in Path("/proc/vmstat").read_text(encoding="ascii").splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    except OSError:
        pass
    return None
