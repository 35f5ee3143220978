"""COLUMNS: which column of a data file holds what, as `instruction: Frage, output: Antwort`."""

from __future__ import annotations

import csv

from training.errors import UserError
from training.settings import names

# What a column may be taken as; data/columns.py knows the same.
FIELDS = (
    *("instruction", "input", "output", "response", "prompt", "completion", "messages", "conversations", "text"),
    *("system", "context", "history", "tools", "reasoning_content"),
)


def parse(text: str) -> dict[str, str]:
    """Field -> column. Raises UserError with what is wrong."""
    try:
        (parts,) = csv.reader([" ".join(text.split())], skipinitialspace=True, strict=True)
    except (csv.Error, ValueError):
        raise UserError("a quotation mark has no partner") from None
    found: dict[str, str] = {}
    for part in parts:
        field, colon, column = part.partition(":")
        field, column = field.strip().lower(), column.strip()
        if not colon or not column:
            raise UserError(f"{part.strip()!r}: expected field: column, as in instruction: Frage, output: Antwort")
        if field not in FIELDS:
            raise UserError(f"{field} is not a field; {', '.join(FIELDS)} are{names.did_you_mean(field, FIELDS)}")
        if field in found:
            raise UserError(f"{field} is named twice")
        found[field] = column
    return found
