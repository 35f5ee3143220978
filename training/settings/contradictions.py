"""What does not go together in the settings: contradictions (errors), and what is set but not used (notes)."""

from __future__ import annotations

import importlib.util
import ipaddress
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from training.errors import UserError
from training.settings import data_files, hub_names, ini_file, rules
from training.system import shared_secret

if TYPE_CHECKING:
    from training.settings.settings import Settings

STEP_SETTINGS = tuple(
    f"Training.{key}" for key in ("WARMUP_STEPS", "EVAL_STEPS", "SAVE_STEPS", "LOGGING_STEPS", "SAMPLE_STEPS")
)
# Contradictions: the keys, the one to change first, and why they do not go together.
Contradictions = Iterator[tuple[tuple[str, ...], str]]


def find(
    settings: Settings, bad: frozenset[str] | set[str] = frozenset(), check_packages: bool = False
) -> list[tuple[tuple[str, ...], str]]:
    """Every contradiction as (keys, message), but for those with a key in `bad`, whose value could not be read."""
    every = [_length, _validation, _replay, _text, _adapter, _machines, _device, _unsloth, _service]
    every += [_secret, _packages] if check_packages else []
    found = [contradiction for rule in every for contradiction in rule(settings)]
    return [(keys, _message(settings, keys, reason)) for keys, reason in found if not bad.intersection(keys)]


def too_long(settings: Settings, total_steps: int) -> list[tuple[tuple[str, ...], str]]:
    """The step settings that somebody wrote and that are longer than a run of `total_steps`, as (keys, message)."""
    return [
        ((key,), f"{settings.place(key)}: the run has {total_steps} steps only")
        for key in STEP_SETTINGS
        if settings.written(key) and settings.get(key) > total_steps
    ]


def _message(settings: Settings, keys: tuple[str, ...], reason: str) -> str:
    """`config.ini:20: [Training] EVAL_STEPS = 10: <reason>: [Dataset] VALIDATION_SPLIT = 0 (config.ini:12)`."""
    message = f"{settings.place(keys[0])}: {reason}"
    others = [_named(settings, key) for key in keys[1:]]
    return f"{message}: {' and '.join(others)}" if others else message


def _named(settings: Settings, key: str) -> str:
    section, _, name = key.partition(".")
    text = ini_file.show(rules.write(settings.get(key)))
    origin = settings.origin(key)
    return (
        f"[{section}] {name} {f'= {text}' if text else 'is empty'} ({'the default' if origin == 'default' else origin})"
    )


def can_validate(settings: Settings) -> bool:
    """Whether the settings leave anything to validate on."""
    return settings.dataset.validation_file is not None or settings.dataset.validation_split > 0


def _length(settings: Settings) -> Contradictions:
    total = settings.training.max_steps
    for key in STEP_SETTINGS if total else ():
        if settings.written(key) and settings.get(key) > total:
            yield (key, "Training.MAX_STEPS"), "is longer than the run"


def _validation(settings: Settings) -> Contradictions:
    training, data = settings.training, settings.dataset
    nothing = ("Dataset.VALIDATION_SPLIT", "Dataset.VALIDATION_FILE")
    if not can_validate(settings):
        if training.eval_steps and settings.written("Training.EVAL_STEPS"):
            yield ("Training.EVAL_STEPS", *nothing), "there are no rows to validate on"
        if training.early_stopping_patience:
            yield ("Training.EARLY_STOPPING_PATIENCE", *nothing), "there are no rows to validate on"
        if training.fail_if_worse:
            yield ("Training.FAIL_IF_WORSE", *nothing), "there are no rows to validate on"
    elif training.early_stopping_patience and not training.eval_steps:
        yield ("Training.EARLY_STOPPING_PATIENCE", "Training.EVAL_STEPS"), "nothing is validated during training"
    if data.validation_file and data_files.holds(data.dataset_file, data.validation_file):
        yield ("Dataset.VALIDATION_FILE", "Dataset.DATASET_FILE"), "the model would be validated on its training rows"
    for other in ("DATASET_FILE", "VALIDATION_FILE") if data.test_file else ():
        held: Path | None = settings.get(f"Dataset.{other}")
        if data.test_file and held and data_files.holds(held, data.test_file):
            yield ("Dataset.TEST_FILE", f"Dataset.{other}"), "the model would be tested on rows that it has seen"
    split = 0 if data.validation_file else data.validation_split
    if not data.test_file and split + data.test_split >= 1:
        yield ("Dataset.TEST_SPLIT", "Dataset.VALIDATION_SPLIT"), "no row is left for training"


def _replay(settings: Settings) -> Contradictions:
    data, replay = settings.dataset, "Dataset.REPLAY_FILE"
    if not data.replay_share:
        return
    if data.replay_file == "general":
        if settings.hardware.num_machines > 1:
            reason = (
                "the base model answers on one machine, and the others would not have its answers; train with it on one, and "
                "name the replay.jsonl of that run on all of them"
            )
            yield (replay, "Hardware.NUM_MACHINES"), reason
        return
    path = Path(data.replay_file)
    if data_files.holds(data.dataset_file, path):
        reason = "its rows are trained on already; mine.jsonl, other.jsonl*2 takes those of a file twice"
        yield (replay, "Dataset.DATASET_FILE"), reason
    for key in ("VALIDATION_FILE", "TEST_FILE"):
        if settings.get(f"Dataset.{key}") == path:
            yield (replay, f"Dataset.{key}"), "the model would be measured on rows that it is trained on"


def _text(settings: Settings) -> Contradictions:
    model, data = settings.model, settings.dataset
    if data.prompt_template and model.chat_template != "auto":
        yield ("Dataset.PROMPT_TEMPLATE", "Model.CHAT_TEMPLATE"), "only one of the two can say how a row is written"
    # A run that goes on has the commit that it began with, also where its model was named as Ollama names it.
    if model.revision and not hub_names.names_a_model(model.base_model_name) and not settings.began:
        yield ("Model.REVISION", "Model.BASE_MODEL_NAME"), "only models on the Hub or ModelScope have revisions"


def _machines(settings: Settings) -> Contradictions:
    hardware = settings.hardware
    if hardware.machine_rank >= hardware.num_machines:
        yield ("Hardware.MACHINE_RANK", "Hardware.NUM_MACHINES"), "must be less than the number of machines"
    if hardware.num_machines > 1 and not hardware.main_process_address:
        reason = "several machines need the address of machine 0, as host:port"
        yield ("Hardware.NUM_MACHINES", "Hardware.MAIN_PROCESS_ADDRESS"), reason
    if hardware.max_restarts and hardware.num_machines * hardware.num_processes == 1:
        reason = (
            "one process is not watched by others; set it to 0, or let a service manager start it again with --resume"
        )
        yield ("Hardware.MAX_RESTARTS", "Hardware.NUM_PROCESSES", "Hardware.NUM_MACHINES"), reason
    if hardware.sharding != "none" and hardware.num_machines * hardware.num_processes == 1:
        reason = "there is only one process to spread the model over"
        yield ("Hardware.SHARDING", "Hardware.NUM_PROCESSES", "Hardware.NUM_MACHINES"), reason


def _device(settings: Settings) -> Contradictions:
    hardware, optim = settings.hardware, settings.training.optim
    if hardware.device == "cpu":
        if "8bit" in optim or optim.startswith("paged"):
            yield ("Training.OPTIM", "Hardware.DEVICE"), "this optimizer runs on a GPU only"
        if hardware.precision == "fp16" and not hardware.auto_fp16_bf16:
            yield ("Hardware.PRECISION", "Hardware.DEVICE"), "a CPU trains in bf16 or fp32"
    if hardware.fast_cpu in (True, "int8") and hardware.device not in ("auto", "cpu"):
        yield ("Hardware.FAST_CPU", "Hardware.DEVICE"), "is for training on the CPU"
    if hardware.device[-1].isdigit() and hardware.num_processes > 1:
        yield ("Hardware.DEVICE", "Hardware.NUM_PROCESSES"), "one card cannot serve several processes; write cuda"


def _adapter(settings: Settings) -> Contradictions:
    if settings.lora.use_dora and "embed_tokens" in settings.lora.target_modules:
        yield (
            ("LoRA.TARGET_MODULES", "LoRA.USE_DORA"),
            "embed_tokens cannot be merged with DoRA; leave one of the two out",
        )


def _unsloth(settings: Settings) -> Contradictions:
    """Settings that Unsloth silently ignores or changes. transformers does what they say."""
    hardware, engine = settings.hardware, "Hardware.ENGINE"
    if hardware.engine != "unsloth":
        return
    if hardware.device != "cpu" and hardware.precision == "fp32" and not hardware.auto_fp16_bf16:
        yield ("Hardware.PRECISION", engine), "on a GPU it trains in bf16 or fp16; write one, or ENGINE = transformers"
    if hardware.device == "cpu" and settings.training.packing is True:
        yield ("Training.PACKING", engine), "on a CPU it pads rows all the same; write auto, or ENGINE = transformers"
    if hardware.sharding != "none":
        yield (
            ("Hardware.SHARDING", engine),
            "only models that transformers has loaded are spread; write ENGINE = transformers",
        )
    if whole := [name for name in settings.lora.target_modules if name in ("lm_head", "embed_tokens")]:
        reason = (
            f"it trains the whole matrix of {' and '.join(whole)} instead of LoRA; leave out, or ENGINE = transformers"
        )
        yield ("LoRA.TARGET_MODULES", engine), reason


def _service(settings: Settings) -> Contradictions:
    host = settings.service.host
    if not is_this_machine(host) and settings.service.token_file is None:
        yield ("Service.HOST", "Service.TOKEN_FILE"), "others can reach this address, and need a token then"


def is_this_machine(host: str) -> bool:
    """Whether an address can be reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _secret(settings: Settings) -> Contradictions:
    if settings.hardware.num_machines > 1:
        try:
            shared_secret.secret()
        except UserError as error:
            yield ("Hardware.NUM_MACHINES",), str(error)


def _packages(settings: Settings) -> Contradictions:
    package = settings.training.report_to
    if package != "none" and importlib.util.find_spec(package) is None:
        yield ("Training.REPORT_TO",), f"the package {package} is not installed; run .venv/bin/pip install {package}"


def unused(settings: Settings) -> list[str]:
    """What somebody set and the run does not use, one sentence each."""
    training = settings.training
    notes = []
    if training.max_steps and settings.written("Training.NUM_TRAIN_EPOCHS"):
        notes.append(f"NUM_TRAIN_EPOCHS is not used: MAX_STEPS = {training.max_steps} sets the length")
    elif not training.max_steps:
        epochs = rules.write(training.num_train_epochs)
        notes.append(f"MAX_STEPS is 0: NUM_TRAIN_EPOCHS = {epochs} sets the length")
    if settings.hardware.auto_fp16_bf16 and settings.written("Hardware.PRECISION"):
        notes.append("PRECISION is not used: AUTO_FP16_BF16 = true chooses it")
    for key in ("REPORT_PROJECT", "REPORT_NAME"):
        if training.report_to == "none" and settings.get(f"Training.{key}"):
            notes.append(f"{key} is not used: REPORT_TO = none")
    if not settings.dataset.replay_share and settings.written("Dataset.REPLAY_FILE"):
        notes.append("REPLAY_FILE is not used: REPLAY_SHARE = 0")
    if settings.hardware.sharding == "fsdp-offload" and settings.hardware.device == "cpu":
        notes.append("SHARDING = fsdp-offload is fsdp on a CPU: the shares are in the machine's memory in any case")
    if settings.hardware.num_machines == 1 and settings.hardware.main_process_address:
        notes.append("MAIN_PROCESS_ADDRESS is not used: NUM_MACHINES = 1")
    return notes
