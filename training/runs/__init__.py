"""A run's directory: its status, its checkpoints, and what training hands over to the export."""

from training.runs.directory import (
    ADAPTER,
    CHECKPOINTS,
    CONFIG,
    EVENTS,
    LOG,
    MERGED,
    REJECTED,
    REPORT,
    STATUS,
    TENSORBOARD,
    Run,
    create,
    find,
    history,
    open_run,
)
from training.runs.handover import F16, FACTS, Facts, Handover

__all__ = [
    "ADAPTER",
    "CHECKPOINTS",
    "CONFIG",
    "EVENTS",
    "F16",
    "FACTS",
    "Facts",
    "Handover",
    "LOG",
    "MERGED",
    "REJECTED",
    "REPORT",
    "Run",
    "STATUS",
    "TENSORBOARD",
    "create",
    "find",
    "history",
    "open_run",
]
