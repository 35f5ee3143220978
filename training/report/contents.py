"""What the report says, and in which order: records in, sections of plain blocks out."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import PurePosixPath

from training.report import checklist, curves, evaluated, verdict
from training.report.blocks import Bar, Block, Commands, Details, Pictures, Section, Table, Text
from training.report.schema import Report, RunFacts
from training.runs.working_time import WorkingTime
from training.system import shell, wording

PERCENTILES = {"50": "median", "100": "most"}
SHOWN_STEPS = 40  # rows of the table of steps; the rest stands in events.jsonl


def result(report: Report) -> Text:
    """The run in one sentence."""
    run, training = report.run, report.training
    done = f"step {training.steps:,} of {training.total:,}" if training else "before training began"
    if run.state == "interrupted":
        return Text(f"Interrupted after {done}. Nothing is lost: it goes on where it stopped.", "warn")
    if run.state == "failed":
        where = f" in {run.failed_stage}" if run.failed_stage else ""
        return Text(" ".join(f"Failed{where}: {run.error or 'see the log'}".split()), "bad")
    if training is None:
        return Text("Nothing was trained.", "warn")
    found = verdict.verdict(report)
    return Text(found.text, found.tone)


def trained(report: Report) -> str:
    """What was trained on what, in one line."""
    parts = [
        report.base.name + (f" ({wording.count(report.base.parameters)} parameters)" if report.base.parameters else "")
    ]
    if report.data and (rows := report.data.rows.get("training")):
        names = ", ".join(dict.fromkeys(_names(report, "training"))) or "data"
        replayed = report.data.rows.get("replay")
        besides = f" and {wording.counted(replayed, 'replay row')}" if replayed else ""
        parts.append(f"{wording.counted(rows, 'row')} of {names}{besides}")
    if report.training:
        epochs = f" ({wording.counted(report.training.epochs, 'epoch')})" if report.training.epochs else ""
        parts.append(f"{wording.counted(report.training.steps, 'step')}{epochs}")
    return ", ".join(parts)


def _names(report: Report, role: str) -> list[str]:
    return [PurePosixPath(file.path).name for file in report.data.files if file.role == role] if report.data else []


def headline(report: Report) -> list[tuple[str, str]]:
    """The few figures that stand above everything else: (name, value)."""
    training, found = report.training, []
    if training:
        if training.before is not None and training.after is not None:
            found.append(("validation loss", f"{training.before:.3f} \u2192 {training.after:.3f}"))
        found.append(("steps", f"{training.steps:,}" + (f" of {training.total:,}" if training.total else "")))
    if worked := time_worked(report.run):
        found.append(("working time", wording.duration(worked.seconds)))
        if len(worked.sessions) > 1:
            found.append(("sessions", f"{len(worked.sessions)} over {wording.duration(worked.over)}"))
    if training and training.tokens_per_second:
        found.append(("tokens per second", f"{training.tokens_per_second:,.0f}"))
    if training and training.peak_memory:
        found.append(("peak memory", wording.size(training.peak_memory)))
    if ggufs := [item for item in report.artefacts if item.path.endswith(".gguf")]:
        found.append(("GGUF", wording.size(min(item.bytes for item in ggufs))))
    return found


def time_worked(run: RunFacts) -> WorkingTime | None:
    """How long it was worked on; of a run whose sessions are not known, its stages, or from its start to its end."""
    if run.seconds is not None:
        return WorkingTime(run.seconds, run.sessions)
    if run.stages:
        return WorkingTime(sum(run.stages.values()), ())
    return WorkingTime(run.finished - run.started, ()) if run.started and run.finished else None


def sections(report: Report) -> list[Section]:
    """All that the report says after its headline; parts that the run did not reach are left out."""
    made = (
        Section("Warnings", tuple(Text(item, "warn") for item in report.warnings)),
        Section("Next", _next(report)),
        Section("Losses", _losses(report)),
        Section("Evaluation", evaluated.evaluation(report)),
        Section("Answers", evaluated.answers(report)),
        Section("Rows", evaluated.rows(report)),
        Section("Files", _files(report)),
        Section("Checks", _checks(report)),
        Section("Quantised files", _quantised(report)),
        Section("Data", _data(report)),
        Section("Settings", _settings(report)),
        Section("Machine and versions", _machine(report)),
        Section("This very run again", _again(report)),
        Section("Checklist", _checklist(report)),
    )
    return [section for section in made if section.blocks]


def _next(report: Report) -> tuple[Block, ...]:
    commands = report.next_commands
    if not commands and report.run.state == "interrupted":
        commands = (shell.lasting("run.sh", "--resume", report.run.directory),)
    if not commands and report.run.state == "completed":
        exports = shell.lasting("export_ollama.sh", report.run.directory, report.name)
        commands = (exports, shlex.join(("ollama", "run", report.name)))
    safe = (Text(report.run.safe),) if report.run.safe else ()
    return (*safe, *((Commands(commands),) if commands else ()))


def _losses(report: Report) -> tuple[Block, ...]:
    training = report.training
    if training is None:
        return ()
    blocks: list[Block] = []
    charts = curves.charts(training.losses, training.evaluations, training.total)
    if charts:
        blocks.append(Pictures(tuple(charts)))
    rows = []
    if training.before is not None:
        rows.append(("validation, base model", f"{training.before:.3f}"))
    if training.best is not None and training.best != training.after:
        at = f" (step {training.best_step:,})" if training.best_step is not None else ""
        rows.append((f"validation, lowest{at}", f"{training.best:.3f}"))
    if training.after is not None:
        rows.append(("validation, tuned model", f"{training.after:.3f}"))
    if training.losses:
        first, last = training.losses[0], training.losses[-1]
        rows += [
            (f"training, step {step.step:,}", wording.number(step.loss, ".3f")) for step in dict.fromkeys((first, last))
        ]
    if rows:
        blocks.append(Table(("loss", "value"), tuple(rows), numbers=(1,)))
    if training.stopped_early:
        when = f"Stopped early after step {training.steps:,} of {training.total:,}: validation loss fell no further. "
        blocks.append(Text(f"{when}The adapter of step {training.best_step:,}, the best, was kept."))
    if training.best is not None and training.after is not None and training.after > 1.02 * training.best:
        blocks.append(Text("Validation loss rose again after its lowest point: fewer steps may do better.", "warn"))
    if training.losses:
        blocks.append(_steps(report))
    return tuple(blocks)


def _steps(report: Report) -> Details:
    """The figures behind the curves, for who cannot see them or wants them exactly."""
    assert report.training
    held = {item.step: item.loss for item in report.training.evaluations}
    rows = tuple(
        (
            f"{step.step:,}",
            wording.number(step.loss, ".4f"),
            wording.number(held[step.step], ".4f") if step.step in held else "",
            "" if step.learning_rate is None else f"{step.learning_rate:.2e}",
            "" if step.gradient_norm is None else f"{step.gradient_norm:.3g}",
            "" if step.tokens_per_second is None else f"{step.tokens_per_second:,.0f}",
        )
        for step in curves.thin(report.training.losses, SHOWN_STEPS)
    )
    headers = ("step", "loss", "validation loss", "learning rate", "gradient norm", "tokens/s")
    title = "The curves in figures (every step stands in events.jsonl)"
    return Details(title, (Table(headers, rows, tuple(range(6))),), printed=False)


def _checklist(report: Report) -> tuple[Block, ...]:
    rows = tuple(
        (point.part, {True: "yes", False: "NO", None: "look"}[point.done], point.text, point.why)
        for point in checklist.points(report)
    )
    return (Table(("part", "ticked", "what", "found"), rows, marks=1),) if rows else ()


def _checks(report: Report) -> tuple[Block, ...]:
    rows = tuple(
        (
            check.name,
            {True: "passed", False: "FAILED", None: "not run"}[check.passed],
            ", ".join(f"{key} {text}" for key, item in check.figures.items() if (text := wording.value_text(item))),
            "" if check.passed else check.why,
            "" if check.seconds is None else wording.duration(check.seconds),
        )
        for check in report.checks
    )
    headers = ("check", "result", "figures", "why", "time")
    asked = tuple(
        (check.name, "" if check.threshold is None else wording.value_text(check.threshold), check.why)
        for check in report.checks
    )
    details = Details("What each check asks for, and why", (Table(("check", "asked for", "why"), asked),))
    cost = tuple(Text(line) for line in rounding(report))
    return (Table(headers, rows, numbers=(4,), marks=1), *cost, details) if rows else ()


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.001 else "less than 0.1 %"


def rounding(report: Report) -> Iterator[str]:
    """What the merge into 16 bits rounds away, and what that costs."""
    lost = verdict.figures_of(report.checks, "merged tensors").get("rounding_loss")
    if not isinstance(lost, (int, float)) or isinstance(lost, bool):
        return
    said = f"rounding_loss {lost:.2f}: rounding the merged weights to 16 bits moves them by {100 * lost:.0f} % of the size of the update, to and fro, so that most of it averages out."
    cost = verdict.merge_cost(report)
    yield said + (
        " What it costs was not measured here."
        if cost is None
        else f" What it costs: the predictions move by {_percent(cost)} of what the training moved them (mean KL, in merged logits)."
    )


def _quantised(report: Report) -> tuple[Block, ...]:
    rows = tuple(
        (
            item.file,
            item.method + ", importance matrix" * item.importance,
            "" if item.bytes is None else wording.size(item.bytes),
            wording.number(item.kl),
            "" if item.top1 is None else f"{item.top1 * 100:.1f} %",
            wording.number(item.perplexity) + change(item.perplexity_change),
            wording.number(item.tokens_per_second, ",.0f"),
            item.fallback or "",
        )
        for item in report.quantised
    )
    headers = ("file", "method", "size", "divergence from f16", "same next token", "perplexity", "tokens/s", "fallback")
    return (Table(headers, rows, numbers=(2, 3, 4, 5, 6), code=(0,)),) if rows else ()


def change(share: float | None) -> str:
    """A change against the f16 file, to stand behind a figure: 0.012 is " (+1.2 %)"."""
    return "" if share is None else f" ({share * 100:+.1f} %)"


def _files(report: Report) -> tuple[Block, ...]:
    """Folders as one line each, and every file with its hash for who asks."""
    if not report.artefacts:
        return ()
    places: dict[str, int] = {}
    for item in report.artefacts:
        top, slash, _ = item.path.partition("/")
        places[top + slash] = places.get(top + slash, 0) + item.bytes
    every = tuple((item.path, f"{item.bytes:,}", item.sha256) for item in report.artefacts)
    return (
        Text(f"In {report.run.directory}"),
        Table(
            ("file", "size"),
            tuple((path, wording.size(total)) for path, total in places.items()),
            numbers=(1,),
            code=(0,),
            links=0,
        ),
        Details("Every file with its SHA-256", (Table(("file", "bytes", "SHA-256"), every, (1,), (0, 2)),)),
    )


def _data(report: Report) -> tuple[Block, ...]:
    data = report.data
    if data is None:
        return ()
    facts = [(f"{role} rows", f"{rows:,}") for role, rows in data.rows.items()]
    # What follows is told of the user's own rows.
    besides = " without replay" if data.rows.get("replay") else ""
    if data.tokens is not None:
        facts.append((f"tokens of an epoch{besides}", f"{data.tokens:,}"))
    if data.trained_tokens is not None:
        facts.append(("of these trained", f"{data.trained_tokens:,}"))
    for name, lengths in (("a row", data.percentiles), ("a prompt", data.prompts), ("an answer", data.answers)):
        if lengths:
            facts.append(
                (
                    f"tokens {name}",
                    ", ".join(f"{PERCENTILES.get(at, f'{at} % up to')} {n:,}" for at, n in lengths.items()),
                )
            )
    if data.turns is not None:
        facts.append(("conversations among all rows", f"{data.turns:,}"))
    if data.chinese is not None and data.distinct is not None:
        facts.append(("training answers with Chinese characters", f"{100 * data.chinese:.0f} %"))
        facts.append(("different answers among them", f"{100 * data.distinct:.0f} %"))
    facts.append(("rows cut by MAX_SEQ_LENGTH", f"{data.cut:,}"))
    facts.append(("rows left out", f"{data.rejected:,}" + (" (see rejected.jsonl)" if data.rejected else "")))
    files = tuple(
        (file.path, file.role, "" if file.rows is None else f"{file.rows:,}", file.sha256) for file in data.files
    )
    blocks: list[Block] = [Table(("", ""), tuple(facts))]
    if files:
        blocks.append(
            Details("Files and their SHA-256", (Table(("file", "used for", "rows", "SHA-256"), files, (2,), (0, 3)),))
        )
    return tuple(blocks)


def _settings(report: Report) -> tuple[Block, ...]:
    blocks: list[Block] = []
    chosen = {row[0] for row in report.choices}
    if given := [row for row in report.differences if row[0] not in chosen]:
        rows = tuple(tuple(wording.value_text(item) for item in row) for row in given)
        blocks.append(Table(("not the default", "value", "default", "set by"), rows, code=(0, 1, 2)))
    if report.choices:
        rows = tuple(tuple(wording.value_text(item) for item in row) for row in report.choices)
        blocks.append(Table(("chosen automatically", "value", "because"), rows, code=(0, 1)))
    every = tuple(
        (f"{section}.{key}", wording.value_text(value))
        for section, keys in report.settings.items()
        for key, value in keys.items()
    )
    if every:
        blocks.append(Details("Every setting", (Table(("setting", "value"), every, code=(0, 1)),)))
    return tuple(blocks)


def _machine(report: Report) -> tuple[Block, ...]:
    run, rows = report.run, []
    rows += [(name, wording.value_text(value)) for name, value in report.machine.items()]
    rows += [(name, wording.value_text(value)) for name, value in report.versions.items()]
    if report.base.revision:
        rows.append(("base model revision", report.base.revision))
    blocks: list[Block] = [Table(("", ""), tuple(rows))] if rows else []
    worked = time_worked(run)
    if worked and len(worked.sessions) > 1:
        blocks.append(Text(f"Working time {worked.words()}: {worked.interruptions()}."))
    if report.training and report.training.exchange:
        blocks.append(Text(f"Between the processes: {report.training.exchange.words()}."))
    if run.stages:
        blocks.append(Bar("Where the time went", tuple(run.stages.items())))
        stages = tuple((name, wording.duration(seconds)) for name, seconds in run.stages.items())
        blocks.append(Table(("stage", "time"), stages, numbers=(1,)))
    return tuple(blocks)


def _again(report: Report) -> tuple[Block, ...]:
    if not report.settings:
        return ()
    config = str(PurePosixPath(report.run.directory) / "config.ini")
    seed = f" and seed {report.seed}" if report.seed is not None else ""
    files = "the same data files (their SHA-256 stands in report.json)"
    return (
        Text(
            f"The run's own config.ini holds every setting with its automatic choice. With {files}{seed} it gives the same losses."
        ),
        Commands((shell.lasting("run.sh", "--config", config, "--fresh"),)),
    )
