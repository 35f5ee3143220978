"""Fine-tune, check and export one model:  python training/finetune.py [arguments: ./run.sh --help]"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":  # as a script, this folder stands first on the path and would shadow installed packages
    sys.path[0] = str(ROOT)

import dataclasses  # noqa: E402
import gc  # noqa: E402
import os  # noqa: E402
import subprocess  # noqa: E402
import time  # noqa: E402
from collections.abc import Sequence  # noqa: E402
from typing import IO, Any  # noqa: E402

from loguru import logger  # noqa: E402

from training import account, checkpoint, command_line, control, dataset, engine, evaluation, export, log, runs  # noqa: E402
from training import plan as planning  # noqa: E402
from training import settings as setting  # noqa: E402
from training import train as training  # noqa: E402
from training.errors import FinetuneError, Interrupted, MachineError, RunError, UserError  # noqa: E402
from training.events import Events  # noqa: E402
from training.signals import Signals  # noqa: E402

QUESTIONS, TRAINED_PROMPTS, HELD_OUT, LONGEST = 3, 4, 16, 512  # for samples and checks; tokens a sequence at most


def finetune(plan: planning.Plan, run: runs.Run, events: Events, signals: Signals) -> None:
    """The story of one run, from a plan to the report. Every stage that a former attempt has done is left out."""
    if run.stage("train") is None or run.stage("evaluate") is None:
        loaded = engine.load(plan.base, plan.settings, longest=plan.summary.total[3])
        questions = held_out_questions(plan)
        if run.stage("train") is None:
            train_stage(plan, loaded, questions, run, events, signals)
        evaluate_stage(plan, loaded, questions, run, events)
        del loaded
        gc.collect()
    export_stage(run, events)
    account.write(plan, run, "completed")


def train_stage(
    plan: planning.Plan, loaded: Any, questions: list[dict], run: runs.Run, events: Events, signals: Signals
) -> None:
    """Train, and keep what the later stages need; the adapter is on the disk at the end."""
    began = time.perf_counter()
    end_ids = ends(plan)
    export.keep_facts(run, plan, questions + trained_prompts(plan), held_out_sequences(plan), end_ids)
    marks = checkpoint.fingerprint(plan.settings, _digest(plan), plan.base, plan.template.jinja)
    result = training.train(loaded, plan, run, events, signals, marks, questions[:QUESTIONS], end_ids)
    trainable = sum(p.numel() for p in loaded.model.parameters() if p.requires_grad)
    seconds = round(time.perf_counter() - began, 1)
    run.finish_stage("train", {**dataclasses.asdict(result), "seconds": seconds, "trainable": trainable})
    logger.info("adapter saved in {}", run.path / runs.ADAPTER)
    events.emit("stage", name="train", seconds=seconds)


def evaluate_stage(plan: planning.Plan, loaded: Any, questions: list[dict], run: runs.Run, events: Events) -> None:
    """Ask the base model and the tuned one the same questions; compare their losses where rows were kept for that."""
    began = time.perf_counter()
    if run.status.get("resumed_after_training"):
        training.load_adapter(loaded.model, run.path / runs.ADAPTER)
    asked = [(q["question"], q["expected"], q["ids"]) for q in questions[:QUESTIONS]]
    samples = evaluation.compare(loaded.model, loaded.tokenizer, asked, ends(plan))
    for sample in samples:
        logger.info(
            "asked: {}\n  before: {}\n  after:  {}", *map(short, (sample.question, sample.before, sample.after))
        )
    scores = evaluation.test_scores(loaded.model, plan.test)
    seconds = round(time.perf_counter() - began, 1)
    run.finish_stage("evaluate", {"seconds": seconds, "samples": [s.as_dict() for s in samples], "scores": scores})
    events.emit("stage", name="evaluate", seconds=seconds)
    judge(plan, run, events)


def short(text: str, most: int = 200) -> str:
    """One line of the log for a text of any length."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def judge(plan: planning.Plan, run: runs.Run, events: Events) -> None:
    """Say so when the tuned model is worse than the base; FAIL_IF_WORSE makes it a failure."""
    validation = run.stage("train")["validation"]
    before, after = (
        validation["before"],
        validation["best" if plan.settings.training.early_stopping_patience else "after"],
    )
    if before is None or after is None or after <= before:
        return
    words = f"the tuned model is worse than the base: validation loss {before:.4f} before, {after:.4f} after"
    if plan.settings.training.fail_if_worse:
        raise RunError(
            "evaluate",
            words,
            f"the adapter is in {run.path / runs.ADAPTER}; lower LEARNING_RATE or the number of steps",
        )
    logger.warning(words)
    run.update(warnings=[*run.status.get("warnings", []), words])
    events.emit("warning", message=words)


def export_stage(run: runs.Run, events: Events) -> None:
    """Merge, convert, quantise, write the Modelfile and check it all, in a process without the training's memory."""
    command = [sys.executable, str(ROOT / "training" / "export.py"), str(run.path)]
    child = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    try:
        code = child.wait()
    except BaseException:
        child.terminate()
        child.wait()
        raise
    finally:
        run.reload()
    for name in export.STAGES:
        if (stage := run.stage(name)) is not None:
            events.emit("stage", name=name, seconds=stage["seconds"])
    if code:
        raise export.failure(run, code)


def ends(plan: planning.Plan) -> list[int]:
    """The ids of all tokens that end an answer: the template's turn end, eos, and those of generation_config.json."""
    tokenizer = plan.tokenizer
    texts = [*plan.template.end_tokens, tokenizer.eos_token or ""]
    known = [tokenizer.convert_tokens_to_ids(text) for text in texts if text in tokenizer.get_vocab()]
    found = planning.generation_eos(plan.base)
    return list(dict.fromkeys([*known, *found]))


def held_out_questions(plan: planning.Plan) -> list[dict[str, Any]]:
    """A few questions of the validation rows, or of the training rows where there are none."""
    rows = plan.data.validation if plan.data.validation is not None else plan.data.train
    return planning.questions(plan, rows, QUESTIONS, held_out=plan.data.validation is not None)


def trained_prompts(plan: planning.Plan) -> list[dict[str, Any]]:
    """A few prompts that were trained on: the checks of the export see whether their answers stop."""
    return planning.questions(plan, plan.data.train, TRAINED_PROMPTS, held_out=False)


def held_out_sequences(plan: planning.Plan) -> list[dict[str, Any]]:
    """Tokenised rows on which the exported files are compared: ids, and the first position that is an answer's."""
    rows = plan.validation if plan.validation is not None else plan.train
    chosen = rows.select(planning.spread(len(rows), HELD_OUT))
    return [{"ids": row["input_ids"][:LONGEST], "first": min(row["prompt_length"], LONGEST - 1)} for row in chosen]


def _digest(plan: planning.Plan) -> str:
    return " ".join(sorted(plan.data.sha256.values()))


def start(plan: planning.Plan, stdout: IO[str], with_events: bool) -> tuple[runs.Run, Events]:
    """Make the run directory: from here on there is something on the disk, and a caller is told where."""
    run = runs.create(plan.settings.training.output_dir)
    log.join_run(run.path / runs.LOG)
    (run.path / runs.CONFIG).write_text(plan.settings.to_ini(), encoding="utf-8")
    if plan.rejected:
        dataset.write_rejected(run.path / runs.REJECTED, plan.rejected)
    events = Events(run.path / runs.EVENTS, stdout if with_events else None)
    run.update(state="running", started=time.time(), total=plan.steps, model=plan.settings.model.new_model_name)
    announce(plan, run, events)
    return run, events


def announce(plan: planning.Plan, run: runs.Run, events: Events) -> None:
    """The first events of a run, and the word to a waiting parent (--detach) that it has really started."""
    events.emit(
        "started", run=str(run.path), pid=os.getpid(), total=plan.steps, name=plan.settings.model.new_model_name
    )
    events.emit("environment", **plan.machine.as_dict())
    events.emit("dataset", **plan.data.counts, tokens=plan.summary.tokens, rejected=len(plan.rejected))
    events.emit("model", name=plan.base.name, revision=plan.base.revision, parameters=plan.base.parameters)
    control.tell_parent(run.path)


def run_or_resume(arguments: command_line.Arguments, stdout: IO[str]) -> int:
    """`./run.sh` and `./run.sh --resume`: plan, run, and put every way it can end on the disk, the stdout and the exit code."""
    signals = Signals()
    signals.install()
    run: runs.Run | None = None
    events: Events | None = None
    plan = None
    try:
        old = control.to_resume(arguments) if arguments.command == "resume" else None
        given = (
            control.settings_of(old, arguments)
            if old
            else setting.load(arguments.config, arguments.overrides, check_packages=True)
        )
        if old is None and not arguments.fresh:
            control.offer_resume(given.training.output_dir)
        plan = planning.prepare(given, control.began_on(old))
        for line in planning.lines(plan):
            logger.info(line)
        if old is not None:
            run, events = control.reopen(old, plan, stdout if arguments.events else None)
            announce(plan, run, events)
        else:
            run, events = start(plan, stdout, arguments.events)
        finetune(plan, run, events, signals)
    except FinetuneError as error:
        return ended(error, plan, run, events, arguments, stdout)
    except Exception as error:  # our own mistake, or a library's: the traceback belongs into the log, not on the screen
        logger.opt(exception=True).debug("unexpected")
        safe = checkpoint.where(run.path / runs.CHECKPOINTS) if run else ""
        unexpected = RunError(
            "unexpected", f"{type(error).__name__}: {error}; the traceback is in {log.SHARED_LOG}", safe
        )
        return ended(unexpected, plan, run, events, arguments, stdout)
    run.update(state="completed", progress=100, eta=None)
    first = plan.settings.quantization.quantization_method[0]
    made = run.path / f"{plan.settings.name}.{first.upper()}.gguf"
    logger.info("done: {}\nnext: {}/export_ollama.sh {}", made, ROOT, run.path)
    events.emit("done", run=str(run.path), exit_code=0)
    if not arguments.events:
        log.say(stdout, str(run.path))
    return 0


def ended(error: FinetuneError, plan: Any, run: Any, events: Any, arguments: Any, stdout: IO[str]) -> int:
    """A run that did not get to its end: say why, keep its state, report what there is."""
    told = isinstance(error, export.Told)
    state = "interrupted" if isinstance(error, Interrupted) else "failed"
    if not told:
        (logger.warning if state == "interrupted" else logger.error)("{}", error)
    fields = {"exit_code": error.exit_code, "error": str(error)}
    if run is None:
        if arguments.events:
            Events(Path(os.devnull), stdout).emit(state, **fields)
        control.tell_parent(None)
        return error.exit_code
    run.update(state=state, error=str(error), eta=None)
    try:
        account.write(plan, run, state, error)
    except OSError as problem:
        logger.warning("no report: {}", problem)
    events.emit(state, run=str(run.path), **fields)
    if not arguments.events:
        log.say(stdout, str(run.path))
    return error.exit_code


def check(arguments: command_line.Arguments, stdout: IO[str]) -> int:
    """`./run.sh --check`: everything short of training, and the plan on stdout."""
    plan = planning.prepare(setting.load(arguments.config, arguments.overrides, check_packages=True))
    for line in planning.lines(plan):
        log.say(stdout, line)
    log.say(stdout, "ready: ./run.sh starts it")
    return 0


COMMANDS = {"run": run_or_resume, "resume": run_or_resume, "check": check, **control.COMMANDS}


def main(argv: Sequence[str]) -> int:
    """The command line. Returns the exit code (DESIGN: 0, 1, 2, 3, 130, 143)."""
    try:
        arguments = command_line.parse(argv)
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    stdout = log.claim_stdout()
    log.start()
    if arguments.detach:
        return control.detach(argv, stdout)
    try:
        return COMMANDS[arguments.command](arguments, stdout)
    except (UserError, MachineError, FinetuneError) as error:
        logger.error("{}", error)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
