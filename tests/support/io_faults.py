"""Operations on files that fail, as a disk or a network drive lets them: the shim io_faults.c, preloaded into a run."""

from __future__ import annotations

import errno
import random
import re
import struct
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from training.system import forkserver
from training.system.forkserver import Server

SOURCE = Path(__file__).with_suffix(".c")
CONTROL = struct.Struct("<4Q2048s1024s32s1024s32s")  # struct control
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
WRITES = (errno.EIO, *FULL)
KILLS = ("kill-before", "kill-after")
# What a disk can answer to which operation.
ANSWERS: dict[str, tuple[int | str, ...]] = {
    **dict.fromkeys(("open", "mkdir", "rename", "symlink"), (*WRITES, *KILLS)),
    "write": (*WRITES, "short", *KILLS),
    **dict.fromkeys(("fsync", "close", "ftruncate"), (errno.EIO, errno.ENOSPC)),
    **dict.fromkeys(("unlink", "rmdir"), (errno.EIO, errno.EROFS, "kill-before")),
    **dict.fromkeys(("read", "stat", "list"), (errno.EIO, errno.ESTALE)),
    "look": (errno.EIO, errno.ESTALE, "vanish"),
}
# Imported once, in the fork server, and not again in every run that is hurt.
IMPORTED = (*forkserver.PRELOADED, *forkserver.LATER, "datasets", "pandas", "trl.trainer.sft_trainer")
# Names that are others in each run, as patterns.
VARYING = (
    (r"finetune_\d{8}_\d{6}(_\d+)?", "finetune_*"),
    (r"/(\.\w+)\.\d+$", r"/\1.*"),
    (r"\.\d+(\.files)?\.partial", r".*\1.partial"),
    (r"checkpoint-\d+", "checkpoint-*"),
    (r"/\d\.npy", "/*.npy"),
    (r"/tmp\w{8}", "/tmp*"),
    (r"\.tmp\w{6}$", ".tmp*"),
    (r"^rows/.+", "rows/*"),
)


@dataclass(frozen=True)
class Fault:
    """One operation that fails. `how`: an errno, or what io_faults.c calls it; `ever`: those after it too.

    `path`: a pattern, whose first name stands for a folder that is looked at; "*" for any path.
    """

    name: str
    path: str
    how: int | str
    at: int = 1
    ever: bool = False

    def __str__(self) -> str:
        return f"{self.kind} at {self.name} {self.at} of {self.path}"

    @property
    def kind(self) -> str:
        """What was done, whichever file it met."""
        how = errno.errorcode[self.how] if isinstance(self.how, int) else self.how
        return f"{how}{' from then on' if self.ever else ''}"

    @property
    def kills(self) -> bool:
        """Whether a process ends by it."""
        return self.how in KILLS


@dataclass(frozen=True)
class Shim:
    """The compiled shim at work in a fork server of its own; `control` tells it what to do."""

    server: Server
    control: Path

    def arm(self, folders: Mapping[str, Path], fault: Fault | None = None, log: Path | None = None) -> None:
        """From now on let operations under `folders` fail (`fault`), or have them written to `log`."""
        if log:
            log.touch()
        which = "".join(f"{folder}/\n" for folder in folders.values()).encode()
        texts = [fault.name, _pattern(fault.path, folders), str(fault.how)] if fault else ["", "", ""]
        rest = [0, 0, fault.at if fault else 0, int(fault.ever) if fault else 0, which, str(log or "").encode()]
        packed = CONTROL.pack(*rest, *(text.encode() for text in texts))
        with self.control.open("r+b") as file:
            file.write(packed)

    def disarm(self) -> bool:
        """Let everything be as it is without it. Whether the operation that was to fail had come."""
        hurt = CONTROL.unpack(self.control.read_bytes())[1] > 0
        self.arm({})
        return hurt


def _pattern(path: str, folders: Mapping[str, Path]) -> str:
    """A fault's path as the shim has it: the folder itself in the place of its name."""
    first, slash, rest = path.partition("/")
    return f"{folders[first]}/{rest}" if slash else path


def started(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Shim | None:
    """Compile the shim into a folder and start a fork server with it; None where there is no C compiler."""
    library, control = folder / "io_faults.so", folder / "control"
    try:
        subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", str(library), str(SOURCE), "-ldl"], check=True)
    except FileNotFoundError:
        return None
    control.write_bytes(bytes(CONTROL.size))
    with monkeypatch.context() as patch:
        patch.setenv("LD_PRELOAD", str(library))
        patch.setenv("IO_CONTROL", str(control))
        patch.setattr(forkserver, "server", None)
        forkserver.start(IMPORTED)
        server = forkserver.server
    assert server is not None
    return Shim(server, control)


def operations(log: Path, folders: Mapping[str, Path]) -> dict[tuple[str, str], int]:
    """The operations of a logged run: (name, pattern of the path) -> how often."""
    found: dict[tuple[str, str], int] = {}
    for line in log.read_text(encoding="utf-8").splitlines():
        name, _, path = line.partition(" ")
        for first, folder in folders.items():
            path = path.replace(f"{folder}/", f"{first}/")
        for varying, pattern in VARYING:
            path = re.sub(varying, pattern, path)
        if name in ANSWERS:
            found[name, path] = found.get((name, path), 0) + 1
    return found


def every(seen: dict[tuple[str, str], int], seed: int) -> list[Fault]:
    """All faults: each answer to each operation on each file, at one of its times, in an order of chance."""
    draw, found = random.Random(seed), []
    for (name, path), often in sorted(seen.items()):
        for how in ANSWERS[name]:
            at = draw.randint(1, often)
            if _can(name, how, path):
                found.append(Fault(name, path, how, at))
    # A disk that fills, or fails, does so for all that comes after.
    for name in ("open", "write", "fsync", "rename", "mkdir"):
        total = sum(often for (one, _), often in seen.items() if one == name)
        found += [Fault(name, "*", how, draw.randint(1, total), True) for how in FULL for _ in range(3)]
    draw.shuffle(found)
    return found


def each(scenes: Mapping[str, dict[tuple[str, str], int]], seed: int) -> list[tuple[str, Fault]]:
    """Every operation on every file once, with its scene: the answers to an operation take turns over the files.

    What is done in several scenes, by the same program, is hurt in one of them: three times of four in the last, the
    quickest.
    """
    draw, found = random.Random(seed), []
    for name, answers in ANSWERS.items():
        files = sorted({path for seen in scenes.values() for one, path in seen if one == name})
        turns = draw.sample(answers, len(answers))
        for number, path in enumerate(draw.sample(files, len(files))):
            how = next(how for how in (*turns[number % len(turns) :], *turns) if _can(name, how, path))
            *others, last = (scene for scene, seen in scenes.items() if (name, path) in seen)
            scene = draw.choice([*others, last, last, last])
            found.append((scene, Fault(name, path, how, draw.randint(1, scenes[scene][name, path]))))
    draw.shuffle(found)
    return found


def _can(name: str, how: int | str, path: str) -> bool:
    """Whether a disk may answer so: only what the run has made itself vanishes, and only what was written finds no room when
    it is closed."""
    if name == "close" and how == errno.ENOSPC:
        return ".partial" in path or path.endswith((".jsonl", ".log"))
    return how != "vanish" or path.startswith("runs/outputs/")
