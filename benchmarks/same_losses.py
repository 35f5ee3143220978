"""Does the fast path train the same?  python benchmarks/same_losses.py --data FILE.json [--steps 50] [--max-length 128]

The same rows in the same order, LoRA rank 16 on q, k, v, o, from the same start, in a process each:
  float32  TRL with float32 weights and no autocast: the reference
  trl      TRL's SFTTrainer with its defaults: bf16 autocast over float32 weights
  ours     this program's trainer with its fast path, bf16
Prints how far the losses of the steps are from the reference's, relative, and the loss of rows not trained on, before and
after, computed with each way's adapter over the reference's model, in float32. FILE: a list of instruction/input/output;
the last 32 rows of those used are held out.
"""

# ruff: noqa: E402  what stands between the imports must come before some of them

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[0] = str(ROOT)

from benchmarks import train_speed

HELD_OUT = 32
WAYS = ("float32", "trl", "ours")


def work(args: argparse.Namespace) -> dict:
    """One way, in this process: the losses of its steps, and of the held-out rows before and after."""
    from peft import PeftModel

    data = train_speed.rows(args, 0)
    held_out, data = data[-HELD_OUT:], data[:-HELD_OUT]
    noted = train_speed.clock()
    with tempfile.TemporaryDirectory() as folder:
        one = train_speed.prepared(args, data, folder, noted)
        one.train()
        one.model.save_pretrained(folder)
        judge = PeftModel.from_pretrained(train_speed.load(args, "float32"), folder).eval()
    with judge.disable_adapter():
        before = loss(judge, held_out)
    return {"losses": noted.losses, "before": before, "after": loss(judge, held_out)}


def loss(model: Any, rows: list[dict]) -> float:
    """The mean cross-entropy of the trained tokens of all rows, one row at a time."""
    import torch

    total, count = 0.0, 0
    for row in rows:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, :-1].float()
        total += float(torch.nn.functional.cross_entropy(logits, labels[1:], ignore_index=-100, reduction="sum"))
        count += int((labels[1:] != -100).sum())
    return total / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--model", default=str(ROOT / "models" / "SmolLM2-135M-Instruct"))
    parser.add_argument("--max-length", type=int, default=128, help="tokens, to which rows are cut")
    parser.add_argument("--way", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.batch, args.shape, args.length, args.system = (2, 4), None, None, 0
    args.rows = 8 * args.steps + HELD_OUT
    if args.way:
        print(json.dumps(work(args)))
        return
    found = {}
    for way in WAYS:
        command = [sys.executable, __file__, *sys.argv[1:], "--way", way]
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, check=True, env={**train_speed.OWN.get(way, {}), **os.environ}
        )
        found[way] = json.loads(done.stdout.splitlines()[-1])
    steps = found["float32"]["losses"]
    print(
        f"{'way':<9}{'first':>8}{'last':>8}{'off, mean':>11}{'off, most':>11}{'held out':>10}{'after':>8}{'against float32':>17}"
    )
    for way, one in found.items():
        off = [abs(mine / reference - 1) for mine, reference in zip(one["losses"], steps, strict=True)]
        against = one["after"] / found["float32"]["after"] - 1
        print(
            f"{way:<9}{one['losses'][0]:>8.4f}{one['losses'][-1]:>8.4f}{statistics.mean(off):>11.2%}{max(off):>11.2%}"
            f"{one['before']:>10.4f}{one['after']:>8.4f}{against:>+17.2%}"
        )


if __name__ == "__main__":
    main()
