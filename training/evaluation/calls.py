"""Calls of tools in an answer: whatever marks a template puts around them, they are JSON with a name and arguments."""

from __future__ import annotations

import json
from collections.abc import Iterator

# What holds the arguments: OpenAI's and Qwen's word, Llama's.
ARGUMENTS = ("arguments", "parameters")
MOST_STARTS = 200  # braces at which a call is looked for: an answer of braces alone must not take for ever
Call = tuple[str, str]  # the name of the function; its arguments as JSON in one order


def calls_in(answer: str) -> list[Call]:
    """The calls that stand in an answer, in order; none where nothing in it can be read as one."""
    found: list[Call] = []
    decoder = json.JSONDecoder()
    at = 0
    for _ in range(MOST_STARTS):
        at = min((place for place in (answer.find("{", at), answer.find("[", at)) if place >= 0), default=-1)
        if at < 0:
            break
        try:
            value, at = decoder.raw_decode(answer, at)
            found += _calls(value)
        except (ValueError, RecursionError):
            at += 1
    return found


def _calls(value: object) -> Iterator[Call]:
    if isinstance(value, list):
        for one in value:
            yield from _calls(one)
    if not isinstance(value, dict):
        return
    inner = value.get("function", value)
    if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
        return
    given = next((inner[name] for name in ARGUMENTS if name in inner), None)
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except (ValueError, RecursionError):
            return
    if isinstance(given, dict):
        yield inner["name"], json.dumps(given, sort_keys=True)
