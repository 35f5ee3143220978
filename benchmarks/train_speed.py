"""How fast is training, with and without the fast path for CPUs?  python benchmarks/train_speed.py [--rounds 2] [--steps 8]

Starts the program itself in turn with FAST_CPU = true and false on the shipped model and rows, stops it after a few
steps, and prints tokens a second (real prompt and answer tokens, optimizer included), peak memory, and the ratio of each
round: compare within a round only, for shared machines drift.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def measure(fast: bool, steps: int, more: list[str]) -> dict[str, float]:
    """Median tokens a second over steps 3 to `steps`, and peak memory in GB, of one run of the program."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "training" / "finetune.py"), "--events", "--output", folder]
        command += ["--set", f"Hardware.FAST_CPU={'true' if fast else 'false'}", *more]
        run = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        speeds, memory = [], 0
        for line in run.stdout:
            event = json.loads(line)
            if event["event"] == "step":
                memory = max(memory, event["peak_memory"])
                if event["step"] > 2:
                    speeds.append(event["tokens_per_second"])
                if event["step"] == steps:
                    run.send_signal(signal.SIGTERM)
                    break
        _, said = run.communicate()
        if len(speeds) < steps - 2:
            raise SystemExit(said)
    return {"tokens_per_second": statistics.median(speeds), "peak_memory_gb": memory / 1e9}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=8)
    args, more = parser.parse_known_args()
    print(f"{'round':<7}{'plain tok/s':>12}{'fast tok/s':>12}{'ratio':>8}{'plain GB':>10}{'fast GB':>9}")
    ratios = []
    for number in range(1, args.rounds + 1):
        plain, fast = (measure(way, args.steps, more) for way in (False, True))
        ratios.append(fast["tokens_per_second"] / plain["tokens_per_second"])
        print(
            f"{number:<7}{plain['tokens_per_second']:>12.0f}{fast['tokens_per_second']:>12.0f}{ratios[-1]:>8.2f}"
            f"{plain['peak_memory_gb']:>10.2f}{fast['peak_memory_gb']:>9.2f}",
            flush=True,
        )
    print(f"median ratio {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
