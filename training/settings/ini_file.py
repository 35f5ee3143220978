"""Read and write `config.ini`: the lines of the file, with their numbers. What the settings mean is in loading.py.

The format, smaller than configparser's and without its surprises:
- `[Section]`, `KEY = value`, empty lines, and comments: a line that starts with `#` or `;`, or the end of a line after
  white space and `#` or `;`. Keys keep their case; `%`, and `#` without white space before it, are text.
- A value in double quotes is taken as it stands between them, with the escapes `\\n \\t \\r \\\\ \\"`.
- A value ends with its line. Lines end in LF, CRLF or CR; the file is UTF-8, with or without a byte order mark.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from training.errors import UserError
from training.system.privacy import redact

LARGEST = 1 << 20  # bytes; a settings file of a megabyte is some other file
MOST_PROBLEMS = 100
ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", '"': '"'}

_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"(?:\s*|\s+([#;].*))', re.DOTALL)
_COMMENT = re.compile(r"\s[#;].*", re.DOTALL)
_PLAIN = re.compile(r'[^\s"\'#;@\\](?:[^\x00-\x1f\x7f"\\]*[^\s"\\])?')


@dataclass(frozen=True)
class Entry:
    """One `KEY = value` line. A quoted value is unescaped already, and nothing in it has a further meaning."""

    section: str
    key: str
    value: str
    quoted: bool
    line: int
    comment: str = ""  # what was cut off behind the value


@dataclass
class Ini:
    """What a file says: its entries and sections in order, and every line that cannot be read, as (line, reason)."""

    entries: list[Entry] = field(default_factory=list)
    sections: dict[str, int] = field(default_factory=dict)  # name -> line
    problems: list[tuple[int, str]] = field(default_factory=list)


def read(path: Path) -> Ini:
    """Read the file. Raises UserError when it cannot be read as text at all, or is empty."""
    text = read_text(path)
    if not text.strip():
        raise UserError(f"{shown(path)}: the file is empty; a settings file needs at least a line such as [Model]")
    return parse(text)


def read_text(path: Path) -> str:
    """The text of a small UTF-8 file, without its byte order mark, line ends as they are. Raises UserError."""
    try:
        if path.is_dir():
            raise UserError(f"{shown(path)}: is a folder; a file is expected")
        if path.exists() and not path.is_file():
            # Opening a pipe would wait for ever.
            raise UserError(f"{shown(path)}: is not a regular file")
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except FileNotFoundError:
        raise UserError(f"{shown(path)}: no such file") from None
    except PermissionError:
        raise UserError(f"{shown(path)}: permission denied") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
        raise UserError(f"{shown(path)}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if len(content) > LARGEST:
        raise UserError(f"{shown(path)}: larger than {LARGEST >> 20} MiB; is this the right file?")
    return _decode(content, path)


def _decode(content: bytes, path: Path) -> str:
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise UserError(f"{shown(path)}: is UTF-16; save it as UTF-8")
    if b"\0" in content:
        line = _line_of(content, content.index(b"\0"))
        raise UserError(f"{shown(path)}:{line}: holds a NUL byte: this is not a text file")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # The error counts without the byte order mark.
        start = error.start + (3 if content.startswith(b"\xef\xbb\xbf") else 0)
        line = _line_of(content, start)
        raise UserError(f"{shown(path)}:{line}: is not UTF-8 (byte 0x{content[start]:02x}); save it as UTF-8") from None


def _line_of(content: bytes, position: int) -> int:
    return len(re.findall(rb"\r\n|\n|\r", content[:position])) + 1


def parse(text: str) -> Ini:
    """Take the text apart. Never raises: what cannot be read is among the problems."""
    ini = Ini()
    section: str | None = None
    first: dict[tuple[str, str], int] = {}
    # splitlines() would cut at U+2028, too.
    for number, line in enumerate(re.split(r"\r\n|\n|\r", text), start=1):
        if len(ini.problems) >= MOST_PROBLEMS:
            ini.problems.append((number, "the rest was not read; is this a settings file?"))
            break
        stripped = line.strip()
        if not stripped or stripped[0] in "#;":
            continue
        if stripped[0] == "[":
            section = _header(stripped, number, ini)
            continue
        key, equals, rest = line.partition("=")
        key = key.strip()
        if not equals or not key:
            ini.problems.append((number, _not_a_setting(line)))
        elif section is None:
            ini.problems.append((number, f"{show(key)} stands before any [Section]"))
        elif (section, key) in first:
            reason = f"[{show(section)}] {show(key)} is given twice (first in line {first[section, key]})"
            ini.problems.append((number, reason))
        else:
            first[section, key] = number
            _add(ini, section, key, rest, number)
    return ini


def _header(stripped: str, number: int, ini: Ini) -> str:
    """The section that the header line opens; a malformed or repeated one is noted, and its lines are read all the same."""
    match = re.fullmatch(r"\[([^\]]*)\](?:\s*|\s+[#;].*)", stripped)
    name = (match[1] if match else stripped[1:].split("]")[0]).strip()
    if not match or not name:
        ini.problems.append((number, f"{show(stripped)} is not a section; write it as [Section]"))
    elif name in ini.sections:
        ini.problems.append((number, f"section [{show(name)}] appears twice (first in line {ini.sections[name]})"))
    if name:
        ini.sections.setdefault(name, number)
    return name


def _add(ini: Ini, section: str, key: str, rest: str, number: int) -> None:
    if not rest.lstrip().startswith('"'):
        comment = _COMMENT.search(rest)
        value = rest[: comment.start()] if comment else rest
        ini.entries.append(Entry(section, key, value.strip(), False, number, comment[0].strip() if comment else ""))
    elif match := _QUOTED.fullmatch(rest.strip()):
        ini.entries.append(Entry(section, key, unescape(match[1]), True, number, match[2] or ""))
    else:
        reason = f'[{show(section)}] {show(key)}: the value begins with a quotation mark but does not end with one; write \\" inside'
        ini.problems.append((number, reason))


def _not_a_setting(line: str) -> str:
    if line[0].isspace():
        return f"{show(line.strip())}: a value ends with its line; write \\n for a line break, or @file to take the value from a file"
    return f"{show(line.strip())} is neither [Section] nor KEY = value"


def unescape(text: str) -> str:
    """Replace `\\n \\t \\r \\\\ \\"` by what they stand for; another character after a backslash stays as it is, with it."""
    return re.sub(r"\\(.)", lambda match: ESCAPES.get(match[1], match[0]), text, flags=re.DOTALL)


def quote(text: str) -> str:
    """Write `text` as a value that reads back the same: as it stands where that is safe, else in double quotes."""
    if not text:
        return ""
    if _PLAIN.fullmatch(text) and not re.search(r"\s[#;]", text) and text.lower() != "none":
        return text
    for letter, character in (("\\", "\\"), ('"', '"'), ("n", "\n"), ("t", "\t"), ("r", "\r")):
        text = text.replace(character, "\\" + letter)
    return f'"{text}"'


def show(text: str, most: int = 60) -> str:
    """`text` for an error message: on one line, without secrets and control characters, and not too long."""
    text = redact(text)
    text = "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)
    return text if len(text) <= most else text[: most - 3] + "..."


def shown(path: Path) -> str:
    """A whole path for an error message."""
    return show(str(path), 4096)
