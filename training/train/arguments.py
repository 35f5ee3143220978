"""What TRL's trainer is told."""

from __future__ import annotations

import os
from pathlib import Path

from training import runs
from training.settings import Settings
from training.settings.table import Training
from training.system import files


def arguments(
    settings: Settings, run: Path, micro_batch: tuple[int, int], validate: bool, fresh: bool
) -> dict[str, object]:
    """Every hyper-parameter for TRL's SFTConfig, said explicitly: Unsloth's version has other defaults.

    `micro_batch`: rows a micro-batch, micro-batches a step. `fresh`: the base model's validation loss has still to be measured. That is done first only where the adapter cannot be
    switched off later, for biases are trained with it.
    """
    t, hardware = settings.training, settings.hardware
    return {
        "output_dir": str(run / runs.CHECKPOINTS),
        "per_device_train_batch_size": micro_batch[0],
        "per_device_eval_batch_size": micro_batch[0],
        "gradient_accumulation_steps": micro_batch[1],
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
        # Every step is an event; LOGGING_STEPS says how often a line is printed.
        "logging_steps": 1,
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
        # Trackio's; the others read it from the environment.
        "project": t.report_project or "huggingface",
        "disable_tqdm": True,
        "dataloader_num_workers": 0,
        "max_length": None,  # rows are cut already, with their end tokens right
        "packing": False,
        "padding_free": t.packing is True,
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "remove_unused_columns": False,
        "loss_type": _loss_type(settings),
    }


def _loss_type(settings: Settings) -> str:
    """TRL computes the output layer in chunks, past the module: not where it is trained, nor where Unsloth has its own way."""
    own = settings.hardware.engine == "unsloth" or "lm_head" in settings.lora.target_modules
    return "nll" if own else "chunked_nll"


def tell_tracker(training: Training, run: Path) -> None:
    """Where TensorBoard's files go, and Weights & Biases' project: the trainer takes both from the environment."""
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(run / runs.TENSORBOARD))
    if "tensorboard" in training.report_to:
        files.private_folder(Path(os.environ["TENSORBOARD_LOGGING_DIR"]))
    if training.report_project:
        os.environ["WANDB_PROJECT"] = training.report_project
