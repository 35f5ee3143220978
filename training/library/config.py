"""FineTuningConfig: the table of settings for Python, under guides' names and the file's own."""

from __future__ import annotations

import numbers
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from training.errors import MachineError, UserError
from training.settings import Override, Settings, ini_file, loading, other_names, rules
from training.settings.ini_file import Ini
from training.settings.table import TABLE
from training.system import files, paths

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from training.library.keywords import Keywords

NAME = "FineTuningConfig"


class FineTuningConfig:
    """The settings of a run, for Python.

        config = FineTuningConfig(model_name="Qwen/Qwen3-0.6B", output_dir="results", lora_r=16, num_train_epochs=3)

    Every setting of config.ini is a keyword by its own name in small letters (max_seq_length, warmup_steps, seed), and by
    the names that guides use: model_name, data_path, batch_size, num_epochs, use_wandb, fp16, bf16, ...; docs/python.md
    lists them. What is left out has its default; None leaves out. num_train_epochs sets the length, unless max_steps is
    given as well. Texts are taken as they stand, and relative paths start in the current folder.

    The settings can be read and set as attributes under the same names. Raises UserError with all that is wrong.
    """

    def __init__(self, **settings: Unpack[Keywords]) -> None:
        self._set(Ini(), loading.here() / NAME, settings)

    @classmethod
    def read(cls, path: str | os.PathLike[str], **changes: Unpack[Keywords]) -> FineTuningConfig:
        """The settings of a file such as config.ini, with changes; relative paths in it start where it lies."""
        made = cls.__new__(cls)
        file = paths.expanded(os.fspath(path)).absolute()
        loading.load(file, check_files=False)  # says what is wrong with the file itself
        made._set(ini_file.read(file), file, changes)
        return made

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write all settings, so that `./run.sh --config PATH` repeats the run. Gives the path."""
        file = paths.expanded(os.fspath(path)).absolute()
        if not file.parent.is_dir():
            raise UserError(f"{file} cannot be written: there is no folder {file.parent}")
        if file.is_dir():
            raise UserError(f"{file} cannot be written: it is a folder")
        try:
            files.write_text(file, self.settings.to_ini())
        except OSError as error:
            raise MachineError(f"{file} cannot be written: {error.strerror or error}") from None
        return file

    def replace(self, **changes: Unpack[Keywords]) -> FineTuningConfig:
        """A copy in which some settings are others."""
        made = type(self).__new__(type(self))
        made._set(self._file, self._place, self._given_with(changes))
        return made

    def _given_with(self, changes: Mapping[str, object]) -> dict[str, object]:
        new = {key for name in changes for key in keys_of(name)}
        kept = {name: value for name, value in self._given.items() if not new.intersection(keys_of(name))}
        return {**kept, **changes}

    def __setattr__(self, name: str, value: object) -> None:
        if name.startswith("_"):
            super().__setattr__(name, value)
        elif other_names.is_taken(name):
            self._set(self._file, self._place, self._given_with({name: value}))
        else:
            raise AttributeError(f"{name} is not a setting{other_names.hint(name, 'python')}")

    @property
    def settings(self) -> Settings:
        """All settings, frozen, by section."""
        return self._settings

    def checked(self) -> Settings:
        """The same, once the files that are named were seen to be there. Raises UserError."""
        return _loaded(self._file, self._place, self._given, check_files=True)

    def _set(self, file: Ini, place: Path, given: Mapping[str, object]) -> None:
        self._settings = _loaded(file, place, given, check_files=False)  # or nothing is changed
        self._file, self._place, self._given = file, place, dict(given)

    def __getattr__(self, name: str) -> object:
        if name.startswith("_") or not other_names.is_taken(name):
            raise AttributeError(f"{name} is not a setting{other_names.hint(name, 'python')}")
        word = other_names.plain(name)
        if word in other_names.IMPLIED:
            return all(_text(self.settings.get(key)) == value for key, value in other_names.IMPLIED[word]["true"])
        return self.settings.get(other_names.TAKEN[word])

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *(name.replace("-", "_") for name in other_names.TAKEN)]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FineTuningConfig) and self.settings == other.settings

    __hash__ = None  # type: ignore[assignment]  # equal ones may be of different files

    def __repr__(self) -> str:
        changed = ", ".join(
            f"{other_names.written(key, 'python')}={value!r}" for key, value, _, _ in self.settings.differences()
        )
        return f"{NAME}({changed})"


def _loaded(file: Ini, place: Path, given: Mapping[str, object], check_files: bool) -> Settings:
    problems: list[str] = []
    overrides = list(overrides_of(given, problems))
    return loading.of(file, place, overrides, check_files=check_files, unknown=problems)


def keys_of(name: str) -> set[str]:
    """The settings that a keyword sets by its own name; none for one that is not known."""
    word = other_names.plain(name)
    if word in other_names.IMPLIED:
        return {key for key, _ in other_names.IMPLIED[word]["true"]}
    return {other_names.TAKEN[word]} if word in other_names.TAKEN else set()


def overrides_of(given: Mapping[str, object], problems: list[str]) -> Iterator[Override]:
    """What keywords set; what is wrong with a keyword itself goes to `problems`."""
    by_key: dict[str, str] = {}
    # The number of steps has the last word: num_train_epochs sets it to 0.
    for name in sorted(given, key=lambda name: other_names.plain(name) == "max-steps"):
        value = given[name]
        if not other_names.is_taken(name) or name.startswith("-"):
            problems.append(f"{ini_file.show(name)}= is not a setting{other_names.hint(name, 'python')}")
            continue
        if value is None:
            continue
        try:
            pairs = other_names.settings_of(name, _text(value))
        except (TypeError, ValueError) as error:
            problems.append(f"{name}={ini_file.show(str(value))}: {error}")
            continue
        for key, text in pairs:
            item = TABLE[key]
            if key in by_key and key != other_names.STEPS:
                problems.append(f"{name}= and {by_key[key]}= both set [{item.section}] {item.key}; leave one out")
                break
            by_key[key] = name
            source = f"{name}: {key}=" if other_names.plain(name) in other_names.IMPLIED else f"{name}="
            yield Override(item.section, item.key, text, source, literal=True)


def _text(value: object) -> str:
    """A value as the file would have it. Raises TypeError where it is none."""
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()  # one number of numpy or torch
    if value is None or isinstance(value, (bool, str)):
        return rules.write(value)
    if isinstance(value, numbers.Integral):
        return str(int(value))
    if isinstance(value, numbers.Real):
        return rules.write(float(value))
    if isinstance(value, os.PathLike):
        return os.fsdecode(value)
    if isinstance(value, (list, tuple, set, frozenset)):
        return ",".join(sorted(value) if isinstance(value, (set, frozenset)) else map(str, value))
    raise TypeError(f"expected text, a number, true or false, or a list of names, not {type(value).__name__}")


def config_of(config: FineTuningConfig | None) -> FineTuningConfig:
    """The config that was given, or the defaults. UserError where something else was given."""
    if config is None:
        return FineTuningConfig()
    if not isinstance(config, FineTuningConfig):
        raise UserError(f"config= takes a {NAME}, not {type(config).__name__}; {NAME}.read(PATH) reads a file")
    return config
