"""What is to be evaluated or talked to: a run, an adapter, a GGUF file or a base model, with all that asking it needs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from loguru import logger

from training import base_model, runs
from training.base_model import BaseModel, kept_files, model_json
from training.data import ChatTemplate, chat_template
from training.data.encoding import end_ids
from training.errors import RunError, UserError
from training.runs import Handover
from training.settings import Settings, load
from training.settings.table import Model
from training.system import paths

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class Target:
    """`base`: the base model's folder. `adapter`, `gguf`: what was made of it, as far as it is there.

    `template`: None where the model was trained on plain text. `longest`: tokens of a row or a talk.
    """

    base: Path
    adapter: Path | None = None
    gguf: Path | None = None
    template: ChatTemplate | None
    end_ids: list[int]
    longest: int
    settings: Settings

    @classmethod
    def named(cls, lora_model: str | None, base: str | None, config: Path) -> Target:
        """What the command line names. UserError where it names nothing, MachineError where the base is out of reach.

        config: the settings (template, system prompt, length) of what is not a run's.
        """
        cls.refuse_early(lora_model, base)
        if lora_model is not None:
            return _of_lora_model(lora_model, base, config)
        assert base is not None
        return _of_base(base, config)

    @staticmethod
    def refuse_early(lora_model: str | None, base: str | None) -> None:
        """Raise what `named` raises where nothing is named, or it is not there: before anything heavy is loaded."""
        if lora_model is None and base is None:
            raise UserError("name what is to be asked: --lora-model RUN, --base-model B, or both")
        if lora_model is not None and not paths.expanded(lora_model).absolute().exists():
            raise UserError(f"--lora-model {lora_model}: no such file or folder")

    @classmethod
    def of_run(cls, path: Path) -> Target:
        """What a run's directory holds. UserError where the run has no adapter yet."""
        handover = Handover.of_run(path)
        gguf = handover.quantised(handover.settings.quantization.quantization_method[0])
        return cls(
            base=handover.facts.base.path,
            adapter=path / runs.ADAPTER,
            gguf=gguf if gguf.is_file() else None,
            template=handover.template,
            end_ids=handover.facts.end_ids,
            longest=handover.facts.num_ctx,
            settings=handover.settings,
        )

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The base model's own tokenizer. RunError where its folder has gone."""
        if not self.has_base:
            raise RunError("evaluate", f"the base model is no longer at {self.base}; name it with --base-model")
        return base_model.load_tokenizer(self.base)

    @property
    def has_base(self) -> bool:
        """Whether the base model is still in its folder."""
        return (self.base / "config.json").is_file()


def _of_lora_model(lora_model: str, base: str | None, config: Path) -> Target:
    """A run's folder, a file of it, an adapter or a GGUF file; with `base` named for it, or the one that it names itself."""
    path = paths.expanded(lora_model).absolute()
    if path.is_symlink():  # OUTPUT_DIR/lora_adapter
        path = path.resolve()
    if not path.exists():
        raise UserError(f"--lora-model {lora_model}: no such file or folder")
    if pipes := kept_files.pipes(path):
        raise UserError([f"--lora-model {lora_model}: {pipe}" for pipe in pipes])
    run = path.parent if path.name in (runs.ADAPTER, runs.MERGED) or path.suffix == ".gguf" else path
    if (run / runs.STATUS).is_file():
        target = Target.of_run(run)
        if path.suffix == ".gguf":
            target = replace(target, gguf=path)
        return replace(target, base=_locate(base).path) if base else target
    if path.suffix == ".gguf":
        if base is None:
            raise UserError(
                f"--lora-model {lora_model}: is in no run's folder, so --base-model must name its base model"
            )
        return replace(_of_base(base, config), gguf=path)
    file = path / "adapter_config.json"
    if not file.is_file():
        raise UserError(f"--lora-model {lora_model}: is neither a run's folder, nor an adapter, nor a .gguf file")
    named = base or model_json.read(file).get("base_model_name_or_path")
    if not named:
        raise UserError(f"{file} names no base model: name it with --base-model")
    return replace(_of_base(named, config), adapter=path)


def _of_base(name: str, config: Path) -> Target:
    base = _locate(name)
    settings = load(config, check_files=False)
    tokenizer = base_model.load_tokenizer(base.path)
    template = chat_template.choose(base, settings, tokenizer)
    return Target(
        base=base.path,
        template=template,
        end_ids=end_ids(template, tokenizer, base),
        longest=min(settings.model.max_seq_length, base.max_length or settings.model.max_seq_length),
        settings=settings,
    )


def _locate(name: str) -> BaseModel:
    path = paths.expanded(name)
    wanted = Model(base_model_name=str(path.absolute()) if path.exists() else name)
    return base_model.locate(wanted, say=logger.info)
