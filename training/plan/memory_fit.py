"""Does a run fit into memory, and which setting to lower, to what, where it does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from training.errors import MachineError
from training.plan.memory import Shape, estimate, words
from training.system.this_machine import Machine
from training.system.wording import gigabytes

MARGIN = 1.2  # an estimate may be this factor too high: what does not fit even then is refused, the rest is a warning
SHORT = 64  # tokens, for a first look when no row is read yet


class Way(NamedTuple):
    """A setting that takes less memory: what to write, the settings with it, and the longest row that it leaves."""

    text: str
    change: Callable[[Any], Any]
    longest: int


def free(given: Any, machine: Machine) -> int:
    """Bytes that are free where the model is trained: on the card, else of this machine."""
    if given.hardware.device == "cpu" or not machine.gpus:
        return machine.memory_available
    return machine.gpus[0].free or machine.gpus[0].memory


def check(given: Any, model: Shape, longest: int, machine: Machine, adapter: int | None = None) -> str | None:
    """None where the run fits, else a warning with what would help. MachineError where it cannot fit.

    On a GPU a batch that does not fit is halved while training, so only one that is too large at one row is refused.
    """
    parts, there = estimate(given, model, longest, adapter), free(given, machine)
    needed = sum(parts.values())
    if needed <= there:
        return None
    least = given if given.hardware.device == "cpu" else _batch(given, 1)
    resting = parts["program"] + parts["weights"]  # known to the byte, but for a per cent or two
    certain = resting > there or sum(estimate(least, model, longest, adapter).values()) > MARGIN * there
    text = (
        f"{'too little memory' if certain else 'memory may not do'}: about {words(parts)} needed, {gigabytes(there)} free; "
        f"{lower(given, model, longest, there)}"
    )
    if certain:
        raise MachineError(text)
    return text


def lower(given: Any, model: Shape, longest: int, there: int) -> str:
    """Which setting to lower, and to what, so that the run fits into `there` bytes: one that does alone, else several."""
    ways = _ways(given, model, longest, there)
    alone = [way.text for way in ways if _total(way.change(given), model, way.longest) <= there]
    if alone:
        return f"set {'; or '.join(alone)}"
    together: list[str] = []
    for way in ways:
        given, longest = way.change(given), min(longest, way.longest)
        together.append(way.text)
        if _total(given, model, longest) <= there:
            return f"set {' and '.join(together)}"
    least = gigabytes(_total(given, model, longest))
    return f"even the least takes {least}: choose a smaller BASE_MODEL_NAME"


def _ways(given: Any, model: Shape, longest: int, there: int) -> list[Way]:
    """The ways to less memory, the ones that cost least first."""
    ways = []
    on_cpu, product = given.hardware.device == "cpu", _product(given)
    if on_cpu and given.hardware.num_processes > 1:
        times = given.training.gradient_accumulation_steps * given.hardware.num_processes
        alone = _way(
            f"NUM_PROCESSES = 1 with GRADIENT_ACCUMULATION_STEPS = {times}", longest, ("Hardware.NUM_PROCESSES", 1)
        )
        ways.append(alone)
    if given.training.gradient_checkpointing is not True:
        ways.append(_way("GRADIENT_CHECKPOINTING = true", longest, ("Training.GRADIENT_CHECKPOINTING", True)))
    sizes = [n for n in range(given.training.per_device_train_batch_size - 1, 0, -1) if product % n == 0]
    if sizes:
        size = next((n for n in sizes if _total(_batch(given, n), model, longest) <= there), 1)
        text = f"PER_DEVICE_TRAIN_BATCH_SIZE = {size} with GRADIENT_ACCUMULATION_STEPS = {product // size}"
        ways.append(Way(text, lambda settings: _batch(settings, size), longest))
    if not on_cpu and not given.quantization.load_in_4bit:
        ways.append(_way("LOAD_IN_4BIT = true", longest, ("Quantization.LOAD_IN_4BIT", True)))
    if on_cpu and given.hardware.precision == "fp32":
        ways.append(_way("AUTO_FP16_BF16 = false with PRECISION = bf16", longest, ("Hardware.PRECISION", "bf16")))
    if given.lora.r > 8:
        ranks = [given.lora.r >> n for n in range(1, 12) if given.lora.r >> n >= 8]
        rank = next((r for r in ranks if _total(given.with_choice("LoRA.R", r, ""), model, longest) <= there), 8)
        ways.append(_way(f"R = {rank}", longest, ("LoRA.R", rank)))
    lengths = range((longest - 1) // 128 * 128, 0, -128)
    if lengths:
        length = next((n for n in lengths if _total(given, model, n) <= there), lengths[-1])
        ways.append(Way(f"MAX_SEQ_LENGTH = {length}", lambda settings: settings, length))
    return ways


def _way(text: str, longest: int, choice: tuple[str, Any]) -> Way:
    return Way(text, lambda settings: settings.with_choice(*choice, "memory"), longest)


def _total(given: Any, model: Shape, longest: int) -> int:
    return sum(estimate(given, model, longest).values())


def _product(given: Any) -> int:
    return given.training.per_device_train_batch_size * given.training.gradient_accumulation_steps


def _batch(given: Any, size: int) -> Any:
    """The same step in micro-batches of `size` rows."""
    given = given.with_choice("Training.GRADIENT_ACCUMULATION_STEPS", _product(given) // size, "memory")
    return given.with_choice("Training.PER_DEVICE_TRAIN_BATCH_SIZE", size, "memory")
