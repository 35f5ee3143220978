"""The stages of a run after its plan: train, evaluate, export. Each leaves its figures in status.json when it is done."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

from loguru import logger

from training import checkpoint, evaluation, export, runs, train, zygote
from training import plan as planning
from training.errors import Interrupted, RunError
from training.events import Events
from training.progress import Session
from training.signals import Signals
from training.trainer import Watch

ROOT = Path(__file__).resolve().parents[1]
QUESTIONS, TRAINED_PROMPTS, HELD_OUT, LONGEST = 3, 4, 16, 512  # for samples and checks; tokens a sequence at most


def train_stage(
    plan: planning.Plan, loaded: Any, questions: list[dict], run: runs.Run, events: Events, signals: Signals
) -> None:
    """Train, and keep what the later stages need; the adapter is on the disk at the end."""
    began = time.perf_counter()
    end_ids = ends(plan)
    export.keep_facts(run, plan, questions + trained_prompts(plan), held_out_sequences(plan), end_ids)
    watch = Watch(run.path / runs.CHECKPOINTS, {"fingerprint": marks(plan)}, plan.settings.training.save_total_limit)
    watch.fast = plan.settings.hardware.fast_cpu is True
    session = Session(plan.settings, run, events, signals, watch, loaded.tokenizer, questions, end_ids, plan.steps)
    result = train.train(loaded, plan, session)
    trainable = sum(p.numel() for p in loaded.model.parameters() if p.requires_grad)
    seconds = round(time.perf_counter() - began, 1)
    run.finish_stage(
        "train", {**dataclasses.asdict(result), "seconds": seconds, "trainable": trainable, "fingerprint": marks(plan)}
    )
    logger.info("adapter saved in {}", run.path / runs.ADAPTER)
    events.emit("stage", name="train", seconds=seconds)
    if signals.stop is not None:  # it came with the last step: the training is done, the rest is for --resume
        words = f"stopped after training; the adapter is safe, `./run.sh --resume {run.path}` does the rest"
        raise Interrupted(signals.stop, words)


def evaluate_stage(plan: planning.Plan, loaded: Any, questions: list[dict], run: runs.Run, events: Events) -> None:
    """Ask the base model and the tuned one the same questions; compare their losses where rows were kept for that."""
    began = time.perf_counter()
    if run.status.get("resumed_after_training"):
        train.load_adapter(loaded.model, run.path / runs.ADAPTER)
    switchable = plan.settings.lora.bias == "none"
    samples = evaluation.compare(loaded.model, loaded.tokenizer, questions, ends(plan), switchable)
    for sample in samples:
        logger.info(
            "asked: {}\n  before: {}\n  after:  {}",
            *map(short, (sample.question, sample.before or "not asked", sample.after)),
        )
    scores = evaluation.test_scores(loaded.model, plan.test, switchable)
    seconds = round(time.perf_counter() - began, 1)
    run.finish_stage("evaluate", {"seconds": seconds, "samples": [s.as_dict() for s in samples], "scores": scores})
    events.emit("stage", name="evaluate", seconds=seconds)


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
    if words in run.status.get("warnings", []):  # said before the run was resumed
        return
    logger.warning(words)
    run.update(warnings=[*run.status.get("warnings", []), words])
    events.emit("warning", message=words)


def export_stage(run: runs.Run, events: Events) -> None:
    """Merge, convert, quantise, write the Modelfile and check it all, in a process without the training's memory."""
    child = zygote.popen(ROOT / "training" / "export.py", [run.path], output=False)
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


def marks(plan: planning.Plan) -> dict[str, Any]:
    """The fingerprint of the run that a plan leads to."""
    digests = " ".join(sorted(plan.data.sha256.values()))
    return checkpoint.fingerprint(plan.settings, digests, plan.base, plan.template.jinja)


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
