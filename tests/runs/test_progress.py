"""One progress over all stages of a run, and the time until all of them are done."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path

import pytest

from training import runs
from training.control import commands
from training.runs import Run, progress
from training.settings import command_line
from training.system import events


def a_run(folder: Path, **status: object) -> Run:
    run = runs.create(folder)
    run.update(**{"state": "running", "started": time.time(), **status})
    return run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run on a model of 1 billion parameters that has begun."""
    made = a_run(tmp_path)
    progress.expect(made, 1_000_000_000)
    return made


def test_a_run_whose_training_is_done_is_not_done(run):
    reached = progress.reach(run, "train", 1.0, 100, left=0.0)
    later = sum(run.status["expected"][stage] for stage in progress.STAGES[1:])
    assert reached.progress < 100 and reached.left == pytest.approx(later)
    assert run.status["progress"] == reached.progress
    assert run.status["eta"] == pytest.approx(time.time() + later, abs=60)


def test_every_stage_has_its_share_in_the_order_in_which_they_come(run):
    before, left = -1.0, float("inf")
    for stage in progress.STAGES:
        for share in (0.0, 0.5, 1.0):
            reached = progress.reach(run, stage, share)
            assert reached.progress >= before and reached.left <= left + 1e-6
            before, left = reached.progress, reached.left
    assert (before, left) == (progress.MOST, 0.0)


def test_progress_never_goes_back(run):
    far = progress.reach(run, "train", 0.5, 10, left=10.0).progress
    assert progress.reach(run, "train", 0.51, 10, left=900.0).progress >= far


def test_training_that_takes_longer_is_believed_and_so_is_any_stage(run):
    quick, slow = (progress.reach(run, "train", 0.5, 10, left=left).left for left in (10.0, 500.0))
    assert slow - quick == pytest.approx(490)
    guessed = progress.reach(run, "merge", 0.5, 1).left
    assert progress.reach(run, "merge", 0.5, 300).left - guessed > 200


def test_what_the_last_run_of_such_a_model_took_is_expected_of_this_one(tmp_path):
    for seconds, state, parameters in ((7.5, "completed", 5), (99.0, "failed", 5), (98.0, "completed", 6)):
        stages = {"train": {"seconds": 55.5}, "check": {"seconds": seconds}}
        a_run(tmp_path, state=state, parameters=parameters, stages=stages)
    run = a_run(tmp_path)
    progress.expect(run, 5)
    assert run.status["expected"]["check"] == 7.5
    assert run.status["expected"]["train"] == progress.LEAST["train"], "another run has other steps"


def test_a_stage_of_a_finished_run_that_is_made_again_leaves_it_finished(run):
    run.update(state="completed", progress=100, eta=None)
    run.update(stage="check")
    progress.reach(run, "check", 0.2)
    assert (run.status["progress"], run.status["eta"], run.status["stage"]) == (100, None, "check")


def test_a_stage_says_how_far_it_is_every_now_and_then_and_tells_each_time(run, logged, monkeypatch):
    heard, now = [], [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    far = progress.Teller(run, "check", heard.append)
    far.begin()
    for share in (0.1, 0.2, 0.5, 1.0):
        now[0] += 6
        far(share)
    said = [line for line in logged if line.startswith("check: ")]
    assert [line.split(",")[0] for line in said[1:]] == ["check: 20 %", "check: 100 %"][:1]
    assert said[0].startswith("check: about ") and said[0].endswith(" until all is done")
    assert [one.stage for one in heard] == ["check"] * 5


def test_status_tells_how_far_all_stages_are_and_when_all_is_done(run):
    run.update(stage="convert")
    progress.reach(run, "convert", 0.5, 1)
    out = io.StringIO()
    commands.status(command_line.parse(["--status", str(run.path)]), out)
    assert f", in convert, {run.status['progress']:.0f} % of all stages, about " in out.getvalue()
    assert out.getvalue().endswith(" until all is done\n")
    out = io.StringIO()
    commands.status(command_line.parse(["--status", str(run.path), "--json"]), out)
    told = json.loads(out.getvalue())
    assert (told["progress"], told["eta"]) == (run.status["progress"], run.status["eta"])
    assert "expected" not in told


@pytest.mark.tiny
def test_the_events_of_a_run_tell_one_progress_over_all_its_stages(undisturbed):
    every = list(events.read(undisturbed / runs.EVENTS))
    far = [event["progress"] for event in every if "progress" in event]
    assert far == sorted(far) and far[-1] == progress.MOST
    steps = [event for event in every if event["event"] == "step"]
    assert steps[-1]["progress"] < 90 and steps[-1]["left"] > 0
    stages = list(dict.fromkeys(event["stage"] for event in every if event["event"] == "progress"))
    assert stages == list(progress.STAGES[1:])
    assert runs.open_run(undisturbed).status["progress"] == 100
