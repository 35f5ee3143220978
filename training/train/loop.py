"""Train the adapter with TRL's trainer, from the newest checkpoint if there is one, and save it in adapter/."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from loguru import logger

from training import runs
from training.base_model.lora_adapter import WEIGHTS
from training.errors import FinetuneError, Interrupted, RunError
from training.fast_cpu import policy
from training.runs import checkpoint, processes
from training.runs.checkpoint import Checkpoint
from training.settings import Settings
from training.system import io_errors
from training.system.wording import first_line
from training.train import callback, engine, heap, hooks, link_speed, machines, updates
from training.train.adapter_files import disk_error, load_adapter, save_adapter
from training.train.arguments import arguments, tell_tracker
from training.train.engine import Loaded
from training.train.link import Exchange
from training.train.order import Order
from training.train.state import Session
from training.train.trouble import OutOfMemory, StopNow, free_memory, is_out_of_memory, memory_watched

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from training.fast_cpu.decoder import Decoder
    from training.train.mixin import Mixin

SMALLER = "lower MAX_SEQ_LENGTH or R, or set GRADIENT_CHECKPOINTING = true"
# Seconds in which the end of another rank is known, after the connection to it has closed.
LOST = 5.0


@dataclass(frozen=True, kw_only=True)
class Result:
    """What training gave. Losses are mean cross-entropies over the trained tokens, in nats; memory is bytes."""

    steps: int
    epochs: float
    loss: float | None  # of the last step
    validation: dict[str, float | None]  # before, after, best
    best_step: int | None
    stopped_early: bool
    train_seconds: float
    tokens: int
    tokens_per_second: float
    peak_memory: int
    micro_batch: int
    accumulation: int
    exchange: Exchange | None  # between the processes, where there are several


def train(loaded: Loaded, order: Order, session: Session) -> Result:
    """Train on the order's tokenised rows, and save the adapter to <run>/adapter.

    `session.watch` says where checkpoints go and what they are marked with. Raises RunError, Interrupted after a full
    checkpoint, or UserError where the run's checkpoint and its settings do not agree.
    """
    from safetensors import SafetensorError

    try:
        # A first signal is noted, and what is being written is written whole.
        with session.signals.gentle():
            follow(loaded, order, session)
            _keep_best(loaded.model, session)
            save_adapter(loaded.model, session.run.path / runs.ADAPTER)
            return _result(session)
    except (OSError, SafetensorError) as error:
        raise disk_error(error, session.watch.folder, loaded.model) from error
    except FinetuneError:
        raise
    # A RuntimeError of torch's, a bare Exception of the tokenizers library's.
    except Exception as error:
        # A connection that closed may be the first to be noticed of the end of another rank.
        if lost := session.lost(within=LOST) or machines.lost(error, session.watch):
            raise lost from error
        if io_errors.is_one(error):
            raise disk_error(error, session.watch.folder, loaded.model) from error
        if not isinstance(error, RuntimeError):
            raise
        advice = f"; {SMALLER}" if is_out_of_memory(error) else ""
        raise RunError("training", f"{first_line(error)}{advice}", checkpoint.where(session.watch.folder)) from error


def follow(loaded: Loaded, order: Order, session: Session) -> None:
    """The training alone, as every rank of it does: no adapter is saved."""
    training, watch = order.settings.training, session.watch
    micro, accumulation = watch.team.first(
        lambda: (training.per_device_train_batch_size, training.gradient_accumulation_steps)
    )
    watch.micro_batch, shrunk = (micro, accumulation), False
    machines.refuse_mismatch(watch)
    _look_at_the_line(loaded.model, session)
    while True:
        found = _newest(session)
        if found is not None:
            checkpoint.refuse_mismatch(found.manifest.fingerprint, watch.fingerprint)
            found = machines.fetched(found, watch)
            if not shrunk:
                watch.micro_batch = processes.shared_out(
                    found.manifest.micro_batch, found.manifest.fingerprint, watch.team.size
                )
            watch.carried = replace(found.manifest.carried)
            session.first_step = found.step
            logger.info("going on from the checkpoint of step {}", found.step)
        else:
            watch.carried.rises_at_once = True
        session.trainer = build(loaded, order, session)
        too_much = _tried(session, found)
        if too_much is None:
            return
        # What the step held has gone with its error; a checkpoint is written before the next try, and needs room.
        free_memory()
        _shrink(session, too_much)
        shrunk = True


def _look_at_the_line(model: PeftModel, session: Session) -> None:
    """Measure the line over which the processes will add their gradients up, and say it where that may be a network."""
    team, written = session.watch.team, session.settings.hardware.link_gbps
    trained = [p for p in model.parameters() if p.requires_grad]
    given = None if written == "auto" else written
    session.watch.line, words = link_speed.looked_at(team, sum(p.numel() for p in trained), trained[0].device, given)
    if words and session.first:
        logger.log("INFO" if team.place.machines > 1 else "DEBUG", words)


def _tried(session: Session, found: Checkpoint | None) -> str | None:
    """`_run`; where all ranks ran out of memory, what was said.

    Nothing of the error is given on: its traceback would hold the frames of the failed step, and they its activations.
    """
    watch, on_cpu = session.watch, session.settings.hardware.device == "cpu"
    try:
        with heap.kept() if on_cpu else contextlib.nullcontext():
            _run(session, found)
    except OutOfMemory as error:
        # Where it is one rank's alone the others are elsewhere, and wait for it.
        if watch.team.size > 1 and not error.together:
            raise RunError("training", f"{error}; {SMALLER}", checkpoint.where(watch.folder)) from error
        return str(error)
    return None


def _newest(session: Session) -> Checkpoint | None:
    """The checkpoint to go on from: rank 0's, for all."""
    watch = session.watch
    return checkpoint.heard(watch.team.first(lambda: checkpoint.told(checkpoint.newest(watch.folder))))


def _run(session: Session, found: Checkpoint | None) -> None:
    """Let the trainer train; a noted signal becomes Interrupted once the checkpoint is on the disk."""
    trainer, watch = session.trainer, session.watch
    try:
        with memory_watched():
            if found and (found.step >= session.total or watch.carried.stopped_early):
                _take_up_the_end(trainer, found)
            else:
                trainer.train(resume_from_checkpoint=str(found.path) if found else None)
            if _unmeasured(session) and session.asked()[0] is None:
                trainer.evaluate()
    except StopNow:
        pass
    step = trainer.state.global_step
    manifest = watch.folder / f"checkpoint-{step}" / checkpoint.MANIFEST
    if trainer.optimizer is not None and not watch.team.first(manifest.is_file):
        trainer._save_checkpoint(trainer.model, None)
    unfinished = (step < session.total and not watch.carried.stopped_early) or _unmeasured(session)
    stop, _ = session.asked()
    if stop is not None and unfinished:
        where = checkpoint.where(watch.folder)
        raise Interrupted(stop, f"stopped at step {step} of {session.total}; {where}")


def _unmeasured(session: Session) -> bool:
    """Whether the model as it stands has still to be measured on the validation rows."""
    return session.validates and session.watch.carried.evaluated_at != session.trainer.state.global_step


def _take_up_the_end(trainer: Mixin, found: Checkpoint) -> None:
    """The run was stopped between its last step and the adapter: nothing is left to train."""
    from transformers import TrainerState

    load_adapter(trainer.model, found.path)
    # Measured as after a training: in its precision.
    trainer.accelerator.prepare_model(trainer.model, device_placement=False, evaluation_mode=True)
    trainer.state = TrainerState.load_from_json(str(found.path / "trainer_state.json"))


def _shrink(session: Session, error: str) -> None:
    """After running out of memory: save where we are, and take the next smaller batch of equal product.

    An update that failed half-way is taken back where it was the first one; else the newest checkpoint counts, and
    without one the run ends.
    """
    trainer, watch = session.trainer, session.watch
    step, (before, accumulation) = trainer.state.global_step, watch.micro_batch
    micro = max((size for size in range(1, before // 2 + 1) if before % size == 0), default=1)
    watch.micro_batch = micro, accumulation * before // micro
    if watch.updating and watch.untrained is None:
        found = checkpoint.newest(watch.folder)
        if found is None:
            words = f"out of memory while the optimizer updated the weights ({error}); {SMALLER}"
            raise RunError("training", words, checkpoint.where(watch.folder))
        step = found.step
    # It is None where only the last evaluation was left to do.
    elif trainer.optimizer is not None:
        if watch.updating:
            updates.take_back_update(watch, trainer.model, trainer.optimizer)
        trainer._save_checkpoint(trainer.model, None)
    updates.end_update(watch)
    if before == 1:
        raise RunError(
            "training",
            f"out of memory at a batch of one row ({error}); {SMALLER}",
            checkpoint.where(watch.folder),
        )
    micro, accumulation = watch.micro_batch
    logger.warning(
        "out of memory: PER_DEVICE_TRAIN_BATCH_SIZE is now {}, GRADIENT_ACCUMULATION_STEPS {}; going on from step {}",
        micro, accumulation, step,
    )  # fmt: skip
    session.events.emit("warning", at_step=step, message="out of memory", micro_batch=micro, accumulation=accumulation)
    session.first_began = None
    session.close_bar()
    # Its memory must be free before the next one is built.
    del trainer, session.trainer
    free_memory()


def build(loaded: Loaded, order: Order, session: Session) -> Mixin:
    """The trainer of an order, with micro-batches as the watch says."""
    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    tell_tracker(order.settings.training, session.run.path)
    columns, validation = ["input_ids", "labels"], order.validation
    fresh = session.watch.carried.before is None
    options = arguments(order.settings, session.run.path, session.watch.micro_batch, validation is not None, fresh)
    dtypes = engine.trained_dtypes(loaded.model)
    trainer = hooks.hooked(loaded.trainer_class, session.watch)(
        model=loaded.model,
        args=loaded.config_class(**options),
        train_dataset=order.train.select_columns(columns),
        eval_dataset=validation.select_columns(columns) if validation is not None else None,
        processing_class=loaded.tokenizer,
        callbacks=[callback.callback(session)],
    )
    engine.put_back_dtypes(loaded.model, dtypes)
    # Unsloth turns these on, and a validation after the last step would then round the adapter to 16 bit.
    trainer.args.bf16_full_eval = trainer.args.fp16_full_eval = False
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    return trainer


def layers_again(model: PeftModel, folder: Path, settings: Settings) -> Decoder | None:
    """The trainer's `exact_layers` for a run that was resumed after its training, whose checkpoints in `folder` say what that
    has proved."""
    if not policy.taken(settings) or (found := checkpoint.newest(folder)) is None:
        return None
    from training.fast_cpu import fast_loss, products

    carried = found.manifest.carried
    if carried.fast_path != "layers" or products.named(carried.products).in_8_bits:
        return None
    return fast_loss.layers(cast("PreTrainedModel", model.get_base_model()), carried.shares, carried.products)


def _keep_best(model: PeftModel, session: Session) -> None:
    """With early stopping on, the adapter of the best validation loss is the one that is kept."""
    best, carried = session.watch.folder / callback.BEST, session.watch.carried
    if session.settings.training.early_stopping_patience and (best / WEIGHTS).is_file():
        load_adapter(model, best)
        logger.info("keeping the adapter of step {}: validation loss {:.4f}", carried.best_step, carried.best_loss)


def _result(session: Session) -> Result:
    state, carried = session.trainer.state, session.watch.carried
    losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
    micro, accumulation = session.watch.micro_batch
    if exchange := session.watch.line.exchange(session.seconds):
        logger.info("between the processes: {}", exchange.words())
    return Result(
        steps=state.global_step or session.first_step,
        epochs=round(state.epoch or 0, 4),
        loss=losses[-1] if losses else None,
        validation={"before": carried.before, "after": carried.after, "best": carried.best_loss},
        best_step=carried.best_step,
        stopped_early=carried.stopped_early,
        train_seconds=round(time.perf_counter() - session.started, 2),
        tokens=session.tokens,
        tokens_per_second=round(session.tokens / session.seconds, 1) if session.seconds else 0.0,
        peak_memory=callback.peak_memory(),
        micro_batch=micro,
        accumulation=accumulation,
        exchange=exchange,
    )
