"""Several runs beside each other: ./run.sh --compare RUN RUN... Which is better comes first, then what differs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from training import runs, settings
from training.errors import UserError
from training.evaluation import GENERAL_LOSS, Score
from training.report import (
    as_html,
    as_markdown,
    checklist,
    contents,
    differing,
    evaluated,
    gathering,
    price,
    rivals,
    writing,
)  # fmt: skip
from training.report.blocks import Answers, Asked, Bar, Details, Pictures, Reply, Section, Table, Text
from training.report.curves import MOST_POINTS, Chart, Series, thin
from training.report.schema import BaseFacts, Evaluation, Report, RunFacts, Step
from training.runs import Run, directory
from training.system import files, privacy, records, wording
from training.system.foreign_json import Damaged

FILE = "compare.html"
COLOURS = 6  # the style sheet has run1 to run6


def compare(found: Sequence[Run], folder: Path) -> tuple[Path, str]:
    """Write the page of these runs into `folder`; its path, and what it says as text for a terminal.

    UserError where a run is named twice or is no run. A damaged run is named in the log and left out, as long as two
    are left.
    """
    if len({run.path.resolve() for run in found}) < len(found):
        raise UserError("--compare: a run is named twice")
    reports = directory.to_compare(found, read)
    path = folder / FILE
    files.write_text(path, html(reports))
    return path, privacy.shown(text(reports))


def read(run: Run) -> Report:
    """What is known of a run: its report, or of one that is not done what it has told so far."""
    if (run.path / runs.REPORT).is_file():
        return writing.read(run.path / runs.REPORT)
    if gathering.has_plan(run):
        return writing.with_curves(run.path, gathering.gather(run, directory.state(run), ended=False))
    given = settings.of_run(run.path / runs.CONFIG, check_files=False)
    status = run.status
    try:
        scores = tuple(records.read(score, Score) for score in (run.stage("evaluate") or {}).get("scores", []))
    except (ValueError, TypeError) as error:
        raise Damaged(f"{run.path / runs.STATUS}: stages.evaluate.scores: {error}") from None
    made = Report(
        given.model.new_model_name,
        RunFacts(run.path.name, str(run.path), directory.state(run), status.get("started"), status.get("updated")),
        BaseFacts(given.model.base_model_name),
        settings=given.as_dict(),
        differences=tuple(given.differences()),
        choices=given.choices,
        scores=scores,
    )
    return writing.with_curves(run.path, made)


def html(reports: Sequence[Report]) -> str:
    """The whole page."""
    title, made = f"{len(reports)} runs compared", sections(reports)
    body = [f"<header><h1>{as_html.text(title)}</h1>"]
    better = rivals.better(reports, differing.names(reports))
    body.append(f'<p class="result {better.tone}">{as_html.text(better.text)}</p></header>')
    body += [as_html.contents_of(made), "<main>", *map(as_html.section_html, made), "</main>"]
    return "\n".join([as_html.head(title, as_html.STYLE.read_text(encoding="utf-8")), *body, "</body></html>"]) + "\n"


def text(reports: Sequence[Report]) -> str:
    """The same for a terminal, but for curves and answers."""
    lines = [rivals.better(reports, differing.names(reports)).text]
    for section in sections(reports):
        parts = [
            part
            for block in section.blocks
            if not isinstance(block, Pictures | Answers | Bar | Details) and (part := as_markdown.render(block))
        ]
        if parts:
            lines += ["", section.title, "", "\n\n".join(parts)]
    return "\n".join(lines)


def sections(reports: Sequence[Report]) -> list[Section]:
    """All that the page says under its first sentence."""
    made = [
        Section("What differs", differing.blocks(reports)),
        Section("Results", (_results(reports),)),
    ]
    if rows := price.compared(reports):
        table = Table(("", *differing.names(reports)), rows)
        made.append(Section("Gain and price, base -> tuned", (table, Text(price.MEASURED))))
    if charts := _charts(reports):
        made.append(Section("Losses", tuple(Pictures((chart,)) for chart in charts)))
    if answers := _answers(reports):
        made.append(Section("Answers to the same questions", (answers,)))
    return made


def _results(reports: Sequence[Report]) -> Table:
    def score(one: Report, which: str, general: bool = False) -> str:
        line = checklist.named(one.general if general else one.scores, which)
        if line is None or line.after is None:
            return ""
        return evaluated.figure(line, line.after) + ", worse than its base" * (line.verdict == "worse")

    trained = [one.training for one in reports]
    rows: list[tuple[str, ...]] = [
        ("run", *(one.run.id.removeprefix("finetune_") for one in reports)),
        ("state", *(one.run.state for one in reports)),
        ("steps", *(f"{t.steps:,} of {t.total:,}" if t else "" for t in trained)),
        ("validation loss before", *(_loss(t.before) if t else "" for t in trained)),
        ("validation loss after", *(_loss(t.after) if t else "" for t in trained)),
    ]
    rows += [
        (name, *(score(one, name) for one in reports))
        for name in dict.fromkeys(s.name for r in reports for s in r.scores)
    ]
    rows.append((GENERAL_LOSS, *(score(one, GENERAL_LOSS, True) for one in reports)))
    speeds = [t.tokens_per_second if t else None for t in trained]
    rows.append(("training, tokens/s", *("" if speed is None else f"{speed:,.0f}" for speed in speeds)))
    times = [contents.time_worked(one.run) for one in reports]
    rows.append(("working time", *("" if time is None else wording.duration(time.seconds) for time in times)))
    sizes = [[item.bytes for item in one.artefacts if item.path.endswith(".gguf")] for one in reports]
    rows.append(("smallest GGUF", *(wording.size(min(found)) if found else "" for found in sizes)))
    columns = tuple(range(1, len(reports) + 1))
    return Table(("", *differing.names(reports)), tuple(row for row in rows if any(row[1:])), numbers=columns)


def _loss(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _charts(reports: Sequence[Report]) -> list[Chart]:
    found = []
    for title in ("Validation loss", "Training loss"):
        series = []
        for number, (name, one) in enumerate(zip(differing.names(reports), reports, strict=True)):
            if one.training is None:
                continue
            validation = title == "Validation loss"
            points: Sequence[Evaluation | Step] = one.training.evaluations if validation else one.training.losses
            if points:
                curve = tuple((point.step, point.loss) for point in thin(points, MOST_POINTS))
                series.append(Series(name, curve, f"run{number % COLOURS + 1}"))
        last = max((int(x) for line in series for x, _ in line.points), default=0)
        if series:
            found.append(Chart(title, tuple(series), last))
    return found


def _answers(reports: Sequence[Report]) -> Answers | None:
    """What each run answers to the questions that all of them were asked."""
    by_run = [{sample.question: sample for sample in one.samples} for one in reports]
    shared = [question for question in by_run[0] if all(question in found for found in by_run)]
    if not shared:
        return None
    names = differing.names(reports)
    asked = []
    for question in shared:
        first, replies = by_run[0][question], list[Reply]()
        for number, (name, found) in enumerate(zip(names, by_run, strict=True)):
            sample = found[question]
            said, kind = sample.after or "", f"run{number % COLOURS + 1}"
            same = next((reply.who for reply in replies if said and reply.text == said), "")
            replies.append(Reply(name, said, kind, sample.stopped, same))
        asked.append(Asked(question, first.expected, tuple(replies)))
    return Answers(tuple(asked))
