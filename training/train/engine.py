"""The one module that knows Unsloth from transformers + PEFT: both give a LoRA model, a tokenizer and TRL's trainer.

`start` must run before anything imports transformers, trl or peft: Unsloth patches them at import, for the whole
process, and names bound earlier stay unpatched. So one process has one engine, and never falls back to the other.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from loguru import logger

from training.base_model import BaseModel, leftovers, load_tokenizer, lora_adapter, weights_fit
from training.errors import MachineError, RunError, UserError
from training.settings import Settings
from training.system import shell, temporary, this_machine
from training.system.wording import first_line
from training.train import four_bit

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments

    from training.base_model.weights_fit import LoadingInfo

# Tokens; below, SDPA's bf16 backward on a CPU is slower than plain matrix products.
EAGER_UP_TO = 512
DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model ready to train: its tokenizer, and the trainer classes that fit the engine."""

    model: PeftModel
    tokenizer: PreTrainedTokenizerBase
    trainer_class: type[Trainer]  # trl.SFTTrainer, or Unsloth's version of it
    config_class: Callable[..., TrainingArguments]  # trl.SFTConfig, likewise


def start(settings: Settings) -> None:
    """Prepare the process for the engine that was chosen: environment variables, threads, then its import."""
    # A tokenizer's threads and the data loader's fork do not mix.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # The base model is on the disk by now: nothing may ask the Hub again.
    os.environ["HF_HUB_OFFLINE"] = "1"
    if settings.hardware.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if settings.hardware.engine == "unsloth":
        # What torchrun would have said by now. Without it Unsloth takes several processes out of accelerate where it sees one
        # card (models/_utils.py of 2026.10.9), and each of ours sees one.
        several = {"WORLD_SIZE": str(settings.processes)} if settings.processes > 1 else {}
        with this_machine.variables(several):
            _start_unsloth(on_cpu=settings.hardware.device == "cpu")
    import torch

    torch.set_num_threads(int(settings.hardware.num_threads))
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    # Its advice is about settings that are made here on purpose.
    logging.getLogger("trl").setLevel(logging.ERROR)


def import_trainer() -> None:
    """Import what `load` needs, after `start`: a second or two, while the caller waits for another process anyway."""
    from peft import get_peft_model  # noqa: F401
    from transformers import AutoModelForCausalLM  # noqa: F401
    from trl import SFTConfig, SFTTrainer  # noqa: F401


def _start_unsloth(on_cpu: bool) -> None:
    """Import Unsloth with what it must find in its environment. MachineError when it fails, or takes the CPU for a GPU.

    It writes code at import, when no run directory is there yet (and `--check` makes none): into a folder of this
    process's own, which goes with it; two runs at once do not write into each other's.
    """
    kept = contextlib.ExitStack()
    atexit.register(kept.close)
    compiled = str(kept.enter_context(temporary.folder("unsloth")))
    os.environ["UNSLOTH_COMPILE_LOCATION"] = compiled  # else a folder where the caller stands
    # Else a Hub download that can hang for two minutes.
    os.environ["UNSLOTH_DISABLE_STATISTICS"] = "1"
    os.environ["UNSLOTH_AUTO_INSTALL"] = "0"  # else saving may answer "yes" to apt-get and pip
    # On its own it trains on the CPU where it finds no accelerator: never unasked.
    os.environ["UNSLOTH_FORCE_CPU" if on_cpu else "UNSLOTH_DISABLE_CPU_FALLBACK"] = "1"
    try:
        import unsloth  # noqa: F401
    # Its import runs code that fails in many ways: all mean the same here.
    except (Exception, SystemExit) as error:
        reason = first_line(error, "no reason given")
        raise MachineError(
            f"Unsloth cannot be imported ({type(error).__name__}: {reason}). Repair it: remove .venv and run "
            f"`ENGINE=unsloth {shell.command('setup.sh')}`; or set ENGINE = transformers in [Hardware] (slower)"
        ) from error


def tokenizer(base: BaseModel) -> PreTrainedTokenizerBase:
    """The base model's own tokenizer, from its local folder."""
    found = load_tokenizer(base.path)
    _keeps_spaces(found, base)
    return found


def _keeps_spaces(tokenizer: PreTrainedTokenizerBase, base: BaseModel) -> None:
    """UserError for a tokenizer that transformers reads as another kind than it is: it gives all text without spaces."""
    text = "This is how a text comes back."
    ids = tokenizer.encode(text, add_special_tokens=False)
    back = str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))
    if " " in back.strip() or "".join(back.split()) != text.replace(" ", ""):
        return
    file = base.path / "tokenizer_config.json"
    named = type(tokenizer).__name__
    raise UserError(
        f"{base.name}: its tokenizer loses the spaces: {text!r} comes back as {back!r}. transformers has taken it for a "
        f"{named}: tokenizer_class in {file} is wrong for this tokenizer.json; set it to PreTrainedTokenizerFast"
    )


def load(
    base: BaseModel,
    settings: Settings,
    longest: int,
    own: PreTrainedTokenizerBase | None = None,
    empty: bool = False,
) -> Loaded:
    """Load the base model and put a fresh LoRA adapter on it, seeded.

    `longest` is the longest row in tokens; it decides the attention on a CPU. `own`: the model's own tokenizer, where
    it is loaded already; both engines keep it, for the rows were made with it. `empty`: without any weights, for a rank
    that gets its share of them from another (sharding.spread). Raises RunError when the weights cannot be read or no
    module fits TARGET_MODULES.
    """
    from transformers import set_seed

    set_seed(settings.training.seed)
    try:
        own = own or tokenizer(base)
        if settings.hardware.engine == "unsloth":
            return _load_unsloth(base, settings, own)
        return _load_transformers(base, settings, longest, own, empty)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise RunError("model", f"{base.name} cannot be loaded for training: {error}") from error


def lora(settings: Settings) -> dict[str, Any]:
    """The adapter's parameters, under the names that PEFT and Unsloth share."""
    adapter = settings.lora
    modules = list(adapter.target_modules)
    return {
        "r": adapter.r,
        "lora_alpha": adapter.lora_alpha,
        "lora_dropout": adapter.lora_dropout,
        "bias": adapter.bias,
        "target_modules": modules[0] if modules == ["all-linear"] else modules,
        "use_rslora": adapter.use_rslora,
        "use_dora": adapter.use_dora,
    }


def _load_transformers(
    base: BaseModel, settings: Settings, longest: int, tokenizer: PreTrainedTokenizerBase, empty: bool
) -> Loaded:
    from peft import LoraConfig, get_peft_model
    from transformers import set_seed
    from trl import SFTConfig, SFTTrainer

    model = (_empty_model if empty else _base_model)(base, settings, longest)
    # As Unsloth does: the same first values of the adapter on both engines.
    set_seed(settings.training.seed)
    # autocast_adapter_dtype keeps the adapter in float32: in bf16 small updates would be rounded away.
    with lora_adapter.tying_known():
        config = LoraConfig(task_type="CAUSAL_LM", **lora(settings))
        # A PeftMixedModel it is only where that is asked for.
        adapted = cast("PeftModel", get_peft_model(model, config, autocast_adapter_dtype=True))
    if settings.lora.use_dora and not empty:
        _require_lengths(adapted)
    # PEFT would write the whole matrix of a targeted head or embedding beside what is trained, in every checkpoint.
    save = functools.partial(adapted.save_pretrained, save_embedding_layers=False)
    adapted.save_pretrained = save  # type: ignore[method-assign]  # for this model alone
    return Loaded(model=adapted, tokenizer=tokenizer, trainer_class=SFTTrainer, config_class=SFTConfig)


def _base_model(base: BaseModel, settings: Settings, longest: int) -> PreTrainedModel:
    """The frozen model, by transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {"attn_implementation": _attention(settings, longest)}
    if settings.quantization.load_in_4bit:
        options["quantization_config"] = four_bit.config(getattr(torch, DTYPES[settings.hardware.precision]))
    with leftovers.kept_out(base.path) as folder:
        loaded = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=_dtype(settings),
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            trust_remote_code=settings.model.trust_remote_code,
            device_map=device_map(settings),
            **options,
        )
    # Two things, because of output_loading_info.
    model, info = cast("tuple[PreTrainedModel, LoadingInfo]", loaded)
    weights_fit.require(info, base.path)
    _name(model, base, folder)
    model.config.use_cache = False
    return model


def _empty_model(base: BaseModel, settings: Settings, longest: int) -> PreTrainedModel:
    """The same without weights: its parameters have shapes alone, and its buffers, which no file has, their values."""
    import torch
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    trust = settings.model.trust_remote_code
    config = AutoConfig.from_pretrained(base.path, local_files_only=True, trust_remote_code=trust)
    with init_empty_weights(include_buffers=False):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config,
            dtype=_dtype(settings),
            attn_implementation=_attention(settings, longest),
            trust_remote_code=trust,
        )
    # What stood in two places was put to rest in each by itself.
    model.tie_weights()
    if settings.quantization.load_in_4bit:
        how = four_bit.config(getattr(torch, DTYPES[settings.hardware.precision]))
        four_bit.without_weights(model, how, _dtype(settings))
    model.config.use_cache = False
    return model


def _dtype(settings: Settings) -> torch.dtype:
    """Of the frozen weights. fp16 training scales the loss over float32 weights; bf16 weights are trained as they are."""
    import torch

    on_cpu = settings.hardware.device == "cpu"
    if settings.hardware.precision in ("fp16", "fp32") and on_cpu:
        return torch.float32
    found: torch.dtype = getattr(torch, DTYPES[settings.hardware.precision])
    return found


def _attention(settings: Settings, longest: int) -> str:
    return "eager" if settings.hardware.device == "cpu" and longest <= EAGER_UP_TO else "sdpa"


def device_map(settings: Settings) -> dict[str, str] | None:
    """The device map of transformers: the one card that is visible, by its number; none for the CPU's memory.

    Without the number accelerate refuses to train a model in 4 bits in several processes, as one on another device. A model
    that is spread goes to the cards by shares, from the CPU's memory: that is named, for one in 4 bits would go to a card.
    """
    kind = settings.hardware.device.partition(":")[0]
    if kind == "cpu":
        return None
    return {"": "cpu" if settings.hardware.sharding != "none" else f"{kind}:0"}


def trained_dtypes(model: PeftModel) -> dict[str, torch.dtype]:
    """The dtype of every trained parameter, by name."""
    return {name: value.dtype for name, value in model.named_parameters() if value.requires_grad}


def put_back_dtypes(model: PeftModel, dtypes: Mapping[str, torch.dtype]) -> None:
    """Trained parameters that were narrowed in these dtypes again, before an optimizer is made of them.

    TRL's trainer casts them to bf16 where the base is in 4 bits (trl 1.14.2, sft_trainer.py): small updates would be
    rounded away, AdamW's moments would be in bf16 too, a resumed run, whose adapter PEFT loads in float32, would differ
    from an undisturbed one, and fp16's loss scaler cannot unscale bf16 gradients. Unsloth takes that cast out on a card
    and leaves it on a CPU.
    """
    for name, value in model.named_parameters():
        if name in dtypes and value.dtype.itemsize < dtypes[name].itemsize:
            value.data = value.data.to(dtypes[name])


def _require_lengths(model: PeftModel) -> None:
    """DoRA divides by the length of each row of a weight: RunError for one of zeros, whose loss would be no number."""
    for name, length in model.named_parameters():
        if ".lora_magnitude_vector." in name and not length.detach().all():
            module = name.partition(".lora_magnitude_vector.")[0].removeprefix("base_model.model.")
            reason = f"{module} has a row of zeros, and USE_DORA divides by the length of each row"
            raise RunError("model", f"{reason}; leave it out of TARGET_MODULES, or set USE_DORA = false")


def _load_unsloth(base: BaseModel, settings: Settings, tokenizer: PreTrainedTokenizerBase) -> Loaded:
    from unsloth import FastLanguageModel  # isort: skip  first, for it patches the others

    from trl import SFTConfig, SFTTrainer

    with leftovers.kept_out(base.path) as folder:
        model, _ = FastLanguageModel.from_pretrained(**_unsloth_model(folder, settings))
    _name(model, base, folder)
    if settings.quantization.load_in_4bit and not getattr(model, "is_loaded_in_4bit", False):
        logger.warning("Unsloth has loaded the model in 16 bit: bitsandbytes does not work on this machine")
    model = FastLanguageModel.get_peft_model(model, **_unsloth_adapter(settings))
    # Unsloth may change the padding token of its own tokenizer: ours stays.
    return Loaded(model=model, tokenizer=tokenizer, trainer_class=SFTTrainer, config_class=SFTConfig)


def _name(model: PreTrainedModel, base: BaseModel, folder: Path) -> None:
    """A model read through links to its folder is called by the folder itself, which the adapter names as its base."""
    if folder != base.path:
        model.name_or_path = model.config.name_or_path = str(base.path)


def _unsloth_model(folder: Path, settings: Settings) -> dict[str, object]:
    """What FastLanguageModel.from_pretrained is told. Its GPU classes have other defaults than its CPU ones."""
    import torch

    return {
        "model_name": str(folder),  # absolute: a relative name is asked of the Hub
        "max_seq_length": settings.model.max_seq_length,
        "dtype": getattr(torch, DTYPES[settings.hardware.precision]),
        "load_in_4bit": settings.quantization.load_in_4bit,
        "load_in_8bit": False,
        "full_finetuning": False,
        # It may look for a repaired one on the Hub, and none of its tokenizers is used.
        "fix_tokenizer": False,
        "trust_remote_code": settings.model.trust_remote_code,
        "use_gradient_checkpointing": _unsloth_checkpointing(settings),
        "use_exact_model_name": True,  # else it swaps in a 4-bit mirror of its own
        "offload_embedding": False,
        "fast_inference": False,
        "random_state": settings.training.seed,
    }


def _unsloth_adapter(settings: Settings) -> dict[str, object]:
    """What FastLanguageModel.get_peft_model is told; use_dora goes on to PEFT's LoraConfig."""
    return {
        **lora(settings),
        "modules_to_save": None,
        "init_lora_weights": True,
        "use_gradient_checkpointing": _unsloth_checkpointing(settings),
        "random_state": settings.training.seed,
    }


def _unsloth_checkpointing(settings: Settings) -> str | bool:
    """Its own way keeps the layers' inputs in the machine's memory; below 512 tokens it takes the plain one by itself."""
    return False if settings.training.gradient_checkpointing is False else "unsloth"
