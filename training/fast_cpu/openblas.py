"""Products of float32 matrices by OpenBLAS, which NumPy's wheels bring along: openblas.c calls it.

On CPUs of AMD without AVX-512 it uses more of the vector units than MKL and oneDNN do (benchmarks/README.md).
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import NamedTuple

import torch

from training.fast_cpu import kernels

# What its functions are called where it counts in 64 bits: in NumPy's wheels since 2.0, and as it is built elsewhere.
NAMES = (("scipy_cblas_sgemm64_", "scipy_openblas_{}_num_threads64_"), ("cblas_sgemm64_", "openblas_{}_num_threads64_"))
# Threads that it has memory for at once (its MAX_THREADS in NumPy's wheels).
MOST_THREADS = 64


class OpenBlas(NamedTuple):
    """Where its functions are in this process."""

    sgemm: ctypes.c_void_p
    get_threads: ctypes.c_void_p
    set_threads: ctypes.c_void_p


@cache
def found() -> OpenBlas | None:
    """NumPy's OpenBLAS in this process; None where NumPy has another library (Linux; elsewhere always)."""
    # It loads the library.
    import numpy  # noqa: F401

    for path in sorted({path for *_, path in kernels.mapped_files() if "openblas" in path}):
        try:
            library = ctypes.CDLL(path)
        except OSError:
            continue
        for sgemm, threads in NAMES:
            names = (sgemm, threads.format("get"), threads.format("set"))
            if all(hasattr(library, name) for name in names):
                return OpenBlas(*(ctypes.cast(getattr(library, name), ctypes.c_void_p) for name in names))
    return None


def possible() -> bool:
    """Whether products can be had from it, by as many threads as torch has."""
    return found() is not None and torch.get_num_threads() <= MOST_THREADS


def product(a: torch.Tensor, b: torch.Tensor, into: torch.Tensor | None = None, adds: bool = False) -> torch.Tensor:
    """a b, of a [m, k] and b [k, n], either of which may be the transpose of a dense one; in `into`, dense, where that is
    given, and added to what is there where it `adds`."""
    library = found()
    if library is None:
        raise ValueError("there is no OpenBLAS in this process")
    result = a.new_empty(len(a), b.shape[1]) if into is None else into
    if any(one.dtype != torch.float32 for one in (a, b, result)) or not result.is_contiguous():
        raise ValueError("products by OpenBLAS are of float32, and dense")
    (a, of_a, a_turned), (b, of_b, b_turned) = _stored(a), _stored(b)
    pointers = [*library, *(ctypes.c_void_p(one.data_ptr()) for one in (a, b, result))]
    sizes = [ctypes.c_long(size) for size in (*result.shape, a.shape[1], of_a, of_b)]
    kernels.load().openblas_product(*pointers, *sizes, a_turned, b_turned, int(adds), torch.get_num_threads())
    return result


def _stored(matrix: torch.Tensor) -> tuple[torch.Tensor, int, int]:
    """A matrix, how far its rows are apart, or its columns where it is the transpose of a stored one, and whether it is."""
    (rows, columns), (down, right) = matrix.shape, matrix.stride()
    if right == 1 and down >= columns:
        return matrix, down, 0
    if down == 1 and right >= rows:
        return matrix, right, 1
    return matrix.contiguous(), columns, 0
