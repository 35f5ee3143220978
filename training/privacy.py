"""What must not reach a log, a report or a terminal: tokens and keys, and characters that act on who reads them."""

from __future__ import annotations

import os
import re

HIDDEN = "[hidden]"

# The published shapes of the keys this tool's users hold. Plain hexadecimal keys (Weights & Biases: 40 digits) look
# like a git revision, so those are found through the environment and through the name of their setting instead.
_KEYS = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|api_org_[A-Za-z0-9]{16,}"  # Hugging Face: user and organisation tokens
    r"|sk-[A-Za-z0-9_-]{16,}"  # OpenAI, Anthropic, DeepSeek and others
    r"|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,}|glpat-[A-Za-z0-9_-]{16,}"  # GitHub, GitLab
    r"|(?:AKIA|ASIA)[A-Z0-9]{16}|AIza[A-Za-z0-9_-]{35}|xox[abprs]-[A-Za-z0-9-]{10,})"  # AWS, Google, Slack
)
_BEARER = re.compile(r"(?i)\b(bearer\s+)[A-Za-z0-9._~+/=-]{12,}")
_ADDRESS_PASSWORD = re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^/\s@:]+:[^/\s@]+@")  # https://user:password@host
_SECRET_NAME = re.compile(r"(?i)(?:^|[._])(?:token|secret|password|passwd|api_?key|access_?key|private_?key)$")
_SURROGATES = re.compile("[\ud800-\udfff]")  # half a character: cannot be written as UTF-8
# Escape sequences act on the terminal that shows a report; bidirectional overrides show another text than is there.
_ACTING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\u2029]")


def names_a_secret(name: str) -> bool:
    """Whether a setting or variable of this name holds a secret (HF_TOKEN, WANDB_API_KEY; not MAX_TOKENS)."""
    return bool(_SECRET_NAME.search(name))


def redact(text: str) -> str:
    """`text` with every key of a known shape, and every secret of this process's environment, replaced."""
    for name, value in os.environ.items():
        if len(value) >= 8 and names_a_secret(name):  # shorter values ("true", "1") would hide ordinary words
            text = text.replace(value, HIDDEN)
    text = _KEYS.sub(HIDDEN, text)
    text = _BEARER.sub(rf"\1{HIDDEN}", text)
    return _ADDRESS_PASSWORD.sub(rf"\1{HIDDEN}@", text)


def writable(text: str) -> str:
    """`text` as it can be encoded: halves of surrogate pairs become U+FFFD."""
    return _SURROGATES.sub("\ufffd", text)


def visible(text: str) -> str:
    r"""`text` that only shows itself: control and direction characters become \x1b or \u202e; tab and LF stay."""
    text = text.replace("\r\n", "\n")
    return _ACTING.sub(lambda match: ascii(match[0])[1:-1], writable(text))
