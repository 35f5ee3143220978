"""A broken run directory is named, and hides no other one."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import re
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest

from tests.support.runs import a_manifest
from training import runs
from training.control import commands, resume
from training.errors import FinetuneError, UserError
from training.report import comparison, writing
from training.report.left import Left
from training.runs import Facts, Run, checkpoint, directory
from training.settings import command_line
from training.system import files
from training.system.foreign_json import Damaged

GARBAGE = (
    "", "[]", "7", "null", "{", '"x"', "[" * 5000, '{"a":' * 300 + "1" + "}" * 300, '{"state": []}', '{"state": "odd"}',
    '{"pid": "7", "state": "running"}', '{"started": "x"}', '{"started": 1e300, "updated": 2}', '{"updated": []}',
    '{"stages": []}', '{"stages": {"train": 7}}', '{"step": {}}', '{"model": 7}', '{"eta": "soon", "state": "running"}',
    '{"error": {}}', '{"oom_kills": "a"}', '{"warnings": 7}', '{"pid": -1, "pid_started": 1, "state": "running"}',
)  # fmt: skip


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Settings whose OUTPUT_DIR holds a broken run between two whole ones, the older of which waits to be resumed."""
    for name, state in (("finetune_20260101_000000", "interrupted"), ("finetune_20260103_000000", "completed")):
        run = Run(tmp_path / "out" / name)
        run.path.mkdir(parents=True)
        (run.path / runs.CONFIG).write_text("[Model]\n", encoding="utf-8")
        run.update(state=state, step=1, total=2, model="m", started=1.0)
    (tmp_path / "out" / "finetune_20260102_000000").mkdir()
    file = tmp_path / "config.ini"
    file.write_text(f"[Training]\nOUTPUT_DIR = {tmp_path}/out\n", encoding="utf-8")
    return file


def said(*words: object) -> str:
    """What a command prints."""
    arguments, out = command_line.parse([str(word) for word in words]), io.StringIO()
    commands.COMMANDS[arguments.command](arguments, out)
    return out.getvalue()


@pytest.mark.parametrize("content", GARBAGE)
def test_a_broken_status_is_named_and_the_other_runs_are_told_of(content: str, config: Path, logged: list[str]) -> None:
    broken = config.parent / "out" / "finetune_20260102_000000" / "status.json"
    broken.write_text(content, encoding="utf-8")
    lines = said("--config", config, "--history").splitlines()
    assert [line.split()[0] for line in lines] == ["run", "finetune_20260101_000000", "finetune_20260103_000000"]
    assert "finetune_20260103_000000: completed" in said("--config", config, "--status")
    with pytest.raises(UserError, match="finetune_20260103_000000 is not running"):
        said("--config", config, "--stop")
    assert resume.to_resume(command_line.parse(["--config", str(config), "--resume"])).path.name.endswith("101_000000")
    resume.offer_resume(config.parent / "out")
    assert [line for line in logged if line.endswith("this run is left out")][0].startswith(str(broken))
    for command in ("--status", "--stop", "--follow", "--resume"):
        with pytest.raises(Damaged, match="status.json"):
            arguments = command_line.parse(["--config", str(config), command, str(broken.parent)])
            resume.to_resume(arguments) if command == "--resume" else commands.asked_for(arguments)


def test_a_run_without_a_log_is_not_followed_and_that_is_told(config: Path) -> None:
    with pytest.raises(UserError, match="finetune_20260103_000000 has no finetune.log that could be followed"):
        said("--config", config, "--follow")


@pytest.mark.parametrize(
    "line", ["[]", "7", "{", "[" * 5000, '{"event": 7}', '{"event": "step", "loss": 0.1, "step": -1}',
             '{"event": "step", "step": []}', '{"event": "step", "step": 2, "total": "many"}']
)  # fmt: skip
def test_lines_that_are_no_events_are_left_out_and_named(line: str, config: Path, logged: list[str]) -> None:
    run = config.parent / "out" / "finetune_20260103_000000"
    good = '{"event": "step", "step": 1, "loss": 0.5}\n'
    (run / "events.jsonl").write_text(good + line + "\n" + line + "\n", encoding="utf-8")
    assert " 0.5000 " in said("--config", config, "--history")
    assert f"{run}/events.jsonl:2" in logged[-1]
    assert logged[-1].endswith("(and 1 line more); left out")


@pytest.mark.parametrize(
    "content", ["[]", "{", '{"v": 1}', '{"run": 7}', '{"name": "x", "run": {"id": "x"}, "base": {}}']
)
def test_a_broken_report_is_left_out_of_a_comparison_and_named(content: str, tmp_path: Path, logged: list[str]) -> None:
    report = {"name": "x", "base": {"name": "b"}}
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        whole = {**report, "run": {"id": name, "directory": str(tmp_path / name)}}
        files.write_json(tmp_path / name / "report.json", whole)
        files.write_json(tmp_path / name / "status.json", {"state": "completed"})
    (tmp_path / "b" / "report.json").write_text(content, encoding="utf-8")
    found = [runs.open_run(tmp_path / name) for name in ("a", "b", "c")]
    assert "2 runs compared" in comparison.compare(found, tmp_path)[0].read_text(encoding="utf-8")
    assert f"{tmp_path}/b/report.json" in logged[-1]
    with pytest.raises(UserError, match="too few runs to compare are whole"):
        comparison.compare(found[:2], tmp_path)


def test_a_comparison_names_a_run_with_a_broken_status_and_goes_on(config: Path, logged: list[str]) -> None:
    names = [f"finetune_2026010{day}_000000" for day in (1, 2, 3)]
    for name in names:
        (config.parent / "out" / name / "config.ini").write_text("[Model]\n", encoding="utf-8")
    (config.parent / "out" / names[1] / "status.json").write_text("[]", encoding="utf-8")
    assert said("--config", config, "--compare", *names).strip().endswith("compare.html")
    assert any(f"{names[1]}/status.json" in line for line in logged)
    with pytest.raises(UserError, match="too few runs"):
        said("--config", config, "--compare", *names[:2])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[]", "is not a JSON object"),
        ("{}", "base is missing"),
        ('{"base": 7}', "base = 7 is no object|is missing"),
        ('{"base": {"name": 7, "path": "/x", "kind": "hub"}}', "is missing|base.name = 7 is no text"),
    ],
)
def test_broken_facts_are_told_with_the_field(content: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "export.json").write_text(content, encoding="utf-8")
    with pytest.raises(Damaged, match=words) as caught:
        Facts.read(tmp_path)
    assert str(tmp_path / "checkpoints" / "export.json") in str(caught.value)


@pytest.mark.parametrize("stages", [{"train": {}}, {"train": {"validation": 7}}, {"evaluate": {"samples": 7}}])
def test_stages_that_left_something_else_are_told_with_the_file(stages: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(Damaged, match="status.json: stages: "):
        Left.by(Run(tmp_path, {"stages": stages}))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("checkpoint.json", "[]", "checkpoint.json is not a JSON object"),
        ("checkpoint.json", "[" * 5000, "checkpoint.json cannot be read: it is nested"),
        ("checkpoint.json", '{"step": 4}', "checkpoint.json: .* is missing"),
        ("trainer_state.json", "[]", "trainer_state.json is not a JSON object"),
        ("trainer_state.json", "{}", "trainer_state.json: global_step = None"),
        ("trainer_state.json", '{"global_step": "4"}', 'trainer_state.json: global_step = "4" is no whole'),
        ("trainer_state.json", '{"global_step": 4, "log_history": 7}', "log_history = 7 is no list of objects"),
    ],
)
def test_a_checkpoint_with_broken_files_is_damaged_and_the_one_before_it_is_used(
    name: str, content: str, words: str, tmp_path: Path, logged: list[str]
) -> None:
    for step in (2, 4):
        with checkpoint.writing(tmp_path, a_manifest(step)) as partial:
            spoiled = step == 4 and name == "trainer_state.json"
            text = content if spoiled else json.dumps({"global_step": step, "log_history": []})
            (partial / "trainer_state.json").write_text(text, encoding="utf-8")
    if name == "checkpoint.json":
        (tmp_path / "checkpoint-4" / name).write_text(content, encoding="utf-8")
    assert checkpoint.newest(tmp_path).step == 2
    (line,) = logged
    assert line.startswith("checkpoint-4 is damaged (")
    assert line.endswith("); the one before it is used")
    assert re.search(words, line)


class Code:
    """What a pickle may be made to call."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("ran",)


def as_torch_writes(pickled: bytes) -> bytes:
    """A file with a pickle as torch.save leaves it."""
    with zipfile.ZipFile(found := io.BytesIO(), "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")
    return found.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (as_torch_writes(pickle.dumps(Code(), 2)), r"optimizer.pt holds code \(posix.mkdir\)"),
        (as_torch_writes(pickle.dumps(Code(), 4)), "optimizer.pt holds code"),
        (pickle.dumps(Code(), 2), "optimizer.pt is not what torch writes"),
        (as_torch_writes(b"\x80\x02}q"), "optimizer.pt is not what torch writes"),
        (as_torch_writes(b"cos\n"), "optimizer.pt is not what torch writes"),
    ],
    ids=["a pickle with code", "a newer one", "a pickle alone", "half a pickle", "half a name"],
)
def test_a_checkpoint_with_pickled_code_is_damaged_whatever_its_manifest_says_and_nothing_of_it_runs(
    content: bytes, words: str, tmp_path: Path, logged: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for step in (2, 4):
        with checkpoint.writing(tmp_path, a_manifest(step)) as partial:
            plain = as_torch_writes(pickle.dumps({"state": {0: OrderedDict(step=1.5)}}, 2))
            (partial / "optimizer.pt").write_bytes(plain if step == 2 else content)
    assert "the checkpoint of step 2 is safe" in checkpoint.where(tmp_path)
    assert re.fullmatch(rf"checkpoint-4 is damaged \({words}.*\); the one before it is used", logged[0])
    assert not (tmp_path / "ran").exists()


def test_whatever_stands_in_the_state_files_ends_in_words(config: Path, pytestconfig: pytest.Config) -> None:
    """Fields and values at random, from a seed: no exception but ours leaves the commands. --fuzz N for more."""
    chance = random.Random(7)
    values: list[object] = [None, True, -1, 0, 1e300, "x", [], {}, [1], {"a": 1}, [{}], "\ud800", 10**30, "running"]
    run = config.parent / "out" / "finetune_20260103_000000"
    (run / "config.ini").write_text("[Model]\n", encoding="utf-8")
    for _ in range(pytestconfig.getoption("--fuzz")):
        status = {key: chance.choice(values) for key in chance.sample(sorted(directory.KINDS), 3)}
        (run / "status.json").write_text(json.dumps(status))
        event = {key: chance.choice(values) for key in ("event", "step", "loss", "at_step", "total")}
        (run / "events.jsonl").write_text(json.dumps(event) + "\n" + json.dumps({**event, "event": "step"}) + "\n")
        for words in (["--history"], ["--history", "--json"], ["--status", str(run)]):
            try:
                said("--config", config, *words)
            except FinetuneError as error:
                assert str(run) in str(error)
        try:
            writing.artefacts(run)
            comparison.compare([runs.open_run(run)], config.parent)
        except FinetuneError as error:
            assert "status.json" in str(error)
