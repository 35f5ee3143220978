"""The keywords of FineTuningConfig with their types, for editors and type checkers. The settings themselves: settings/table.py.

A test holds this list to the table, and prints what it should be.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypedDict


class Keywords(TypedDict, total=False):
    """Every name that a setting has in Python; what it means is told by its setting, ./run.sh --help."""

    # [Model]
    base_model_name: str | os.PathLike[str] | None
    model: str | os.PathLike[str] | None
    base_model: str | os.PathLike[str] | None
    model_name: str | os.PathLike[str] | None
    new_model_name: str | None
    name: str | None
    max_seq_length: int | None
    max_length: int | None
    revision: str | None
    chat_template: str | None
    system_prompt: str | None
    trust_remote_code: bool | None
    # [LoRA]
    r: int | None
    lora_r: int | None
    lora_alpha: int | None
    lora_dropout: float | None
    bias: str | None
    target_modules: str | Sequence[str] | None
    use_rslora: bool | None
    use_dora: bool | None
    # [Dataset]
    dataset_file: str | os.PathLike[str] | None
    data: str | os.PathLike[str] | None
    train_data: str | os.PathLike[str] | None
    dataset_path: str | os.PathLike[str] | None
    data_path: str | os.PathLike[str] | None
    format: str | None
    dataset_format: str | None
    columns: str | None
    encoding: str | None
    join_turns: bool | str | None
    thinking: str | None
    tool_form: str | None
    null_words: str | None
    on_private: str | None
    validation_file: str | os.PathLike[str] | None
    val_data: str | os.PathLike[str] | None
    validation_split: float | None
    train_test_split: float | None
    test_file: str | os.PathLike[str] | None
    test_data: str | os.PathLike[str] | None
    test_split: float | None
    replay_share: float | None
    replay_file: str | None
    train_on: str | None
    train_turns: str | None
    prompt_template: str | None
    on_bad_row: str | None
    max_rows: int | None
    # [Training]
    per_device_train_batch_size: int | None
    batch_size: int | None
    gradient_accumulation_steps: int | None
    learning_rate: float | None
    max_steps: int | None
    num_train_epochs: float | None
    epochs: float | None
    num_epochs: float | None
    warmup_steps: int | None
    output_dir: str | os.PathLike[str] | None
    output: str | os.PathLike[str] | None
    logging_steps: int | None
    weight_decay: float | None
    lr_scheduler_type: str | None
    max_grad_norm: float | None
    optim: str | None
    seed: int | None
    save_steps: int | None
    save_total_limit: int | None
    eval_steps: int | None
    sample_steps: int | None
    early_stopping_patience: int | None
    packing: bool | str | None
    gradient_checkpointing: bool | str | None
    report_to: str | None
    report_project: str | None
    wandb_project: str | None
    report_name: str | None
    wandb_run_name: str | None
    fail_if_worse: bool | None
    use_wandb: bool | None
    # [Quantization]
    load_in_4bit: bool | None
    use_quantization: bool | None
    quantization_method: str | Sequence[str] | None
    keep_merged: bool | None
    keep_f16: bool | None
    # [Hardware]
    auto_fp16_bf16: bool | None
    precision: str | None
    engine: str | None
    device: str | None
    fast_cpu: bool | str | None
    num_threads: int | str | None
    num_processes: int | None
    num_machines: int | None
    machine_rank: int | None
    main_process_address: str | None
    max_restarts: int | None
    sharding: str | None
    link_gbps: float | str | None
    fp16: bool | None
    bf16: bool | None
