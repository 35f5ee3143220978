"""What a hub says stands in a model or a data set at one revision, and the record of it that is kept in the cache.

Names of files come from others: one that would lead out of its folder, or act on a terminal, makes no listing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from training.system import files, foreign_json, privacy
from training.system.foreign_json import COUNT, TEXT, Damaged

MOST = 100_000  # files of one data set
LONGEST = 1000  # characters of a file's name: patterns are held against it
SHA256 = re.compile(r"[0-9a-f]{64}")
SHA1 = re.compile(r"[0-9a-f]{40}")
REVISION = re.compile(r"[A-Za-z0-9._][A-Za-z0-9._-]{0,127}")
KINDS = {"size": COUNT.or_none(), "sha256": TEXT.or_none(), "git": TEXT.or_none()}


@dataclass(frozen=True)
class RemoteFile:
    """A file on a hub. `sha256` of its content, or `git`, the SHA-1 that git has of it; None where the hub does not say."""

    size: int | None = None
    sha256: str | None = None
    git: str | None = None


@dataclass(frozen=True)
class Listing:
    """All files of a model or a data set at one commit, by their names."""

    commit: str
    files: Mapping[str, RemoteFile]


def unfit(name: str, commit: object, paths: Iterable[str]) -> str:
    """What is wrong with the commit and the names of files that a hub gives; "" where nothing is."""
    if not isinstance(commit, str) or not REVISION.fullmatch(commit):
        return f"{name} has no revision that could be recorded"
    for number, path in enumerate(paths, 1):
        if number > MOST:
            return f"{name} has more than {MOST:,} files"
        if len(path) > LONGEST:
            return f"{name} has a file whose name has more than {LONGEST:,} characters"
        if privacy.visible(path) != path:  # a progress bar would print it
            return f"{name} has a file whose name holds control characters: {privacy.shown(path)}"
        parts = PurePosixPath(path).parts
        if not parts or path.startswith("/") or ".." in parts or "\\" in path or "/".join(parts) != path:
            return f"{name} has a file whose name leads elsewhere: {path}"
    return ""


def keep(folder: Path, listing: Listing, revision: str | None) -> None:
    """Record a listing, and that `revision` (None: the usual one) is its commit now."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        name: {key: value for key, value in vars(file).items() if value is not None}
        for name, file in listing.files.items()
    }
    files.write_text(_file(folder, listing.commit), json.dumps({"commit": listing.commit, "files": content}))
    files.write_text(_pointer(folder, revision), json.dumps({"commit": listing.commit}))


def kept(folder: Path, revision: str | None) -> Listing | None:
    """The listing that was recorded of a revision: a commit, or what a name stood for when it was last asked; or None."""
    try:
        commit = revision or ""
        if not revision or not _file(folder, revision).is_file():
            commit = foreign_json.read(_pointer(folder, revision), {"commit": TEXT}).get("commit", "")
        found = foreign_json.read(_file(folder, commit), {"commit": TEXT, "files": foreign_json.TABLE})
        if found.get("commit") != commit or unfit("", commit, found["files"]):
            return None
        return Listing(commit, {name: _file_of(entry) for name, entry in found["files"].items()})
    except (Damaged, KeyError, OSError):
        return None


def pinned(folder: Path, revision: str | None) -> bool:
    """Whether a revision is a commit of which the listing was recorded: nothing needs to be asked then."""
    return bool(revision) and _file(folder, revision or "").is_file()


def _file_of(entry: Mapping[str, Any]) -> RemoteFile:
    if foreign_json.misfits(entry, KINDS):
        raise KeyError
    return RemoteFile(entry.get("size"), entry.get("sha256"), entry.get("git"))


def _file(folder: Path, commit: str) -> Path:
    return folder / f"{quote(commit, safe='')}.json"


def _pointer(folder: Path, revision: str | None) -> Path:
    return folder / f"{quote(revision, safe='') if revision else ''}.now"
