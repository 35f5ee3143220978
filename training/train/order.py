"""What a rank must know to train."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.train.team import Place


@dataclass(frozen=True)
class Order:
    """What a rank must know to train: the part of the plan that it needs, and where it stands."""

    place: Place
    settings: Any
    base: Any  # base_model.BaseModel
    train: Any  # datasets.Dataset, as in the plan; its rows are read from the same cached file
    validation: Any
    longest: int  # tokens of the longest training row
    steps: int
    marks: dict[str, Any]  # the run's fingerprint
    run: Path
