"""A run's curves: read back from events.jsonl, thinned for a picture, and grouped into charts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from training.report.schema import Evaluation, Step
from training.system import events, privacy

MOST_POINTS = 300  # in a picture; more cannot be told apart on a screen
SMOOTH_FROM = 50  # steps from which a running mean is drawn over the losses
T = TypeVar("T")
Point = tuple[float, "float | None"]  # step, value; None: not a finite number


@dataclass(frozen=True)
class Series:
    """One line of a chart. `kind` is what it looks like: line, faint (under a mean), dots (few points, joined)."""

    name: str
    points: tuple[Point, ...]
    kind: str = "line"


@dataclass(frozen=True)
class Chart:
    """One picture over the steps; `last` is where the axis ends: the planned steps, so that one sees what is left."""

    title: str
    series: tuple[Series, ...]
    last: int
    format: str = ".3f"

    def values(self) -> list[float]:
        """Every finite value in it."""
        return [y for series in self.series for _, y in series.points if y is not None]

    def broken(self) -> list[int]:
        """The steps whose value was not a finite number."""
        return sorted({int(x) for series in self.series for x, y in series.points if y is None})


def read(path: Path) -> tuple[tuple[Step, ...], tuple[Evaluation, ...], int]:
    """Steps, evaluations and the planned number of steps from an events file; empty when there is none.

    A run that went back to a checkpoint tells some steps twice: what came after the checkpoint the first time was
    thrown away, so it is dropped here too. A line that a crash cut short is passed over.
    """
    steps: dict[int, Step] = {}
    evaluations: dict[int, Evaluation] = {}
    total = 0
    for event in events.read(path):
        if event.get("event") == "step" and isinstance(event.get("step"), int):
            number = event["step"]
            if steps and number <= next(reversed(steps)):
                steps = {at: step for at, step in steps.items() if at < number}
                evaluations = {at: item for at, item in evaluations.items() if at < number}
            others = ("learning_rate", "gradient_norm", "tokens_per_second")
            steps[number] = Step(number, finite(event.get("loss")), **{key: finite(event.get(key)) for key in others})
            total = event.get("total") or total
        elif event.get("event") == "evaluation" and isinstance(event.get("at_step"), int):
            evaluations[event["at_step"]] = Evaluation(event["at_step"], finite(event.get("loss")))
    return tuple(steps.values()), tuple(evaluations[at] for at in sorted(evaluations)), int(total)


def finite(value: object) -> float | None:
    """`value` as a finite number, or None. The text "nan", as some writers put it, is None too."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return privacy.finite(float(value))
    except OverflowError:
        return None


def thin(items: Sequence[T], most: int) -> list[T]:
    """At most `most` of the items, evenly spread, always with the first and the last."""
    if len(items) <= most:
        return list(items)
    return [items[round(at * (len(items) - 1) / (most - 1))] for at in range(most)]


def smooth(points: Sequence[Point], width: int) -> list[Point]:
    """The running mean over `width` points, looking back only: a curve must not know what comes."""
    means: list[Point] = []
    for at, (x, y) in enumerate(points):
        near = [v for _, v in points[max(0, at - width + 1) : at + 1] if v is not None]
        means.append((x, sum(near) / len(near) if near and y is not None else None))
    return means


def charts(steps: Sequence[Step], evaluations: Sequence[Evaluation], total: int = 0) -> list[Chart]:
    """The pictures that there is something to show for; the first one, when there is any, is of the losses."""
    last = max([total, *(step.step for step in steps), *(item.step for item in evaluations)], default=0)
    losses = [(step.step, step.loss) for step in steps]
    series = []
    if len(losses) >= SMOOTH_FROM:
        width = min(50, max(5, len(losses) // 50))  # a wider one would lag behind a steep beginning
        means = tuple(thin(smooth(losses, width), MOST_POINTS))
        series = [
            Series("training loss", tuple(thin(losses, MOST_POINTS)), "faint"),
            Series(f"training loss, mean of {width} values", means),
        ]
    elif losses:
        series = [Series("training loss", tuple(losses))]
    if evaluations:
        points = tuple((item.step, item.loss) for item in thin(evaluations, MOST_POINTS))
        series.append(Series("validation loss", points, "dots"))
    found = [Chart("Loss", tuple(series), last)] if series else []
    for title, key, form in (
        ("Learning rate", "learning_rate", ".1e"),
        ("Tokens per second", "tokens_per_second", ",.0f"),
        ("Gradient norm", "gradient_norm", ".3g"),
    ):
        # A step without the figure is one that did not measure it; only a loss says that it was not a number.
        points = tuple(thin([(s.step, getattr(s, key)) for s in steps if getattr(s, key) is not None], MOST_POINTS))
        if points:
            found.append(Chart(title, (Series(title.lower(), points),), last, form))
    return found
