"""A signal gets through all that bears errors: Interrupted is no Exception, and what is made of it is still a signal."""

from __future__ import annotations

import ast
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace as Some

import pytest

from tests.support.paths import ROOT
from tests.support.runs import put_adapter
from training import export, runs
from training.base_model import model_tokenizer
from training.errors import FinetuneError, Interrupted, RunError
from training.ollama import template_probe
from training.pipeline import failures
from training.plan import time_estimate
from training.system.signals import behind
from training.to_gguf import trial


def stopped(*_: object, **__: object) -> str:
    raise Interrupted(signal.SIGTERM, "stopped by SIGTERM")


def _estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time_estimate, "_seconds", stopped)
    time_estimate.lines(Some(settings=Some(hardware=Some(device="cpu"))))  # type: ignore[arg-type]


def _trial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "_trial", stopped)
    trial.ready({}, ROOT)


def _tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", stopped)
    model_tokenizer.load_tokenizer(ROOT)


def _tail(_: pytest.MonkeyPatch) -> None:
    template_probe._tail(stopped, [{"content": "a"}])


def _system(_: pytest.MonkeyPatch) -> None:
    template_probe._probe_system(stopped, "")


@pytest.mark.parametrize("place", [_estimate, _trial, pytest.param(_tokenizer, marks=pytest.mark.slow), _tail, _system])
def test_a_place_that_bears_errors_lets_a_signal_through(
    place: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Interrupted):
        place(monkeypatch)


def test_what_catches_all_raises_it_again() -> None:
    """Else Interrupted would end there as an Exception did."""
    kept = set()
    for file in sorted((ROOT / "training").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            catches = isinstance(node, ast.ExceptHandler) and (
                node.type is None or "BaseException" in ast.dump(node.type)
            )
            if catches and not any(isinstance(inner, ast.Raise) and inner.exc is None for inner in ast.walk(node)):
                kept.add(file.relative_to(ROOT).as_posix())
    # The end of a script in a fork: whatever ends it is printed, and its exit code is 1.
    assert kept == {"training/system/forkserver.py"}


def test_an_error_that_a_signal_is_behind_is_told_as_the_signal() -> None:
    caught: list[Exception] = []
    try:
        try:
            stopped()
        except BaseException:
            raise RuntimeError("a library's") from None
    except RuntimeError as error:
        caught.append(RunError("training", "first of all"))
        caught[-1].__cause__ = error
    told = failures.told(caught[-1], None)
    assert (type(told), told.exit_code, str(told)) == (Interrupted, 143, "stopped by SIGTERM")


def test_a_signal_that_ends_a_run_is_told_with_what_is_safe_and_how_to_go_on(tmp_path: Path) -> None:
    run = runs.create(tmp_path)
    (run.path / runs.CONFIG).write_text("[Model]\n")
    run.finish_stage("train", {"seconds": 1.0})
    put_adapter(run.path)
    told = failures.stopped(Interrupted(signal.SIGINT, "stopped by SIGINT"), run)
    assert told.exit_code == 130
    assert str(told) == (
        f"stopped by SIGINT; the adapter is safe in {run.path}/adapter; "
        f"`{ROOT}/run.sh --resume {run.path}` does the rest"
    )
    # Who knows more has said it already.
    at_a_step = Interrupted(signal.SIGINT, "stopped at step 3 of 6; the checkpoint of step 3 is safe")
    assert failures.stopped(at_a_step, run) is at_a_step
    assert str(failures.stopped(Interrupted(signal.SIGTERM, "stopped by SIGTERM"), None)) == "stopped by SIGTERM"


@pytest.mark.parametrize("alone", [True, False])
def test_an_export_that_a_signal_ends_says_so_unless_the_run_that_it_works_for_does(
    alone: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: list[str]
) -> None:
    run = runs.create(tmp_path)
    monkeypatch.setattr(export, "Signals", lambda: Some(install=lambda: None, delivered=lambda: None))
    monkeypatch.setattr(export.log, "start", lambda *_: None)
    monkeypatch.setattr(export.Job, "of_run", lambda _: Some(run=run))
    monkeypatch.setattr(export, "_alone", lambda _: alone)
    for name in ("_for_its_run", "_by_itself"):
        monkeypatch.setattr(export, name, lambda *_: stopped())
    assert export.main([str(run.path)]) == 143
    told = ["stopped by SIGTERM; what is made stays, and the same command does the rest"] if alone else []
    assert [line for line in logged if "SIGTERM" in line] == told


def test_an_error_without_a_signal_is_told_as_itself() -> None:
    error = FinetuneError("its own")
    assert behind(error) is None and failures.told(error, None) is error
