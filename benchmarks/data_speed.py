"""How fast are rows read and tokenised, and in how much memory?  python benchmarks/data_speed.py [--rows 10000 100000]

Makes rows in a temporary folder and takes them, in turn and each in a process of its own, through our `dataset.load` +
`tokens.tokenise`, and through `datasets.load_dataset` + `map` of the same tokenizer's chat template. `--form`: rows of
messages as JSON lines, of instruction and output as JSON lines, or the latter as CSV. Ours does more on the way: it checks every
row, names bad ones, looks for private things, for duplicates and near ones and for questions with two answers, and marks what
is trained (and leaves out what a template puts behind the last end token, so that the tokens differ by one a row). The order
of the two changes from round to round.
Memory is looked at four times a second, over the process and its workers, what they share counted once: "own" is the
peak of what they hold themselves (anonymous memory), "with files" the peak of that and of the pages of mapped files that
happen to be in memory, which the system takes back when it likes. CPU is that of all of them, imports left out: on a
machine that others use, too, it says more than the time. Linux only (/proc).
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import random
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

WAYS = ("ours", "datasets")
FORMS = ("messages", "instruction", "csv")
WORDS, SIGNS = 200_000, 3_000  # different words of the English rows, different characters of the Chinese ones
SYLLABLES = tuple(
    a + b for a in ("", *"bcdfghklmnprstvw", "ch", "sh", "th", "st") for b in ("a", "e", "i", "o", "u", "ea")
)


def make(path: Path, count: int, form: str = "messages", size: float = 1) -> None:
    """Write `count` rows of one question and one answer, about `size` kB each, seeded; no two are alike, every fourth is Chinese.

    Words come about as often as they do in natural text: a thousand are two thirds of it, and new ones never end.
    """
    chance = random.Random(3407)
    words = ["".join(chance.choices(SYLLABLES, k=1 + (rank > 50) + (rank > 2000))) for rank in range(WORDS)]
    words = [word + chance.choice("snrdt,.") if chance.random() < 0.5 else word for word in words]
    signs = [chr(0x4E00 + number) for number in chance.sample(range(20_000), SIGNS)]
    kinds = [(pool, list(itertools.accumulate((n + 3) ** -1.15 for n in range(len(pool))))) for pool in (words, signs)]

    def text(kind: int, size: int) -> str:
        pool, weights = kinds[kind]
        found = chance.choices(pool, cum_weights=weights, k=size)
        lines = [found[at : at + 60] for at in range(0, size, 60)]
        return "\n\n".join(("，" if kind else " ").join(_phrases(line) if kind else line) for line in lines)

    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        if form == "csv":
            table.writerow(["instruction", "output"])
        for number in range(count):
            kind = int(number % 4 == 0)
            question, answer = (text(kind, chance.randint(5, max(6, int(most * size)))) for most in (60, 300))
            turns = [("user", f"{number}: {question}?"), ("assistant", f"{answer}.")]
            if form == "csv":
                table.writerow([said for _, said in turns])
                continue
            row: dict[str, Any] = {"messages": [{"role": role, "content": content} for role, content in turns]}
            if form == "instruction":
                row = {"instruction": turns[0][1], "output": turns[1][1]}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _phrases(signs: list[str]) -> list[str]:
    return ["".join(signs[at : at + 12]) for at in range(0, len(signs), 12)]


def ours(path: Path, room: Path, workers: int) -> dict[str, float]:
    """Seconds of reading and of tokenising, and the tokens, through the program's own modules."""
    import datasets  # noqa: F401 (its import is no part of the measurement, on either way)

    from training import settings
    from training.data import chat_template, dataset, tokenising
    from training.settings import Override

    base, tokenizer = _model()
    overrides = [
        ("Dataset", "DATASET_FILE", str(path)),
        ("Dataset", "VALIDATION_FILE", ""),
        ("Dataset", "VALIDATION_SPLIT", "0"),
    ]
    root = Path(__file__).resolve().parent.parent
    given = settings.load(root / "config.ini", [Override(*item, item[1]) for item in overrides])
    template = chat_template.choose(base, given, tokenizer)
    MEASURED.set()
    started, before = time.monotonic(), _cpu()
    data = dataset.load(given, room)
    read = time.monotonic()
    made, bad = tokenising.tokenise(data.train, template, tokenizer, 4096, "all", "completion", room, workers)
    ended = time.monotonic()
    cpu = _cpu() - before
    assert not bad
    return {"read": read - started, "tokenise": ended - read, "cpu": cpu, "tokens": _total(made, "length")}


def plainly(path: Path, room: Path, workers: int) -> dict[str, float]:
    """The same with load_dataset and map, as most training scripts do it."""
    import datasets

    _, tokenizer = _model()

    def encode(batch: dict[str, list]) -> dict[str, list]:
        ids = tokenizer.apply_chat_template(
            batch["messages"] if "messages" in batch else talks(batch),
            tokenize=True,
            return_dict=True,
            truncation=True,
            max_length=4096,
        )["input_ids"]
        return {"input_ids": ids, "length": [len(one) for one in ids]}

    def talks(batch: dict[str, list]) -> list[list[dict[str, str]]]:
        pairs = zip(batch["instruction"], batch["output"], strict=True)
        return [[{"role": "user", "content": one}, {"role": "assistant", "content": two}] for one, two in pairs]

    MEASURED.set()
    started, before = time.monotonic(), _cpu()
    kind = "csv" if path.suffix == ".csv" else "json"
    data = datasets.load_dataset(kind, data_files=str(path), split="train", cache_dir=str(room))
    read = time.monotonic()
    made = data.map(encode, batched=True, remove_columns=data.column_names, num_proc=workers if workers > 1 else None)
    ended = time.monotonic()
    cpu = _cpu() - before
    return {"read": read - started, "tokenise": ended - read, "cpu": cpu, "tokens": _total(made, "length")}


def _model() -> tuple[Any, Any]:
    from transformers import AutoTokenizer

    from training import base_model
    from training.base_model import sources
    from training.settings.table import Model

    base = base_model.locate(Model(base_model_name=sources.EMBEDDED))
    return base, AutoTokenizer.from_pretrained(base.path)


def _total(data: Any, column: str) -> int:
    import numpy as np

    return int(np.asarray(data.with_format("numpy")[column][:]).sum())


MEASURED = threading.Event()  # what was imported and loaded before is no part of the measurement


def measure(way: str, path: Path, room: Path, workers: int) -> None:
    """Do it once in this process and print the figures as JSON."""
    own = everything = 0
    done = threading.Event()

    def watch() -> None:
        nonlocal own, everything
        MEASURED.wait()
        while not done.wait(0.25):
            now = [_memory(process) for process in _family(os.getpid())]
            own, everything = max(own, sum(one for one, _ in now)), max(everything, sum(one for _, one in now))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        found = (ours if way == "ours" else plainly)(path, room, workers)
    finally:
        done.set()
        MEASURED.set()
        watcher.join()
    print(json.dumps({**found, "own": own, "everything": everything}))


def _family(process: int) -> list[int]:
    """A process and all that it started."""
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:  # it has ended
        return []
    return [process, *(one for child in children for one in _family(int(child)))]


def _memory(process: int) -> tuple[int, int]:
    """Bytes that a process holds itself, and with its part of mapped files."""
    try:
        rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
    except OSError:
        return 0, 0
    return tuple(int(re.search(rf"{name}:\s+(\d+)", rollup)[1]) * 1024 for name in ("Pss_Anon", "Pss"))


def _cpu() -> float:
    """CPU seconds of this process and of its workers that have ended."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def in_a_process(way: str, path: Path, workers: int) -> dict[str, float]:
    """`measure` in a process of its own, with caches of its own that are removed again."""
    with tempfile.TemporaryDirectory(dir=path.parent) as room:
        command = [sys.executable, str(Path(__file__).resolve()), "--measure", way, str(path), room, str(workers)]
        quiet = {"HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": room}
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **quiet})
    if done.returncode:
        raise SystemExit(f"{way}: ended with {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    cores = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0].partition("  ")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000], help="a million is about 1 GB")
    parser.add_argument("--form", choices=FORMS, default=FORMS[0])
    parser.add_argument("--size", type=float, default=1, help="kB a row, about; 1 by default")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--workers", type=int, default=cores, help=f"processes that tokenise; {cores} by default")
    args = parser.parse_args()
    print(f"{args.workers} worker{'s' * (args.workers != 1)}")
    print(
        f"{'rows':<11}{'way':<10}{'read s':>8}{'tokenise s':>12}{'rows/s':>9}{'CPU ms/row':>12}{'tokens':>13}"
        f"{'own MB':>9}{'with files MB':>15}",
        flush=True,
    )
    for rows in args.rows:
        compare(rows, args.form, args.size, args.rounds, args.workers)


def compare(rows: int, form: str, size: float, rounds: int, workers: int) -> None:
    """A line of the table for each way and round, and how they compare."""
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("rows.csv" if form == "csv" else "rows.jsonl")
        make(path, rows, form, size)
        for number in range(rounds):
            speeds, costs = {}, {}
            for way in WAYS if number % 2 == 0 else WAYS[::-1]:
                found = in_a_process(way, path, workers)
                speeds[way] = rows / (found["read"] + found["tokenise"])
                costs[way] = found["cpu"]
                print(
                    f"{rows:<11,}{way:<10}{found['read']:>8.1f}{found['tokenise']:>12.1f}{speeds[way]:>9.0f}"
                    f"{1000 * found['cpu'] / rows:>12.2f}{found['tokens']:>13,}{found['own'] / 1e6:>9.0f}"
                    f"{found['everything'] / 1e6:>15.0f}",
                    flush=True,
                )
            ratios.append((speeds["ours"] / speeds["datasets"], costs["datasets"] / costs["ours"]))
    fast, cheap = (statistics.median(each) for each in zip(*ratios, strict=True))
    print(f"ours against datasets: {fast:.2f} of the rows/s, {cheap:.2f} of the rows for the same CPU", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]), int(sys.argv[5]))
    else:
        main()
