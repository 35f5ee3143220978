"""Which of several runs is better? Told of finished ones that were measured on the same rows, and not beyond chance else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from training.evaluation import GENERAL_LOSS, LOSS, Score, scoring
from training.report import checklist, verdict
from training.report.blocks import Text
from training.report.schema import Report
from training.system import wording

# Of these depends which rows are held out, beside the files.
SPLIT = ("VALIDATION_SPLIT", "TEST_SPLIT", "FORMAT", "MAX_ROWS", "ON_BAD_ROW", "PROMPT_TEMPLATE")


@dataclass(frozen=True)
class Rival:
    """A run that can be held against others."""

    name: str
    report: Report

    @property
    def loss(self) -> Score | None:
        """Its line of the loss on held-out answers, where it has a figure."""
        found = checklist.named(self.report.scores, LOSS)
        return found if found is not None and found.after is not None else None

    @property
    def after(self) -> float:
        """Its figure: the loss on held-out answers, else the validation loss; infinite where there is none."""
        if self.loss is not None and self.loss.after is not None:
            return self.loss.after
        training = self.report.training
        return training.after if training is not None and training.after is not None else math.inf


def better(reports: Sequence[Report], names: Sequence[str]) -> Text:
    """The answer in a sentence, with what speaks against it."""
    every = [Rival(name, report) for name, report in zip(names, reports, strict=True)]
    done = [one for one in every if one.report.run.state == "completed" and one.after < math.inf]
    left_out = [one for one in every if one not in done]
    others = f" Left out: {wording.listed([f'{one.name} ({_why(one)})' for one in left_out])}." if left_out else ""
    if len(done) < 2:
        return Text(
            f"Which is better cannot be told: that takes two finished runs with a measured loss.{others}", "warn"
        )
    if len({_rows(one.report) for one in done}) > 1:
        words = "they were measured on different rows, so their losses say nothing about each other"
        return Text(f"Which is better cannot be told: {words}; the answers may.{others}", "warn")
    if len({one.report.base.name for one in done}) > 1:
        words = "their base models cut texts into other tokens, so their losses say nothing about each other"
        return Text(f"Which is better cannot be told by the loss: {words}.{_answered(done)}{others}", "warn")
    best, second, *_ = sorted(done, key=lambda one: one.after)
    said = _judged(best, second, len(done))
    return Text(said.text + others, said.tone)


def _why(one: Rival) -> str:
    return one.report.run.state if one.report.run.state != "completed" else "nothing was measured"


def _rows(report: Report) -> tuple[object, ...]:
    """What the rows that a run was measured on follow from."""
    files = tuple(sorted(file.sha256 for file in report.data.files)) if report.data else ()
    data = report.settings.get("Dataset", {})
    # The seed deals rows out where they are split; a file of its own is the same for every seed.
    split = bool(data.get("TEST_SPLIT")) or not data.get("VALIDATION_FILE")
    return (files, report.seed if split else None, *(str(data.get(key)) for key in SPLIT))


def _judged(best: Rival, second: Rival, count: int) -> Text:
    """The two with the lowest losses against each other."""
    one, other = best.loss, second.loss
    next_one = f"{second.name}, the next," if count > 2 else second.name
    if one is None or other is None or not one.each or len(one.each) != len(other.each):
        figures = f"its loss is {best.after:.3f} against {second.after:.3f}"
        words = "by how much chance alone could make them differ was not kept"
        if best.after > (1 - verdict.CLEAR) * second.after:
            return Text(
                f"Hardly a difference: {best.name} and {second.name}, {best.after:.3f} and {second.after:.3f}.", "warn"
            )
        return Text(f"{best.name} predicts better than {next_one}: {figures}; {words}.", "warn")
    told = scoring.of_two(LOSS, -1, other, one)
    rows = wording.counted(len(one.each), "row")
    figures = f"{LOSS} {best.after:.3f} against {second.after:.3f} on the same {rows}"
    interval = f"difference {told.low:+.3f} to {told.high:+.3f}, 95 %" if told.low is not None else ""
    if told.verdict != "better":
        why = (
            f"fewer than {scoring.FEWEST} rows"
            if len(one.each) < scoring.FEWEST
            else f"which may be chance: {interval}"
        )
        return Text(f"Cannot tell which is better, {best.name} or {second.name}: {figures}, {why}.", "warn")
    against = list(_against(best, second))
    lead = f"{best.name} predicts better" if against else f"{best.name} is better"
    price = f", but {wording.listed(against)}" if against else ""
    return Text(f"{lead} than {next_one}: {figures} ({interval}){price}.", "warn" if against else "good")


def _against(best: Rival, second: Rival) -> list[str]:
    """What speaks for the other one, or against both."""
    found = []
    ours, theirs = (checklist.expected_answers(one.report) for one in (best, second))
    if ours and theirs and ours[0] < theirs[0]:
        found.append(
            f"{second.name} gives {theirs[0]} of {theirs[1]} answers as expected, {best.name} {ours[0]} of {ours[1]}"
        )
    one, other = (checklist.named(rival.report.general, GENERAL_LOSS) for rival in (best, second))
    if one and other and one.each and len(one.each) == len(other.each):
        told = scoring.of_two(GENERAL_LOSS, -1, other, one)
        if told.verdict == "worse":
            found.append(f"{best.name} is worse on general questions (loss {one.after:.3f} against {other.after:.3f})")
    if verdict.by_losses(best.report).word == "worse":
        found.append(f"{best.name} is worse than its own base model")
    return found


def _answered(rivals: Sequence[Rival]) -> str:
    """How many answers of each are the expected ones."""
    counted = [(one.name, checklist.expected_answers(one.report)) for one in rivals]
    known = [f"{name} {found[0]} of {found[1]}" for name, found in counted if found]
    return f" Answers as expected: {', '.join(known)}." if len(known) > 1 else ""
