"""Another number of processes goes on with a run: what that changes, and what stays."""

from __future__ import annotations

import math
from collections.abc import Mapping

STEP = "effective batch"  # the field of a fingerprint that says how many rows a step has, in all processes together
# Of which only the product counts, and that only for what differs between processes.
PROCESSES = ("Hardware.NUM_PROCESSES", "Hardware.NUM_MACHINES")


def unlike(stored: dict[str, object], current: dict[str, object]) -> list[str]:
    """Take out of two fingerprints what another number of processes changes, and the losses bear: the rows of a step are the
    same, and the sums of their gradients but for rounding. What they do not bear is given back."""
    before, now = _processes(stored), _processes(current)
    for field in PROCESSES if before == now else (*PROCESSES, "Hardware.NUM_THREADS"):
        stored.pop(field, None)
        current.pop(field, None)
    if before == now or not (dropout := current.get("LoRA.LORA_DROPOUT")):
        return []
    return [
        f"LORA_DROPOUT = {dropout}: each of the run's {before} processes drops out values of its own, so another number "
        f"({now} now) would not go on as the run began"
    ]


def _processes(fingerprint: Mapping[str, object]) -> int:
    """How many processes trained, or will; a run from before there could be several had one."""
    each = [value for field in PROCESSES if isinstance(value := fingerprint.get(field), int)]
    return math.prod(each)


def shared_out(micro_batch: tuple[int, int], fingerprint: Mapping[str, object], processes: int) -> tuple[int, int]:
    """Rows a micro-batch and micro-batches a step for so many processes, which have the rows a step of the checkpoint with this
    fingerprint; its own micro_batch where it had as many, or does not say."""
    micro, accumulation = micro_batch
    rows = fingerprint.get(STEP)
    if not isinstance(rows, int) or micro * accumulation * processes == rows or rows % processes:
        return micro, accumulation
    return divided(rows // processes, micro)


def divided(rows: int, most: int) -> tuple[int, int]:
    """A process's rows of a step in equal micro-batches of `most` rows at most."""
    micro = max(size for size in range(1, min(most, rows) + 1) if rows % size == 0)
    return micro, rows // micro
