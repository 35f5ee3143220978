"""What the stages of a run left in status.json, as far as its report tells of it."""

from __future__ import annotations

from dataclasses import dataclass

from training.checks.all_checks import Checked
from training.evaluation import Evaluated
from training.runs import STATUS, Run
from training.system import records
from training.system.foreign_json import Damaged
from training.train.link import Exchange


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Losses on the validation rows; none where there are none."""

    before: float | None = None
    after: float | None = None
    best: float | None = None


@dataclass(frozen=True, kw_only=True)
class Trained:
    """Of train: see train.loop.Result."""

    steps: int
    epochs: float
    validation: Validation
    best_step: int | None
    stopped_early: bool
    tokens_per_second: float
    peak_memory: int
    trainable: int | None = None
    exchange: Exchange | None = None


@dataclass(frozen=True, kw_only=True)
class Left:
    """What each stage left; nothing in it where it did not run. `seconds`: stage -> how long it took, in order."""

    train: Trained | None = None
    evaluate: Evaluated = Evaluated()
    check: Checked = Checked()
    seconds: dict[str, float]

    @classmethod
    def by(cls, run: Run) -> Left:
        """What the stages of this run left. Damaged where that is not what they leave."""
        stages = run.status.get("stages", {})
        seconds = {name: stage["seconds"] for name, stage in stages.items() if "seconds" in stage}
        try:
            return records.build({**stages, "seconds": seconds}, cls)
        except (ValueError, TypeError, AttributeError) as error:
            raise Damaged(f"{run.path / STATUS}: stages: {error}") from None
