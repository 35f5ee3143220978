"""Peak memory of merge and proof on a random model of 1B parameters:  python benchmarks/merge_memory.py [FOLDER]

Bound: 1.3 times the largest shard + 500 MB. Needs 5 GB of disk in FOLDER (default: a temporary one), removed afterwards.
Linux only (/proc).
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from training.base_model import safetensors_file
from training.checks import tensors as proof
from training.to_gguf import merging

LAYERS, HIDDEN, INNER, VOCABULARY, RANK = 16, 2048, 8192, 32_000, 16  # 1.1B parameters
SHAPES = {
    **{f"self_attn.{name}_proj": (HIDDEN, HIDDEN) for name in "qkvo"},
    **{"mlp.gate_proj": (INNER, HIDDEN), "mlp.up_proj": (INNER, HIDDEN), "mlp.down_proj": (HIDDEN, INNER)},
}


def write(file: Path, dtype: str, shapes: dict[str, tuple[int, ...]]) -> int:
    """Write a safetensors file of random values, a tensor at a time; gives its bytes."""
    import torch

    with file.open("wb") as stream:
        stream.write(
            safetensors_file.encode_header({name: (dtype, shape) for name, shape in shapes.items()}, {"format": "pt"})
        )
        for shape in shapes.values():
            values = (torch.randn(shape) * 0.02).to(getattr(torch, safetensors_file.FLOATS[dtype]))
            stream.write(values.view(torch.uint8).numpy().tobytes())
    return file.stat().st_size


def make(base: Path, adapter: Path) -> int:
    """A base in four shards and an adapter on all its linear layers; gives the bytes of the largest shard."""
    layers = {f"model.layers.{n}.{name}": shape for n in range(LAYERS) for name, shape in SHAPES.items()}
    tensors = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN), **{f"{name}.weight": s for name, s in layers.items()}}
    base.mkdir()
    adapter.mkdir()
    names, largest, index = list(tensors), 0, {}
    for number in range(4):
        file = f"model-{number + 1:05d}-of-00004.safetensors"
        mine = names[number * len(names) // 4 : (number + 1) * len(names) // 4]
        largest = max(largest, write(base / file, "BF16", {name: tensors[name] for name in mine}))
        index |= dict.fromkeys(mine, file)
    (base / safetensors_file.INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index}))
    (base / "config.json").write_text('{"tie_word_embeddings": true}')
    factors = {}
    for name, (rows, width) in layers.items():
        factors[f"base_model.model.{name}.lora_A.weight"] = (RANK, width)
        factors[f"base_model.model.{name}.lora_B.weight"] = (rows, RANK)
    write(adapter / "adapter_model.safetensors", "F32", factors)
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": RANK}))
    return largest


def measure(base: Path, adapter: Path, out: Path) -> None:
    """Merge and prove; print seconds and this process's peak memory in bytes after each, as JSON."""
    peaks = {}
    for name, work in (("merge", merging.merge), ("proof", proof.verify)):
        started = time.monotonic()
        work(base, adapter, out)
        # Not ru_maxrss: on Linux a child starts with its parent's peak in it, and this one's parent made the model.
        peak = int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024
        peaks[name] = {"seconds": round(time.monotonic() - started, 1), "peak": peak}
    print(json.dumps(peaks))


def main(folder: Path) -> int:
    """Make the files, measure in a process of its own, compare with the bound; 0 when it holds."""
    import subprocess

    base, adapter, out = folder / "base", folder / "adapter", folder / "merged"
    largest = make(base, adapter)
    command = [sys.executable, str(Path(__file__).resolve()), "--measure", str(base), str(adapter), str(out)]
    peaks = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    bound = 1.3 * largest + 500e6
    for name, found in peaks.items():
        print(f"{name}: {found['seconds']} s, peak {found['peak'] / 1e6:.0f} MB (bound {bound / 1e6:.0f} MB)")
    print(f"largest shard {largest / 1e6:.0f} MB")
    return int(any(found["peak"] > bound for found in peaks.values()))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(*map(Path, sys.argv[2:5]))
    else:
        with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as name:
            sys.exit(main(Path(name)))
