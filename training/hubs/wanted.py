"""What is asked of a hub, in the words of messages; and the line that asks the other hub for it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from training.errors import MachineError

MODEL = "BASE_MODEL_NAME"
OTHER = {"hf": ("ms", "ModelScope"), "ms": ("hf", "the Hugging Face Hub")}


class Unreachable(MachineError):
    """No answer from a hub, or none that is its own."""


@dataclass(frozen=True)
class Wanted:
    """A model, or a data set where `setting` names one. `rest`: what stands behind its name in the setting."""

    name: str
    revision: str | None = None
    setting: str = MODEL
    rest: str = ""

    @property
    def is_model(self) -> bool:
        """Whether it is a model."""
        return self.setting == MODEL

    @property
    def noun(self) -> str:
        """What it is."""
        return "model" if self.is_model else "data set"

    @property
    def kind(self) -> str:
        """The same as both hubs have it in their addresses."""
        return "models" if self.is_model else "datasets"

    @property
    def instead(self) -> str:
        """What would do without a hub."""
        return "name a local folder" if self.is_model else "name a local file"

    @property
    def at(self) -> str:
        """The revision, behind the name."""
        return f" at the revision {self.revision}" if self.revision else ""

    def elsewhere(self, hub: str) -> str:
        """The setting that asks the other hub, where this one does not answer: names are often the same on both."""
        other, called = OTHER[hub]
        prefix = "" if other == "hf" and self.is_model else f"{other}:"
        return f"{called} may have it under the same name: {before_value(self.setting)}{prefix}{self.name}{self.rest}"


def before_value(setting: str) -> str:
    """What stands in front of a value: a setting's name as a file has it, or a flag."""
    return f"{setting} " if setting.startswith("--") else f"{setting} = "


def megabytes(size: int | None) -> str:
    """A size for people."""
    return "an unknown number of bytes" if size is None else f"{size / 1e6:,.0f} MB"


def enough_disk(name: str, size: int | None, cache: Path, variable: str) -> None:
    """MachineError where a download does not fit beside what is in the cache, which `variable` moves."""
    while not cache.exists():
        cache = cache.parent
    free = shutil.disk_usage(cache).free
    if size and size > free:
        raise MachineError(
            f"{name} takes {megabytes(size)}, {cache} has {megabytes(free)} left: free some, or move {variable}"
        )
