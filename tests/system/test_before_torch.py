"""What torch reads when it is loaded is set by then, by each program that loads it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from training.system import before_torch

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("program", ["finetune", "evaluate_model"])
def test_a_program_sets_what_torch_reads_before_it_is_loaded_and_leaves_the_users_own_values(root, program):
    code = f"""
import os, sys
sys.path.insert(0, {str(root)!r})
from training import {program}
print("torch" in sys.modules, *(os.environ.get(name) for name in {sorted(before_torch.THREADS | before_torch.CACHES)!r}))
"""
    plain = {
        name: value for name, value in os.environ.items() if name not in before_torch.THREADS | before_torch.CACHES
    }
    for own, caches in (({}, "64"), ({"LRU_CACHE_CAPACITY": "7"}, "7")):
        done = subprocess.run([sys.executable, "-c", code], env=plain | own, capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["False", "20000", caches, "PASSIVE", "64"]
    waits = subprocess.run(
        [sys.executable, "-c", code],
        env=plain | {"OMP_WAIT_POLICY": "ACTIVE"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert waits.stdout.split() == ["False", "None", "64", "ACTIVE", "64"], "our count would overrule the policy"


def test_the_allocator_of_a_card_is_told_before_it_starts_unless_the_user_has_told_it(monkeypatch):
    names = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
    for own, told in (
        ({}, ["expandable_segments:True", None]),
        ({"PYTORCH_ALLOC_CONF": "backend:cudaMallocAsync"}, ["backend:cudaMallocAsync", None]),
        ({"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}, [None, "max_split_size_mb:64"]),
    ):
        with monkeypatch.context() as patch:
            for name in names:
                patch.setenv(name, "")
                patch.delenv(name)
            for name, value in own.items():
                patch.setenv(name, value)
            before_torch.settle(before_torch.ALLOCATOR)
            assert [os.environ.get(name) for name in names] == told
            for name in names:
                patch.delenv(name, raising=False)


def test_rocms_allocator_is_left_as_it_is(monkeypatch):
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "")
    monkeypatch.delenv("PYTORCH_ALLOC_CONF")
    monkeypatch.setattr(before_torch.metadata, "version", lambda name: "2.13.0+rocm7.2")
    before_torch.settle(before_torch.ALLOCATOR)
    assert "PYTORCH_ALLOC_CONF" not in os.environ
