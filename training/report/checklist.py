"""What is to be seen to before a model is given to people: ticked from a run's own facts, open where a person must look."""

from __future__ import annotations

from collections.abc import Iterator

from training.evaluation import EXACT, GENERAL_LOSS, LOSS, Score
from training.report.schema import Point, Report
from training.system import wording

# Below this share of answers that are the expected ones, the answers are the news, whatever the loss says.
MOSTLY = 0.5


def points(report: Report) -> tuple[Point, ...]:
    """The whole list of a run that is done; empty for another, whose report says what to do first."""
    if report.run.state != "completed" or report.training is None or report.data is None:
        return ()
    return (*_data(report), *_training(report), *_evaluation(report), *_deployment(report))


def _data(report: Report) -> Iterator[Point]:
    data = report.data
    assert data
    left_out = f"{data.rejected:,} were left out, see rejected.jsonl" if data.rejected else ""
    yield Point("data", "every row could be used", not data.rejected, left_out)
    yield Point("data", "no row was cut by MAX_SEQ_LENGTH", not data.cut, f"{data.cut:,} were" if data.cut else "")
    held = [f"{rows:,} {role} rows" for role, rows in data.rows.items() if role != "training"]
    yield Point("data", "rows are kept out of the training, to measure on", bool(held), ", ".join(held))
    yield Point("data", "somebody has read some of the rows, and they are what the model should say", None)
    yield Point("data", "the rows may be used for this, and hold nothing that must not get out", None)


def _training(report: Report) -> Iterator[Point]:
    training = report.training
    assert training
    early = " (stopped early)" if training.steps < training.total else ""
    yield Point("training", "the training is done", True, f"{training.steps:,} of {training.total:,} steps{early}")
    if training.best is not None and training.after is not None:
        low = training.after <= 1.02 * training.best
        found = f"lowest {training.best:.3f}, at the end {training.after:.3f}"
        yield Point("training", "the validation loss did not rise again", low, found)
    files = [file for file in report.data.files if file.sha256] if report.data else []
    same = report.seed is not None and bool(files) and bool(report.settings)
    yield Point("training", "settings, seed and hashes of the data are kept, to make this run again", same)


def _evaluation(report: Report) -> Iterator[Point]:
    loss = named(report.scores, LOSS)
    verdict = loss.verdict if loss and loss.verdict else "nothing was compared"
    yield Point(
        "evaluation", "better than the base, beyond chance", verdict == "better", "" if verdict == "better" else verdict
    )
    if found := expected_answers(report):
        most = found[0] >= MOSTLY * found[1]
        yield Point(
            "evaluation", "most answers are the expected ones, word for word", most, f"{found[0]} of {found[1]}"
        )
    if report.samples:
        known = [sample.stopped for sample in report.samples if sample.stopped is not None]
        counted = f"{sum(known)} of {len(known)}" if known else "all of them were cut off where the asking ends"
        yield Point("evaluation", "its answers end by themselves", all(known) if known else None, counted)
    if (general := named(report.general, GENERAL_LOSS)) and general.verdict:
        change = f"loss {wording.number(general.before, '.3f')} before, {wording.number(general.after, '.3f')} after"
        yield Point("evaluation", "no worse at general questions, beyond chance", general.verdict != "worse", change)
    yield Point("evaluation", "somebody has read the answers in this report, and finds them right", None)


def _deployment(report: Report) -> Iterator[Point]:
    left_out = [check.name for check in report.checks if check.passed is None]
    passed = bool(report.checks) and all(check.passed for check in report.checks if check.passed is not None)
    why = f"not made: {', '.join(left_out)}" if left_out else "" if report.checks else "none was made"
    yield Point("deployment", "every check of the exported files passed", passed and not left_out, why)
    for file in report.quantised:
        if file.tokens_per_second:
            fast = f"{file.file}: {file.tokens_per_second:,.0f} tokens/s on this machine"
            yield Point("deployment", "it answers in llama.cpp, fast enough for its use", None, fast)
    yield Point("deployment", "it answers in Ollama", None, "./export_ollama.sh asks it one question")


def expected_answers(report: Report) -> tuple[int, int] | None:
    """How many of the answers are the expected ones, of how many."""
    score = named(report.scores, EXACT)
    if score is None or score.after is None or not score.rows:
        return None
    return round(score.after * score.rows), score.rows


def named(scores: tuple[Score, ...], name: str) -> Score | None:
    """The line of the evaluation with this name, or None."""
    return next((score for score in scores if score.name == name), None)
