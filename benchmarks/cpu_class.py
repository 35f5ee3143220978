"""Which class a CPU is of, as far as training is concerned, and how to have a lesser one on it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

FORCED = "TRAIN_SPEED_CLASS"  # tells a process of the benchmark which class it is to be


@dataclass(frozen=True)
class CpuClass:
    """`flags`: what /proc/cpuinfo says of a CPU of the class. `environ`: what keeps libraries on another CPU within it.

    `march`: what the compiler of kernels.c is told; None where no switch keeps a library within it.
    """

    name: str
    flags: tuple[str, ...]
    dtype: str
    march: str | None = None
    environ: tuple[tuple[str, str], ...] = ()


def _switches(onednn: str, mkl: str, aten: str) -> tuple[tuple[str, str], ...]:
    return ("ONEDNN_MAX_CPU_ISA", onednn), ("MKL_ENABLE_INSTRUCTIONS", mkl), ("ATEN_CPU_CAPABILITY", aten)


# The best first.
CLASSES = (
    CpuClass("AMX", ("amx_bf16",), "bfloat16"),
    CpuClass("AVX512-BF16", ("avx512_bf16",), "bfloat16"),
    CpuClass("AVX512", ("avx512f",), "float32", "x86-64-v4", _switches("AVX512_CORE", "AVX512", "avx512")),
    CpuClass("AVX-VNNI", ("avx2", "avx_vnni"), "float32", "x86-64-v3", _switches("AVX2_VNNI", "AVX2", "avx2")),
    CpuClass("AVX2", ("avx2",), "float32", "x86-64-v3", _switches("AVX2", "AVX2", "avx2")),
)
OTHER = CpuClass("other", (), "float32")


def classes(flags: Sequence[str]) -> list[CpuClass]:
    """The classes that a CPU with these flags can be, the best first; the others by a switch."""
    able = [one for one in CLASSES if set(one.flags) <= set(flags)] or [OTHER]
    return able[:1] + [one for one in able[1:] if one.march]


def here() -> list[CpuClass]:
    """Those of this CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return [OTHER]
    return classes(next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), []))


def now() -> CpuClass:
    """The class that this process is to be."""
    wanted = os.environ.get(FORCED)
    return next(one for one in here() if wanted in (None, one.name))


def keep_within() -> CpuClass:
    """Hold the hand-written kernels to the class of this process, which its environment was made for."""
    found = now()
    if os.environ.get(FORCED) and found.march:
        from training.fast_cpu import kernels

        kernels.FLAGS = tuple(f"-march={found.march}" if flag == "-march=native" else flag for flag in kernels.FLAGS)
    return found


def asked_for(doc: str | None) -> CpuClass:
    """The class that --class names on the command line, or this CPU's own; the process begins anew to be held to a lesser one.

    `doc`: what --help says.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--class", dest="name", choices=[one.name for one in here()])
    name = parser.parse_args().name
    if name and not os.environ.get(FORCED):
        chosen = next(one for one in here() if one.name == name)
        # Libraries read these when they are loaded.
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **dict(chosen.environ), FORCED: name})
    return keep_within()


def line(chosen: CpuClass) -> str:
    """The CPU, its class and what the tables need to name, in one line."""
    from training.system import this_machine

    machine = this_machine.inspect()
    best = here()[0]
    by_switch = "" if chosen == best else f", held to {chosen.name} by switches"
    versions = f"torch {machine.versions['torch']}"
    return f"{machine.cpu}: {best.name}{by_switch}, {machine.cores} cores, trained in {chosen.dtype}; {versions}"
