"""Open an export: a file, a folder, or a zip file as the program gives it. Nothing is unpacked onto the disk.

Whoever wrote it, reading is bounded: what is read of a zip file is counted as it comes out, whatever its list says.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from training.errors import UserError
from training.system.wording import size

MOST_BYTES = 1 << 30  # of one text or JSON file: as objects of Python it is some eight times as large
MOST_MEMBERS = 200_000  # of a zip file or a folder: a large Slack export has a file for each day of each channel
HEAD = 1 << 16
ZIP = (b"PK\x03\x04", b"PK\x05\x06")  # an empty one begins as the other does
UTF16 = (b"\xff\xfe", b"\xfe\xff")
DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)


@dataclass(frozen=True)
class Member:
    """One file of an export: its name within it, with / between the parts."""

    name: str
    source: Source

    def head(self) -> bytes:
        """Its first HEAD bytes."""
        return self.source.read(self.name, HEAD)

    def place(self) -> str:
        """What a message calls it."""
        return str(self.source.path) if self.source.kind == "file" else f"{self.source.path}, {self.name}"

    def text(self, encoding: str = "auto") -> str:
        """All of it. UserError where it is too large, empty, or not in that encoding (auto: UTF-8, or UTF-16 with its mark)."""
        raw = self.source.read(self.name, MOST_BYTES + 1)
        if len(raw) > MOST_BYTES:
            raise UserError(
                f"{self.place()}: holds more than {size(MOST_BYTES)}: export fewer chats at a time, and without media"
            )
        codec = encoding
        if encoding == "auto":
            codec = "utf-16" if raw.startswith(UTF16) else "utf-8-sig"
        try:
            # No text holds a NUL, and some that were saved again have lines as an old Mac's.
            text = raw.decode(codec).replace("\0", "")
        except UnicodeDecodeError as error:
            line = raw.count(b"\n", 0, error.start) + 1
            other = "--encoding names it, as in --encoding gb18030" if encoding == "auto" else "is it another one?"
            raise UserError(
                f"{self.place()}:{line}: is not {encoding if encoding != 'auto' else 'UTF-8'}: {other}"
            ) from None
        if not text.strip():
            raise UserError(f"{self.place()}: the file is empty")
        return text if "\n" in text else text.replace("\r", "\n")

    def json(self) -> object:
        """What it holds as JSON. UserError where it is none."""
        text = self.text()
        try:
            return json.loads(text)
        except RecursionError:
            raise UserError(f"{self.place()}: is nested too deep to be an export") from None
        except json.JSONDecodeError as error:
            end = " (was the download cut short?)" if error.pos >= len(text.rstrip()) - 1 else ""
            raise UserError(f"{self.place()}:{error.lineno}: is not JSON: {error.msg}{end}") from None
        except ValueError as error:  # a number of thousands of digits
            raise UserError(f"{self.place()}: is not JSON: {error}") from None


class Source:
    """An export on the disk. `kind` is "file", "folder" or "zip"."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._opened: zipfile.ZipFile | None = None
        if not path.exists():
            raise UserError(f"{path}: there is no such file")
        if path.is_dir():
            self.kind = "folder"
        elif not path.is_file():
            raise UserError(f"{path}: is not an ordinary file")
        else:
            with _told(path), path.open("rb") as file:
                self.kind = "zip" if file.read(len(ZIP[0])) in ZIP else "file"

    def members(self, *suffixes: str) -> list[Member]:
        """The files in it whose names end so, in the order of their names; without those that a Mac or an editor adds."""
        found = []
        for number, name in enumerate(self._names()):
            if number >= MOST_MEMBERS:
                raise UserError(f"{self.path}: holds more than {MOST_MEMBERS:,} files, which no export has")
            parts = PurePosixPath(name).parts
            hidden = any(part.startswith((".", "__MACOSX")) for part in parts)
            if parts and not hidden and name.lower().endswith(suffixes):
                found.append(Member(name, self))
        return sorted(found, key=lambda one: one.name)

    def read(self, name: str, most: int) -> bytes:
        """The first `most` bytes of a file in it."""
        with _told(self.path):
            if self.kind == "zip":
                with self._archive().open(name) as member:
                    return member.read(most)
            path = self.path if self.kind == "file" else self.path / name
            with path.open("rb") as file:
                return file.read(most)

    def _archive(self) -> zipfile.ZipFile:
        """The zip file, its list of members read but once: an export may have as many as days."""
        if self._opened is None:
            self._opened = zipfile.ZipFile(self.path)
        return self._opened

    def _names(self) -> Iterator[str]:
        if self.kind == "file":
            yield self.path.name
        elif self.kind == "zip":
            with _told(self.path):
                yield from (one.filename for one in self._archive().infolist() if not one.is_dir())
        else:
            # A link may lead anywhere, round in a circle or to a device: what is exported has none.
            for path in self.path.rglob("*"):
                if path.is_file() and not path.is_symlink():
                    yield path.relative_to(self.path).as_posix()


class _told:  # noqa: N801 (used as a function)
    """Tells what goes wrong with a file while it is read."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise UserError(f"{self._path}: cannot be read: {error.strerror or error}") from None
        if isinstance(error, DAMAGE):
            word = "is locked by a password" if "password" in str(error) else f"is damaged or cut short ({error})"
            raise UserError(
                f"{self._path}: the zip file {word}: export it anew, or unpack it and name the folder"
            ) from None
