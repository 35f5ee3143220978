"""The settings of a run: loaded from a file and the command line, and written back. The table of them: sections.py."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training import contradictions, ini, names, values
from training.errors import UserError
from training.sections import SECTIONS, TABLE, Dataset, Hardware, Item, LoRA, Model, Quantization, Training
from training.values import Given


@dataclass(frozen=True)
class Override:
    """A setting given beside the file. `source` says how: "--epochs", "--set LoRA.R", "argument 4 (EPOCHS)"."""

    section: str
    key: str
    value: str
    source: str


@dataclass(frozen=True)
class Settings:
    """The settings of a run. Equal when all values are; where a value came from does not count."""

    model: Model
    lora: LoRA
    dataset: Dataset
    training: Training
    quantization: Quantization
    hardware: Hardware
    config: Path = field(compare=False)
    origins: Mapping[str, str] = field(compare=False)  # Section.KEY -> origin, of all that was given
    choices: tuple[tuple[str, Any, str], ...] = field(default=(), compare=False)  # (Section.KEY, value, reason)

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
        item = TABLE[key]
        return getattr(getattr(self, item.section.lower()), item.key.lower())

    def origin(self, key: str) -> str:
        """Where the value of "Section.KEY" came from: "default", "config.ini:14", "--epochs", "automatic: <reason>"."""
        chosen = {name: reason for name, _, reason in self.choices}
        return f"automatic: {chosen[key]}" if key in chosen else self.origins.get(key, "default")

    def default(self, key: str) -> Any:
        """The default of "Section.KEY"; paths start where the settings file is."""
        return _default(TABLE[key], self.config.parent)

    def written(self, key: str) -> bool:
        """Whether somebody chose this value: on the command line, or in the file and other than the default.

        The shipped file shows every default; nobody is to be held to what he did not change.
        """
        origin = self.origins.get(key, "default")
        if origin == "default" or any(key == name for name, _, _ in self.choices):
            return False
        return not origin.startswith(f"{self.config.name}:") or self.get(key) != self.default(key)

    def with_choice(self, key: str, value: Any, reason: str) -> Settings:
        """These settings with an automatic choice filled in; a later choice for the same key takes its place."""
        item = TABLE[key]
        section = dataclasses.replace(getattr(self, item.section.lower()), **{item.key.lower(): value})
        choices = tuple(choice for choice in self.choices if choice[0] != key)
        return dataclasses.replace(
            self, **{item.section.lower(): section}, choices=(*choices, (key, value, " ".join(reason.split())))
        )

    def place(self, key: str) -> str:
        """A setting for an error message, with where it was given: "config.ini:14: [LoRA] R = 0"."""
        return _place(TABLE[key], ini.show(values.write(self.get(key))), self.origins.get(key, "default"))

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """All values by section and KEY, as JSON has them: paths as text, lists as lists."""
        record: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
        for key, item in TABLE.items():
            record[item.section][item.key] = _plain(self.get(key))
        return record

    def differences(self) -> list[tuple[str, Any, Any, str]]:
        """What is not at its default: (Section.KEY, value, default, origin), values as in as_dict()."""
        rows = [(key, self.get(key), self.default(key), self.origin(key)) for key in TABLE]
        return [(key, _plain(now), _plain(then), origin) for key, now, then, origin in rows if now != then]

    def to_ini(self) -> str:
        """The text of a settings file that load() reads back to equal settings, with the origin of each value."""
        lines = ["# The effective settings of a run; this file can be given to ./run.sh --config."]
        for section in SECTIONS:
            lines += ["", f"[{section}]"]
            for item in (item for item in TABLE.values() if item.section == section):
                text = values.write(self.get(item.name))
                text = text if item.rule.one_of else ini.quote(text)
                origin = ini.show(self.origin(item.name), 200).replace("{", "(").replace("}", ")")  # no template
                lines.append(f"{item.key} = {text}  # {origin}")
        return "\n".join(lines) + "\n"


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value


def _default(item: Item, folder: Path) -> Any:
    return values.read(Given(values.write(item.rule.default), folder), item.rule, item.kind)


def _place(item: Item, text: str, origin: str) -> str:
    if origin.startswith("--"):
        return f"{origin}={text}" if origin.startswith("--set ") else f"{origin} {text}"
    if origin.startswith("argument "):
        return f"{origin} = {text}"
    setting_and_value = f"[{item.section}] {item.key} = {text}" if text else f"[{item.section}] {item.key} is empty"
    return setting_and_value if origin == "default" else f"{origin}: {setting_and_value}"


def load(
    config: Path, overrides: Sequence[Override] = (), *, check_files: bool = True, check_packages: bool = False
) -> Settings:
    """The settings of a file, the overrides put over it, the last one first.

    `check_files`: the files they name must be there; not so for the record of an old run. `check_packages`: the
    package of REPORT_TO must be installed; false before the set-up. Raises UserError with all problems at once.
    """
    config = Path(os.path.abspath(config))  # noqa: PTH100 - resolve() would follow a link away from the relative paths
    file = ini.read(config)
    found, lines, others = _collect(file, config, overrides)
    problems = lines + [(line, f"{config.name}:{line}: {reason}") for line, reason in file.problems]
    sections: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    bad: set[str] = set()
    for key, item in TABLE.items():
        given, line, origin = found.get(key, (Given(values.write(item.rule.default), config.parent), 0, "default"))
        value = _default(item, Path("/"))  # stands in for a value that cannot be read
        try:
            value = values.read(given, item.rule, item.kind)
            reason = values.missing(value, item.rule) if check_files else ""
        except ValueError as error:
            reason = str(error)
        if reason:
            bad.add(key)
            message = f"{_place(item, ini.show(given.text), origin)}: {reason}"
            (problems.append((line, message)) if line else others.append(message))
        sections[item.section][item.key.lower()] = value
    origins = {key: origin for key, (_, _, origin) in found.items()}
    made = [cls(**sections[section]) for section, cls in SECTIONS.items()]
    settings = _without_others_rows(Settings(*made, config=config, origins=origins))
    for keys, message in contradictions.find(settings, bad, check_packages):
        line = found[keys[0]][1] if keys[0] in found else 0
        (problems.append((line, message)) if line else others.append(message))
    _raise_all([message for _, message in sorted(problems)] + others, config)
    return settings


def _without_others_rows(settings: Settings) -> Settings:
    """Rows given on the command line are not measured on the validation rows that the file names for its own rows."""
    own_file = f"{settings.config.name}:"
    data = settings.origins.get("Dataset.DATASET_FILE", own_file)
    held_out = settings.origins.get("Dataset.VALIDATION_FILE", "")
    if data.startswith(own_file) or not held_out.startswith(own_file) or settings.dataset.validation_file is None:
        return settings
    reason = f"{data} gives other rows than the file, whose validation rows do not belong to them"
    return settings.with_choice("Dataset.VALIDATION_FILE", None, reason)


def _collect(
    file: ini.Ini, config: Path, overrides: Sequence[Override]
) -> tuple[dict[str, tuple[Given, int, str]], list[tuple[int, str]], list[str]]:
    """What was given for each Section.KEY, with its line (0: not in the file) and origin; and the unknown names."""
    found: dict[str, tuple[Given, int, str]] = {}
    problems = [
        (line, f"{config.name}:{line}: [{ini.show(section)}] is not a section{_near(section, SECTIONS)}")
        for section, line in file.sections.items()
        if section not in SECTIONS
    ]
    for entry in file.entries:
        key = f"{entry.section}.{entry.key}"
        origin = f"{config.name}:{entry.line}"
        if key in TABLE:
            found[key] = (Given(entry.value, config.parent, entry.quoted, entry.comment), entry.line, origin)
        elif entry.section in SECTIONS:
            problems.append((entry.line, f"{origin}: {unknown_key(entry.section, entry.key)}"))
    others = []
    for given in overrides:
        key = f"{given.section}.{given.key}"
        if key in TABLE:
            found[key] = (Given(given.value, here()), 0, given.source)
        elif given.section in SECTIONS:
            others.append(f"{given.source}: {unknown_key(given.section, given.key)}")
        else:
            others.append(
                f"{given.source}: [{ini.show(given.section)}] is not a section{_near(given.section, SECTIONS)}"
            )
    return found, problems, others


def _near(word: str, options: Any) -> str:
    return names.did_you_mean(word, options, f"there are {', '.join(options)}")


def unknown_key(section: str, key: str) -> str:
    """What to say of a key that is not in the section. Its value is not shown: it may be a token."""
    message = f"[{section}] {ini.show(key)} is not a setting"
    if "TOKEN" in key.upper() or key.upper().endswith("API_KEY"):
        return f"{message}; tokens are read from the environment (HF_TOKEN, WANDB_API_KEY), never from a file"
    elsewhere = [item.section for item in TABLE.values() if item.key == key.upper() and item.section != section]
    if elsewhere:
        return f"{message}; {key.upper()} belongs in [{elsewhere[0]}]"
    return message + names.did_you_mean(key, [item.key for item in TABLE.values() if item.section == section])


MOST_SHOWN = 50


def _raise_all(problems: Sequence[str], config: Path) -> None:
    if not problems:
        return
    count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
    shown = list(problems[:MOST_SHOWN])
    if len(problems) > MOST_SHOWN:
        shown.append(f"... and {len(problems) - MOST_SHOWN} more")
    raise UserError(shown, title=f"{_short(config)}: {count}")


def _short(path: Path) -> str:
    """The path from the current folder when it lies below it."""
    try:
        return ini.shown(path.relative_to(Path.cwd()))
    except (OSError, ValueError):
        return ini.shown(path)


def here() -> Path:
    """The caller's folder. Raises UserError when it is there no more."""
    try:
        return Path.cwd()
    except OSError:
        raise UserError("the folder you are in was removed; go to another one") from None


def clamp(settings: Settings, total_steps: int) -> Settings:
    """Fit the step settings to a run of `total_steps`, once that is known: defaults that are too long are shortened.

    Raises UserError naming each one that somebody wrote and that does not fit.
    """
    problems = [message for _, message in contradictions.too_long(settings, total_steps)]
    if problems:
        raise UserError(problems, title=f"{_short(settings.config)}: the run has {total_steps} steps")
    for key in contradictions.STEP_SETTINGS:
        value = settings.get(key)
        if key == "Training.WARMUP_STEPS" and not settings.written(key) and value >= total_steps:
            settings = settings.with_choice(key, total_steps // 10, f"the run has {total_steps} steps only")
        elif value > total_steps:
            settings = settings.with_choice(key, total_steps, f"the run has {total_steps} steps only")
    return settings
