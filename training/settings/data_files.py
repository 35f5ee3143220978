"""DATASET_FILE as a list: several files, each with its share, in one text: `a.jsonl, b.jsonl*2, old/*.jsonl`.

As a value it is a path all the same, since it mostly is that of one file: of a list it holds the whole text, made of absolute
paths. `named` tells which files that are. A file may be the name of a data set on a hub (hub_names.py).
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from training.settings import hub_names
from training.settings.hub_names import HubName

MOST = 1000  # files that a pattern may mean
COMMA = re.compile(r"(?<!\\),")
# A share behind a star. One in front of a name's ending is a pattern: old/*.jsonl
SHARE = re.compile(r"(?P<name>.*\S)\s*\*\s*(?P<share>-?[0-9]+(?:\.[0-9]+)?)", re.DOTALL)
PATTERN = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class DataFile:
    """A file of the list, or a pattern of names; its rows are taken so many times, or that part of them."""

    path: Path
    share: float = 1.0

    @property
    def on_a_hub(self) -> HubName | None:
        """Its name on a hub, where it is no file of this machine."""
        return hub_names.of(self.path)

    def written(self) -> str:
        """The text that `parts` reads back."""
        share = "" if self.share == 1 else f"*{self.share:g}"
        return f"{str(self.path).replace(',', chr(92) + ',')}{share}"


def parts(text: str) -> Iterator[DataFile]:
    """The files and patterns of a list as they are written. ValueError where one is empty, or where its share is none."""
    for part in COMMA.split(text):
        name = part.strip()
        found = SHARE.fullmatch(name)
        share = float(found["share"]) if found else 1.0
        name = (found["name"] if found else name).replace("\\,", ",")
        if not name:
            raise ValueError("expected files with commas between them")
        if not 0 < share <= 100:
            raise ValueError(f"{name}*{share:g}: a share must be above 0 and at most 100")
        if hub_names.is_one(name):
            name = hub_names.parse(name).written()
        yield DataFile(Path(name), share)


def is_list(text: str) -> bool:
    """Whether a text is more than the path of one file: it has a comma, a share or a pattern, and no file has that name."""
    return bool(COMMA.search(text) or PATTERN.search(text)) and not _is_file(Path(text))


def named(value: Path) -> list[DataFile]:
    """The files of DATASET_FILE, patterns replaced by the files that they mean, in the order of their names.

    ValueError where a pattern means none, or where a file is named twice.
    """
    if not is_list(str(value)):
        return [DataFile(value)]
    found: list[DataFile] = []
    for part in parts(str(value)):
        if not PATTERN.search(str(part.path)) or _is_file(part.path):
            found.append(part)
            continue
        # Path.glob takes no pattern that begins with /.
        names = glob.glob(str(part.path), recursive=True)  # noqa: PTH207
        matches = sorted(path for name in names if _is_file(path := Path(name)))
        if not matches:
            raise ValueError(f"no file matches {part.path}{_meant(str(part.path))}")
        if len(matches) > MOST:
            raise ValueError(f"{len(matches):,} files match {part.path}; {MOST:,} are the most")
        found += [DataFile(path, part.share) for path in matches]
    paths = [one.path for one in found]
    if twice := next((path for path in paths if paths.count(path) > 1), None):
        raise ValueError(f"{twice} is named twice; {twice.name}*2 takes its rows twice")
    return found


def _meant(pattern: str) -> str:
    """What to say of a pattern that was meant as a share: rows.jsonl*50%."""
    name = pattern.rpartition("*")[0].rstrip()
    return f"; a share is a number above 0, as in {Path(name).name}*0.5" if name and _is_file(Path(name)) else ""


def holds(value: Path, path: Path) -> bool:
    """Whether a file is one of those that DATASET_FILE names."""
    try:
        return path in [one.path for one in named(value)]
    except ValueError:  # told where the list is read
        return False


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
