"""Runs that wait to be started: their directory is all that is known of them."""

from __future__ import annotations

import io
import os
import threading
from pathlib import Path

import pytest

from training import control, runs
from training.control import resume
from training.errors import UserError
from training.runs import Run, directory, queued
from training.settings.command_line import parse


@pytest.fixture
def waits(tmp_path: Path) -> Run:
    """A run in the queue, and settings whose OUTPUT_DIR it is in."""
    (tmp_path / "config.ini").write_text("[Training]\nOUTPUT_DIR = outputs\n")
    return queued.put(tmp_path / "outputs", "[Model]\nNEW_MODEL_NAME = mine\n", model="mine")


def test_a_run_that_waits_is_queued_whoever_made_it_is_there_or_not(waits):
    found = runs.open_run(waits.path)
    assert directory.state(found) == "queued" and directory.waiting(found) and directory.never_started(found)
    assert (found.status["pid"], found.status["model"]) == (None, "mine") and found.status["queued"] > 0
    assert (waits.path / "config.ini").read_text().endswith("mine\n")


def test_it_is_taken_by_one_and_by_nobody_else(waits, monkeypatch):
    monkeypatch.setattr(resume, "HANDED_OVER", 0.0)
    with_lock = runs.open_run(waits.path)
    resume.take(with_lock)
    again = runs.open_run(waits.path)
    assert not directory.waiting(again) and again.status["pid"] == os.getpid() and directory.state(again) == "queued"
    with pytest.raises(UserError, match="being worked on by another process"):
        resume.take(again)
    with pytest.raises(UserError, match="being worked on by another process"):
        queued.cancel(runs.open_run(waits.path))
    directory.unlock(with_lock)
    with pytest.raises(UserError, match="has just been started"):
        queued.cancel(runs.open_run(waits.path))


def test_a_process_that_was_started_waits_until_the_queue_has_written_so(waits):
    queue = runs.open_run(waits.path)
    directory.lock(queue)
    threading.Timer(0.2, directory.unlock, [queue]).start()
    resume.take(runs.open_run(waits.path))


def test_one_whose_process_died_before_it_began_was_killed(waits):
    waits.update(pid=2**22, pid_started=1)
    assert directory.state(runs.open_run(waits.path)) == "killed"
    assert directory.never_started(runs.open_run(waits.path))


def test_stop_takes_it_out_of_the_queue(waits, tmp_path):
    said = io.StringIO()
    arguments = parse(["--stop", str(waits.path), "--config", str(tmp_path / "config.ini")])
    assert control.COMMANDS["stop"](arguments, said) == 0
    assert said.getvalue() == f"{waits.path.name}: interrupted\n"
    assert runs.open_run(waits.path).status["error"] == "stopped before it began"


def test_resume_begins_it_and_without_a_name_leaves_it_alone(waits, tmp_path):
    named = parse(["--resume", str(waits.path), "--config", str(tmp_path / "config.ini")])
    found = resume.to_resume(named)
    assert found is not None and found.path == waits.path
    with pytest.raises(UserError, match="waits to be resumed"):
        resume.to_resume(parse(["--resume", "--config", str(tmp_path / "config.ini")]))
