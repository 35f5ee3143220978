"""Train the adapter with TRL's trainer, from the newest checkpoint if there is one, and save it in adapter/."""

from __future__ import annotations

import errno
import gc
import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loguru import logger

from training import machines, progress, runs, trainer
from training.errors import FinetuneError, Interrupted, RunError
from training.progress import Session
from training.runs import checkpoint
from training.runs.checkpoint import Checkpoint
from training.system import files

WEIGHTS = "adapter_model.safetensors"
# What torch, safetensors and tokenizers say when a write fails, in words of their own instead of an OSError.
SMALLER = "lower MAX_SEQ_LENGTH or R, or set GRADIENT_CHECKPOINTING = true"
LOST = 5.0  # seconds in which the end of another rank is known, after the connection to it has closed
WRITE_FAILED = ("No space left", "file write failed", "unexpected pos", "PytorchStreamWriter failed")


@dataclass(frozen=True)
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


def train(loaded: Any, plan: Any, session: Session) -> Result:
    """Train on the plan's tokenised rows, and save the adapter to <run>/adapter.

    `session.watch` says where checkpoints go and what they are marked with. Raises RunError, Interrupted after a full
    checkpoint, or UserError where the run's checkpoint and its settings do not agree.
    """
    from safetensors import SafetensorError

    try:
        with session.signals.gentle():  # a first signal is noted, and what is being written is written whole
            micro, accumulation = follow(loaded, plan, session)
            _keep_best(loaded.model, session)
            save_adapter(loaded.model, session.run.path / runs.ADAPTER)
            return _result(session, micro, accumulation)
    except (OSError, SafetensorError) as error:
        raise disk_error(error, session.watch.folder, loaded.model) from error
    except FinetuneError:
        raise
    except Exception as error:  # a RuntimeError of torch's, a bare Exception of the tokenizers library's
        if session.crew is not None and (lost := session.crew.lost(within=LOST) or machines.lost(error, session.watch)):
            raise lost from error  # a connection that closed was the first to be noticed of it
        if any(words in str(error) for words in WRITE_FAILED):
            raise disk_error(error, session.watch.folder, loaded.model) from error
        if not isinstance(error, RuntimeError):
            raise
        advice = f"; {SMALLER}" if trainer.is_out_of_memory(error) else ""
        raise RunError(
            "training", f"{str(error).splitlines()[0]}{advice}", checkpoint.where(session.watch.folder)
        ) from error


def follow(loaded: Any, plan: Any, session: Session) -> tuple[int, int]:
    """The training alone, as every rank of it does: no adapter is saved. Gives the rows a micro-batch and the micro-batches
    a step that it came to."""
    chosen, watch = plan.settings.training, session.watch
    micro, accumulation = session.first_of(
        lambda: (chosen.per_device_train_batch_size, chosen.gradient_accumulation_steps)
    )
    shrunk: tuple[int, int] | None = None
    machines.refuse_mismatch(watch)
    while True:
        found = _newest(session)
        if found is not None:
            checkpoint.refuse_mismatch(found.manifest["fingerprint"], watch.manifest["fingerprint"])
            found = machines.fetched(found, watch)
            micro, accumulation = shrunk or found.manifest["micro_batch"]
            watch.carried = dict(found.manifest["carried"])
            session.first_step = found.step
            logger.info("going on from the checkpoint of step {}", found.step)
        watch.manifest["micro_batch"] = [micro, accumulation]
        session.trainer = _build(loaded, plan, session, micro, accumulation)
        try:
            _run(session, found)
            break
        except trainer.OutOfMemory as error:
            if watch.team is not None and not error.together:  # the other ranks are elsewhere, and wait for this one
                raise RunError("training", f"{error}; {SMALLER}", checkpoint.where(watch.folder)) from error
            shrunk = micro, accumulation = _smaller(session, micro, accumulation, str(error))
    return micro, accumulation


def _newest(session: Session) -> Checkpoint | None:
    """The checkpoint to go on from: rank 0's, for all."""
    watch = session.watch
    if watch.team is None:
        return checkpoint.newest(watch.folder)
    return checkpoint.heard(watch.team.first(lambda: checkpoint.told(checkpoint.newest(watch.folder))))


def _run(session: Session, found: Checkpoint | None) -> None:
    """Let the trainer train; a noted signal becomes Interrupted once the checkpoint is on the disk."""
    one, watch = session.trainer, session.watch
    try:
        with trainer.memory_watched():
            if found and (found.step >= session.total or watch.carried.get("stopped_early")):
                _take_up_the_end(one, found)
            else:
                one.train(resume_from_checkpoint=str(found.path) if found else None)
            if _unmeasured(session) and session.asked()[0] is None:
                one.evaluate()
    except trainer.StopNow:
        pass
    step = one.state.global_step
    manifest = watch.folder / f"checkpoint-{step}" / checkpoint.MANIFEST
    if one.optimizer is not None and not session.first_of(manifest.is_file):
        one._save_checkpoint(one.model, None)
    unfinished = (step < session.total and not session.stopped_early) or _unmeasured(session)
    stop, _ = session.asked()
    if stop is not None and unfinished:
        where = checkpoint.where(watch.folder)
        raise Interrupted(stop, f"stopped at step {step} of {session.total}; {where}")


def _unmeasured(session: Session) -> bool:
    """Whether the model as it stands has still to be measured on the validation rows."""
    one = session.trainer
    return one.eval_dataset is not None and session.watch.carried.get("evaluated_at") != one.state.global_step


def _take_up_the_end(one: Any, found: Checkpoint) -> None:
    """The run was stopped between its last step and the adapter: nothing is left to train."""
    from transformers import TrainerState

    load_adapter(one.model, found.path)
    one.state = TrainerState.load_from_json(str(found.path / "trainer_state.json"))


def _smaller(session: Session, micro: int, accumulation: int, error: str) -> tuple[int, int]:
    """After running out of memory: save where we are, and give the next smaller batch of equal product.

    An update that failed half-way is taken back where it was the first one; else the newest checkpoint counts, and
    without one the run ends.
    """
    one, watch = session.trainer, session.watch
    step = one.state.global_step
    smaller = max((size for size in range(1, micro // 2 + 1) if micro % size == 0), default=1)
    watch.manifest["micro_batch"] = [smaller, accumulation * micro // smaller]
    if watch.updating and watch.untrained is None:
        found = checkpoint.newest(watch.folder)
        if found is None:
            words = f"out of memory while the optimizer updated the weights ({error}); {SMALLER}"
            raise RunError("training", words, checkpoint.where(watch.folder))
        step = found.step
    elif one.optimizer is not None:  # it is None where only the last evaluation was left to do
        if watch.updating:
            trainer.take_back_update(watch, one)
        one._save_checkpoint(one.model, None)
    trainer.end_update(watch)
    if micro == 1:
        raise RunError(
            "training",
            f"out of memory at a batch of one row ({error}); {SMALLER}",
            checkpoint.where(watch.folder),
        )
    accumulation = accumulation * micro // smaller
    logger.warning(
        "out of memory: PER_DEVICE_TRAIN_BATCH_SIZE is now {}, GRADIENT_ACCUMULATION_STEPS {}; going on from step {}",
        smaller, accumulation, step,
    )  # fmt: skip
    session.events.emit(
        "warning", at_step=step, message="out of memory", micro_batch=smaller, accumulation=accumulation
    )
    session.trainer, session.first_began = None, None
    if session.bar is not None:
        session.bar.close()
    gc.collect()
    return smaller, accumulation


def _build(loaded: Any, plan: Any, session: Session, micro: int, accumulation: int) -> Any:
    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    _tell_tracker(plan.settings.training, session.run.path)
    columns = ["input_ids", "labels"]
    fresh = "before" not in session.watch.carried
    options = arguments(plan.settings, session.run.path, micro, accumulation, plan.validation is not None, fresh)
    one = trainer.hooked(loaded.trainer_class, session.watch)(
        model=loaded.model,
        args=loaded.config_class(**options),
        train_dataset=plan.train.select_columns(columns),
        eval_dataset=plan.validation.select_columns(columns) if plan.validation is not None else None,
        processing_class=loaded.tokenizer,
        callbacks=[progress.callback(session)],
    )
    # Unsloth turns these on, and a validation after the last step would then round the adapter to 16 bit.
    one.args.bf16_full_eval = one.args.fp16_full_eval = False
    one.remove_callback(PrinterCallback)
    one.remove_callback(ProgressCallback)
    return one


def arguments(settings: Any, run: Path, micro: int, accumulation: int, validate: bool, fresh: bool) -> dict[str, Any]:
    """Every hyper-parameter for TRL's SFTConfig, said explicitly: Unsloth's version has other defaults.

    `fresh`: the base model's validation loss has still to be measured. That is done first only where the adapter cannot be
    switched off later, for biases are trained with it.
    """
    t, hardware = settings.training, settings.hardware
    return {
        "output_dir": str(run / runs.CHECKPOINTS),
        "per_device_train_batch_size": micro,
        "per_device_eval_batch_size": micro,
        "gradient_accumulation_steps": accumulation,
        "learning_rate": t.learning_rate,
        "max_steps": t.max_steps if t.max_steps > 0 else -1,
        "num_train_epochs": t.num_train_epochs,
        "warmup_steps": t.warmup_steps,
        "weight_decay": t.weight_decay,
        "lr_scheduler_type": t.lr_scheduler_type,
        "max_grad_norm": t.max_grad_norm,
        "lr_scheduler_kwargs": None,
        "optim": t.optim,
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_epsilon": 1e-8,
        "label_smoothing_factor": 0.0,
        "neftune_noise_alpha": None,
        "seed": t.seed,
        "data_seed": t.seed,
        "bf16": hardware.precision == "bf16",
        "fp16": hardware.precision == "fp16",
        "tf32": None,
        "torch_compile": False,
        "use_liger_kernel": False,
        "use_cpu": hardware.device == "cpu",
        "gradient_checkpointing": t.gradient_checkpointing is True,
        "logging_strategy": "steps",
        "logging_steps": 1,  # every step is an event; LOGGING_STEPS says how often a line is printed
        "logging_nan_inf_filter": False,
        "save_strategy": "steps" if t.save_steps else "no",
        "save_steps": t.save_steps or 500,
        "save_total_limit": None,  # checkpoint.rotate does it
        "eval_strategy": "steps" if validate and t.eval_steps else "no",
        "eval_steps": t.eval_steps or None,
        "eval_on_start": validate and fresh and settings.lora.bias != "none",
        "prediction_loss_only": True,
        "report_to": t.report_to,
        "run_name": t.report_name or run.name,
        "project": t.report_project or "huggingface",  # Trackio's; the others read it from the environment
        "disable_tqdm": True,
        "dataloader_num_workers": 0,
        "max_length": None,  # rows are cut already, with their end tokens right
        "packing": False,
        "padding_free": t.packing is True,
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "remove_unused_columns": False,
        "loss_type": _loss_type(settings),
    }


def _loss_type(settings: Any) -> str:
    """TRL computes the output layer in chunks, past the module: not where it is trained, nor where Unsloth has its own way."""
    own = settings.hardware.engine == "unsloth" or "lm_head" in settings.lora.target_modules
    return "nll" if own else "chunked_nll"


def _tell_tracker(chosen: Any, run: Path) -> None:
    """Where TensorBoard's files go, and Weights & Biases' project: the trainer takes both from the environment."""
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(run / runs.TENSORBOARD))
    if "tensorboard" in chosen.report_to:
        files.private_folder(Path(os.environ["TENSORBOARD_LOGGING_DIR"]))
    if chosen.report_project:
        os.environ["WANDB_PROJECT"] = chosen.report_project


def _keep_best(model: Any, session: Session) -> None:
    """With early stopping on, the adapter of the best validation loss is the one that is kept."""
    best, carried = session.watch.folder / progress.BEST, session.watch.carried
    if session.settings.training.early_stopping_patience and (best / WEIGHTS).is_file():
        load_adapter(model, best)
        logger.info(
            "keeping the adapter of step {}: validation loss {:.4f}", carried["best_step"], carried["best_loss"]
        )


def load_adapter(model: Any, path: Path) -> None:
    """Put a saved adapter's weights into a model that was made with the same settings."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    set_peft_model_state_dict(model, load_file(path / WEIGHTS))


def save_adapter(model: Any, path: Path) -> None:
    """Write the adapter as PEFT does (safetensors), whole or not at all."""
    try:
        with files.whole_folder(path) as partial:
            model.save_pretrained(str(partial), safe_serialization=True)
            (partial / "README.md").unlink(missing_ok=True)  # PEFT's model card, a form nobody filled in
            _sort_modules(partial / "adapter_config.json")
    except OSError as error:
        raise disk_error(error, path.parent / runs.CHECKPOINTS, model) from error


def _sort_modules(config: Path) -> None:
    """PEFT keeps TARGET_MODULES as a set, whose order is another in every process: equal runs shall have equal files."""
    values = json.loads(config.read_text(encoding="utf-8"))
    if isinstance(values.get("target_modules"), list):
        values["target_modules"].sort()
    config.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def disk_error(error: Exception, folder: Path, model: Any) -> RunError:
    """A write that failed, with the room that a checkpoint needs, what there is of it, and what is safe."""
    free = shutil.disk_usage(folder).free
    full = getattr(error, "errno", errno.ENOSPC) in (errno.ENOSPC, errno.EDQUOT, None)
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    needed = 3 * trained  # with the two moments of Adam
    room = f"a checkpoint under {folder} needs about {needed:,} bytes, {free:,} are free"
    what = f"the disk is full: {room}; make room first" if full else str(error)
    return RunError("checkpoint", what, checkpoint.where(folder))


def _result(session: Session, micro: int, accumulation: int) -> Result:
    one, carried = session.trainer, session.watch.carried
    losses = [entry["loss"] for entry in one.state.log_history if "loss" in entry]
    return Result(
        steps=one.state.global_step or session.first_step,
        epochs=round(one.state.epoch or 0, 4),
        loss=losses[-1] if losses else None,
        validation={"before": carried.get("before"), "after": carried.get("after"), "best": carried.get("best_loss")},
        best_step=carried.get("best_step"),
        stopped_early=bool(carried.get("stopped_early")),
        train_seconds=round(time.perf_counter() - session.started, 2),
        tokens=session.tokens,
        tokens_per_second=round(session.tokens / session.seconds, 1) if session.seconds else 0.0,
        peak_memory=progress.peak_memory(),
        micro_batch=micro,
        accumulation=accumulation,
    )
