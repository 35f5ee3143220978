"""The Modelfile as Ollama reads it: quoting values, checking names, reading a file back.

Ollama's reader (parser/parser.go) has no escapes. A value runs to the end of its line; one that begins with three quotes
runs to the first line that ends in three quotes. Characters that Go does not call printable are dropped without a word:
the ideographic space U+3000, the zero-width joiner in emoji, control characters. `quote` refuses what would be changed.
"""

from __future__ import annotations

import re
from pathlib import Path

from training.errors import UserError

_PART = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}"  # the rules of Ollama's types/model/name.go
_NAMESPACE = r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}"
_HOST = r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}"
_MODEL_NAME = re.compile(rf"(?:(?:{_HOST}/)?{_NAMESPACE}/)?{_PART}(?::{_PART})?")


def quote(text: str, what: str = "a value") -> str:
    """`text` as the Modelfile writes a value, read back unchanged. UserError where Ollama's reader could not.

    `what` names the value in the message.
    """
    dropped = [letter for letter in text if not (letter.isprintable() or letter in "\t\n\r")]
    if dropped:
        seen = ", ".join(f"U+{ord(letter):04X}" for letter in dict.fromkeys(dropped))
        raise UserError(f"{what} contains {seen}, which Ollama's Modelfile reader drops; replace or remove it")
    for line_end in re.finditer(r"[\n\r]", text):
        if text[: line_end.start()].rstrip().endswith('"""'):
            line = len(re.findall(r"\r\n|\n|\r", text[: line_end.start()])) + 1
            raise UserError(
                f'{what}, line {line}, ends in """, which ends the value in a Modelfile; put another character after it'
            )
    if '"' in text or "\n" in text or "\r" in text:
        return f'"""{text}"""'
    return f'"{text}"'


def file_name_problems(name: str) -> list[str]:
    """Why `name` cannot stand in a Modelfile as the name of a file beside it; nothing when it can."""
    if not name.isprintable() or not name or name != name.strip():
        return [f"the file name {name!r} has characters that a Modelfile cannot hold; rename the file"]
    if "/" in name or "\\" in name or name in (".", ".."):
        return [f"{name!r} is not the name of a file beside the Modelfile"]
    return []


def model_name_problems(name: str) -> list[str]:
    """Why Ollama would not take `name` as the name of a model; nothing when it would."""
    if _MODEL_NAME.fullmatch(name):
        return []
    return [f"{name!r} is not the name of an Ollama model: expected [namespace/]model[:tag], of letters, digits, . _ -"]


_COMMANDS = "from|adapter|template|system|license|draft|renderer|parser|requires"
_COMMAND = re.compile(
    rf"(?:({_COMMANDS})|parameter[ \t]([a-z0-9_]+)|(message)[ \t]((?-i:system|user|assistant)))[ \t]", re.IGNORECASE
)
_BETWEEN = re.compile(r"(?:[ \t\n\r]|#[^\n\r]*(?=[\n\r]|\Z))*")


def read(path: Path) -> list[tuple[str, str]]:
    """The commands of a Modelfile as Ollama's reader sees them: [("from", "./x.gguf"), ("stop", "</s>"), ...].

    A PARAMETER stands under its own name, a MESSAGE's role before its text: ("message", "user: Hi"). UserError, with the
    line, for what Ollama would not read either.
    """
    text = path.read_bytes().decode("utf-8-sig")
    commands: list[tuple[str, str]] = []
    at = _after_space(text, 0)
    while at < len(text):
        command = _COMMAND.match(text, at)
        value, end = _value(text, command.end()) if command else ("", -1)
        if command is None or end < 0:
            line = text.count("\n", 0, at) + 1
            raise UserError(f"{path}:{line}: not a line that Ollama reads, or one whose quotes are not closed")
        name = command[1] or command[2] or command[3]
        commands.append((name.lower(), f"{command[4]}: {value}" if command[4] else value))
        at = _after_space(text, end)
    return commands


def _after_space(text: str, at: int) -> int:
    """Where the next command begins, after empty lines and comments."""
    between = _BETWEEN.match(text, at)
    return between.end() if between else at


def _value(text: str, start: int) -> tuple[str, int]:
    """The value that begins at `start` and where it ends; -1 when its quotes are not closed. A line end may be part of it."""
    for line_end in re.finditer(r"[\n\r]|\Z", text[start:]):
        end = start + line_end.start()
        seen = "".join(c for c in text[start:end] if c.isprintable() or c in "\t\n\r").strip()
        for mark in ('"""', '"'):
            if seen.startswith(mark):
                if len(seen) >= 2 * len(mark) and seen.endswith(mark):
                    return seen[len(mark) : -len(mark)], end
                break
        else:
            return seen, end
    return "", -1
