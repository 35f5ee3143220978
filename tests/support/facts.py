"""What training wrote down for the export, without a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from training.data import ChatTemplate
from training.runs import Facts
from training.runs.handover import BaseOfRun


def some_facts(**changes: Any) -> Facts:
    """Facts of a run whose rows have no more to tell."""
    facts: dict[str, Any] = {
        "base": BaseOfRun(name="b", path=Path("/base"), kind="folder"),
        "template": ChatTemplate("{{ messages }}", "its own", eos="</s>", end_tokens=("</s>",)),
        "plain": False,
        "stops": ["</s>"],
        "end_ids": [2],
        "num_ctx": 256,
        "questions": [],
        "sequences": [],
    }
    return Facts(**facts | changes)
