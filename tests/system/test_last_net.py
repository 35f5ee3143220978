"""What nobody has foreseen ends in one line, in every command; the traceback is in the log."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from training.errors import MachineError
from training.system import last_net

MAINS = {
    "finetune": ("COMMANDS", ["--history"]),
    "evaluate_model": ("evaluate", ["--lora-model", "x"]),
    "convert_to_gguf": ("run", ["--model-path", "x"]),
    "prepare_data": ("run", ["--input", "x", "--format-type", "chat", "--output-dir", "x", "--output-name", "x"]),
    "create_sample_data": ("write", ["--output-dir", "x"]),
}


def fail(*_: object) -> int:
    raise ZeroDivisionError("nobody thought of this\nand of a second line")


@pytest.mark.tiny
@pytest.mark.parametrize("program", MAINS)
def test_a_mistake_of_ours_is_one_line_and_its_traceback_is_in_the_log(
    program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module(f"training.{program}")
    name, words = MAINS[program]
    if program == "prepare_data":
        words = [word.replace("chat", module.TYPES[0]) for word in words]
    monkeypatch.setattr(module, name, {"history": fail} if name == "COMMANDS" else fail)
    monkeypatch.setattr(last_net, "LOG", tmp_path / "finetune.log")
    monkeypatch.chdir(tmp_path)
    if program == "evaluate_model":
        (tmp_path / "x").mkdir()
    assert module.main(words) == 1
    said = capfd.readouterr().err
    assert "unexpected: ZeroDivisionError: nobody thought of this; the traceback is in" in said
    assert "Traceback" not in said and "second line" not in said
    kept = (tmp_path / "finetune.log").read_text(encoding="utf-8")
    assert "Traceback" in kept and "in fail" in kept


@pytest.mark.tiny
@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        (
            "prepare_data",
            ["--input", "~nobody-here/x", "--format-type", "alpaca", "--output-dir", "x", "--output-name", "x"],
        ),
        ("create_sample_data", ["--output-dir", "~nobody-here/x"]),
        ("evaluate_model", ["--lora-model", "~nobody-here/x"]),
        ("evaluate_model", ["--output", "~nobody-here/x"]),
        ("convert_to_gguf", ["--model-path", "~nobody-here/x"]),
    ],
)
def test_a_home_folder_that_there_is_not_is_a_users_mistake(
    program: str,
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert importlib.import_module(f"training.{program}").main(arguments) == 2
    assert "~nobody-here/x: there is no home folder for ~nobody-here" in capfd.readouterr().err


def test_a_file_that_cannot_be_used_is_the_machines_fault_and_named(tmp_path, monkeypatch):
    monkeypatch.setattr(last_net, "LOG", tmp_path / "nowhere" / "finetune.log")
    told = last_net.caught(PermissionError(13, "Permission denied", "/x/y"))
    assert isinstance(told, MachineError)
    assert str(told) == "/x/y: Permission denied"
