"""What must not reach a log, a report or a terminal: tokens and keys, and characters that act on who reads them.

All text for people goes through `shown`, all JSON for programs through `hidden` and `as_json`: log.py, events.py, runs/directory.py
and report/schema.py are the places where that happens.
"""

from __future__ import annotations

import functools
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO
from urllib.parse import unquote

from training.system import listeners

HIDDEN = "[hidden]"
# Characters of a secret in the environment; shorter values ("true", "1") would hide ordinary words.
SHORTEST = 8
# Fields in which programs look for the name of a file: it is told as it is.
PLACES = ("run", "path")

# The published shapes of the keys this tool's users hold. Plain hexadecimal keys (Weights & Biases: 40 digits) look
# like a git revision, so those are found through the environment and through the name of their setting instead.
_ANYWHERE = (
    # Hugging Face: user and organisation tokens
    r"hf_[A-Za-z0-9]{16,}|api_org_[A-Za-z0-9]{16,}"
    # GitHub, GitLab
    r"|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,}|glpat-[A-Za-z0-9_-]{16,}"
    # AWS, Google, Slack
    r"|(?:AKIA|ASIA)[A-Z0-9]{16}|AIza[A-Za-z0-9_-]{35}|xox[abeprs]-[A-Za-z0-9-]{10,}"
)
# Not within a word, for task- ends in sk- and any base64 may hold eyJ, its {"; but after a colour's code, as `visible` shows it.
_BEGINNING = (
    # OpenAI, Anthropic, DeepSeek and others
    r"sk-[A-Za-z0-9_-]{16,}"
    # JSON web tokens
    r"|eyJ[A-Za-z0-9_-]{10,1000}\.[A-Za-z0-9_-]{4,}(?:\.[A-Za-z0-9_-]*)*"
)
_START = r"(?:(?<![A-Za-z0-9])|(?<=\[m)|(?<=[0-9]m))"
_KEYS = re.compile(rf"(?:{_ANYWHERE}|{_START}(?:{_BEGINNING}))(?:{_ANYWHERE}|{_BEGINNING})*")
# What each of them holds: to look for these first takes a sixth of the time, in millions of texts that hold none.
_HELD: tuple[str, ...] = (
    "hf_",
    "api_org_",
    "ghp_",
    "gho_",
    "ghu_",
    "ghs_",
    "ghr_",
    "github_pat_",
    "glpat-",
    "AKIA",
    "ASIA",
    "AIza",
)
_HELD += ("xoxa-", "xoxb-", "xoxe-", "xoxp-", "xoxr-", "xoxs-", "sk-", "eyJ")
# A block whose end was cut off is hidden to the end of the text.
_PRIVATE_KEY = re.compile(
    r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----"
    r".*?(?:-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----|\Z)",
    re.DOTALL,
)
_AUTHORIZATION = re.compile(r"(?i)(\bauthorization[\"']?\s*[:=]\s*[\"']?(?:bearer|basic|token)\s+)[^\s\"',]+")
_BEARER = re.compile(r"(?i)\b(bearer\s+)(?=\S{0,200}[0-9])[A-Za-z0-9._~+/=-]{12,}")
# The parts of an address have a limit: a text of 100 KB without a space, in Chinese for example, is searched in no time.
_WORD, _REST = r"[A-Za-z0-9_.+%-]{1,64}", r"[^\s\"'<>]"
# https://user:password@host, up to the last @ of the word, for a password may hold one; https://token@host
_ADDRESS = re.compile(rf"(://)[^\s/@:\"'<>]{{0,64}}:{_REST}{{0,256}}@|(https?://)[^\s/@:\"'<>]{{1,256}}@")
# user:password@host where the scheme was forgotten. A password may begin with an @; without any, as in "user:@other",
# somebody is spoken to. Not an e-mail's label, nor the name of an image with its digest, nor a data set on a hub with its
# revision (hf:owner/name@main).
_PASSWORD = re.compile(
    rf"(?i)(?<![A-Za-z0-9_.+%/-])(?!(?:e-?)?mail(?:to)?:)(?!(?:hf|ms):[\w.-]+/[\w./-]+@[\w./-]+(?![\w./-]*@)){_WORD}:(?!//){_REST}{{1,256}}@(?=[\w\[])(?!sha\d)"
)
_USER_INFO = re.compile(r"^(?:[a-z][a-z0-9+.-]*://)?[^\s/@:]*:(?!//)([^\s]+)@[^\s@]+$", re.IGNORECASE)
_SECRET_NAME = re.compile(
    r"(?i)(?:(?:^|[._])(?:token|secret|pass|api_?key|access_?key|private_?key|secret_?key|credentials?)"
    r"|password|passwd|passphrase|[._]pwd)$"
)
_SURROGATES = re.compile("[\ud800-\udfff]")  # half a character: cannot be written as UTF-8
# Escape sequences act on the terminal that shows a report; bidirectional overrides show another text than is there.
_ACTING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\u2029]")


def names_a_secret(name: str) -> bool:
    """Whether a setting or variable of this name holds a secret (HF_TOKEN, WANDB_API_KEY; not MAX_TOKENS)."""
    return bool(_SECRET_NAME.search(name))


def redact(text: str) -> str:
    """`text` with every key of a known shape, and every secret of this process's environment, replaced."""
    return _without(_of_environment(), text)


def _without(secrets: Sequence[str], text: str) -> str:
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    text = _PRIVATE_KEY.sub(HIDDEN, text)
    text = _KEYS.sub(HIDDEN, text)
    text = _AUTHORIZATION.sub(rf"\1{HIDDEN}", text)
    text = _BEARER.sub(rf"\1{HIDDEN}", text)
    if "@" not in text:
        return text
    text = _ADDRESS.sub(lambda match: f"{match[1] or match[2]}{HIDDEN}@", text)
    return _PASSWORD.sub(f"{HIDDEN}@", text)


def keys(text: str) -> Iterator[re.Match[str]]:
    """Where keys and tokens of known shapes stand in a text, and whole private keys."""
    if "PRIVATE KEY" in text:
        yield from _PRIVATE_KEY.finditer(text)
    if may_hold_keys(text):
        yield from _KEYS.finditer(text)


def may_hold_keys(text: str) -> bool:
    """Whether a text holds what each key or token of a known shape has in it: most texts do not."""
    for sign in _HELD:  # noqa: SIM110 (it is asked of every row, and any() takes twice as long)
        if sign in text:
            return True
    return False


def _of_environment() -> tuple[str, ...]:
    """The secrets of the environment as it is now."""
    return _among(tuple(os.environb.items()))


# Every text of a log asks, and the environment seldom changes: searched for secrets each time, it took a third of what a short
# run takes on a processor.
@functools.lru_cache(maxsize=4)
def _among(environment: tuple[tuple[bytes, bytes], ...]) -> tuple[str, ...]:
    """The secrets among variables: values by the name of their variable, and passwords in addresses.

    The longest first: one may begin with another.
    """
    found = set()
    for name, value in ((os.fsdecode(name), os.fsdecode(value)) for name, value in environment):
        if names_a_secret(name):
            found.add(value)
        elif match := _USER_INFO.search(value):
            found |= {match[1], unquote(match[1])}
    return tuple(sorted((secret for secret in found if len(secret) >= SHORTEST), key=len, reverse=True))


def writable(text: str) -> str:
    """`text` as it can be encoded: halves of surrogate pairs become U+FFFD."""
    return _SURROGATES.sub("\ufffd", text)


def visible(text: str) -> str:
    r"""`text` that only shows itself: control and direction characters become \x1b or \u202e; tab and LF stay."""
    text = text.replace("\r\n", "\n")
    return _ACTING.sub(lambda match: ascii(match[0])[1:-1], writable(text))


def shown(text: str) -> str:
    """`text` as any person and any terminal may see it: `visible`, and without secrets."""
    return redact(visible(text))


def tell(text: object) -> None:
    """Print a message for people on stderr; where there is a log, that does it (log.py)."""
    listeners.tell(sys.stderr, shown(str(text)) + "\n")


def path_for(stream: IO[str], path: Path) -> str:
    """The name of a file or folder as a result: for programs as it is, since they open it; on a terminal as it can be shown."""
    return visible(str(path)) if stream.isatty() else str(path)


def hidden(value: object, name: str = "") -> object:
    """A value as JSON can hold it and anybody may read it: no secrets in its texts, no NaN and no infinity.

    `name`: the field that holds it.
    """
    return _hidden(value, name, _of_environment())


# The environment is looked through once for a status or a report, not for each of its texts and names: that was a sixth of
# the server's work for a question after a run.
def _hidden(value: object, name: str, secrets: Sequence[str]) -> object:
    if isinstance(value, str):
        return value if name in PLACES else _without(secrets, writable(value))
    if isinstance(value, float):
        return finite(value)
    if isinstance(value, Mapping):
        return {_hidden(key, "", secrets): _hidden(item, str(key), secrets) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_hidden(item, name, secrets) for item in value]
    return value


def finite(value: float) -> float | None:
    """A number as JSON can hold it: NaN and infinity are None."""
    return value if math.isfinite(value) else None


def as_json(value: object, indent: int | None = None, default: Callable[[object], object] | None = None) -> str:
    r"""`value` as JSON that can be printed on a terminal: what `visible` shows as \x9b or \u202e is \u009b and \u202e."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent, default=default)
    return _ACTING.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
