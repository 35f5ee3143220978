"""The settings of a run: loaded from a file and the command line, and written back. The table of them: table.py."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from training.errors import UserError
from training.settings import contradictions, ini_file, names, rules
from training.settings.ini_file import Ini
from training.settings.rules import Given
from training.settings.settings import Override, Settings, default_of, place_of
from training.settings.table import (
    SECTIONS,
    TABLE,
    Dataset,
    Hardware,
    LoRA,
    Model,
    Quantization,
    Training,
)


class _Written(NamedTuple):
    """A setting as somebody gave it, with its line in the file (0: it stands beside the file) and its place in words."""

    given: Given
    line: int
    origin: str


def load(
    config: Path, overrides: Sequence[Override] = (), *, check_files: bool = True, check_packages: bool = False
) -> Settings:
    """The settings of a file, the overrides put over it, the last one first.

    `check_files`: the files they name must be there; not so for the record of an old run. `check_packages`: the
    package of REPORT_TO must be installed; false before the set-up. Raises UserError with all problems at once.
    """
    config = Path(os.path.abspath(config))  # noqa: PTH100 - resolve() would follow a link away from the relative paths
    file = ini_file.read(config)
    written, lines, others = _collect(file, config, overrides)
    problems = lines + [(line, f"{config.name}:{line}: {reason}") for line, reason in file.problems]
    sections: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    bad: set[str] = set()
    for key, item in TABLE.items():
        default = _Written(Given(rules.write(item.rule.default), config.parent), 0, "default")
        given, line, origin = written.get(key, default)
        value = default_of(item, Path("/"))  # stands in for a value that cannot be read
        try:
            value = rules.read(given, item.rule, item.kind)
            reason = rules.missing(value, item.rule) if check_files else ""
        except ValueError as error:
            reason = str(error)
        if reason:
            bad.add(key)
            message = f"{place_of(item, ini_file.show(given.text), origin)}: {reason}"
            (problems.append((line or AFTER, message)) if line or key not in written else others.append(message))
        sections[item.section][item.key.lower()] = value
    origins = {key: setting.origin for key, setting in written.items()}
    as_given = Settings(
        model=Model(**sections["Model"]),
        lora=LoRA(**sections["LoRA"]),
        dataset=Dataset(**sections["Dataset"]),
        training=Training(**sections["Training"]),
        quantization=Quantization(**sections["Quantization"]),
        hardware=Hardware(**sections["Hardware"]),
        config=config,
        origins=origins,
    )
    settings = _without_others_rows(as_given)
    for keys, message in contradictions.find(settings, bad, check_packages):
        line = written[keys[0]].line if keys[0] in written else 0
        typed = not line and any(key in written and not written[key].line for key in keys)
        (others.append(message) if typed else problems.append((line or AFTER, message)))
    _raise_all([message for _, message in sorted(problems)], others, config)
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
    file: Ini, config: Path, overrides: Sequence[Override]
) -> tuple[dict[str, _Written], list[tuple[int, str]], list[str]]:
    """What was given for each Section.KEY; the unknown names in the file, with their lines; and those beside it."""
    written: dict[str, _Written] = {}
    problems = [
        (line, f"{config.name}:{line}: [{ini_file.show(section)}] is not a section{_near(section, SECTIONS)}")
        for section, line in file.sections.items()
        if section not in SECTIONS
    ]
    for entry in file.entries:
        key = f"{entry.section}.{entry.key}"
        origin = f"{config.name}:{entry.line}"
        if key in TABLE:
            given = Given(entry.value, config.parent, entry.quoted, entry.comment)
            written[key] = _Written(given, entry.line, origin)
        elif entry.section in SECTIONS:
            problems.append((entry.line, f"{origin}: {unknown_key(entry.section, entry.key)}"))
    others = []
    for override in overrides:
        key, section = f"{override.section}.{override.key}", override.section
        if key in TABLE:
            written[key] = _Written(Given(override.value, here()), 0, override.source)
        elif section in SECTIONS:
            others.append(f"{override.source}: {unknown_key(section, override.key)}")
        else:
            others.append(f"{override.source}: [{ini_file.show(section)}] is not a section{_near(section, SECTIONS)}")
    return written, problems, others


def _near(word: str, options: Collection[str]) -> str:
    return names.did_you_mean(word, options, f"there are {', '.join(options)}")


def unknown_key(section: str, key: str) -> str:
    """What to say of a key that is not in the section. Its value is not shown: it may be a token."""
    message = f"[{section}] {ini_file.show(key)} is not a setting"
    if "TOKEN" in key.upper() or key.upper().endswith("API_KEY"):
        return f"{message}; tokens are read from the environment (HF_TOKEN, WANDB_API_KEY), never from a file"
    elsewhere = [item.section for item in TABLE.values() if item.key == key.upper() and item.section != section]
    if elsewhere:
        return f"{message}; {key.upper()} belongs in [{elsewhere[0]}]"
    return message + names.did_you_mean(key, [item.key for item in TABLE.values() if item.section == section])


MOST_SHOWN = 50
# In the place of a line: a default, which stands in no line, is the file's all the same.
AFTER = sys.maxsize


def _raise_all(in_file: Sequence[str], in_arguments: Sequence[str], config: Path) -> None:
    problems = [*in_file, *in_arguments]
    if not problems:
        return
    place = " and ".join([_from_here(config)] * bool(in_file) + ["arguments"] * bool(in_arguments))
    count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
    shown = list(problems[:MOST_SHOWN])
    if len(problems) > MOST_SHOWN:
        shown.append(f"... and {len(problems) - MOST_SHOWN} more")
    raise UserError(shown, title=f"{place}: {count}")


def _from_here(path: Path) -> str:
    """The path from the current folder when it lies below it."""
    try:
        return ini_file.shown(path.relative_to(Path.cwd()))
    except (OSError, ValueError):
        return ini_file.shown(path)


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
        raise UserError(problems, title=f"{_from_here(settings.config)}: the run has {total_steps} steps")
    for key in contradictions.STEP_SETTINGS:
        value = settings.get(key)
        if key == "Training.WARMUP_STEPS" and not settings.written(key) and value >= total_steps:
            settings = settings.with_choice(key, total_steps // 10, f"the run has {total_steps} steps only")
        elif value > total_steps:
            settings = settings.with_choice(key, total_steps, f"the run has {total_steps} steps only")
    return settings
