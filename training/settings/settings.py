"""The settings of a run, frozen: what they are, and where each came from. Loaded by loading.py."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training.settings import ini_file, rules
from training.settings.rules import Given
from training.settings.table import (
    EVERY,
    SECTIONS,
    TABLE,
    Dataset,
    Hardware,
    Item,
    LoRA,
    Model,
    Quantization,
    Service,
    Training,
)

# Where a value comes from, beside a place such as config.ini:14 or --epochs.
DEFAULT, AUTOMATIC = "default", "automatic: "
IN_A_FILE = re.compile(r"(?!--|argument ).*:\d+")


@dataclass(frozen=True)
class Override:
    """A setting given beside the file. `source` says how: "--epochs", "--set LoRA.R", "argument 4 (EPOCHS)"."""

    section: str
    key: str
    value: str
    source: str
    literal: bool = False  # the text as it stands: no escapes, no @file


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of a run. Equal when all values are; where a value came from does not count."""

    model: Model
    lora: LoRA
    dataset: Dataset
    training: Training
    quantization: Quantization
    hardware: Hardware
    # Of the server, which is no part of a run: it is in no record.
    service: Service = field(default=Service(), compare=False)
    config: Path = field(compare=False)
    # By Section.KEY: where the values that somebody gave came from.
    origins: Mapping[str, str] = field(compare=False)
    # Automatic choices: (Section.KEY, value, reason).
    choices: tuple[tuple[str, object, str], ...] = field(default=(), compare=False)
    # What somebody had given where a choice has taken its place, by Section.KEY and as text.
    replaced: Mapping[str, str] = field(default_factory=dict, compare=False)
    # They are those of a run that has begun: nothing in them is fitted to it any more.
    began: bool = field(default=False, compare=False)

    @property
    def name(self) -> str:
        """NEW_MODEL_NAME as a part of file names."""
        return self.model.new_model_name.replace("/", "-").replace(":", "-")

    @property
    def processes(self) -> int:
        """Processes that train together, on all machines."""
        return self.hardware.num_machines * self.hardware.num_processes

    @property
    def rows_a_step(self) -> int:
        """Rows of one optimizer step, in all processes together."""
        training = self.training
        return self.processes * training.per_device_train_batch_size * training.gradient_accumulation_steps

    def steps_per_epoch(self, rows: int) -> int:
        """Optimizer steps in one pass over `rows` rows; the last one may hold fewer rows than the others."""
        batches = math.ceil(rows / (self.training.per_device_train_batch_size * self.processes))
        return max(1, math.ceil(batches / self.training.gradient_accumulation_steps))

    def total_steps(self, rows: int) -> int:
        """Optimizer steps of the whole run: MAX_STEPS, or what NUM_TRAIN_EPOCHS comes to."""
        if self.training.max_steps > 0:
            return self.training.max_steps
        return max(1, math.ceil(self.training.num_train_epochs * self.steps_per_epoch(rows)))

    def get(self, key: str) -> Any:
        """The value of "Section.KEY"."""
        item = EVERY[key]
        return getattr(getattr(self, item.section.lower()), item.key.lower())

    def origin(self, key: str) -> str:
        """Where the value of "Section.KEY" came from: "default", "config.ini:14", "--epochs", "automatic: <reason>"."""
        chosen = {name: reason for name, _, reason in self.choices}
        return f"{AUTOMATIC}{chosen[key]}" if key in chosen else self.origins.get(key, DEFAULT)

    def default(self, key: str) -> Any:
        """The default of "Section.KEY"; paths start where the settings file is."""
        return default_of(EVERY[key], self.config.parent)

    def written(self, key: str) -> bool:
        """Whether somebody chose this value: on the command line, or in the file and other than the default.

        The shipped file shows every default; nobody is to be held to what he did not change.
        """
        origin = self.origins.get(key, DEFAULT)
        if origin == DEFAULT or any(key == name for name, _, _ in self.choices):
            return False
        return not IN_A_FILE.fullmatch(origin) or self.get(key) != self.default(key)

    def with_choice(self, key: str, value: object, reason: str) -> Settings:
        """These settings with an automatic choice filled in; a later choice for the same key takes its place."""
        item = EVERY[key]
        section = dataclasses.replace(getattr(self, item.section.lower()), **{item.key.lower(): value})
        choices = tuple(choice for choice in self.choices if choice[0] != key)
        # The first of several choices takes the place of what was given.
        replaced = {key: rules.write(self.get(key)), **self.replaced} if key in self.origins else self.replaced
        return dataclasses.replace(
            self,
            **{item.section.lower(): section},
            choices=(*choices, (key, value, " ".join(reason.split()))),
            replaced=replaced,
        )

    def place(self, key: str) -> str:
        """A setting for an error message, with where it was given: "config.ini:14: [LoRA] R = 0"."""
        return place_of(EVERY[key], ini_file.show(rules.write(self.get(key))), self.origins.get(key, DEFAULT))

    def as_dict(self) -> dict[str, dict[str, object]]:
        """All values by section and KEY, as JSON has them: paths as text, lists as lists."""
        record: dict[str, dict[str, object]] = {section: {} for section in SECTIONS}
        for key, item in TABLE.items():
            record[item.section][item.key] = _plain(self.get(key))
        return record

    def differences(self) -> list[tuple[str, object, object, str]]:
        """What is not at its default: (Section.KEY, value, default, origin), values as in as_dict().

        A default that is a path starts elsewhere in a run's own file; it is one all the same.
        """
        rows = [(key, self.get(key), self.default(key), self.origin(key)) for key in TABLE]
        return [
            (key, _plain(now), _plain(then), origin)
            for key, now, then, origin in rows
            if now != then and origin != DEFAULT
        ]

    def to_ini(self) -> str:
        """The text of a settings file that load() reads back to equal settings, with the origin of each value."""
        lines = ["# The effective settings of a run; this file can be given to ./run.sh --config."]
        for section in SECTIONS:
            lines += ["", f"[{section}]"]
            for item in (item for item in TABLE.values() if item.section == section):
                text = rules.write(self.get(item.name))
                text = text if item.rule.one_of else ini_file.quote(text)
                # A brace in a comment is taken for a template without its quotation marks (rules.optional_text).
                origin = ini_file.show(self.origin(item.name), 200).replace("{", "(").replace("}", ")")
                lines.append(f"{item.key} = {text}  # {origin}")
        return "\n".join(lines) + "\n"


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value


def default_of(item: Item, folder: Path) -> Any:
    return rules.read(Given(rules.write(item.rule.default), folder), item.rule, item.kind)


def place_of(item: Item, text: str, origin: str) -> str:
    if origin.startswith("--"):
        return f"{origin}={text}" if origin.startswith("--set ") or ": " in origin else f"{origin} {text}"
    if origin.endswith("="):  # of a call in Python
        return f"{origin}{text}"
    if origin.startswith("argument "):
        return f"{origin} = {text}"
    setting_and_value = f"[{item.section}] {item.key} = {text}" if text else f"[{item.section}] {item.key} is empty"
    return setting_and_value if origin == DEFAULT else f"{origin}: {setting_and_value}"
