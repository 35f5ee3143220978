"""What a run takes: memory while it trains, disk on its way. Reckoned before it starts, so that it does not end for want of it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from training import weights
from training.environment import Choice, Machine, gigabytes
from training.errors import MachineError

MARGIN = 500_000_000  # bytes of disk beyond what is counted: logs, reports, a file system's own needs
BITS = {
    "q8": 8.5,
    "q6": 6.6,
    "q5": 5.7,
    "q4": 4.9,
    "q3": 4.0,
    "q2": 3.4,
    "iq4": 4.6,
    "iq3": 3.8,
    "iq2": 2.8,
    "iq1": 2.0,
}  # a weight, about


def checkpointing(given: Any, base: Any, summary: Any, machine: Machine) -> Choice:
    """Recompute activations in the backward pass only where memory asks for it: it costs a third more time."""
    if given.hardware.engine == "unsloth" and given.hardware.device != "cpu":
        return Choice(True, "Unsloth's own, which offloads to the CPU")
    if given.hardware.device != "cpu":
        return Choice(True, "a GPU's memory is better spent on the batch")
    needed = activations(given, base, summary)
    fits = needed < 0.5 * machine.memory_available
    words = f"activations need about {gigabytes(needed)}, {gigabytes(machine.memory_available)} are free"
    return Choice(not fits, words)


def activations(given: Any, base: Any, summary: Any) -> int:
    """A rough upper bound for the bytes of activations that one micro-batch keeps for the backward pass.

    34 values of 2 bytes a token, layer and hidden unit (Korthikanti et al. 2022, table 2, without the attention
    matrices, which eager attention adds: 5 x heads x length), measured to be on the high side here.
    """
    config = base.config
    length = summary.total[3]
    batch = given.training.per_device_train_batch_size
    hidden, layers = config.get("hidden_size", 4096), config.get("num_hidden_layers", 32)
    heads = config.get("num_attention_heads", 32)
    return batch * length * layers * (34 * 2 * hidden + 5 * 2 * heads * length)


def disk_needed(given: Any, base: Any, steps: int) -> dict[str, int]:
    """Bytes that the run will take under OUTPUT_DIR at its fullest, by what takes them."""
    sixteen = base.parameters * 2
    needed = {"merged": sixteen, "f16 GGUF": sixteen}
    for method in given.quantization.quantization_method:
        if method not in ("f16",):
            bits = next((b for prefix, b in sorted(BITS.items(), reverse=True) if method.startswith(prefix)), 16)
            needed[method] = int(base.parameters * bits / 8)
    lora = adapter_parameters(given, base) * 4
    kept = (given.training.save_total_limit or math.ceil(steps / (given.training.save_steps or steps))) + 1
    needed["adapter and checkpoints"] = lora * (1 + 3 * kept)
    needed["margin"] = MARGIN
    return needed


def adapter_parameters(given: Any, base: Any) -> int:
    """Trainable parameters of the adapter: r x (inputs + outputs) of every targeted weight."""
    chosen = set(given.lora.target_modules)
    return sum(
        given.lora.r * (rows + columns)
        for module, rows, columns in linear_modules(base.path)
        if "all-linear" in chosen or module.rpartition(".")[2] in chosen
    )


def linear_modules(folder: Path) -> list[tuple[str, int, int]]:
    """The linear layers inside the model's blocks: (full name, outputs, inputs), from the headers of its weights."""
    return [
        (name.removesuffix(".weight"), *tensor.shape)
        for name, tensor in weights.tensors(folder, "model").items()
        if name.endswith(".weight") and len(tensor.shape) == 2 and ".layers." in name
    ]


def check_memory(plan: Any) -> None:
    """Refuse a run that cannot fit into memory, before hours are spent on finding out."""
    if plan.settings.hardware.device != "cpu":
        return
    width = 4 if plan.settings.hardware.precision != "bf16" else 2
    needed = plan.base.parameters * width + adapter_parameters(plan.settings, plan.base) * 16
    if needed > plan.machine.memory_available:
        raise MachineError(
            f"too little memory: {gigabytes(plan.machine.memory_available)} free, and the model alone takes "
            f"{gigabytes(needed)} in {plan.settings.hardware.precision}; choose a smaller BASE_MODEL_NAME"
        )


def words(disk: dict[str, int]) -> str:
    return ", ".join(f"{name} {gigabytes(size)}" for name, size in disk.items())
