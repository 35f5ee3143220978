"""How far two models' next-token distributions are apart on the same tokens, and how well each predicts them.

Logits come one sequence after the other and are compared a few rows at a time: a vocabulary of 150,000 makes every row
of float64 log-probabilities 1.2 MB.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from training.llama import kl_divergence, log_softmax
from training.system import privacy

if TYPE_CHECKING:
    import numpy as np

# Answer tokens of a sequence that are compared at most: 256 x 152k x 4 bytes = 155 MB a model.
SCORED = 256
# And of all together: what is compared is kept on the disk (512 x 152k x 4 bytes = 0.3 GB a model), and thresholds are an
# order of magnitude and more away from what a chain that holds shows: more tokens would tell nothing else.
SCORED_IN_ALL = 512
# Tokens that a model reads for it, prompts included, as long as LEAST sequences are among them: a model of 8 billion
# parameters in float32 reads a few hundred a minute on a small machine, and up to five files read the same.
READ, LEAST = 1024, 4
ROWS = 16
# The reference is sure of a token when it gives it this much more log-probability than the next one. Below, rounding
# decides, and a disagreement says nothing (gguf-ollama.md's near tie: 0.156 against 0.140, a margin of 0.11).
MARGIN = 0.2


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Over `tokens` positions: KL(reference || other) in nats, shares of equal first choices, perplexities.

    top1: of all positions; top1_sure: of those where the reference's first choice leads by MARGIN (`sure` of them).
    kl_of_each: the sum over each sequence's positions, to compare two figures on the sequences that both have.
    """

    tokens: int
    mean_kl: float
    max_kl: float
    top1: float
    top1_sure: float
    sure: int
    perplexity_reference: float
    perplexity: float
    kl_of_each: tuple[float, ...]

    def figures(self) -> dict[str, float | None]:
        """The figures as JSON values: what is not finite becomes null, which JSON has no number for."""
        figures = {key: value for key, value in asdict(self).items() if key != "kl_of_each"}
        return {key: privacy.finite(value) for key, value in figures.items()}


def bounded(sequences: Sequence[Sequence[int]], starts: Sequence[int]) -> tuple[list[list[int]], list[int]]:
    """Sequences cut after so many answer tokens, the short ones first, and the first position of each that is compared.

    `starts`: where the answer of each sequence begins; at least one token stands before it. Sequences without an answer
    token are left out. At most SCORED tokens of an answer, and SCORED_IN_ALL of all, from each answer alike; of more
    sequences than READ tokens hold, some of each length.
    """
    pairs = [(list(ids), max(start, 1)) for ids, start in zip(sequences, starts, strict=True)]
    pairs = _some(sorted(((ids[: start + SCORED], start) for ids, start in pairs if len(ids) > start), key=_length))
    answers = [len(ids) - start for ids, start in pairs]
    most = SCORED
    while most > 1 and sum(min(answer, most) for answer in answers) > SCORED_IN_ALL:
        most -= 1
    return [ids[: start + most] for ids, start in pairs], [start - 1 for _, start in pairs]


def _length(pair: tuple[list[int], int]) -> int:
    return len(pair[0])


def _some(pairs: list[tuple[list[int], int]]) -> list[tuple[list[int], int]]:
    """As many as READ tokens hold, but no fewer than LEAST; evenly spaced, and the last among them."""
    count = min(len(pairs), READ)
    while True:
        spread = [pairs[(number + 1) * len(pairs) // count - 1] for number in range(count)]
        if count <= LEAST or sum(len(ids) for ids, _ in spread) <= READ:
            return spread
        count -= 1


def kept_logits(folder: Path, logits: Iterable[np.ndarray], count: int) -> Iterator[np.ndarray]:
    """`logits` of `count` sequences, which are kept in `folder` while they are used; a second call reads them there.

    The same model's logits are compared with several others', and computing them takes longer than anything else.
    """
    import numpy as np

    folder.mkdir(exist_ok=True)
    saved = [folder / f"{number}.npy" for number in range(count)]
    if all(path.is_file() for path in saved):
        yield from map(np.load, saved)
        return
    for path, rows in zip(saved, logits, strict=True):
        np.save(path, rows)
        yield rows


def compare(
    reference: Iterable[np.ndarray],
    other: Iterable[np.ndarray],
    sequences: Sequence[Sequence[int]],
    first: Sequence[int],
) -> Agreement:
    """Compare two models' logits for the same sequences: arrays [len(ids) - first, vocabulary], one a sequence.

    The last row of a sequence predicts a token that is not there, so it is left out. Where one vocabulary is padded to
    a rounder size, the padding is left out too.
    """
    import numpy as np

    kls: list[float] = []
    each: list[float] = []
    agreed: list[bool] = []
    sure: list[bool] = []
    losses: tuple[list[float], list[float]] = [], []
    for ours, theirs, ids, start in zip(reference, other, sequences, first, strict=True):
        width, before = min(ours.shape[1], theirs.shape[1]), len(kls)
        for low in range(0, len(ids) - start - 1, ROWS):
            high = min(low + ROWS, len(ids) - start - 1)
            p, q = (log_softmax(np.asarray(logits[low:high, :width])) for logits in (ours, theirs))
            kls.extend(kl_divergence(p, q).tolist())
            best = np.partition(p, -2, axis=-1)[:, -2:]
            sure.extend((best[:, 1] - best[:, 0] >= MARGIN).tolist())
            agreed.extend((p.argmax(-1) == q.argmax(-1)).tolist())
            targets = ids[start + 1 + low : start + 1 + high]
            for rows, of_one in zip((p, q), losses, strict=True):
                of_one.extend((-rows[np.arange(len(targets)), targets]).tolist())
        each.append(sum(kls[before:]))
    if not kls:
        raise ValueError("there is no token to compare two models on")
    certain = [same for same, known in zip(agreed, sure, strict=True) if known]
    return Agreement(
        tokens=len(kls),
        mean_kl=sum(kls) / len(kls),
        max_kl=max(kls),
        top1=sum(agreed) / len(agreed),
        top1_sure=sum(certain) / len(certain) if certain else 1.0,
        sure=len(certain),
        perplexity_reference=_perplexity(losses[0]),
        perplexity=_perplexity(losses[1]),
        kl_of_each=tuple(each),
    )


def _perplexity(losses: list[float]) -> float:
    mean = sum(losses) / len(losses)
    return math.inf if mean >= 700 else math.exp(mean)  # NaN stays NaN
