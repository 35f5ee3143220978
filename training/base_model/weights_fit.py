"""Do the weights of a folder fit its config.json? Asked of transformers itself, which loads them without memory.

It reads names, shapes and dtypes from the files' headers and lets `from_pretrained` place tensors of that shape on the
"meta" device, so that its renamings, joined experts, tied heads and lists of what may be missing all count as they do
when the model is really loaded. What is missing there would be random numbers in the training, without a word.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from loguru import logger

from training.base_model import generation, model_folder, safetensors_file
from training.base_model.safetensors_file import Tensor
from training.errors import RunError, UserError
from training.system.wording import first_line

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
SEEING = ("vision", "visual", "audio")  # parts with layers of their own
# Masks and positions that older checkpoints hold although they follow from the configuration.
COMPUTED = (".attn.bias", ".attention.bias", "masked_bias", "inv_freq", "position_ids")
ROWS = 4096  # of an output layer, read at a time
REMEDY = "download the model again, or put the config.json there that belongs to these weights"


class LoadingInfo(TypedDict):
    """What is read of the second thing that `from_pretrained` gives with output_loading_info."""

    missing_keys: Collection[str]
    mismatched_keys: Collection[tuple[str, object, object]]


@dataclass(frozen=True)
class Loaded:
    """What transformers said of the names and shapes: `mismatched` is (name, found, asked for)."""

    model: PreTrainedModel
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]


def check(folder: Path, config: Mapping[str, object], trusted: bool = False) -> None:
    """Refuse a folder whose weights are not those of its config.json. UserError with everything that is wrong.

    Says nothing of a folder without weights (only its settings are here yet), nor of one whose architecture is code that
    comes with it (`trusted`: that code is run): what is loaded of those is looked at then. Imports torch.
    """
    if safetensors_file.source(folder) is None or not model_folder.known(config.get("model_type")):
        return
    if trusted and "auto_map" in config:
        return
    try:
        tensors = safetensors_file.tensors(folder, "model")
    except RunError as error:
        raise UserError(error.message) from None
    if quantised := _stored_otherwise(folder, tensors):
        raise UserError(quantised)
    _generation(folder)
    found = _load(folder, tensors)
    if problems := [f"{folder}: {problem}" for problem in _problems(found, tensors)]:
        raise UserError(problems)
    if strange := [name for name in found.unexpected if not _harmless(found.model, name)]:
        logger.warning(
            "{}: {}: no part of a {}; not trained, and the converter may refuse it",
            *(folder, _counted(strange), type(found.model).__name__),
        )


def check_dora(folder: Path, modules: Collection[str]) -> None:
    """Refuse DoRA on an output layer with a row of zeros (a padding token's, often): DoRA divides by the length of each row.

    UserError with the row. Of the layers inside the model, which seldom have one, engine.load looks at the lengths.
    """
    if "lm_head" not in modules or safetensors_file.source(folder) is None:
        return
    tensors = safetensors_file.tensors(folder, "model")
    ends = ("lm_head.weight", "embed_tokens.weight")
    head = next((tensor for end in ends for name, tensor in tensors.items() if name.endswith(end)), None)
    if head is None:
        return
    for start in range(0, head.rows, ROWS):
        block = safetensors_file.read_rows(head, start, min(start + ROWS, head.rows))
        if len(empty := (~block.any(dim=1)).nonzero()):
            raise UserError(
                f"{folder}: row {start + int(empty[0])} of {head.name} is all zeros, and USE_DORA divides by the length of "
                "each row; leave lm_head out of TARGET_MODULES, or set USE_DORA = false"
            )


def require(info: LoadingInfo, folder: Path) -> None:
    """RunError where `from_pretrained` (its loading info) had to make up a tensor that the files do not hold."""
    made_up = sorted([*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])])
    if made_up:
        raise RunError("model", f"{folder}: no file holds {_counted(made_up)}, or it has another shape; {REMEDY}")


def _stored_otherwise(folder: Path, tensors: Mapping[str, Tensor]) -> str | None:
    """Why weights of these dtypes are not trained: packed by a quantiser, or in 64 bits."""
    matrices = [tensor for tensor in tensors.values() if tensor.name.endswith("weight") and len(tensor.shape) > 1]
    strange = [tensor for tensor in matrices if tensor.dtype not in safetensors_file.FLOATS]
    if not strange:
        return None
    first = strange[0]
    where = f"{folder}: {first.name} in {first.file.name} is {first.dtype}"
    if all(tensor.dtype == "F64" for tensor in strange):
        return f"{where}, floats of 64 bits; save the model in 16 bits (model.to(torch.bfloat16).save_pretrained(...))"
    return f"{where}: its weights are quantized already; name the original in 16 bits (LOAD_IN_4BIT makes it small)"


def _load(folder: Path, tensors: Mapping[str, Tensor]) -> Loaded:
    import torch
    from transformers import AutoModelForCausalLM

    given = {
        name: torch.empty(tensor.shape, dtype=torch.bfloat16, device="meta")
        for name, tensor in tensors.items()
    }  # fmt: skip
    try:
        with _quiet():
            with torch.device("meta"):
                made = AutoModelForCausalLM.from_config(_config(folder), trust_remote_code=False)
            model, info = type(made).from_pretrained(
                None, config=made.config, state_dict=given, device_map={"": "meta"}, dtype=torch.bfloat16,
                output_loading_info=True, ignore_mismatched_sizes=True,
            )  # fmt: skip
    except RuntimeError as error:
        raise UserError(
            f"{folder}: its tensors cannot be put together as its config.json says: one of a group (experts, projections "
            f"that are joined) is missing or has another shape; {REMEDY}"
        ) from error
    except Exception as error:  # whatever the architecture's own code makes of wrong values
        first = first_line(error)
        raise UserError(f"{folder}: transformers makes no model that continues a text of it: {first}") from error
    mismatched = sorted((name, tuple(found), tuple(asked)) for name, found, asked in info["mismatched_keys"])
    return Loaded(model, _sorted(info["missing_keys"]), _sorted(info["unexpected_keys"]), tuple(mismatched))


def _generation(folder: Path) -> None:
    """UserError where transformers, which reads generation_config.json with the weights, would fail over it."""
    from transformers import GenerationConfig

    if not (folder / generation.FILE).is_file():
        return
    try:
        with _quiet():
            GenerationConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        first = first_line(error)
        raise UserError(f"{folder / generation.FILE}: transformers cannot read it: {first}") from error


def _config(folder: Path) -> PreTrainedConfig:
    from transformers import AutoConfig

    found: PreTrainedConfig = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return found


def _problems(found: Loaded, tensors: Mapping[str, Tensor]) -> Iterator[str]:
    own = tuple(name for name in found.unexpected if not _harmless(found.model, name) and _inside(found.model, name))
    asked, there = _layers_asked(found.model), _layers(tensors)
    if (found.missing or own) and there and asked and there != asked:
        yield f"config.json says num_hidden_layers = {asked}, the files hold {there} layers; {REMEDY}"
        return
    if found.missing == ("lm_head.weight",):
        yield (
            "config.json says tie_word_embeddings = false, and no file holds lm_head.weight; write true there if the model "
            "has one matrix for both, else download it again"
        )
    elif found.missing:
        yield f"no file holds {_counted(found.missing)} of the model that config.json describes; {REMEDY}"
    if own:
        yield f"the files hold {_counted(own)} that the model of config.json does not have; {REMEDY}"
    for name, shape, wanted in found.mismatched[:1]:
        more = len(found.mismatched) - 1
        others = f" (and {more} more differ)" if more else ""
        yield f"{name} is {list(shape)} in the files, and config.json asks for {list(wanted)}{others}; {REMEDY}"


def _counted(names: tuple[str, ...] | list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} tensors more"


def _layers(tensors: Mapping[str, Tensor]) -> int:
    """How many layers the files hold."""
    texts = [name for name in tensors if not any(part in name for part in SEEING)]
    return max((int(found[1]) + 1 for name in texts if (found := LAYER.search(name))), default=0)


def _layers_asked(model: PreTrainedModel) -> int:
    return getattr(model.config.get_text_config(), "num_hidden_layers", None) or 0


def _inside(model: PreTrainedModel, name: str) -> bool:
    """Whether a tensor that is not the model's lies in a layer, or in a module, that is: not so a part beside the model."""
    import torch

    modules = dict(model.named_modules())
    parts = name.split(".")
    above = [modules[place] for end in range(1, len(parts)) if (place := ".".join(parts[:end])) in modules]
    if any(isinstance(module, torch.nn.ModuleList) for module in above):
        return True
    owner = modules.get(name.rpartition(".")[0])
    return owner is not None and any(True for _ in owner.parameters(recurse=False))


def _harmless(model: PreTrainedModel, name: str) -> bool:
    """Whether a tensor that is not loaded is one that the model makes itself, or of a layer that guesses further tokens.

    Those layers (DeepSeek, GLM) follow the others; transformers leaves them out and the converter knows them.
    """
    if name.endswith(COMPUTED) or name in dict(model.named_buffers()):
        return True
    config, layer = model.config.get_text_config(), LAYER.search(name)
    first, guessing = _layers_asked(model), getattr(config, "num_nextn_predict_layers", None) or 0
    return layer is not None and first <= int(layer[1]) < first + guessing


def _sorted(names: set[str]) -> tuple[str, ...]:
    return tuple(sorted(names))


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers' report on what does not fit is told by us, and a bar for headers is of no use."""
    from transformers.utils import logging

    bar, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
