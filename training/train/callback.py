"""What is said while the model trains (log, events, status.json), and what signals and early stopping ask of it."""

from __future__ import annotations

import math
import resource
import sys
import time
from typing import Any

from loguru import logger

from training import evaluation, runs
from training.system import files, privacy
from training.system.wording import clock
from training.train import updates
from training.train.state import Session
from training.train.trouble import StopNow, not_finite

BEST = "best"  # in checkpoints/: the adapter of the best validation loss, for early stopping


def callback(session: Session) -> Any:
    """The trainer's callback for a session."""
    from transformers import TrainerCallback, set_seed

    class Callback(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            session.bar = _bar(session)
            if not session.first:  # each rank drops out other values; rank 0's are those of one process
                set_seed(session.settings.training.seed + session.watch.team.rank)

        def on_epoch_begin(self, *args: Any, **kwargs: Any) -> None:
            updates.begin_epoch(session.watch)

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            _catch_up(session, state.global_step)
            session.signals.begin()
            session.first_began = session.first_began or time.perf_counter()
            updates.begin_step(session.watch)

        def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            _obey(session, control)

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            updates.begin_update(session.watch, kwargs["model"], state.global_step)

        def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
            updates.end_update(session.watch)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            session.watch.in_step = False
            took = time.perf_counter() - session.watch.began
            session.watch.tokens = sum(session.watch.team.round(session.watch.tokens))
            session.seconds += took
            session.tokens += session.watch.tokens
            session.watch.tokens_per_second = session.watch.tokens / took
            every = session.settings.training.sample_steps
            if every and state.global_step % every == 0 and session.first:
                _sample(session, kwargs["model"], state.global_step)
            _obey(session, control)

        def on_prediction_step(self, *args: Any, **kwargs: Any) -> None:
            if session.asked()[0] is not None:
                raise StopNow

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
            if "loss" in logs and session.first:
                _report_step(session, state, logs)

        def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, Any], **kwargs: Any) -> None:
            if "eval_loss" in metrics:
                step = 0 if session.watch.on_base else state.global_step
                _report_evaluation(session, step, metrics["eval_loss"], control, kwargs["model"])

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            where = f"{runs.CHECKPOINTS}/checkpoint-{state.global_step}"  # rank 0's events go to the file
            session.events.emit("checkpoint", at_step=state.global_step, path=where)

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            session.bar.close()

    return Callback()


def _bar(session: Session) -> Any:
    """A progress bar on a terminal; nothing elsewhere."""
    from tqdm import tqdm

    shown = sys.stderr.isatty() and session.first
    return tqdm(
        total=session.total, initial=session.first_step, unit="step", leave=False, disable=not shown, file=sys.stderr
    )


def _obey(session: Session, control: Any) -> None:
    """Stop after this micro-batch with a checkpoint (SIGINT, SIGTERM), or write one and go on (SIGUSR1)."""
    stop, save = session.asked()
    if stop is not None:
        control.should_training_stop = control.should_save = True
        control.should_evaluate = False
    elif save and not session.watch.in_step:
        session.signals.save = False
        control.should_save = True


def _catch_up(session: Session, step: int) -> None:
    """An evaluation that a signal cut off is made up for, so that a resumed run has the curve of an undisturbed one."""
    every = session.settings.training.eval_steps
    due = step == session.first_step > 0 and every and step % every == 0
    if due and session.trainer.eval_dataset is not None and session.watch.carried.evaluated_at != step:
        session.trainer.evaluate()


def _report_step(session: Session, state: Any, logs: dict[str, Any]) -> None:
    step, total = state.global_step, session.total
    elapsed = time.perf_counter() - session.started
    stepping = time.perf_counter() - session.first_began
    remaining = stepping / max(1, step - session.first_step) * (total - step)
    speed = session.watch.tokens_per_second
    session.events.emit(
        "step", step=step, total=total, epoch=round(state.epoch or 0, 4), loss=logs["loss"],
        learning_rate=logs["learning_rate"], gradient_norm=logs.get("grad_norm"), tokens_per_second=round(speed, 1),
        elapsed=round(elapsed, 2), remaining=round(remaining, 1), peak_memory=peak_memory(),
    )  # fmt: skip
    session.run.update(
        step=step, total=total, progress=round(100 * step / total, 1), eta=round(time.time() + remaining)
    )
    session.bar.update(1)
    session.recent.append(logs["loss"])
    every = session.settings.training.logging_steps
    if every and (step % every == 0 or step == total):
        mean = sum(session.recent) / len(session.recent)
        session.recent.clear()
        logger.info(
            "step {}/{} ({:.0f}%)  loss {:.4f}  lr {:.1e}  {:.0f} tok/s  eta {}",
            step, total, 100 * step / total, mean, logs["learning_rate"], speed, clock(remaining),
        )  # fmt: skip


def _report_evaluation(session: Session, step: int, loss: float, control: Any, model: Any) -> None:
    if not math.isfinite(loss):
        raise not_finite("validation loss", step, session.watch)
    carried = session.watch.carried
    carried.before = loss if carried.before is None else carried.before
    carried.after, carried.evaluated_at = loss, step
    # The base itself is no adapter to keep.
    better = step > 0 and (carried.best_loss is None or loss < carried.best_loss)
    if better:
        carried.best_loss, carried.best_step, carried.worse = loss, step, 0
    elif step > 0:
        carried.worse += 1
    session.events.emit("evaluation", at_step=step, loss=loss, best=better)
    words = " (the base model)" if step == 0 else ", the best so far" if better else ""
    logger.info("step {}: validation loss {:.4f}{}", step, loss, words)
    patience = session.settings.training.early_stopping_patience
    if patience and better and session.first:
        with files.whole_folder(session.watch.folder / BEST) as partial:
            model.save_pretrained(str(partial), safe_serialization=True)
    if patience and carried.worse >= patience:
        carried.stopped_early = True
        control.should_training_stop = control.should_save = True
        logger.info(
            "stopping early: {} evaluations without a better validation loss; the best was at step {}",
            patience,
            carried.best_step,
        )


def _sample(session: Session, model: Any, step: int) -> None:
    """Answer a few held-out questions as the model stands, outside of the time that counts as training."""
    began = time.perf_counter()
    answers = evaluation.answers(model, session.tokenizer, session.questions, session.end_ids)
    for item, told in zip(session.questions, answers, strict=True):
        line = " ".join(privacy.redact(told.text).split())
        session.events.emit("sample", at_step=step, question=item.question, answer=told.text, stopped=told.stopped)
        logger.info("step {}: asked: {}\n  answer: {}", step, item.question, line[:200])
    logger.info("step {}: the sample answers took {:.1f} s", step, time.perf_counter() - began)


def peak_memory() -> int:
    """The most memory used so far, in bytes: of the GPU where one is used, else of this process."""
    import torch

    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
