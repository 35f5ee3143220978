"""NUM_THREADS after the training: torch and llama.cpp compute the export with as many."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from training.pipeline import export_stages
from training.system import threads
from training.to_gguf.job import Job


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


@pytest.mark.tiny
def test_every_stage_of_an_export_and_its_quantiser_have_so_many(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = shutil.copytree(undisturbed, tmp_path / "run")
    job = Job.of_run(run)
    assert job.settings.written("Hardware.NUM_THREADS") and job.settings.hardware.num_threads == 1
    heard: list[tuple[str, int, dict[str, str]]] = []
    done = lambda job: True  # noqa: E731
    stage = lambda name: (done, lambda job: heard.append((name, threads.allowed(8), threads.variables())) or {})  # noqa: E731
    monkeypatch.setattr(export_stages, "STAGES", {name: stage(name) for name in export_stages.STAGES})
    export_stages.export(job, only="quantise")
    assert ("quantise", 1, {threads.MOST: "1"}) in heard


@pytest.mark.tiny
def test_the_quantiser_is_told_of_it_in_whatever_process_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from training.to_gguf import conversion

    told: list[object] = []

    def popen(script: Path, arguments: object, extra: object = None) -> object:
        told.append(extra)
        raise KeyboardInterrupt

    monkeypatch.setattr(conversion.forkserver, "popen", popen)
    with threads.at_most(3), pytest.raises(KeyboardInterrupt):
        conversion.work("quantise", tmp_path / "x.gguf", 1, ["quantise"], None)
    assert told == [{threads.MOST: "3"}]


@pytest.mark.tiny
@pytest.mark.parametrize(("most", "taken"), [("1", 1), ("", None)])
def test_the_quantiser_takes_so_many(monkeypatch: pytest.MonkeyPatch, most: str, taken: int | None) -> None:
    import ctypes

    import llama_cpp

    from training.system import this_machine
    from training.to_gguf import conversion_worker

    asked: list[int] = []

    def quantise(source: bytes, out: bytes, params: object) -> int:
        pointer = ctypes.cast(params, ctypes.POINTER(llama_cpp.llama_model_quantize_params))  # type: ignore[arg-type]
        asked.append(pointer.contents.nthread)
        return 0

    monkeypatch.setattr(llama_cpp, "llama_model_quantize", quantise)
    monkeypatch.setenv(threads.MOST, most)
    assert conversion_worker.quantise("a.gguf", "b.gguf", "q8_0") == 0
    assert asked == [taken or len(this_machine.processors())]
