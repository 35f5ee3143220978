"""A base model in 4 bits, trained by transformers: bitsandbytes has NF4 for the CPU too, so that all but the card is real.

The program trains in 4 bits on a card only. Here one is told to do so on the CPU, and its export is left out.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.support.environments import python_with
from tests.support.faults import STOPPED_AFTER
from tests.support.paths import ROOT
from tests.support.ranks import TWO
from tests.support.tiny import write_tiny_config
from training.system import events

PROGRAM = (
    """
import json, os, runpy, sys
from pathlib import Path
_, root, told, *arguments = sys.argv
sys.path.insert(0, root)
from training.system import before_torch
before_torch.settle()
from training import errors, pipeline
from training.plan import choices
from training.train import callback, loop

decide = choices.decide
choices.decide = lambda *given: decide(*given).with_choice("Quantization.LOAD_IN_4BIT", True, "a test")

"""
    + STOPPED_AFTER
    + """
build = loop.build
def built(loaded, order, session):
    trainer = build(loaded, order, session)
    session.after_build = sorted({str(p.dtype) for p in loaded.model.parameters() if p.requires_grad})
    return trainer
loop.build = built
follow = loop.follow
def followed(loaded, order, session):
    follow(loaded, order, session)
    if not session.first:
        return
    states = session.trainer.optimizer.state.values()
    Path(told).write_text(json.dumps({
        "adapter": session.after_build,
        "moments": sorted({str(state["exp_avg"].dtype) for state in states}),
        "four bits": sum(type(m).__module__.startswith("bitsandbytes") for m in loaded.model.modules()),
    }))
loop.follow = followed
evaluate = pipeline.evaluate_stage
def evaluated(plan, *given):
    if plan.settings.hardware.sharding == "none":
        os._exit(0)
    evaluate(plan, *given)
    raise errors.RunError("evaluate", "enough")
pipeline.evaluate_stage = evaluated
sys.argv = [root + "/training/finetune.py", *arguments]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
)


class Trained:
    """A run in 4 bits, on the disk."""

    def __init__(self, folder: Path, tiny_model: Path, python: Path, dropout: float = 0.1) -> None:
        self.folder, self.python = folder, python
        config = write_tiny_config(folder, tiny_model)
        text = re.sub("EVAL_STEPS = 3\n", f"EVAL_STEPS = 0\n[LoRA]\nLORA_DROPOUT = {dropout}\n", config.read_text())
        config.write_text(text.replace("[Hardware]\n", "[Hardware]\nENGINE = transformers\nFAST_CPU = false\n"))

    def go(self, *arguments: str, **environment: str) -> int:
        command = [self.python, "-c", PROGRAM, ROOT, self.folder / "told.json", *arguments]
        command += ["--config", self.folder / "config.ini"] if "--resume" not in arguments else []
        done = subprocess.run(
            list(map(str, command)), cwd=self.folder, env={**os.environ, **environment}, capture_output=True, text=True
        )
        assert done.returncode in (0, 143) or "error: evaluate: enough\n" in done.stderr, done.stderr
        return 0 if done.returncode == 1 else done.returncode

    @property
    def run(self) -> Path:
        (run,) = [path for path in (self.folder / "outputs").iterdir() if path.is_dir() and not path.is_symlink()]
        return run

    @property
    def losses(self) -> list[float]:
        return [event["loss"] for event in events.read(self.run / "events.jsonl") if event["event"] == "step"]

    @property
    def adapter(self) -> bytes:
        return (self.run / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def python() -> Path:
    return python_with("4bit", [ROOT / "requirements" / "test-4bit.txt"])


@pytest.fixture(scope="module")
def whole(python, tmp_path_factory, tiny_model) -> Trained:
    trained = Trained(tmp_path_factory.mktemp("whole"), tiny_model, python)
    assert trained.go() == 0
    return trained


@pytest.mark.tiny
def test_on_a_base_in_4_bits_the_adapter_and_its_moments_are_float32(whole):
    told = json.loads((whole.folder / "told.json").read_text())
    assert told == {"adapter": ["torch.float32"], "moments": ["torch.float32"], "four bits": 14}


@pytest.mark.tiny
def test_a_run_in_4_bits_that_was_stopped_and_resumed_is_bit_for_bit_the_undisturbed_one(
    whole, python, tmp_path, tiny_model
):
    resumed = Trained(tmp_path, tiny_model, python)
    assert resumed.go(STOP_AT="3") == 143
    assert resumed.go("--resume", str(resumed.run)) == 0
    assert resumed.losses == whole.losses and len(whole.losses) == 6
    assert resumed.adapter == whole.adapter


# Two processes that a model in 4 bits is spread over, layer by layer in their memory: the loss and gradients of one, its
# answers, and how much of the model each of them has.
SPREAD = """
import sys
from pathlib import Path
_, root, folder, rank = sys.argv
sys.path.insert(0, root)
from training.system import before_torch
before_torch.settle()
import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config
from tests.support.plans import a_base_model
from tests.support.settings import a_settings
from training.train import engine, sharding
from training.train.team import Place, Team
rank, folder = int(rank), Path(folder)
torch.set_num_threads(1)
dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), 2), rank=rank, world_size=2)
team = Team(Place(rank=rank, local_rank=rank, size=2, local_size=2))
same = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, vocab_size=97)
for config in (LlamaConfig(**same, tie_word_embeddings=True), Qwen2Config(**same, tie_word_embeddings=False)):
    path = folder / config.model_type
    if rank == 0:
        torch.manual_seed(7)
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(path)
    team.round(0)
    for dora in (False, True):
        asked = a_settings(
            DEVICE="cpu", ENGINE="transformers", PRECISION="bf16", AUTO_FP16_BF16=False, NUM_PROCESSES="2", LOAD_IN_4BIT=True,
            SHARDING="fsdp-offload" if dora else "fsdp", USE_DORA=dora, TARGET_MODULES="q_proj,down_proj",
        )
        load = lambda empty=False: engine.load(a_base_model(path=path), asked, 16, object(), empty).model
        reference, model = load(), load(empty=rank > 0)
        # An adapter that does something.
        for one in (reference, model):
            torch.manual_seed(5)
            for name, value in one.named_parameters():
                if "lora_B" in name and not value.is_meta:
                    value.data.normal_(std=0.02)
        sharding.spread(model, team, asked)
        ids = torch.tensor([[5, 11, 3, 90, 41, 7, 2]])
        def tried(model):
            model.train()
            model.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(input_ids=ids, labels=ids, use_cache=False).loss
            loss.backward()
            return loss.item(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        (loss, gradients), (here, own) = tried(reference), tried(model)
        assert gradients.keys() == own.keys() and loss == here, (config.model_type, dora, loss, here)
        off = [n for n in own if not torch.equal(gradients[n], own[n])]
        assert not off, (config.model_type, dora, off)
        frozen = [p for p in model.parameters() if not p.requires_grad]
        assert sum(p.dtype == torch.uint8 for p in frozen) == 7 * 3, "all linear layers"
        share = sum(p.to_local().numel() for p in frozen) / sum(p.numel() for p in frozen)
        assert 0.45 < share < 0.55, (config.model_type, share)
        if rank:
            sharding.accompany(model, team)
        else:
            with sharding.led(model, team), torch.no_grad():
                for one in (reference, model):
                    one.eval()
                # Else bitsandbytes puts the reference's weights into another order for this CPU.
                for module in reference.modules():
                    module.support_avx512bf16_for_cpu = False
                options = dict(input_ids=ids, max_new_tokens=6, do_sample=False, synced_gpus=False, pad_token_id=0)
                answers = [one.generate(**options) for one in (reference, model)]
            assert torch.equal(*answers), (config.model_type, dora, answers)
        print(config.model_type, dora)
"""


@pytest.mark.slow
def test_a_model_in_4_bits_that_is_spread_has_the_losses_gradients_and_answers_of_one_process(python, tmp_path):
    command = [python, "-c", SPREAD, ROOT, tmp_path]
    both = [
        subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    try:
        told = [one.communicate(timeout=240) for one in both]
        assert [one.returncode for one in both] == [0, 0], "\n".join(trouble for _, trouble in told)
        assert [len(said.splitlines()) for said, _ in told] == [4, 4]
    finally:
        for one in both:
            one.kill()


@pytest.mark.tiny
def test_a_spread_run_in_4_bits_that_was_stopped_and_resumed_has_the_losses_and_files_of_one_process(
    python, tmp_path_factory, tiny_model
):
    alone, spread = (Trained(tmp_path_factory.mktemp(name), tiny_model, python, 0) for name in ("alone", "spread"))
    assert alone.go() == 0
    asked = ("Hardware.SHARDING=fsdp", "Training.GRADIENT_CHECKPOINTING=true")
    assert spread.go(*TWO, *(word for one in asked for word in ("--set", one)), STOP_AT="3") == 143
    assert spread.go("--resume", str(spread.run)) == 0
    assert json.loads((spread.folder / "told.json").read_text())["four bits"] == 14
    assert spread.losses == pytest.approx(alone.losses, rel=1e-3) and len(spread.losses) == 6
    names = [
        {path.relative_to(one.run / "adapter") for path in (one.run / "adapter").iterdir()} for one in (alone, spread)
    ]
    assert names[0] == names[1]
    report = (spread.run / "finetune.log").read_text(encoding="utf-8")
    assert "evaluation on rows that were not trained on: " in report
