"""How much quicker few_rows.c multiplies a few rows than the libraries do:  python benchmarks/few_rows_speed.py

One token of each of some answers: the frozen products of all layers and of the output layer, with random numbers, in
float32, as SmolLM2-135M and Qwen3-0.6B have them (the latter with a quarter of its layers). Milliseconds, the best of
some rounds in turn, by all threads; beside them what reading the weights alone takes. Two minutes.
--class NAME holds the libraries and kernels to a lesser class than the CPU's (cpu_class.py).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks import cpu_class

ROUNDS = 8
# Layers; outputs and inputs of a layer's products; vocabulary.
MODELS = {
    "SmolLM2-135M": (30, ((960, 576), (576, 576), (3072, 576), (576, 1536)), 49152),
    "Qwen3-0.6B": (7, ((4096, 1024), (1024, 2048), (6144, 1024), (1024, 3072)), 151936),
}
ROWS = (1, 4, 8, 16, 24, 32, 48)


def main() -> None:
    print(cpu_class.line(cpu_class.asked_for(__doc__)))
    for model, (layers, shapes, vocabulary) in MODELS.items():
        measure(model, layers, shapes, vocabulary)


def measure(model: str, layers: int, shapes: tuple[tuple[int, int], ...], vocabulary: int) -> None:
    """Print a line for each number of rows."""
    import torch

    from training.fast_cpu import few_rows, functions, products

    weights = [torch.randn(shape) for shape in (*(shapes * layers), (vocabulary, shapes[0][1]))]
    few_rows.MOST = max(ROWS)
    libraries = {one.name: one for one in (products.TORCH, *products.others())}

    def by(library: products.Products) -> Callable[[torch.Tensor, torch.Tensor], object]:
        return lambda x, weight: functions.linear(x, weight, None, library)

    ways = {name: by(one) for name, one in libraries.items()}
    ways["few_rows.c"] = lambda x, weight: few_rows.linear(x, weight, None, products.TORCH)
    reading = min(_seconds(weights, 1, lambda x, weight: weight.sum()) for _ in range(ROUNDS))
    print(f"{model}: {reading * 1000:.0f} ms to read all weights")
    print(f"{'rows':>6}" + "".join(f"{name:>12}" for name in ways) + f"{'quicker by':>12}")
    for rows in ROWS:
        best = dict.fromkeys(ways, float("inf"))
        for _ in range(ROUNDS):
            for name, way in ways.items():
                best[name] = min(best[name], _seconds(weights, rows, way))
        ratio = min(best[name] for name in libraries) / best["few_rows.c"]
        print(f"{rows:6}" + "".join(f"{best[name] * 1000:12.1f}" for name in ways) + f"{ratio:12.2f}", flush=True)


def _seconds(weights: list, rows: int, way: Callable) -> float:
    """Of the products of `rows` rows with all weights."""
    import torch

    inputs = {width: torch.randn(rows, width) for width in {weight.shape[1] for weight in weights}}
    began = time.perf_counter()
    for weight in weights:
        way(inputs[weight.shape[1]], weight)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
