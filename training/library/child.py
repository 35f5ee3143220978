"""The run itself, as a process of its own that speaks events: what ./run.sh --events does.

Why not in the caller's process: a run takes over signals, log sinks and stdout, sets variables that torch reads when it is
loaded, and leaves memory and CUDA to the end of its process; and it goes on when a notebook's kernel is restarted. In a
process of its own all that stays as it is proved for the command line, with the same exit codes and messages.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from training.errors import FinetuneError, MachineError, RunError, Stopped, again
from training.library.bar import Bar
from training.system import paths, shell

Event = dict[str, Any]
LAST = ("done", "failed", "interrupted")
# Seconds that a process has to end after a second request, which it obeys at once.
AT_ONCE = 20


def run(arguments: Sequence[str | Path], bar: Bar, on_event: Callable[[Event], None] | None) -> Path:
    """Run training/finetune.py to its end; gives the run's folder.

    Raises the error that it ended with. KeyboardInterrupt, and whatever on_event raises, end it after a checkpoint.
    """
    with tempfile.TemporaryFile() as said:
        child = _started(arguments, said)
        try:
            last, folder = _followed(child, bar, on_event)
        finally:
            if child.poll() is None:
                child.kill()
            child.wait()
            bar.close()
        if last.get("event") == "done" and child.returncode == 0 and folder is not None:
            return folder
        said.seek(0)
        raise _error(child.returncode, last, folder, said.read().decode("utf-8", "replace"))


def _started(arguments: Sequence[str | Path], said: IO[bytes]) -> subprocess.Popen[bytes]:
    own = paths.ROOT / ".venv" / "bin" / "python"
    if not own.exists() and importlib.util.find_spec("torch") is None:
        raise MachineError(f"the packages are not installed yet: run {shell.command('setup.sh')} first")
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    return subprocess.Popen(
        [str(own if own.exists() else sys.executable), str(paths.TRAINING / "finetune.py"), "--events", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=said,
        # A notebook's interrupt goes to a whole group: here it is handed on, once.
        start_new_session=True,
        env={**environment, "PYTHONUTF8": "1"},
    )


def _followed(
    child: subprocess.Popen[bytes], bar: Bar, on_event: Callable[[Event], None] | None
) -> tuple[Event, Path | None]:
    """Hand the events on until there are no more; gives the last one, and the run's folder."""
    assert child.stdout is not None
    last: Event = {}
    folder: Path | None = None
    failure: Exception | None = None
    asked = 0
    lines = _lines(child.stdout)
    while True:
        try:
            event = next(lines, None)
            if event is None:
                break
            folder = Path(event["run"]) if "run" in event else folder
            last = event if event.get("event") in LAST else last
            bar.take(event)
            if on_event is not None and failure is None:
                on_event(event)
        except KeyboardInterrupt:
            asked += 1
            _ask_to_stop(child, asked, bar)
        except Exception as error:
            # The caller's own: the run ends in good order before it is raised.
            failure = error
            asked += 1
            _ask_to_stop(child, asked, bar)
    with suppress(subprocess.TimeoutExpired):
        child.wait(AT_ONCE)
    if failure is not None:
        raise failure
    return last, folder


class _Lines:
    """The events of a stream of lines; unlike a generator it goes on after an interrupt."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        while line := self._stream.readline():
            with suppress(ValueError):
                event = json.loads(line)
                if isinstance(event, dict):
                    return event
        raise StopIteration


def _lines(stream: IO[bytes]) -> Iterator[Event]:
    return _Lines(stream)


def _ask_to_stop(child: subprocess.Popen[bytes], asked: int, bar: Bar) -> None:
    if asked > 2:
        child.kill()
        return
    with suppress(ProcessLookupError):
        child.send_signal(signal.SIGINT)
    if asked == 1:
        bar.say(
            "stopping after this batch, with a checkpoint; interrupt again to end at once, without the steps since the last one"
        )


def _error(code: int, last: Event, folder: Path | None, said: str) -> FinetuneError:
    error: FinetuneError
    if last.get("event") in LAST and code > 0:
        error = again(code, str(last.get("error", "")), last)
        if last["event"] == "interrupted" and not isinstance(error, Stopped):
            error = Stopped(code, str(error))
    elif code < 0:
        words = f"its process was ended by {signal.Signals(-code).name}"
        error = RunError(
            "run",
            words,
            f"`{shell.lasting('run.sh', '--resume', folder)}` goes on with what was saved" if folder else "",
        )
    else:
        error = RunError("run", f"its process ended with {code}: {' '.join(said.split())[-500:]}")
    error.run = folder
    if not error.problems:
        error.problems = [str(error)]
    if folder is not None and not error.safe:
        error.safe = f"`{shell.lasting('run.sh', '--resume', folder)}` goes on with what was saved"
    return error
