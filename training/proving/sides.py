"""The ways to train that are held against each other, and what was measured of each."""

from __future__ import annotations

from dataclasses import dataclass

# Parameters of the largest model whose steps are also done on the CPU, in float32, for a card to be held against.
SMALL = 700_000_000
# Steps of each; the first one warms up and counts for no speed.
STEPS = 5

PLAIN = "transformers"
FAST = "transformers, fast path for CPUs"
UNSLOTH = "Unsloth"
ON_CPU = "transformers on the CPU, float32"


@dataclass(frozen=True, kw_only=True)
class Here:
    """What a machine and its settings come to: where training goes, and what could do it."""

    device: str  # cpu, cuda, xpu
    engine: str  # what the settings take
    fast: bool  # and whether with the fast path
    unsloth: bool  # it is installed
    parameters: int | None  # of the base model; None: not known yet
    machine: list[str]  # in words


@dataclass(frozen=True, kw_only=True)
class Side:
    """One way to train: settings that are put over the user's own. `settings` names what to write to have it."""

    name: str
    overrides: dict[str, str]
    device: str
    settings: str


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What was measured of a side: a list has a value a step. Losses are nats, memory is bytes.

    `failed`: why there are none.
    """

    losses: list[float]
    norms: list[float]
    tokens: list[int]
    tokens_per_second: float  # the median of all steps but the first
    peak: int
    load_peak: int  # when the model and its adapter were loaded
    planned: int  # what the plan says of it
    seconds: float
    precision: str
    four_bit: bool
    fast_path: str | None  # layers, head or none, where it was asked for
    failed: str = ""


def failure(why: str) -> Figures:
    """The figures of a side that could not be measured."""
    return Figures(
        losses=[], norms=[], tokens=[], tokens_per_second=0.0, peak=0, load_peak=0, planned=0, seconds=0.0, precision="",
        four_bit=False, fast_path=None, failed=why,
    )  # fmt: skip


def sides(here: Here) -> list[Side]:
    """What is tried on a machine; the first is what the others are held against.

    On a CPU transformers' own way, the fast path beside it, and Unsloth's CPU backend where it is installed. On a card
    both engines, and the CPU's float32 where the model is small enough for that.
    """
    if here.device == "cpu":
        own = {"Hardware.ENGINE": "transformers", "Hardware.FAST_CPU": "false"}
        fast = {"Hardware.ENGINE": "transformers", "Hardware.FAST_CPU": "auto"}
        found = [
            Side(name=PLAIN, overrides=own, device="cpu", settings="ENGINE = transformers, FAST_CPU = false"),
            Side(name=FAST, overrides=fast, device="cpu", settings="ENGINE = transformers, FAST_CPU = auto"),
        ]
    else:
        on_cpu = {
            "Hardware.DEVICE": "cpu", "Hardware.ENGINE": "transformers", "Hardware.AUTO_FP16_BF16": "false",
            "Hardware.PRECISION": "fp32", "Hardware.FAST_CPU": "false", "Training.OPTIM": "adamw_torch",
        }  # fmt: skip
        small = here.parameters is not None and here.parameters <= SMALL
        found = [Side(name=ON_CPU, overrides=on_cpu, device="cpu", settings="DEVICE = cpu")] if small else []
        card = {"Hardware.ENGINE": "transformers"}
        found.append(Side(name=PLAIN, overrides=card, device=here.device, settings="ENGINE = transformers"))
    if here.unsloth:
        engine = {"Hardware.ENGINE": "unsloth"}
        found.append(Side(name=UNSLOTH, overrides=engine, device=here.device, settings="ENGINE = unsloth"))
    return found


def taken(here: Here) -> str:
    """The side that a run with these settings takes."""
    if here.engine == "unsloth":
        return UNSLOTH
    return FAST if here.device == "cpu" and here.fast else PLAIN
