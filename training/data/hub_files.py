"""A data set on a hub becomes files of this machine: which of them are meant, at which commit, and the files themselves.

What a run reads is pinned before anything is read: the settings that it keeps name the commit, the configuration and the
split, so that it is resumed with the very same files, from the cache, whatever becomes of the data set.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from training.data import hub_splits, replay
from training.errors import FinetuneError, MachineError, UserError
from training.hubs import Listing, Wanted, hugging_face, modelscope
from training.hubs.wanted import before_value
from training.settings import Settings, data_files, hub_names
from training.settings.data_files import DataFile
from training.settings.hub_names import HubName
from training.settings.table import Dataset
from training.system import privacy, shell

SETTINGS = ("DATASET_FILE", "VALIDATION_FILE", "TEST_FILE", "REPLAY_FILE")


@dataclass(frozen=True)
class Located:
    """The files of a data set. `name`: with its commit, and the configuration and split that are meant."""

    name: HubName
    paths: tuple[Path, ...]


def pinned(settings: Settings, say: Callable[[str], None]) -> Settings:
    """The settings with every data set on a hub pinned to its commit, and its files fetched.

    Raises UserError where a name means no files, or the same as another, MachineError where a hub stands in the way; each
    begins with the setting.
    """
    found: dict[str, list[Path]] = {}
    before = settings
    for key in SETTINGS:
        value = replay.file_of(settings.dataset) if key == "REPLAY_FILE" else settings.get(f"Dataset.{key}")
        if value is None or not any(one.on_a_hub for one in _parts(value)):
            continue
        try:
            new = ", ".join(_pinned(one, key, say).written() for one in _parts(value))
            found[key] = [file.path for file in expanded(Path(new))]
        except FinetuneError as error:
            raise _placed(error, settings.place(f"Dataset.{key}")) from None
        except ValueError as error:
            raise UserError(f"{settings.place(f'Dataset.{key}')}: {error}") from None
        if new != str(value):
            kept = new if key == "REPLAY_FILE" else Path(new)
            settings = settings.with_choice(f"Dataset.{key}", kept, f"{value} stands for this now")
    _refuse_shared(before, found)
    return settings


def any_on_a_hub(section: Dataset) -> bool:
    """Whether one of the data settings names a data set on a hub."""
    values = section.dataset_file, section.validation_file, section.test_file, replay.file_of(section)
    return any(one.on_a_hub for value in values if value is not None for one in _parts(value))


def expanded(value: Path) -> list[DataFile]:
    """`data_files.named`, a data set on a hub replaced by its files. Each has the share that the data set has.

    ValueError as there, also where two names mean the same file.
    """
    found = [replace(one, path=path) for one in data_files.named(value) for path in paths(one.path)]
    every = Counter(one.path for one in found)
    if twice := next((path for path, count in every.items() if count > 1), None):
        raise ValueError(f"{twice} is named twice; NAME*2 takes its rows twice")
    return found


def paths(value: Path | None) -> list[Path]:
    """One file; the files of a data set on a hub, where the value is a name of one; none without a value."""
    if value is None:
        return []
    name = hub_names.of(value)
    return [value] if name is None else list(located(name).paths)


def fetched(text: str, flag: str, say: Callable[[str], None]) -> Sequence[Path]:
    """The files of the data set that a flag of a script names. Raises as `pinned`, and where this Python cannot fetch them;
    the messages begin with the flag."""
    try:
        import datasets  # noqa: F401
        import huggingface_hub  # noqa: F401
    except ModuleNotFoundError as error:
        raise MachineError(
            f"{flag} {text}: {error.name}, which is needed to fetch a data set, is not installed in this Python: "
            f"{shell.command('setup.sh')} makes .venv, and .venv/bin/python has it"
        ) from None
    try:
        return located(hub_names.parse(text), flag, say).paths
    except ValueError as error:
        raise UserError(f"{flag} {text}: {error}") from None
    except FinetuneError as error:
        raise _placed(error, f"{flag} {text}") from None


def _parts(value: Path) -> list[DataFile]:
    """The files of a setting, as far as they can be told; the list is checked where it is read."""
    try:
        return list(data_files.parts(str(value))) if data_files.is_list(str(value)) else [DataFile(value)]
    except ValueError:
        return []


def _pinned(one: DataFile, key: str, say: Callable[[str], None]) -> DataFile:
    name = one.on_a_hub
    return one if name is None else replace(one, path=Path(located(name, key, say).name.written()))


def _silent(text: str) -> None:
    """Where nobody is told of what takes time."""


_known: dict[HubName, Located] = {}  # of this process


def located(name: HubName, setting: str = SETTINGS[0], say: Callable[[str], None] = _silent) -> Located:
    """The files that a name means, fetched where they are not here yet. Asked once in a process."""
    if name in _known:
        return _known[name]
    rest = "".join(f":{word}" for word in name.words) + (f"/{name.file}" if name.file else "")
    wanted = Wanted(name.name, name.revision, setting, rest)
    hub = hugging_face if name.hub == "hf" else modelscope
    listed = hub.listing(wanted, say)
    words, files = _meant(name, listed, setting, "" if name.file else _card(wanted, listed, name.hub))
    at = _writable(name.at(listed.commit, words), files)
    _known[name] = _known[at] = Located(at, tuple(hub.fetch(wanted, listed, files, say)))
    if at != name:
        say(f"{name.written()} is {at.written()}: {_files(files)}")
    return _known[name]


def _writable(name: HubName, files: Sequence[str]) -> HubName:
    """The name, if it can be read back: authors may call a configuration anything."""
    try:
        hub_names.parse(name.written())
    except ValueError:
        words, file = ":".join(name.words), f"{name.hub}:{name.name}/{files[0]}"
        raise UserError(f"{words} has a name that cannot be written here; name a file of it, as in {file}") from None
    return name


def _files(files: Sequence[str]) -> str:
    return files[0] if len(files) == 1 else f"{len(files):,} files"


def _card(wanted: Wanted, listed: Listing, hub: str) -> str:
    card = listed.files.get(hub_splits.CARD)
    if card is None:
        return ""
    if (card.size or 0) > hub_splits.MOST_CARD:
        raise UserError(f"its {hub_splits.CARD} has {card.size:,} bytes, too many to be read; name a file of it")
    fetch = hugging_face.fetch if hub == "hf" else modelscope.fetch
    with fetch(wanted, listed, [hub_splits.CARD], _silent)[0].open(encoding="utf-8", errors="replace") as file:
        return file.read(hub_splits.MOST_HEAD)


def _meant(name: HubName, listed: Listing, setting: str, card: str) -> tuple[tuple[str, ...], list[str]]:
    """The configuration and split of a name, and their files; none and the one file where it names that."""
    every = sorted(listed.files)
    if name.file is not None:
        if name.file not in listed.files:
            rows = [file for file in every if hub_splits.is_rows(file)]
            near = ", ".join(rows[:5]) + (f" and {len(rows) - 5:,} more" if len(rows) > 5 else "")
            raise UserError(f"it has no file {name.file}" + (f"; there are {near}" if near else ""))
        if not hub_splits.is_rows(name.file):
            raise UserError(f"{name.file} is not read here")
        return (), [name.file]
    bare = replace(name, words=()).written()
    found = hub_splits.configurations(name.hub, name.name, every, card)
    config, split = hub_splits.choose(found, name.words, before_value(setting), bare)
    files = found[config][split]
    hub_splits.one_kind(f"{name.hub}:{name.name}", files)
    return (config, split), files


def _placed(error: FinetuneError, place: str) -> FinetuneError:
    if isinstance(error, UserError):
        first, *more = error.problems
        return UserError([f"{place}: {first}", *more])
    return type(error)(f"{place}: {privacy.shown(str(error))}")


def _refuse_shared(settings: Settings, found: dict[str, list[Path]]) -> None:
    """Names that differ may mean the same files: no rows are validated on that are trained on."""
    for number, key in enumerate(SETTINGS):
        for other in SETTINGS[:number]:
            if not set(found.get(key, ())).isdisjoint(found.get(other, ())):
                place = settings.place(f"Dataset.{key}")
                trained = (key, other) == ("REPLAY_FILE", "DATASET_FILE")
                why = "its rows are trained on already" if trained else "they would be measured on rows already seen"
                raise UserError(f"{place}: has the files of [Dataset] {other}: {why}")
