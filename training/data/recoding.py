"""Files that are made readable on the way: text of another encoding as UTF-8, and what zstd has packed."""

from __future__ import annotations

import codecs
import io
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from training.errors import MachineError, UserError
from training.system import shell

CHUNK = 1 << 18


class ZstdDamage(EOFError):
    """A zstd file that is cut short or changed."""


class Made(io.RawIOBase):
    """Bytes that are made piece by piece from those of `source`; to go back in it is to begin again."""

    def __init__(self, source: io.BufferedIOBase, pieces: Callable[[], Callable[[], bytes]]) -> None:
        self.source = source
        self._begin = pieces
        self._next = pieces()
        self._ready, self._place = b"", 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, place: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place that was read before, or on from here."""
        if whence != io.SEEK_SET:
            raise io.UnsupportedOperation("only from the start")
        if place < self._place:
            self.source.seek(0)
            self._next = self._begin()
            self._ready, self._place = b"", 0
        while self._place < place and (more := self.read(min(CHUNK, place - self._place))):
            del more
        return self._place

    def readinto(self, target: bytearray | memoryview) -> int:  # type: ignore[override]
        """As many bytes as are ready; 0 at the end."""
        if not self._ready:
            self._ready = self._next()
        count = min(len(target), len(self._ready))
        target[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        self._place += count
        return count

    def close(self) -> None:
        """Close the source as well."""
        self.source.close()
        super().close()


def recoded(source: io.BufferedIOBase, codec: str, path: Path) -> io.BufferedReader:
    """The text of a file in another encoding, as UTF-8 without a mark. UserError at what is not of that encoding."""

    def begin() -> Callable[[], bytes]:
        decoder = codecs.getincrementaldecoder(codec)()
        lines, first = 1, True

        def more() -> bytes:
            nonlocal lines, first
            while True:
                chunk = source.read(CHUNK)
                try:
                    text = decoder.decode(chunk, final=not chunk)
                except UnicodeError as error:
                    said = error.reason if isinstance(error, UnicodeDecodeError) else str(error)
                    raise UserError(
                        f"{path}: is not in {codec} ({said}, after line {lines}), so none of the file is read; "
                        "ENCODING = auto names the likely encoding"
                    ) from None
                if first and text:
                    text, first = text.removeprefix("\ufeff"), False
                lines += text.count("\n")
                if text or not chunk:
                    return text.encode("utf-8", "surrogatepass")

        return more

    return io.BufferedReader(Made(source, begin), CHUNK)


class _Stream(Protocol):
    def read(self, size: int) -> bytes: ...


def unpacked(source: io.BufferedIOBase) -> io.BufferedReader:
    """What a zstd file holds. MachineError where nothing is installed that unpacks it."""
    try:
        import pyarrow as pa
    except ModuleNotFoundError:
        raise MachineError(
            f"pyarrow, which unpacks zstd, is not installed in this Python: {shell.command('setup.sh')} makes .venv, and its Python has it"
        ) from None

    def begin() -> Callable[[], bytes]:
        stream: _Stream = pa.CompressedInputStream(pa.PythonFile(_Kept(source), mode="r"), "zstd")

        def more() -> bytes:
            try:
                return stream.read(CHUNK)
            except (OSError, pa.ArrowException) as error:
                raise ZstdDamage(str(error).splitlines()[0]) from None

        return more

    return io.BufferedReader(Made(source, begin), CHUNK)


class _Kept:
    """A file that is not closed with what reads it."""

    closed = False

    def __init__(self, source: io.BufferedIOBase) -> None:
        self.read, self.tell = source.read, source.tell

    def close(self) -> None:
        """The source is closed by its owner."""
