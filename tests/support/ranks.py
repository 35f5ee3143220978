"""Runs in several processes, and their ends."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

from tests.support.adopted import Popen
from tests.support.faults import FAULTY, NO_EXPORT
from tests.support.paths import ROOT

# ---- two real processes -------------------------------------------------------------------------------------------

TWO = ("--set", "Hardware.NUM_PROCESSES=2", "--set", "Hardware.NUM_THREADS=1", "--batch-size", "1")


def program(fault: str, *arguments: str | Path) -> list[str]:
    """The program with something changed in it, that ends when it is trained."""
    code = FAULTY.format(root=str(ROOT), fault=fault + NO_EXPORT)
    return [sys.executable, "-c", code, *map(str, arguments)]


def in_rank(rank: int, fault: str) -> str:
    """A fault of one rank: all of them, and their launcher, are the same program."""
    inner = "\n".join(f"    {line}" for line in fault.splitlines())
    return f"from training.system import launchers\nif launchers.seat() is not None and launchers.seat().rank == {rank}:\n{inner}\n"


# A step takes its time, so that a signal surely comes in the middle of the training.
SLOW = """
import time
from training.train import updates
real = updates.begin_step
def begin_step(watch):
    time.sleep(0.3)
    real(watch)
updates.begin_step = begin_step
"""


def slowly(*arguments: str | Path, **options) -> subprocess.Popen:
    """Start a run with slow steps, that ends when it is trained, and do not wait for it."""
    return Popen(
        program(SLOW, *arguments),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
    )  # fmt: skip


def other_process(run: Path) -> int:
    """The pid of the rank that is not the run's own process."""
    return int(re.findall(r"process 1 of 2 \(pid (\d+)\)", (run / "finetune.log").read_text(encoding="utf-8"))[-1])


def started(run: Path) -> int:
    """The pid of the rank that owns the run."""
    return int(json.loads((run / "status.json").read_text(encoding="utf-8"))["pid"])


def gone(pid: int, seconds: float = 20) -> bool:
    """Whether a process ends within this time."""
    end = time.monotonic() + seconds
    while Path(f"/proc/{pid}").exists() and time.monotonic() < end:
        time.sleep(0.05)
    return not Path(f"/proc/{pid}").exists()
