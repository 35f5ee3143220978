"""What the stage of the checks says while it is at work."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from training.checks import all_checks
from training.checks.check import Check
from training.runs import Run
from training.to_gguf.job import Job


def test_each_check_is_told_when_it_is_made(tmp_path, logged):
    told = []
    done = all_checks._Done(Job(run=Run(tmp_path), settings=None, facts=None, told=told.append), 4)
    for at, name in enumerate(("merged tensors", "GGUF tokenizer"), 1):
        done.append(Check(name, True, {}, "", ""))
        assert (logged[-1], told) == (f"check {name}: passed", [n / 4 for n in range(1, at + 1)])


@pytest.mark.parametrize(("load", "beside"), [(0.5, ""), (900.0, ", beside other programs: load 900.0 on ")])
def test_how_fast_a_file_answers_says_what_it_was_measured_beside(tmp_path, logged, monkeypatch, load, beside):
    @contextmanager
    def gguf(name: str, path: Path):
        yield SimpleNamespace(answers=lambda asked: [], speed=12.3)

    monkeypatch.setattr(all_checks.models, "gguf", gguf)
    monkeypatch.setattr("os.getloadavg", lambda: (load, load, load))
    job = SimpleNamespace(facts=SimpleNamespace(measured=[], asked=[]))
    all_checks._evaluate(job, {"q4_k_m": tmp_path / "a.gguf"})
    words = f"a.gguf answers 12 tokens a second on this machine{beside}"
    assert logged[-1].startswith(words) and (beside or logged[-1] == words)
