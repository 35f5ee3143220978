"""The replay rows of a plan, and of the run that follows from it: the same where it was stopped and taken up again."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import adopted
from tests.support.faults import STOPPED_AFTER
from tests.support.paths import ROOT
from tests.support.plans import a_plan, a_summary
from tests.support.runs import losses
from tests.support.settings import a_settings
from training.data import ChatTemplate, Data, replay
from training.data.dataset import Counts
from training.errors import UserError
from training.plan import replayed
from training.plan.plan import with_answers
from training.plan.replayed import Replay

COUNTS = Counts(rows=10, turns=10, text=0, bad=0, train=9, validation=1, test=0, replay=1)


def some_data(plain: bool = False) -> Data:
    return Data(
        train=None, validation=None, test=None, rejected=[], warnings=[], notes=[], sha256={}, counts=COUNTS, plain=plain
    )  # fmt: skip


def planned(monkeypatch: pytest.MonkeyPatch, data: Data, prompt: int = 30, **values: object) -> Replay | None:
    monkeypatch.setattr(replayed.encoding, "prompt_ids", lambda *given: [1] * prompt)
    return replayed.planned(a_settings(**values), data, ChatTemplate("", "a test"), None, None)


def test_questions_are_not_asked_for_plain_text(monkeypatch):
    with pytest.raises(UserError, match=r"REPLAY_FILE.*the rows are plain text.* name a file of other texts"):
        planned(monkeypatch, some_data(plain=True), REPLAY_SHARE=0.1)


def test_a_question_that_leaves_no_room_for_an_answer_is_refused_before_anything_begins(monkeypatch):
    with pytest.raises(UserError, match=r"up to 90 tokens, and 100 \(MAX_SEQ_LENGTH\) leave no room for an answer"):
        planned(monkeypatch, some_data(), prompt=90, REPLAY_SHARE=0.1, MAX_SEQ_LENGTH=100)


def test_answers_that_are_yet_to_come_count_for_steps_memory_and_time(monkeypatch):
    found = planned(monkeypatch, some_data(), REPLAY_SHARE=0.1)
    assert replayed.awaited(found) and not replayed.awaited(None)
    assert found.lines() == [
        "1 replay row beside them, REPLAY_SHARE = 0.1: general questions, which the base model answers before the training"
    ]
    both = replayed.expected(a_summary(20), found)
    assert (both.sequences, both.total.longest) == (2, 30 + 256 + 8) and both.tokens > 20
    assert replayed.expected(a_summary(20), None) == a_summary(20)


def test_what_is_chosen_by_the_replay_rows_is_the_same_before_and_after_the_base_model_has_answered(monkeypatch):
    found = planned(monkeypatch, some_data(), REPLAY_SHARE=0.1)
    later = dataclasses.replace(found, rows=[{"input_ids": [1]}], sha256="abc")
    assert replayed.expected(a_summary(20), later) == replayed.expected(a_summary(20), found)
    plans = [a_plan(a_settings(), train=[1] * 9, replay=one) for one in (found, later)]
    assert {plan.rows_an_epoch for plan in plans} == {10} and len({plan.longest for plan in plans}) == 1


@pytest.mark.parametrize("text", ['{"messages": []}\n', "not JSON\n"])
def test_answers_in_a_run_that_were_tampered_with_are_refused_with_what_would_do(monkeypatch, tmp_path, text):
    (tmp_path / replay.FILE).write_text(text)
    plan = a_plan(a_settings(), replay=planned(monkeypatch, some_data(), REPLAY_SHARE=0.1))
    with pytest.raises(UserError, match=r"replay\.jsonl:1: .*not as the run has written it: put it back, or start"):
        with_answers(plan, tmp_path)


# ---- whole runs --------------------------------------------------------------------------------------------------

# The program but for its export, stopped by a signal after the step in STOP_AT.
PROGRAM = (
    """
import os, runpy, sys
from pathlib import Path
_, root, *arguments = sys.argv
sys.path.insert(0, root)
from training.system import before_torch
before_torch.settle()
from training import pipeline
from training.evaluation import base_answers
from training.train import callback

"""
    + STOPPED_AFTER
    + """
ask = base_answers.ask
def asked(*given):
    assert "STOP_AT" in os.environ or "UNDISTURBED" in os.environ, "a resumed run asks nobody"
    return ask(*given)
base_answers.ask = asked
pipeline.evaluate_stage = lambda *given: os._exit(0)
sys.argv = [root + "/training/finetune.py", *arguments]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
)


def go(folder: Path, *arguments: str, **environment: str) -> Path:
    command = [sys.executable, "-c", PROGRAM, str(ROOT), *arguments]
    done = adopted.run(command, cwd=folder, env={**os.environ, **environment})
    assert done.returncode in (0, 143), done.stderr
    (run,) = [path for path in (folder / "outputs").iterdir() if path.is_dir() and not path.is_symlink()]
    return run


@pytest.fixture
def talkative(tmp_path: Path, tiny_model: Path) -> Path:
    """The tiny model, which is random, with so many end tokens that most of its answers end, taken by chance."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in tiny_model.iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "generation_config.json").unlink()
    ends = [2, *range(1000, 1600)]
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": True, "eos_token_id": ends}))
    return folder


@pytest.fixture
def config(tmp_path: Path, talkative: Path) -> Path:
    for name, count in (("a", 12), ("b", 4)):
        rows = ({"instruction": f"What is {name} and {i}?", "output": f"It is {name}{i}."} for i in range(count))
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = tmp_path / "config.ini"
    config.write_text(
        f"[Model]\nBASE_MODEL_NAME = {talkative}\nMAX_SEQ_LENGTH = 256\n"
        "[Dataset]\nDATASET_FILE = a.jsonl, b.jsonl*2\nVALIDATION_SPLIT = 0\nREPLAY_SHARE = 0.4\n"
        "[LoRA]\nLORA_DROPOUT = 0.1\n[Hardware]\nNUM_THREADS = 1\n"
        "[Training]\nMAX_STEPS = 5\nEVAL_STEPS = 0\nSAVE_STEPS = 2\nPER_DEVICE_TRAIN_BATCH_SIZE = 4\nGRADIENT_ACCUMULATION_STEPS = 1\n",
        encoding="utf-8",
    )
    return config


@pytest.mark.tiny
def test_a_run_with_shares_and_replay_that_was_stopped_is_bit_for_bit_the_undisturbed_one(tmp_path, config):
    adapters, answers = [], []
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
        out = ("--config", str(config), "--output", str(tmp_path / name / "outputs"))
        run = go(tmp_path / name, *out, **({"UNDISTURBED": "1"} if name == "whole" else {"STOP_AT": "3"}))
        if name == "stopped":
            assert set(losses(run)) == {1, 2, 3}
            go(tmp_path / name, "--resume", str(run))
        adapters.append((losses(run), (run / "adapter" / "adapter_model.safetensors").read_bytes()))
        answers.append((run / replay.FILE).read_bytes())
        planned = json.loads((run / "checkpoints" / "report.json").read_text(encoding="utf-8"))
        files = [(Path(file["path"]).name, file["role"], file["rows"]) for file in planned["data"]["files"]]
        assert files == [("a.jsonl", "training", 12), ("b.jsonl", "training", 8), (replay.FILE, "replay", 13)]
        assert all(len(file["sha256"]) == 64 for file in planned["data"]["files"])
    assert answers[0] == answers[1]
    assert adapters[0] == adapters[1] and len(adapters[0][0]) == 5
    # What the answers were is what the run goes on with.
    (run / replay.FILE).write_bytes(answers[0].replace(b'"user"', b'"human"', 1))
    command = [sys.executable, "-c", PROGRAM, str(ROOT), "--resume", str(run)]
    refused = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert refused.returncode == 2 and f"{replay.FILE} SHA-256" in refused.stderr
