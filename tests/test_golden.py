"""What users and their programs see, word for word: tests/golden/ holds it, and a change of it shows as a diff in review.

A change that is wanted is taken with

    tests/run.sh tests/test_golden.py --golden

which writes the files anew. A new case for problems.txt is its input alone, under a line `=== what it is`.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import os
import re
import shlex
import subprocess
import sys
import typing
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from training import errors
from training.report import schema
from training.runs import directory
from training.settings import command_line

GOLDEN = ROOT / "tests" / "golden"
SCRIPTS = ("create_sample_data", "prepare_data", "evaluate_model", "convert_to_gguf", "export")
CASE = re.compile(r"^=== (?P<name>.*)\n(?P<input>(?:(?!===|--- ).*\n)*)(?:--- .*\n(?:(?!=== ).*\n)*)?", re.M)
# What is in these depends on the machine.
OF_THE_MACHINE = (
    "versions",
    "machine",
    "choices",
    "backend",
    "bf16_unit",
    "gpus",
    "oom_kills",
    "peak_memory",
    "written",
)

Compare = Callable[[str, str], None]


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Compare:
    """Compare a text with the file of this name in tests/golden/; with --golden write it."""

    def compare(name: str, text: str) -> None:
        path = GOLDEN / name
        if request.config.getoption("--golden"):
            path.write_text(text, encoding="utf-8")
        kept = path.read_text(encoding="utf-8") if path.exists() else ""
        assert text == kept, f"users see another {name}; if that is wanted: tests/run.sh tests/test_golden.py --golden"

    return compare


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a user stands: a file with a row, and a folder."""
    (tmp_path / "train_data.jsonl").write_text('{"prompt": "a", "completion": "b"}\n', encoding="utf-8")
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def problem(given: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What wrong settings or flags are answered, and how it ends."""
    config = folder / "config.ini"
    if given.startswith("$"):
        argv = shlex.split(given.removeprefix("$"))
    else:
        config.write_text(given, encoding="utf-8")
        argv = ["--config", "config.ini"]
    code = command_line.main(argv)
    out, err = capsys.readouterr()
    told = re.sub(r'"time": [0-9.]+', '"time": 0', f"--- exit {code}\n{out}{err}")
    return told.replace(str(folder), "/folder").replace(str(ROOT), "/root")


def test_wrong_settings_and_flags_are_answered_as_ever(
    golden: Compare, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = (GOLDEN / "problems.txt").read_text(encoding="utf-8")
    cases = list(CASE.finditer(kept))
    assert len(cases) == kept.count("\n===") + 1
    told = [f"=== {case['name']}\n{case['input']}{problem(case['input'], folder, capsys)}" for case in cases]
    golden("problems.txt", "".join(told))


def shown(*command: str | Path) -> str:
    """What a program prints, with how it ends; a terminal of 80 columns."""
    done = subprocess.run(
        [str(part) for part in command],
        env={**os.environ, "COLUMNS": "80"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
    )
    return f"{done.stdout}--- exit {done.returncode}\n"


@pytest.mark.slow
@pytest.mark.parametrize("script", ["run", "setup", "export_ollama"])
def test_the_shell_scripts_say_the_same_of_themselves(golden: Compare, script: str) -> None:
    golden(f"help_{script}.txt", shown(ROOT / f"{script}.sh", "--help"))


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_the_programs_say_the_same_of_themselves(golden: Compare, script: str) -> None:
    golden(f"help_{script}.txt", shown(sys.executable, ROOT / "training" / f"{script}.py", "--help"))


def test_failures_have_the_exit_codes_that_they_had(golden: Compare) -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, BaseException)]
    codes = [f"{kind.__name__} {kind.exit_code}" for kind in kinds]
    codes += [f"Interrupted by signal {number}: {errors.Interrupted(number, '').exit_code}" for number in (2, 15)]
    golden("exit_codes.txt", "\n".join(codes) + "\n")


def emitted() -> Iterator[str]:
    """Every event that some line of the program tells, with the fields that stand there."""
    for file in sorted((ROOT / "training").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "emit":
                (event,) = node.args
                name = event.value if isinstance(event, ast.Constant) else "(failed or interrupted)"
                yield f"{name}: {', '.join(sorted(word.arg or '...' for word in node.keywords))}"


def test_the_program_tells_the_events_that_it_told(golden: Compare) -> None:
    golden("events.txt", "\n".join(sorted(set(emitted()))) + "\n")


def test_the_report_has_the_fields_that_it_had(golden: Compare) -> None:
    kinds = [schema.Report]
    for kind in kinds:  # grows while it is read
        for hint in typing.get_type_hints(kind).values():
            for part in (hint, *typing.get_args(hint), *(p for a in typing.get_args(hint) for p in typing.get_args(a))):
                if dataclasses.is_dataclass(part) and part not in kinds:
                    kinds.append(part)
    fields = [f"{kind.__name__}.{field.name}: {field.type}" for kind in kinds for field in dataclasses.fields(kind)]
    golden("report_fields.txt", "\n".join(fields).replace("Any", "object") + "\n")


def kinds_of(value: object, name: str) -> Iterator[str]:
    """The names and JSON types of all that a value holds."""
    if name.endswith(OF_THE_MACHINE):
        yield f"{name}: the machine's"
    elif isinstance(value, dict) and value:
        for key, part in value.items():
            yield from kinds_of(part, f"{name}.{key}")
    elif isinstance(value, list) and value:
        yield from sorted({line for part in value for line in kinds_of(part, f"{name}[]")})
    else:
        words = {type(None): "null", bool: "true or false", int: "number", float: "number", str: "text"}
        yield f"{name}: {words.get(type(value), type(value).__name__)}"


@pytest.mark.tiny
def test_a_run_leaves_what_it_left(golden: Compare, undisturbed: Path) -> None:
    """Names and types of all in status.json, report.json and events.jsonl, and the files of a run."""
    lines = sorted(
        {re.sub(r"\d+$", "N", str(path.relative_to(undisturbed).parent / path.stem)) + path.suffix + "/" * path.is_dir()
         for path in undisturbed.rglob("*")}
    )  # fmt: skip
    for name in (directory.STATUS, directory.REPORT):
        lines += kinds_of(json.loads((undisturbed / name).read_text(encoding="utf-8")), name)
    events = [json.loads(line) for line in (undisturbed / directory.EVENTS).read_text(encoding="utf-8").splitlines()]
    lines += sorted({line for event in events for line in kinds_of(event, event["event"])})
    golden("run.txt", "\n".join(lines) + "\n")
