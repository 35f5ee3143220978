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
from training import pipeline
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
    states = session.trainer.optimizer.state.values()
    Path(told).write_text(json.dumps({
        "adapter": session.after_build,
        "moments": sorted({str(state["exp_avg"].dtype) for state in states}),
        "four bits": sum(type(m).__module__.startswith("bitsandbytes") for m in loaded.model.modules()),
    }))
loop.follow = followed
pipeline.evaluate_stage = lambda *given: os._exit(0)
sys.argv = [root + "/training/finetune.py", *arguments]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
)


class Trained:
    """A run in 4 bits, on the disk."""

    def __init__(self, folder: Path, tiny_model: Path, python: Path) -> None:
        self.folder, self.python = folder, python
        config = write_tiny_config(folder, tiny_model)
        quick = "EVAL_STEPS = 0\n[Hardware]\nENGINE = transformers\nFAST_CPU = false\n[LoRA]\nLORA_DROPOUT = 0.1\n"
        config.write_text(re.sub("EVAL_STEPS = 3\n", quick, config.read_text()))

    def go(self, *arguments: str, **environment: str) -> int:
        command = [self.python, "-c", PROGRAM, ROOT, self.folder / "told.json", *arguments]
        command += ["--config", self.folder / "config.ini"] if "--resume" not in arguments else []
        done = subprocess.run(
            list(map(str, command)), cwd=self.folder, env={**os.environ, **environment}, capture_output=True, text=True
        )
        assert done.returncode in (0, 143), done.stderr
        return done.returncode

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
