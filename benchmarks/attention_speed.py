"""How much quicker attention in vector units (attention.c) is than products of matrices:  python benchmarks/attention_speed.py

Forward and backward of random rows of 60 to 2,000 tokens, heads as SmolLM2-135M and Qwen3-0.6B have them; processor time
of one thread, so that other programs on the machine matter less; the better of five rounds in turn. A minute.
--class NAME holds the libraries and kernels to a lesser class than the CPU's (cpu_class.py).
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks import cpu_class

ROUNDS = 5
HEADS = {"SmolLM2-135M": (9, 3, 64), "Qwen3-0.6B": (16, 8, 128)}  # heads, key-value heads, dimensions
LENGTHS = ((60,) * 16, (200,) * 8, (1000,) * 2, (2000,))


def seconds(dtype: str, lengths: tuple[int, ...], shape: tuple[int, int, int]) -> float:
    """Of one forward and backward pass."""
    import torch

    from training.fast_cpu.attention import Attention, Rows

    heads, groups, dim = shape
    tokens, form = sum(lengths), getattr(torch, dtype)
    qkv = torch.randn(tokens, (heads + 2 * groups) * dim).to(form).requires_grad_()
    outer = torch.randn(tokens, heads * dim).to(form)
    angles = torch.ones(tokens, dim, dtype=form), torch.zeros(tokens, dim, dtype=form)
    rows = Rows(lengths)
    began = time.process_time()
    found = Attention.apply(qkv, *angles, rows, heads, groups, dim**-0.5, None, None, 0.0)
    torch.autograd.grad(found, qkv, outer)
    return time.process_time() - began


def main() -> None:
    chosen = cpu_class.asked_for(__doc__)
    import torch

    from training.fast_cpu import kernels

    torch.set_num_threads(1)
    attends = kernels.attends
    print(cpu_class.line(chosen))
    print(f"{'heads of':>14} {'type':>9} {'rows':>10} {'matrices, ms':>13} {'vectors, ms':>12} {'ratio':>6}")
    for dtype in dict.fromkeys(("float32", chosen.dtype)):
        if not attends(getattr(torch, dtype)):
            print(f"attention.c is not for {dtype} on this CPU")
            continue
        for model, shape in HEADS.items():
            for lengths in LENGTHS:
                best = {True: float("inf"), False: float("inf")}
                for _ in range(ROUNDS):
                    for by_vectors in best:
                        kernels.attends = attends if by_vectors else lambda dtype: False
                        best[by_vectors] = min(best[by_vectors], seconds(dtype, lengths, shape))
                rows = f"{len(lengths)} x {lengths[0]}"
                figures = f"{best[False] * 1000:13.1f} {best[True] * 1000:12.1f} {best[False] / best[True]:6.2f}"
                print(f"{model:>14} {dtype:>9} {rows:>10} {figures}", flush=True)


if __name__ == "__main__":
    main()
