"""Programs of the tests that begin in a fork are what a new Python would have been."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from tests.support import adopted

TOLD = """
import os, signal, subprocess, sys
print(sys.argv, sys.path[0], __name__, os.getcwd(), os.getppid(), os.environ.get("GIVEN"), os.environ.get("HOME"))
print(sys.stdin.read(), os.getsid(0) == os.getpid(), signal.getsignal(signal.SIGTERM), file=sys.stderr)
print(sorted(os.listdir("/proc/self/fd"))[:3], os.path.exists(f"/proc/self/fd/{sys.argv[1]}"))
if "again" in sys.argv:
    inner = [sys.executable, "-c", sys.orig_argv[2], sys.argv[1]]
    print(subprocess.run(inner, input="inner", capture_output=True, text=True).stdout.replace(str(os.getpid()), "its starter"))
raise SystemExit(7)
"""


@pytest.mark.slow
def test_a_program_in_a_fork_has_the_arguments_files_and_ending_of_a_new_one_and_starts_others_so(
    tmp_path, monkeypatch
):
    born, real = [], adopted._born
    monkeypatch.setattr(adopted, "_born", lambda *given: born.append(real(*given)) or born[-1])
    environment = {name: value for name, value in os.environ.items() if name != "HOME"}
    reading, writing = os.pipe()
    told = {}
    for start in (subprocess.Popen, adopted.Popen):
        process = start(
            [sys.executable, "-c", TOLD, str(writing), "again"], cwd=tmp_path, env=environment | {"GIVEN": "x"},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
            pass_fds=[writing],
        )  # fmt: skip
        told[start] = (*process.communicate("outer"), process.returncode)
    os.close(reading)
    os.close(writing)
    assert len(born) == 1
    assert told[adopted.Popen] == told[subprocess.Popen]
    assert f" {os.getpid()} x None" in told[adopted.Popen][0] and told[adopted.Popen][2] == 7


@pytest.mark.slow
def test_a_program_in_a_fork_has_torch_already_dies_as_a_child_and_takes_the_process_that_forks_for_it_along():
    code = "import sys, time; print('torch' in sys.modules, flush=True); time.sleep(600)"
    process = adopted.Popen([sys.executable, "-c", code], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "True\n"
    assert adopted.children(process.pid) == []
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    assert process.stdout.read() == "", "nobody else holds its pipes"
