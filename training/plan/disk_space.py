"""What a run takes of the disk, and whether activations are kept. Reckoned before it starts (memory: memory.py, memory_fit.py)."""

from __future__ import annotations

import math
from pathlib import Path

from training.base_model import BaseModel, model_folder
from training.data.tokenising import Summary
from training.errors import MachineError
from training.evaluation import divergence, reference
from training.plan import memory, memory_fit
from training.settings import Choice, Settings
from training.settings.names import NEED_IMPORTANCE_MATRIX
from training.system.this_machine import Machine
from training.system.wording import gigabytes

HEAD, EMBEDDING = "lm_head", "embed_tokens"
# Bytes of disk beyond what is counted: logs, reports, a file system's own needs.
MARGIN = 500_000_000
# Bits a weight, about, by the beginning of a method's name.
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
}


def checkpointing(settings: Settings, base: BaseModel, summary: Summary, machine: Machine) -> Choice:
    """Recompute activations in the backward pass only where memory asks for it: it costs a third more time."""
    if settings.hardware.engine == "unsloth" and settings.hardware.device != "cpu":
        return Choice(True, "Unsloth's own, which offloads to the CPU")
    needed = sum(memory.estimate(settings, memory.shape(base.config, base.parameters), summary.total.longest).values())
    room = memory_fit.free(settings, machine)
    words = f"about {gigabytes(needed)} needed without, {gigabytes(room)} are free"
    return Choice(needed * memory_fit.MARGIN > room, words)


def disk_needed(settings: Settings, base: BaseModel, steps: int) -> dict[str, int]:
    """Bytes that the run will take under OUTPUT_DIR at its fullest, by what takes them.

    That is while its files are checked: for that all of them must be there, KEEP_MERGED and KEEP_F16 or not.
    """
    parameters = base.parameters + untied(settings, base)
    sixteen = parameters * 2
    needed = {"merged": sixteen, "f16 GGUF": sixteen}
    for method in settings.quantization.quantization_method:
        if method not in ("f16",):
            bits = next((b for prefix, b in sorted(BITS.items(), reverse=True) if method.startswith(prefix)), 16)
            needed[method] = int(parameters * bits / 8)
    lora = adapter_parameters(settings, base) * 4
    kept = (settings.training.save_total_limit or math.ceil(steps / (settings.training.save_steps or steps))) + 1
    needed["adapter and checkpoints"] = lora * (1 + 3 * kept)
    vocabulary = memory.number(base.config, "vocab_size", 0)
    # In float32, of the merged model and of the f16 file.
    needed["logits for the checks"] = 2 * divergence.SCORED_IN_ALL * vocabulary * 4
    needed["margin"] = MARGIN
    return needed


def adapter_parameters(settings: Settings, base: BaseModel) -> int:
    """Trainable parameters of the adapter: r x (inputs + outputs) of every targeted weight.

    all-linear means the blocks' own, without the output layer (PEFT).
    """
    targets = set(settings.lora.target_modules)
    within = [shape for module, *shape in linear_modules(base.path) if {"all-linear", _last(module)} & targets]
    outer = outer_modules(base.path) if targets & {HEAD, EMBEDDING} else {}
    outside = [shape for name, shape in outer.items() if name in targets]
    return sum(settings.lora.r * (rows + columns) for rows, columns in [*within, *outside])


def untied(settings: Settings, base: BaseModel) -> int:
    """Parameters that a merged model has beyond its base's: where one matrix is embedding and head, and one of the two is
    trained, they are two afterwards."""
    if not {HEAD, EMBEDDING} & set(settings.lora.target_modules) or not is_tied(base):
        return 0
    return math.prod(outer_modules(base.path).get(EMBEDDING, (0,)))


def is_tied(base: BaseModel) -> bool:
    """Whether the model has one matrix for its embedding and its head."""
    return HEAD not in {_last(name.removesuffix(".weight")) for name in model_folder.shapes(base.path)}


def outer_modules(folder: Path) -> dict[str, tuple[int, int]]:
    """What TARGET_MODULES may name outside of the blocks, embed_tokens and lm_head -> (outputs, inputs).

    A tied head is there too: its matrix is the embedding's.
    """
    shapes = {_last(name.removesuffix(".weight")): shape for name, shape in model_folder.shapes(folder).items()}
    outer: dict[str, tuple[int, int]] = {}
    for name in (EMBEDDING, HEAD):
        match shapes.get(name):
            case (outputs, inputs):
                outer[name] = outputs, inputs
    if EMBEDDING in outer:
        outer.setdefault(HEAD, outer[EMBEDDING])
    return outer


def linear_modules(folder: Path) -> list[tuple[str, int, int]]:
    """The linear layers inside the model's blocks: (full name, outputs, inputs)."""
    return [
        (name.removesuffix(".weight"), *shape)
        for name, shape in model_folder.shapes(folder).items()
        if name.endswith(".weight") and len(shape) == 2 and ".layers." in name
    ]


def _last(module: str) -> str:
    return module.rpartition(".")[2]


def check_importance(settings: Settings, base: BaseModel, machine: Machine) -> None:
    """Refuse a method whose importance matrix cannot be made: the merged model must be run for it, if only in 16 bits."""
    needing = [method for method in settings.quantization.quantization_method if method in NEED_IMPORTANCE_MATRIX]
    needed = base.parameters * 2 + reference.ROOM
    if needing and needed > machine.memory_available:
        raise MachineError(
            f"too little memory: {needing[0]} needs an importance matrix, and the model must be run for it in {gigabytes(needed)}; "
            f"{gigabytes(machine.memory_available)} are free. QUANTIZATION_METHOD = q3_k_m or q2_k needs none"
        )


def words(disk: dict[str, int]) -> str:
    return ", ".join(f"{name} {gigabytes(size)}" for name, size in disk.items())
