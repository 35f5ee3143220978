"""Values of a row's fields: what is text that a tokenizer can take, and why another value is none."""

from __future__ import annotations

import ast
import json

from training.data.record import describe


class Bad(Exception):
    """Why this row cannot be trained on."""


NOTHING: tuple[object, ...] = (None, "", [], {})  # empty values: dropping them loses nothing
MOST_SHOWN = 1 << 20  # characters of a list that Python wrote: to read it takes some hundred times its size in memory
INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff\u00ad"  # zero-width characters, which web pages leave behind


def is_blank(text: str) -> bool:
    """Whether nothing of the text can be seen."""
    bare = text.strip()
    return not bare or (bare[0] in INVISIBLE and not bare.translate(dict.fromkeys(map(ord, INVISIBLE))).strip())


def sound(value: object, name: str) -> str:
    """`value` when it is text that a tokenizer can take."""
    if not isinstance(value, str):
        quotes = "; write it in quotes" if isinstance(value, (int, float)) and not isinstance(value, bool) else ""
        raise Bad(f"{name} is {describe(value)}, not text{quotes}")
    if "\0" in value:
        raise Bad(f"{name} holds a NUL character")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            code = ord(value[error.start])
            if 0xDC80 <= code <= 0xDCFF:  # how the readers hand on a byte that is not UTF-8
                raise Bad(f"{name} is not UTF-8: byte 0x{code - 0xDC00:02x}") from None
            raise Bad(f"{name} holds half a character (a lone surrogate, \\u{code:04x})") from None
    return value


def written_list(value: object, name: str) -> object:
    """A list that was written into a text (a cell of a table), as JSON or as Python shows it; any other value as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        pass
    if len(value) > MOST_SHOWN:
        raise Bad(f"{name} is not JSON, and too long for a list as Python shows it")
    try:  # what pandas writes into a CSV file
        return ast.literal_eval(value.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise Bad(
            f"{name} begins like a list or an object inside of a text, and is neither JSON nor Python's"
        ) from None


def sound_inside(value: object, name: str) -> None:
    """Look at all texts within lists and objects as `sound` does."""
    if isinstance(value, str):
        sound(value, name)
    elif isinstance(value, list):
        for one in value:
            sound_inside(one, name)
    elif isinstance(value, dict):
        for key, one in value.items():
            sound(key, name)
            sound_inside(one, name)
