"""Gain and price side by side: what a training did for the user's own questions, and what to all that it was not about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from training.evaluation import GENERAL_LOSS, LOSS, Score
from training.report import checklist
from training.report.schema import Report
from training.system import wording

OWN, GENERAL = "your own questions, held out", "general questions"
MEASURED = (
    "Losses of the answers, lower is better; the general questions come with this tool, and no run is trained on them."
)
# What is suggested where something was forgotten.
SUGGESTED = 0.1


def scores(report: Report) -> tuple[Score, ...]:
    """The two losses under the names that the table has for them; nothing where no general question was measured."""
    own, general = checklist.named(report.scores, LOSS), checklist.named(report.general, GENERAL_LOSS)
    if general is None:
        return ()
    return (*((replace(own, name=OWN),) if own else ()), replace(general, name=GENERAL))


def sentence(report: Report) -> str:
    """Gain and price in one sentence; "" where base and tuned model were not compared."""
    found = {score.name: score for score in scores(report)}
    general = found.get(GENERAL)
    if general is None or not general.verdict:
        return ""
    worse = general.verdict == "worse"
    price = {"worse": "it forgot some of the rest", "better": "it is better at the rest, too"}.get(
        general.verdict, "what it lost of the rest, if anything, is too little to tell"
    )
    own = found.get(OWN)
    gain = {"better": "It learned what your rows teach", "worse": "It is worse at your own questions"}.get(
        own.verdict if own else "", "Whether it learned what your rows teach cannot be told"
    )
    figures = f"loss on your own questions {_change(own)}, on" if own and own.after is not None else "loss on"
    joined = "and" if (own is not None and own.verdict == "better") != worse else "but"
    return (
        f"{gain}, {joined} {price}: {figures} general questions {_change(general)}.{_advice(report) if worse else ''}"
    )


def _advice(report: Report) -> str:
    share = report.settings.get("Dataset", {}).get("REPLAY_SHARE", 0)
    if share:
        return f" That is with REPLAY_SHARE = {share:g}; a higher one, fewer steps or a lower LEARNING_RATE keep more."
    return f" REPLAY_SHARE = {SUGGESTED:g} holds a model to what it could do, for a tenth of the rows."


def _change(score: Score) -> str:
    return f"{wording.number(score.before, '.3f')} -> {wording.number(score.after, '.3f')}"


def compared(reports: Sequence[Report]) -> tuple[tuple[str, ...], ...]:
    """The same of several runs: a line for each of the two, a column for each run; nothing where none was measured."""
    found = [{score.name: score for score in scores(report)} for report in reports]
    rows = tuple((name, *(_cell(each.get(name)) for each in found)) for name in (OWN, GENERAL))
    return rows if any(found) else ()


def _cell(score: Score | None) -> str:
    if score is None or score.after is None:
        return ""
    return _change(score) + (f", {score.verdict}" if score.verdict else "")
