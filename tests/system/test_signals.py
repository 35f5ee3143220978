"""A signal ends a program at once where nothing is to be lost, also while a library keeps Python from hearing of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.support.paths import ROOT

pytestmark = pytest.mark.slow

# torch's store waits for a key in C++: Python's handlers have no turn until it comes, or until the time is over.
PROGRAM = """
import datetime, os, signal, sys, threading, time
sys.path.insert(0, {root!r})
import torch.distributed as dist
from training.system import signals
from training.errors import Interrupted
signals.STUCK = 1.0
store = dist.HashStore()
def wait(seconds):
    print("waiting", flush=True)
    store.set_timeout(datetime.timedelta(seconds=seconds))
    try:
        store.get("a key that never comes")
    except dist.DistError:
        print("came back", flush=True)
ours = signals.Signals()
def leave(error):
    print("left:", error, flush=True)
    os._exit(error.exit_code)
ours.install({leave})
{code}
"""


def started(code: str, leave: str = "leave", **options) -> subprocess.Popen:
    """A program that has taken its signals over, and waits in torch."""
    command = [sys.executable, "-c", PROGRAM.format(root=str(ROOT), code=code, leave=leave)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
    assert process.stdout.readline() == "waiting\n", process.communicate()
    # Between that line and the waiting itself a signal would still be Python's.
    time.sleep(0.5)
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_program_that_is_stuck_in_a_library(number):
    process = started("wait(600)")
    process.send_signal(number)
    said, _ = process.communicate(timeout=60)
    assert (process.returncode, said) == (128 + number, f"left: stopped by {number.name}\n")


def test_a_program_without_words_of_its_own_says_by_what_it_was_stopped():
    process = started("wait(600)", leave="")
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143 and said.endswith("stopped by SIGTERM\n")


def test_before_the_first_step_a_signal_is_not_only_noted():
    process = started("with ours.gentle():\n    wait(600)")
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert (process.returncode, said) == (143, "left: stopped by SIGTERM\n")


def test_from_the_first_step_on_a_signal_is_only_noted_however_long_the_library_takes():
    process = started("with ours.gentle():\n    ours.begin()\n    wait(4)\n    print(ours.stop, flush=True)")
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, "came back\n15\n")


def test_a_second_signal_ends_a_training_that_is_stuck_in_a_library():
    process = started("with ours.gentle():\n    ours.begin()\n    wait(600)")
    process.send_signal(signal.SIGTERM)
    # Until then the first one was waited for, and left to the trainer.
    time.sleep(2)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143


def test_a_library_that_comes_back_in_time_leaves_the_signal_to_pythons_handler():
    code = (
        "try:\n    wait(0.2)\n    time.sleep(600)\n"
        "except Interrupted as error:\n    time.sleep(1.5)\n    ours.delivered()\n    print(error)"
    )
    process = started(code)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert (process.returncode, said.splitlines()[-1]) == (0, "stopped by SIGTERM")


def test_a_signal_that_was_swallowed_is_raised_again_until_it_is_delivered():
    code = """
taken = []
while len(taken) < 2:
    try:
        wait(0.2)
        time.sleep(600)
    except:
        taken.append("swallowed")
try:
    time.sleep(600)
except Interrupted as error:
    ours.delivered()
    print(*taken, error)
time.sleep(3)
"""
    process = started(code)
    process.send_signal(signal.SIGTERM)
    said, wrong = process.communicate(timeout=60)
    assert (process.returncode, said.splitlines()[-1]) == (0, "swallowed swallowed stopped by SIGTERM"), wrong


def test_a_signal_that_is_being_obeyed_is_not_raised_again():
    code = """
try:
    try:
        wait(0.2)
        time.sleep(600)
    finally:
        time.sleep(3)
        print("cleaned up", flush=True)
except Interrupted as error:
    ours.delivered()
    print(error)
"""
    process = started(code)
    process.send_signal(signal.SIGTERM)
    said, wrong = process.communicate(timeout=60)
    assert (process.returncode, said.splitlines()[-2:]) == (0, ["cleaned up", "stopped by SIGTERM"]), wrong


def test_a_signal_that_comes_while_the_end_is_told_interrupts_that_no_more():
    process = started("ours.delivered()\nwait(2)\ntime.sleep(1)\nprint('told', flush=True)")
    process.send_signal(signal.SIGTERM)
    said, wrong = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, "came back\ntold\n"), wrong


def test_a_signal_to_a_fork_is_not_taken_for_ones_own():
    code = """
child = os.fork()
if child == 0:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(7))
    time.sleep(600)
print("waiting", flush=True)
time.sleep(1.5)
os.kill(child, signal.SIGTERM)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
wait(3)
"""
    process = started(code)
    said, wrong = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, "waiting\ncame back\n"), wrong


def test_how_children_end_is_heard_though_who_started_the_program_ignores_that():
    """It is inherited, and Python then takes each child for one that ended well."""
    code = """
import subprocess
print("waiting", flush=True)
print(subprocess.run(["false"]).returncode, flush=True)
"""
    ignoring = lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # noqa: E731
    process = started(code, preexec_fn=ignoring)
    said, wrong = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, "1\n"), wrong


def test_a_program_that_reads_its_modules_ends_at_once_with_the_signals_exit_code():
    """Ctrl-C in the first second had a traceback, and SIGTERM no exit code of its own."""
    code = f"""
import runpy, sys, os, signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # who started the tests may ignore it
class Slow:
    def find_spec(self, name, *_):
        if name == "training.system.before_torch":
            os.kill(os.getpid(), int(os.environ["NUMBER"]))
sys.meta_path.insert(0, Slow())
sys.argv = ["finetune.py", "--check", "--events"]
runpy.run_path({str(ROOT / "training" / "finetune.py")!r}, run_name="__main__")
"""
    for number in (signal.SIGINT, signal.SIGTERM):
        environment = os.environ | {"NUMBER": str(int(number))}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60)
        assert (done.returncode, done.stdout, done.stderr) == (128 + number, "", "")


def test_a_signal_that_comes_when_the_end_is_told_does_not_change_it():
    """A launcher passes a signal on to a process that has stopped for it already, and torch takes its time to go."""
    going = """
class Slow:
    def __del__(self, write=os.write, sleep=time.sleep):
        write(1, b"going\\n")
        sleep(3)
print("waiting", flush=True)
slow = Slow()
time.sleep(1)
ours.delivered()
sys.exit(143)
"""
    process = started(going)
    assert process.stdout.readline() == "going\n"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143
