"""Runs that are stopped or hurt, and what they leave."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from pathlib import Path

import gguf

from tests.support import adopted
from tests.support.paths import ROOT
from training import runs
from training.to_gguf import provenance

FAULT = (
    "fault"  # a test's property (what was done to a run, whether nothing was lost): properties come back from workers
)
MARK, SEED = "FAULT_MARK", 7


# ---- kill -9 ------------------------------------------------------------------------------------------------------


def marked() -> dict[str, str]:
    """An environment by which a program and all that it starts are known, in whatever session that is."""
    return {**os.environ, MARK: uuid.uuid4().hex}


def members(mark: str) -> list[int]:
    """The processes that live with a mark."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"{MARK}={mark}".encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
    return found


def mark_of(process: subprocess.Popen) -> str:
    """The mark of a program that was started with `marked`."""
    return re.search(rf"{MARK}=(\w+)", Path(f"/proc/{process.pid}/environ").read_text(encoding="utf-8"))[1]


def kill(process: subprocess.Popen, whole: bool) -> None:
    """SIGKILL to a program, or to it and all that it has started, as where a container is ended."""
    everything = members(mark_of(process)) if whole else []
    process.kill()
    for pid in everything:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.communicate(timeout=60)


def wait_until(true, process: subprocess.Popen, seconds: float = 300) -> None:
    """Wait until something is true of a run whose process lives."""
    end = time.monotonic() + seconds
    while not true():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, "too slow"
        time.sleep(0.005)


def done(run: Path, stage: str) -> bool:
    """Whether a stage of a run is done."""
    return (run / "status.json").is_file() and runs.open_run(run).stage(stage) is not None


def result(run: Path) -> dict:
    """What must be equal in two reports: every loss, check and file.

    But for config.ini with its own folders, and for rows.csv, which has as many rows as there was time for.
    """
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    return {
        "losses": [
            (s["step"], s["loss"], s["gradient_norm"], s["learning_rate"]) for s in report["training"]["losses"]
        ],
        "evaluations": report["training"]["evaluations"],
        "checks": [(check["name"], check["passed"], check["figures"]) for check in report["checks"]],
        "files": {
            name: content(run / name) if name.endswith(".gguf") else a["sha256"]
            for a in report["artefacts"]
            if (name := a["path"]) not in ("config.ini", "rows.csv")
        },
        "samples": report["samples"],
        "stages": list(report["run"]["stages"]),
    }


def content(path: Path) -> str:
    """A digest of a GGUF file without what it says of its own run (--whois)."""
    reader = gguf.GGUFReader(path)
    digest = hashlib.sha256()
    for name, field in reader.fields.items():
        if name not in (provenance.MADE, provenance.FOUND) and not name.startswith("GGUF."):
            for part in field.parts:
                digest.update(part.tobytes())
    for tensor in reader.tensors:
        digest.update(tensor.name.encode() + tensor.data.tobytes())
    return digest.hexdigest()


# ---- memory, and numbers that are none ----------------------------------------------------------------------------

# The program with a fault put into it. In fakes only, for a real allocator that fails takes the whole machine with it.
FAULTY = """
import os, signal, sys
sys.path.insert(0, {root!r})
from training import errors, finetune, pipeline
from training.fast_cpu import fast_loss
NO_MEMORY = "[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory"
{fault}
raise SystemExit(finetune.main(sys.argv[1:]))
"""


# The run ends when it is trained: what comes after is not what the test is about.
NO_EXPORT = """
def enough(*arguments):
    raise errors.RunError("evaluate", "enough")
pipeline.evaluate_stage = enough
"""


# A signal comes with the step in STOP_AT, in a program that has imported `os` and training.train.callback.
STOPPED_AFTER = """
class Stopped(callback.Hooks):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == int(os.environ.get("STOP_AT", 0)):
            self.session.signals.stop = 15
        super().on_step_end(args, state, control, **kwargs)

callback.Hooks = Stopped
"""


# SIGTERM arrives in a micro-batch: `at` is its number from the start of the process.
STOPPED = """
from training.train import hooks
real = hooks.hooked
def hooked(trainer_class, watch):
    class Stopping(real(trainer_class, watch)):
        count = 0
        def training_step(self, *arguments, **options):
            Stopping.count += 1
            if Stopping.count == {at}:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().training_step(*arguments, **options)
    return Stopping
hooks.hooked = hooked
"""


def faulty(fault: str, *arguments) -> subprocess.CompletedProcess:
    return adopted.run([sys.executable, "-c", FAULTY.format(root=str(ROOT), fault=fault), *map(str, arguments)])


def only_run(config: Path) -> Path:
    """The one run under the folder of some settings."""
    (run,) = (config.parent / "outputs").glob("finetune_*")
    return run
