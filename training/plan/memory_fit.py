"""Does a run fit into memory, and which setting to lower, to what, where it does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from loguru import logger

from training import base_model
from training.errors import MachineError
from training.fast_cpu import policy
from training.plan.memory import Shape, beside_cards, estimate, over_the_bus, shape, words
from training.settings import Settings
from training.system.this_machine import Machine
from training.system.wording import gigabytes, size
from training.train import link, sharding

# An estimate may be too high by this factor: what does not fit even then is refused, the rest is warned of.
MARGIN = 1.2
# What may be taken of the free memory for the sake of speed alone: others may want it, too, before a night is over.
SPARE = 0.5
# Bytes a second that a card fetches from the machine's memory: PCIe 4.0 with 16 lanes, of its 32 GB/s what is usual.
BUS = 25e9
SHORT = 64  # tokens, for a first look when no row is read yet


class Way(NamedTuple):
    """A setting that takes less memory: what to write, the settings with it, and the longest row that it leaves."""

    text: str
    change: Callable[[Settings], Settings]
    longest: int


def free(settings: Settings, machine: Machine) -> int:
    """Bytes that are free where the model is trained: on the card, else of this machine."""
    if settings.hardware.device == "cpu" or not machine.gpus:
        return machine.memory_available
    return machine.gpus[0].free or machine.gpus[0].memory


def check(settings: Settings, model: Shape, longest: int, machine: Machine, adapter: int | None = None) -> str | None:
    """None where the run fits, else a warning with what would help. MachineError where it cannot fit.

    On a GPU a batch that does not fit is halved while training, so only one that is too large at one row is refused; not
    so where the model is spread, for the others wait in the middle of it.
    """
    _fits_beside(settings, model, machine)
    parts, room = estimate(settings, model, longest, adapter), free(settings, machine)
    needed = sum(parts.values())
    if needed <= room:
        return None
    halved = settings.hardware.device != "cpu" and not sharding.wanted(settings)
    least = _batch(settings, 1) if halved else settings
    resting = parts["program"] + parts["weights"]  # known to the byte, but for a per cent or two
    certain = resting > room or sum(estimate(least, model, longest, adapter).values()) > MARGIN * room
    text = (
        f"{'too little memory' if certain else 'memory may not do'}: about {words(parts)} needed, {gigabytes(room)} free; "
        f"{lower(settings, model, longest, room)}"
    )
    if certain:
        raise MachineError(text)
    return text


def packs(settings: Settings, model: Shape, longest: int, machine: Machine, adapter: int | None = None) -> bool:
    """Whether frozen weights are laid out for their products (fast_cpu/packed.py): they are in bf16, and memory is to spare."""
    hardware = settings.hardware
    if not policy.by_hand(settings, model.model_type) or (hardware.precision, hardware.fast_cpu) != ("bf16", True):
        return False
    needed = sum(estimate(settings, model, longest, adapter, packs=True).values())
    return needed <= SPARE * free(settings, machine)


def offloaded(settings: Settings, model: Shape, longest: int, machine: Machine, adapter: int | None = None) -> Settings:
    """SHARDING = fsdp with the shares in the machine's memory, where they do not fit on the cards and would so."""
    if settings.hardware.sharding != "fsdp" or settings.hardware.device == "cpu":
        return settings
    needed, room = sum(estimate(settings, model, longest, adapter).values()), free(settings, machine)
    moved = settings.with_choice("Hardware.SHARDING", sharding.OFFLOADED, "memory")
    fits = sum(estimate(moved, model, longest, adapter).values()) <= room
    if needed <= room or not fits or beside_cards(moved, model) > machine.memory_available:
        return settings
    reason = (
        f"about {gigabytes(needed)} needed on a card, {gigabytes(room)} free: the shares stay in the machine's memory"
    )
    if (ways := lower(settings, model, longest, room)).startswith("set"):
        reason += f"; to keep them on the cards, {ways}"
    return settings.with_choice("Hardware.SHARDING", sharding.OFFLOADED, reason)


def bus_line(settings: Settings, model: Shape) -> str:
    """What goes from the machine's memory to each card in a step, for the plan; empty where nothing does."""
    if not sharding.offloaded(settings) or settings.hardware.device == "cpu":
        return ""
    fetched = over_the_bus(settings, model)
    took = link.short(fetched / BUS)
    return (
        f"over each card's bus: {size(fetched)} a step, its share of the layers twice a micro-batch (SHARDING = fsdp-offload); "
        f"{took} at {BUS / 1e9:.0f} GB/s (PCIe 4.0)"
    )


def _fits_beside(settings: Settings, model: Shape, machine: Machine) -> None:
    """A model that is spread over cards is read whole into the memory of machine 0 first, and its shares may stay in that of
    each: MachineError where there is not so much."""
    if not sharding.wanted(settings) or settings.hardware.device == "cpu":
        return
    needed, there = beside_cards(settings, model), machine.memory_available
    if needed <= MARGIN * there:
        return
    sharded = settings.hardware.sharding
    does = "keeps the shares there" if sharding.offloaded(settings) else "reads the whole model first"
    raise MachineError(
        f"too little memory beside the cards: SHARDING = {sharded} {does}, {gigabytes(needed)}, and {gigabytes(there)} are "
        "free; choose a smaller BASE_MODEL_NAME, or a machine with more"
    )


def check_before_download(settings: Settings, machine: Machine) -> None:
    """A model on the Hub that cannot fit, however short the rows: MachineError before it is downloaded.

    Where the Hub does not answer nothing is known yet; `locate` then says so, or takes the copy downloaded before.
    """
    if base_model.door(settings.model.base_model_name) != "hub":
        return
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return
    try:
        seen = base_model.peek(settings.model)
    except MachineError:
        return
    if not seen.config or not seen.parameters:
        return
    model = shape(seen.config, seen.parameters)
    settings = offloaded(settings, model, SHORT, machine)
    check(settings, model, SHORT, machine)
    longest = min(settings.model.max_seq_length, seen.max_length or settings.model.max_seq_length)
    short, long = (sum(estimate(settings, model, length).values()) for length in (SHORT, longest))
    logger.info(
        "{}: about {} of memory with rows of {} tokens, {} with {:,} (MAX_SEQ_LENGTH); {} free",
        *(seen.name, gigabytes(short), SHORT, gigabytes(long), longest),
        gigabytes(free(settings, machine)),
    )


def lower(settings: Settings, model: Shape, longest: int, room: int) -> str:
    """Which setting to lower, and to what, so that the run fits into `room` bytes: one that does alone, else several."""
    ways = _ways(settings, model, longest, room)
    alone = [way.text for way in ways if _total(way.change(settings), model, way.longest) <= room]
    if alone:
        return f"set {'; or '.join(alone)}"
    together: list[str] = []
    for way in ways:
        settings, longest = way.change(settings), min(longest, way.longest)
        together.append(way.text)
        if _total(settings, model, longest) <= room:
            return f"set {' and '.join(together)}"
    least = gigabytes(_total(settings, model, longest))
    return f"even the least takes {least}: choose a smaller BASE_MODEL_NAME"


def _ways(settings: Settings, model: Shape, longest: int, room: int) -> list[Way]:
    """The ways to less memory, the ones that cost least first."""
    ways = []
    on_cpu, product = settings.hardware.device == "cpu", _product(settings)
    if on_cpu and settings.hardware.num_processes > 1:
        times = settings.training.gradient_accumulation_steps * settings.hardware.num_processes
        text = f"NUM_PROCESSES = 1 with GRADIENT_ACCUMULATION_STEPS = {times}"
        ways.append(_way(text, longest, "Hardware.NUM_PROCESSES", 1))
    if settings.training.gradient_checkpointing is not True:
        ways.append(_way("GRADIENT_CHECKPOINTING = true", longest, "Training.GRADIENT_CHECKPOINTING", True))
    sizes = [n for n in range(settings.training.per_device_train_batch_size - 1, 0, -1) if product % n == 0]
    if sizes:
        size = next((n for n in sizes if _total(_batch(settings, n), model, longest) <= room), 1)
        text = f"PER_DEVICE_TRAIN_BATCH_SIZE = {size} with GRADIENT_ACCUMULATION_STEPS = {product // size}"
        ways.append(Way(text, lambda settings: _batch(settings, size), longest))
    if not on_cpu and settings.processes > 1 and not sharding.wanted(settings):
        ways.append(Way("SHARDING = fsdp", lambda settings: _spread(settings, model, longest, room), longest))
    if not on_cpu and not settings.quantization.load_in_4bit:
        ways.append(_way("LOAD_IN_4BIT = true", longest, "Quantization.LOAD_IN_4BIT", True))
    if on_cpu and settings.hardware.precision == "fp32":
        ways.append(_way("AUTO_FP16_BF16 = false with PRECISION = bf16", longest, "Hardware.PRECISION", "bf16"))
    if settings.lora.r > 8:
        ranks = [settings.lora.r >> n for n in range(1, 12) if settings.lora.r >> n >= 8]
        rank = next((r for r in ranks if _total(settings.with_choice("LoRA.R", r, ""), model, longest) <= room), 8)
        ways.append(_way(f"R = {rank}", longest, "LoRA.R", rank))
    lengths = range((longest - 1) // 128 * 128, 0, -128)
    if lengths:
        length = next((n for n in lengths if _total(settings, model, n) <= room), lengths[-1])
        ways.append(Way(f"MAX_SEQ_LENGTH = {length}", lambda settings: settings, length))
    return ways


def _way(text: str, longest: int, key: str, value: object) -> Way:
    return Way(text, lambda settings: settings.with_choice(key, value, "memory"), longest)


def _spread(settings: Settings, model: Shape, longest: int, room: int) -> Settings:
    """What SHARDING = fsdp becomes, as `offloaded` chooses."""
    on_cards = settings.with_choice("Hardware.SHARDING", "fsdp", "memory")
    if _total(on_cards, model, longest) <= room:
        return on_cards
    return settings.with_choice("Hardware.SHARDING", sharding.OFFLOADED, "memory")


def _total(settings: Settings, model: Shape, longest: int) -> int:
    return sum(estimate(settings, model, longest).values())


def _product(settings: Settings) -> int:
    return settings.training.per_device_train_batch_size * settings.training.gradient_accumulation_steps


def _batch(settings: Settings, size: int) -> Settings:
    """The same step in micro-batches of `size` rows."""
    settings = settings.with_choice("Training.GRADIENT_ACCUMULATION_STEPS", _product(settings) // size, "memory")
    return settings.with_choice("Training.PER_DEVICE_TRAIN_BATCH_SIZE", size, "memory")
