"""What a run leaves in its directory."""

from __future__ import annotations

from pathlib import Path

from training.runs.checkpoint import Carried, Manifest
from training.system import events

RUN_FILES = {
    "Modelfile", "adapter/README.md", "adapter/adapter_config.json", "adapter/adapter_model.safetensors", "config.ini", "events.jsonl",
    "finetune.log", "merged/README.md", "merged/chat_template.jinja", "merged/config.json", "merged/generation_config.json",
    "merged/model.safetensors", "merged/tokenizer.json", "merged/tokenizer_config.json", "report.html", "report.json",
    "report.md", "rows.csv", "status.json", "tiny.Q4_K_M.gguf",
}  # fmt: skip


def a_manifest(step: int, **known: object) -> Manifest:
    """The manifest of a checkpoint that is to be written."""
    some = {"files": {}, "fingerprint": {}, "micro_batch": (1, 1), "carried": Carried()}
    return Manifest(step=step, **{**some, **known})


def files_of(run: Path) -> set[str]:
    """The files of a run, without what checkpoints/ holds."""
    found = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    return {name for name in found if not name.startswith("checkpoints/")}


def losses(run: Path) -> dict[int, float]:
    """The loss of each step; of a step that was done twice, the last one."""
    return {e["step"]: e["loss"] for e in events.read(run / "events.jsonl") if e["event"] == "step"}


def put_adapter(run: Path) -> None:
    """The names of an adapter's files, in a run that nobody looks into."""
    (run / "adapter").mkdir(parents=True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (run / "adapter" / name).touch()
