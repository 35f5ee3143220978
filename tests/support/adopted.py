"""Programs that are started, watched and killed, and yet begin with torch imported: what `subprocess.Popen` gives, forked.

`Popen` is subprocess.Popen in all but one thing: where a command is this Python with a program, there is no new Python, but
a fork of the process that has imported torch already (tests/support/warm.py). The program is a real child of whoever has
started it: waited for, killed and noticed as ever. For that the fork forks once more and ends, and the kernel gives its child
to the next process above that takes in orphans (PR_SET_CHILD_SUBREAPER), which the one who starts it is for that moment.

What such a program starts in turn begins in the same way: ranks, detached runs. It asks a process of its own for them,
its nursery, which is forked before the program begins: a child can only be given to a process above.

Not for tests of what is set before torch is loaded, nor of how `ps` and /proc show a program.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from collections.abc import Mapping, Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from tests.support import warm
from tests.support.paths import ROOT
from training.system import forkserver

SUBREAPER, NAME = 36, 15  # prctl
NURSERY, PROGRAM = b"nursery", b"python"
NEW_NETWORK = 0x40000000  # setns
NETWORK = ["ip", "netns", "exec"]
ORDER = 1 << 17
HANDLES = 16
ABOVE = 200  # no program here has so many files open when it starts another
PYTHONS = (sys.executable, str(ROOT / ".venv" / "bin" / "python"))
TRAINING = [str(ROOT / "training" / name) for name in ("finetune.py", "service/evaluation_worker.py")]
# Read by a program itself, or anew in its fork.
LATE = ("TORCHELASTIC_", "TORCH_NCCL_", "TORCH_ELASTIC_", "TORCH_DISTRIBUTED_DEBUG", "ACCELERATE_DEBUG_MODE")
# `python -c IN_TERMINAL PROGRAM ARGUMENTS`: the terminal that is the program's stdin is its own.
IN_TERMINAL = """
import fcntl, runpy, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
plain = subprocess.Popen
_one = threading.Lock()
# Where a program that began in a fork asks for others; None elsewhere: the fork server of the tests is asked.
_nursery: socket.socket | None = None


class Popen(plain):
    """subprocess.Popen; a program of this Python begins in a fork."""

    def _execute_child(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest):
        command = [os.fspath(word) for word in args] if not isinstance(args, (str, bytes, os.PathLike)) else []
        # After startupinfo, creationflags and shell come the two ends of each of the three.
        pipes = rest[3:9]
        everything = dict(os.environ if env is None else env)
        network, command = (command[3], command[4:]) if command[:3] == NETWORK else (None, command)
        simple = sys.platform == "linux" and executable is None and preexec_fn is None and not rest[2]
        if not (simple and len(command) > 1 and command[0] in PYTHONS and _begins_late(command, everything)):
            super()._execute_child(args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest)
            return
        theirs = [own if own != -1 else number for number, own in enumerate((pipes[0], pipes[3], pipes[5]))]
        order = {
            "command": command, "environment": everything, "cwd": str(cwd or Path.cwd()), "starter": os.getpid(),
            "network": network, "numbers": [0, 1, 2, *pass_fds], "umask": _umask(),
        }  # fmt: skip
        self.pid = _born(order, [*theirs, *pass_fds])
        self._child_created = True
        self._close_pipe_fds(*pipes)


def run(command: Sequence[str | Path], timeout: float = 600, **options) -> subprocess.CompletedProcess:
    """subprocess.run of such a program, with no stdin, to its end."""
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with Popen(command, **{**pipes, **options}) as process:
        try:
            out, errors = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, errors)


def _begins_late(command: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Whether a fork can be this program: a script or a text, with nothing in its environment that is read before."""
    if command[1] != "-c" and not command[1].endswith(".py"):
        return False
    # In a program: only what trains, and the program itself again, as a launcher starts it.
    again = command[1:3] == sys.orig_argv[1:3] if command[1] == "-c" else command[1] in (sys.orig_argv[1], *TRAINING)
    if not (again or _nursery is None):
        return False
    base = warm.warmed().environment if _nursery is None else os.environ
    changed = {name for name in environment.keys() | base.keys() if environment.get(name) != base.get(name)}
    # What a program settles for itself is not missed.
    changed -= warm.SET_BY_TORCH | {name for name in warm.SETTLED if name not in environment}
    return not any(warm.READ_AT_START.match(name) and not name.startswith(LATE) for name in changed)


def _born(order: Mapping[str, object], handles: Sequence[int]) -> int:
    """The pid of a new child of this process, which is what was ordered; `handles`: its stdin, stdout and stderr, and what it keeps besides."""
    line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for one in (line, theirs):
        one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * ORDER)
    with _one, line:
        with theirs, Path(os.devnull).open("r+b", buffering=0) as nothing:
            request = forkserver.Request(script=__file__, arguments=[], extra={}, cwd="/", starter=os.getpid())
            ask = warm.warmed().server.requests if _nursery is None else _nursery
            three = [theirs.fileno(), nothing.fileno(), nothing.fileno()]
            # The last is for the pid and exit code of the first fork, which nobody asks for.
            socket.send_fds(ask, [json.dumps(request).encode()], [*three, nothing.fileno()])
        assert line.recv(1), "the fork server has died"
        _take_orphans(True)
        try:
            socket.send_fds(line, [json.dumps(order).encode()], handles)
            told = line.recv(16)
        finally:
            _take_orphans(False)
        assert told, "the fork has died"
        return int(told)


def _umask() -> int:
    """This process's, which can only be read by setting it."""
    found = os.umask(0o077)
    os.umask(found)
    return found


def _take_orphans(whether: bool) -> None:
    _prctl(SUBREAPER, int(whether))


def _prctl(what: int, value: int | bytes) -> None:
    ctypes.CDLL(None).prctl(
        what, ctypes.c_char_p(value) if isinstance(value, bytes) else ctypes.c_ulong(value), 0, 0, 0
    )


# ---- the side of the fork ------------------------------------------------------------------------------------------


def become() -> None:
    """Fork once more, and be what is ordered, from its first line on."""
    import torch.distributed

    line = socket.socket(fileno=os.dup(0))
    line.send(b"r")
    message, handles, _, _ = socket.recv_fds(line, ORDER, HANDLES)
    order = json.loads(message)
    if os.fork():
        os._exit(0)
    end = time.monotonic() + 60
    while os.getppid() != order["starter"]:
        # Whoever wanted it is gone.
        if time.monotonic() > end:
            os._exit(1)
        time.sleep(0.0005)
    os.setsid()
    line.send(str(os.getpid()).encode())
    line.close()
    _take(handles, order["numbers"])
    if order["network"]:
        with Path("/run/netns", order["network"]).open() as network:
            assert ctypes.CDLL(None).setns(network.fileno(), NEW_NETWORK) == 0
    os.environ.clear()
    os.environ.update(order["environment"])
    os.chdir(order["cwd"])
    os.umask(order["umask"])
    torch.distributed.set_debug_level_from_env()
    _open_nursery()
    subprocess.Popen = Popen
    os.execv = _exec
    _begin(order["command"])


def _take(handles: Sequence[int], numbers: Sequence[int]) -> None:
    """Have these files under these numbers. The fork server is asked by another number from now on: it may be one of them."""
    ask = socket.socket(fileno=fcntl.fcntl(forkserver.server.requests.detach(), fcntl.F_DUPFD_CLOEXEC, ABOVE))
    forkserver.server, forkserver._starter = forkserver.Server(ask), None
    high = [fcntl.fcntl(handle, fcntl.F_DUPFD, ABOVE) for handle in handles]
    os.closerange(3, ABOVE)
    for number, handle in zip(numbers, high, strict=True):
        os.dup2(handle, number)
        os.close(handle)


def _begin(command: list[str]) -> None:
    """What `python -c TEXT ARGUMENTS` or `python SCRIPT ARGUMENTS` does; raises what that does."""
    sys.orig_argv = command
    if command[1] == "-c":
        sys.argv, sys.path[0] = ["-c", *command[3:]], ""
        module = types.ModuleType("__main__")
        sys.modules["__main__"] = module
        exec(compile(command[2], "<string>", "exec"), module.__dict__)
    else:
        sys.argv, sys.path[0] = command[1:], str(Path(command[1]).parent)
        runpy.run_path(command[1], run_name="__main__")


def _exec(_program: str, command: list[str]) -> None:
    """In place of os.execv, for a program that becomes another one of this Python."""
    _begin(command)
    raise SystemExit(0)


def _open_nursery() -> None:
    """Fork the process that is asked for what this program starts. It ends with this one."""
    global _nursery
    _nursery, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    alive, held = os.pipe()
    _prctl(NAME, NURSERY)  # before there is one, so that nobody takes it for one of the program's own
    if os.fork():
        _prctl(NAME, PROGRAM)
        os.close(alive)
        theirs.close()
        return
    os.setsid()
    signal.set_wakeup_fd(-1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for number, handle in enumerate((alive, nothing, nothing)):
        os.dup2(handle, number)
    for handle in (alive, nothing, held):
        os.close(handle)
    _nursery.close()
    assert forkserver.server is not None
    forkserver.main(theirs.detach(), os.dup(forkserver.server.requests.fileno()), ())


def children(pid: int) -> list[int]:
    """The processes that a program has started."""
    import psutil

    return [one.pid for one in psutil.Process(pid).children() if one.name() != NURSERY.decode()]


if __name__ == "__main__":
    from tests.support import adopted

    adopted.become()
