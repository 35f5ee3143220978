"""How fast is LoRA training on this CPU?  python benchmarks/train_speed.py [--rounds 3] [--model DIR] [--data FILE.json]

In turn, each in a process of its own, on the same tokenised rows with the same hyper-parameters:
  ours    this program's trainer with its fast path (training/fast_cpu/fast_loss.py)
  apart   the same, but what rows begin with alike is computed for each of them
  unpacked  the same as ours, on a machine without memory to lay frozen weights out for their products
  torch   the same as ours with the products of float32 by the library that torch takes for them
  trimmed the same as ours, but what memory a step frees goes back to the system
  int8    the same as ours with FAST_CPU = int8
  trl     TRL's SFTTrainer with its defaults: float32 weights, gradient checkpointing, and bf16 autocast where the CPU
          has bf16 units (elsewhere it takes many times as long, and nobody leaves it on)
  tuned   TRL without checkpointing, its weights in bf16 where the CPU has units for it
  bound   nothing but the frozen matrix products, forward and input gradient, of as many tokens as ours has in a
          micro-batch: no LoRA training that computes every token with these products can be faster
and prints tokens a second (padding not counted; steps 3 to the last), peak memory, how much of it is the process's own (of
a file's pages, as those of weights that are read from one, the system can take back what nobody reads), and the last loss.
Shared machines drift: compare within a round, and look at the ratios.

Each way has the environment that its users have; variables that are set already stand.

Without --data the rows are random tokens, 40 to 520 of them, 210 in the mean, which is what short instruction data
looks like. --length N: rows of exactly N tokens. --system N: before each row the same N tokens, which are not trained, as a
system text is. --class AVX2: libraries and kernels are held to a lesser class of CPU than this one is. --shape qwen3-0.6b: a
random model of that shape instead of a folder (llama3-8b: 16 GB of disk, and while it is made as much memory).
--ways ours,trl,...: only these.
"""

# ruff: noqa: E402  what stands between the imports must come before some of them

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[0] = str(ROOT)

from benchmarks import cpu_class
from training.system import before_torch

WAYS = ("ours", "trl", "tuned", "bound")
# Which users of TRL do not set.
OWN = dict.fromkeys(
    ("ours", "apart", "unpacked", "torch", "trimmed", "int8"), before_torch.THREADS | before_torch.CACHES
)
SHAPES = {
    "qwen3-0.6b": {
        "model_type": "qwen3",
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
    "llama3-8b": {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 128256,
        "tie_word_embeddings": False,
    },
}
REFUSED = "refused"  # in place of figures: why there are none
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj"]


def rows(args: argparse.Namespace, vocabulary: int) -> list[dict]:
    """Tokenised rows, input_ids and labels: of a JSON file of instruction/input/output, or random; --system before them."""
    import random

    made, chance = _rows(args, vocabulary), random.Random(1)
    system = [chance.randrange(100, vocabulary or 40_000) for _ in range(args.system)]
    return [{"input_ids": system + row["input_ids"], "labels": [-100] * len(system) + row["labels"]} for row in made]


def _rows(args: argparse.Namespace, vocabulary: int) -> list[dict]:
    import random

    chance = random.Random(0)
    if args.data:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(args.model)
        made = []
        for row in json.loads(Path(args.data).read_text(encoding="utf-8"))[: args.rows]:
            asked = [{"role": "user", "content": "\n".join(filter(None, (row["instruction"], row.get("input"))))}]
            told = [*asked, {"role": "assistant", "content": row["output"]}]
            prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=True)["input_ids"]
            ids = tokenizer.apply_chat_template(told, return_dict=True)["input_ids"][: args.max_length]
            if len(prompt) < len(ids):
                made.append({"input_ids": ids, "labels": [-100] * len(prompt) + ids[len(prompt) :]})
        return made
    made = []
    for _ in range(args.rows):
        length = args.length or min(520, max(40, int(chance.lognormvariate(5.2, 0.55))))
        ids = [chance.randrange(100, vocabulary) for _ in range(length)]
        prompt = int(0.3 * length)
        made.append({"input_ids": ids, "labels": [-100] * prompt + ids[prompt:]})
    return made


def load(args: argparse.Namespace, dtype: str):
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(args.folder or args.model, dtype=getattr(torch, dtype))


def make(args: argparse.Namespace) -> None:
    """A random model of a shape, in a folder: weights are read from a file, as everybody's are."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(**SHAPES[args.shape])
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(args.folder, max_shard_size="2GB")


class OwnMemory(threading.Thread):
    """The most memory that was this process's own, looked at ten times a second (Linux; elsewhere 0)."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most = 0

    def run(self) -> None:
        while True:
            try:
                lines = Path("/proc/self/status").read_text().splitlines()
            except OSError:
                return
            self.most = max(self.most, *(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon")))
            time.sleep(0.1)


def clock() -> Any:
    """A callback that notes when each step ended, and its loss."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.ends: list[float] = []
            self.losses: list[float] = []

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.ends.append(time.perf_counter())

        def on_log(self, _: Any, __: Any, ___: Any, logs: dict | None = None, **____: Any) -> None:
            if logs and "loss" in logs:
                self.losses.append(logs["loss"])

    return Clock()


def prepared(args: argparse.Namespace, data: list[dict], folder: str, noted: Any) -> Any:
    """The trainer of one way (args.way) over these rows, in their order, writing into `folder`."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from trl import SFTConfig, SFTTrainer

    from training.fast_cpu import policy, products
    from training.train import Watch, hooks

    dtype = cpu_class.keep_within().dtype
    micro, accumulation = args.batch
    trainer_class, options = SFTTrainer, {"gradient_checkpointing": False, "bf16": dtype == "bfloat16"}
    if args.way in OWN:
        lengths = [len(row["input_ids"]) for row in data]
        alike = 0 if args.way == "apart" else args.system
        micro, accumulation = policy.regrouped(micro, accumulation, max(lengths), statistics.mean(lengths), alike)
        way = {"in_8_bits": args.way == "int8", "packs": args.way not in ("int8", "unpacked")}
        watch = Watch(folder=Path(folder), fingerprint={}, keep=1, fast=True, **way)
        if args.way == "apart":
            policy.LEAST_SAVED = 1.0
        if args.way == "torch":
            products.chosen = lambda dtype: products.TORCH
        trainer_class = hooks.hooked(SFTTrainer, watch)
    elif args.way == "trl":
        del options["gradient_checkpointing"]
    elif args.way == "float32":
        options["bf16"] = False
    model = load(args, "float32" if args.way in ("trl", "float32") else dtype)
    torch.manual_seed(0)
    model = get_peft_model(model, LoraConfig(r=16, lora_alpha=16, target_modules=TARGETS, task_type="CAUSAL_LM"))
    chosen = SFTConfig(
        output_dir=folder, per_device_train_batch_size=micro, gradient_accumulation_steps=accumulation,
        learning_rate=2e-4, max_steps=args.steps, warmup_steps=2, logging_steps=1, report_to="none",
        save_strategy="no", max_length=None, seed=0, disable_tqdm=True, use_cpu=True, remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True}, train_sampling_strategy="sequential", **options,
    )  # fmt: skip
    return trainer_class(
        model=model, args=chosen, train_dataset=Dataset.from_list(data), processing_class=_tokenizer(args),
        callbacks=[noted],
    )  # fmt: skip


def work(args: argparse.Namespace) -> dict:
    """One way, in this process."""
    config = SHAPES[args.shape] if args.shape else json.loads((Path(args.model) / "config.json").read_text())
    from training.train import heap

    data, noted = rows(args, min(config["vocab_size"], 49_000)), clock()
    if args.way == "bound":
        trained = sum(sum(label != -100 for label in row["labels"]) for row in data)
        return bound(
            config, args.tokens, trained / sum(len(row["labels"]) for row in data), cpu_class.keep_within().dtype
        )
    own = OwnMemory()
    own.start()
    with tempfile.TemporaryDirectory() as folder:
        one = prepared(args, data, folder, noted)
        with heap.kept() if args.way in OWN and args.way != "trimmed" else contextlib.nullcontext():
            one.train()
    if args.way == "int8" and not (one._layers and one._layers.in_8_bits):
        return {REFUSED: "8 bits were not near enough the exact weights on these rows"}
    micro, step = one.args.per_device_train_batch_size, args.batch[0] * args.batch[1]
    tokens = sum(len(data[i % len(data)]["input_ids"]) for i in range(2 * step, args.steps * step))
    return {
        "tokens_per_second": tokens / (noted.ends[-1] - noted.ends[1]),
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "own": own.most,
        "loss": noted.losses[-1],
        "tokens": int(micro * statistics.mean(len(row["input_ids"]) for row in data)),
    }


def _tokenizer(args: argparse.Namespace):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(args.model)


def bound(config: dict, tokens: int, head_share: float, dtype: str, seconds: float = 5.0) -> dict:
    """Tokens a second of the frozen products alone; `head_share` of the tokens, the trained ones, meet the output layer."""
    import torch

    from training.fast_cpu import functions, packed, products

    of = getattr(torch, dtype)
    # As ours has them: others may be slower, and no bound.
    by, packs = products.chosen(of), packed.possible(of)
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    dim = config.get("head_dim") or hidden // config["num_attention_heads"]
    query, keys = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    shapes = [(query, hidden), (keys, hidden), (keys, hidden), (hidden, query)]
    shapes += [(inner, hidden), (inner, hidden), (hidden, inner)]
    made = [(torch.randn(size).to(of), size) for _ in range(config["num_hidden_layers"]) for size in shapes]
    weights = [(packed.packed([weight]) if packs else weight, size) for weight, size in made]
    head = torch.randn(config["vocab_size"], hidden).to(of)
    inputs = {width: torch.randn(tokens, width).to(of) for width in (hidden, query, keys, inner)}
    trained = max(1, int(head_share * tokens))
    room = torch.empty(min(trained, 512), config["vocab_size"], dtype=of)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 4:
        began = time.perf_counter()
        for weight, (weight_out, weight_in) in weights:
            functions.linear(inputs[weight_in], weight, None, by)
            functions.back(inputs[weight_out], weight, by)
        for start in range(0, trained, 512):
            part = inputs[hidden][start : min(trained, start + 512)]
            by.back(by.linear(part, head, None, room[: len(part)]), head, None)
        times.append(time.perf_counter() - began)
    return {"tokens_per_second": tokens / statistics.median(times[1:]), "memory": 0, "tokens": tokens}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--model", default=str(ROOT / "models" / "SmolLM2-135M-Instruct"))
    parser.add_argument("--shape", choices=SHAPES)
    parser.add_argument("--data")
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--length", type=int)
    parser.add_argument("--system", type=int, default=0)
    names = [one.name for one in cpu_class.here()]
    parser.add_argument("--class", dest="cpu", choices=names, default=names[0])
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--batch", default="2x4", type=lambda text: tuple(map(int, text.split("x"))))
    parser.add_argument("--ways", default=",".join(WAYS), type=lambda text: text.split(","))
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--tokens", type=int, default=1024, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way == "make":
        make(args)
    elif args.way:
        print(json.dumps(work(args)))
    else:
        with tempfile.TemporaryDirectory() as folder:
            compare(args, parser, folder)


def compare(args: argparse.Namespace, parser: argparse.ArgumentParser, folder: str) -> None:
    """All ways in turn, each in a process of its own; a random model lies in `folder`."""
    if not args.shape and not Path(args.model).is_dir():
        parser.error(f"{args.model} is not there; ./run.sh --check unpacks the embedded model, --model names another")
    chosen = next(one for one in cpu_class.here() if one.name == args.cpu)
    forced = {} if chosen == cpu_class.here()[0] else {cpu_class.FORCED: args.cpu, **dict(chosen.environ)}
    print(cpu_class.line(chosen))
    this = [sys.executable, __file__, *sys.argv[1:]]
    if args.shape:
        this += ["--folder", folder]
        subprocess.run([*this, "--way", "make"], check=True)
    print(f"{'round':<7}{'way':<10}{'tokens/s':>10}{'of bound':>10}{'GB':>7}{'own':>7}{'loss':>9}")
    found: dict[str, list[float]] = {way: [] for way in args.ways}
    for number in range(1, args.rounds + 1):
        figures = {}
        for way in args.ways:
            tokens = figures.get("ours", {}).get("tokens", args.tokens)
            command = [*this, "--way", way, "--tokens", str(tokens)]
            done = subprocess.run(
                command, stdout=subprocess.PIPE, text=True, check=True, env={**OWN.get(way, {}), **forced, **os.environ}
            )
            figures[way] = json.loads(done.stdout.splitlines()[-1])
        limit = figures.get("bound", {}).get("tokens_per_second")
        for way, figure in figures.items():
            if REFUSED in figure:
                print(f"{number:<7}{way:<10}{figure[REFUSED]}")
                continue
            speed = figure["tokens_per_second"]
            found[way].append(speed)
            share = f"{speed / limit:.2f}" if limit else "-"
            row = f"{number:<7}{way:<10}{speed:>10.0f}{share:>10}"
            if figure["memory"]:
                row += f"{figure['memory'] / 1e9:>7.2f}{figure['own'] / 1e9:>7.2f}{figure['loss']:>9.4f}"
            print(row, flush=True)
    if "ours" in found:
        for way in args.ways[1:]:
            if len(found[way]) < args.rounds:
                continue
            ratios = [ours / other for ours, other in zip(found["ours"], found[way], strict=True)]
            print(f"ours / {way}: {statistics.median(ratios):.2f} (median; {min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
