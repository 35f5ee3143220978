"""Every setting, stated once: name, type, default, what is allowed, what it is for. The loader is in load(), below.

To add a setting, write one line in its section; validation, config.ini, `--set`, the record of a run and the table
in the README follow from it (tests/test_settings.py tells which file to extend).
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training import contradictions, ini, names, values
from training.errors import UserError
from training.values import Auto, Given, Rule, setting

FORMATS = ("auto", "messages", "conversations", "alpaca", "prompt", "input", "text")  # the fields of a row: rows.py
OPTIMIZERS = (
    *("auto", "adamw_torch", "adamw_torch_fused", "adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit"),
    *("paged_adamw_32bit", "adafactor", "lion_8bit", "lion_32bit", "paged_lion_8bit", "paged_lion_32bit"),
    *("adagrad", "rmsprop", "sgd"),
)  # those of transformers that need no further package than bitsandbytes
SCHEDULERS = (
    *("linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt"),
)  # those of transformers that need no further arguments


@dataclass(frozen=True)
class Model:
    """[Model]: what is trained, and how a conversation is written for it."""

    base_model_name: str = setting(
        "embedded/SmolLM2-135M-Instruct",
        read=values.base_model,
        is_a="model",
        help="Hub id, local folder, .gguf file, Ollama tag, or the model that comes with this project",
    )
    new_model_name: str = setting(
        "my-assistant", read=values.model_name, help="name in Ollama: [namespace/]model[:tag]"
    )
    max_seq_length: int = setting(
        4096, at_least=16, help="tokens; longer rows are cut; capped by the model unless you write another value"
    )
    revision: str | None = setting(None, help="branch, tag or commit of a model on the Hub")
    chat_template: str = setting(
        "auto",
        read=values.chat_template,
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
        ("q_proj", "k_proj", "v_proj", "o_proj"), read=values.modules, help="modules to adapt, or all-linear"
    )
    use_rslora: bool = setting(False, help="scale by LORA_ALPHA / sqrt(R), steadier at high ranks")
    use_dora: bool = setting(False, help="weight-decomposed LoRA: slower, sometimes better at low ranks")


@dataclass(frozen=True)
class Dataset:
    """[Dataset]: the rows, and what of them is learned."""

    dataset_file: Path = setting("train_data.jsonl", is_a="file", help="training rows: JSONL, JSON, CSV or TXT")
    format: str = setting("auto", one_of=FORMATS, help="what the rows hold; auto tells them apart row by row")
    validation_file: Path | None = setting(None, is_a="file", help="rows to validate on; beats VALIDATION_SPLIT")
    validation_split: float = setting(
        0.1, at_least=0, below=1, help="share of the rows kept for validation; 0 for none"
    )
    test_split: float = setting(
        0.0, at_least=0, below=1, help="share of the rows kept for a test at the end; 0 for none"
    )
    train_on: str = setting("completion", one_of=("completion", "all"), help="learn the answers only, or all the text")
    train_turns: str = setting("all", one_of=("all", "last"), help="learn every answer of a conversation, or the last")
    prompt_template: str | None = setting(
        None,
        read=values.prompt_template,
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
    packing: bool | Auto = setting("auto", help="fill sequences with several short rows")
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
        ("q4_k_m",), read=values.quantisations, help="GGUF types to make: llama.cpp's names, with commas between"
    )
    keep_merged: bool = setting(True, help="keep merged/, the 16-bit model as a Hugging Face folder")
    keep_f16: bool = setting(False, help="keep the 16-bit GGUF that the others are made from")


@dataclass(frozen=True)
class Hardware:
    """[Hardware]: where and in which precision it runs. auto is decided at the start, and logged with its reason."""

    auto_fp16_bf16: bool = setting(True, help="choose the precision that the hardware is fast in")
    precision: str = setting("bf16", one_of=("bf16", "fp16", "fp32"), help="used when AUTO_FP16_BF16 = false")
    engine: str = setting("auto", one_of=("auto", "unsloth", "transformers"), help="auto is Unsloth on a GPU")
    device: str = setting("auto", one_of=("auto", "cpu", "cuda", "xpu"), read=values.device, help="or cuda:1, one card")
    fast_cpu: bool | Auto = setting("auto", help="the faster kernels for training on a CPU")
    num_threads: int | Auto = setting("auto", at_least=1, at_most=4096, help="CPU threads; auto is one per core")
    num_processes: int = setting(1, at_least=1, at_most=1024, help="processes on each machine: one per GPU")
    num_machines: int = setting(1, at_least=1, at_most=1024, help="machines that train together")
    machine_rank: int = setting(0, at_least=0, help="number of this machine, from 0 on")
    main_process_address: str | None = setting(
        None, read=values.address, help="host:port of machine 0, when there are several"
    )
    sharding: str = setting("none", one_of=("none", "fsdp"), help="fsdp spreads the model over the processes")


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


@dataclass(frozen=True)
class Override:
    """A setting given beside the file. `source` says how: "--epochs", "--set LoRA.R", "argument 4 (EPOCHS)"."""

    section: str
    key: str
    value: str
    source: str


@dataclass(frozen=True)
class Settings:
    """The settings of a run. Equal when all values are; where a value came from does not count."""

    model: Model
    lora: LoRA
    dataset: Dataset
    training: Training
    quantization: Quantization
    hardware: Hardware
    config: Path = field(compare=False)
    origins: Mapping[str, str] = field(compare=False)  # Section.KEY -> origin, of all that was given
    choices: tuple[tuple[str, Any, str], ...] = field(default=(), compare=False)  # (Section.KEY, value, reason)

    @property
    def name(self) -> str:
        """NEW_MODEL_NAME as a part of file names."""
        return self.model.new_model_name.replace("/", "-").replace(":", "-")

    def get(self, key: str) -> Any:
        """The value of "Section.KEY"."""
        item = TABLE[key]
        return getattr(getattr(self, item.section.lower()), item.key.lower())

    def origin(self, key: str) -> str:
        """Where the value of "Section.KEY" came from: "default", "config.ini:14", "--epochs", "automatic: <reason>"."""
        chosen = {name: reason for name, _, reason in self.choices}
        return f"automatic: {chosen[key]}" if key in chosen else self.origins.get(key, "default")

    def default(self, key: str) -> Any:
        """The default of "Section.KEY"; paths start where the settings file is."""
        return _default(TABLE[key], self.config.parent)

    def written(self, key: str) -> bool:
        """Whether somebody chose this value: on the command line, or in the file and other than the default.

        The shipped file shows every default; nobody is to be held to what he did not change.
        """
        origin = self.origins.get(key, "default")
        if origin == "default" or any(key == name for name, _, _ in self.choices):
            return False
        return not origin.startswith(f"{self.config.name}:") or self.get(key) != self.default(key)

    def with_choice(self, key: str, value: Any, reason: str) -> Settings:
        """These settings with an automatic choice filled in; a later choice for the same key takes its place."""
        item = TABLE[key]
        section = dataclasses.replace(getattr(self, item.section.lower()), **{item.key.lower(): value})
        choices = tuple(choice for choice in self.choices if choice[0] != key)
        return dataclasses.replace(
            self, **{item.section.lower(): section}, choices=(*choices, (key, value, " ".join(reason.split())))
        )

    def place(self, key: str) -> str:
        """A setting for an error message, with where it was given: "config.ini:14: [LoRA] R = 0"."""
        return _place(TABLE[key], ini.show(values.write(self.get(key))), self.origins.get(key, "default"))

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """All values by section and KEY, as JSON has them: paths as text, lists as lists."""
        record: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
        for key, item in TABLE.items():
            record[item.section][item.key] = _plain(self.get(key))
        return record

    def differences(self) -> list[tuple[str, Any, Any, str]]:
        """What is not at its default: (Section.KEY, value, default, origin), values as in as_dict()."""
        rows = [(key, self.get(key), self.default(key), self.origin(key)) for key in TABLE]
        return [(key, _plain(now), _plain(then), origin) for key, now, then, origin in rows if now != then]

    def notes(self) -> list[str]:
        """What is set and not used, one sentence each, for the log."""
        return contradictions.unused(self)

    def to_ini(self) -> str:
        """The text of a settings file that load() reads back to equal settings, with the origin of each value."""
        lines = ["# The effective settings of a run; this file can be given to ./run.sh --config."]
        for section in SECTIONS:
            lines += ["", f"[{section}]"]
            for item in (item for item in TABLE.values() if item.section == section):
                text = values.write(self.get(item.name))
                text = text if item.rule.one_of else ini.quote(text)
                lines.append(f"{item.key} = {text}  # {ini.show(self.origin(item.name), 200)}")
        return "\n".join(lines) + "\n"


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value


def _default(item: Item, folder: Path) -> Any:
    return values.read(Given(values.write(item.rule.default), folder), item.rule, item.kind)


def _place(item: Item, text: str, origin: str) -> str:
    if origin.startswith("--"):
        return f"{origin}={text}" if origin.startswith("--set ") else f"{origin} {text}"
    if origin.startswith("argument "):
        return f"{origin} = {text}"
    setting_and_value = f"[{item.section}] {item.key} = {text}" if text else f"[{item.section}] {item.key} is empty"
    return setting_and_value if origin == "default" else f"{origin}: {setting_and_value}"


def load(
    config: Path, overrides: Sequence[Override] = (), *, check_files: bool = True, check_packages: bool = False
) -> Settings:
    """The settings of a file, the overrides put over it, the last one first.

    `check_files`: the files they name must be there; not so for the record of an old run. `check_packages`: the
    package of REPORT_TO must be installed; false before the set-up. Raises UserError with all problems at once.
    """
    config = Path(os.path.abspath(config))  # noqa: PTH100 - resolve() would follow a link away from the relative paths
    file = ini.read(config)
    found, lines, others = _collect(file, config, overrides)
    problems = lines + [(line, f"{config.name}:{line}: {reason}") for line, reason in file.problems]
    sections: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    bad: set[str] = set()
    for key, item in TABLE.items():
        given, line, origin = found.get(key, (Given(values.write(item.rule.default), config.parent), 0, "default"))
        value = _default(item, Path("/"))  # stands in for a value that cannot be read
        try:
            value = values.read(given, item.rule, item.kind)
            reason = values.missing(value, item.rule) if check_files else ""
        except ValueError as error:
            reason = str(error)
        if reason:
            bad.add(key)
            message = f"{_place(item, ini.show(given.text), origin)}: {reason}"
            (problems.append((line, message)) if line else others.append(message))
        sections[item.section][item.key.lower()] = value
    origins = {key: origin for key, (_, _, origin) in found.items()}
    made = [cls(**sections[section]) for section, cls in SECTIONS.items()]
    settings = Settings(*made, config=config, origins=origins)
    for keys, message in contradictions.find(settings, bad, check_packages):
        line = found[keys[0]][1] if keys[0] in found else 0
        (problems.append((line, message)) if line else others.append(message))
    _raise_all([message for _, message in sorted(problems)] + others, config)
    return settings


def _collect(
    file: ini.Ini, config: Path, overrides: Sequence[Override]
) -> tuple[dict[str, tuple[Given, int, str]], list[tuple[int, str]], list[str]]:
    """What was given for each Section.KEY, with its line (0: not in the file) and origin; and the unknown names."""
    found: dict[str, tuple[Given, int, str]] = {}
    problems = [
        (line, f"{config.name}:{line}: [{ini.show(section)}] is not a section{_near(section, SECTIONS)}")
        for section, line in file.sections.items()
        if section not in SECTIONS
    ]
    for entry in file.entries:
        key = f"{entry.section}.{entry.key}"
        origin = f"{config.name}:{entry.line}"
        if key in TABLE:
            found[key] = (Given(entry.value, config.parent, entry.quoted), entry.line, origin)
        elif entry.section in SECTIONS:
            problems.append((entry.line, f"{origin}: {unknown_key(entry.section, entry.key)}"))
    others = []
    for given in overrides:
        key = f"{given.section}.{given.key}"
        if key in TABLE:
            found[key] = (Given(given.value, Path.cwd()), 0, given.source)
        elif given.section in SECTIONS:
            others.append(f"{given.source}: {unknown_key(given.section, given.key)}")
        else:
            others.append(
                f"{given.source}: [{ini.show(given.section)}] is not a section{_near(given.section, SECTIONS)}"
            )
    return found, problems, others


def _near(word: str, options: Any) -> str:
    return names.did_you_mean(word, options, f"there are {', '.join(options)}")


def unknown_key(section: str, key: str) -> str:
    """What to say of a key that is not in the section. Its value is not shown: it may be a token."""
    message = f"[{section}] {ini.show(key)} is not a setting"
    if "TOKEN" in key.upper() or key.upper().endswith("API_KEY"):
        return f"{message}; tokens are read from the environment (HF_TOKEN, WANDB_API_KEY), never from a file"
    elsewhere = [item.section for item in TABLE.values() if item.key == key.upper() and item.section != section]
    if elsewhere:
        return f"{message}; {key.upper()} belongs in [{elsewhere[0]}]"
    return message + names.did_you_mean(key, [item.key for item in TABLE.values() if item.section == section])


MOST_SHOWN = 50


def _raise_all(problems: Sequence[str], config: Path) -> None:
    if not problems:
        return
    count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
    shown = list(problems[:MOST_SHOWN])
    if len(problems) > MOST_SHOWN:
        shown.append(f"... and {len(problems) - MOST_SHOWN} more")
    raise UserError(shown, title=f"{_short(config)}: {count}")


def _short(path: Path) -> Path:
    """The path from the current folder when it lies below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def reference() -> str:
    """The table of all settings in Markdown, a section at a time, as the README shows it."""
    lines = []
    for section, cls in SECTIONS.items():
        about = " ".join((cls.__doc__ or "").split()).partition(": ")[2]
        lines += [
            f"### [{section}]",
            "",
            about[0].upper() + about[1:],
            "",
            "| key | default | values | meaning |",
            "|---|---|---|---|",
        ]
        for item in (item for item in TABLE.values() if item.section == section):
            default = values.write(item.rule.default)
            default = f"`{default}`" if default else "(none)"
            lines.append(f"| `{item.key}` | {default} | {values.allowed(item.rule, item.kind)} | {item.rule.help} |")
        lines.append("")
    return "\n".join(lines)


def clamp(settings: Settings, total_steps: int) -> Settings:
    """Fit the step settings to a run of `total_steps`, once that is known: defaults that are too long are shortened.

    Raises UserError naming each one that somebody wrote and that does not fit.
    """
    problems = [message for _, message in contradictions.too_long(settings, total_steps)]
    if problems:
        raise UserError(problems, title=f"{_short(settings.config)}: the run has {total_steps} steps")
    for key in contradictions.STEP_SETTINGS:
        value = settings.get(key)
        if key == "Training.WARMUP_STEPS" and not settings.written(key) and value >= total_steps:
            settings = settings.with_choice(key, total_steps // 10, f"the run has {total_steps} steps only")
        elif value > total_steps:
            settings = settings.with_choice(key, total_steps, f"the run has {total_steps} steps only")
    return settings
