"""What is to be evaluated or talked to: a run, an adapter, a GGUF file or a base model, with all that asking it needs."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loguru import logger

from training import base_model, runs, settings
from training.base_model import kept_files
from training.data import chat_template
from training.data.encoding import end_ids
from training.errors import RunError, UserError
from training.runs import Handover
from training.settings.table import Model


@dataclass(frozen=True)
class Subject:
    """`base`: the base model's folder. `adapter`, `gguf`: what was made of it, as far as it is there.

    `template`: None where the model was trained on plain text. `longest`: tokens of a row or a talk.
    """

    base: Path | None
    adapter: Path | None
    gguf: Path | None
    template: Any
    end_ids: list[int]
    longest: int
    settings: Any


def find(lora_model: str | None, base: str | None, config: Path) -> Subject:
    """The subject that the command line names. UserError where it names none, MachineError where the base is out of reach.

    config: the settings (template, system prompt, length) of what is not a run's.
    """
    if lora_model is None and base is None:
        raise UserError("name what is to be asked: --lora-model RUN, --base-model B, or both")
    if lora_model is None:
        return _of_base(base, config)
    path = Path(lora_model).expanduser().absolute()
    if not path.exists():
        raise UserError(f"--lora-model {lora_model}: no such file or folder")
    if pipes := kept_files.pipes(path):
        raise UserError([f"--lora-model {lora_model}: {pipe}" for pipe in pipes])
    run = path.parent if path.name in (runs.ADAPTER, runs.MERGED) or path.suffix == ".gguf" else path
    if (run / runs.STATUS).is_file():
        found = of_run(run)
        if path.suffix == ".gguf":
            found = replace(found, gguf=path)
        return replace(found, base=_locate(base).path) if base else found
    if path.suffix == ".gguf":
        if base is None:
            raise UserError(
                f"--lora-model {lora_model}: is in no run's folder, so --base-model must name its base model"
            )
        return replace(_of_base(base, config), gguf=path)
    file = path / "adapter_config.json"
    if not file.is_file():
        raise UserError(f"--lora-model {lora_model}: is neither a run's folder, nor an adapter, nor a .gguf file")
    named = base or json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not named:
        raise UserError(f"{file} names no base model: name it with --base-model")
    return replace(_of_base(named, config), adapter=path)


def of_run(path: Path) -> Subject:
    """The subject of a run's directory. UserError where the run has no adapter yet."""
    job = Handover.of_run(path)
    gguf = job.quantised(job.settings.quantization.quantization_method[0])
    return Subject(
        job.facts.base.path,
        path / runs.ADAPTER,
        gguf if gguf.is_file() else None,
        job.template,
        job.facts.end_ids,
        job.facts.num_ctx,
        job.settings,
    )


def _of_base(name: str, config: Path) -> Subject:
    from transformers import AutoTokenizer

    found = _locate(name)
    given = settings.load(config, check_files=False)
    tokenizer = AutoTokenizer.from_pretrained(found.path, local_files_only=True)
    template = chat_template.choose(found, given, tokenizer)
    longest = min(given.model.max_seq_length, found.max_length or given.model.max_seq_length)
    return Subject(found.path, None, None, template, end_ids(template, tokenizer, found), longest, given)


def _locate(name: str) -> Any:
    path = Path(name).expanduser()
    wanted = Model(base_model_name=str(path.absolute()) if path.exists() else name)
    return base_model.locate(wanted, say=logger.info)


def tokenizer(subject: Subject) -> Any:
    """The base model's own tokenizer. RunError where its folder has gone."""
    from transformers import AutoTokenizer

    if subject.base is None or not (subject.base / "config.json").is_file():
        raise RunError("evaluate", f"the base model is no longer at {subject.base}; name it with --base-model")
    return AutoTokenizer.from_pretrained(subject.base, local_files_only=True)
