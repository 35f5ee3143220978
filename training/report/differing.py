"""What differs between runs, and by which names they are told apart."""

from __future__ import annotations

from collections.abc import Sequence

from training.report.blocks import Block, Details, Table, Text
from training.report.schema import DataFile, Report
from training.system import wording

LONGEST_NAME = 28  # columns of a value that names a run
# They differ in every run, or are told elsewhere.
LEFT_OUT = ("Training.OUTPUT_DIR", "Model.BASE_MODEL_NAME", "Model.NEW_MODEL_NAME")
FILES = (
    "Dataset.DATASET_FILE",
    "Dataset.VALIDATION_FILE",
    "Dataset.REPLAY_FILE",
)  # told by their content, where that is known
Rows = list[tuple[str, ...]]


def blocks(reports: Sequence[Report]) -> tuple[Block, ...]:
    """What somebody made different, and folded what was only fitted to each run."""
    given, fitted = differences(reports)
    columns = tuple(range(1, len(reports) + 1))
    headers = ("", *names(reports))
    made: list[Block] = [
        Table(headers, tuple(given), code=columns)
        if given
        else Text("Nothing that somebody set: settings, rows and base model are the same.")
    ]
    if fitted:
        made.append(Details("Fitted to each run automatically", (Table(headers, tuple(fitted), code=columns),)))
    return tuple(made)


def differences(reports: Sequence[Report]) -> tuple[Rows, Rows]:
    """What differs because somebody set it, a row each, and what differs because it was chosen automatically."""
    given: Rows = []
    if len({one.base.name for one in reports}) > 1:
        given.append(("base model", *(one.base.name for one in reports)))
    for role in ("training", "replay", "validation"):
        files = [_files(one, role) for one in reports]
        if len({tuple(file.sha256 for file in found) for found in files}) > 1:
            given.append((f"{role} rows", *map(_named, files)))
    known = all(one.data is not None for one in reports)
    fitted: Rows = []
    for key in dict.fromkeys(
        f"{section}.{key}" for one in reports for section, keys in one.settings.items() for key in keys
    ):
        section, _, name = key.partition(".")
        values = [wording.value_text(one.settings.get(section, {}).get(name)) for one in reports]
        if len(set(values)) > 1 and key not in LEFT_OUT and not (known and key in FILES):
            (given if any(_set(one, key) for one in reports) else fitted).append((key, *values))
    return given, fitted


def _set(report: Report, key: str) -> bool:
    """Whether somebody chose this value for this run."""
    chosen = {choice[0] for choice in report.choices}
    return key not in chosen and any(row[0] == key for row in report.differences)


def _files(report: Report, role: str) -> list[DataFile]:
    return [file for file in report.data.files if file.role == role] if report.data else []


def _named(files: Sequence[DataFile]) -> str:
    """The files with the first of their hashes, by which two of one name are told apart."""
    return ", ".join(f"{file.path.rpartition('/')[2]} ({file.sha256[:8]})" for file in files) or "-"


def names(reports: Sequence[Report]) -> list[str]:
    """What each run is called: its model's name where that tells them apart, else what differs, else a letter."""
    letters = [chr(ord("A") + number % 26) * (1 + number // 26) for number in range(len(reports))]
    models = [one.name for one in reports]
    if len(set(models)) == len(models):
        return models
    for key, *values in differences(reports)[0]:
        short = all(wording.columns(value) <= LONGEST_NAME for value in values)
        if short and len(set(values)) == len(values):
            return [
                f"{letter}: {key.rpartition('.')[2]} {value}" for letter, value in zip(letters, values, strict=True)
            ]
    return letters
