"""Which sides agree, and which of those is the fastest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from training.proving.sides import Figures, Here, Side, taken
from training.system import wording


@dataclass(frozen=True)
class Bounds:
    """How far a side may be off, as shares: its loss at the first and at the last step, its first gradient's norm.

    Before the first update only rounding and kernels differ; then each step adds to the difference.
    """

    first: float
    last: float
    norm: float


# float32 keeps 24 bits and sums in another order; bf16 keeps 8, so that one rounding is 0.4 %; 4 bits change the model.
BOUNDS = {"fp32": Bounds(1e-3, 1e-2, 1e-2), "bf16": Bounds(1e-2, 5e-2, 5e-2), "4 bit": Bounds(0.1, 0.25, 0.5)}


@dataclass(frozen=True)
class Verdict:
    """`agreeing` names the sides that do what the first one does; `different` says of the others where they do not."""

    agreeing: tuple[str, ...]
    different: Mapping[str, str]
    taken: str
    fastest: str | None  # of those that agree, on the device of the settings
    words: str  # the conclusion, in one sentence
    good: bool  # what the settings take can be trusted


def judge(here: Here, tried: Sequence[Side], figures: Mapping[str, Figures]) -> Verdict:
    """Hold every side against the first one that could be measured."""
    measured = [side for side in tried if not figures[side.name].failed]
    different = {side.name: figures[side.name].failed for side in tried if side not in measured}
    agreeing: list[str] = []
    for side in measured:
        if why := difference(figures[measured[0].name], figures[side.name]):
            different[side.name] = why
        else:
            agreeing.append(side.name)
    ours = taken(here)
    ready = [side for side in measured if side.name in agreeing and side.device == here.device]
    fastest = max(ready, key=lambda side: figures[side.name].tokens_per_second, default=None)
    good = ours in agreeing and len(agreeing) > 1
    name = fastest.name if fastest else None
    words = _words(ours, fastest, agreeing, different, figures)
    return Verdict(tuple(agreeing), different, ours, name, words, good)


def _words(
    ours: str,
    fastest: Side | None,
    agreeing: Sequence[str],
    different: Mapping[str, str],
    figures: Mapping[str, Figures],
) -> str:
    if ours in different:
        instead = f"; {fastest.settings} does what was expected" if fastest and len(agreeing) > 1 else ""
        return f"Do not train so: {ours}, which these settings take, {_not_so(different[ours])}{instead}."
    if len(agreeing) < 2:
        return f"Nothing could be held against {ours}: one side alone proves nothing."
    others = ", ".join(name for name in agreeing if name != ours)
    words = f"{ours}, which these settings take, agrees with {others}"
    if fastest is None or fastest.name == ours:
        return f"{words}, and is the fastest of them." if fastest else f"{words}."
    times = figures[fastest.name].tokens_per_second / max(figures[ours].tokens_per_second, 1e-9)
    return f"{words}; {fastest.name} is {times:.2f} times as fast: {fastest.settings}."


def _not_so(why: str) -> str:
    return why if why.startswith("could not") else f"does something else: {why}"


def difference(one: Figures, other: Figures) -> str:
    """Where two sides differ more than rounding explains; nothing where they agree."""
    bounds = _bounds(one, other)
    for step, (expected, found) in enumerate(zip(one.tokens, other.tokens, strict=False), 1):
        if expected != found:
            return f"{found:,} tokens in step {step} instead of {expected:,}: these are other batches"
    if len(one.losses) != len(other.losses):
        return f"{len(other.losses)} steps instead of {len(one.losses)}"
    count = max(1, len(one.losses) - 1)
    for at, (loss, theirs) in enumerate(zip(one.losses, other.losses, strict=True)):
        bound = bounds.first + (bounds.last - bounds.first) * at / count
        if not abs(theirs - loss) <= bound * abs(loss):
            return f"the loss of step {at + 1} is {wording.number(theirs)} instead of {wording.number(loss)}"
    if not abs(other.norms[0] - one.norms[0]) <= bounds.norm * abs(one.norms[0]):
        norms = wording.number(other.norms[0]), wording.number(one.norms[0])
        return f"the gradient's norm in step 1 is {norms[0]} instead of {norms[1]}"
    return ""


def _bounds(one: Figures, other: Figures) -> Bounds:
    if one.four_bit != other.four_bit:
        return BOUNDS["4 bit"]
    return BOUNDS["fp32" if one.precision == other.precision == "fp32" else "bf16"]
