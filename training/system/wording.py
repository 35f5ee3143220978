"""Figures as people read them: sizes, times, counts and settings."""

from __future__ import annotations

import textwrap
import time
import unicodedata
from collections.abc import Sequence


def number(value: float | None, form: str = ".4g") -> str:
    """A figure, or `-` where there is none."""
    return "-" if value is None else format(value, form)


def value_text(value: object) -> str:
    """A setting or a figure as a person writes it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return ",".join(value_text(item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {value_text(item)}" for key, item in value.items())
    return str(value)


def count(value: int) -> str:
    """A large number: 135 M, 8.03 G."""
    for unit, name in ((10**9, "G"), (10**6, "M")):
        if value >= unit:
            return f"{value / unit:.3g} {name}"
    return f"{value:,}"


def counted(number: float, noun: str) -> str:
    """A number with its noun: 1 row, 12 rows, 1.5 epochs."""
    said = f"{number:,.2g}" if number < 10 and number != int(number) else f"{number:,.0f}"
    return f"{said} {noun}{'s' * (said != '1')}"


def listed(items: Sequence[str]) -> str:
    """Several things in a sentence: a; a and b; a, b and c."""
    return " and ".join(filter(None, (", ".join(items[:-1]), *items[-1:])))


def size(value: int) -> str:
    """Bytes as Ollama and file managers say them: powers of 1000."""
    for unit, name in ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if value >= unit:
            return f"{value / unit:.{1 if value < 100 * unit else 0}f} {name}"
    return f"{value} B"


def duration(seconds: float) -> str:
    """Seconds as 0.8 s, 42 s, 5 min 12 s, 1 h 02 min."""
    if seconds < 0.05:
        return "under 0.1 s"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60:02d} min"


def moment(seconds: float | None) -> str:
    """A time of day in the machine's own zone."""
    return "" if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(seconds))


def gigabytes(size: float) -> str:
    """A size in bytes as people read it."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.0f} MB"


def clock(seconds: float) -> str:
    """Seconds as 1:40 or 2:03:04."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def shorten(text: str, length: int = 40) -> str:
    """`text` on one line, cut to `length` characters."""
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "…"


def first_line(error: BaseException, otherwise: str = "") -> str:
    """The first line of what an error says; where it says nothing, `otherwise`, or the name of its kind."""
    return next(iter(str(error).strip().splitlines()), otherwise or type(error).__name__)


def fold(line: str, most: int = 100) -> list[str]:
    """One line as several: at white space, and anywhere in Chinese, whose characters are two columns wide."""
    if columns(line) <= most:
        return [line]
    if columns(line) == len(line):
        return textwrap.wrap(line, most, replace_whitespace=False, drop_whitespace=True) or [""]
    found = [""]
    for character in line:
        if columns(found[-1] + character) > most:
            found.append("")
        found[-1] += character
    return found


def columns(text: str) -> int:
    """How many columns of a terminal the text takes."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + wide - sum(bool(unicodedata.combining(character)) for character in text)
