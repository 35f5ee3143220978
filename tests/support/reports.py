"""Reports of runs that went well, badly, or were never meant to."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from training.checks import Outcome
from training.evaluation import Score
from training.report import Report
from training.report.schema import (
    Artefact,
    BaseFacts,
    DataFacts,
    DataFile,
    Quantised,
    RunFacts,
    Sample,
    TrainingFacts,
)

HOSTILE = (
    "<script>document.title='owned'</script><img src=x onerror=alert(1)>\"'`|\n# not a heading\n```\n\x1b[31m\u202e"
)


def good(run: Path, **changes: Any) -> Report:
    """A run that went well, with every part filled in."""
    made = Report(
        name="my-assistant",
        run=RunFacts("finetune_20261121_101500", str(run), "completed", 1e9, 1e9 + 312, {"training": 281.4}),
        base=BaseFacts("embedded/SmolLM2-135M-Instruct", "embedded", "1", 134_515_008, 1_843_200, 8192),
        settings={"Model": {"BASE_MODEL_NAME": "embedded/SmolLM2-135M-Instruct"}, "LoRA": {"R": 8}},
        differences=(("LoRA.R", 8, 16, "config.ini:14"),),
        choices=(("Training.OPTIM", "adamw_torch", "no CUDA device"),),
        seed=3407,
        versions={"torch": "2.13.0"},
        machine={"CPU": "two cores"},
        data=DataFacts(
            (DataFile("/data/train_data.jsonl", "training", "ab" * 32, 4400, 144),),
            {"training": 144, "validation": 24},
            tokens=9211,
            percentiles={"50": 61, "100": 131},
        ),
        training=TrainingFacts(60, 60, 3.3, 3.18, 1.01, 1.01, 60, False, 412.3, 2_140_000_000),
        samples=(Sample("Who are you?", "I am SmolLM.", "我是 my-assistant。", True),),
        scores=(Score("chrF", 12.1, 61.2, 60.4, 44.0, 54.1, 24, "better"),),
        quantised=(Quantised("my-assistant.Q4_K_M.gguf", "q4_k_m", 105_454_432, 0.02, 0.943, 12.4, "30 tensors q5_0"),),
        checks=(
            Outcome("merged = base + update", True, {"tensors": 120}, "bf16 rounding", "", 3.2),
            Outcome("logits", None, why="not enough memory"),
        ),
        artefacts=(
            Artefact("adapter/adapter_model.safetensors", 7_400_000, "ef" * 32),
            Artefact("my-assistant.Q4_K_M.gguf", 105_454_432, "77" * 32),
        ),
        warnings=("2 of 5 answers did not stop by themselves",),
    )
    return dataclasses.replace(made, **changes)


def in_state(made: Report, state: str, **changes: Any) -> Report:
    return dataclasses.replace(made, run=dataclasses.replace(made.run, state=state, **changes))


def write_events(run: Path, *items: dict[str, Any] | str) -> Path:
    lines = [item if isinstance(item, str) else json.dumps({"v": 1, **item}) for item in items]
    path = run / "events.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def step(number: int, loss: float | None = 1.0, **more: Any) -> dict[str, Any]:
    return {"event": "step", "step": number, "total": 60, "loss": loss, "learning_rate": 1e-4, **more}


def evaluation(number: int, loss: float) -> dict[str, Any]:
    return {"event": "evaluation", "at_step": number, "loss": loss}


def hostile(value: Any) -> Any:
    """A copy of a record in which every text is hostile; the state stays, for the code decides by it."""
    if dataclasses.is_dataclass(value):
        changed = {item.name: hostile(getattr(value, item.name)) for item in dataclasses.fields(value)}
        return type(value)(**{**changed, **({"state": value.state} if isinstance(value, RunFacts) else {})})
    if isinstance(value, tuple):
        return tuple(hostile(item) for item in value)
    if isinstance(value, dict):
        return {HOSTILE + str(key): hostile(item) for key, item in value.items()}
    return HOSTILE if isinstance(value, str) else value
