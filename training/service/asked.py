"""What a request says of a run becomes the settings of a run, or all that is wrong with it, each with its field.

The rules and the texts are those of config.ini and the command line. What could run code, listen on the network or reach
outside the roots is refused here, whatever the rules say.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from training import settings
from training.errors import UserError
from training.service.places import Places
from training.settings import Override, Settings, hub_names, other_names, readers, rules
from training.settings.rules import Given
from training.settings.table import TABLE, Item

# The names that are taken everywhere: settings, flags, and those of guides; one means two things, and is read below.
FORMAT = "dataset_format"
FIELDS = {name.replace("-", "_"): key for name, key in other_names.TAKEN.items() if name != "dataset-format"}
KINDS_OF_FILE = ("json", "jsonl", "csv", "txt")
# They make a process listen, or reach out to an address.
OF_THE_SERVER = ("Hardware.NUM_MACHINES", "Hardware.MACHINE_RANK", "Hardware.MAIN_PROCESS_ADDRESS")
CODE = "Model.TRUST_REMOTE_CODE"
LIST = frozenset(",*?[")  # what makes a list of files, and patterns of them, of DATASET_FILE
DATA = ("Dataset.DATASET_FILE", "Dataset.VALIDATION_FILE", "Dataset.TEST_FILE", "Dataset.REPLAY_FILE")
MOST_TEXT = 100_000  # characters of one value
MOST_FIELDS = 500  # there are fewer settings; each that is none is compared with all names


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a request. `field`: "" where it is no one field's."""

    field: str
    message: str


class Refused(UserError):
    """A request that cannot be done as it is."""

    def __init__(self, found: Sequence[Problem]) -> None:
        self.found = list(found)
        super().__init__([problem.message for problem in found])


def settings_of(body: Mapping[str, object], own: Settings, places: Places) -> Settings:
    """The settings of the run that a request asks for, over the server's own. Refused with every problem."""
    if len(body) > MOST_FIELDS:
        raise Refused([Problem("", f"{len(body):,} fields are given; there are fewer than {MOST_FIELDS}")])
    problems: list[Problem] = []
    overrides: list[Override] = []
    fields: dict[str, str] = {}
    for name, value in body.items():
        try:
            if other_names.plain(name) in other_names.IMPLIED:
                pairs = other_names.settings_of(name, _plain(value))
                overrides += [_override(name, key, given) for key, given in pairs]
                continue
            key = _key(name)
            if key is None:
                overrides += _format(value, body)
                fields.setdefault("Dataset.FORMAT", name)
                continue
            if key in fields:
                raise ValueError(f"says the same as {fields[key]}; give one of the two")
            fields[key] = name
            overrides += _overrides(name, key, _text(name, key, value, own, places))
        except ValueError as error:
            problems.append(Problem(name, f"{name[:80]}: {error}"))
    # An epoch's MAX_STEPS = 0 comes first, so that one that was asked for holds.
    overrides.sort(key=lambda override: override.source in body)
    try:
        found = settings.load(own.config, overrides, check_packages=True)
    except UserError as error:
        raise Refused([*problems, *(_placed(message, fields) for message in error.problems)]) from None
    if problems:
        raise Refused(problems)
    return found


def _key(name: str) -> str | None:
    """The setting that a field means; None for dataset_format where it names a kind of file. ValueError for none."""
    word = name.lower().replace("-", "_")
    if word == FORMAT:
        return None
    if word in FIELDS:
        return FIELDS[word]
    raise ValueError(f"is not a field{other_names.hint(word, 'python')}")


def _format(value: object, body: Mapping[str, object]) -> Iterator[Override]:
    """dataset_format: the kind of the file, which its name says already, or what the rows hold."""
    file = next((str(body[name]) for name in ("dataset_path", "data", "dataset_file") if name in body), "")
    if reason := other_names.wrong_form(str(value), file):
        raise ValueError(reason)
    for key, given in other_names.settings_of(FORMAT, _plain(value)):
        yield _override(FORMAT, key, given)


def _overrides(name: str, key: str, text: str) -> Iterator[Override]:
    if key == "Training.NUM_TRAIN_EPOCHS":
        yield _override(f"{name} ", "Training.MAX_STEPS", "0")
    yield _override(name, key, text)


def _override(name: str, key: str, text: str) -> Override:
    item = TABLE[key]
    return Override(item.section, item.key, text, name)


def _text(name: str, key: str, value: object, own: Settings, places: Places) -> str:
    """A value of JSON as the text of a setting. ValueError where it is none, or is not for requests to say."""
    item = TABLE[key]
    text = _plain(value)
    if len(text) > MOST_TEXT:
        raise ValueError(f"has {len(text):,} characters; {MOST_TEXT:,} are the most")
    if key in OF_THE_SERVER and text != rules.write(own.get(key)):
        raise ValueError("is said by the server's own settings only")
    if key == CODE and text.lower() != "false" and not own.get(CODE):
        raise ValueError("the server does not allow it: a request must not make it run the code of a model")
    if item.kind == "str | None":
        return _literal(text)
    if item.name == "Dataset.DATASET_FILE" and not LIST.isdisjoint(text):
        raise ValueError(f"names one file, without any of {' '.join(sorted(LIST))}: a list is for settings files")
    if item.name in DATA and hub_names.is_one(text):
        # As the name of a base model: what a hub gives goes into the cache, and nothing else of the disk is reached.
        return hub_names.parse(text).written()
    if text.strip() and _is_path(item, text, places):
        return str(places.inside(text.removeprefix("@")))
    return text


def _plain(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, (bool, int, str)):
        return rules.write(value)
    if isinstance(value, float):
        return rules.write(_finite(value))
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return ",".join(value)
    raise ValueError("expected a text, a number, true, false, null or a list of texts")


def _finite(value: float) -> float:
    """A number that is one. ValueError for NaN and infinity, which some programs write into JSON."""
    if not -1e300 < value < 1e300:
        raise ValueError("expected a number")
    return value


def _literal(text: str) -> str:
    """A text that JSON has unescaped already: it is taken as it is, and none names a file to be read."""
    if text.startswith("@"):
        raise ValueError("a text that begins with @ would name a file; send the text itself")
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r")


def _is_path(item: Item, text: str, places: Places) -> bool:
    """Whether a value reaches the disk: it is a path, or could be read as one."""
    if item.kind.startswith("Path"):
        return True
    if item.name == "Dataset.REPLAY_FILE":
        return text.strip().lower() != item.rule.default
    if item.name == "Model.CHAT_TEMPLATE":
        try:
            return readers.chat_template(Given(text, places.folder), item.rule).startswith("/")
        except ValueError:
            return False
    if item.name != "Model.BASE_MODEL_NAME" or text.strip() == item.rule.default:
        return False
    return readers.is_path(text.strip()) or _exists(places.folder / text.strip())


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _placed(message: str, fields: Mapping[str, str]) -> Problem:
    """A problem of the settings with the field that it is about."""
    found = re.search(r"\[(\w+)\] ([A-Z0-9_]+)", message)
    key = f"{found[1]}.{found[2]}" if found else ""
    return Problem(fields.get(key, found[2].lower() if found and key in TABLE else ""), message)
