"""What was chosen automatically, and why."""

from __future__ import annotations

from typing import Any, NamedTuple


class Choice(NamedTuple):
    """An automatic choice and why it was made; the reason goes into the log and the run's config.ini."""

    value: Any
    reason: str
