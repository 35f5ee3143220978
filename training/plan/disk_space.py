"""What a run takes of the disk, and whether activations are kept. Reckoned before it starts (memory: memory.py, memory_fit.py)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from training.base_model import model_folder
from training.errors import MachineError
from training.evaluation import divergence, reference
from training.plan import memory, memory_fit
from training.settings import Choice
from training.settings.names import NEED_IMPORTANCE_MATRIX
from training.system.this_machine import Machine
from training.system.wording import gigabytes

HEAD, EMBEDDING = "lm_head", "embed_tokens"
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
    needed = sum(memory.estimate(given, memory.shape(base.config, base.parameters), summary.total.longest).values())
    words = f"about {gigabytes(needed)} needed without, {gigabytes(machine.memory_available)} are free"
    return Choice(needed * memory_fit.MARGIN > machine.memory_available, words)


def disk_needed(given: Any, base: Any, steps: int) -> dict[str, int]:
    """Bytes that the run will take under OUTPUT_DIR at its fullest, by what takes them.

    That is while its files are checked: for that all of them must be there, KEEP_MERGED and KEEP_F16 or not.
    """
    parameters = base.parameters + untied(given, base)
    sixteen = parameters * 2
    needed = {"merged": sixteen, "f16 GGUF": sixteen}
    for method in given.quantization.quantization_method:
        if method not in ("f16",):
            bits = next((b for prefix, b in sorted(BITS.items(), reverse=True) if method.startswith(prefix)), 16)
            needed[method] = int(parameters * bits / 8)
    lora = adapter_parameters(given, base) * 4
    kept = (given.training.save_total_limit or math.ceil(steps / (given.training.save_steps or steps))) + 1
    needed["adapter and checkpoints"] = lora * (1 + 3 * kept)
    vocabulary = (base.config.get("text_config") or base.config).get("vocab_size", 0)
    needed["logits for the checks"] = 2 * divergence.SCORED_IN_ALL * vocabulary * 4  # of merged model and f16 file
    needed["margin"] = MARGIN
    return needed


def adapter_parameters(given: Any, base: Any) -> int:
    """Trainable parameters of the adapter: r x (inputs + outputs) of every targeted weight.

    all-linear means the blocks' own, without the output layer (PEFT).
    """
    chosen = set(given.lora.target_modules)
    within = [shape for module, *shape in linear_modules(base.path) if {"all-linear", _last(module)} & chosen]
    outer = outer_modules(base.path) if chosen & {HEAD, EMBEDDING} else {}
    outside = [shape for name, shape in outer.items() if name in chosen]
    return sum(given.lora.r * (rows + columns) for rows, columns in [*within, *outside])


def untied(given: Any, base: Any) -> int:
    """Parameters that a merged model has beyond its base's: where one matrix is embedding and head, and one of the two is
    trained, they are two afterwards."""
    if not {HEAD, EMBEDDING} & set(given.lora.target_modules) or not is_tied(base):
        return 0
    return math.prod(outer_modules(base.path).get(EMBEDDING, (0,)))


def is_tied(base: Any) -> bool:
    """Whether the model has one matrix for its embedding and its head."""
    return HEAD not in {_last(name.removesuffix(".weight")) for name in model_folder.shapes(base.path)}


def outer_modules(folder: Path) -> dict[str, tuple[int, int]]:
    """What TARGET_MODULES may name outside of the blocks, embed_tokens and lm_head -> (outputs, inputs).

    A tied head is there too: its matrix is the embedding's.
    """
    shapes = {_last(name.removesuffix(".weight")): shape for name, shape in model_folder.shapes(folder).items()}
    found = {name: shapes[name] for name in (EMBEDDING, HEAD) if len(shapes.get(name, ())) == 2}
    if EMBEDDING in found:
        found.setdefault(HEAD, found[EMBEDDING])
    return found


def linear_modules(folder: Path) -> list[tuple[str, int, int]]:
    """The linear layers inside the model's blocks: (full name, outputs, inputs)."""
    return [
        (name.removesuffix(".weight"), *shape)
        for name, shape in model_folder.shapes(folder).items()
        if name.endswith(".weight") and len(shape) == 2 and ".layers." in name
    ]


def _last(module: str) -> str:
    return module.rpartition(".")[2]


def check_importance(given: Any, base: Any, machine: Machine) -> None:
    """Refuse a method whose importance matrix cannot be made: the merged model must be run for it, if only in 16 bits."""
    needing = [method for method in given.quantization.quantization_method if method in NEED_IMPORTANCE_MATRIX]
    needed = base.parameters * 2 + reference.ROOM
    if needing and needed > machine.memory_available:
        raise MachineError(
            f"too little memory: {needing[0]} needs an importance matrix, and the model must be run for it in {gigabytes(needed)}; "
            f"{gigabytes(machine.memory_available)} are free. QUANTIZATION_METHOD = q3_k_m or q2_k needs none"
        )


def words(disk: dict[str, int]) -> str:
    return ", ".join(f"{name} {gigabytes(size)}" for name, size in disk.items())
