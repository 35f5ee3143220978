"""Compile and call kernels.c: the parts of a decoder layer that are no matrix products, for training on a CPU.

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
from typing import Any

SOURCE = Path(__file__).with_name("kernels.c")
CACHE = Path(__file__).resolve().parents[1] / ".cache" / "kernels"
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
    source = SOURCE.read_bytes()
    # The same checkout may be used by machines with other CPUs (a network disk): their flags are part of the name.
    key = hashlib.sha256(source + " ".join(FLAGS).encode() + _cpu()).hexdigest()[:16]
    library = CACHE / f"kernels-{key}.so"
    if not library.is_file():
        _compile(library)
    try:
        loaded = ctypes.CDLL(str(library))
    except OSError as error:
        raise Unavailable(f"{library} does not load: {error}") from error
    for suffix in SUFFIXES.values():
        getattr(loaded, f"cross_entropy_{suffix}").restype = ctypes.c_double
    return loaded


def _compile(library: Path) -> None:
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        raise Unavailable("there is no C compiler")
    partial = library.with_name(f".{library.name}.{os.getpid()}.partial")
    try:
        CACHE.mkdir(parents=True, exist_ok=True)
        command = [*compiler.split(), *FLAGS, str(SOURCE), "-o", str(partial), "-lm"]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=120, check=False)
        if done.returncode:
            raise Unavailable(f"{compiler} failed: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}")
        partial.replace(library)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{compiler}: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


def _cpu() -> bytes:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next((line for line in lines if line.startswith(("flags", "Features"))), "").encode()
    except OSError:
        return platform.processor().encode()


def call(name: str, like: Any, *arguments: Any) -> Any:
    """Call a kernel for the type of the tensor `like`. Tensors are passed as pointers, None as a null pointer.

    The last argument that every kernel takes, the number of threads, is torch's own and is added here.
    """
    import torch

    function = getattr(load(), f"{name}_{SUFFIXES[str(like.dtype)]}")
    return function(*map(_as_c, arguments), ctypes.c_int(torch.get_num_threads()))


def _as_c(value: Any) -> Any:
    if value is None:
        return ctypes.c_void_p(None)
    if isinstance(value, int):
        return ctypes.c_long(value)
    if isinstance(value, float):
        return ctypes.c_double(value)
    return ctypes.c_void_p(value.data_ptr())
