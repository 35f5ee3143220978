"""What is odd about a plan though nothing forbids it: a line each, with the flag or the setting that mends it."""

from __future__ import annotations

import math
from collections.abc import Iterator

from training.evaluation.scoring import FEWEST
from training.plan.plan import Plan
from training.settings import Settings
from training.system import wording

# Passes over the rows from which a model of few rows learns them by heart. LoRA runs make 1 to 5.
MANY_EPOCHS = 10
# Optimizer steps below which an adapter, which begins at zero, has hardly moved.
FEW_STEPS = 30
# Share of the rows beyond which a split leaves too little to learn from.
LARGEST_SPLIT = 0.4


def odd(plan: Plan) -> list[str]:
    """All that is odd about a plan, for the log, for --check and for the report."""
    rows, held = plan.rows_an_epoch, plan.test if plan.test is not None else plan.validation
    return [
        *lengths(plan.settings, rows, plan.steps),
        *held_out(plan.settings, rows, len(held) if held is not None else 0),
        *warm_up(plan.settings, plan.steps),
    ]


def lengths(settings: Settings, rows: int, steps: int) -> Iterator[str]:
    """Rows and passes against steps."""
    an_epoch = settings.steps_per_epoch(rows)
    epochs = steps / an_epoch
    of_rows, of_steps = wording.counted(rows, "row"), wording.counted(steps, "step")
    if epochs > MANY_EPOCHS:
        yield (
            f"{of_steps} are {epochs:,.0f} passes over {of_rows}: a model learns them by heart in fewer; --epochs 3 makes "
            f"{wording.counted(3 * an_epoch, 'step')}, and more rows would teach it more"
        )
    elif epochs < 1:
        seen = min(rows, steps * settings.rows_a_step)
        yield f"{of_steps} {'sees' if steps == 1 else 'see'} {seen:,} of {of_rows}; --epochs 1 takes them all, in {wording.counted(an_epoch, 'step')}"
    if steps < FEW_STEPS and epochs <= MANY_EPOCHS:
        more = min(MANY_EPOCHS, math.ceil(FEW_STEPS / an_epoch))
        longer = f"--epochs {more} makes {more * an_epoch:,}" if more > epochs else "more rows make more"
        yield f"{of_steps} {'is' if steps == 1 else 'are'} few for an adapter, which begins at zero; {longer}"


def held_out(settings: Settings, rows: int, held: int) -> Iterator[str]:
    """Whether there are rows enough for a verdict."""
    data = settings.dataset
    if held >= FEWEST:
        return
    if held == 0 and settings.written("Dataset.VALIDATION_SPLIT") and not data.validation_split:
        return  # somebody wants it so
    what = f"{wording.counted(held, 'row')} to measure on" if held else "no rows to measure on"
    said = f"{what}: a verdict, better or worse, takes {FEWEST} at least"
    share = math.ceil(100 * FEWEST / (rows + held)) / 100
    if data.test_split:
        yield f"{said}; --set Dataset.TEST_SPLIT={share:g} keeps that many"
    elif data.validation_file and held:
        yield f"{said}; add some to {data.validation_file}"
    elif share <= LARGEST_SPLIT:
        yield f"{said}; --set Dataset.VALIDATION_SPLIT={share:g} keeps that many"
    else:
        yield f"{said}; put some into a file of their own: --set Dataset.VALIDATION_FILE=FILE"


def warm_up(settings: Settings, steps: int) -> Iterator[str]:
    """A warm-up that takes most of the run. One that nobody wrote is shortened (settings.clamp)."""
    warm = settings.training.warmup_steps
    if 2 * warm >= steps and warm and settings.training.lr_scheduler_type != "constant":
        yield (
            f"the learning rate rises over {warm:,} of {wording.counted(steps, 'step')}, so that few or none are made at "
            f"LEARNING_RATE; --set Training.WARMUP_STEPS={steps // 10} leaves the rest to it"
        )
