"""Is the time on the line what was reckoned?  python benchmarks/line_speed.py [--only WORD] [--steps 10] [--times 1]

Two processes train, on one machine and as two hosts (network namespaces) with a line of their own: at full speed, at 100 and at
10 Mbit/s (tc's tbf), and with 20 ms each way (a process that holds every packet back). The program measures the line when the
processes have met, and says how long the gradients of a step will take; then it times them. Two adapters: that of a tiny random
model, and that of the shipped one. `--only` takes the lines whose names have that word. Linux only; two hosts need root.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from tests.support import hosts
from tests.support.hosts import Hosts
from tests.support.paths import ROOT
from tests.support.ranks import program
from tests.support.tiny import write_tiny_config, write_tiny_model

SHIPPED = ROOT / "models" / "SmolLM2-135M-Instruct"
SECRET = "FINETUNE_MACHINES_SECRET"
# name -> whether there are two hosts, seconds that a packet is on its way, and the rate.
LINES: dict[str, tuple[bool, float, str]] = {
    "one machine": (False, 0.0, ""),
    "two hosts": (True, 0.0, ""),
    "two hosts, 100 Mbit/s": (True, 0.0, "100mbit"),
    "two hosts, 10 Mbit/s": (True, 0.0, "10mbit"),
    "two hosts, 20 ms each way": (True, 0.02, ""),
}
# A bucket that lets a small adapter through at once is no line of that rate.
BURST = "16k"


@contextmanager
def line(name: str) -> Iterator[Hosts | str | None]:
    """The two hosts of a line; None for one machine, a text with the reason where there can be none."""
    two, seconds, rate = LINES[name]
    if not two:
        yield None
        return
    with hosts.two(seconds) as both:
        if isinstance(both, Hosts) and rate:
            both.slow(rate, BURST)
        elif isinstance(both, Hosts):
            both.free()
        yield both


def commands(both: Hosts | None, config: Path, steps: int) -> list[list[str]]:
    """What each host starts, or the one machine."""
    own = ("--config", config, "--max-steps", str(steps), "--batch-size", "1", "--set=Hardware.NUM_THREADS=1")
    if both is None:
        return [program("", *own, "--set=Hardware.NUM_PROCESSES=2", "--output", config.parent / "m0")]
    meet = f"--set=Hardware.MAIN_PROCESS_ADDRESS={both.address(0)}:29500"
    ranks = [(n, f"--set=Hardware.MACHINE_RANK={n}", "--output", config.parent / f"m{n}") for n in (0, 1)]
    return [both.on(n, *program("", *own, "--set=Hardware.NUM_MACHINES=2", meet, *more)) for n, *more in ranks]


def exchange(both: Hosts | None, model: Path, steps: int) -> dict[str, float]:
    """What the exchange of a training came to, and the bytes that each process sent a step."""
    with tempfile.TemporaryDirectory() as folder:
        config = write_tiny_config(Path(folder), model)
        started = [
            subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                env={**os.environ, SECRET: "of this benchmark alone"},
            )
            for command in commands(both, config, steps)
        ]  # fmt: skip
        said = [one.communicate()[1] for one in started]
        found = list(Path(folder).glob("m0/finetune_*"))
        if not found or "enough" not in said[0]:
            raise SystemExit("\n".join(said))
        log = (found[0] / "finetune.log").read_text(encoding="utf-8")
        (sent,) = re.findall(r"; ([\d.]+ [kMG]?B) of gradients a step take", log)[:1]
        status = json.loads((found[0] / "status.json").read_text(encoding="utf-8"))
        return {**status["stages"]["train"]["exchange"], "sent": sent}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="the lines whose names have this word")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--times", type=int, default=1, help="how often each is measured")
    options = parser.parse_args()
    print("| line | sent a step | reckoned, ms | measured, ms | ratio | of the steps' time | measured line |")
    print("|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        write_tiny_model(Path(folder), SHIPPED)
        for name in LINES:
            for model in (Path(folder), SHIPPED) if options.only in name else ():
                for _ in range(options.times):
                    with line(name) as both:
                        if isinstance(both, str):
                            print(f"| {name} | left out: no network namespaces here ({both}); they need root |")
                            continue
                        got = exchange(both, model, options.steps)
                    reckoned, measured = 1000 * got["reckoned"], 1000 * got["seconds"]
                    print(
                        f"| {name} | {got['sent']} | {reckoned:.3g} | {measured:.3g} | {measured / reckoned:.2f} "
                        f"| {got['share']:.0%} | {got['gbps']:.3g} Gbit/s, {1000 * got.get('delay', 0):.2g} ms |",
                        flush=True,
                    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
