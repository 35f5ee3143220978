"""Names of what stands on a hub, as settings have them: hf:owner/name on the Hugging Face Hub, ms:owner/name on ModelScope.

A data set's name may say more: a revision, a file of it, or a configuration and a split. As the value of a setting it is a
path all the same, since that of DATASET_FILE mostly is one; `of` tells which paths are names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

HUBS = {"hf": "the Hugging Face Hub", "ms": "ModelScope"}
_PREFIX = re.compile(r"\s*(hf|ms):(?://)?", re.IGNORECASE)
_PART = r"[A-Za-z0-9_][A-Za-z0-9._-]*"
_NAME = re.compile(
    rf"(?P<name>{_PART}/{_PART})(?P<file>(?:/[^/:@,*?\[\]\s\x00-\x1f]+)+)?(?:@(?P<revision>[A-Za-z0-9._][A-Za-z0-9._/-]*))?"
)
# What a configuration or a split is called: nothing that a list of files would take for its own.
_WORD = re.compile(r"[^/:@,*?\[\]\s\x00-\x1f\x7f]+")
_PAGE = re.compile(
    r"https?://?(?:www\.)?(?P<host>huggingface\.co|hf-mirror\.com|modelscope\.(?:cn|ai))/"
    rf"(?P<kind>datasets/|models/)?(?P<name>{_PART}/{_PART})(?:[/?#]|$)"
)
FORM = (
    "is written {0}:owner/name, {0}:owner/name:config:split or {0}:owner/name/file.jsonl; @REVISION may follow the name"
)


@dataclass(frozen=True)
class HubName:
    """What stands on a hub. Of one word behind the name (`words`) it is not known whether it is a configuration or a split."""

    hub: str  # hf or ms
    name: str  # owner/name
    revision: str | None = None
    file: str | None = None
    words: tuple[str, ...] = ()

    def written(self) -> str:
        """The text that `parse` reads back."""
        file = f"/{self.file}" if self.file else ""
        revision = f"@{self.revision}" if self.revision else ""
        return f"{self.hub}:{self.name}{file}{revision}{''.join(f':{word}' for word in self.words)}"

    def at(self, commit: str, words: tuple[str, ...]) -> HubName:
        """The same, pinned."""
        return replace(self, revision=commit, words=words)


def is_one(text: str) -> bool:
    """Whether a text is meant as the name of something on a hub."""
    return bool(_PREFIX.match(text))


def names_a_model(text: str) -> bool:
    """Whether a base model's name is one on a hub, as it is written: ms:owner/name, or owner/name."""
    return is_one(text) or (not text.startswith(("/", "embedded/")) and ":" not in text)


def parse(text: str) -> HubName:
    """The name that a text is. ValueError where it is meant as one and is none."""
    found = _PREFIX.match(text)
    if not found:
        raise ValueError(FORM.format("hf"))
    hub = found[1].lower()
    name, *words = text[found.end() :].strip().split(":")
    whole = _NAME.fullmatch(name)
    # Between two colons nothing may stand: the configuration is left out then.
    fit = len(words) <= 2 and words[-1:] != [""] and all(not word or _WORD.fullmatch(word) for word in words)
    if not whole or not fit or (whole["file"] and words) or ".." in name:
        raise ValueError(FORM.format(hub))
    file = whole["file"].removeprefix("/") if whole["file"] else None
    return HubName(hub, whole["name"], whole["revision"], file, tuple(words))


def of(path: Path) -> HubName | None:
    """The name that the value of a setting is; None where that is a path."""
    try:
        return parse(str(path)) if is_one(str(path)) else None
    except ValueError:
        return None


def meant(address: str) -> str:
    """The name of what the page at an address shows; "" where that is no page of a hub."""
    found = _PAGE.search(address)
    return "" if not found else f"{'ms' if found['host'].startswith('modelscope') else 'hf'}:{found['name']}"


def model(text: str) -> str:
    """A base model's name as settings keep it: a bare owner/name on the Hugging Face Hub, ms:owner/name on ModelScope.

    ValueError where it says more than that.
    """
    hub = text.strip()[:2].lower()
    try:
        found = parse(text)
    except ValueError:
        found = None
    if found is None or found != HubName(found.hub, found.name):
        raise ValueError(
            f"is written {hub}:owner/name, as in {hub}:Qwen/Qwen3-0.6B; REVISION names a branch, tag or commit"
        )
    return found.name if found.hub == "hf" else found.written()
