"""Every setting, stated once: its name, type, default, what is allowed, and what it is for.

To add a setting, write one line in its section, and the same key in config.ini. Checking, --set, --help, the record of
a run and the table on docs/settings.md follow from it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from training.settings import readers, rules
from training.settings.rules import Auto, Int8, Rule, setting

# What a row may hold; data/rows.py reads each.
FORMATS = ("auto", "messages", "conversations", "alpaca", "prompt", "input", "text")
# Those of transformers that need no package beside bitsandbytes.
OPTIMIZERS = (
    *("auto", "adamw_torch", "adamw_torch_fused", "adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit"),
    *("paged_adamw_32bit", "adafactor", "lion_8bit", "lion_32bit", "paged_lion_8bit", "paged_lion_32bit"),
    *("adagrad", "rmsprop", "sgd"),
)
# Those of transformers that need no arguments of their own.
SCHEDULERS = (
    *("linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt"),
)


@dataclass(frozen=True)
class Model:
    """[Model]: what is trained, and how a conversation is written for it."""

    base_model_name: str = setting(
        "embedded/SmolLM2-135M-Instruct",
        read=readers.base_model,
        is_a="model",
        help="Hub id, ms:owner/name, folder, .gguf file, Ollama tag, or the model that comes with this project",
    )
    new_model_name: str = setting(
        "my-assistant", read=readers.model_name, help="name in Ollama: [namespace/]model[:tag]"
    )
    max_seq_length: int = setting(
        4096, at_least=16, help="tokens; longer rows are cut; capped by the model unless you write another value"
    )
    revision: str | None = setting(None, help="branch, tag or commit of a model on the Hub or ModelScope")
    chat_template: str = setting(
        "auto",
        read=readers.chat_template,
        is_a="file",
        help="auto (the model's own), a name such as chatml, or a Jinja file",
    )
    system_prompt: str | None = setting(None, help="system text put before every conversation that has none")
    trust_remote_code: bool = setting(
        False, help="run Python code that comes with the model; only for models you trust"
    )


@dataclass(frozen=True)
class LoRA:
    """[LoRA]: the adapter that is trained."""

    r: int = setting(16, at_least=1, help="adapter rank; 8, 16 or 32 suit most runs")
    lora_alpha: int = setting(16, at_least=1, help="strength of the adapter: the update is scaled by LORA_ALPHA / R")
    lora_dropout: float = setting(0.0, at_least=0, below=1, help="0 is Unsloth's fast path")
    bias: str = setting("none", one_of=("none", "all", "lora_only"), help="which biases are trained")
    target_modules: tuple[str, ...] = setting(
        ("q_proj", "k_proj", "v_proj", "o_proj"), read=readers.modules, help="modules to adapt, or all-linear"
    )
    use_rslora: bool = setting(False, help="scale by LORA_ALPHA / sqrt(R), steadier at high ranks")
    use_dora: bool = setting(False, help="weight-decomposed LoRA: slower, sometimes better at low ranks")


@dataclass(frozen=True)
class Dataset:
    """[Dataset]: the rows, and what of them is learned."""

    dataset_file: Path = setting(
        "train_data.jsonl",
        read=readers.data_files,
        is_a="files",
        help="training rows: JSONL, JSON, CSV, TXT, Parquet, XLSX, hf:owner/name; several: a.jsonl, b.jsonl*2",
    )
    format: str = setting("auto", one_of=FORMATS, help="what the rows hold; auto tells them apart row by row")
    columns: str | None = setting(
        None, read=readers.columns, help="which column holds what, as in instruction: Frage, output: Antwort"
    )
    encoding: str = setting(
        "auto", read=readers.encoding, help="auto is UTF-8 (and UTF-16 with its mark); or gbk, big5, cp1252 and others"
    )
    validation_file: Path | None = setting(
        None, read=readers.held_out_file, is_a="file", help="rows to validate on; beats VALIDATION_SPLIT"
    )
    validation_split: float = setting(
        0.1, at_least=0, below=1, help="share of the rows kept for validation; 0 for none"
    )
    test_file: Path | None = setting(
        None, read=readers.held_out_file, is_a="file", help="rows for a test at the end; beats TEST_SPLIT"
    )
    test_split: float = setting(
        0.0, at_least=0, below=1, help="share of the rows kept for a test at the end; 0 for none"
    )
    replay_share: float = setting(
        0.0, at_least=0, at_most=0.9, help="share of the training rows that come from REPLAY_FILE, against forgetting"
    )
    replay_file: str = setting(
        "general",
        read=readers.replay_file,
        is_a="file",
        help="general (questions that the base model itself answers before training), or a file of rows",
    )
    train_on: str = setting("completion", one_of=("completion", "all"), help="learn the answers only, or all the text")
    train_turns: str = setting("all", one_of=("all", "last"), help="learn every answer of a conversation, or the last")
    join_turns: bool | Auto = setting(
        "auto", help="neighbouring turns of one speaker: true joins, false keeps them apart, auto refuses the row"
    )
    thinking: str = setting(
        "auto",
        one_of=("auto", "keep", "off"),
        help="thoughts: as the chat template has them; keep learns no empty ones; off learns and serves none",
    )
    tool_form: str = setting(
        "ollama",
        one_of=("ollama", "own"),
        before="own",
        help="functions and calls: as Ollama serves them (its order and fields), or as the rows have them",
    )
    null_words: str = setting(
        "stop", one_of=("stop", "keep"), help="an answer that is NaN, None or NULL: a bad row, or learned as it stands"
    )
    on_private: str = setting(
        "warn",
        one_of=("warn", "off", "mask", "stop"),
        help="e-mails, phones, IBANs, cards, ids, keys in rows: told of, left alone, masked, or refused",
    )
    prompt_template: str | None = setting(
        None,
        read=readers.prompt_template,
        help="text with {instruction}, {input}, {response} or other columns, in place of a chat template",
    )
    on_bad_row: str = setting("stop", one_of=("stop", "skip"), help="stop at bad rows, or go on without them")
    max_rows: int = setting(0, at_least=0, help="use the first rows only; 0 for all")


@dataclass(frozen=True)
class Training:
    """[Training]: how long, how fast, and what is kept."""

    per_device_train_batch_size: int = setting(2, at_least=1, help="rows at a time on each device")
    gradient_accumulation_steps: int = setting(4, at_least=1, help="batches that make one optimizer step")
    learning_rate: float = setting(2e-4, above=0, at_most=1, help="2e-4 suits LoRA; lower it when the loss jumps")
    max_steps: int = setting(60, at_least=0, help="optimizer steps; 0 lets NUM_TRAIN_EPOCHS decide")
    num_train_epochs: float = setting(3.0, above=0, at_most=10000, help="passes over the rows, when MAX_STEPS is 0")
    warmup_steps: int = setting(5, at_least=0, help="steps over which the learning rate rises")
    output_dir: Path = setting("outputs", is_a="folder", help="each run makes its own folder in here")
    logging_steps: int = setting(1, at_least=0, help="steps between progress lines; 0 for none")
    weight_decay: float = setting(0.01, at_least=0, below=1, help="pull of the weights towards 0")
    lr_scheduler_type: str = setting("linear", one_of=SCHEDULERS, help="course of the learning rate")
    max_grad_norm: float = setting(1.0, at_least=0, help="longer gradients are scaled down to this; 0 for never")
    optim: str = setting("auto", one_of=OPTIMIZERS, help="optimizer; auto takes 8-bit AdamW with Unsloth, else AdamW")
    seed: int = setting(3407, at_least=0, at_most=2**32 - 1, help="same seed, same data: same run")
    save_steps: int = setting(20, at_least=0, help="steps between checkpoints; 0 for none")
    save_total_limit: int = setting(2, at_least=0, help="checkpoints to keep; 0 for all")
    eval_steps: int = setting(20, at_least=0, help="steps between validations; 0 for none during training")
    sample_steps: int = setting(0, at_least=0, help="steps between sample answers in the log; 0 for none")
    early_stopping_patience: int = setting(
        0, at_least=0, help="stop after this many validations without a better loss, and keep the best; 0 for never"
    )
    packing: bool | Auto = setting("auto", help="join the rows of a micro-batch into one sequence, without padding")
    gradient_checkpointing: bool | Auto = setting("auto", help="less memory for more computing")
    report_to: str = setting(
        "none", one_of=("none", "tensorboard", "wandb", "trackio"), help="tracker that gets the figures as well"
    )
    report_project: str | None = setting(None, help="project in the tracker")
    report_name: str | None = setting(None, help="name of the run in the tracker")
    fail_if_worse: bool = setting(False, help="exit 1 when the validation loss ends higher than it began")


@dataclass(frozen=True)
class Quantization:
    """[Quantization]: precision of the base model in training, and of the files made."""

    load_in_4bit: bool = setting(True, help="load the base model in 4 bit (CUDA only; logged and ignored elsewhere)")
    quantization_method: tuple[str, ...] = setting(
        ("q4_k_m",), read=readers.quantisations, help="GGUF types to make: llama.cpp's names, with commas between"
    )
    keep_merged: bool = setting(True, help="keep merged/, the 16-bit model as a Hugging Face folder")
    keep_f16: bool = setting(False, help="keep the 16-bit GGUF that the others are made from")


@dataclass(frozen=True)
class Hardware:
    """[Hardware]: where and in which precision it runs. auto is decided at the start, and logged with its reason."""

    auto_fp16_bf16: bool = setting(True, help="choose the precision that the hardware is fast in")
    precision: str = setting("bf16", one_of=("bf16", "fp16", "fp32"), help="used when AUTO_FP16_BF16 = false")
    engine: str = setting("auto", one_of=("auto", "unsloth", "transformers"), help="auto is Unsloth on a GPU")
    device: str = setting(
        "auto", one_of=("auto", "cpu", "cuda", "xpu"), read=readers.device, help="or cuda:1, one card"
    )
    fast_cpu: bool | Auto | Int8 = setting(
        "auto", help="the faster kernels for training on a CPU; int8 keeps the frozen weights in 8 bits"
    )
    num_threads: int | Auto = setting("auto", at_least=1, at_most=4096, help="CPU threads; auto is one per core")
    num_processes: int = setting(1, at_least=1, at_most=1024, help="processes on each machine: one per GPU")
    num_machines: int = setting(1, at_least=1, at_most=1024, help="machines that train together")
    machine_rank: int = setting(0, at_least=0, help="number of this machine, from 0 on")
    main_process_address: str | None = setting(
        None, read=readers.address, help="host:port of machine 0, when there are several"
    )
    max_restarts: int = setting(0, at_least=0, at_most=1000, help="times to go on by itself when one of several dies")
    sharding: str = setting(
        "none",
        one_of=("none", "fsdp", "fsdp-offload"),
        help="fsdp spreads the model over the processes; with -offload it stays in the machine's memory",
    )
    link_gbps: float | Auto = setting(
        "auto",
        above=0,
        at_most=100_000,
        help="Gbit/s between the processes, for the plan; auto is measured when they meet",
    )


@dataclass(frozen=True)
class Service:
    """[Service]: what `./run.sh --serve` does. No run is changed by it, and no record of a run has it."""

    host: str = setting(
        "127.0.0.1", read=readers.host, help="address to listen on; any but this machine's own needs TOKEN_FILE"
    )
    port: int = setting(8000, at_least=0, at_most=65535, help="port to listen on; 0 for any that is free")
    token_file: Path | None = setting(
        None, is_a="file", help="file with the token that requests must show; 16 characters or more"
    )
    roots: tuple[str, ...] = setting(
        (), read=readers.folders, help="folders that requests may name; left empty, this file's and OUTPUT_DIR"
    )
    runs_at_a_time: int = setting(1, at_least=1, at_most=64, help="runs that train at once; the others wait")


SECTIONS = {cls.__name__: cls for cls in (Model, LoRA, Dataset, Training, Quantization, Hardware)}


@dataclass(frozen=True)
class Item:
    """One setting of the table: its names, its rule, and the annotation that says how it is read."""

    section: str
    key: str
    rule: Rule
    kind: str

    @property
    def name(self) -> str:
        """Section.KEY, as --set and the records name it."""
        return f"{self.section}.{self.key}"


TABLE: dict[str, Item] = {
    item.name: item
    for section, cls in SECTIONS.items()
    for f in dataclasses.fields(cls)
    for item in [Item(section, f.name.upper(), f.metadata["rule"], str(f.type))]
}
# What is no setting of a run, and stands in the same file.
SERVICE: dict[str, Item] = {
    item.name: item
    for f in dataclasses.fields(Service)
    for item in [Item("Service", f.name.upper(), f.metadata["rule"], str(f.type))]
}
EVERY_SECTION, EVERY = {**SECTIONS, "Service": Service}, {**TABLE, **SERVICE}


def reference() -> str:
    """The table of all settings in Markdown, a section at a time, as docs/settings.md shows it."""
    lines = []
    for section, cls in EVERY_SECTION.items():
        about = " ".join((cls.__doc__ or "").split()).partition(": ")[2]
        lines += [
            f"### [{section}]",
            "",
            about[0].upper() + about[1:],
            "",
            "| key | default | values | meaning |",
            "|---|---|---|---|",
        ]
        for item in (item for item in EVERY.values() if item.section == section):
            default = rules.write(item.rule.default)
            default = f"`{default}`" if default else "(none)"
            lines.append(f"| `{item.key}` | {default} | {rules.allowed(item.rule, item.kind)} | {item.rule.help} |")
        lines.append("")
    return "\n".join(lines)
