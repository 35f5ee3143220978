"""Runs from outside, with real processes and real signals: what is said, to whom, and what nobody has to listen to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.programs import finetune, start, wait_for_step
from training import runs
from training.control import commands
from training.runs import checkpoint, directory

# Nothing is saved on the way, and nobody waits for the end.
LONG = ("--set", "Training.MAX_STEPS=3000", "--set", "Training.SAVE_STEPS=3000")
# A step that takes this long at least, so that a signal comes in the middle of one.
SLOW = """
import sys, time
from training.train import callback
before = callback.updates.begin_step
def slow(watch):
    before(watch)
    end = time.monotonic() + {seconds}
    while time.monotonic() < end:
        time.sleep(0.05)
callback.updates.begin_step = slow
from training import finetune
raise SystemExit(finetune.main(sys.argv[1:]))
"""


def slow(*arguments: str | Path, seconds: float = 3.0) -> subprocess.Popen:
    """A run whose steps take their time."""
    command = [sys.executable, "-c", SLOW.format(seconds=seconds), *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True)


def until(process: subprocess.Popen, words: str) -> str:
    """All that a program says on stderr until there is a line with these words."""
    said = ""
    while words not in said:
        line = process.stderr.readline()
        assert line, said
        said += line
    return said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code"), [(["--help"], 0), (["--history"], 0), (["--nonsense"], 2), (["--status", "nowhere"], 2)]
)
def test_nobody_has_to_listen_to_a_program_for_it_to_end_as_it_should(arguments, code, tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, str(ROOT / "training" / "finetune.py"), "--output", str(tmp_path), *arguments]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=writing, stderr=writing, timeout=60)
    os.close(writing)
    assert done.returncode == code


@pytest.mark.tiny
def test_a_detached_run_goes_on_when_its_caller_is_gone_before_it_has_begun(tiny_config):
    folder = tiny_config.parent / "outputs"
    caller = start("--config", tiny_config, "--detach", *LONG)
    until(caller, "looks everything over first")
    assert not folder.exists()
    caller.send_signal(signal.SIGHUP)
    out, _ = caller.communicate(timeout=20)
    assert (caller.returncode, out) == (-signal.SIGHUP, "")
    end = time.monotonic() + 120
    while not (found := list(folder.glob("finetune_*/checkpoints"))) and time.monotonic() < end:
        time.sleep(0.2)
    run = runs.open_run(found[0].parent)
    while runs.open_run(run.path).status["step"] < 2 and time.monotonic() < end:
        time.sleep(0.2)
    assert directory.state(runs.open_run(run.path)) == "running", runs.open_run(run.path).status
    stopped = finetune("--config", tiny_config, "--stop", run.path)
    assert (stopped.code, stopped.stdout) == (0, f"{run.path.name}: interrupted\n"), stopped.stderr
    assert f"{run.path.name}: asked to stop; it ends after the batch at hand, of step " in stopped.stderr


@pytest.mark.tiny
def test_a_signal_has_its_receipt_at_once_and_a_second_one_says_what_is_lost_with_a_code_of_its_own(tiny_config):
    process = slow("--config", tiny_config, *LONG)
    run = wait_for_step(tiny_config.parent / "outputs", 1, process)
    process.send_signal(signal.SIGINT)
    asked = time.monotonic()
    until(process, "warning: stopping after this batch, with a checkpoint; Ctrl-C (or SIGTERM) again ends at once")
    assert time.monotonic() - asked < 1.5
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (4, f"{run}\n"), err
    lost = "ended at once by a second signal: all 1 steps are lost: no checkpoint was written yet; "
    again = f"`./run.sh --resume {run}` begins again with the first step"
    assert lost + again in err
    status = finetune("--config", tiny_config, "--status", cwd=ROOT)
    assert f"{run.name}: interrupted, step 1 of 3000\n{lost}{again}" in status.stdout
    followed = finetune("--config", tiny_config, "--follow", cwd=ROOT)
    assert (followed.code, f"{run.name}: interrupted: {lost}{again}" in followed.stderr) == (4, True), followed.stderr


@pytest.mark.tiny
def test_follow_ends_as_the_run_did_and_says_how_to_go_on(tiny_config):
    process = start("--config", tiny_config, *LONG)
    run = wait_for_step(tiny_config.parent / "outputs", 1, process)
    follower = start("--config", tiny_config, "--follow", run, cwd=ROOT)
    while "step 1/3000" not in follower.stdout.readline():
        pass
    process.kill()
    process.communicate(timeout=60)
    _, said = follower.communicate(timeout=60)
    assert follower.returncode == 1
    words = f"no checkpoint was written yet; `./run.sh --resume {run}` begins again with the first step"
    assert f"{run.name}: killed: its process is gone; all " in said and words in said
    assert words in finetune("--config", tiny_config, "--status", cwd=ROOT).stdout


def ended(folder: Path, **status: object) -> runs.Run:
    """A run that is over, with no process behind it."""
    run = runs.create(folder)
    (run.path / runs.CONFIG).write_text("[Model]\n", encoding="utf-8")
    run.update(**{"state": "running", "pid": None, "total": 6, **status})
    os.close(run.held)
    return run


@pytest.mark.parametrize(
    ("status", "event", "words", "code"),
    [
        ({"state": "completed"}, {}, "completed; `", 0),
        ({"state": "failed", "error": "train: loss is nan"}, {"event": "failed", "exit_code": 1}, "failed: train: loss", 1),
        ({"state": "interrupted", "error": "stopped"}, {"event": "interrupted", "exit_code": 143}, "interrupted: stopped", 143),
        ({"state": "interrupted", "error": "ended at once"}, {}, "interrupted: ended at once", 4),
        ({"step": 2}, {"event": "interrupted", "exit_code": 143}, "killed: its process is gone; all 2 steps are lost", 1),
        ({"stages": {"train": {}}}, {}, "killed: its process is gone; nothing of the training is lost: the adapter", 1),
    ],
)  # fmt: skip
def test_how_a_run_ended_is_told_with_its_own_exit_code_and_how_to_go_on(tmp_path, status, event, words, code):
    from training.system.events import as_line

    run = ended(tmp_path, **status)
    if event:
        fields = {key: value for key, value in event.items() if key != "event"}
        (run.path / runs.EVENTS).write_text(as_line(event["event"], **fields) + "\n", encoding="utf-8")
    told, found = commands.end_of(run)
    assert (told.startswith(words), found) == (True, code), told
    assert code == 0 or f"--resume {run.path}" in told


def test_stop_does_not_send_a_second_signal_which_would_lose_the_steps(tmp_path, monkeypatch):
    import io

    from training.settings.command_line import parse

    run = runs.create(tmp_path)
    run.update(state="running", stage="train", step=3, total=9, stopping=True)
    sent = []
    monkeypatch.setattr(commands.os, "kill", lambda *signal: sent.append(signal))
    monkeypatch.setattr(commands, "WAIT_TO_STOP", 0)
    with pytest.raises(Exception, match=r"ends after the batch at hand, of step 4 of 9.*asking again does it no harm"):
        commands.stop(parse(["--stop", str(run.path)]), io.StringIO())
    assert sent == []
    run.update(stopping=None)
    with pytest.raises(Exception, match="has not ended within 0 s"):
        commands.stop(parse(["--stop", str(run.path)]), io.StringIO())
    assert sent == [(os.getpid(), signal.SIGTERM)]
    os.close(run.held)


def test_what_a_run_leaves_names_the_steps_that_are_lost(tmp_path, monkeypatch):
    run = ended(tmp_path, step=5)
    found = checkpoint.Checkpoint(run.path / "checkpoints" / "checkpoint-4", None)
    monkeypatch.setattr(checkpoint, "newest", lambda folder: found)
    monkeypatch.setattr(checkpoint.Checkpoint, "step", 4, raising=False)
    assert checkpoint.left(run).startswith("the steps after 4 are lost; the checkpoint of step 4 is safe in ")
    run.update(step=4)
    assert checkpoint.left(run).startswith("no step is lost; the checkpoint of step 4 is safe in ")
