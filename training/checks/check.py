"""A check and its outcome."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from training.errors import RunError


@dataclass(frozen=True)
class Check:
    """One check. `why`: the reason of the threshold, and what a failure means; `skipped`: why it was not made.

    A check that was left out has passed, as far as the run goes; a warning does not fail the run either.
    """

    name: str
    passed: bool
    figures: Mapping[str, Any]
    threshold: str
    why: str
    seconds: float = 0.0
    failure: str = ""
    skipped: str = ""
    warnings: tuple[str, ...] = field(default=())

    def outcome(self) -> Outcome:
        """What is kept of it; the answers themselves are data, and stay out of it."""
        return Outcome(
            name=self.name,
            passed=None if self.skipped else self.passed,
            figures={name: value for name, value in self.figures.items() if name != "answers"},
            threshold=self.threshold,
            why=self.skipped or self.failure or self.why,
            seconds=round(self.seconds, 2),
        )


@dataclass(frozen=True)
class Outcome:
    """A check as status.json and the report keep it. `passed` None: not made, and `why` says the reason."""

    name: str
    passed: bool | None
    figures: Mapping[str, Any] = field(default_factory=dict)
    threshold: str | None = None
    why: str = ""
    seconds: float | None = None


def require(checks: Sequence[Check], safe: str = "") -> None:
    """RunError unless every check passed; names the first link that broke, and those after it."""
    failed = [check for check in checks if not check.passed]
    if not failed:
        return
    message = failed[0].failure + "".join(f"\nalso failed: {check.name}: {check.failure}" for check in failed[1:])
    raise RunError(f"check '{failed[0].name}'", message, safe)


def timed(check: Check, measure: Callable[[], Check]) -> Check:
    """Run a check; what breaks while it runs is its failure, so that the others are still made and told together."""
    started = time.monotonic()
    try:
        done = measure()
    except RunError as error:
        done = replace(check, passed=False, failure=error.message)
    return replace(done, seconds=round(time.monotonic() - started, 3))
