"""--whois FILE.gguf | NAME: what a model says of its training."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from training.base_model import ollama_store
from training.errors import FinetuneError, UserError
from training.llama import gguf_file
from training.ollama import Server
from training.ollama.modelfile_syntax import model_name_problems
from training.settings.command_line import Arguments
from training.system import log
from training.to_gguf import provenance

NOTHING = "known: nothing (it was not made by this project, or by a version before it kept such a record)"
PATIENCE = 20.0  # seconds for a server


def whois(arguments: Arguments, stdout: IO[str]) -> int:
    """Tell it as lines of `key: value`; a model that says nothing is no failure."""
    told = list(provenance.lines(_fields(arguments.words[0])))
    for key, value in told:
        log.say(stdout, f"{key}: {value}")
    if not told:
        log.say(stdout, NOTHING)
    return 0


def _fields(word: str) -> Mapping[str, Any]:
    """The metadata of a file, or of a model that Ollama has: in the store of this machine, or at OLLAMA_HOST."""
    path = Path(word).expanduser()
    try:
        is_file, is_there = path.is_file(), path.exists()
    except OSError as error:  # too long a name, a folder that nobody may look into
        raise UserError(f"--whois {word[:80]}: {error.strerror}") from None
    if is_file:
        return gguf_file.read(path).fields
    if is_there and os.sep in word:
        raise UserError(
            f"--whois {word}: is there, and is no file; a GGUF file, or the name of a model in Ollama, is wanted"
        )
    if word.lower().endswith(".gguf") or model_name_problems(word):
        raise UserError(f"--whois {word}: there is no such file, and it is no name of a model in Ollama")
    try:
        return gguf_file.read(ollama_store.find(word).blob).fields
    except FinetuneError as not_stored:
        if (info := _served(word)) is not None:
            return info
        raise UserError(f"--whois {not_stored}") from None


def _served(name: str) -> Mapping[str, Any] | None:
    try:
        shown = Server(patience=PATIENCE).show(name)
    except FinetuneError:
        return None
    info = (shown or {}).get("model_info")
    return info if isinstance(info, dict) else None
