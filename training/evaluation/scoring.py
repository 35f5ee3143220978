"""How good answers are, in figures that hold for Chinese as for English, and whether a difference is more than chance.

chrF is sacrebleu's: n-grams of characters, so that no word border is needed. ROUGE-L is taken over characters as well
(the usual package drops everything that is not a-z and 0-9): its F value is 2 LCS / (m + n), which is what rapidfuzz
calls the normalised Indel similarity. Everything is from 0 to 1 but losses, lengths and perplexity.
"""

from __future__ import annotations

import functools
import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from training.evaluation.calls import calls_in

SAMPLES, SEED = 2000, 3407  # bootstrap resamples, and what makes them the same every time
# With five rows that all point one way chance alone does as much in 1 of 16 cases (sign test, both sides); with six in 1 of 32.
FEWEST = 6
DIGITS = 6  # of a row's figure, as it is kept
EXACT, STOPS = "exact match", "stops by itself"
# A CJK character is a word by itself; elsewhere a word is a run of letters and digits; other marks stand alone.
_UNITS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\uac00-\ud7af]|[^\W_]+|[^\w\s]")


@dataclass(frozen=True, kw_only=True)
class Marks:
    """What one answer is worth. `length` is in characters, `repetition` the share of its 4-grams that were there before.

    stopped: None where it was given too few tokens to tell. thinks: whether it begins with thoughts that hold something.
    calls_parse, calls_match: of an answer that is expected to call tools, whether it does, and whether as expected.
    """

    exact: float
    chrf: float
    rouge_l: float
    length: int
    repetition: float
    stopped: bool | None
    thinks: bool = False
    calls_parse: float | None = None
    calls_match: float | None = None

    def figure(self, name: str) -> float | None:
        """A field as a number; None where it has none for this answer."""
        value = getattr(self, name)
        return None if value is None else float(value)


@dataclass(frozen=True)
class Score:
    """One figure of the evaluation; `low` and `high` bound the difference tuned - base (95 %)."""

    name: str
    before: float | None = None
    after: float | None = None
    quantised: float | None = None
    low: float | None = None
    high: float | None = None
    rows: int | None = None
    verdict: str = ""  # better, worse, cannot tell from N rows
    # Of the tuned model, row by row, so that two runs on the same rows can be held against each other; `weights`: what
    # each row counts, nothing where all count the same.
    each: tuple[float, ...] = ()
    weights: tuple[float, ...] = ()

    def left(self) -> dict[str, object]:
        """As a stage leaves it in status.json: of what could not be compared only the figures."""
        means = {"before": self.before, "after": self.after, "quantised": self.quantised}
        bounds = {"low": self.low, "high": self.high} if self.low is not None else {}
        decided = {"verdict": self.verdict} if bounds or self.verdict else {}
        kept = ("each", "weights") if decided else ()
        rows = {name: list(found) for name in kept if (found := getattr(self, name))}
        return {"name": self.name, **means, "rows": self.rows, **bounds, **decided, **rows}


@dataclass(frozen=True)
class Measure:
    """One line of the evaluation table. `good`: 1 higher is better, -1 lower is better, 0 neither."""

    field: str
    name: str
    good: int


MEASURES = (
    Measure("exact", EXACT, 1),
    Measure("chrf", "chrF", 1),
    Measure("rouge_l", "ROUGE-L", 1),
    Measure("stopped", STOPS, 1),
    Measure("repetition", "repetition", -1),
    Measure("length", "answer length, characters", 0),
)


THINKS = Measure("thinks", "begins with thoughts", 0)
# Of the answers alone that are expected to call tools, as `stopped` is of those that are given the tokens for it.
CALLS = (
    Measure("calls_parse", "tool calls that parse", 1),
    Measure("calls_match", "tool calls that match", 1),
)


def likeness(answer: str, expected: str) -> float:
    """ROUGE-L over characters: from 0 to 1, where the two are equal but for white space and Unicode forms."""
    from rapidfuzz.distance import Indel

    ours, theirs = normal(answer), normal(expected)
    return Indel.normalized_similarity(ours, theirs) if ours and theirs else float(ours == theirs)


def marks(answer: str, expected: str, stopped: bool | None) -> Marks:
    """Score one answer against the expected one. White space at the ends, its kind, and Unicode forms do not count."""
    ours, theirs = normal(answer), normal(expected)
    wanted = calls_in(expected)
    called = calls_in(answer) if wanted else []
    return Marks(
        exact=float(ours == theirs),
        chrf=_chrf(ours, theirs),
        rouge_l=likeness(answer, expected),
        length=len(answer.strip()),
        repetition=repetition(answer),
        stopped=stopped,
        thinks=_thinks(answer),
        calls_parse=float(bool(called)) if wanted else None,
        calls_match=float(called == wanted) if wanted else None,
    )


def _thinks(answer: str) -> bool:
    """Whether an answer begins with thoughts; the mark that opens them may stand in its prompt."""
    begin, closed, _ = answer.partition("</think>")
    opened = begin.lstrip().startswith("<think>")
    return bool((closed or opened) and begin.strip().removeprefix("<think>").strip())


def _chrf(ours: str, theirs: str) -> float:
    if not ours or not theirs:
        return float(ours == theirs)
    return float(_chrf_metric().sentence_score(ours, [theirs]).score) / 100


@functools.cache
def _chrf_metric() -> Any:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()


def normal(text: str) -> str:
    """A text as it is compared: NFC, runs of white space as one space."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def repetition(text: str, n: int = 4) -> float:
    """The share of an answer's 4-grams (of words; of characters in Chinese) that stand in it earlier: seq-rep-4."""
    units = _UNITS.findall(text)
    grams = [tuple(units[at : at + n]) for at in range(len(units) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def perplexity(loss: float | None) -> float | None:
    """exp(loss); None where there is no loss, or none that a number holds."""
    return None if loss is None or loss > 700 else math.exp(loss)


def interval(differences: Sequence[float], weights: Sequence[float] | None = None) -> tuple[float, float]:
    """The 95 % bootstrap interval of the (weighted) mean of paired differences, rows drawn with replacement; seeded."""
    import numpy as np

    values = np.asarray(differences, float)
    weight = np.ones(len(values)) if weights is None else np.asarray(weights, float)
    drawn = np.random.default_rng(SEED).integers(0, len(values), (SAMPLES, len(values)))
    means = (values * weight)[drawn].sum(1) / weight[drawn].sum(1)
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def verdict(low: float, high: float, good: int, rows: int) -> str:
    """better, worse, or cannot tell from N rows, of an interval of tuned - base. `good`: which way is better (0: no way)."""
    if not good:
        return ""
    if rows >= FEWEST and low * good > 0 and high * good > 0:
        return "better"
    if rows >= FEWEST and low * good < 0 and high * good < 0:
        return "worse"
    return f"cannot tell from {rows} row{'s' * (rows != 1)}"


def compared(
    name: str,
    good: int,
    before: Sequence[float] | None,
    after: Sequence[float],
    quantised: Sequence[float] | None = None,
    weights: Sequence[float] | None = None,
) -> Score:
    """One line of the evaluation: paired figures of the same rows in the same order.

    A figure that is not a finite number is None; the tuned model is worse then, where the base's is one.
    """
    by = list(weights or [1.0] * len(after))

    def mean(values: Sequence[float] | None) -> float | None:
        found = sum(v * w for v, w in zip(values, by, strict=True)) / sum(by) if values else math.nan
        return found if math.isfinite(found) else None

    score = Score(name, before=mean(before), after=mean(after), quantised=mean(quantised), rows=len(after))
    if score.after is not None:
        score = replace(score, each=tuple(round(one, DIGITS) for one in after), weights=tuple(weights or ()))
    if score.before is None or not before:
        return score
    if score.after is None:
        return replace(score, verdict="worse")
    low, high = interval([b - a for a, b in zip(before, after, strict=True)], by)
    return replace(score, low=low, high=high, verdict=verdict(low, high, good, len(after)))


def of_two(name: str, good: int, one: Score, other: Score) -> Score:
    """Two tuned models on the same rows: `before` is the one's figure, `after` the other's. Both know each row."""
    return compared(name, good, one.each, other.each, weights=other.weights or None)


def answer_scores(
    before: Sequence[Marks] | None, after: Sequence[Marks], quantised: Sequence[Marks] | None = None
) -> list[Score]:
    """The evaluation of answers: one line for each of MEASURES, for THINKS where one thinks, and for each of CALLS where
    tools are to be called. Each is of the answers that have a figure for it, and left out where none has."""
    thinking = any(one.thinks for found in (before, after, quantised) for one in found or ())

    def column(found: Sequence[Marks] | None, m: Measure) -> list[float] | None:
        # Which answers have a figure follows from their questions, so all three models' have it alike.
        figures = [one.figure(m.field) for one in found or ()]
        return [figure for figure in figures if figure is not None] or None

    return [
        compared(m.name, m.good, column(before, m), tuned, column(quantised, m))
        for m in (*MEASURES, *((THINKS,) if thinking else ()), *CALLS)
        if (tuned := column(after, m))
    ]


def conclusion(scores: Sequence[Score]) -> str:
    """The verdict of the whole, in one sentence: the losses decide where they were taken, for they count every token."""
    judged = [score for score in scores if score.verdict]
    if not judged:
        return "nothing was compared"
    first = judged[0]
    others = [f"{score.name} {score.verdict}" for score in judged[1:]]
    return f"{first.verdict} by {first.name}" + (f" ({', '.join(others)})" if others else "")
