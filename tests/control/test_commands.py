"""Runs from outside, with real processes and real signals: what is said, to whom, and what nobody has to listen to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import adopted, small
from tests.support.paths import ROOT
from tests.support.programs import finetune, start, wait_for_step
from tests.support.runs import put_adapter
from training import runs
from training.control import commands, resume
from training.runs import checkpoint, directory
from training.system import events, log

# Its runs need no real vocabulary.
tiny_model = small.tiny_model

# Nothing is saved on the way, and nobody waits for the end.
LONG = ("--set", "Training.MAX_STEPS=3000", "--set", "Training.SAVE_STEPS=3000")
# A run whose second step never ends by itself: in Python's code, where signals are handled, or in a library's, where not.
STUCK = """
import sys, time, datetime
from training.train import callback
before, begun = callback.updates.begin_step, []
def python():
    time.sleep(600)
def library():
    import torch.distributed as dist
    store = dist.HashStore()
    store.set_timeout(datetime.timedelta(seconds=600))
    store.get("a key that never comes")
def stuck(watch):
    before(watch)
    begun.append(1)
    if len(begun) > 1:
        print("the second step", file=sys.stderr, flush=True)
        {place}()
callback.updates.begin_step = stuck
from training import finetune
raise SystemExit(finetune.main(sys.argv[1:]))
"""
PATIENCE = 300  # seconds: the machine may be busy


class Program:
    """A program that was started: what it says is read while it works."""

    def __init__(self, said: Path, *arguments: str | Path, code: str = "") -> None:
        first = ["-c", code] if code else [str(ROOT / "training" / "finetune.py")]
        self.said = said
        with said.open("w") as errors:
            self.process = adopted.Popen(
                [sys.executable, *first, *map(str, arguments)], cwd=ROOT, stdin=subprocess.DEVNULL, text=True,
                stdout=subprocess.PIPE, stderr=errors,
            )  # fmt: skip

    def until(self, words: str) -> None:
        """Wait until it has said these words on stderr."""
        end = time.monotonic() + PATIENCE
        while words not in self.said.read_text(encoding="utf-8"):
            over = self.process.poll() is not None or time.monotonic() > end
            assert not over or words in self.said.read_text(encoding="utf-8"), self.said.read_text(encoding="utf-8")
            time.sleep(0.05)

    def ended(self) -> tuple[int, str, str]:
        """Its exit code, and all that it has said on stdout and stderr."""
        out, _ = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, out, self.said.read_text(encoding="utf-8")


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
    caller = Program(tiny_config.parent / "said", "--config", tiny_config, "--detach", *LONG)
    caller.until("looks everything over first")
    caller.process.send_signal(signal.SIGHUP)
    assert caller.ended()[:2] == (-signal.SIGHUP, "")
    end = time.monotonic() + PATIENCE
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
@pytest.mark.parametrize("place", ["python", "library"])
def test_a_signal_has_its_receipt_at_once_and_a_second_one_says_what_is_lost_with_a_code_of_its_own(tiny_config, place):
    program = Program(tiny_config.parent / "said", "--config", tiny_config, *LONG, code=STUCK.format(place=place))
    program.until("the second step")
    program.process.send_signal(signal.SIGINT)
    program.until("warning: stopping after this batch, with a checkpoint; Ctrl-C (or SIGTERM) again ends at once")
    program.process.send_signal(signal.SIGINT)
    code, out, err = program.ended()
    [run] = (tiny_config.parent / "outputs").glob("finetune_*")
    assert (code, out) == (4, f"{run}\n"), err
    lost = "ended at once by a second signal: all 1 steps are lost: no checkpoint was written yet; "
    again = f"`{ROOT}/run.sh --resume {run}` begins again with the first step"
    assert lost + again in err
    assert lost + again in (run / runs.LOG).read_text(encoding="utf-8")
    last = list(events.read(run / runs.EVENTS))[-1]
    assert (last["event"], last["exit_code"], last["error"]) == ("interrupted", 4, lost + again)
    status = finetune("--config", tiny_config, "--status", cwd=ROOT)
    assert status.stdout.startswith(f"{run.name}: interrupted, step 1 of 3000\nworking time ")
    assert f"\n{lost}{again}" in status.stdout
    followed = finetune("--config", tiny_config, "--follow", cwd=ROOT)
    assert (followed.code, f"{run.name}: interrupted: {lost}{again}" in followed.stderr) == (4, True), followed.stderr


# A signal in the middle of a place that bears whatever goes wrong; and in one of a library's that bears even that.
BORNE = """
import signal, sys, time
from training.train import loop
def ours(*arguments):
    try:
        signal.raise_signal(signal.SIGTERM)
    except Exception:
        pass
    time.sleep(600)
def theirs(*arguments):
    try:
        signal.raise_signal(signal.SIGTERM)
    except:
        pass
    time.sleep(600)
def wrapped(*arguments):
    try:
        signal.raise_signal(signal.SIGTERM)
    except BaseException:
        raise RuntimeError("of a library")
loop.build = {place}
from training import finetune
raise SystemExit(finetune.main(sys.argv[1:]))
"""


@pytest.mark.tiny
@pytest.mark.parametrize("place", ["ours", "theirs", "wrapped"])
def test_a_signal_stops_a_run_also_where_errors_are_borne(tiny_config, place):
    program = Program(tiny_config.parent / "said", "--config", tiny_config, code=BORNE.format(place=place))
    code, out, err = program.ended()
    [run] = (tiny_config.parent / "outputs").glob("finetune_*")
    said = f"warning: stopped by SIGTERM; nothing was trained yet; `{ROOT}/run.sh --resume {run}` begins again"
    assert (code, out, err.splitlines()[-1]) == (143, f"{run}\n", said), err


@pytest.mark.tiny
def test_follow_ends_as_the_run_did_and_says_how_to_go_on(tiny_config):
    process = start("--config", tiny_config, *LONG)
    run = wait_for_step(tiny_config.parent / "outputs", 1, process, PATIENCE)
    follower = start("--config", tiny_config, "--follow", run, cwd=ROOT)
    while "step 1/3000" not in follower.stdout.readline():
        pass
    process.kill()
    process.communicate(timeout=PATIENCE)
    _, said = follower.communicate(timeout=PATIENCE)
    assert follower.returncode == 1
    words = f"no checkpoint was written yet; `{ROOT}/run.sh --resume {run}` begins again with the first step"
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
    put_adapter(run.path)
    if event:
        fields = {key: value for key, value in event.items() if key != "event"}
        (run.path / runs.EVENTS).write_text(as_line(event["event"], **fields) + "\n", encoding="utf-8")
    told, found = commands.end_of(run)
    assert (told.startswith(words), found) == (True, code), told
    assert code == 0 or f"--resume {run.path}" in told


def test_follow_shows_what_is_for_people_and_no_traceback_that_was_kept_for_us():
    log_of_a_run = [
        "2026-11-30 07:49:31 INFO    step 1/6",
        "2026-11-30 07:49:31 DEBUG   unexpected",
        "Traceback (most recent call last):",
        "  File ...",
        "2026-11-30 07:49:32 ERROR   unexpected: KeyError: 'x'; the traceback is in finetune.log",
        "the checkpoint of step 4 is safe",
    ]
    shows = log.for_people()
    assert [line for line in log_of_a_run if shows(line)] == [log_of_a_run[at] for at in (0, 4, 5)]


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


def test_a_run_that_starts_beside_another_one_says_so_in_one_line(tmp_path, logged, monkeypatch):
    other = runs.create(tmp_path)
    other.update(state="running", step=3, total=9)
    ended(tmp_path, state="completed")
    resume.tell_of_others(tmp_path)
    assert logged == [], "this process's own run is no other one"
    monkeypatch.setattr(resume.os, "getpid", lambda: 1)
    resume.tell_of_others(tmp_path)
    words = f"{other.path.name} is running, too (process {other.status['pid']}, step 3 of 9)"
    assert logged == [f"{words}: both take longer, and share the memory"]
    os.close(other.held)
