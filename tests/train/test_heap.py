"""Memory that a training keeps from step to step, and gives back at its end."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from training.train import heap

SIZE = 256 * 2**20
# What a step does: much memory in blocks, taken and freed. Resident bytes after each part.
SCRIPT = f"""
import json, sys
from pathlib import Path
from training.train import heap

def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

def step():
    blocks = [bytes([1]) * 2**18 for _ in range({SIZE} // 2**18)]

before = resident()
with heap.kept():
    step()
    kept = resident() - before
print(json.dumps([kept, resident() - before]))
"""


@pytest.mark.slow
def test_what_a_step_frees_is_there_for_the_next_and_goes_back_at_the_end():
    if heap._glibc() is None:
        pytest.skip("another C library")
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    kept, after = json.loads(done.stdout)
    assert kept > 0.9 * SIZE
    assert after < 0.1 * SIZE


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(heap, "_glibc", lambda: None)
    with heap.kept():
        heap.give_back()
