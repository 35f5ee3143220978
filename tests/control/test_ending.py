"""Who tells the end of a run: one thread, once, whatever signals come while it does."""

from __future__ import annotations

import io
import signal
from pathlib import Path

import pytest

from training import finetune, runs
from training.errors import EndedAtOnce, Interrupted, Lost, RunError
from training.settings.command_line import parse
from training.system import events


@pytest.fixture
def ending(tmp_path: Path) -> finetune.Ending:
    """Of a run in the third step, with no checkpoint."""
    made = finetune.Ending(parse([]), io.StringIO(), run=runs.create(tmp_path))
    made.run.update(state="running", stage="train", step=2, total=9)
    made.events = events.Events(made.run.path / runs.EVENTS)
    return made


def told(ending: finetune.Ending) -> list[tuple[str, int]]:
    return [(event["event"], event["exit_code"]) for event in events.read(ending.run.path / runs.EVENTS)]


def test_a_second_signal_is_told_in_all_places_with_what_is_lost(ending, logged):
    assert ending.lost(signal.SIGINT) == EndedAtOnce.exit_code == 4
    assert ending.stdout.getvalue() == f"{ending.run.path}\n"
    kept = runs.open_run(ending.run.path).status
    assert kept["state"] == "interrupted" and "all 2 steps are lost" in kept["error"]
    assert logged == [kept["error"]] and told(ending) == [("interrupted", 4)]


def test_while_the_end_is_told_a_second_signal_loses_nothing_and_says_nothing_twice(ending):
    ending.failed(Interrupted(signal.SIGTERM, "stopped at step 2 of 9"))
    assert ending.lost(signal.SIGINT) == 130
    assert ending.stdout.getvalue() == f"{ending.run.path}\n"
    assert runs.open_run(ending.run.path).status["error"] == "stopped at step 2 of 9"
    assert told(ending) == [("interrupted", 143)]


def test_a_second_signal_while_a_report_is_written_still_names_the_run(ending, monkeypatch):
    monkeypatch.setattr(finetune.gathering, "has_plan", lambda run: ending.lost(signal.SIGTERM) == 143 and False)
    assert ending.failed(Interrupted(signal.SIGINT, "stopped")) == 130
    assert ending.stdout.getvalue() == f"{ending.run.path}\n"


def test_a_second_signal_after_the_last_stage_leaves_the_run_done(ending):
    ending.run.update(state="completed")
    ending.telling.acquire()
    assert (ending.lost(signal.SIGINT), ending.stdout.getvalue()) == (0, f"{ending.run.path}\n")


def test_before_there_is_a_run_a_second_signal_is_the_first_ones_end():
    assert finetune.Ending(parse([]), io.StringIO()).lost(signal.SIGTERM) == 143


def test_a_stage_that_takes_its_time_to_end_says_so(ending, logged, monkeypatch):
    monkeypatch.setattr(finetune, "SOON", 0)
    ending.run.update(stage="convert")
    ending.heard(signal.SIGINT, noted=False)
    assert logged == [
        "stopping; it ends what it is at (convert) first. Ctrl-C (or SIGTERM) again ends at once",
    ]
    ending.telling.acquire()
    ending.heard(signal.SIGINT, noted=False)
    assert len(logged) == 1, "its end is told already"


@pytest.mark.parametrize(("error", "lost"), [(Lost, True), (RunError, None)])
def test_that_another_machine_was_lost_is_told_apart_from_what_a_run_ends_by_itself(ending, error, lost):
    assert ending.failed(error("training", "a word", "")) == 1
    assert runs.open_run(ending.run.path).status.get("lost") is lost
