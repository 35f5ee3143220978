"""Which files of a data set on a hub belong to which of its configurations and splits, by their names and its card alone.

As the library `datasets` has it: what the `configs` at the head of README.md say, else the usual names
(data/train-00000-of-00002.parquet, train.jsonl, test/x.csv); the patterns of those names are its own. Of all these files only
those are taken that are read here. A data set's program is never run.
"""

from __future__ import annotations

import fnmatch
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from training.data import row_files
from training.errors import UserError

CARD = "README.md"
MOST_CARD = 4 << 20  # bytes of it; the largest have some hundred configurations
MOST_HEAD = 1 << 20  # characters of its head
DEFAULT = "default"
# refs/convert/parquet: what the Hub makes of a data set that is a program.
CONVERTED = re.compile(r"(?P<config>[^/]+)/(?P<split>[^/]+)/\d{4}\.parquet")
CONVERTED_AT = "refs/convert/parquet"

Splits = Mapping[str, list[str]]  # split -> files


def configurations(hub: str, name: str, files: Sequence[str], card: str) -> dict[str, Splits]:
    """Configuration -> split -> its files, some of which hold rows. UserError where there are none, or where it is a program."""
    rows = [file for file in files if is_rows(file)]
    told = _of_card(name, card)
    program = f"{name.rpartition('/')[2]}.py"
    if program in files and not any("data_files" in config for config in told.values()):
        raise UserError(
            f"this data set is a program ({program}), which is not run; {hub}:{name}/FILE names one of its files. The Hugging "
            f"Face Hub makes files of most such data sets: hf:{name}@{CONVERTED_AT}"
        )
    if not told and rows and all(map(CONVERTED.fullmatch, rows)):
        return _converted(rows)
    found: dict[str, Splits] = {}
    for config, said in (told or {DEFAULT: {}}).items():
        base = str(said.get("data_dir") or "").strip("/")
        below = [file.removeprefix(f"{base}/") for file in files if not base or file.startswith(f"{base}/")]
        patterns = said.get("data_files")
        splits = (
            {split: _matching(below, some, _told_of) for split, some in patterns.items()}
            if patterns
            else {
                split: [file for file in _matching(below, some, _library_s) if is_rows(file)]
                for split, some in _usual(below).items()
            }
        )
        kept = {
            split: [f"{base}/{file}" if base else file for file in some]
            for split, some in splits.items()
            if any(map(is_rows, some))
        }
        if kept:
            found[config] = kept
    if not found:
        raise UserError(
            f"has no files that are read here; those end in {', '.join(row_files.KINDS)}, each also with .gz or .zst"
        )
    return found


def choose(every: Mapping[str, Splits], words: Sequence[str], setting: str, name: str) -> tuple[str, str]:
    """The configuration and the split that `words` mean. UserError where they mean none, or where none is named.

    `setting` and the data set's `name` stand in front of them in what would do.
    """
    if len(words) == 2:
        config, split = words
        holding = [known for known in every if split in every[known]]
        if not config and len(holding) == 1:
            return holding[0], split
        if split not in every.get(config, {}):
            raise UserError(
                _list(every, f"has no {':'.join(words)}" if config or not holding else _TWICE, setting, name)
            )
        return config, split
    word = words[0] if words else None
    as_config = [config for config in every if word in (None, config)]
    as_split = [config for config in every if word is not None and word in every[config]]
    if as_split and word in every:
        raise UserError(
            f"{word} is a configuration and a split; write {setting}{name}:{word}:SPLIT or {setting}{name}::{word}"
        )
    if len(as_split) == 1:
        return as_split[0], str(word)
    if len(as_config) == 1 and len(every[as_config[0]]) == 1:
        return as_config[0], next(iter(every[as_config[0]]))
    if not as_config and not as_split:
        raise UserError(_list(every, f"has no configuration or split {word}", setting, name))
    raise UserError(_list(every, _TWICE if as_split else _SEVERAL, setting, name))


def one_kind(name: str, files: Sequence[str]) -> None:
    """UserError where the files of a split are of several kinds, which may hold the same rows twice, or are not all read."""
    if unread := [file for file in files if not is_rows(file)]:
        raise UserError(f"it has {unread[0]} there, which is not read here; name a file that is: {name}/FILE")
    kinds = Counter(map(_kind, files))
    if len(kinds) > 1:
        shown = ", ".join(f"{count:,} {kind}" for kind, count in kinds.items())
        raise UserError(
            f"it has files of several kinds there ({shown}), maybe of the same rows; name one: {name}/{files[0]}"
        )


def is_rows(file: str) -> bool:
    """Whether a file's name says that it holds rows that are read here."""
    return _kind(file) is not None


def _kind(file: str) -> str | None:
    suffixes = [suffix.lower() for suffix in PurePosixPath(file).suffixes]
    if suffixes and suffixes[-1] in row_files.PACKED:
        suffixes.pop()
    return row_files.KINDS.get(suffixes[-1]) if suffixes else None


_SEVERAL, _TWICE = "has several splits, and none is named", "has a split of that name in several configurations"
MOST_NAMED = 20


def _list(every: Mapping[str, Splits], what: str, setting: str, name: str) -> str:
    """What is wrong, and everything that would do."""
    values = [f"{name}:{config}:{split}" for config, splits in every.items() for split in splits]
    more = f", and {len(values) - MOST_NAMED:,} more are there" if len(values) > MOST_NAMED else ""
    return f"{what}; write {setting}{', or '.join(values[:MOST_NAMED])}{more}"


def _converted(rows: Iterable[str]) -> dict[str, Splits]:
    found: dict[str, dict[str, list[str]]] = {}
    for file in sorted(rows):
        config, split, _ = file.split("/")
        found.setdefault(config, {}).setdefault(split, []).append(file)
    return dict(found)


def _usual(files: Sequence[str]) -> dict[str, list[str]]:
    """Split -> patterns, by the usual names. Empty where there is no file at all."""
    from datasets import data_files

    def resolve(pattern: str) -> list[str]:
        return [file for file in _matching(files, [pattern], _library_s) if is_rows(file)]

    try:
        # The library's own list of names, in its order; it asks for nothing but what matches a pattern.
        return {str(split): patterns for split, patterns in data_files._get_data_files_patterns(resolve).items()}
    except FileNotFoundError:
        return {}
    except ValueError:
        raise UserError("has files of splits whose names are no words") from None


def _library_s(pattern: str) -> Callable[[str], bool]:
    """What fits one of the library's own patterns, as the library itself sees it."""
    from fsspec.utils import glob_translate

    expression = re.compile(glob_translate(pattern))
    return lambda file: expression.fullmatch(file) is not None


def _told_of(pattern: str) -> Callable[[str], bool]:
    """What fits a pattern of a card. Anybody may have written it: matched as one expression, a few stars would take hours,
    so each name between two slashes is matched by itself, which fnmatch does without going back. `**`: any folders."""
    names = pattern.split("/")
    if any("**" in name and name != "**" for name in names):
        raise UserError(f"its card has a pattern that cannot be used: {pattern}")
    # At the end it means files, however deep.
    names += ["*"] if names[-1] == "**" else []
    parts = [None if name == "**" else re.compile(fnmatch.translate(name)) for name in names]

    def onward(at: set[int]) -> set[int]:
        """Where a match may stand that has got to these parts: `**` may be no folder at all."""
        for place in sorted(at):
            while place < len(parts) and parts[place] is None:
                place += 1
                at.add(place)
        return at

    def fits(file: str) -> bool:
        at = onward({0})
        for name in file.split("/"):
            further = set()
            for place in at:
                if place < len(parts):
                    part = parts[place]
                    if part is None:
                        further.add(place)
                    elif part.match(name):
                        further.add(place + 1)
            at = onward(further)
        return len(parts) in at

    return fits


def _matching(
    files: Sequence[str], patterns: Sequence[str], matcher: Callable[[str], Callable[[str], bool]]
) -> list[str]:
    """The files with rows that match one of the patterns, each once, in the order of the patterns and their names."""
    from datasets import data_files

    found: dict[str, None] = {}
    for pattern in patterns:
        pattern = pattern.removeprefix("./")
        fits = matcher(pattern)
        for file in sorted(files):
            hidden = data_files._is_unrequested_hidden_file_or_is_inside_unrequested_hidden_dir(file, pattern)
            special = data_files._is_inside_unrequested_special_dir(file, pattern)
            ignored = PurePosixPath(file).name in data_files.FILES_TO_IGNORE and file != pattern
            if fits(file) and not hidden and not special and not ignored:
                found[file] = None
    return list(found)


def _of_card(name: str, card: str) -> dict[str, dict[str, Any]]:
    """Configuration -> data_dir and data_files (split -> patterns) as the head of the card has them; empty without any."""
    import yaml

    head = re.match(r"\ufeff?\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|$)", card[:MOST_HEAD], re.DOTALL)
    if not head:
        if len(card) >= MOST_HEAD:
            raise UserError(f"the head of its {CARD} is too long to be read; name a file of it")
        return {}
    try:
        told = yaml.load(head[1], Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, ValueError, RecursionError):
        raise UserError(f"its {CARD} begins with YAML that cannot be read") from None
    listed = told.get("configs") if isinstance(told, dict) else None
    if not listed:
        return {}
    if not isinstance(listed, list) or not all(isinstance(config, dict) for config in listed):
        raise UserError(f"its {CARD} has configs that are no list of configurations")
    return {_name_of(config): _said(config) for config in listed}


def _name_of(config: Mapping[str, Any]) -> str:
    name = config.get("config_name", DEFAULT)
    if not isinstance(name, (str, int, float)) or isinstance(name, bool):
        raise UserError(f"its {CARD} has a configuration whose config_name is no text")
    return str(name)


def _said(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a configuration says of its files, checked."""
    from datasets.data_files import sanitize_patterns

    said: dict[str, Any] = {}
    folder, files = config.get("data_dir"), config.get("data_files")
    if folder is not None and not isinstance(folder, str):
        raise UserError(f"its {CARD} has a data_dir that is no text")
    if folder:
        said["data_dir"] = folder
    if files is None:
        return said
    try:
        patterns: dict[str, Any] = dict(sanitize_patterns(files))
    except (ValueError, TypeError, KeyError):
        patterns = {"": None}
    if not all(isinstance(some, list) and all(isinstance(one, str) for one in some) for some in patterns.values()):
        raise UserError(f"its {CARD} has data_files that are neither patterns nor a list of splits and their patterns")
    said["data_files"] = patterns
    return said
