"""Two models in a live Ollama are asked the same questions: is the new one worse than the one that people use?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from training.data import Item
from training.evaluation import scoring
from training.evaluation.scoring import FEWEST, STOPS, Marks, Score
from training.ollama import Server, asking
from training.ollama.asking import Prompt
from training.system import privacy

# Of the likeness to the expected answer (ROUGE-L, 0 to 1) that may be lost: less than people notice, and than chance gives.
MARGIN = 0.02
LIKENESS = "ROUGE-L"
NOT_WORSE, WORSE, UNCLEAR = "not worse", "worse", "cannot tell"


@dataclass(frozen=True)
class Judged:
    """verdict: NOT_WORSE, WORSE or UNCLEAR; `words`: with the figures."""

    verdict: str
    words: str


def judge(
    server: Server, old: str, new: str, asked: Sequence[tuple[Prompt, Item]], say: Callable[[str], None]
) -> Judged:
    """Ask both, greedily, and compare their answers with the expected ones."""
    if len(asked) < FEWEST:
        return Judged(
            UNCLEAR, f"only {len(asked)} held-out questions can be asked in a chat; {FEWEST} are needed at least"
        )
    say(f"asking {old} and {new} {len(asked)} held-out questions")
    before, after = (_marks(server, name, asked) for name in (old, new))
    scores = {score.name: score for score in scoring.answer_scores(before, after)}
    return _judged(scores[LIKENESS], scores[STOPS])


def _marks(server: Server, name: str, asked: Sequence[tuple[Prompt, Item]]) -> list[Marks]:
    found = []
    for prompt, item in asked:
        # What is expected is kept without secrets, so that an answer is compared as it would be kept.
        answer = asking.answer(server, name, prompt, item.most)
        found.append(scoring.marks(privacy.redact(answer.text), item.expected, answer.stopped))
    return found


def _judged(likeness: Score, stops: Score) -> Judged:
    low, high = likeness.low or 0.0, likeness.high or 0.0
    words = (
        f"likeness to the expected answers {likeness.before or 0:.3f} -> {likeness.after or 0:.3f} "
        f"(difference {low:+.3f} to {high:+.3f}, {likeness.rows} questions), "
        f"{stops.before or 0:.0%} -> {stops.after or 0:.0%} stop by themselves"
    )
    if high < 0 or stops.verdict == WORSE:
        return Judged(WORSE, words)
    # A loss that may be chance is no proof of a loss, and none that there is none.
    stops_as_often = (stops.after or 0.0) >= (stops.before or 0.0)
    return Judged(NOT_WORSE if low >= -MARGIN and stops_as_often else UNCLEAR, words)
