"""The merged model says what base and adapter say together."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from training.checks.check import Check, timed
from training.checks.gguf_files import MOST_KL
from training.evaluation import divergence, reference
from training.evaluation.divergence import Agreement
from training.evaluation.reference import Reference, TooLarge
from training.system import temporary

# Merged against base + adapter, as a share of the KL of the training on the same rows: the merge rounds every targeted
# weight to 16 bits, and of a short training most changes are less than half a step. Measured in float32 (SmolLM2-135M,
# all seven projections, learning rate 2e-4): after one step 0.47 (rounding_loss 0.956), two 0.31 (0.920), four 0.20
# (0.869), another run's first 0.04 and 0.09 (0.79); where little rounds away 5e-5. The bound is 1.6 times that and more.
# No merge at all is a share of 1, half the scaling one of 0.25 and, with the rounding of smaller updates, more.
LEAST_SHARE, POWER = 0.02, 6
# And what the order of sums alone may cost: float32 1e-10 (but a mixture's router may tip), bfloat16 2.7e-3.
NOISE = {"float32": 1e-4, "bfloat16": MOST_KL["bfloat16"]}


@dataclass(frozen=True, kw_only=True)
class Compared:
    """How far apart the predictions are, on the same answer tokens.

    `found`: the merged model's from those of base + adapter. `trained`: the base's from those of base + adapter, on every
    fourth sequence: how much the training changed, to judge the other figure by. `dtype`: what the models were run in.
    """

    found: Agreement
    trained: Agreement
    dtype: str


def merged_logits(
    base: Path,
    adapter: Path,
    merged: Path | Callable[[], Reference | TooLarge],
    sequences: Sequence[Sequence[int]],
    starts: Sequence[int],
    memory: int | None = None,
    rounding_loss: float = 0.0,
) -> Check:
    """The merged model predicts what base + adapter, run by PEFT, predict. Left out where memory does not allow it.

    merged: the folder, or the function that opens it for this check and later ones.
    starts: where the answer begins in each sequence. memory: bytes that may be used; None asks the machine.
    rounding_loss: the figure of merged_tensors.
    """
    check = Check(
        "merged logits",
        True,
        {},
        f"mean KL <= {NOISE['float32']} nats (in bfloat16 {NOISE['bfloat16']}), or at most that much more than the KL of the "
        f"training x rounding_loss^{POWER} (at least {LEAST_SHARE}) on the same rows",
        "proves the merge against PEFT's own forward pass; more than rounding to 16 bits costs is a mistake",
    )

    def measure() -> Check:
        rows, first = divergence.bounded(sequences, starts)
        if not rows:
            return replace(check, skipped="there are no held-out answers")
        compared = _compared(base, adapter, merged, rows, first, memory)
        return (
            replace(check, skipped=compared) if isinstance(compared, str) else _judged(check, compared, rounding_loss)
        )

    return timed(check, measure)


def _compared(
    base: Path,
    adapter: Path,
    merged: Path | Callable[[], Reference | TooLarge],
    rows: list[list[int]],
    first: list[int],
    memory: int | None,
) -> Compared | str:
    """Run both models; or why that was not done.

    The merged one is opened when base + adapter has been freed, so that the two are in memory one after the other. The
    first one's logits wait on the disk.
    """
    with temporary.folder("logits") as folder, ExitStack() as stack:
        kept = folder / "kept"
        with reference.opened(base, memory, adapter) as model:
            if isinstance(model, TooLarge):
                return f"base + adapter was not run: {model.reason}"
            computed = model.dtype
            deque(divergence.kept_logits(kept, model.logits(rows, first), len(rows)), maxlen=0)
            with model.without_adapter():
                few, first_few = rows[::4], first[::4]
                ours = islice(divergence.kept_logits(kept, (), len(rows)), 0, None, 4)
                trained = divergence.compare(ours, model.logits(few, first_few), few, first_few)
            del model
        opened = merged() if callable(merged) else stack.enter_context(reference.opened(merged, memory))
        if isinstance(opened, TooLarge):
            return f"the merged model was not run: {opened.reason}"
        found = divergence.compare(divergence.kept_logits(kept, (), len(rows)), opened.logits(rows, first), rows, first)
    # Free memory may have changed between the two.
    dtype = "bfloat16" if "bfloat16" in (computed, opened.dtype) else "float32"
    return Compared(found=found, trained=trained, dtype=dtype)


def _judged(check: Check, compared: Compared, rounding_loss: float) -> Check:
    """The check with its figures, passed unless the merge cost more than rounding to 16 bits does."""
    found, trained, noise = compared.found, compared.trained, NOISE[compared.dtype]
    changed = trained.figures()["mean_kl"]
    check = replace(check, figures={"dtype": compared.dtype, **found.figures(), "mean_kl_of_training": changed})
    same = sum(found.kl_of_each[::4]) / trained.tokens
    most = noise + max(LEAST_SHARE, rounding_loss**POWER) * trained.mean_kl
    if found.mean_kl <= noise or (same <= most and math.isfinite(found.mean_kl)):  # NaN is neither
        return replace(check, why=check.why + _blind(most, trained.mean_kl))
    failure = (
        f"the merged model does not predict what base + adapter predict: mean KL {same:.3g} nats over "
        f"{trained.tokens} tokens, of {trained.mean_kl:.3g} that the training made; at most {most:.3g} is rounding"
    )
    return replace(check, passed=False, failure=failure)


def _blind(most: float, training: float) -> str:
    """What merged_logits cannot see where the training changed little: that it passed then says less."""
    if not training > most:
        return "; the training changed so little that this cannot tell a merge from none: merged tensors can"
    if training < 5 * most:  # half an update is a quarter of the KL away
        return "; the training changed so little that this shows no wrong scaling, only that something was merged"
    return ""
