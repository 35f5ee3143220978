"""What a rank must know to train."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from training.base_model import BaseModel
from training.settings import Settings
from training.train.team import Place

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a rank must know to train: the part of the plan that it needs, and where it stands."""

    place: Place
    settings: Settings
    base: BaseModel
    # The plan's tokenised rows; in another rank they are read from the same cached file.
    train: Dataset
    validation: Dataset | None
    longest: int  # tokens of the longest training row
    steps: int
    packs: bool = False  # there is memory to lay frozen weights out for their products
    fingerprint: Mapping[str, object]  # of the run
    run: Path

    def at(self, rank: int, local_rank: int) -> Order:
        """The same for another rank of this machine."""
        return replace(self, place=replace(self.place, rank=rank, local_rank=local_rank))
