"""Processes that start at once: forked from one that has imported the heavy libraries already, a fork server.

torch, transformers and peft take seconds to import, and a run needs them in several processes: the trial of the
converter, the converter itself, the export. `start` begins to import them once, in a process beside the caller; from
then on `popen` gives a fork of that one, which runs a script just as `python SCRIPT ARGUMENTS` would. Where there is no
fork server, or it has died, it is a plain subprocess, only slower. A fork has the environment of the server's start plus
`extra`, is the leader of its own session (the terminal's Ctrl-C is for the caller to handle), and never had Unsloth
imported.

Why not multiprocessing's own forkserver (tried with Python 3.11): its start() waits until the server has imported, nine
seconds in which a run reads its rows; a server that has died is started anew, and waited for again; it imports the
caller's main program in each child; a child's atexit handlers do not run; and the caller, at its end, waits for children
that are still there. What it runs is a function: pipes, session, folder, environment and the script would still be ours
to set up.

The two sides share a pair of datagram sockets. A request is one datagram: what to run, with the file descriptors of the
child's stdin, stdout, stderr and of a pipe into which the server writes the child's pid, and its exit code at the end.
The server ends when its stdin closes, and that happens when its starter ends, however it ended.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypedDict

if __name__ == "__main__":  # as a script, this folder stands first on the path and would shadow installed packages
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from training.system import foreign_code

# Read once, when imported.
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "PYTHONUTF8": "1"}
PRELOADED = ("torch", "transformers.models.auto.modeling_auto", "transformers.models.llama.modeling_llama")
# What the first fork, which a plan waits for, can do without: imported while nobody asks.
LATER = ("peft",)
REQUEST = 1 << 16  # bytes of a request at most
PID = 16  # characters of a pid or an exit code, so that one read takes one of them


@dataclass(frozen=True)
class Server:
    """The fork server as those who ask it know it: `requests` go into a socket, which forks inherit, for they may ask too.

    `process`: the server itself, in the process that started it.
    """

    requests: socket.socket
    process: subprocess.Popen[bytes] | None = None


server: Server | None = None
_starter: int | None = None  # in a fork: the process that asked for it


class Request(TypedDict):
    """What a fork is to become. The environment is the server's, with `extra` put over it."""

    script: str
    arguments: list[str]
    extra: dict[str, str]
    cwd: str
    starter: int


class PlainProcess(subprocess.Popen[bytes]):
    """A plain subprocess whose stdin and stdout are pipes."""

    stdin: IO[bytes]
    stdout: IO[bytes]


class Child:
    """A fork of the server; the part of subprocess.Popen's interface that is used here, with binary pipes."""

    def __init__(self, status: int, stdin: IO[bytes], stdout: IO[bytes]) -> None:
        self.stdin, self.stdout = stdin, stdout
        self.returncode: int | None = None
        self._status = status  # the pipe in which the server tells the pid, then the exit code
        self._pid: int | None = None

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.stdin.close()
        self.stdout.close()
        self.wait()

    @property
    def pid(self) -> int | None:
        """Its process; waits for the server, which may still be importing. None when the server has died."""
        if self._pid is None and self.returncode is None:
            told = os.read(self._status, PID)
            if told:
                self._pid = int(told)
            else:
                self._ended(-signal.SIGKILL)
        return self._pid

    def poll(self) -> int | None:
        """The exit code (negative: the signal's number), or None while it runs."""
        while self.returncode is None and self._told():
            if self._pid is None:
                _ = self.pid  # what was told is the pid; the exit code may have been told too
            else:
                self.wait()
        return self.returncode

    def wait(self) -> int:
        """Wait for the end; gives the exit code."""
        while self.returncode is None:
            if self.pid is not None:
                told = os.read(self._status, PID)
                # Nothing told: the server has died, and with it the knowledge of how the child ended.
                self._ended(int(told) if told else -signal.SIGKILL)
        return self.returncode

    def kill(self) -> None:
        """End it at once."""
        self._send(signal.SIGKILL)

    def terminate(self) -> None:
        """Ask it to end."""
        self._send(signal.SIGTERM)

    @property
    def begun(self) -> bool:
        """Whether the server has made it already, without waiting for that."""
        return self._pid is not None or self._told()

    def _told(self) -> bool:
        return bool(select.select([self._status], [], [], 0)[0])

    def _send(self, number: int) -> None:
        if self.poll() is None and self.pid is not None:
            with suppress(ProcessLookupError):  # it ended a moment ago
                os.kill(self.pid, number)

    def _ended(self, code: int) -> None:
        self.returncode = code
        os.close(self._status)


def start(preload: Sequence[str] = PRELOADED, later: Sequence[str] = LATER) -> None:
    """Begin to import the heavy libraries in a process beside this one. Once a process; returns at once.

    A fork has all of `preload`, and of `later` what was imported by then.
    """
    global server
    if server is not None:
        return
    requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    handles = (theirs.fileno(), requests.fileno())
    with theirs:
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), *map(str, handles), " ".join(preload), " ".join(later)],
            stdin=subprocess.PIPE,  # closes with this process
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=handles,
            start_new_session=True,
            env={**os.environ, **OFFLINE},
        )
    server = Server(requests, process)
    # It looks at its stdin once it has imported: a program that has found a mistake meanwhile does not leave it at work.
    atexit.register(_end, process, os.getpid())


def _end(process: subprocess.Popen[bytes], starter: int) -> None:
    """End the server with the process that started it; not with one that was forked from that."""
    if os.getpid() == starter:
        process.kill()


def popen(
    script: Path,
    arguments: Sequence[object],
    extra: Mapping[str, str] | None = None,
    errors: bool = True,
    fork: bool = True,
) -> Child | PlainProcess:
    """Run `script` in a process of its own. `extra`: environment variables that it has besides.

    stdin is a pipe, that closes with this process; `.stdout` is one too. `errors`: stderr comes through it as well; else
    stderr is this process's own. Without `fork` it is a plain subprocess in any case.
    """
    words = [str(word) for word in arguments]
    child = _forked(server, script, words, dict(extra or {}), errors) if server is not None and fork else None
    return child or PlainProcess(
        [sys.executable, str(script), *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if errors else None,
        start_new_session=True,
        env={**os.environ, **OFFLINE, **(extra or {})},
    )


def end(child: Child | PlainProcess) -> None:
    """End a child that nobody waits for any more. One that a still importing server has yet to make is not waited for:
    it finds its stdin closed when it begins (parent_watch.end_with_parent)."""
    child.stdin.close()
    if child.returncode is None and (isinstance(child, PlainProcess) or child.begun):
        child.kill()
        child.wait()
    child.stdout.close()


def starter() -> int:
    """The process that started this one: in a fork not its parent, which is the server, but the one that asked."""
    return os.getppid() if _starter is None else _starter


def _forked(server: Server, script: Path, arguments: list[str], extra: dict[str, str], errors: bool) -> Child | None:
    """A fork of the server; None when it is there no more."""
    in_read, in_write = os.pipe()
    out_read, out_write = os.pipe()
    status_read, status_write = os.pipe()
    request = Request(
        script=str(script),
        arguments=arguments,
        extra=foreign_code.handed_on() | extra,
        cwd=str(Path.cwd()),
        starter=os.getpid(),
    )
    theirs = [in_read, out_write, out_write if errors else 2, status_write]
    try:
        socket.send_fds(server.requests, [json.dumps(request).encode()], theirs)
        sent = True
    except OSError:
        sent = False
    for number in {in_read, out_write, status_write}:
        os.close(number)
    if not sent:
        for number in (in_write, status_read, out_read):
            os.close(number)
        return None
    return Child(status_read, os.fdopen(in_write, "wb", buffering=0), os.fdopen(out_read, "rb"))


# ---- the server's side -------------------------------------------------------------------------------------------


def serve(requests: int, asking: int, preload: Sequence[str], later: Sequence[str] = ()) -> Request:
    """Import, then fork for every request, until stdin closes. Only a fork returns, with its request."""
    _import(preload)
    waiting = list(later)
    channel = socket.socket(fileno=requests)
    children: dict[int, int] = {}  # pid -> the pipe that waits for its exit code
    wake_read, wake_write = os.pipe()
    watched: list[int | socket.socket] = [0, channel, wake_read]
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while True:
        ready, _, _ = select.select(watched, [], [], 0 if waiting else None)
        if not ready:
            _import([waiting.pop(0)])
        if wake_read in ready:
            os.read(wake_read, 4096)
            _reap(children)
        if channel in ready:
            message, handles, _, _ = socket.recv_fds(channel, REQUEST, 4)
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for number in (wake_read, wake_write, *children.values(), handles[3]):
                    os.close(number)
                channel.close()
                return _become(json.loads(message), handles[:3], asking)
            for number in set(handles[:3]):
                os.close(number)
            children[pid] = handles[3]
            _tell(handles[3], f"{pid:{PID}d}")
        if 0 in ready:
            os._exit(0)


def _import(names: Sequence[str]) -> None:
    """What forks share from now on."""
    import importlib

    for name in names:
        with suppress(Exception):  # the fork that needs it will say why it cannot be imported
            importlib.import_module(name)
    gc.freeze()  # the collector must not touch, and so copy, what the forks share


def _reap(children: dict[int, int]) -> None:
    """Pass on the exit codes of the children that have ended."""
    for pid, pipe in list(children.items()):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            _tell(pipe, f"{os.waitstatus_to_exitcode(status):{PID}d}")
            os.close(children.pop(pid))


def _tell(pipe: int, text: str) -> None:
    with suppress(BrokenPipeError):  # the one who asked has gone
        os.write(pipe, text.encode())


def _become(request: Request, handles: Sequence[int], asking: int) -> Request:
    """Make this fork what was asked for: its session, files, environment and folder."""
    global server, _starter
    os.setsid()
    for number, handle in enumerate(handles):
        os.dup2(handle, number)
    for handle in set(handles):
        os.close(handle)
    os.environ.update(request["extra"])
    os.chdir(request["cwd"])
    tempfile.tempdir = None  # TMPDIR may be another
    server, _starter = Server(socket.socket(fileno=asking)), request["starter"]
    return request


def main(requests: int, asking: int, preload: Sequence[str], later: Sequence[str] = ()) -> None:
    """The server; in a fork, the script that was asked for, ending as any script ends."""
    from training.system import forkserver

    foreign_code.keep_out()
    asked = forkserver.serve(requests, asking, preload, later)
    sys.argv = [asked["script"], *asked["arguments"]]
    # By which a launcher starts the same command again.
    sys.orig_argv = [sys.executable, *sys.argv]
    sys.path[0] = str(Path(asked["script"]).parent)
    os._exit(_exit_code(lambda: runpy.run_path(asked["script"], run_name="__main__")))


def _exit_code(script: Callable[[], object]) -> int:
    """Run a script to its end, as far as anybody can see it. What is left out is the interpreter taking itself to pieces: in a
    fork that touches, and so copies, all that it shares with the server (200 MB, a third of a second)."""
    code = 0
    try:
        script()
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            code = end.code or 0
        else:
            print(end.code, file=sys.stderr)
            code = 1
    except BaseException:
        traceback.print_exc()
        code = 1
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # nobody listens any more, or it is closed
            stream.flush()
    return code & 0xFF


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *(names.split() for names in sys.argv[3:]))
