"""ModelScope: what stands in a model or a data set there, and its files on this machine.

Its own client (modelscope-hub) brings cryptography, an uploader and agents along, keeps tokens in a pickle and prints through
a logger of its own; three addresses of its HTTP API are all that is needed here. They are told of in its source:

    /api/v1/models/OWNER/NAME/repo/files    what stands in a model, one folder in an answer
    /api/v1/datasets/OWNER/NAME/repo/tree   what stands in a data set, page by page
    /api/v1/KIND/OWNER/NAME/repo            a file, with Range; large ones are redirected to another host

Each file is named by its SHA-256, so a cut download goes on even where the revision has moved on, and what was changed
meanwhile is noticed. MODELSCOPE_ENDPOINT, MODELSCOPE_CACHE and MODELSCOPE_API_TOKEN are honoured, and HF_HUB_OFFLINE: it is
the one switch that keeps this program from asking anybody.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from training.errors import MachineError, UserError
from training.hubs import listing as listings
from training.hubs import modelscope_http
from training.hubs.listing import Listing, RemoteFile
from training.hubs.modelscope_http import endpoint, strange
from training.hubs.wanted import Unreachable, Wanted, enough_disk, megabytes
from training.system import files, foreign_json, paths
from training.system.foreign_json import COUNT, NUMBER, OBJECT, OBJECTS, TEXT

USUAL = "master"
PAGE = 200  # entries of one page
MOST_IN_A_FOLDER = 3000  # where the listing of a model is cut without a word
ENTRY = {"Path": TEXT, "Type": TEXT, "Size": COUNT.or_none(), "Sha256": TEXT.or_none(), "Revision": TEXT.or_none()}
ENTRY |= {"CommittedDate": NUMBER.or_none()}
NEWEST = {"Id": TEXT.or_none(), "ShortId": TEXT.or_none()}


def is_offline() -> bool:
    """Whether nothing is to be asked."""
    from huggingface_hub import constants

    return bool(constants.is_offline_mode())


def cache() -> Path:
    """Where downloads lie: beside what ModelScope's own client keeps, which forgets revisions."""
    return paths.expanded(os.environ.get("MODELSCOPE_CACHE") or "~/.cache/modelscope") / "finetune"


def listing(wanted: Wanted, say: Callable[[str], None]) -> Listing:
    """What stands in a data set, or in a model's own folder. A commit that was listed before is not asked for again.

    Raises MachineError (exit 3) when ModelScope cannot be reached or refuses, UserError when its files have names that
    cannot be.
    """
    folder = _folder(wanted) / "listings"
    found = listings.kept(folder, wanted.revision)
    if found and (is_offline() or listings.pinned(folder, wanted.revision)):
        return found
    if is_offline():
        raise MachineError(
            f"{wanted.name}{wanted.at} was never downloaded from ModelScope, and HF_HUB_OFFLINE is set: unset it once, or "
            f"{wanted.instead}"
        )
    try:
        new = _asked(wanted, say)
    except Unreachable as error:
        if not found:
            raise
        say(f"{error}; using the list of its files from before")
        return found
    try:
        listings.keep(folder, new, wanted.revision)
    except OSError as error:
        raise _unwritable(error, folder) from None
    return new


def fetch(wanted: Wanted, listed: Listing, names: Sequence[str], say: Callable[[str], None]) -> list[Path]:
    """These files on this machine, each held against the listing; what is in the cache is not fetched again."""
    missing = [name for name in names if not _is_here(wanted, listed, name)]
    if missing:
        if is_offline():
            raise MachineError(
                f"{wanted.name}: {missing[0]} was never downloaded, and HF_HUB_OFFLINE is set: unset it once, or {wanted.instead}"
            )
        sizes = [listed.files[name].size for name in missing]
        size = None if None in sizes else sum(size for size in sizes if size is not None)
        enough_disk(wanted.name, size, cache(), "MODELSCOPE_CACHE")
        say(f"{wanted.name}: getting {megabytes(size)} from {endpoint()} (what is there already is kept)")
    try:
        for name in missing:
            _get(wanted, listed, name, say)
    except OSError as error:
        raise _unwritable(error, _folder(wanted)) from None
    return [_place(wanted, listed, name) for name in names]


def here(wanted: Wanted, listed: Listing, names: Sequence[str]) -> Path | None:
    """The folder of a revision where all of these files lie; None where one is missing."""
    return folder_of(wanted, listed) if all(_is_here(wanted, listed, name) for name in names) else None


def folder_of(wanted: Wanted, listed: Listing) -> Path:
    """Where the files of a revision lie, under their own names."""
    return _folder(wanted) / "snapshots" / listed.commit


def known(wanted: Wanted) -> Listing | None:
    """The newest listing that was recorded."""
    return listings.kept(_folder(wanted) / "listings", wanted.revision)


def _folder(wanted: Wanted) -> Path:
    return cache() / f"{wanted.kind}--{wanted.name.replace('/', '--')}"


def _place(wanted: Wanted, listed: Listing, name: str) -> Path:
    return folder_of(wanted, listed) / name


def _is_here(wanted: Wanted, listed: Listing, name: str) -> bool:
    place, size = _place(wanted, listed, name), listed.files[name].size
    try:
        return place.is_file() and size in (None, place.stat().st_size)
    except OSError:
        return False


def _get(wanted: Wanted, listed: Listing, name: str, say: Callable[[str], None]) -> None:
    """One file: its content under its SHA-256, and a link to it under its name."""
    said, blobs, place = listed.files[name], _folder(wanted) / "blobs", _place(wanted, listed, name)
    called = said.sha256 or f"at-{hashlib.sha256(f'{listed.commit}/{name}'.encode()).hexdigest()}"
    blob = blobs / called
    blobs.mkdir(parents=True, exist_ok=True)
    if not (blob.is_file() and said.size in (None, blob.stat().st_size)):
        partial = blobs / f"{called}.incomplete"
        with files.alone(partial):
            # Asked for by the name under which it was listed: whether a commit is taken there depends on its kind.
            revision = wanted.revision or USUAL
            modelscope_http.download(wanted, {"Revision": revision, "FilePath": name}, said.size, partial, say)
            if said.size not in (None, partial.stat().st_size) or said.sha256 not in (None, files.sha256(partial)):
                partial.unlink()
                raise MachineError(
                    f"{wanted.name}: {name} is not the file that ModelScope ({endpoint()}) lists (its size or SHA-256 is "
                    "another): it was changed meanwhile, or damaged on the way; run again, it is fetched anew"
                )
            partial.replace(blob)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    place.symlink_to(os.path.relpath(blob, place.parent))


def _asked(wanted: Wanted, say: Callable[[str], None]) -> Listing:
    entries, newest = _entries_of_a_model(wanted, say) if wanted.is_model else _entries_of_data(wanted, say)
    blobs = [entry for entry in entries if entry.get("Type") != "tree"]
    content = {entry["Path"]: _file_of(entry) for entry in blobs}
    commit = _commit(wanted, blobs, newest)
    if problem := listings.unfit(wanted.name, commit, content):
        raise UserError(problem)
    return Listing(commit, content)


def _file_of(entry: Mapping[str, Any]) -> RemoteFile:
    sha256 = entry.get("Sha256") or ""
    return RemoteFile(entry.get("Size"), sha256 if listings.SHA256.fullmatch(sha256) else None)


def _entries_of_a_model(wanted: Wanted, say: Callable[[str], None]) -> tuple[list[dict[str, Any]], Mapping[str, Any]]:
    entries, newest = _page(wanted, "repo/files", {"Recursive": "False"}, say)
    if len(entries) >= MOST_IN_A_FOLDER:
        raise UserError(
            f"{wanted.name} has {MOST_IN_A_FOLDER:,} files or more in one folder, which ModelScope lists no further"
        )
    return entries, newest


def _entries_of_data(wanted: Wanted, say: Callable[[str], None]) -> tuple[list[dict[str, Any]], Mapping[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    newest: Mapping[str, Any] = {}
    number = 1
    while True:
        query = {"Recursive": "True", "PageNumber": str(number), "PageSize": str(PAGE)}
        entries, last = _page(wanted, "repo/tree", query, say)
        newest = newest or last
        before = len(found)
        found |= {entry["Path"]: entry for entry in entries}
        # A page that says nothing new: the number of a page means nothing to whoever answers.
        if len(entries) < PAGE or len(found) == before or len(found) > 2 * listings.MOST:
            return list(found.values()), newest
        number += 1


def _page(
    wanted: Wanted, what: str, query: Mapping[str, str], say: Callable[[str], None]
) -> tuple[list[dict[str, Any]], Mapping[str, Any]]:
    """One answer's files, and whose commit was the newest."""
    data = modelscope_http.asked(wanted, what, {"Revision": wanted.revision or USUAL, **query}, say)
    if not isinstance(data, dict) or "Files" not in data:
        raise strange(wanted)
    # A revision that is none is answered like this.
    if data["Files"] is None:
        raise MachineError(
            f"{wanted.name} has no revision {wanted.revision or USUAL}: see its branches and tags at "
            f"{endpoint()}/{wanted.kind}/{wanted.name}/files"
        )
    entries, newest = data["Files"], data.get("LatestCommitter") or {}
    fits = OBJECTS.fits(entries) and OBJECT.fits(newest) and not foreign_json.misfits(newest, NEWEST)
    if not fits or any("Path" not in entry or foreign_json.misfits(entry, ENTRY) for entry in entries):
        raise strange(wanted)
    return entries, newest


def _commit(wanted: Wanted, blobs: Sequence[Mapping[str, Any]], newest: Mapping[str, Any]) -> str:
    """The commit of a listing: as it is said; as a file's whole commit that begins as the newest one does; the newest file's.

    Where nothing of it is told, a digest of the listing: it names what was found, though nobody can be asked for it.
    """
    if listings.SHA1.fullmatch(newest.get("Id") or ""):
        return str(newest["Id"])
    if listings.SHA1.fullmatch(wanted.revision or ""):
        return str(wanted.revision)
    dated = sorted((blob.get("CommittedDate") or 0, str(blob.get("Revision") or "")) for blob in blobs)
    commits = [commit for _, commit in reversed(dated) if listings.SHA1.fullmatch(commit)]
    short = newest.get("ShortId") or ""
    begun = [commit for commit in commits if len(short) >= 7 and commit.startswith(short)]
    if begun or commits:
        return str((begun or commits)[0])
    every = sorted((blob["Path"], blob.get("Sha256") or "", blob.get("Size") or 0) for blob in blobs)
    return f"listing-{hashlib.sha256(repr(every).encode()).hexdigest()[:32]}"


def _unwritable(error: OSError, folder: Path) -> MachineError:
    return MachineError(f"{error.filename or folder} cannot be written: {error.strerror or error}")
