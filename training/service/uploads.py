"""Files that were uploaded: under OUTPUT_DIR/files, each with a note of what it is, readable by the owner alone."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from training.errors import UserError
from training.service.asked import KINDS_OF_FILE, Problem, Refused
from training.service.jobs import NotFound
from training.system import files, foreign_json
from training.system.foreign_json import COUNT, TEXT

ID = re.compile(r"file-[0-9a-f]{24}")
KINDS = {**dict.fromkeys(("filename", "purpose", "suffix"), TEXT), **dict.fromkeys(("bytes", "created_at"), COUNT)}
ROOM = 1 << 30  # bytes of the disk that an upload must leave free


class Uploads:
    """All uploaded files of one OUTPUT_DIR."""

    def __init__(self, home: Path) -> None:
        self.folder = home / "files"

    def keep(self, name: str, purpose: str, content: IO[bytes], size: int) -> dict[str, Any]:
        """Keep a file. Refused where nothing could read it by its name, OSError where the disk has no room."""
        suffix = Path(name).suffix.lower()
        if suffix[1:] not in KINDS_OF_FILE:
            kinds = ", ".join(f".{kind}" for kind in KINDS_OF_FILE)
            raise Refused([Problem("file", f"file: the name must end in one of {kinds}, by which it is read")])
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if shutil.disk_usage(self.folder).free < size + ROOM:
            raise OSError(errno.ENOSPC, "there is too little room for the file")
        file_id = f"file-{secrets.token_hex(12)}"
        path = self.folder / f"{file_id}{suffix}"
        partial = path.with_name(f".{path.name}")
        try:
            with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                shutil.copyfileobj(content, file, 1 << 20)
            partial.replace(path)
        finally:
            files.remove(partial)
        note = {
            "filename": Path(name).name[:200],
            "purpose": purpose[:100],
            "suffix": suffix,
            "bytes": size,
            "created_at": int(time.time()),
        }
        files.write_json(self._note(file_id), note)
        return {**_shown(file_id, note), "path": str(path)}

    def find(self, file_id: str) -> dict[str, Any]:
        """What is known of a file. NotFound where there is none."""
        return _shown(file_id, self._read(file_id))

    def path(self, file_id: str) -> Path:
        """Where the content of a file is. NotFound where there is none."""
        path = self.folder / f"{file_id}{self._read(file_id)['suffix']}"
        # It is served as it is: no link may stand in its place.
        if path.is_symlink() or not path.is_file():
            raise NotFound(f"the content of {file_id} is there no more")
        return path

    def every(self) -> list[dict[str, Any]]:
        """All files, newest first."""
        found = []
        for note in self.folder.glob("file-*.note") if self.folder.is_dir() else ():
            try:
                found.append(self.find(note.stem))
            except (UserError, OSError):  # removed meanwhile, or damaged
                continue
        return sorted(found, key=lambda file: (file["created_at"], file["id"]), reverse=True)

    def remove(self, file_id: str) -> None:
        """Remove a file. Runs that were trained on it are as they were."""
        path = self.folder / f"{file_id}{self._read(file_id)['suffix']}"
        self._note(file_id).unlink(missing_ok=True)
        path.unlink(missing_ok=True)

    def _note(self, file_id: str) -> Path:
        return self.folder / f"{file_id}.note"

    def _read(self, file_id: str) -> dict[str, Any]:
        if not ID.fullmatch(file_id) or not self._note(file_id).is_file():
            raise NotFound(f"there is no file {file_id[:80]!r}")
        note = foreign_json.read(self._note(file_id), KINDS)
        if note.get("suffix", "")[1:] not in KINDS_OF_FILE:
            raise NotFound(f"there is no file {file_id[:80]!r}")
        return note


def _shown(file_id: str, note: Mapping[str, Any]) -> dict[str, Any]:
    told = {name: note.get(name) for name in ("bytes", "created_at", "filename", "purpose")}
    return {"id": file_id, "object": "file", "status": "processed", **told}
