"""Processes forked from one that has imported already: they are what a plain subprocess would be."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from training.system import forkserver

pytestmark = pytest.mark.slow

SCRIPT = """
import json, os, sys
from training.system import forkserver
print(json.dumps({
    "name": __name__, "argv": sys.argv[1:], "cwd": os.getcwd(), "extra": os.environ.get("EXTRA"),
    "session": os.getsid(0) == os.getpid(), "starter": forkserver.starter(), "parent": os.getppid(),
    "preloaded": "wave" in sys.modules, "path": sys.path[0],
}), flush=True)
print("on stderr", file=sys.stderr)
sys.exit(7)
"""


def forget() -> None:
    """End the fork server of this test and forget it."""
    forkserver.server.process.kill()
    forkserver.server.process.wait()
    forkserver.server.process.stdin.close()
    forkserver.server.requests.close()
    forkserver.server = None


@pytest.fixture
def started():
    """A fork server that has imported one small module, for this test only."""
    forkserver.start(["wave"], later=())
    yield forkserver.server.process
    forget()


@pytest.fixture
def script(tmp_path: Path):
    def write(text: str) -> Path:
        path = tmp_path / "script.py"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def run(path: Path, *arguments: str, **options) -> tuple[int, str]:
    child = forkserver.popen(path, arguments, **options)
    with child:
        printed = child.stdout.read().decode()
        code = child.wait()
    return code, printed


def test_a_fork_runs_a_script_as_python_would_and_has_the_modules_already(started, script):
    code, printed = run(script(SCRIPT), "a b", "ü", extra={"EXTRA": "yes"})
    said = json.loads(printed.splitlines()[0])
    assert code == 7 and printed.splitlines()[1] == "on stderr"
    assert said["argv"] == ["a b", "ü"] and said["name"] == "__main__"
    assert said["cwd"] == str(Path.cwd()) and said["path"] == str(script(SCRIPT).parent)
    assert said["extra"] == "yes" and "EXTRA" not in os.environ
    assert said["session"] and said["preloaded"]
    assert said["starter"] == os.getpid() and said["parent"] == started.pid


def test_without_a_fork_server_a_plain_subprocess_does_the_same(script):
    code, printed = run(script("import sys; print(sys.argv[1:], 'wave' in sys.modules); sys.exit(7)"), "a b")
    assert (code, printed) == (7, "['a b'] False\n")


def test_a_dead_fork_server_is_replaced_by_plain_subprocesses(started, script):
    started.kill()
    started.wait()
    code, printed = run(script("import sys; print('here'); sys.exit(3)"))
    assert (code, printed) == (3, "here\n")


def test_a_traceback_in_a_fork_is_printed_and_ends_it_with_1(started, script):
    code, printed = run(script("raise ValueError('why')"))
    assert code == 1 and printed.startswith("Traceback") and printed.endswith("ValueError: why\n")


def test_a_fork_ends_as_a_script_does_with_its_last_words_and_its_exit_handlers(started, script):
    text = "import atexit, sys\natexit.register(print, 'handler')\nprint('unflushed', end=' ')\nsys.exit({!r})"
    for end, (code, words) in {
        "why": (1, {"unflushed", "handler", "why"}),
        None: (0, {"unflushed", "handler"}),
    }.items():
        ended, printed = run(script(text.format(end)))
        assert (ended, set(printed.split())) == (code, words)


def test_a_killed_fork_gives_the_signal(started, script):
    child = forkserver.popen(script("print('up', flush=True); import time; time.sleep(60)"), [])
    assert child.stdout.readline() == b"up\n" and child.poll() is None
    child.kill()
    assert child.wait() == -signal.SIGKILL and child.poll() == -signal.SIGKILL
    forkserver.end(child)


def test_a_fork_may_ask_for_a_fork(started, script, tmp_path):
    inner = tmp_path / "inner.py"
    inner.write_text(
        "import sys\nfrom training.system import forkserver\nprint('wave' in sys.modules, forkserver.starter())\n"
    )
    outer = script(
        "import os, sys\nfrom pathlib import Path\nfrom training.system import forkserver\n"
        "child = forkserver.popen(Path(sys.argv[1]), [])\n"
        "print(child.stdout.read().decode().strip() == f'True {os.getpid()}', child.wait())\n"
    )
    assert run(outer, str(inner)) == (0, "True 0\n")


def test_a_fork_whose_errors_are_not_asked_for_has_our_stderr(started, script, capfd):
    child = forkserver.popen(script("import sys; print('told'); print('kept', file=sys.stderr)"), [], errors=False)
    assert (child.stdout.read(), child.wait()) == (b"told\n", 0)
    forkserver.end(child)
    assert capfd.readouterr() == ("", "kept\n")


def test_a_fork_that_does_not_exist_yet_is_ended_without_waiting_for_it(script, monkeypatch):
    slow = script("import time; time.sleep(30)")
    monkeypatch.setenv("PYTHONPATH", str(slow.parent))
    forkserver.start(["script"], later=())  # the server is busy importing it
    child = forkserver.popen(slow, [])
    began = time.monotonic()
    forkserver.end(child)
    assert time.monotonic() - began < 15, "it waited for the import"
    forget()


def test_the_first_fork_does_not_wait_for_what_is_imported_later_and_a_later_one_has_it(script, tmp_path, monkeypatch):
    asked, imported = tmp_path / "asked", tmp_path / "imported"
    wait = f"import time; from pathlib import Path\nwhile not Path({str(asked)!r}).exists(): time.sleep(0.01)"
    (tmp_path / "early.py").write_text(wait)
    (tmp_path / "late.py").write_text(f"from pathlib import Path; Path({str(imported)!r}).touch()")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    says = script("import sys; print(*(name in sys.modules for name in ('early', 'late')))")
    forkserver.start(["early"], ["late"])
    try:
        with forkserver.popen(says, []) as first:
            asked.touch()
            assert first.stdout.read() == b"True False\n"
        for _ in range(1000):
            if imported.exists():
                break
            time.sleep(0.01)
        assert run(says) == (0, "True True\n")
    finally:
        forget()


def test_a_fork_server_that_is_still_importing_ends_with_its_starter(root, script, monkeypatch):
    slow = script("import time; time.sleep(600)")
    monkeypatch.setenv("PYTHONPATH", str(slow.parent))
    code = (
        "from training.system import forkserver; forkserver.start(['script'], later=()); print(forkserver.server.process.pid)\n"
        "import os\nif os.fork() == 0: raise SystemExit\n"
        "os.wait(); print(forkserver.server.process.poll())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    pid, *alive = done.stdout.split()
    # A fork of the starter that ends ends nothing. (Its copy of what was printed may come first.)
    assert alive[-1] == "None", done.stdout
    assert gone(int(pid)), "the fork server is still there"


def gone(pid: int) -> bool:
    """Whether a process ends."""
    for _ in range(200):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def test_a_fork_server_ends_with_a_starter_that_was_killed(root):
    code = (
        "from training.system import forkserver; forkserver.start(['wave'], later=()); "
        "print(forkserver.server.process.pid, flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as starter:
        pid = int(starter.stdout.readline())
        starter.kill()
    assert gone(pid), "the fork server is still there"
