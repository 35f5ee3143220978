"""How long is it from `./run.sh` to the end of the first step?  python benchmarks/first_step.py [--runs 3] [--lines]

Starts ./run.sh on the shipped model and rows, with the shipped settings, into a temporary folder; once it has done a step it
is stopped. The first of the runs, whose files may not be in memory yet, is shown and not counted. `--lines` prints every line
of the log with the seconds at which it came. CPU is that of the program and all that it has started: on a machine that others
use, too, it says more than the time. Linux only (/proc).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import IO

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import psutil

from training.system import events, paths

PLANNED, STEPPED = "started", "step"


def seconds_of(process: psutil.Process) -> float:
    """The processor time of a program and of all that it has started, those that are gone with those that waited for them."""
    used = 0.0
    for one in (process, *process.children(recursive=True)):
        try:
            used += sum(one.cpu_times()[:4])
        except psutil.NoSuchProcess:
            continue
    return used


def told(stream: IO[str], began: float, shown: bool) -> None:
    """Read what the program says, so that it never waits for us."""
    for line in stream:
        if shown:
            print(f"{time.monotonic() - began:8.2f}  {line}", end="")


def run(folder: Path, more: list[str], shown: bool) -> dict[str, tuple[float, float]]:
    """Seconds and processor time until a run had its plan, and its first step behind it."""
    began, found = time.monotonic(), {}
    command = [str(paths.ROOT / "run.sh"), "--output", str(folder), *more]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    threading.Thread(target=told, args=(process.stderr, began, shown), daemon=True).start()
    watched = psutil.Process(process.pid)
    try:
        while STEPPED not in found and process.poll() is None:
            time.sleep(0.02)
            for path in folder.glob("finetune_*/events.jsonl"):
                names = {event["event"] for event in events.read(path)}
                for name in names & {PLANNED, STEPPED} - found.keys():
                    found[name] = (time.monotonic() - began, seconds_of(watched))
    finally:
        process.terminate()
        process.wait()
    if STEPPED not in found:
        raise SystemExit(f"the run ended before its first step, with exit code {process.returncode}; --lines shows why")
    return found


def main() -> None:
    """A line a run, and the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="how many are counted (3)")
    parser.add_argument("--lines", action="store_true", help="show the log of each, with seconds")
    parser.add_argument("more", nargs="*", help="arguments for run.sh, after --")
    asked = parser.parse_args()
    counted = []
    print("| run | to its directory, s | CPU, s | to the end of the first step, s | CPU, s |\n|---|---|---|---|---|")
    for number in range(asked.runs + 1):
        with tempfile.TemporaryDirectory() as folder:
            found = run(Path(folder), asked.more, asked.lines)
        counted += [found] if number else []
        (planned, cpu), (stepped, whole) = found[PLANNED], found[STEPPED]
        print(f"| {number or 'first'} | {planned:.1f} | {cpu:.1f} | {stepped:.1f} | {whole:.1f} |", flush=True)
    medians = {name: [statistics.median(one[name][at] for one in counted) for at in (0, 1)] for name in found}
    print(json.dumps({name: [round(value, 1) for value in values] for name, values in medians.items()}))


if __name__ == "__main__":
    main()
