"""The settings of a run: loaded from a file and the command line, and written back. The table of them: table.py."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from training.errors import UserError
from training.settings import contradictions, ini_file, other_names, rules, yaml_file
from training.settings.ini_file import Ini
from training.settings.rules import Given
from training.settings.settings import AUTOMATIC, DEFAULT, Override, Settings, default_of, place_of
from training.settings.table import (
    EVERY,
    EVERY_SECTION,
    TABLE,
    Dataset,
    Hardware,
    LoRA,
    Model,
    Quantization,
    Service,
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
    if config.suffix.lower() in yaml_file.ENDINGS:
        raise yaml_file.refused(config)
    return of(ini_file.read(config), config, overrides, check_files=check_files, check_packages=check_packages)


def of(
    file: Ini,
    config: Path,
    overrides: Sequence[Override] = (),
    *,
    check_files: bool = True,
    check_packages: bool = False,
    unknown: Sequence[str] = (),
    of_a_run: bool = False,
) -> Settings:
    """The same of what a file says (of nothing: Ini()), `config` being its place; `unknown`: problems found before.

    `of_a_run`: the file is a run's own config.ini, which says behind each value who chose it.
    """
    written, lines, others = _collect(file, config, overrides)
    others += unknown
    problems = lines + [(line, f"{config.name}:{line}: {reason}") for line, reason in file.problems]
    sections: dict[str, dict[str, Any]] = {section: {} for section in EVERY_SECTION}
    bad: set[str] = set()
    for key, item in EVERY.items():
        default = _Written(Given(rules.write(item.rule.default), config.parent), 0, DEFAULT)
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
    as_given = _of_sections(sections, config, {key: setting.origin for key, setting in written.items()})
    # Before anything is held against anything else: what was chosen for the user is nothing that they wrote.
    settings = _without_others_rows(_recorded(as_given, file) if of_a_run else as_given)
    for keys, message in contradictions.find(settings, bad, check_packages):
        line = written[keys[0]].line if keys[0] in written else 0
        typed = not line and any(key in written and not written[key].line for key in keys)
        (others.append(message) if typed else problems.append((line or AFTER, message)))
    _raise_all([message for _, message in sorted(problems)], others, config)
    return settings


def _of_sections(sections: Mapping[str, dict[str, Any]], config: Path, origins: Mapping[str, str]) -> Settings:
    return Settings(
        model=Model(**sections["Model"]),
        lora=LoRA(**sections["LoRA"]),
        dataset=Dataset(**sections["Dataset"]),
        training=Training(**sections["Training"]),
        quantization=Quantization(**sections["Quantization"]),
        hardware=Hardware(**sections["Hardware"]),
        service=Service(**sections["Service"]),
        config=config,
        origins=origins,
    )


def of_run(
    config: Path, overrides: Sequence[Override] = (), *, check_files: bool = True, check_packages: bool = False
) -> Settings:
    """`load` for a run's own config.ini, which says behind each value who chose it: that is known of it then, too."""
    config = Path(os.path.abspath(config))  # noqa: PTH100 - as `load` does
    file = ini_file.read(config)
    return of(file, config, overrides, check_files=check_files, check_packages=check_packages, of_a_run=True)


def _recorded(settings: Settings, file: Ini) -> Settings:
    """Settings that a run has written down, with what its file says of where each value came from."""
    origins, choices = dict(settings.origins), []
    for entry in file.entries:
        key, said = f"{entry.section}.{entry.key}", entry.comment[1:].strip()
        # It is given beside the file where it does not come from this line.
        if origins.get(key) != f"{settings.config.name}:{entry.line}" or not said:
            continue
        reason = said.removeprefix(AUTOMATIC)
        if said == DEFAULT:
            if _is_default(settings, key):
                del origins[key]
        elif reason == said:
            origins[key] = said
        elif reason != entry.key:
            del origins[key]
            choices.append((key, settings.get(key), reason))
    found = dataclasses.replace(settings, origins=origins, choices=(*settings.choices, *choices), began=True)
    return _as_older(found, {f"{entry.section}.{entry.key}" for entry in file.entries})


def _as_older(settings: Settings, named: set[str]) -> Settings:
    """What is `named` neither in a run's file nor beside it came after the run began: as it was done before, where that
    is not the default."""
    for key, item in TABLE.items():
        if item.rule.before is not None and not {key} & {*named, *settings.origins}:
            settings = settings.with_choice(key, item.rule.before, "the run began before there was this setting")
    return settings


def _is_default(settings: Settings, key: str) -> bool:
    """Whether the value is the default; a path of a run may have started elsewhere."""
    return isinstance(settings.get(key), Path) or settings.get(key) == settings.default(key)


def _without_others_rows(settings: Settings) -> Settings:
    """Rows given on the command line are not measured on the validation and test rows that the file names for its own."""
    own_file = f"{settings.config.name}:"
    data = settings.origins.get("Dataset.DATASET_FILE", own_file)
    for key, what in (("Dataset.VALIDATION_FILE", "validation"), ("Dataset.TEST_FILE", "test")):
        own = settings.get(key) is not None and settings.origins.get(key, "").startswith(own_file)
        if own and not data.startswith(own_file):
            reason = f"{data} gives other rows than the file, whose {what} rows do not belong to them"
            settings = settings.with_choice(key, None, reason)
    return settings


def _collect(
    file: Ini, config: Path, overrides: Sequence[Override]
) -> tuple[dict[str, _Written], list[tuple[int, str]], list[str]]:
    """What was given for each Section.KEY; the unknown names in the file, with their lines; and those beside it."""
    written: dict[str, _Written] = {}
    problems = [
        (
            line,
            f"{config.name}:{line}: [{ini_file.show(section)}] is not a section{other_names.hint_for_section(section)}",
        )
        for section, line in file.sections.items()
        if section not in EVERY_SECTION
    ]
    for entry in file.entries:
        key = f"{entry.section}.{entry.key}"
        origin = f"{config.name}:{entry.line}"
        if key in EVERY:
            given = Given(entry.value, config.parent, entry.quoted, entry.comment)
            written[key] = _Written(given, entry.line, origin)
        elif entry.section in EVERY_SECTION:
            problems.append((entry.line, f"{origin}: {unknown_key(entry.section, entry.key)}"))
    others = []
    for override in overrides:
        key, section = f"{override.section}.{override.key}", override.section
        if key in EVERY:
            written[key] = _Written(Given(override.value, here(), override.literal), 0, override.source)
        elif section in EVERY_SECTION:
            others.append(f"{override.source}: {unknown_key(section, override.key)}")
        else:
            others.append(
                f"{override.source}: [{ini_file.show(section)}] is not a section{other_names.hint_for_section(section)}"
            )
    return written, problems, others


def unknown_key(section: str, key: str) -> str:
    """What to say of a key that is not in the section. Its value is not shown: it may be a token."""
    message = f"[{section}] {ini_file.show(key)} is not a setting"
    if "TOKEN" in key.upper() or key.upper().endswith("API_KEY"):
        return f"{message}; tokens are read from the environment (HF_TOKEN, WANDB_API_KEY), never from a file"
    elsewhere = [item.section for item in EVERY.values() if item.key == key.upper() and item.section != section]
    if elsewhere:
        return f"{message}; {key.upper()} belongs in [{elsewhere[0]}]"
    return message + other_names.hint(key, "key", section)


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


def as_text(override: Override) -> str | None:
    """The value of an override as the record of a run has it; None where it cannot be read."""
    item = EVERY.get(f"{override.section}.{override.key}")
    if item is None:
        return None
    try:
        return rules.write(rules.read(Given(override.value, here(), override.literal), item.rule, item.kind))
    except ValueError:
        return None


def here() -> Path:
    """The caller's folder. Raises UserError when it is there no more."""
    try:
        return Path.cwd()
    except OSError:
        raise UserError("the folder you are in was removed; go to another one") from None


def clamp(settings: Settings, total_steps: int) -> Settings:
    """Fit the step settings to a run of `total_steps`, once that is known: defaults that are too long are shortened.

    A warm-up of half the run and more does not fit either. Those of a run that has begun stay as they are. Raises
    UserError naming each one that somebody wrote and that does not fit.
    """
    if settings.began:
        return settings
    problems = [message for _, message in contradictions.too_long(settings, total_steps)]
    if problems:
        raise UserError(problems, title=f"{_from_here(settings.config)}: the run has {total_steps} steps")
    for key in contradictions.STEP_SETTINGS:
        value = settings.get(key)
        if key == "Training.WARMUP_STEPS" and not settings.written(key) and value and 2 * value >= total_steps:
            settings = settings.with_choice(key, total_steps // 10, f"the run has {total_steps} steps only")
        elif value > total_steps:
            settings = settings.with_choice(key, total_steps, f"the run has {total_steps} steps only")
    return settings
