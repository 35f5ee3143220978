"""What a GGUF file says of its training: no row, no path, no name of a person; and what --whois makes of it."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest

from tests.support.gguf import write_gguf
from tests.support.ollama_server import FakeOllama, Model, running
from tests.support.reports import good
from training.control.whois import NOTHING, whois
from training.errors import UserError
from training.llama import gguf_file
from training.report import schema
from training.settings.command_line import parse
from training.to_gguf import provenance

PATHS = ("/home", "/tmp", "rows.jsonl")


def told(word: str) -> str:
    out = io.StringIO()
    assert whois(parse(["--whois", word]), out) == 0
    return out.getvalue()


@pytest.fixture
def described(tmp_path: Path) -> dict[str, object]:
    return provenance.describe(schema.plain(good(tmp_path)))


@pytest.fixture
def gguf(tmp_path: Path, described: dict[str, object]) -> Path:
    pairs = {"general.architecture": "llama", **provenance.pairs(described), "general.name": "after"}
    return write_gguf(tmp_path / "model.gguf", pairs)


def test_a_file_tells_data_base_run_scores_and_checks(gguf: Path, described: dict[str, object]) -> None:
    provenance.fill(gguf, {"merged tensors": True, "answers": None, "modelfile": False})
    lines = told(str(gguf)).splitlines()
    assert all(": " in line for line in lines)
    said = dict(line.split(": ", 1) for line in lines)
    assert said["run"] == described["run"]
    assert said["base"] == described["base"]
    assert said["data_1"].startswith("training, ") and "sha256 " in said["data_1"]
    assert said["check merged tensors"] == "passed"
    assert said["check answers"] == "left out"
    assert said["check modelfile"] == "failed"
    assert any(key.startswith("score ") for key in said)


def test_a_file_that_was_made_up_is_told_in_lines_too(tmp_path: Path) -> None:
    made = {"run": [1], "steps": {"a": []}, "rows": {"x": [[]]}, "scores": [[["a"], [1], {}]], "data": [{"rows": {}}]}
    made["validation_loss"] = [10**400, True]
    found = {"checks": {"answers": [], "tensors": {}, "merged": 1}}
    pairs = {"general.architecture": "llama", provenance.MADE: json.dumps(made), provenance.FOUND: json.dumps(found)}
    lines = told(str(write_gguf(tmp_path / "model.gguf", pairs))).splitlines()
    assert all(": " in line and len(line) < 500 for line in lines)
    assert {"check answers: left out", "check tensors: left out", "check merged: left out"} <= set(lines)
    assert any(line.startswith("validation_loss: 1000") for line in lines)


def test_what_the_checks_found_goes_into_the_room_left_for_it_and_nowhere_else(gguf: Path) -> None:
    before = gguf.read_bytes()
    provenance.fill(gguf, {"merged tensors": True})
    after = gguf.read_bytes()
    assert len(after) == len(before)
    differing = [at for at, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
    assert differing[-1] - differing[0] < provenance.ROOM
    provenance.fill(gguf, {"a": False})
    assert "check merged tensors" not in told(str(gguf)), "the room is written over as a whole"


def test_a_file_without_room_is_left_alone(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "old.gguf", {"general.architecture": "llama"})
    before = path.read_bytes()
    provenance.fill(path, {"merged tensors": True})
    assert path.read_bytes() == before


def test_neither_rows_nor_paths_nor_settings_stand_in_it(tmp_path: Path, described: dict[str, object]) -> None:
    report = schema.plain(good(tmp_path))
    report["base"] |= {"kind": "folder", "name": "/home/somebody/models/qwen"}
    for file in report["data"]["files"]:
        file["path"] = "/home/somebody/rows.jsonl"
    text = json.dumps(provenance.describe(report))
    assert '"base": "qwen"' in text
    assert not [word for word in (*PATHS, "somebody", str(tmp_path)) if word in text]
    questions = [sample["question"] for sample in report["samples"]]
    assert questions and not [one for one in questions if one in text]


def test_a_file_of_before_or_of_somebody_else_says_nothing_and_that_is_no_failure(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "old.gguf", {"general.architecture": "llama"})
    assert told(str(path)) == NOTHING + "\n"
    for spoiled in ("", "[]", '{"run": [[[', '{"data": 5, "rows": 7, "scores": [1], "run": {"a": 1}}'):
        path = write_gguf(tmp_path / "x.gguf", {"general.architecture": "llama", provenance.MADE: spoiled or " "})
        told(str(path))


def test_what_somebody_else_wrote_acts_on_no_terminal(tmp_path: Path) -> None:
    made = {"general.architecture": "llama", provenance.MADE: json.dumps({"run": "\x1b]0;owned\x07\nfake: line"})}
    assert told(str(write_gguf(tmp_path / "x.gguf", made))) == "run: \\x1b]0;owned\\x07 fake: line\n"


def test_a_name_is_looked_up_at_the_server(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_MODELS", str(gguf.parent / "nothing"))
    with running(FakeOllama()) as fake:
        fake.info = {key: value for key, value in gguf_file.read(gguf).fields.items() if isinstance(value, str)}
        fake.models["team/mine:v1"] = Model({}, "one")
        monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{fake.port}")
        assert told("team/mine:v1").startswith("run: ")
        with pytest.raises(UserError, match="--whois other is .*not in the Ollama store"):
            told("other")


@pytest.mark.parametrize("word", ["no.gguf", "../nowhere/no.gguf", "a b"])
def test_what_is_neither_file_nor_name_is_told(word: str) -> None:
    with pytest.raises(UserError, match="there is no such file, and it is no name of a model"):
        told(word)


def test_what_is_there_and_no_file_is_told_as_that_and_never_opened(tmp_path: Path) -> None:
    (tmp_path / "folder.gguf").mkdir()
    os.mkfifo(tmp_path / "pipe.gguf")
    for name in ("folder.gguf", "pipe.gguf"):
        with pytest.raises(UserError, match=f"--whois {tmp_path}/{name}: is there, and is no file; a GGUF file"):
            told(str(tmp_path / name))
    with pytest.raises(UserError, match=f"--whois {'x' * 80}: File name too long"):
        told("x" * 5000)


def test_the_command_takes_one_model() -> None:
    for words in (["--whois"], ["--whois", "a", "b"]):
        with pytest.raises(UserError):
            parse(words)


@pytest.mark.tiny
def test_the_files_of_a_run_say_whose_child_they_are(undisturbed: Path) -> None:
    said = dict(line.split(": ", 1) for line in told(str(undisturbed / "tiny.Q4_K_M.gguf")).splitlines())
    assert said["run"] == undisturbed.name
    assert said["data_1"].startswith("training, 13 rows, sha256 "), "those that are trained on"
    assert said["check GGUF as read"] == "passed"
    assert {"base", "steps", "validation_loss", "rows_training"} <= said.keys()
    assert str(undisturbed.parent) not in "".join(said.values())
