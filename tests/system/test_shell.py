"""Commands that are printed for copying: each is built from its words, in one place."""

from __future__ import annotations

import ast
import shlex
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from training.settings.command_line import parse
from training.system import shell

# Texts about the programs, which nobody pastes: usage and help.
ABOUT = {
    "training/settings/usage.py", "training/settings/settings.py", "training/report/checklist.py",
    "training/system/shell.py", "training/settings/other_names.py",
}  # fmt: skip


def test_a_command_can_be_pasted_where_one_stands(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    assert shell.command("run.sh", "--stop", "/runs/a b") == "./run.sh --stop '/runs/a b'"
    monkeypatch.chdir(tmp_path)
    assert shlex.split(shell.command("run.sh", "--stop", "/runs/it's")) == [f"{ROOT}/run.sh", "--stop", "/runs/it's"]


def test_a_command_that_is_kept_can_be_pasted_anywhere(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert shlex.split(shell.lasting("run.sh", "--resume", "/runs/a b")) == [f"{ROOT}/run.sh", "--resume", "/runs/a b"]


@pytest.mark.parametrize(
    "words",
    [
        ["--data", "my data.csv"],
        ["--data=--odd.csv", "--epochs", "2"],
        ["mine.csv", "", "org/model", "3", "--lora_r=8"],
        ["--", "-mine.csv", "out"],
        ["--set", "LoRA.R=8", "--set", "Model.SYSTEM_PROMPT=it's 'so'", "--config", "config.ini"],
        ["mine.csv", "--output", "elsewhere", "--data", "other.csv"],
    ],
)
def test_what_was_typed_to_set_something_is_typed_again_and_sets_the_same(words):
    asked = parse(["--check", *words])
    again = parse(asked.typed)
    assert [(o.section, o.key, o.value) for o in again.overrides] == [
        (o.section, o.key, o.value) for o in asked.overrides
    ]
    assert (again.config, again.command) == (asked.config, "run")


def test_runs_and_commands_are_not_typed_again():
    assert parse(["--resume", "outputs/finetune_1", "--detach", "--output", "elsewhere"]).typed == (
        "--output",
        "elsewhere",
    )


def texts(file: Path) -> list[str]:
    """All texts of a module but its docstrings."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return [node.value for node in nodes if id(node) not in docs]


def test_no_command_is_written_by_hand():
    found = [
        (file, text)
        for file in sorted((ROOT / "training").rglob("*.py"))
        if (name := file.relative_to(ROOT).as_posix()) not in ABOUT and name
        for text in texts(file)
        if any(f"/{program}" in text for program in ("run.sh", "export_ollama.sh", "setup.sh"))
    ]
    assert found == []
