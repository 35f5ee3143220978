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


WITHOUT = "import sys; sys.modules.update(dict.fromkeys(('torch', 'transformers', 'datasets')));"
WITHOUT += "sys.path.insert(0, {root!r}); from training import {program}; sys.exit({program}.main(sys.argv[1:]))"


def ended(root, program, *argv):
    """A program in a Python that has neither torch nor transformers nor datasets: whoever imports one fails."""
    code = WITHOUT.format(root=str(root), program=program)
    return subprocess.run([sys.executable, "-c", code, *map(str, argv)], capture_output=True, text=True)


@pytest.mark.parametrize("command", [(), ("--check",)])
def test_a_bad_row_is_told_before_anything_heavy_is_loaded(root, tmp_path, command):
    rows, held = tmp_path / "rows.jsonl", tmp_path / "held.jsonl"
    rows.write_text('{"instruction": "a", "output": "b"}\n{"instruction": "a"}\n', encoding="utf-8")
    held.write_text("no json\n", encoding="utf-8")
    argv = ("--data", rows, "--val-data", held, "--output", tmp_path / "out", *command)
    done = ended(root, "finetune", *argv)
    assert done.returncode == 2, done.stderr
    assert "2 bad rows (ON_BAD_ROW = skip goes on without them)" in done.stderr
    assert f"{rows}:2: " in done.stderr and f"{held}:1: " in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--lora-model", "/nowhere"), "--lora-model /nowhere: no such file or folder"),
        ((), "name what is to be asked: --lora-model RUN, --base-model B, or both"),
        (("--base-model", "x/y", "--test-data", "/none.jsonl"), "--test-data /none.jsonl: no such file"),
        (("--base-model", "x/y", "--output", "/none/x.csv"), "--output /none/x.csv: there is no folder /none"),
        (("--lora-model", "/nowhere", "--interactive"), "--lora-model /nowhere: no such file or folder"),
    ],
)
def test_what_is_not_there_to_be_evaluated_is_told_before_anything_heavy_is_loaded(root, argv, said):
    done = ended(root, "evaluate_model", *argv)
    assert (done.returncode, done.stderr) == (2, f"error: {said}\n")
