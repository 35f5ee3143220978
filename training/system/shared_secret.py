"""What the machines of one training know, and nobody else: each proves to the others that it belongs to them.

It stands in the environment, for a run keeps its settings in a file that is shown to others.
"""

from __future__ import annotations

import os

from training.errors import UserError
from training.system import paths

SECRET = "FINETUNE_MACHINES_SECRET"
# Characters: who listens on the network can try short ones out.
SHORTEST = 16
HOW = (
    "make one with `python3 -c 'import secrets; print(secrets.token_hex(32))'` and set the environment variable "
    f"{SECRET} to it on each machine, or to @FILE where a file holds it"
)


def secret() -> bytes:
    """What all machines of a training know, and nobody else. Raises UserError with what to write."""
    text = os.environ.get(SECRET, "").strip()
    if text.startswith("@"):
        try:
            text = paths.expanded(text[1:]).read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it is no text"
            raise UserError(f"{SECRET} = {text}: this file cannot be read ({reason})") from None
    if not text:
        raise UserError(f"several machines need a secret that they share: {HOW}")
    if len(text) < SHORTEST:
        raise UserError(f"{SECRET} has {len(text)} characters, which can be guessed; {HOW}")
    return text.encode()
