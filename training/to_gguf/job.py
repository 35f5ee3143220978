"""One run to export: what it is made of, and where its files go."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from training import llama, runs
from training.base_model import base_files, load_tokenizer
from training.errors import RunError
from training.ollama import Chat
from training.runs import Handover, checkpoint
from training.to_gguf.chat import chat_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class _Made(TypedDict):
    file: str
    method: str
    bytes: int


class FileRow(_Made, total=False):
    """A GGUF file in status.json: what quantising says of it, and, once it is checked, what quantising cost.

    See report.schema.Quantised for what the figures are.
    """

    fallback: str | None
    importance: bool
    kl: float | None
    top1: float | None
    perplexity: float | None
    perplexity_change: float | None


def _nobody(_share: float) -> None:
    """Nobody listens."""


@dataclass(frozen=True, kw_only=True)
class Job(Handover):
    """One run to export. `told` hears which part of a stage is done, from 0 to 1."""

    told: Callable[[float], None] = field(default=_nobody, repr=False, compare=False)

    @property
    def merged(self) -> Path:
        return self.run.path / runs.MERGED

    @functools.cached_property
    def words(self) -> PreTrainedTokenizerBase:
        """The merged model's tokenizer: a large one takes a second to load, and several stages and checks ask for it."""
        return load_tokenizer(self.merged)

    @property
    def base(self) -> Path:
        """The base model's folder. RunError when it has gone since the training, or is another one."""
        path = self.facts.base.path
        if not (path / "config.json").is_file():
            raise RunError(
                "merge", f"the base model is no longer at {path}; put it back, or train again", what_is_safe(self)
            )
        # Runs from before they were kept have none; a model of the Hub has its commit.
        if before := self.facts.base.files:
            self._require_same(path, before)
        return path

    def _require_same(self, path: Path, before: Mapping[str, str]) -> None:
        if changed := base_files.changed(before, base_files.digests(path, self.facts.base.kind)):
            what = f"{', '.join(changed)} of the base model in {path} {'is' if len(changed) == 1 else 'are'} not what was trained on"
            raise RunError("merge", f"{what}; put it back as it was, or train again", what_is_safe(self))

    @property
    def adds_bos(self) -> bool:
        """Whether the finished file's tokenizer puts BOS in front of a prompt by itself."""
        first = self.quantised(self.settings.quantization.quantization_method[0])
        return bool(llama.metadata(first)["vocab"]["add_bos"])

    def chat(self, adds_bos: bool) -> Chat | None:
        """How the model was trained to chat; None for plain text."""
        return chat_of(self.template, adds_bos) if self.template else None


def what_is_safe(job: Job) -> str:
    return checkpoint.adapter_is(job.run.path, again=True)
