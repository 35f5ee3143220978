"""How the next token is taken from the logits: the likeliest one, or one by chance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Sampling:
    """`temperature`: 0 takes the likeliest token. `top_p`: of the tokens that make up this much of the chance. The same
    `seed` gives the same answer."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None

    def chooser(self) -> Callable[[np.ndarray], int]:
        """What takes a token from a row of logits, again and again for one answer."""
        import numpy as np

        if self.temperature <= 0:
            return lambda row: int(row.argmax())
        chance = np.random.default_rng(self.seed)

        def choose(row: np.ndarray) -> int:
            scaled = row.astype(np.float64) / self.temperature
            odds = np.exp(scaled - scaled.max())
            odds /= odds.sum()
            order = np.argsort(-odds, kind="stable")
            behind = np.cumsum(odds[order])
            # The token that reaches the share is still taken.
            kept = order[: int(np.searchsorted(behind, min(self.top_p, 1.0) * behind[-1])) + 1]
            return int(chance.choice(kept, p=odds[kept] / odds[kept].sum()))

        return choose


GREEDY = Sampling()
