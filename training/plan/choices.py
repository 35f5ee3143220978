"""What follows from the machine, the model and the rows for settings that were left to us."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from loguru import logger

from training.base_model import BaseModel
from training.data.tokenising import Summary
from training.errors import MachineError, UserError
from training.fast_cpu import fast_loss, policy
from training.hubs.listing import SHA1
from training.ollama import modelfile
from training.plan import disk_space
from training.settings import Choice, Settings, hub_names
from training.system import shell, this_machine
from training.system.this_machine import Machine
from training.system.wording import gigabytes


def device(settings: Settings, machine: Machine) -> Choice:
    """Where the model is trained: "cuda", "xpu" or "cpu". Raises MachineError when DEVICE asks for what is not there."""
    wanted = settings.hardware.device
    here = "cuda" if machine.backend in ("cuda", "rocm") else machine.backend
    if wanted == "auto":
        return Choice(here, machine.gpus[0].name) if here else Choice("cpu", "no CUDA, ROCm or XPU device")
    if wanted != "cpu" and wanted.split(":")[0] != here:
        raise MachineError(
            f"[Hardware] DEVICE = {wanted}: torch finds no such device here (nvidia-smi shows whether the driver runs); "
            "DEVICE = auto takes what there is"
        )
    return Choice(wanted, "DEVICE")


def precision(settings: Settings, machine: Machine, where: str) -> Choice:
    """The training dtype: "bf16", "fp16" or "fp32".

    bf16 hardware begins with compute capability 8.0; torch.cuda.is_bf16_supported() says True on a T4, which only
    emulates it. On a CPU bf16 pays where a unit multiplies it (AMX, AVX512-BF16) and is slow elsewhere.
    """
    wish = where == "cpu" and _wished_for_a_card(settings)
    if not settings.hardware.auto_fp16_bf16 and not wish:
        return Choice(settings.hardware.precision, "PRECISION")
    if where == "cpu":
        before = "--fp16 is for a card; " if wish else ""
        if machine.bf16_unit:
            return Choice("bf16", f"{before}the CPU has {machine.bf16_unit}")
        return Choice("fp32", f"{before}the CPU has no bf16 units")
    if machine.backend != "cuda":
        return Choice("bf16", f"{machine.backend} device")
    capability = min(gpu.capability for gpu in machine.gpus)
    number = f"compute capability {capability[0]}.{capability[1]}"
    if capability >= (8, 0):
        return Choice("bf16", number)
    return Choice("fp16", f"{number}: no bf16 hardware before 8.0")


def _wished_for_a_card(settings: Settings) -> bool:
    """Whether fp16 was asked for by the flag that guides type, wherever they are followed; a line of settings means it."""
    by = settings.origin("Hardware.PRECISION").partition(":")[0].strip("-=")
    return settings.hardware.precision == "fp16" and by == "fp16"


def engine(settings: Settings, where: str) -> Choice:
    """ "unsloth" or "transformers". Raises MachineError when Unsloth is asked for, or expected, and not installed."""
    wanted = settings.hardware.engine
    if wanted == "auto" and where != "cpu" and settings.processes > 1:
        reason = (
            f"{settings.processes} processes: Unsloth in several was tried on a CPU alone; ENGINE = unsloth takes it"
        )
        return Choice("transformers", reason)
    name = wanted if wanted != "auto" else ("transformers" if where == "cpu" else "unsloth")
    if name == "unsloth" and "unsloth" not in this_machine.versions():
        raise MachineError(
            f"ENGINE = {wanted} needs Unsloth on this machine, and it is not installed: run `ENGINE=unsloth {shell.command('setup.sh')}`, "
            "or set ENGINE = transformers in [Hardware] (slower)"
        )
    if wanted != "auto":
        return Choice(name, "ENGINE")
    return Choice(name, "training on the CPU" if where == "cpu" else "training on a GPU")


def chosen(settings: Settings, key: str, choice: Choice) -> Settings:
    """The settings with a choice of ours; where its reason is the setting itself, somebody else has made it."""
    return settings if choice.reason == key.partition(".")[2] else settings.with_choice(key, *choice)


def decide(settings: Settings, machine: Machine) -> Settings:
    """Fill in the automatic [Hardware] settings, and what follows from them; each choice keeps its reason."""
    where = device(settings, machine)
    settings = chosen(settings, "Hardware.DEVICE", where)
    dtype = precision(settings, machine, where.value)
    settings = chosen(settings, "Hardware.PRECISION", dtype)
    which = engine(settings, where.value)
    settings = chosen(settings, "Hardware.ENGINE", which)
    if settings.hardware.num_threads == "auto":
        processes = settings.hardware.num_processes
        reason = "physical cores" if processes == 1 else f"{machine.cores} physical cores for {processes} processes"
        settings = settings.with_choice("Hardware.NUM_THREADS", max(1, machine.cores // processes), reason)
    if settings.quantization.load_in_4bit and not where.value.startswith("cuda"):
        settings = settings.with_choice("Quantization.LOAD_IN_4BIT", False, "no CUDA device")
    if settings.training.optim == "auto":
        small = which.value == "unsloth" and where.value != "cpu"
        optim = (
            Choice("adamw_8bit", "Unsloth on a GPU") if small else Choice("adamw_torch", "exact, and on every device")
        )
        settings = settings.with_choice("Training.OPTIM", optim.value, optim.reason)
    return settings


def check_cards(settings: Settings) -> None:
    """Raise MachineError when there are fewer cards than NUM_PROCESSES: each process trains on one of its own."""
    processes = settings.hardware.num_processes
    if processes == 1 or settings.hardware.device == "cpu":
        return
    cards = this_machine.cards(settings.hardware.device)
    if cards < processes:
        raise MachineError(
            f"{settings.place('Hardware.NUM_PROCESSES')}: each process needs a card of its own, and {cards} can be seen "
            f"here; set it to {max(1, cards)}"
        )


def check_rows(rows: int, settings: Settings) -> None:
    """Refuse more processes than there are rows to train on; say where they will have little to do."""
    processes = settings.hardware.num_processes
    if rows < settings.processes:
        place = settings.place("Hardware.NUM_PROCESSES")
        only = f"there are {rows} training row{'s' * (rows != 1)} only, for {settings.processes} processes"
        raise UserError(f"{place}: {only}; set it to {max(1, rows // settings.hardware.num_machines)} at most")
    if processes > 1 and settings.hardware.device == "cpu":
        logger.info("NUM_PROCESSES = {}: on the CPU of one machine one process is usually as fast", processes)


def check_window(tried: Mapping[str, object], longest: int) -> None:
    """Refuse rows beyond a sliding window that llama.cpp does not compute: its files would not be what was trained."""
    window = tried.get("window")
    if isinstance(window, int) and longest > window:
        raise UserError(
            f"llama.cpp does not compute the sliding window of {window:,} tokens that this {tried['architecture']} has, and "
            f"the longest row has {longest:,}: its files would predict something else than what was trained; set "
            f"MAX_SEQ_LENGTH = {window}, or choose another model"
        )


def check_disk(folder: Path, needed: int, what: str) -> None:
    """Raise MachineError when the disk under `folder` has less than `needed` bytes free."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise MachineError(
            f"too little disk space under {folder}: {gigabytes(free)} free, {gigabytes(needed)} needed for {what}; "
            "make room, or choose another OUTPUT_DIR (--output DIR)"
        )


def check_writable(output_dir: Path) -> None:
    """Raise MachineError when OUTPUT_DIR, or the nearest folder above it that exists, cannot be written."""
    folder = output_dir
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise MachineError(
            f"OUTPUT_DIR {output_dir}: {folder} is a file, not a folder; choose another one (--output DIR)"
        )
    if not os.access(folder, os.W_OK | os.X_OK) or os.statvfs(folder).f_flag & os.ST_RDONLY:
        raise MachineError(f"OUTPUT_DIR {output_dir}: {folder} cannot be written; choose another one (--output DIR)")


def ollama() -> tuple[int, ...] | None:
    """The version of the Ollama on this machine, as numbers; None where there is none, or it does not say."""
    try:
        answer = subprocess.run(
            ["ollama", "--version"], capture_output=True, text=True, timeout=5, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return None
    version = re.search(r"(\d+)\.(\d+)\.(\d+)", answer.stdout)
    return tuple(map(int, version.groups())) if version else None


def look_at_ollama(text: str) -> None:
    """Say which Ollama is here, and warn when it is too old for the Modelfile `text`."""
    version = ollama()
    if version is None:
        logger.info("Ollama: not here; the Modelfile is written all the same")
        return
    shown = ".".join(map(str, version))
    least = tuple(map(int, modelfile.NATIVE.split(".")))
    if f"REQUIRES {modelfile.NATIVE}" in text.splitlines() and version < least:
        logger.warning(
            "Ollama {} is here, and this model will need {} or later: its chat template has no form as a TEMPLATE; "
            "update Ollama meanwhile",
            shown,
            modelfile.NATIVE,
        )
    else:
        logger.info("Ollama {}", shown)


# Parameters, and the learning rate beyond which LoRA seldom trains so large a model well.
LARGE, HIGH_RATE = 300_000_000, 1e-3


def pin(settings: Settings, base: BaseModel) -> Settings:
    """The settings with the commit of a base model on a hub: a run that is resumed uses the very same, whatever came later."""
    model = settings.model
    # ModelScope may name none that it could be asked for; a name as Ollama has it takes no revision in a file of settings.
    if not SHA1.fullmatch(base.revision or "") or not hub_names.names_a_model(model.base_model_name):
        return settings
    if base.revision == model.revision:
        return settings
    was = f"{model.revision} stands" if model.revision else f"the newest of {base.name}, which stands"
    return settings.with_choice("Model.REVISION", base.revision, f"{was} for this commit now")


def fit_to_model(settings: Settings, base: BaseModel) -> Settings:
    """MAX_SEQ_LENGTH and TARGET_MODULES against the model itself."""
    longest = base.max_length
    if longest and settings.model.max_seq_length > longest:
        if settings.written("Model.MAX_SEQ_LENGTH"):
            raise UserError(f"{settings.place('Model.MAX_SEQ_LENGTH')}: {base.name} takes {longest:,} tokens at most")
        settings = settings.with_choice("Model.MAX_SEQ_LENGTH", longest, "the most the model takes")
    settings = _rate_of_another_model(settings, base)
    if base.parameters > LARGE and settings.training.learning_rate > HIGH_RATE:
        logger.warning(
            "{}: high for a model of {:,} parameters; 2e-4 is usual",
            settings.place("Training.LEARNING_RATE"),
            base.parameters,
        )
    known = {module.rpartition(".")[2] for module, _, _ in disk_space.linear_modules(base.path)}
    known |= disk_space.outer_modules(base.path).keys() if known else set()
    unknown = [name for name in settings.lora.target_modules if name != "all-linear" and name not in known]
    if unknown and known:
        raise UserError(
            f"{settings.place('LoRA.TARGET_MODULES')}: {base.name} has no module {', '.join(unknown)}; "
            f"it has {', '.join(sorted(known))}, or use all-linear"
        )
    if more := disk_space.untied(settings, base):
        logger.info(
            "{}: {} has one matrix for embedding and output layer; trained they are two, so the merged model has {:,} more",
            *(settings.place("LoRA.TARGET_MODULES"), base.name, more),
        )
    return settings


def _rate_of_another_model(settings: Settings, base: BaseModel) -> Settings:
    """A high LEARNING_RATE in the file was meant for the file's own model, not for one named on the command line."""
    own_file = f"{settings.config.name}:"
    other_model = not settings.origins.get("Model.BASE_MODEL_NAME", own_file).startswith(own_file)
    rate_of_file = settings.origins.get("Training.LEARNING_RATE", "").startswith(own_file)
    if not (other_model and rate_of_file and base.parameters > LARGE and settings.training.learning_rate > HIGH_RATE):
        return settings
    usual = settings.default("Training.LEARNING_RATE")
    reason = f"{settings.training.learning_rate:g} stands in {settings.config.name} for another, smaller model"
    return settings.with_choice("Training.LEARNING_RATE", usual, reason)


def choose_for_rows(
    settings: Settings, base: BaseModel, summary: Summary, machine: Machine, alike: int = 0
) -> Settings:
    """Choices that depend on the length of the rows. `alike`: tokens that all of them begin with."""
    fast = policy.wanted(settings)
    if fast.value is False and policy.taken(settings):
        raise UserError(f"{settings.place('Hardware.FAST_CPU')}: {fast.reason}")
    _require_8_bits(settings, base)
    settings = chosen(settings, "Hardware.FAST_CPU", fast)
    if fast.value:
        by_hand = policy.by_hand(settings, base.config.get("model_type", ""))
        if by_hand and (why := fast_loss.built()):
            logger.info(why)
            by_hand = False
        settings = _regrouped(settings, summary, alike if by_hand else 0)
    if settings.training.gradient_checkpointing == "auto":
        checkpointing = disk_space.checkpointing(settings, base, summary, machine)
        settings = settings.with_choice("Training.GRADIENT_CHECKPOINTING", *checkpointing)
    if settings.training.packing == "auto":
        settings = settings.with_choice(
            "Training.PACKING", False, "rows are padded to the longest of their micro-batch"
        )
    return settings


def _require_8_bits(settings: Settings, base: BaseModel) -> None:
    """UserError where FAST_CPU = int8 cannot be had for this model, with this adapter or on this machine."""
    if settings.hardware.fast_cpu != policy.INT8:
        return
    why = policy.without_layers(settings, str(base.config.get("model_type", ""))) or fast_loss.without_8_bits()
    if why:
        raise UserError(f"{settings.place('Hardware.FAST_CPU')}: {why}; write auto")


def _regrouped(settings: Settings, summary: Summary, alike: int) -> Settings:
    """Short rows of one optimizer step taken together; the step stays what it was."""
    alike = alike if alike >= policy.LEAST_SHARED else 0
    before = settings.training.per_device_train_batch_size, settings.training.gradient_accumulation_steps
    lengths = summary.total.longest, summary.tokens / summary.sequences
    after = policy.regrouped(*before, *lengths, alike)
    if after == before:
        return settings
    why = "are short" if after == policy.regrouped(*before, *lengths) else f"begin with {alike:,} equal tokens"
    reason = f"rows {why}, so those of one step are taken together: {before[0]} x {before[1]} = {after[0]} x {after[1]}"
    settings = settings.with_choice("Training.PER_DEVICE_TRAIN_BATCH_SIZE", after[0], reason)
    return settings.with_choice("Training.GRADIENT_ACCUMULATION_STEPS", after[1], reason)
