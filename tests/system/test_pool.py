"""Work of several processes comes back in order, and no process is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from training.errors import MachineError
from training.system import pool

pytestmark = pytest.mark.slow


def _work(factor: int, number: int) -> int:
    time.sleep(0.02 * (number % 3 == 0))  # some are done before those in front of them
    if number == 99:
        raise ValueError("a mistake of the work")
    return factor * number


@pytest.mark.parametrize("processes", [1, 3])
def test_results_come_in_order_and_tasks_are_not_taken_far_ahead(processes: int) -> None:
    taken: list[int] = []

    def tasks():
        for number in range(20):
            taken.append(number)
            yield (number,)

    results = pool.in_order(_work, tasks(), processes, (10,))
    for number in range(20):
        assert next(results) == 10 * number
        assert len(taken) <= number + pool.AHEAD * processes
    assert next(results, None) is None


@pytest.mark.parametrize("processes", [1, 2])
def test_a_mistake_of_the_work_is_raised_here(processes: int) -> None:
    with pytest.raises(ValueError, match="a mistake of the work"):
        list(pool.in_order(_work, [(1,), (99,), (2,)], processes, (10,)))


def _end_it(number: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.skipif(sys.platform != "linux", reason="ended with SIGKILL as the kernel does it when memory is short")
def test_a_process_that_is_ended_is_the_machines_fault() -> None:
    told = "^tokenising: a process was ended from outside; too little memory, most likely$"
    with pytest.raises(MachineError, match=told):
        list(pool.in_order(_end_it, [(1,), (2,)], 2, (), "tokenising"))


SCRIPT = r"""
import os, sys, time
from training.system import pool
def work(number):
    os.write(1, b"%d\n" % os.getpid())
    time.sleep(60)
if __name__ == "__main__":
    list(pool.in_order(work, [(1,), (2,)], 2))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_workers_go_with_a_process_that_is_killed(root: Path, tmp_path: Path) -> None:
    (tmp_path / "work.py").write_text(SCRIPT)
    asked = subprocess.Popen(
        [sys.executable, str(tmp_path / "work.py")],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    processes = [int(asked.stdout.readline()) for _ in range(2)]
    asked.kill()
    asked.wait()
    until = time.monotonic() + 10
    while any(_lives(process) for process in processes) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(_lives(process) for process in processes)


def _lives(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
