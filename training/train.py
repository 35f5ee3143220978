"""Train the adapter: TRL's trainer on the tokenised rows, with checkpoints, progress and events. Saves adapter/."""

from __future__ import annotations

import errno
import math
import resource
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loguru import logger

from training import checkpoint, files, runs, trainer
from training.errors import Interrupted, RunError

NO_PATIENCE = 0


@dataclass
class Result:
    """What training gave. Losses are mean cross-entropies over the trained tokens, in nats."""

    steps: int
    epochs: float
    loss: float | None  # of the last step
    validation: dict[str, float | None]  # "before", "after", "best"
    best_step: int | None
    stopped_early: bool
    seconds: float
    tokens: int
    tokens_per_second: float
    peak_memory: int  # bytes
    micro_batch: int
    accumulation: int


@dataclass
class _Progress:
    total: int
    started: float = field(default_factory=time.perf_counter)
    first_step: int = 0
    tokens: int = 0
    train_seconds: float = 0.0
    recent: list[float] = field(default_factory=list)  # losses since the last line of the log
    evaluations: list[tuple[int, float]] = field(default_factory=list)
    stopped_early: bool = False


def steps_per_epoch(rows: int, settings: Any) -> int:
    """Optimizer steps in one pass over `rows` rows; the last one may hold fewer rows than the others."""
    batches = math.ceil(rows / settings.training.per_device_train_batch_size)
    return max(1, math.ceil(batches / settings.training.gradient_accumulation_steps))


def total_steps(rows: int, settings: Any) -> int:
    """Optimizer steps of the whole run: MAX_STEPS, or what NUM_TRAIN_EPOCHS comes to."""
    if settings.training.max_steps > 0:
        return settings.training.max_steps
    return max(1, math.ceil(settings.training.num_train_epochs * steps_per_epoch(rows, settings)))


def train(
    loaded: Any, plan: Any, run: Any, events: Any, signals: Any, marks: dict, questions: list[dict], end_ids: list[int]
) -> Result:
    """Train on the plan's tokenised rows, and save the adapter to <run>/adapter.

    `marks` is the run's fingerprint; `questions` are answered every SAMPLE_STEPS steps. Goes on from the newest whole
    checkpoint of the run, if there is one. Raises RunError, or Interrupted after a full checkpoint.
    """
    train_rows, validation_rows, settings = plan.train, plan.validation, plan.settings
    folder = run.path / runs.CHECKPOINTS
    micro, accumulation = settings.training.per_device_train_batch_size, settings.training.gradient_accumulation_steps
    progress = _Progress(total_steps(len(train_rows), settings))
    while True:
        found = checkpoint.newest(folder)
        if found is not None:
            checkpoint.refuse_mismatch(found.manifest["fingerprint"], marks)
            micro, accumulation = found.manifest.get("micro_batch", [micro, accumulation])
        watch = trainer.Watch(
            folder,
            {"fingerprint": marks, "micro_batch": [micro, accumulation]},
            settings.training.save_total_limit,
            dict(found.manifest["carried"]) if found else {},
        )
        one = _build(
            loaded, train_rows, validation_rows, settings, run, events, signals, progress, watch, micro, accumulation
        )
        try:
            _run(one, found, progress, watch, signals, folder)
            break
        except trainer.OutOfMemory as error:
            _save_now(one)
            if micro == 1:
                raise RunError(
                    "training",
                    f"out of memory at batch 1 ({error}); lower MAX_SEQ_LENGTH, or R, or set GRADIENT_CHECKPOINTING = true",
                    checkpoint.where(folder),
                ) from None
            micro, accumulation = (
                micro // 2,
                accumulation * 2 * (micro // 2 * 2 == micro) or math.ceil(micro * accumulation / (micro // 2)),
            )
            logger.warning(
                "out of memory: PER_DEVICE_TRAIN_BATCH_SIZE is now {}, GRADIENT_ACCUMULATION_STEPS {}; going on from step {}",
                micro, accumulation, one.state.global_step,
            )  # fmt: skip
            events.emit(
                "warning", at_step=one.state.global_step, message="out of memory: batch halved", micro_batch=micro
            )
            _rewrite_batch(folder, micro, accumulation)
            del one
    _keep_best(loaded.model, folder, watch, settings)
    save_adapter(loaded.model, run.path / runs.ADAPTER)
    return _result(one, progress, watch, micro, accumulation)


def _run(one: Any, found: Any, progress: _Progress, watch: Any, signals: Any, folder: Path) -> None:
    """One go of the trainer; a noted signal becomes Interrupted once the checkpoint is on the disk."""
    progress.first_step = found.step if found else 0
    if found:
        logger.info("going on from the checkpoint of step {}", found.step)
    try:
        with signals.gentle():
            one.train(resume_from_checkpoint=str(found.path) if found else None)
            if signals.stop is not None and not (folder / f"checkpoint-{one.state.global_step}").is_dir():
                _save_now(one)
    except trainer.StopNow:
        _save_now(one)
    except OSError as error:
        raise _disk_error(error, folder) from error
    except RuntimeError as error:  # torch and safetensors report a full disk in words of their own
        if any(words in str(error) for words in ("No space left", "file write failed", "unexpected pos")):
            raise _disk_error(error, folder) from error
        raise RunError("training", str(error).splitlines()[0], checkpoint.where(folder)) from error
    if signals.stop is not None and one.state.global_step < progress.total and not progress.stopped_early:
        raise Interrupted(
            signals.stop, f"stopped at step {one.state.global_step} of {progress.total}; {checkpoint.where(folder)}"
        )


def _disk_error(error: Exception, folder: Path) -> RunError:
    import shutil

    free = shutil.disk_usage(folder).free
    full = getattr(error, "errno", errno.ENOSPC) in (errno.ENOSPC, errno.EDQUOT)
    what = f"the disk is full ({free:,} bytes free under {folder})" if full else str(error)
    return RunError("checkpoint", f"{what}; make room first", checkpoint.where(folder))


def _save_now(one: Any) -> None:
    if one.optimizer is not None:
        one._save_checkpoint(one.model, None)


def _rewrite_batch(folder: Path, micro: int, accumulation: int) -> None:
    """Let the newest checkpoint say how the run goes on: with a smaller micro-batch."""
    found = checkpoint.newest(folder)
    if found is not None:
        files.write_json(found.path / checkpoint.MANIFEST, {**found.manifest, "micro_batch": [micro, accumulation]})


def load_adapter(model: Any, path: Path) -> None:
    """Put a saved adapter's weights into a model that was made with the same settings."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    set_peft_model_state_dict(model, load_file(path / "adapter_model.safetensors"))


def save_adapter(model: Any, path: Path) -> None:
    """Write the adapter as PEFT does (safetensors), whole or not at all."""
    try:
        with files.whole_folder(path) as partial:
            model.save_pretrained(str(partial), safe_serialization=True)
            (partial / "README.md").unlink(missing_ok=True)  # PEFT's model card, a form nobody filled in
    except OSError as error:
        raise _disk_error(error, path.parent / runs.CHECKPOINTS) from error


def _keep_best(model: Any, folder: Path, watch: Any, settings: Any) -> None:
    """With early stopping on, the adapter of the best validation loss is the one that is kept."""
    best = folder / "best"
    if settings.training.early_stopping_patience and (best / "adapter_model.safetensors").is_file():
        load_adapter(model, best)
        logger.info(
            "keeping the adapter of step {}, validation loss {:.4f}",
            watch.carried["best_step"],
            watch.carried["best_loss"],
        )


def _build(
    loaded: Any, train_rows: Any, validation_rows: Any, settings: Any, run: Any, events: Any, signals: Any,
    progress: _Progress, watch: Any, micro: int, accumulation: int,
) -> Any:  # fmt: skip
    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    options = arguments(settings, run, micro, accumulation, bool(validation_rows), fresh="before" not in watch.carried)
    one = trainer.hooked(loaded.trainer_class, watch)(
        model=loaded.model,
        args=loaded.config_class(**options),
        train_dataset=train_rows.select_columns(["input_ids", "labels"]),
        eval_dataset=validation_rows.select_columns(["input_ids", "labels"]) if validation_rows else None,
        processing_class=loaded.tokenizer,
        callbacks=[_callback(settings, run, events, signals, progress, watch)],
    )
    one.remove_callback(PrinterCallback)
    one.remove_callback(ProgressCallback)
    return one


def arguments(settings: Any, run: Any, micro: int, accumulation: int, validate: bool, fresh: bool) -> dict[str, Any]:
    """Every hyper-parameter for TRL's SFTConfig, said explicitly: Unsloth's version has other defaults."""
    t, hardware = settings.training, settings.hardware
    checkpointing = t.gradient_checkpointing is True
    return {
        "output_dir": str(run.path / runs.CHECKPOINTS),
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
        "optim": t.optim,
        "seed": t.seed,
        "data_seed": t.seed,
        "bf16": hardware.precision == "bf16",
        "fp16": hardware.precision == "fp16",
        "use_cpu": hardware.device == "cpu",
        "gradient_checkpointing": checkpointing,
        "logging_strategy": "steps",
        "logging_steps": 1,  # every step is an event; LOGGING_STEPS says how often a line is printed
        "logging_nan_inf_filter": False,
        "save_strategy": "steps" if t.save_steps else "no",
        "save_steps": t.save_steps or 500,
        "save_total_limit": None,  # checkpoint.rotate does it
        "eval_strategy": "steps" if validate and t.eval_steps else "no",
        "eval_steps": t.eval_steps or None,
        "eval_on_start": validate and fresh,  # the base model's loss
        "prediction_loss_only": True,
        "report_to": t.report_to if t.report_to != "none" else "none",
        "run_name": t.report_name or run.path.name,
        "disable_tqdm": True,
        "dataloader_num_workers": 0,
        "max_length": None,  # rows are cut already, with their end tokens right
        "packing": False,
        "padding_free": t.packing is True,
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "remove_unused_columns": False,
        "loss_type": "nll" if "lm_head" in settings.lora.target_modules else "chunked_nll",
    }


def _callback(settings: Any, run: Any, events: Any, signals: Any, progress: _Progress, watch: Any) -> Any:
    from transformers import TrainerCallback

    class Callback(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            trainer.begin_step(watch)

        def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self._obey(control)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            watch.in_step = False
            progress.train_seconds += (seconds := time.perf_counter() - watch.began)
            progress.tokens += watch.tokens
            watch.carried["tokens_per_second"] = watch.tokens / seconds
            self._obey(control)

        def on_prediction_step(self, *args: Any, **kwargs: Any) -> None:
            if signals.stop is not None:
                raise trainer.StopNow

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
            if "loss" in logs:
                _report_step(settings, run, events, progress, watch, state, logs)

        def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, Any], **kwargs: Any) -> None:
            if "eval_loss" in metrics:
                _report_evaluation(settings, events, progress, watch, state, control, metrics, kwargs["model"])

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            events.emit(
                "checkpoint", at_step=state.global_step, path=f"{runs.CHECKPOINTS}/checkpoint-{state.global_step}"
            )

        def _obey(self, control: Any) -> None:
            if signals.stop is not None:
                control.should_training_stop = True
                control.should_save = True
                control.should_evaluate = False
            elif signals.save:
                signals.save = False
                control.should_save = True

    return Callback()


def _report_step(settings: Any, run: Any, events: Any, progress: _Progress, watch: Any, state: Any, logs: dict) -> None:
    step, total = state.global_step, progress.total
    elapsed = time.perf_counter() - progress.started
    done = max(1, step - progress.first_step)
    remaining = elapsed / done * (total - step)
    speed = watch.carried.get("tokens_per_second", 0.0)
    events.emit(
        "step", step=step, total=total, epoch=round(state.epoch or 0, 4), loss=logs["loss"],
        learning_rate=logs["learning_rate"], gradient_norm=logs.get("grad_norm"), tokens_per_second=round(speed, 1),
        elapsed=round(elapsed, 2), remaining=round(remaining, 1), peak_memory=peak_memory(settings),
    )  # fmt: skip
    run.update(step=step, total=total, progress=round(100 * step / total, 1), eta=round(time.time() + remaining))
    progress.recent.append(logs["loss"])
    every = settings.training.logging_steps
    if every and (step % every == 0 or step == total):
        mean = sum(progress.recent) / len(progress.recent)
        progress.recent.clear()
        logger.info(
            "step {}/{} ({:.0f}%)  loss {:.4f}  lr {:.1e}  {:.0f} tok/s  eta {}",
            step, total, 100 * step / total, mean, logs["learning_rate"], speed, clock(remaining),
        )  # fmt: skip


def _report_evaluation(
    settings: Any, events: Any, progress: _Progress, watch: Any, state: Any, control: Any, metrics: dict, model: Any
) -> None:
    step, loss = state.global_step, metrics["eval_loss"]
    progress.evaluations.append((step, loss))
    carried = watch.carried
    carried.setdefault("before", loss)
    carried["after"] = loss
    better = loss < carried.get("best_loss", math.inf)
    if better:
        carried.update(best_loss=loss, best_step=step, worse=0)
    else:
        carried["worse"] = carried.get("worse", 0) + 1
    events.emit("evaluation", at_step=step, loss=loss, best=better)
    logger.info("validation loss {:.4f}{} (step {})", loss, ", the best so far" if better and step else "", step)
    patience = settings.training.early_stopping_patience
    if patience and better:
        with files.whole_folder(watch.folder / "best") as partial:
            model.save_pretrained(str(partial), safe_serialization=True)
    if patience and carried["worse"] >= patience:
        progress.stopped_early = True
        control.should_training_stop = True
        logger.info(
            "stopping early: no better validation loss in {} evaluations; the best was at step {}",
            patience,
            carried["best_step"],
        )


def _result(one: Any, progress: _Progress, watch: Any, micro: int, accumulation: int) -> Result:
    carried = watch.carried
    losses = [entry["loss"] for entry in one.state.log_history if "loss" in entry]
    return Result(
        steps=one.state.global_step,
        epochs=round(one.state.epoch or 0, 4),
        loss=losses[-1] if losses else None,
        validation={"before": carried.get("before"), "after": carried.get("after"), "best": carried.get("best_loss")},
        best_step=carried.get("best_step"),
        stopped_early=progress.stopped_early,
        seconds=round(time.perf_counter() - progress.started, 2),
        tokens=progress.tokens,
        tokens_per_second=round(progress.tokens / progress.train_seconds, 1) if progress.train_seconds else 0.0,
        peak_memory=peak_memory(None),
        micro_batch=micro,
        accumulation=accumulation,
    )


def peak_memory(settings: Any) -> int:
    """The most memory used so far, in bytes: of the GPU when one is used, else of this process."""
    if settings is None or settings.hardware.device != "cpu":
        import torch

        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB


def clock(seconds: float) -> str:
    """Seconds as 1:40 or 2:03:04."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
