"""Is the tuned model better? One answer out of all figures of a run, with the price in the same sentence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from training.checks import Outcome
from training.checks.logits import NOISE
from training.evaluation import EXACT, GENERAL_LOSS, LOSS, STOPS, Score
from training.report.checklist import MOSTLY, expected_answers, named
from training.report.schema import Report, TrainingFacts
from training.system import wording

CLEAR = 0.01  # of the validation loss: a smaller change is not called one
# Of what the training changed: what the merge into 16 bits, or the quantising, may undo before it counts as a price.
SMALL = 0.05
# Lines of the evaluation of answers that are told as a price where they got worse beyond chance.
ANSWERS = (EXACT, "chrF", "ROUGE-L", "repetition")


@dataclass(frozen=True)
class Verdict:
    """`word`: better, mixed, worse, unclear, unchanged, or unknown; `price`: what speaks against the model, in words."""

    word: str
    text: str
    tone: str
    price: tuple[str, ...] = ()


@dataclass(frozen=True)
class Gain:
    """What the losses alone say, in one of Verdict's words, and in figures."""

    word: str
    figures: str
    rows: int | None = None


def verdict(report: Report) -> Verdict:
    """The verdict on a model that is trained. Green only where nothing speaks against it."""
    gain = by_losses(report)
    good, bad = tuple(_answered(report)), tuple(price(report))
    if gain.word == "better":
        if not bad:
            return Verdict("better", f"Better: {', '.join((gain.figures, *good))}.", "good")
        return Verdict("mixed", f"Mixed: {', '.join((gain.figures, *good))}, but {wording.listed(bad)}.", "warn", bad)
    against = f", and {wording.listed(bad)}" if bad else ""
    figures = ", ".join((gain.figures, *good))
    if gain.word == "worse":
        return Verdict("worse", f"Worse: {figures}{against}.", "bad", bad)
    if gain.word == "unchanged":
        advice = "" if bad else " More steps or a higher LEARNING_RATE would teach it more."
        return Verdict("unchanged", f"Hardly changed: {figures}{against}.{advice}", "warn", bad)
    if gain.word == "unclear":
        asked = f"Cannot tell from {wording.counted(gain.rows or 0, 'row')} whether it is better"
        return Verdict("unclear", f"{asked}: {gain.figures}, which may be chance{against}.", "warn", bad)
    lead = "Trained without validation rows, so no figure says how well it answers new questions"
    return Verdict("unknown", f"{lead}{against}.{gain.figures}", "warn", bad)


def by_losses(report: Report) -> Gain:
    """What the losses say: those of the held-out answers, of which is known what chance does, before the validation's."""
    loss, training = named(report.scores, LOSS), report.training or TrainingFacts()
    validation = change("validation loss", training.before, training.after)
    if loss is not None and loss.verdict and loss.rows:
        figures = change(LOSS, loss.before, loss.after)
        if loss.verdict == "worse":
            return Gain("worse", f"{figures}, beyond chance", loss.rows)
        if loss.verdict != "better":
            return Gain("unclear", figures, loss.rows)
        return Gain("better", validation if _direction(training) == "better" else figures, loss.rows)
    direction = _direction(training)
    if direction:
        return Gain(direction, validation)
    seen = [step.loss for step in training.losses if step.loss is not None]
    return Gain("unknown", f" Training loss {seen[0]:.3f} -> {seen[-1]:.3f}." if seen else "")


def _direction(training: TrainingFacts) -> str:
    """better, worse or unchanged by the validation loss; nothing where it was not taken."""
    if training.before is None or training.after is None:
        return ""
    if training.after < (1 - CLEAR) * training.before:
        return "better"
    return "unchanged" if training.after < (1 + CLEAR) * training.before else "worse"


def change(name: str, before: float | None, after: float | None) -> str:
    """A loss before and after: `validation loss 3.180 -> 1.010 (-68.2 %)`."""
    share = f" ({(after - before) / abs(before) * 100:+.1f} %)" if before and after is not None else ""
    return f"{name} {wording.number(before, '.3f')} -> {wording.number(after, '.3f')}{share}"


def _answered(report: Report) -> Iterator[str]:
    """What the answers say for the model."""
    found = expected_answers(report)
    if found and found[0] >= MOSTLY * found[1]:
        yield f"{found[0]} of {found[1]} answers as expected"


def price(report: Report) -> Iterator[str]:
    """What speaks against the model, each in a few words: its answers first, for they are what people will see."""
    found = expected_answers(report)
    if found and found[0] < MOSTLY * found[1]:
        right = f"only {found[0]}" if found[0] else "none"
        yield f"{right} of {found[1]} answers {'are' if found[0] > 1 else 'is'} the expected one word for word"
    for name in ANSWERS:
        score = named(report.scores, name)
        if score and score.verdict == "worse":
            yield f"{name} got worse ({wording.number(score.before, '.3f')} -> {wording.number(score.after, '.3f')})"
    yield from _endless(report)
    general = named(report.general, GENERAL_LOSS)
    if general and general.verdict == "worse":
        losses = f"{wording.number(general.before, '.3f')} -> {wording.number(general.after, '.3f')}"
        yield f"it is worse on general questions (loss {losses})"
    loss, training = named(report.scores, LOSS), report.training or TrainingFacts()
    if loss and loss.verdict == "better" and _direction(training) == "worse":
        yield change("validation loss", training.before, training.after)
    yield from _rounded(report)
    yield from _quantised(loss)


def _endless(report: Report) -> Iterator[str]:
    known = [sample.stopped for sample in report.samples if sample.stopped is not None]
    endless, asked = known.count(False), len(known)
    score = named(report.scores, STOPS)
    if score and score.after is not None and score.rows:
        endless, asked = max((endless, asked), (round((1 - score.after) * score.rows), score.rows))
    if endless:
        yield f"{endless} of {asked} answers did not stop by {'itself' if asked == 1 else 'themselves'}"
    figures = figures_of(report.checks, "answers")
    counts, prompts = figures.get("stopped"), figures.get("prompts")
    if isinstance(counts, Mapping) and isinstance(prompts, int):
        fewest = min((count for name, count in counts.items() if name not in ("merged", "f16")), default=prompts)
        if fewest < counts.get("merged", prompts):
            yield f"the quantised file ran on in {prompts - fewest} of {prompts} answers to training prompts"


def merge_cost(report: Report) -> float | None:
    """How far the merge into 16 bits moved the predictions, as a share of what the training did; None: not measured."""
    figures = figures_of(report.checks, "merged logits")
    moved, trained = figures.get("mean_kl"), figures.get("mean_kl_of_training")
    if isinstance(moved, (int, float)) and isinstance(trained, (int, float)) and trained > 0:
        return max(0.0, moved / trained)
    return None


def _rounded(report: Report) -> Iterator[str]:
    cost, figures = merge_cost(report), figures_of(report.checks, "merged logits")
    moved, noise = figures.get("mean_kl"), NOISE.get(str(figures.get("dtype")), 0.0)
    # What the order of sums alone may cost is none of the merge's doing, however little the training changed.
    if cost is not None and cost > SMALL and isinstance(moved, (int, float)) and moved > noise:
        yield f"rounding the merge to 16 bits moved its predictions by {100 * cost:.0f} % of what the training did"


def _quantised(loss: Score | None) -> Iterator[str]:
    if loss is None or loss.quantised is None or loss.after is None or loss.before is None:
        return
    lost, gained = loss.quantised - loss.after, loss.before - loss.after
    if lost > CLEAR * loss.after and lost > 2 * SMALL * max(0.0, gained):
        yield f"the quantised file predicts less well (loss {loss.after:.3f} -> {loss.quantised:.3f})"


def figures_of(checks: tuple[Outcome, ...], name: str) -> Mapping[str, object]:
    """The figures of the check with this name; none where it was not made."""
    return next((check.figures for check in checks if check.name == name), {})
