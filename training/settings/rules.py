"""One setting's rule, and how a value is read from text by it and written back. The settings themselves: loading.py.

A setting is one line in a section's dataclass:
    r: int = setting(16, at_least=1, help="adapter rank; 8, 16 or 32 suit most runs")
Its annotation says how the text is read (READERS), `setting` gives its default and what is allowed.
"""

from __future__ import annotations

import dataclasses
import os
import re
import stat
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from training.errors import UserError
from training.settings import data_files, hub_names, ini_file, names

Auto = Literal["auto"]
Int8 = Literal["int8"]
LARGEST_INT = 2**31 - 1

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Given:
    """A value as somebody gave it: its text, whether quotes have settled what it means, where relative paths start."""

    text: str
    folder: Path
    quoted: bool = False
    comment: str = ""  # what the file has behind the value


@dataclass(frozen=True)
class Rule:
    """What is known of a setting besides its name and type. Bounds hold for numbers, `one_of` for words."""

    default: object
    help: str
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    one_of: tuple[str, ...] = ()
    is_a: Literal["", "file", "files", "folder", "model"] = ""  # what must be there on the disk (missing)
    # Where the annotation's own reader does not do.
    read: Callable[[Given, Rule], object] | None = None
    # The value by which runs were made that are older than the setting, where that is not the default.
    before: str | None = None


def setting(default: object, *, help: str, **rule: Any) -> Any:
    """A field of a section: its default, what it is for, and what is allowed (the fields of Rule)."""
    return dataclasses.field(default=default, metadata={"rule": Rule(default, help, **rule)})


def read(given: Given, rule: Rule, kind: str) -> Any:
    """The value that the text means under this rule. Raises ValueError with what would be allowed."""
    if "\0" in given.text:
        raise ValueError("holds a NUL character")
    if re.search("[\ud800-\udfff]", f"{given.text}{given.folder}"):
        # Bytes of an argument or a folder's name that Python could not decode.
        raise ValueError("is not UTF-8")
    return (rule.read or READERS[kind])(given, rule)


def _whole(given: Given, rule: Rule) -> int:
    text = given.text.strip()
    if not re.fullmatch(r"[+-]?[0-9]+", text) or len(text) > 30:
        raise ValueError(
            f"expected a whole number{_typed(text)}" if len(text) <= 30 else f"must be at most {LARGEST_INT}"
        )
    return _in_range(int(text), rule, LARGEST_INT)


def _number(given: Given, rule: Rule) -> float:
    text = given.text.strip()
    if not re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", text):
        raise ValueError(f"expected a number such as 0.1 or 2e-4{_typed(text)}")
    return _in_range(float(text), rule, 1e300)


def _typed(text: str) -> str:
    """How a number is typed that only looks like one: full-width digits of a Chinese keyboard, a dash for a minus."""
    plain = unicodedata.normalize("NFKC", text).translate(dict.fromkeys(map(ord, "\u2212\u2013\u2014\u2010"), "-"))
    return f"; its characters only look alike: type {plain}" if plain != text and plain.isascii() else ""


def _in_range(value: Number, rule: Rule, largest: float) -> Number:
    """`value`, or ValueError with the range, worded as a person would."""
    low = rule.above if rule.above is not None else rule.at_least
    high = rule.below if rule.below is not None else rule.at_most
    fits_low = low is None or (value > low if rule.above is not None else value >= low)
    fits_high = high is None or (value < high if rule.below is not None else value <= high)
    if fits_low and fits_high and (high is not None or value <= largest):
        return value
    if high is None and fits_low:
        raise ValueError(f"must be at most {largest}")
    raise ValueError(f"must be {allowed_range(rule)}")


def allowed_range(rule: Rule) -> str:
    """The numbers that a rule allows, in words: "at least 1", "from 0 up to, not including, 1"."""
    low = rule.above if rule.above is not None else rule.at_least
    high = rule.below if rule.below is not None else rule.at_most
    if high is None:
        return f"above {low}" if rule.above is not None else f"at least {low}"
    if rule.above is not None:
        return f"above {low} and " + (f"below {high}" if rule.below is not None else f"at most {high}")
    return f"from {low} up to, not including, {high}" if rule.below is not None else f"from {low} to {high}"


def _switch(given: Given, rule: Rule) -> bool:
    word = given.text.strip().lower()
    if word not in ("true", "false"):
        raise ValueError("expected true or false")
    return word == "true"


def _switch_or_auto(given: Given, rule: Rule) -> bool | Auto:
    word = given.text.strip().lower()
    if word not in ("true", "false", "auto"):
        raise ValueError("expected auto, true or false")
    return "auto" if word == "auto" else word == "true"


def _switch_auto_or_int8(given: Given, rule: Rule) -> bool | Auto | Int8:
    word = given.text.strip().lower()
    if word not in ("true", "false", "auto", "int8"):
        raise ValueError("expected auto, true, false or int8")
    if word == "int8":
        return "int8"
    return "auto" if word == "auto" else word == "true"


def _or_auto(read: Callable[[Given, Rule], Number]) -> Callable[[Given, Rule], Number | Auto]:
    """A reader that takes auto, too."""

    def read_or_auto(given: Given, rule: Rule) -> Number | Auto:
        if given.text.strip().lower() == "auto":
            return "auto"
        try:
            return read(given, rule)
        except ValueError as error:
            raise ValueError(f"{error}, or auto") from None

    return read_or_auto


def one_word(given: Given, rule: Rule) -> str:
    """A word of `one_of` in any case; without `one_of` any text that is not empty."""
    if not rule.one_of:
        text = free_text(given, rule)
        if not text.strip():
            raise ValueError("must not be empty")
        return text
    word = given.text.strip()
    for choice in rule.one_of:
        if word.lower() == choice.lower():
            return choice
    raise ValueError(f"must be one of {', '.join(rule.one_of)}{names.did_you_mean(word, rule.one_of)}")


def free_text(given: Given, rule: Rule) -> str:
    """Free text: `@file` is the content of that file without its last line end; else escapes stand for line breaks."""
    if given.quoted:
        return given.text
    if not given.text.startswith("@"):
        return ini_file.unescape(given.text)
    if not given.text[1:].strip():
        raise ValueError("names no file after @")
    try:
        text = ini_file.read_text(absolute_path(Given(given.text[1:], given.folder), rule))
    except UserError as error:
        raise ValueError(str(error)) from None
    return re.sub(r"(\r\n|\n|\r)\Z", "", text)


def optional_text(given: Given, rule: Rule) -> str | None:
    """Free text; an empty value, or the bare word none, is None."""
    # A heading or a template: hardly meant as a comment.
    if not given.quoted and (given.comment.startswith("##") or "{" in given.comment):
        raise ValueError(
            f"{ini_file.show(given.comment, 30)} is read as a comment; put the whole text in double quotes"
        )
    text = "" if is_none(given) else free_text(given, rule)
    return text if text.strip() else None


def is_none(given: Given) -> bool:
    """Whether an optional value was left empty, or is the bare word none."""
    return not given.text.strip() if given.quoted else given.text.strip().lower() in ("", "none")


def absolute_path(given: Given, rule: Rule) -> Path:
    """An absolute path: `~` is the home folder, and a relative one starts where the value was given."""
    if not given.text.strip():
        raise ValueError("must not be empty")
    path = Path(given.text)
    try:
        path = path.expanduser()
    except RuntimeError:
        raise ValueError(f"there is no home folder for {path.parts[0]}") from None
    return _without_dots(given.folder / path)


def _without_dots(path: Path) -> Path:
    """The path without `..`, where that is the same place: behind a link to a folder it is another."""
    if ".." not in path.parts:
        return path
    shorter = Path(os.path.normpath(path))
    try:
        return shorter if path.parent.samefile(shorter.parent) else path
    except OSError:
        return path


def _optional_path(given: Given, rule: Rule) -> Path | None:
    return None if is_none(given) else absolute_path(given, rule)


def name_list(given: Given, rule: Rule) -> tuple[str, ...]:
    """A comma list of names, each at most once."""
    found = tuple(name.strip() for name in given.text.split(","))
    if not all(found):
        raise ValueError("expected names with commas between them")
    twice = [name for name in found if found.count(name) > 1]
    if twice:
        raise ValueError(f"{twice[0]} is named twice")
    return found


READERS: dict[str, Callable[[Given, Rule], object]] = {
    "int": _whole,
    "float": _number,
    "bool": _switch,
    "bool | Auto": _switch_or_auto,
    "bool | Auto | Int8": _switch_auto_or_int8,
    "int | Auto": _or_auto(_whole),
    "float | Auto": _or_auto(_number),
    "str": one_word,
    "str | None": optional_text,
    "Path": absolute_path,
    "Path | None": _optional_path,
    "tuple[str, ...]": name_list,
}


def missing(value: object, rule: Rule) -> str:
    """What is wrong on the disk with the path in `value`, as this setting needs it; empty when nothing is."""
    if value is None or not rule.is_a:
        return ""
    path = Path(str(value))
    if rule.is_a == "files":
        try:
            reasons = (_missing(one.path, "file") for one in data_files.named(path) if one.on_a_hub is None)
            return next(filter(None, reasons), "")
        except ValueError as error:
            return str(error)
    # The name of a model or a data set is no path; it is looked up elsewhere.
    return _missing(path, rule.is_a) if path.is_absolute() else ""


def _missing(path: Path, is_a: str) -> str:
    try:
        is_folder = stat.S_ISDIR(path.stat().st_mode)
    except FileNotFoundError:
        kind = "file or folder" if is_a == "model" else "file"
        return "" if is_a == "folder" else f"no such {kind} ({ini_file.shown(path)}){_meant(path)}"
    except PermissionError:
        return f"permission denied ({ini_file.shown(path)})"
    except OSError as error:
        return f"cannot be used as a path: {error.strerror} ({ini_file.shown(path)})"
    if is_folder and is_a == "file":
        return f"is a folder; a file is expected ({ini_file.shown(path)})"
    if not is_folder and is_a == "folder":
        return f"is there already and is not a folder ({ini_file.shown(path)})"
    return "" if os.access(path, os.R_OK) else f"permission denied ({ini_file.shown(path)})"


def _meant(path: Path) -> str:
    """What would do, where the name of a missing file says that something else was meant than one file on the disk."""
    # An address: absolute_path has left one of its two slashes.
    if address := re.search(r"/([a-z][a-z0-9]*:/.*)", str(path)):
        name = hub_names.meant(address[1])
        return f"; an address is not fetched: {f'write {name}' if name else 'download the file and name it here'}"
    return "; one file is expected, not a list" if "," in path.name else ""


def allowed(rule: Rule, kind: str) -> str:
    """What a setting may be, in a few words for a table."""
    if rule.one_of:
        return ", ".join(rule.one_of)
    words = {
        "bool": "true, false",
        "bool | Auto": "auto, true, false",
        "bool | Auto | Int8": "auto, true, false, int8",
        "Path": "path",
        "Path | None": "path, or none",
        "str | None": "text, or none",
        "tuple[str, ...]": "names with commas between",
        "str": "text",
    }
    if kind in words:
        return words[kind]
    numbers = f"{'whole number' if kind.startswith('int') else 'number'}, {allowed_range(rule)}"
    return f"auto, or a {numbers}" if kind.endswith("Auto") else numbers


def write(value: object) -> str:
    """The text of a value, without quotes: what `read` takes back to the same value, once quoted (ini.quote)."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return ",".join(value)
    return _shortest(value) if isinstance(value, float) else str(value)


def _shortest(number: float) -> str:
    """A number with all its digits and no more signs than needed: 3 for 3.0, 2e-4 for 0.0002."""
    plain = repr(number).removesuffix(".0")
    if number - number != 0:  # infinite, or none; `read` says so
        return plain
    mantissa, _, exponent = f"{number:.17e}".partition("e")
    for digits in range(17):
        short = f"{number:.{digits}e}"
        if float(short) == number:
            mantissa, _, exponent = short.partition("e")
            break
    scientific = f"{mantissa}e{int(exponent)}"
    return scientific if len(scientific) < len(plain) else plain
