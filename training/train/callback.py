"""What is said while the model trains (log, events, status.json), and what signals and early stopping ask of it."""

from __future__ import annotations

import math
import resource
import time
from typing import TYPE_CHECKING, Any

from loguru import logger

from training import evaluation, runs
from training.runs import progress
from training.system import files, privacy
from training.system.wording import clock
from training.train import sharding, updates
from training.train.state import Session
from training.train.trouble import StopNow, not_finite

if TYPE_CHECKING:
    from collections.abc import Mapping

    from peft import PeftModel
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
else:
    TrainerCallback = object

# In checkpoints/: the adapter of the best validation loss, for early stopping.
BEST = "best"


def callback(session: Session) -> TrainerCallback:
    """The trainer's callback for a session."""
    from transformers import TrainerCallback

    made: TrainerCallback = type("Callback", (Hooks, TrainerCallback), {"session": session})()
    return made


class Hooks(TrainerCallback):
    """What is done at each turn of the training. Mixed into transformers' class, which is imported late."""

    session: Session

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        from transformers import set_seed

        session = self.session
        session.show_bar()
        # Each rank drops out other values; rank 0's are those of one process.
        if not session.first:
            set_seed(session.settings.training.seed + session.watch.team.rank)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        updates.begin_epoch(self.session.watch)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        _catch_up(self.session, state.global_step)
        self.session.signals.begin()
        self.session.first_began = self.session.first_began or time.perf_counter()
        updates.begin_step(self.session.watch)

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        _obey(self.session, control)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        updates.begin_update(self.session.watch, kwargs["model"], state.global_step)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        updates.end_update(self.session.watch)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        session, watch = self.session, self.session.watch
        watch.in_step = False
        took = time.perf_counter() - watch.began
        watch.tokens = sum(watch.team.round(watch.tokens))
        session.seconds += took
        session.tokens += watch.tokens
        watch.tokens_per_second = watch.tokens / took
        every = session.settings.training.sample_steps
        if every and state.global_step % every == 0:
            _sample_together(session, kwargs["model"], state.global_step)
        _obey(session, control)

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if self.session.asked()[0] is not None:
            raise StopNow

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if "loss" in kwargs["logs"] and self.session.first:
            _report_step(self.session, state, kwargs["logs"])

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if "eval_loss" in kwargs["metrics"]:
            step = 0 if self.session.watch.on_base else state.global_step
            _report_evaluation(self.session, step, kwargs["metrics"]["eval_loss"], control, kwargs["model"])

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        # Of all ranks; rank 0's events go to the file.
        where = f"{runs.CHECKPOINTS}/checkpoint-{state.global_step}"
        self.session.events.emit("checkpoint", at_step=state.global_step, path=where)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self.session.close_bar()


def _obey(session: Session, control: TrainerControl) -> None:
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
    if due and session.validates and session.watch.carried.evaluated_at != step:
        session.trainer.evaluate()


def _report_step(session: Session, state: TrainerState, logs: Mapping[str, float]) -> None:
    step, total, now = state.global_step, session.total, time.perf_counter()
    stepping = now - (session.first_began or now)
    remaining = stepping / max(1, step - session.first_step) * (total - step)
    speed = session.watch.tokens_per_second
    reached = progress.reach(
        session.run, "train", step / total, now - session.started, remaining, step=step, total=total
    )
    session.events.emit(
        "step", step=step, total=total, epoch=round(state.epoch or 0, 4), loss=logs["loss"],
        learning_rate=logs["learning_rate"], gradient_norm=logs.get("grad_norm"), tokens_per_second=round(speed, 1),
        elapsed=round(now - session.started, 2), remaining=round(remaining, 1), peak_memory=peak_memory(),
        progress=reached.progress, left=round(reached.left, 1),
    )  # fmt: skip
    session.advance_bar()
    session.recent.append(logs["loss"])
    every = session.settings.training.logging_steps
    if every and (step % every == 0 or step == total):
        mean = sum(session.recent) / len(session.recent)
        session.recent.clear()
        logger.info(
            "step {}/{} ({:.0f}%)  loss {:.4f}  lr {:.1e}  {:.0f} tok/s  eta {}",
            step, total, 100 * step / total, mean, logs["learning_rate"], speed, clock(remaining),
        )  # fmt: skip


def _report_evaluation(session: Session, step: int, loss: float, control: TrainerControl, model: PeftModel) -> None:
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


def _sample_together(session: Session, model: PeftModel, step: int) -> None:
    """`_sample`, which is the first rank's; the others take part where the model is spread over them."""
    if not session.watch.spread:
        if session.first:
            _sample(session, model, step)
    elif session.first:
        with sharding.led(model, session.watch.team):
            _sample(session, model, step)
    else:
        sharding.accompany(model, session.watch.team)
        model.train()


def _sample(session: Session, model: PeftModel, step: int) -> None:
    """Answer a few held-out questions as the model stands, outside of the time that counts as training."""
    began = time.perf_counter()
    answers = evaluation.answers(model, session.tokenizer, session.questions, session.end_ids)
    for item, answer in zip(session.questions, answers, strict=True):
        line = " ".join(privacy.redact(answer.text).split())
        session.events.emit("sample", at_step=step, question=item.question, answer=answer.text, stopped=answer.stopped)
        logger.info("step {}: asked: {}\n  answer: {}", step, item.question, line[:200])
    logger.info("step {}: the sample answers took {:.1f} s", step, time.perf_counter() - began)


def peak_memory() -> int:
    """The most memory used so far, in bytes: of the GPU where one is used, else of this process."""
    import torch

    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    # Linux counts in KiB.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
