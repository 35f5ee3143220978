"""NUM_THREADS after the training: torch and llama.cpp compute the export with as many."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from training.pipeline import export_stages
from training.system import threads


def test_what_is_allowed_is_the_least_and_nothing_is_left_of_it_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(threads.MOST, raising=False)
    monkeypatch.delitem(sys.modules, "torch", raising=False)  # it reads the other variable where it is loaded later
    assert threads.allowed(8) == 8 and threads.variables() == {}
    with threads.at_most(3):
        assert (threads.allowed(8), threads.allowed(2)) == (3, 2)
        assert threads.variables() == {threads.MOST: "3"} and os.environ[threads.OPENMP] == "3"
    assert threads.allowed(8) == 8 and threads.MOST not in os.environ


@pytest.mark.parametrize("words", ["", "0", "many", "-1"])
def test_a_number_that_is_none_allows_all(monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    monkeypatch.setenv(threads.MOST, words)
    assert threads.allowed(8) == 8


@pytest.mark.parametrize(
    ("wanted", "written", "processes", "told"),
    [("auto", True, 1, 8), (2, False, 1, 8), (2, True, 1, 2), (2, True, 3, 6)],
)
def test_an_export_has_the_threads_of_all_processes_of_its_run(
    monkeypatch: pytest.MonkeyPatch, wanted: int | str, written: bool, processes: int, told: int
) -> None:
    monkeypatch.delenv(threads.MOST, raising=False)
    hardware = SimpleNamespace(num_threads=wanted, num_processes=processes)
    job: Any = SimpleNamespace(settings=SimpleNamespace(hardware=hardware, written=lambda key: written))
    with export_stages._threads(job):
        assert threads.allowed(8) == told


@pytest.mark.tiny
def test_torch_computes_with_so_many_and_then_with_as_many_as_before() -> None:
    import torch

    before = torch.get_num_threads()
    with threads.at_most(before + 2):
        assert torch.get_num_threads() == before + 2
    assert torch.get_num_threads() == before


@pytest.mark.tiny
def test_llama_cpp_asks_with_so_many(undisturbed: Path) -> None:
    """Its threads wait for each other in a loop: with more of them than free processors all takes many times as long."""
    from training import llama
    from training.system import this_machine

    if this_machine.inspect().cores < 2:
        pytest.skip("one core has one thread")
    (gguf,) = undisturbed.glob("*.gguf")
    tasks = []
    for count in (1, 2):
        with threads.at_most(count), llama.opened(gguf) as process:
            process.ask({"do": "answer", "prompts": [[1, 2]], "max_tokens": 1, "stop_ids": [], "stream": False})
            tasks.append(len(list(Path(f"/proc/{process.process.pid}/task").iterdir())))
    assert tasks[0] < tasks[1]
