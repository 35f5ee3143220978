"""Replay: rows of other things beside the user's own, so that the model keeps what it could do. Which rows, and how many.

They come from REPLAY_FILE: a file of rows, or the questions that come with this project, answered by the base model itself
before training (evaluation/base_answers.py). Those answers stay in the run's directory, in a file that is a REPLAY_FILE, too.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from training.data.turns import Turn
from training.settings.table import Dataset
from training.system import files

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

GENERAL = "general"
PROMPTS = Path(__file__).with_name("replay_prompts.txt")
FILE = "replay.jsonl"  # in the run's directory: the shipped questions with the base model's answers


def file_of(section: Dataset) -> Path | None:
    """The file of replay rows that the user has, or the name of a data set on a hub, where some are asked for."""
    return Path(section.replay_file) if section.replay_share and section.replay_file != GENERAL else None


def wanted(own: int, share: float) -> int:
    """Replay rows beside `own` rows of the user's, so that of all rows they are the `share`; one at least."""
    return max(1, round(own * share / (1 - share))) if share else 0


def taken(count: int, most: int, seed: int) -> NDArray[np.int64]:
    """`most` numbers of `count` rows, sorted: all of them as often as they go into it, and a seeded choice of them once more."""
    import numpy as np

    whole, rest = divmod(most, count)
    chosen = np.random.default_rng(seed).permutation(count)[:rest]
    return np.sort(np.concatenate([*[np.arange(count)] * whole, chosen]))


def prompts(seed: int) -> list[str]:
    """The shipped questions, in the order in which they are asked."""
    import numpy as np

    every = PROMPTS.read_text(encoding="utf-8").splitlines()
    return [every[number] for number in np.random.default_rng(seed).permutation(len(every))]


def turns(question: str, answer: str) -> tuple[Turn, Turn]:
    """A question and its answer as a row's turns."""
    return Turn("user", question), Turn("assistant", answer)


def write(path: Path, exchanges: Sequence[tuple[str, str]]) -> None:
    """Write questions and answers as rows, the whole file or nothing."""
    rows = ({"messages": [{"role": turn.role, "content": turn.content} for turn in turns(*one)]} for one in exchanges)
    files.write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
