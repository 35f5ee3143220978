"""A folder of documents (Markdown, plain text) as rows of plain text, for a model that goes on learning to read.

Neighbouring sections of a document are one row as long as they fit together; a longer one is cut between paragraphs, then
between lines. No row holds parts of two documents, and nothing of a document is lost but blank lines between rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from training.data.opening import opened
from training.data.record import Record
from training.errors import UserError
from training.system.wording import size

ENDINGS = (".md", ".markdown", ".mdx", ".txt", ".text", ".rst")
MOST_FILES, MOST_BYTES = 100_000, 64 << 20
CHARACTERS = 4000  # of a row; of English some 1,000 tokens
HEADING = re.compile(r"#{1,6}[ \t]+\S")
# Below a line of its own, as Setext and reStructuredText write headings.
UNDERLINE = re.compile(r"(=|-|~|\^)\1{2,}[ \t]*")
FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
# What Jekyll, Hugo and others keep of a page in front of it.
FRONT = re.compile(
    # No line fits two of these, or it would take time that doubles with each line.
    r"\A---[ \t]*\n(?:[ \t][^\n]*\n|\n|- [^\n]*\n|(?!-)[^\s:][^\n:]*:[^\n]*\n)*?---[ \t]*\n"
)


def files_in(folder: Path) -> list[Path]:
    """The documents of a folder and those below it, in the order of their names; no hidden ones, and no links.

    Of one file, which somebody named: that.
    """
    if folder.is_file():
        return [folder]
    found: list[Path] = []
    for path in folder.rglob("*"):
        below = path.relative_to(folder).parts
        if path.suffix.lower() in ENDINGS and not any(part.startswith(".") for part in below):
            if path.is_file() and not path.is_symlink():
                found.append(path)
            if len(found) > MOST_FILES:
                raise UserError(f"{folder}: holds more than {MOST_FILES:,} documents: name a folder in it")
    return sorted(found)


def records(folder: Path, characters: int = CHARACTERS, encoding: str = "auto") -> Iterator[Record]:
    """The rows of all documents. UserError where there is none, or naming one that is no text of that encoding."""
    if not folder.exists():
        raise UserError(f"{folder}: there is no such file or folder")
    found = files_in(folder)
    if not found:
        raise UserError(
            f"{folder}: is a folder without documents ({', '.join(ENDINGS)}), and not the export of a chat program"
        )
    number = 0
    for path in found:
        for text in pieces(_read(path, encoding), characters):
            number += 1
            yield Record(-number, {"text": text})


def _read(path: Path, encoding: str) -> str:
    with opened(path, encoding) as file:
        raw = file.read(MOST_BYTES + 1)
    if len(raw) > MOST_BYTES:
        raise UserError(f"{path}: is larger than {size(MOST_BYTES)}: cut it into several documents")
    text = raw.decode("utf-8").replace("\r\n", "\n")
    if "\0" in text:
        raise UserError(f"{path}:{text[: text.index(chr(0))].count(chr(10)) + 1}: holds a NUL character: is it a text?")
    return FRONT.sub("", text)


def pieces(text: str, most: int) -> Iterator[str]:
    """A document cut at its headings, neighbours together up to `most` characters."""
    piece = ""
    for section in _sections(text):
        for part in _cut(section, most):
            if piece and len(piece) + 2 + len(part) > most:
                yield piece
                piece = ""
            piece = f"{piece}\n\n{part}" if piece else part
    if piece:
        yield piece


def _sections(text: str) -> Iterator[str]:
    """The sections of a document, each with its heading. A # within a block of code is none."""
    lines = text.split("\n")
    begin, fence = 0, ""
    for number, line in enumerate(lines):
        if mark := FENCE.match(line):
            fence = "" if fence and mark[1].startswith(fence) else fence or mark[1]
        if fence or number == begin:
            continue
        below = lines[number + 1] if number + 1 < len(lines) else ""
        under = bool(UNDERLINE.fullmatch(below)) and line.strip() != "" and not lines[number - 1].strip()
        if HEADING.match(line) or under:
            yield from _bare("\n".join(lines[begin:number]))
            begin = number
    yield from _bare("\n".join(lines[begin:]))


def _bare(text: str) -> Iterator[str]:
    if text.strip():
        yield text.strip("\n").rstrip()


def _cut(text: str, most: int) -> Iterator[str]:
    """A text in parts of `most` characters: cut behind a paragraph where there is one, a line, a blank, or wherever."""
    while len(text) > most:
        at = next((place for mark in ("\n\n", "\n", " ") if (place := text.rfind(mark, most // 4, most + 1)) > 0), most)
        yield from _bare(text[:at])
        text = text[at:].lstrip("\n") if text[at : at + 1] == "\n" else text[at:].lstrip(" ")
    yield from _bare(text)
