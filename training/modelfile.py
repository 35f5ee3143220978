"""The Modelfile: which GGUF, the proved TEMPLATE, stop texts, context length, sampling, system text.

Ollama's reader (parser/parser.go) has no escapes. A value runs to the end of its line; one that begins with three quotes
runs to the first line that ends in three quotes. Characters that Go does not call printable are dropped without a word:
the ideographic space U+3000, the zero-width joiner in emoji, control characters. `quote` refuses what would be changed.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from training import files
from training.errors import UserError
from training.go_template import PLAIN, go_template
from training.pieces import Pieces, Refusal, Render, derive, difference

NATIVE = "0.30.0"  # the first Ollama that runs a GGUF with the Jinja chat template inside it

# Keys of a generation_config.json, Ollama's name for each, and the values that make sense (low, high, whole number).
_SAMPLING = {
    "temperature": ("temperature", 0.0, 10.0, False),
    "top_p": ("top_p", 0.0, 1.0, False),
    "top_k": ("top_k", 0, 1_000_000, True),
    "min_p": ("min_p", 0.0, 1.0, False),
    "repetition_penalty": ("repeat_penalty", 0.0, 10.0, False),
}
_PART = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}"  # types/model/name.go
_OLLAMA_NAME = re.compile(
    rf"(?:(?:[A-Za-z0-9_][A-Za-z0-9_.:-]{{0,349}}/)?[A-Za-z0-9_][A-Za-z0-9_-]{{0,79}}/)?{_PART}(?::{_PART})?"
)


def write(
    path: Path,
    gguf: str,
    *,
    template: str | None,
    system: str | None = None,
    stops: Sequence[str] = (),
    num_ctx: int,
    sampling: Mapping[str, float] | None = None,
    adapter_of: str | None = None,
    notes: Sequence[str] = (),
) -> None:
    """Write a Modelfile for `gguf`, the name of a file in the same folder. UserError names every value that cannot be.

    `template` None leaves TEMPLATE out: Ollama then takes the chat template inside the GGUF, which needs version 0.30.
    `adapter_of` is a model that Ollama has already, and `gguf` an adapter for it. `notes` become comments.
    """
    problems: list[str] = []

    def value(what: str, text: str) -> str:
        try:
            return quote(text, what)
        except UserError as error:
            problems.extend(error.problems)
            return ""

    problems += file_name_problems(gguf)
    if adapter_of is not None and not _OLLAMA_NAME.fullmatch(adapter_of):
        problems.append(f"{adapter_of!r} is not the name of an Ollama model: expected [namespace/]model[:tag]")
    lines = [f"# {line}" for note in notes for line in note.splitlines()]
    lines += [f"FROM {adapter_of}", f"ADAPTER ./{gguf}"] if adapter_of is not None else [f"FROM ./{gguf}"]
    if template is None:
        lines += [f"# TEMPLATE is left out: Ollama {NATIVE} and later use the chat template inside the GGUF."]
        lines += [f"REQUIRES {NATIVE}"]
    else:
        lines += [f"TEMPLATE {value('TEMPLATE', template)}"]
    if system:
        lines += [f"SYSTEM {value('SYSTEM_PROMPT', system)}"]
    lines += [f"PARAMETER stop {value('a stop text', stop)}" for stop in stops]
    lines += [f"PARAMETER num_ctx {num_ctx:d}"]
    lines += [f"PARAMETER {key} {number}" for key, number in (sampling or {}).items()]
    if problems:
        raise UserError(problems, "The Modelfile cannot be written:")
    files.write_text(path, "\n".join(lines) + "\n")


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


def place_system(pieces: Pieces, system: str | None) -> tuple[Pieces, str | None]:
    """Find the place for a system text: a SYSTEM line, or, if that cannot hold it, the template's own default.

    TEMPLATE can hold any text (Go strings have escapes). Returns the pieces for go_template, and the text for SYSTEM.
    UserError when neither can hold it.
    """
    if not system:
        return pieces, None
    if pieces.system == "none":
        raise UserError("SYSTEM_PROMPT is set, but the model's chat template has no place for a system message")
    try:
        quote(system, "SYSTEM_PROMPT")
        return pieces, system
    except UserError:
        if pieces.system != "turn":
            raise
        return replace(pieces, default=pieces.system_before + system + pieces.system_after), None


def stop_texts(
    eos: str | Iterable[str], end_tokens: Iterable[str] = (), generation_eos: Iterable[str] = ()
) -> list[str]:
    """Every text that ends an answer, once each: eos, the template's turn ends, generation_config's eos_token_id as texts."""
    first = [eos] if isinstance(eos, str) else list(eos)
    return [text for text in dict.fromkeys([*first, *end_tokens, *generation_eos]) if text and not text.isspace()]


def sampling(generation_config: Mapping[str, Any]) -> dict[str, float]:
    """Ollama's PARAMETERs for the sampling values a generation_config.json has; values that make no sense are left out.

    do_sample = false, said outright, is greedy decoding: temperature 0, and the sampling values do not count.
    """
    if generation_config.get("do_sample") is False:
        kept = {"repetition_penalty": generation_config.get("repetition_penalty")}
        return {"temperature": 0} | sampling(kept)
    found: dict[str, float] = {}
    for key, (name, low, high, whole) in _SAMPLING.items():
        number = generation_config.get(key)
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number):
            continue
        if low <= number <= high and (not whole or number == int(number)):
            found[name] = int(number) if whole else number
    return found


def read(path: Path) -> list[tuple[str, str]]:
    """The commands of a Modelfile as Ollama's reader sees them: [("from", "./x.gguf"), ("stop", "</s>"), ...].

    A PARAMETER stands under its own name. UserError, with the line, for what Ollama would not read either.
    """
    text = path.read_bytes().decode("utf-8-sig")
    commands: list[tuple[str, str]] = []
    at = 0
    while match := re.compile(r"(?:[ \t\n\r]|#[^\n\r]*(?=[\n\r]|\Z))*").match(text, at):
        at = match.end()
        if at == len(text):
            return commands
        command = re.compile(r"(?:parameter[ \t]+)?([a-z_]+)[ \t]", re.IGNORECASE).match(text, at)
        value, end = _value(text, command.end()) if command else ("", -1)
        if command is None or end < 0:
            line = text.count("\n", 0, at) + 1
            raise UserError(f"{path}:{line}: not a line that Ollama reads, or one whose quotes are not closed")
        commands.append((command[1].lower(), value))
        at = end
    return commands


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


def verify(path: Path, render: Render, *, bos: str = "", eos: str = "", jinja: str = "", adds_bos: bool = True) -> dict:
    """The check "modelfile_template" for the report: TEMPLATE on the disk renders what the chat template renders.

    The chat template is taken apart and proved anew, and what the Modelfile holds is compared with that. `adds_bos`: the
    GGUF's tokenizer puts a BOS first by itself. A TEMPLATE left out for a good reason passes, and says what it needs.
    """
    record: dict[str, Any] = {"check": "modelfile_template", "passed": False, "conversations": 0, "exceptions": []}
    held = dict(read(path))
    written, system = held.get("template"), held.get("system")
    pieces = derive(render, bos=bos, eos=eos, jinja=jinja)
    if isinstance(pieces, Refusal):
        note = f"TEMPLATE is left out, Ollama {NATIVE} or later is required: {pieces.reason}"
        wrong = f"TEMPLATE is written, but it cannot be proved: {pieces.reason}"
        return record | {"passed": written is None, "note": note if written is None else wrong, "requires": NATIVE}
    record |= {"conversations": pieces.conversations, "exceptions": list(pieces.exceptions)}
    wanted = go_template(pieces, write_bos=bool(pieces.bos) and not adds_bos)
    if written is None:
        return record | {"note": "TEMPLATE is missing, though the chat template can be written as one"}
    if written != wanted:
        return record | {"note": f"TEMPLATE is not the chat template: {difference(wanted, written)}"}
    note = f"equal to the chat template in {pieces.conversations} conversations"
    if pieces.exceptions:
        note += f"; may differ in: {', '.join(pieces.exceptions)}"
    return record | {"passed": True, "note": note}
