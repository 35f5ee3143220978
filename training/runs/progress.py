"""How far a run is, over all its stages, and when all of it will be done: kept in its status.json, for whoever asks.

What a stage takes is expected from the last finished run of a model of this size beside it, else reckoned from the
size. Training tells its own time from its first step on. A stage that takes longer than it should is believed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

from loguru import logger

from training.runs import directory
from training.runs.directory import Run, Stage
from training.system.wording import clock

STAGES: tuple[Stage, ...] = get_args(Stage)
# Seconds whatever the size, and a billion parameters: on two cores, rounded. Training is only guessed at here.
LEAST: dict[Stage, float] = {
    "train": 5.0, "evaluate": 2.0, "merge": 0.2, "convert": 1.0, "quantise": 0.7, "modelfile": 0.4, "check": 3.0,
}  # fmt: skip
BILLION: dict[Stage, float] = {
    "train": 700.0, "evaluate": 150.0, "merge": 7.0, "convert": 15.0, "quantise": 20.0, "modelfile": 0.0, "check": 230.0,
}  # fmt: skip
# Before it is done a run is never said to be.
MOST = 99.9
# Seconds between two lines about the same stage; and between two events.
EVERY, OFTEN = 10.0, 1.0


@dataclass(frozen=True)
class Reached:
    """How far a run is: the stage it is in, percent of the whole, and seconds until all is done."""

    stage: Stage
    progress: float
    left: float


def expect(run: Run, parameters: int | None) -> None:
    """Note what each stage of a run may take. `parameters`: of the base model."""
    size = (parameters or 0) / 1e9
    expected = {stage: round(LEAST[stage] + size * BILLION[stage], 1) for stage in STAGES}
    run.update(parameters=parameters, expected=expected | _as_before(run, parameters))


def _as_before(run: Run, parameters: int | None) -> dict[Stage, float]:
    """What the later stages took in the last run of a model of this size that got to its end."""
    for other in reversed(directory.history(run.path.parent)):
        alike = parameters is not None and other.status.get("parameters") == parameters
        if alike and other.path != run.path and directory.state(other) == "completed":
            taken = {stage: (other.stage(stage) or {}).get("seconds") for stage in STAGES if stage != "train"}
            return {stage: seconds for stage, seconds in taken.items() if isinstance(seconds, (int, float))}
    return {}


def reach(
    run: Run, stage: Stage, share: float, taken: float = 0.0, left: float | None = None, **changes: object
) -> Reached:
    """Note in status.json, with other `changes`, that a run has done `share` (0 to 1) of a stage in `taken` seconds.

    `left`: seconds until the stage is done, where that is known better than from these. Progress never goes back.
    """
    known: dict[str, float] = run.status.get("expected", {})
    expected = {name: known.get(name, LEAST[name]) for name in STAGES}
    if left is not None:
        # It shows now what it takes as a whole: so that its share of the run is right from here on.
        expected[stage] = max(LEAST[stage], left / (1 - share) if share < 1 else expected[stage])
    else:
        left = (1 - share) * max(expected[stage], taken / share if share else 0.0)
    at = STAGES.index(stage)
    done = sum(expected[name] for name in STAGES[:at]) + share * expected[stage]
    later = sum(expected[name] for name in STAGES[at + 1 :])
    percent = 100 * done / sum(expected.values())
    percent = round(min(MOST, max(percent, float(run.status.get("progress") or 0))), 1)
    # A finished run of which a stage is made again stays finished.
    if run.status.get("state") != "completed":
        changes |= {"progress": percent, "eta": round(time.time() + left + later), "expected": expected}
    run.update(**changes)
    return Reached(stage, percent, left + later)


class Teller:
    """Tells how far a stage is: in status.json and to `hear` once a second, and in the log now and then."""

    def __init__(self, run: Run, stage: Stage, hear: Callable[[Reached], None] | None = None) -> None:
        self.run, self.stage, self.hear = run, stage, hear
        self.began = self.said = self.told = time.monotonic()

    def begin(self) -> None:
        """The stage begins. One that takes its time is named, with what is left until all is done."""
        self.run.update(stage=self.stage)
        reached = self._reach(0.0)
        if self.run.status.get("expected", LEAST).get(self.stage, 0) >= EVERY:
            logger.info("{}: about {} until all is done", self.stage, clock(reached.left))

    def __call__(self, share: float) -> None:
        """So much of the stage is done, from 0 to 1."""
        now = time.monotonic()
        if now - self.told < OFTEN and share < 1:
            return
        self.told = now
        reached = self._reach(share)
        if now - self.said >= EVERY and share < 1:
            self.said = now
            logger.info("{}: {:.0f} %, about {} until all is done", self.stage, 100 * share, clock(reached.left))

    def _reach(self, share: float) -> Reached:
        reached = reach(self.run, self.stage, share, time.monotonic() - self.began)
        if self.hear is not None:
            self.hear(reached)
        return reached
