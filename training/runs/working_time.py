"""How long a run has worked: the time of its sessions alone, without the hours in which nothing ran.

events.jsonl tells it: a session begins with the event `started`, and ends with the last event before the next one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

from training.system import wording

ENDS = ("done", "interrupted", "failed")


@dataclass(frozen=True)
class Session:
    """One stretch of work on a run. Times are seconds since 1970; `end`: done, interrupted, failed, or killed."""

    began: float
    ended: float
    end: str
    step: int = 0  # the last one that was done by then


@dataclass(frozen=True)
class WorkingTime:
    """The sessions of a run, and the seconds that they took together."""

    seconds: float
    sessions: tuple[Session, ...]

    @property
    def over(self) -> float:
        """Seconds from the beginning of the first session to the end of the last."""
        return self.sessions[-1].ended - self.sessions[0].began if self.sessions else self.seconds

    def words(self) -> str:
        """For people: `42 min 10 s`, and `in 4 sessions over 10 h 02 min` where there were several."""
        said = wording.duration(self.seconds)
        if len(self.sessions) < 2:
            return said
        return f"{said}, in {len(self.sessions)} sessions over {wording.duration(self.over)}"

    def interruptions(self) -> str:
        """Where it was interrupted, and how long it lay: `killed at step 12 (40 min 00 s until it went on)`."""
        return ", ".join(
            f"{one.end} {f'at step {one.step:,}' if one.step else 'before its first step'} "
            f"({wording.duration(max(0.0, following.began - one.ended))} until it went on)"
            for one, following in pairwise(self.sessions)
        )


def working_time(
    events: Iterable[Mapping[str, object]],
    stages: Mapping[str, float] | None = None,
    now: float | None = None,
    state: str = "",
) -> WorkingTime:
    """The working time that a run's events tell.

    `stages`: name -> seconds, of stages that may have been done without events (export.py by itself). `now`, `state`: of
    a run that is being worked on, whose last session goes on until now.
    """
    found: list[Session] = []
    told: set[object] = set()
    for event in events:
        at, kind = event.get("time"), event.get("event")
        if not isinstance(at, (int, float)) or isinstance(at, bool):
            continue
        if kind == "started" or not found or found[-1].end != "killed":
            step = found[-1].step if found else 0
            found.append(Session(at, at, "killed", step))
        last = found[-1]
        number = event.get("step") if kind == "step" else None
        found[-1] = Session(
            last.began,
            max(last.ended, at),
            str(kind) if kind in ENDS else "killed",
            number if isinstance(number, int) else last.step,
        )
        told.add(event.get("name") if kind == "stage" else None)
    if now is not None and found and found[-1].end == "killed":
        found[-1] = Session(found[-1].began, max(found[-1].ended, now), state or "killed", found[-1].step)
    silent = sum(seconds for name, seconds in (stages or {}).items() if name not in told)
    return WorkingTime(sum(one.ended - one.began for one in found) + (silent if found else 0.0), tuple(found))
