"""What this machine is, and the choices that follow from it, each with its reason.

`inspect` only looks; `decide` fills the automatic settings in. Both run before anything is loaded or downloaded.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from training.errors import MachineError
from training.settings import Choice
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


def show_one_card(device: str) -> None:
    """Let this process see one card only: the one that DEVICE names, or the first. Before torch looks for them.

    With several in sight the trainer spreads each batch over all of them (nn.DataParallel), and Unsloth the model.
    A card is counted among those that the caller's own variable shows; one that is not there is then found missing.
    """
    global _cards
    _cards = {name: os.environ[name] for names in CARDS for name in names if name in os.environ}
    os.environ.update(card(int(device.partition(":")[2] or 0)))


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


def inspect() -> Machine:
    """Look at this machine. Imports torch, since only torch knows what it can use."""
    import psutil
    import torch

    memory = psutil.virtual_memory()
    limit, used = _container_limit()
    total = min(memory.total, limit or memory.total)
    available = min(memory.available, limit - used) if limit else memory.available
    gpus, backend = _gpus(torch)
    return Machine(
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()}",
        cpu=_cpu_name(),
        cores=_physical_cores(psutil),
        bf16_unit=_bf16_unit(),
        memory=total,
        memory_available=max(available, 0),
        gpus=gpus,
        backend=backend,
        versions=versions(),
    )


def _free(gpu: Gpu) -> str:
    return "" if gpu.free is None else f"{gigabytes(gpu.free)} free of "


def device(settings: Any, machine: Machine) -> Choice:
    """Where the model is trained: "cuda", "xpu" or "cpu". Raises MachineError when DEVICE asks for what is not there."""
    wanted = settings.hardware.device
    found = "cuda" if machine.backend in ("cuda", "rocm") else machine.backend
    if wanted == "auto":
        return Choice(found, machine.gpus[0].name) if found else Choice("cpu", "no CUDA, ROCm or XPU device")
    if wanted != "cpu" and wanted.split(":")[0] != found:
        raise MachineError(
            f"[Hardware] DEVICE = {wanted}: torch finds no such device here (nvidia-smi shows whether the driver runs); "
            "DEVICE = auto takes what there is"
        )
    return Choice(wanted, "DEVICE")


def precision(settings: Any, machine: Machine, where: str) -> Choice:
    """The training dtype: "bf16", "fp16" or "fp32".

    bf16 hardware begins with compute capability 8.0; torch.cuda.is_bf16_supported() says True on a T4, which only
    emulates it. On a CPU bf16 pays where a unit multiplies it (AMX, AVX512-BF16) and is slow elsewhere.
    """
    if not settings.hardware.auto_fp16_bf16:
        return Choice(settings.hardware.precision, "PRECISION")
    if where == "cpu":
        if machine.bf16_unit:
            return Choice("bf16", f"the CPU has {machine.bf16_unit}")
        return Choice("fp32", "the CPU has no bf16 units")
    if machine.backend != "cuda":
        return Choice("bf16", f"{machine.backend} device")
    capability = min(gpu.capability for gpu in machine.gpus)
    number = f"compute capability {capability[0]}.{capability[1]}"
    if capability >= (8, 0):
        return Choice("bf16", number)
    return Choice("fp16", f"{number}: no bf16 hardware before 8.0")


def engine(settings: Any, where: str) -> Choice:
    """ "unsloth" or "transformers". Raises MachineError when Unsloth is asked for, or expected, and not installed."""
    wanted = settings.hardware.engine
    if wanted == "auto" and where != "cpu" and settings.processes > 1:
        return Choice("transformers", f"{settings.processes} processes: with Unsloth only one trains")
    chosen = wanted if wanted != "auto" else ("transformers" if where == "cpu" else "unsloth")
    if chosen == "unsloth" and "unsloth" not in versions():
        raise MachineError(
            f"ENGINE = {wanted} needs Unsloth on this machine, and it is not installed: run `ENGINE=unsloth ./setup.sh`, "
            "or set ENGINE = transformers in [Hardware] (slower)"
        )
    if wanted != "auto":
        return Choice(chosen, "ENGINE")
    return Choice(chosen, "training on the CPU" if where == "cpu" else "training on a GPU")


def decide(settings: Any, machine: Machine) -> Any:
    """Fill in the automatic [Hardware] settings, and what follows from them; each choice keeps its reason."""
    where = device(settings, machine)
    settings = settings.with_choice("Hardware.DEVICE", where.value, where.reason)
    dtype = precision(settings, machine, where.value)
    settings = settings.with_choice("Hardware.PRECISION", dtype.value, dtype.reason)
    which = engine(settings, where.value)
    settings = settings.with_choice("Hardware.ENGINE", which.value, which.reason)
    if settings.hardware.num_threads == "auto":
        processes = settings.hardware.num_processes
        reason = "physical cores" if processes == 1 else f"{machine.cores} physical cores for {processes} processes"
        settings = settings.with_choice("Hardware.NUM_THREADS", max(1, machine.cores // processes), reason)
    if settings.quantization.load_in_4bit and where.value == "cpu":
        settings = settings.with_choice("Quantization.LOAD_IN_4BIT", False, "no CUDA device")
    if settings.training.optim == "auto":
        small = which.value == "unsloth" and where.value != "cpu"
        optim = (
            Choice("adamw_8bit", "Unsloth on a GPU") if small else Choice("adamw_torch", "exact, and on every device")
        )
        settings = settings.with_choice("Training.OPTIM", optim.value, optim.reason)
    return settings


def check_cards(settings: Any) -> None:
    """Raise MachineError when there are fewer cards than NUM_PROCESSES: each process trains on one of its own."""
    processes = settings.hardware.num_processes
    if processes == 1 or settings.hardware.device == "cpu":
        return
    there = cards(settings.hardware.device)
    if there < processes:
        raise MachineError(
            f"{settings.place('Hardware.NUM_PROCESSES')}: each process needs a card of its own, and {there} can be seen "
            f"here; set it to {max(1, there)}"
        )


def cards(kind: str) -> int:
    """How many cards this program's caller shows; counted in another process, for this one is to see its own only."""
    variables = {name: value for name, value in os.environ.items() if not any(name in names for names in CARDS)}
    count = f"import torch; print(torch.{kind.partition(':')[0]}.device_count())"
    counted = subprocess.run(
        [sys.executable, "-c", count], env=variables | _cards, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    return int(counted.stdout) if counted.returncode == 0 else 0


def check_disk(folder: Path, needed: int, what: str) -> None:
    """Raise MachineError when the disk under `folder` has less than `needed` bytes free."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise MachineError(
            f"too little disk space under {folder}: {gigabytes(free)} free, {gigabytes(needed)} needed for {what}; "
            "make room, or choose another OUTPUT_DIR (--output DIR)"
        )


def check_writable(output_dir: Path) -> None:
    """Raise MachineError when OUTPUT_DIR, or the nearest folder above it that exists, cannot be written."""
    folder = output_dir
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise MachineError(
            f"OUTPUT_DIR {output_dir}: {folder} is a file, not a folder; choose another one (--output DIR)"
        )
    if not os.access(folder, os.W_OK | os.X_OK) or os.statvfs(folder).f_flag & os.ST_RDONLY:
        raise MachineError(f"OUTPUT_DIR {output_dir}: {folder} cannot be written; choose another one (--output DIR)")


def ollama() -> tuple[int, ...] | None:
    """The version of the Ollama on this machine, as numbers; None where there is none, or it does not say."""
    try:
        said = subprocess.run(
            ["ollama", "--version"], capture_output=True, text=True, timeout=5, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return None
    found = re.search(r"(\d+)\.(\d+)\.(\d+)", said.stdout)
    return tuple(map(int, found.groups())) if found else None


def versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _gpus(torch: Any) -> tuple[tuple[Gpu, ...], str | None]:
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


def _physical_cores(psutil: Any) -> int:
    """Physical cores among those this process may use: two hyper-threads share one set of matrix units."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(psutil.cpu_count(logical=False) or allowed, allowed))


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


def _container_limit() -> tuple[int | None, int]:
    """The memory limit of this container and what is used of it (cgroup v2, then v1); None without a limit."""
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            text = (Path("/sys/fs/cgroup") / limit).read_text(encoding="ascii").strip()
            if text.isdigit() and int(text) < 1 << 60:
                return int(text), int((Path("/sys/fs/cgroup") / used).read_text(encoding="ascii"))
        except (OSError, ValueError):
            continue
    return None, 0


def oom_kills() -> int | None:
    """How many processes the kernel has killed for want of memory, on this machine, since it started."""
    try:
        for line in Path("/proc/vmstat").read_text(encoding="ascii").splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    except OSError:
        pass
    return None
