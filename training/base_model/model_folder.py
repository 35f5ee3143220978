"""Is a folder a model that can be trained? Looked at without loading it: its files, their lengths, its config.json."""

from __future__ import annotations

import difflib
import math
import runpy
from collections.abc import Mapping
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from training.base_model import kept_files, model_json, safetensors_file
from training.errors import MachineError, RunError, UserError
from training.system import shell
from training.system.wording import first_line

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")
WRITERS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")  # Gemma 3's larger models see pictures too


def find(path: Path) -> Path:
    """The model folder that a path means: itself, or `merged` in a finished run. UserError when it means none."""
    if not path.exists():
        raise UserError(f"{path} does not exist{_alike(path)}")
    if not path.is_dir():
        raise UserError(f"{path} is no folder and no .gguf file")
    if (path / "config.json").is_file():
        return path
    if (path / "status.json").is_file() or (path / "report.json").is_file():
        if (path / "merged" / "config.json").is_file():
            return path / "merged"
        raise UserError(f"{path} is a run without a merged model (not finished, or KEEP_MERGED = false)")
    if (path / "adapter_config.json").is_file():
        base = model_json.read(path / "adapter_config.json").get("base_model_name_or_path", "its base model")
        raise UserError(f"{path} is a LoRA adapter, no model: name the folder where it was merged, or {base}")
    # Not macOS's litter, ._x.gguf.
    if ggufs := sorted(file for file in path.glob("*.gguf") if not file.name.startswith(".")):
        raise UserError(f"{path} holds no config.json, but {ggufs[0].name}: name that file")
    raise UserError(f"{path} is no model folder: it holds no config.json")


def check(path: Path, trust_remote_code: bool = False) -> tuple[dict[str, Any], int]:
    """config.json and the number of parameters of a folder. UserError with everything that is wrong with it."""
    if unread := kept_files.problems(path):  # nothing is opened before
        raise UserError([f"{path}: {problem}" for problem in unread])
    if broken := model_json.problems(path):
        raise UserError(broken)
    config = model_json.read(path / "config.json")
    problems = [f"{path}: {problem}" for problem in config_problems(config, trust_remote_code)]
    if not any((path / name).is_file() for name in TOKENIZERS):
        problems.append(f"{path}: it has no tokenizer (none of {', '.join(TOKENIZERS)})")
    parameters = 0
    if safetensors_file.source(path) is None and (old := sorted(path.glob("*.bin")) + sorted(path.glob("*.pt*"))):
        problems.append(
            f"{path}: its weights are pickled ({old[0].name}), which can run code when read; safetensors are wanted: "
            "most models on the Hub have them by now, in the main branch or in a pull request (REVISION = refs/pr/1)"
        )
    else:
        try:
            parameters = sum(math.prod(tensor.shape) for tensor in safetensors_file.tensors(path).values())
        except RunError as error:
            problems.append(error.message)
    if problems:
        raise UserError(problems)
    return config, parameters


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Weight -> shape: from the headers of the files; of a model whose weights are not here yet, from its config.json."""
    if safetensors_file.source(path) is not None:
        return {name: tensor.shape for name, tensor in safetensors_file.tensors(path, "model").items()}
    return laid_out(model_json.read(path / "config.json"))


def laid_out(config: Mapping[str, object]) -> dict[str, tuple[int, ...]]:
    """Weight -> shape of the model that a config.json describes, laid out without memory. Imports torch.

    Empty where transformers does not know the architecture (code that comes with the model is not run for this).
    """
    if not known(config.get("model_type")):
        return {}
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    values = {key: value for key, value in config.items() if key not in ("model_type", "transformers_version")}
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(str(config["model_type"]), **values))
    except Exception as error:  # whatever the architecture's own code makes of wrong values
        first = first_line(error)
        raise UserError(f"transformers makes no model that continues a text of its config.json: {first}") from error
    return {name: tuple(value.shape) for name, value in model.named_parameters()}


def config_problems(config: Mapping[str, Any], trust_remote_code: bool = False) -> list[str]:
    """Why a model with this config.json cannot be trained here; nothing when it can."""
    problems = []
    kind, known = config.get("model_type"), _architectures()
    if method := config.get("quantization_config"):
        method = method.get("quant_method", "quantized") if isinstance(method, dict) else "quantized"
        problems.append(
            f"its weights are quantized already ({method}); name the original in 16 bits (LOAD_IN_4BIT makes it small)"
        )
    if named := config.get("transformers_weights"):
        problems.append(
            f"its config.json names its weights itself (transformers_weights = {named}), which llama.cpp's converter does "
            f"not read; call the file {safetensors_file.WHOLE} and take the line out"
        )
    if not isinstance(kind, str):
        problems.append("its config.json has no model_type")
    elif kind not in known and "auto_map" in config:
        if not trust_remote_code:
            problems.append(
                f'its architecture "{kind}" is Python code that comes with it; TRUST_REMOTE_CODE = true would run it'
            )
    elif kind not in known:
        near = difflib.get_close_matches(kind, known, 1)
        hint = f'; did you mean "{near[0]}"?' if near else ""
        problems.append(f'its architecture "{kind}" is unknown to the installed transformers{hint}')
    named = config.get("architectures") or []
    if named and (config.get("is_encoder_decoder") or not any(str(name).endswith(WRITERS) for name in named)):
        problems.append(f"{named[0]} is no model that continues a text; one that ends in ForCausalLM is wanted")
    return problems


def known(kind: object) -> bool:
    """Whether the installed transformers has the architecture (config.json's model_type) itself."""
    return isinstance(kind, str) and kind in _architectures()


@lru_cache
def _architectures() -> frozenset[str]:
    """The model types of the installed transformers, read from its table without importing it (3 s, and torch)."""
    spec = find_spec("transformers")
    if spec is None or not spec.origin:
        raise MachineError(f"transformers is not installed: run {shell.command('setup.sh')}")
    table = Path(spec.origin).parent / "models" / "auto" / "auto_mappings.py"
    if table.is_file():
        return frozenset(runpy.run_path(str(table))["CONFIG_MAPPING_NAMES"])
    from transformers.models.auto import configuration_auto

    return frozenset(configuration_auto.CONFIG_MAPPING_NAMES)  # type: ignore[attr-defined]  # handed on there, not listed


def _alike(path: Path) -> str:
    """A hint: what there is instead of a path that does not exist."""
    parent = path.parent
    while not parent.is_dir():
        path, parent = parent, parent.parent
    try:
        names = sorted(entry.name for entry in parent.iterdir() if not entry.name.startswith("."))
    except OSError:
        return ""
    if near := difflib.get_close_matches(path.name, names, 1, 0.6):
        return f"; did you mean {parent / near[0]}?"
    return f"; {parent} exists, without {path.name}"
