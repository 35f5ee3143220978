"""Compile and call kernels.c, attention.c, int8.c, openblas.c and few_rows.c: the parts of a decoder layer that are written for training on a CPU.

The library is compiled once for this machine's CPU (about two seconds) and kept under .cache/. No compiler: `load`
says so, and training goes on without these.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from training.system import paths

if TYPE_CHECKING:
    import torch

SOURCES = tuple(
    Path(__file__).with_name(name) for name in ("kernels.c", "attention.c", "int8.c", "openblas.c", "few_rows.c")
)
HEADER = Path(__file__).with_name("bf16.h")
CACHE = paths.CACHE / "kernels"
# Sums may be taken in any order, which vector units need; NaN and infinity keep their meaning: training looks for them.
FLAGS = (
    "-O3", "-march=native", "-fopenmp", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros",
    "-fassociative-math", "-ffp-contract=fast",
)  # fmt: skip
SUFFIXES = {"torch.float32": "f32", "torch.bfloat16": "bf16", "torch.float64": "f64"}


class Unavailable(Exception):
    """The kernels cannot be had on this machine; its text says why."""


@cache
def load() -> ctypes.CDLL:
    """The library, compiled when it is not there yet. Raises Unavailable when there is no compiler, or it fails."""
    source = b"".join(path.read_bytes() for path in (HEADER, *SOURCES))
    # The same checkout may be used by machines with other CPUs (a network disk): their flags are part of the name.
    key = hashlib.sha256(source + " ".join(FLAGS).encode() + cpu()).hexdigest()[:16]
    library = CACHE / f"kernels-{key}.so"
    if not library.is_file():
        _compile(library)
    try:
        loaded = ctypes.CDLL(str(library))
    except OSError as error:
        raise Unavailable(f"{library} does not load: {error}") from error
    for suffix in SUFFIXES.values():
        getattr(loaded, f"cross_entropy_{suffix}").restype = ctypes.c_double
    if hasattr(loaded, "attention_scratch"):
        loaded.attention_scratch.restype = ctypes.c_long
    if hasattr(loaded, "int8_offset"):
        loaded.int8_offset.restype = ctypes.c_long
    return loaded


@cache
def attends(dtype: torch.dtype) -> bool:
    """Whether attention.c is for this CPU and type: its vector units multiply that.

    Where it has matrix units for bf16 (AMX) these are taken, by torch.
    """
    suffix = SUFFIXES.get(str(dtype))
    return hasattr(load(), f"attention_{suffix}") and not (suffix == "bf16" and b"amx_bf16" in cpu())


def multiplies_bytes() -> bool:
    """Whether int8.c is for this CPU: its vector units have dot products of bytes, or what these are made of."""
    return hasattr(load(), "int8_product_f32")


def scratch(longest: int, dim: int) -> torch.Tensor:
    """Memory for the functions of attention.c, for rows of up to `longest` tokens and heads of `dim` dimensions."""
    import torch

    each = load().attention_scratch(ctypes.c_long(longest), ctypes.c_long(dim))
    return torch.empty(torch.get_num_threads() * each, dtype=torch.float32)


def _compile(library: Path) -> None:
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        raise Unavailable("there is no C compiler")
    partial = library.with_name(f".{library.name}.{os.getpid()}.partial")
    try:
        CACHE.mkdir(parents=True, exist_ok=True)
        command = [*compiler.split(), *FLAGS, *map(str, SOURCES), "-o", str(partial), "-lm"]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=120, check=False)
        if done.returncode:
            raise Unavailable(f"{compiler} failed: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}")
        partial.replace(library)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{compiler}: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


def cpu() -> bytes:
    """What tells this CPU from others: its flags."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next((line for line in lines if line.startswith(("flags", "Features"))), "").encode()
    except OSError:
        return platform.processor().encode()


def mapped_files() -> list[list[str]]:
    """What this process has mapped of files: addresses, rights, offset, device, inode and path of each (Linux; else none)."""
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    parts = [line.split(maxsplit=5) for line in lines]
    # What is no file's has no inode.
    return [one for one in parts if one[4] != "0" and len(one) == 6]


def call(name: str, like: torch.Tensor, *arguments: torch.Tensor | float | None) -> float:
    """Call a kernel for the type of the tensor `like`, and give its sum if it has one. Tensors are passed as pointers, None
    as a null pointer.

    The last argument that every kernel takes, the number of threads, is torch's own and is added here.
    """
    import torch

    function = getattr(load(), f"{name}_{SUFFIXES[str(like.dtype)]}")
    result: float = function(*map(_as_c, arguments), ctypes.c_int(torch.get_num_threads()))
    return result


def _as_c(value: torch.Tensor | float | None) -> ctypes.c_void_p | ctypes.c_long | ctypes.c_double:
    if value is None:
        return ctypes.c_void_p(None)
    if isinstance(value, int):
        return ctypes.c_long(value)
    if isinstance(value, float):
        return ctypes.c_double(value)
    return ctypes.c_void_p(value.data_ptr())
