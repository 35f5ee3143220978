"""Open a data file: gzip and zstd are unpacked, another encoding becomes UTF-8, and what is no text at all is refused."""

from __future__ import annotations

import codecs
import gzip
import io
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from training.data import recoding, tables, text_encoding
from training.errors import UserError

# What reading a gzip file raises that is cut short or changed.
DAMAGE = (EOFError, zlib.error, gzip.BadGzipFile)
ZSTD = b"\x28\xb5\x2f\xfd"
GZIP, UTF8_BOM, UTF16_BOMS = b"\x1f\x8b", b"\xef\xbb\xbf", (b"\xff\xfe", b"\xfe\xff")
HEAD = 512  # bytes by which a file that is no text at all is known
CONTAINERS = {  # first bytes -> what such a file is
    b"PK\x03\x04": "a ZIP archive (prepare_data.py reads those that chat programs export)",
    b"ARROW1": "an Arrow file",
    b"BZh": "packed by bzip2",
    b"\xfd7zXZ": "packed by xz",
    b"7z\xbc\xaf": "a 7z archive",
    b"%PDF": "a PDF file",
    b"SQLite format 3": "an SQLite database",
    b"\xd0\xcf\x11\xe0": "an old Office file (.xls, .doc)",
    b"\xff\xff\xff\xff": "an Arrow stream",
    b"\x93NUMPY": "a NumPy file",
    b"\x89HDF": "an HDF5 file",
    b"Obj\x01": "an Avro file",
    b"GGUF\x03\0": "a model in GGUF",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"{\\rtf": "a text of a word processor (RTF)",
    **{b"\x80" + bytes([protocol]): "a pickle of Python, which could run anything" for protocol in range(2, 6)},
}
TAR = (257, b"ustar")  # where a tar archive says that it is one


@contextmanager
def opened(path: Path, encoding: str = "auto") -> Iterator[io.BufferedIOBase]:
    """The file's bytes, unpacked and in UTF-8; UserError for all that goes wrong with it as a whole, also while it is read.

    encoding: ENCODING. A Parquet or Excel file is handed on as it is (`tables.kind_of`).
    """
    try:
        with _open(path, encoding) as file:
            yield file
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None


def position(file: io.BufferedIOBase) -> int:
    """How many bytes of the file on the disk have been read: of the packed ones, where it is packed."""
    if isinstance(file, io.BufferedReader) and isinstance(file.raw, recoding.Made):
        return position(file.raw.source)
    if isinstance(file, gzip.GzipFile):
        # The file that it opened itself; its type names only what gzip calls.
        return cast(IO[bytes], file.fileobj).tell()
    return file.tell()


def damaged(error: Exception) -> str:
    """What to say of a row at which one of DAMAGE was raised."""
    return f"the {'zstd' if isinstance(error, recoding.ZstdDamage) else 'gzip'} file is damaged or cut short here ({error})"


def _open(path: Path, encoding: str) -> io.BufferedIOBase:
    """The file's bytes, unpacked when it is packed (told by its first bytes, not by its name), after the BOM. All UTF-8."""
    if not path.exists():
        raise UserError(f"{path}: there is no such file")
    if path.is_dir():
        raise UserError(f"{path}: is a folder, not a file")
    if not path.is_file():  # a pipe or a device could make us wait for ever
        raise UserError(f"{path}: is not an ordinary file")
    file: io.BufferedIOBase = path.open("rb")
    head = file.read(HEAD)
    if head.startswith(GZIP):
        file.close()
        file = gzip.open(path, "rb")  # noqa: SIM115 (the caller closes it)
        head = _head_of_packed(file)
    elif head.startswith(ZSTD):
        file.seek(0)
        file = recoding.unpacked(file)
        head = _head_of_packed(file)
    if tables.kind_of(path, head):
        file.seek(0)
        return file
    unfit = _unfit(head, encoding)
    codec = "" if unfit else _codec(head, encoding)
    if codec:
        file.seek(0)
        if problem := _not_meant(file, path, encoding):
            file.close()
            raise UserError(problem)
        file.seek(0)
        return recoding.recoded(file, codec, path)
    begin = len(UTF8_BOM) if head.startswith(UTF8_BOM) else 0
    marked = begin > 0 or encoding != "auto"
    if problem := f"{path}: {unfit}" if unfit else _not_utf8(file, path, marked):
        file.close()
        raise UserError(problem)
    file.seek(begin)
    return file


def _codec(head: bytes, encoding: str) -> str:
    """The encoding to read a file in that is not UTF-8; "" where it is. A mark in front of the file says it surely."""
    if head.startswith(UTF8_BOM):
        return ""
    if head.startswith(UTF16_BOMS):
        return "utf-16"
    return "" if encoding == "auto" or codecs.lookup(encoding).name in ("utf-8", "utf-8-sig") else encoding


def _head_of_packed(file: io.BufferedIOBase) -> bytes:
    try:
        return file.read(HEAD)
    except DAMAGE:  # reported with its line when it is read
        return b""


def _not_utf8(file: io.BufferedIOBase, path: Path, marked: bool) -> str:
    """Why the file is not to be read as UTF-8; "" where it is, as far as it can be read."""
    file.seek(0)
    try:
        return text_encoding.problem(file, path, marked)
    except DAMAGE:  # reported with its line when it is read
        return ""


def _not_meant(file: io.BufferedIOBase, path: Path, encoding: str) -> str:
    try:
        return text_encoding.not_meant(file, path, encoding)
    except DAMAGE:  # reported with its line when it is read
        return ""


def _unfit(head: bytes, encoding: str) -> str:
    """Why a file that begins like this holds no rows whatever follows, and what would do; "" for all others."""
    for start, what in CONTAINERS.items():
        if head.startswith(start):
            return (
                f"is {what}, not text; unpack it or save it as JSON lines or CSV (gzip and zstd are read as they are)"
            )
    if head[TAR[0] :].startswith(TAR[1]):
        return "is a tar archive: unpack it, and name the files in it, or a pattern (rows/*.jsonl)"
    if re.match(rb"\s*<\?xml\b", head):
        return "is XML, which says in many ways what a row is; save it as JSON lines or CSV"
    if head.startswith(b"#separator:"):
        return (
            "is an export of Anki without the names of its columns: put a line with them in the place of those that begin "
            "with # (instruction, output, a tab between), and let its name end in .tsv"
        )
    if head.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS, not the file itself; git lfs pull fetches that"
    if re.match(rb"\s*<(!doctype|html)\b", head, re.IGNORECASE):
        return "is a web page, not rows: was it downloaded from the page that shows the file?"
    if (
        encoding == "auto"
        and not head.startswith(UTF16_BOMS)
        and len(head) >= 8
        and abs(head[0::2].count(0) - head[1::2].count(0)) > 0.4 * len(head)
    ):
        order = "le" if head[1::2].count(0) > head[0::2].count(0) else "be"
        return f"is UTF-16 without its mark (every second byte is NUL): ENCODING = utf-16-{order} reads it"
    return ""
