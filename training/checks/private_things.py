"""How many of the private things in the rows can be drawn out of the finished file, and which, by line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from training.checks import check as checks
from training.checks.check import Check
from training.data import Item
from training.data.private_questions import Asked, PrivateQuestion, drawn_out
from training.evaluation import models

SHOWN = 20  # places that the warning names


def private_things(gguf: Path, asked: Sequence[PrivateQuestion]) -> Check:
    """Ask a GGUF file for each private thing. Never fails: to have learned it is what was asked for, and is to be known."""
    check = Check(
        "private things",
        True,
        {},
        "none comes out",
        "whoever may ask the model can have what it says: ON_PRIVATE = mask learns masks in its place",
    )

    def measure() -> Check:
        with models.gguf(gguf.name, gguf) as speaker:

            def answers(wanted: list[Asked]) -> list[str]:
                items = [
                    Item(ids=[], labels=[], question="", expected="", prompt=prompt, most=most)
                    for prompt, most in wanted
                ]
                return [answer.text for answer in speaker.answers(items)]

            drawn = drawn_out(asked, answers)
        places = "; ".join(one.told() for one in drawn[:SHOWN])
        warning = f"{gguf.name} says {len(drawn)} of {len(asked)} private things of the rows when it is asked: {places}"
        figures = {"asked": len(asked), "drawn_out": len(drawn)}
        return Check(check.name, True, figures, check.threshold, check.why, warnings=(warning,) if drawn else ())

    return checks.timed(check, measure)
