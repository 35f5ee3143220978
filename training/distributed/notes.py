"""What the launcher and the ranks of one machine leave each other in their folder, which nobody but their user can enter."""

from __future__ import annotations

import json
import os
import pickle
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from training.system import files
from training.train import Order

# Lines of a rank's last words that a message has.
LAST = 3
ORDER, RUN, LOST, STOPPING, OVER, BROKEN = "order", "run", "lost.json", "stopping", "over", "broken"
MET, LAUNCHER = "met", "launcher"
LEFT = ("run", "lock", "launcher")  # when all are started again


@dataclass(frozen=True)
class Lost:
    """A rank that has ended before its time."""

    rank: int
    code: int
    words: str


def give(folder: Path, order: Order) -> None:
    """Leave the other ranks what they are to do."""
    # Between this program's own processes of one user.
    files.write_bytes(folder / ORDER, pickle.dumps(order))


def order(folder: Path) -> Order | None:
    """What the ranks of this machine are to do; None where that is not known yet."""
    with suppress(FileNotFoundError):
        found: Order = pickle.loads((folder / ORDER).read_bytes())
        return found
    return None


def begin(folder: Path, path: Path) -> None:
    """The run has its directory."""
    files.write_text(folder / RUN, str(path))


def run(folder: Path) -> Path | None:
    """The run's directory, once there is one."""
    with suppress(FileNotFoundError):
        return Path((folder / RUN).read_text(encoding="utf-8"))
    return None


def launch(folder: Path) -> None:
    """This process starts the ranks."""
    files.write_text(folder / LAUNCHER, str(os.getpid()))


def launcher(folder: Path) -> int:
    """The process that has started the ranks; -1, which is none, where it has left nothing or another has removed it."""
    with suppress(FileNotFoundError):
        return int((folder / LAUNCHER).read_text(encoding="utf-8"))
    return -1


def ready(folder: Path, local_rank: int) -> None:
    """This rank has its model."""
    files.write_text(folder / f"ready-{local_rank}", str(os.getpid()))


def pid(folder: Path, local_rank: int) -> int | None:
    """The process of a rank that has its model; None before."""
    with suppress(FileNotFoundError):
        return int((folder / f"ready-{local_rank}").read_text(encoding="utf-8"))
    return None


def met(folder: Path) -> None:
    """The first rank has met the other machines, in this training."""
    (folder / MET).touch()


def has_met(folder: Path) -> bool:
    """Whether it has."""
    return (folder / MET).exists()


def stopping(folder: Path) -> None:
    """The first rank has heard a signal."""
    with suppress(FileExistsError):
        (folder / STOPPING).touch(exist_ok=False)


def stopping_since(folder: Path) -> float | None:
    """When it heard the first one; None where it has not."""
    with suppress(FileNotFoundError):
        return (folder / STOPPING).stat().st_mtime
    return None


def over(folder: Path) -> None:
    """The training is over, and the other ranks are not needed any more."""
    with suppress(FileNotFoundError):
        (folder / OVER).touch()


def is_over(folder: Path) -> bool:
    """Whether it is."""
    return (folder / OVER).exists()


def lose(folder: Path, rank: int, size: int, code: int, last: str) -> None:
    """A rank has ended before its time."""
    told = {"rank": rank, "code": code, "words": ended(rank, size, code, last)}
    files.write_text(folder / LOST, json.dumps(told))


def lost(folder: Path) -> Lost | None:
    """The rank that has, if one has."""
    with suppress(FileNotFoundError):
        return Lost(**json.loads((folder / LOST).read_text(encoding="utf-8")))
    return None


def broken(folder: Path) -> None:
    """The first rank has ended for another one's sake, and can go on from the checkpoint."""
    (folder / BROKEN).touch()


def is_broken(folder: Path) -> bool:
    """Whether it has."""
    return (folder / BROKEN).exists()


def begin_again(folder: Path) -> None:
    """Forget what was said, but for the run."""
    for path in folder.iterdir():
        if path.is_file() and path.name not in LEFT:
            path.unlink(missing_ok=True)


def said(folder: Path, local_rank: int) -> list[str]:
    """What a rank has said so far, line by line."""
    lines = []
    for path in sorted(folder.glob(f"run_*/attempt_*/{local_rank}/std*.log")):
        lines += path.read_text(encoding="utf-8", errors="replace").splitlines()
    return [line.rstrip() for line in lines if line.strip()]


def last_words(folder: Path, local_rank: int) -> str:
    """The last of it."""
    return "\n  ".join(said(folder, local_rank)[-LAST:])


def ended(rank: int, size: int, code: int, last: str) -> str:
    """How a rank has ended, for a person."""
    who = f"process {rank} of {size} (NUM_PROCESSES)"
    if code < 0:
        return f"{who} was killed by {signal.Signals(-code).name}"
    return f"{who} ended with exit code {code}" + (f"; its last words:\n  {last}" if last else "")
