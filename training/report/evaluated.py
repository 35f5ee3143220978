"""What the report says of the evaluation: the table of figures, and the answers themselves."""

from __future__ import annotations

from collections.abc import Iterator

from training.data import record
from training.evaluation import LOSS, PERPLEXITY, Score, ledger, scoring
from training.report import checklist, price
from training.report.blocks import Answers, Asked, Block, Reply, Table, Text
from training.report.schema import Report, Sample
from training.system import wording

EVALUATED = (
    "Rows that were not trained on. The interval is that of tuned minus base, by bootstrap over the rows; where it holds 0, "
    "the difference may be chance. chrF and ROUGE-L compare characters with the expected answer, 1 is equal."
)
TWO_LOSSES = (
    "The validation loss above is a mean over all validation rows and every answer in them, as they are trained; the loss "
    "here is of at most 32 held-out rows, the last answer of each, at most 512 tokens of a row, so that base, tuned and "
    "quantised file are measured alike. So the two differ a little where they are of the same rows."
)


def evaluation(report: Report) -> tuple[Block, ...]:
    """The figures, with what they mean and what they do not tell."""
    blocks: list[Block] = []
    if report.scores:
        blocks += [_scores(report.scores), Text(EVALUATED)]
        if few := [score for score in report.scores if score.low is not None and (score.rows or 0) < scoring.FEWEST]:
            rows = wording.counted(few[0].rows or 0, "row")
            words = f"{rows} may all point one way by chance: from fewer than {scoring.FEWEST} nothing is told, whatever the interval"
            blocks.append(Text(f"{words}."))
        if (report.training and report.training.before is not None) and checklist.named(report.scores, LOSS):
            blocks.append(Text(TWO_LOSSES))
    if found := price.scores(report):
        blocks += [Text(words)] if (words := price.sentence(report)) else []
        blocks += [_scores(found), Text(price.MEASURED)]
    return tuple(blocks)


def _scores(scores: tuple[Score, ...]) -> Table:
    rows = tuple(
        (
            score.name,
            score.verdict,
            figure(score, score.before),
            figure(score, score.after),
            "" if score.quantised is None else figure(score, score.quantised),
            ""
            if score.low is None or score.high is None
            else f"{score.low:+{_form(score)}} to {score.high:+{_form(score)}}",
            "" if score.rows is None else f"{score.rows:,}",
        )
        for score in scores
    )
    headers = ("", "verdict", "base", "tuned", "quantised", "difference, 95 %", "rows")
    return Table(headers, rows, numbers=(2, 3, 4, 5, 6), marks=1)


def figure(score: Score, value: float | None) -> str:
    """A figure of a line of the evaluation, with as many decimals as all others of its kind have."""
    return wording.number(value, _form(score))


def _form(score: Score) -> str:
    """Losses and shares have three decimals on every page; perplexities two, lengths one."""
    if score.name == PERPLEXITY:
        return ",.2f"
    return ".1f" if "length" in score.name else ".3f"


def answers(report: Report) -> tuple[Block, ...]:
    """All questions with their answers, the worst first: who reads only some should read those."""
    if not report.samples:
        return ()
    samples = sorted(report.samples, key=_likeness)
    asked = tuple(Asked(sample.question, sample.expected, tuple(_replies(sample))) for sample in samples)
    order = ", the farthest from what is expected first" if any(sample.expected for sample in samples) else ""
    return (Text(f"{wording.counted(len(samples), 'question')}{order}."), Answers(asked))


def _likeness(sample: Sample) -> float:
    """From 0 up: how much the answer is the expected one; an answer without an end comes before all others."""
    if sample.stopped is False:
        return -1.0
    if not sample.expected or sample.after is None:
        return 1.0
    return scoring.likeness(sample.after, sample.expected)


def _replies(sample: Sample) -> Iterator[Reply]:
    if sample.before is not None:
        yield Reply("before", sample.before, "base")
    if sample.after is not None:
        yield Reply("after", sample.after, "tuned", sample.stopped)
    if sample.quantised is not None:
        same = "after" if sample.quantised == sample.after else ""
        yield Reply("quantised", sample.quantised, "quantised", sample.quantised_stopped, same)


def _other(entry: ledger.Entry) -> str:
    """The row that this one contradicts."""
    if entry.other is None:
        return ""
    if entry.other_file:
        return f": {record.place(entry.other_file, entry.other)}"
    return f": line {entry.other}" if entry.other >= 0 else f": row {-entry.other}"


MEANT = {
    ledger.CONTRADICTS: "the same question, and another answer",
    ledger.WORSE: "its loss rose: other rows taught something else, or it is unlike them",
    ledger.STUCK: "its loss fell by less than a quarter of what others lost: garbled, unlike the rest, or too hard",
    ledger.KNOWN: "the base model gave its answer before: the row teaches little",
}


def rows(report: Report) -> tuple[Block, ...]:
    """What the training did to the rows, so that the next version of the data is better."""
    kept = report.ledger
    if kept is None:
        return ()
    every = wording.counted(kept.learned, "row")
    which = every if kept.measured >= kept.learned else f"{kept.measured:,} of {every}, chosen by chance,"
    words = f"The losses of {which} that were learned, with the base model and after the training; all of these are in rows.csv."
    counts = tuple((kind, f"{count:,}", MEANT.get(kind, "")) for kind, count in kept.counts.items() if count)
    if not counts:
        return (Text(f"{words} No row stands out."),)
    blocks: list[Block] = [Text(words), Table(("", "rows", "what it may mean"), counts, numbers=(1,))]
    if kept.named:
        found = tuple(
            (
                record.place(entry.file, entry.line),
                entry.finding + _other(entry),
                wording.number(entry.before, ".3f"),
                wording.number(entry.after, ".3f"),
            )
            for entry in kept.named
        )
        blocks.append(Table(("row", "found", "before", "after"), found, numbers=(2, 3), code=(0,)))
    return tuple(blocks)
