"""One page of several runs: ./run.sh --compare RUN RUN... What differs in their settings comes first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from training import runs, settings
from training.errors import UserError
from training.evaluation import GENERAL_LOSS, Score
from training.report import as_html, checklist, writing
from training.report.blocks import Pictures, Section, Table, Text
from training.report.curves import MOST_POINTS, Chart, Series, thin
from training.report.schema import BaseFacts, Evaluation, Report, RunFacts, Step
from training.runs import Run, directory
from training.system import files, records, wording
from training.system.foreign_json import Damaged

FILE = "compare.html"
COLOURS = 6  # page.css has run1 to run6


def compare(found: Sequence[Run], folder: Path) -> Path:
    """Write the page of these runs into `folder`; its path. UserError where a run is named twice or is no run.

    A damaged run is named in the log and left out, as long as two are left.
    """
    if len({run.path.resolve() for run in found}) < len(found):
        raise UserError("--compare: a run is named twice")
    reports = directory.to_compare(found, read)
    path = folder / FILE
    files.write_text(path, html(reports))
    return path


def read(run: Run) -> Report:
    """What is known of a run: its report, or of one that is not done its settings and curves."""
    if (run.path / runs.REPORT).is_file():
        return writing.read(run.path / runs.REPORT)
    given = settings.load(run.path / runs.CONFIG, check_files=False)
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
        scores=scores,
    )
    return writing.with_curves(run.path, made)


def html(reports: Sequence[Report]) -> str:
    """The whole page."""
    title = f"{len(reports)} runs compared"
    body = [f"<header><h1>{as_html.text(title)}</h1></header>", "<main>"]
    for section in sections(reports):
        inner = "\n".join(as_html.render(block) for block in section.blocks)
        body.append(f"<section><h2>{as_html.text(section.title)}</h2>\n{inner}\n</section>")
    body.append("</main>")
    return "\n".join([as_html.head(title, as_html.STYLE.read_text(encoding="utf-8")), *body, "</body></html>"]) + "\n"


def sections(reports: Sequence[Report]) -> list[Section]:
    """All that the page says."""
    differing = _differing(reports)
    shown = differing if differing.rows else Text("Nothing: settings, rows and base model are the same.")
    made = [Section("What differs in their settings", (shown,)), Section("Results", (_results(reports),))]
    if charts := _charts(reports):
        made.append(Section("Losses", tuple(Pictures((chart,)) for chart in charts)))
    if answers := _answers(reports):
        made.append(Section("Answers to the same questions", (answers,)))
    return made


def _table(names: Sequence[str], rows: Sequence[tuple[str, ...]], numbers: bool = False) -> Table:
    columns = tuple(range(1, len(names) + 1))
    return Table(("", *names), tuple(rows), numbers=columns if numbers else (), code=() if numbers else columns)


def _names(reports: Sequence[Report]) -> list[str]:
    return [name(one) for one in reports]


def name(one: Report) -> str:
    """The run's folder without what is the same in all of their names: a column must not be wider than it needs."""
    return one.run.id.removeprefix("finetune_")


def _differing(reports: Sequence[Report]) -> Table:
    keys = dict.fromkeys(
        f"{section}.{key}" for one in reports for section, named in one.settings.items() for key in named
    )
    rows = [("base model", *(one.base.name for one in reports))] if len({one.base.name for one in reports}) > 1 else []
    hashes = [
        " ".join(file.sha256[:12] for file in one.data.files if file.role == "training") if one.data else "?"
        for one in reports
    ]
    if len(set(hashes)) > 1:
        rows.append(("training rows, SHA-256", *hashes))
    for key in keys:
        section, _, named = key.partition(".")
        values = [wording.value_text(one.settings.get(section, {}).get(named)) for one in reports]
        if len(set(values)) > 1 and key not in ("Training.OUTPUT_DIR", "Model.BASE_MODEL_NAME"):
            rows.append((key, *values))
    return _table(_names(reports), rows)


def _results(reports: Sequence[Report]) -> Table:
    def score(one: Report, which: str, general: bool = False) -> str:
        line = checklist.named(one.general if general else one.scores, which)
        if line is None or line.after is None:
            return ""
        return f"{line.after:.4g}" + (f", {line.verdict}" if line.verdict else "")

    rows = [("state", *(one.run.state for one in reports))]
    trained = [one.training for one in reports]
    rows.append(("steps", *(f"{t.steps:,} of {t.total:,}" if t else "" for t in trained)))
    rows.append(("validation loss before", *(wording.number(t.before, ".4f") if t else "" for t in trained)))
    rows.append(("validation loss after", *(wording.number(t.after, ".4f") if t else "" for t in trained)))
    rows += [
        (name, *(score(one, name) for one in reports))
        for name in dict.fromkeys(s.name for r in reports for s in r.scores)
    ]
    rows.append((GENERAL_LOSS, *(score(one, GENERAL_LOSS, True) for one in reports)))
    rows.append(("training, tokens/s", *(wording.number(t.tokens_per_second, ",.0f") if t else "" for t in trained)))
    times = [one.run.finished - one.run.started if one.run.finished and one.run.started else None for one in reports]
    rows.append(("time", *("" if time is None else wording.duration(time) for time in times)))
    sizes = [[item.bytes for item in one.artefacts if item.path.endswith(".gguf")] for one in reports]
    rows.append(("smallest GGUF", *(wording.size(min(found)) if found else "" for found in sizes)))
    return _table(_names(reports), [row for row in rows if any(row[1:])], numbers=True)


def _charts(reports: Sequence[Report]) -> list[Chart]:
    found = []
    for title in ("Validation loss", "Training loss"):
        series = []
        for number, one in enumerate(reports):
            if one.training is None:
                continue
            validation = title == "Validation loss"
            points: Sequence[Evaluation | Step] = one.training.evaluations if validation else one.training.losses
            if points:
                curve = tuple((point.step, point.loss) for point in thin(points, MOST_POINTS))
                series.append(Series(name(one), curve, f"run{number % COLOURS + 1}"))
        last = max((int(x) for line in series for x, _ in line.points), default=0)
        if series:
            found.append(Chart(title, tuple(series), last))
    return found


def _answers(reports: Sequence[Report]) -> Table | None:
    by_run = [{sample.question: sample for sample in one.samples} for one in reports]
    shared = [question for question in by_run[0] if all(question in found for found in by_run)]
    if not shared:
        return None
    rows = tuple(
        (question, by_run[0][question].expected, *(found[question].after or "" for found in by_run))
        for question in shared
    )
    return Table(("question", "expected", *_names(reports)), rows)
