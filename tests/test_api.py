"""The door for Python: what a notebook or a program gets from `from training import ...`, on the tiny model."""

from __future__ import annotations

import inspect
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from loguru import logger

import training
from tests.support import adopted, small
from tests.support.paths import ROOT
from training import (
    FineTuningConfig,
    FineTuningRun,
    RunError,
    Stopped,
    UserError,
    generate_text,
    load_model_and_tokenizer,
    run_fine_tuning,
)

# Its runs need no real vocabulary.
tiny_model = small.tiny_model


@pytest.fixture(autouse=True)
def forks(request, monkeypatch) -> None:
    """The runs of a test begin with torch imported already."""
    if request.node.get_closest_marker("tiny"):
        monkeypatch.setattr(subprocess, "Popen", adopted.Popen)


ROWS = [{"instruction": f"What is {n} and {n}?", "response": f"It is {2 * n}."} for n in range(1, 17)]


def config(folder: Path, model: Path, **changes: object) -> FineTuningConfig:
    """Settings for a few steps."""
    return FineTuningConfig(
        **{
            "model_name": model, "output_dir": folder / "results", "batch_size": 2, "gradient_accumulation_steps": 2,
            "max_steps": 4, "save_steps": 2, "eval_steps": 2, "warmup_steps": 1, "learning_rate": 1e-3,
            "num_threads": 1, **changes,
        }
    )  # fmt: skip


def state_of_the_caller() -> dict[str, object]:
    """What a library must leave as it is."""
    return {
        "signals": {number: signal.getsignal(number) for number in (2, 15, 10, 1)},
        "wakeup": signal.set_wakeup_fd(-1),
        "stdout": (sys.stdout, sys.stderr, os.fstat(1).st_ino),
        "handlers": (list(logging.root.handlers), list(logger._core.handlers)),
        "variables": dict(os.environ),
        "folder": Path.cwd(),
    }


@pytest.mark.slow
def test_importing_it_loads_nothing_heavy() -> None:
    heavy = ("torch", "transformers", "trl", "peft", "datasets", "numpy", "loguru", "tqdm")
    code = (
        "import sys; before = set(sys.modules); import training\n"
        # Of itself nothing but this: it takes milliseconds.
        "new = {name for name in set(sys.modules) - before if name.partition('.')[0] not in sys.stdlib_module_names}\n"
        "assert new == {'training'}, new\n"
        "from training import FineTuningConfig, run_fine_tuning, load_model_and_tokenizer\n"
        "FineTuningConfig(lora_r=8)\n"
        f"print(*[name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_package_hands_on_what_it_says_and_nothing_else() -> None:
    from training import api

    assert sorted(training.__all__) == sorted(api.__all__)
    assert all(getattr(training, name) is getattr(api, name) and name in dir(training) for name in training.__all__)
    with pytest.raises(AttributeError, match="module 'training' has no attribute 'run_finetuning'"):
        training.run_finetuning  # noqa: B018
    for name in training.__all__:
        assert inspect.getdoc(getattr(training, name)), f"{name} says not what it is for"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "data_path= is missing: a file, a list of dicts, or a datasets.Dataset"),
        ({"data_path": "none.jsonl"}, r"data_path=none.jsonl: no such file \(.*/none.jsonl\)"),
        ({"data_path": ROWS, "train_test_split": 1.5}, "train_test_split=1.5: must be from 0 up to, not including, 1"),
        ({"data_path": ROWS, "prompt_template": "{instruction}"}, r"prompt_template=.*: {response} is missing"),
        ({"data_path": ROWS, "config": {"lora_r": 8}}, "config= takes a FineTuningConfig, not dict"),
        ({"resume": "x", "data_path": ROWS}, "resume= goes on with the run's own data and settings"),
        ({"data_path": ROWS, "on_event": 7}, "on_event= takes a function that is told each event, not int"),
        ({"resume": "x"}, "is not a run directory"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_started(arguments, said, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=said) as error:
        run_fine_tuning(**arguments)
    assert error.value.exit_code == 2 and error.value.problems
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0: must be at least 1"),
        ({"max_new_tokens": -5}, "max_new_tokens=-5: must be at least 1"),
        ({"temperature": -0.5}, "temperature=-0.5: must be a number from 0 on"),
        ({"temperature": float("nan")}, "temperature=nan: must be a number from 0 on"),
        ({"temperature": float("inf")}, "temperature=inf: must be a number from 0 on"),
    ],
)
def test_an_answer_that_cannot_be_as_it_was_asked_for_is_refused(how, said) -> None:
    # They were taken for 1 token, and for the likeliest tokens.
    with pytest.raises(UserError, match=said):
        generate_text(None, None, "x", **how)


@pytest.mark.tiny
def test_a_run_from_rows_in_memory_to_an_answer(tmp_path, tiny_model, capfd) -> None:
    before, seen = state_of_the_caller(), []
    run = run_fine_tuning(
        data_path=ROWS, config=config(tmp_path, tiny_model), train_test_split=0.25, on_event=seen.append
    )
    after = state_of_the_caller()
    signal.set_wakeup_fd(before["wakeup"])
    assert after | {"wakeup": 0} == before | {"wakeup": 0}
    assert capfd.readouterr() == ("", "")
    assert [event["event"] for event in seen][0] == "started" and seen[-1]["event"] == "done"
    assert [event["step"] for event in seen if event["event"] == "step"] == [1, 2, 3, 4]

    assert run.state == "completed" and Path(run) == run.path and run.path.parent == tmp_path / "results"
    assert run.report["data"]["rows"] == {"training": 12, "validation": 4}
    assert {"adapter", "merged", "gguf", "modelfile", "report", "log", "config"} == set(run.files)
    assert FineTuningRun.open(tmp_path / "results" / "final_model") == run

    before = state_of_the_caller()
    for named in (run, run.files["adapter"], tmp_path / "results/final_model", FineTuningConfig(model_name=run)):
        model, tokenizer = load_model_and_tokenizer(named)
        texts = [generate_text(model, tokenizer, "What is 3 and 3?", 8, temperature=0) for _ in range(2)]
        assert texts[0] == texts[1]
    drawn = [generate_text(model, tokenizer, [{"role": "user", "content": "hi"}], 8, 1.0, seed=n) for n in (1, 1, 2)]
    assert drawn[0] == drawn[1] and isinstance(drawn[2], str)
    after = state_of_the_caller()
    signal.set_wakeup_fd(before["wakeup"])
    # Libraries that load a model say in variables what they have found.
    assert {**after, "wakeup": 0, "variables": 0} == {**before, "wakeup": 0, "variables": 0}
    with pytest.raises(UserError, match="the prompt has .* tokens, and the model takes 512"):
        generate_text(model, tokenizer, "word " * 600)


@pytest.mark.tiny
def test_bad_rows_are_told_as_ever_and_by_their_number(tmp_path, tiny_model) -> None:
    with pytest.raises(UserError) as error:
        run_fine_tuning([*ROWS, {"instruction": "no answer"}], config(tmp_path, tiny_model))
    assert error.value.exit_code == 2 and "1 bad row" in str(error.value)
    assert any(":17: " in problem for problem in error.value.problems)
    assert not list((tmp_path / "results").glob("finetune_*"))


@pytest.mark.tiny
def test_an_interrupt_stops_after_a_checkpoint_and_the_run_goes_on_later(tmp_path, tiny_model) -> None:
    def press(event: dict[str, object]) -> None:
        if event["event"] == "step" and event["step"] == 2:
            # What Jupyter's stop button does, once.
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()

    long = config(tmp_path, tiny_model, max_steps=4000, save_steps=0, eval_steps=0)
    # A notebook's kernel, and Python itself, answer it with KeyboardInterrupt; a worker of the tests may leave it unheard.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(Stopped) as error:
            run_fine_tuning(ROWS, long, on_event=press, train_test_split=0)
    finally:
        signal.signal(signal.SIGINT, before)
    stopped = error.value
    assert stopped.exit_code == 130 and stopped.run is not None and f"--resume {stopped.run}" in stopped.safe
    assert len(list((stopped.run / "checkpoints").glob("checkpoint-*"))) == 1
    assert FineTuningRun.open(stopped.run).state == "interrupted"

    def enough(event: dict[str, object]) -> None:
        if event["event"] == "step":
            raise StopIteration("seen enough")

    with pytest.raises(StopIteration, match="seen enough"):  # the caller's own, once the run has ended in good order
        run_fine_tuning(resume=stopped.run, on_event=enough)
    assert FineTuningRun.open(stopped.run).state == "interrupted"


@pytest.mark.tiny
def test_a_run_whose_process_is_killed_says_so_and_how_to_go_on(tmp_path, tiny_model) -> None:
    def kill(event: dict[str, object]) -> None:
        if event["event"] == "step":
            os.kill(json.loads((next((tmp_path / "results").glob("finetune_*")) / "status.json").read_text())["pid"], 9)

    with pytest.raises(RunError, match="ended by SIGKILL") as error:
        run_fine_tuning(ROWS, config(tmp_path, tiny_model, max_steps=500, eval_steps=0), on_event=kill)
    assert error.value.exit_code == 1 and f"--resume {error.value.run}" in error.value.safe


@pytest.mark.slow
def test_without_packages_it_is_the_machine_that_is_not_ready(tmp_path, monkeypatch) -> None:
    from training.errors import MachineError
    from training.library import bar, child
    from training.system import paths

    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.setattr(child.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MachineError, match=f"run {tmp_path}/setup.sh first"):
        child.run([], bar.Nothing(), None)


def test_the_bar_follows_the_events(capsys) -> None:
    from training.library import bar

    shown = bar.made(True)
    for event in (
        {"event": "started", "total": 2},
        {"event": "step", "step": 1, "loss": 2.5},
        {"event": "evaluation", "loss": 2.25},
        {"event": "step", "step": 2, "loss": None},
        {"event": "warning", "message": "look here"},
        {"event": "stage", "name": "train"},
    ):
        shown.take(event)
    shown.close()
    told = capsys.readouterr().err
    assert "train:" in told and "2/2" in told and "validation=2.2500" in told and "look here" in told
    assert "evaluate:" in told
    assert isinstance(bar.made(False), bar.Nothing) and isinstance(bar.made(None), bar.Nothing)
