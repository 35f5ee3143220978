"""Checkpoints: complete folders `checkpoints/checkpoint-N`, each with a manifest that proves it whole.

The manifest (checkpoint.json) is written last into the folder, before the folder gets its name: it holds the SHA-256
of every file, the fingerprint of the run, and what the trainer itself does not keep.
"""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loguru import logger

from training.base_model import base_files
from training.errors import UserError
from training.system import files, privacy, wire

MANIFEST = "checkpoint.json"
BASE = "base model file "  # the beginning of a field of the fingerprint, before the file's name
NOT_COMPARED = {  # settings that change neither the losses nor the adapter
    "Model.NEW_MODEL_NAME",
    "Training.OUTPUT_DIR",
    "Training.LOGGING_STEPS",
    "Training.SAVE_STEPS",
    "Training.SAVE_TOTAL_LIMIT",
    "Training.SAMPLE_STEPS",
    "Training.REPORT_TO",
    "Training.REPORT_PROJECT",
    "Training.REPORT_NAME",
    "Training.FAIL_IF_WORSE",
    "Training.PER_DEVICE_TRAIN_BATCH_SIZE",  # their product counts: "effective batch"
    "Training.GRADIENT_ACCUMULATION_STEPS",
    "Hardware.MACHINE_RANK",
    "Hardware.MAIN_PROCESS_ADDRESS",
    "Dataset.DATASET_FILE",  # its content counts: "data SHA-256"
    "Dataset.VALIDATION_FILE",
}


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint: its folder, its optimizer step, and the manifest."""

    path: Path
    step: int
    manifest: dict[str, Any]


def fingerprint(settings: Any, data_sha256: str, base: Any, template: str) -> dict[str, Any]:
    """What must be equal for a resumed run to give the losses of an undisturbed one, field by field."""
    every = {f"{section}.{key}": value for section, keys in settings.as_dict().items() for key, value in keys.items()}
    kept = {
        key: value
        for key, value in every.items()
        if key not in NOT_COMPARED
        and not key.startswith("Quantization.QUANTIZATION")
        and not key.startswith("Quantization.KEEP")
    }
    return kept | {
        "effective batch": settings.rows_a_step,
        "data SHA-256": data_sha256,
        "base model revision": base.revision,
        "chat template": template,
        **{f"{BASE}{name}": digest for name, digest in base_files.of(base).items()},
    }


def kept(marks: dict[str, Any]) -> dict[str, Any]:
    """A fingerprint as it is written down: of a text with a secret in it, what can be shown and a digest of all of it."""
    return {field: _kept(value) for field, value in json.loads(json.dumps(marks, default=str)).items()}


def _kept(value: Any) -> Any:
    shown = privacy.hidden(value)
    return value if shown == value else f"{shown}{_digest_of(value)}"


def _digest_of(value: Any) -> str:
    return f" (SHA-256 {hashlib.sha256(str(value).encode('utf-8', 'replace')).hexdigest()[:8]})"


def _equal(stored: Any, current: Any) -> bool:
    """Whether a field of a fingerprint is what was written down; another environment may have had other secrets."""
    return stored == current or (isinstance(stored, str) and stored.endswith(_digest_of(current)))


def refuse_mismatch(stored: dict[str, Any], current: dict[str, Any]) -> None:
    """Raise UserError naming every field in which a run (`kept`) and the attempt to resume it differ."""
    stored = json.loads(json.dumps(stored, default=str))
    current = json.loads(json.dumps(current, default=str))
    if not any(field.startswith(BASE) for field in stored):  # a run from before they were kept
        current = {field: value for field, value in current.items() if not field.startswith(BASE)}
    problems = [
        _difference(field, stored.get(field), current.get(field))
        for field in sorted({*stored, *current})
        if not _equal(stored.get(field), current.get(field))
    ]
    if problems:
        raise UserError(
            [*problems, "put it back as it was, or start a new run with --fresh"], "this run cannot be resumed"
        )


def _difference(field: str, before: Any, now: Any) -> str:
    if not field.startswith(BASE):
        return f"{field} = {_kept(before)!r} in the run, {_kept(now)!r} now"
    how = "has gone" if now is None else "has come" if before is None else "has changed"
    return f"{field.removeprefix(BASE)} of the base model {how} since the run began"


@contextmanager
def writing(folder: Path, step: int, manifest: dict[str, Any]) -> Iterator[Path]:
    """Give a folder to write a checkpoint's files to; it becomes `checkpoint-<step>` when the block ends well."""
    with files.whole_folder(folder / f"checkpoint-{step}") as partial:
        yield partial
        written = {p.name: files.sha256(p) for p in sorted(partial.iterdir()) if p.is_file()}
        manifest = {name: kept(value) if name == "fingerprint" else value for name, value in manifest.items()}
        files.write_json(partial / MANIFEST, {"v": 1, "step": step, "files": written, **manifest})


def newest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole; damaged ones are named in the log and passed over."""
    numbered = [p for p in folder.glob("checkpoint-*") if p.name.removeprefix("checkpoint-").isdigit()]
    for path in sorted(numbered, key=lambda p: int(p.name.removeprefix("checkpoint-")), reverse=True):
        damage = _damage(path)
        if damage is None:
            manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
            return Checkpoint(path, int(manifest["step"]), manifest)
        logger.warning("{} is damaged ({}); the one before it is used", path.name, damage)
    return None


def told(found: Checkpoint | None) -> list[Any] | None:
    """A checkpoint as ranks may tell it to each other."""
    return None if found is None else [str(found.path), found.manifest]


def heard(said: Any) -> Checkpoint | None:
    """What `told` was given. Raises RunError where it is nothing of the kind: its files' names become paths."""
    if said is None:
        return None
    try:
        path, manifest = said
        plain = all(Path(name).name == name and name not in ("", "..") for name in manifest["files"])
        if not plain or type(manifest["step"]) is not int or not isinstance(manifest["carried"], dict):
            raise ValueError
        micro, accumulation = manifest["micro_batch"]
        if not isinstance(manifest["fingerprint"], dict) or type(micro) is not int or type(accumulation) is not int:
            raise ValueError
        return Checkpoint(Path(path), manifest["step"], manifest)
    except (KeyError, TypeError, ValueError):
        raise wire.refused("what another process sends is no checkpoint") from None


def _digest(path: Path) -> str:
    """The SHA-256 of a file; hashed once as long as nobody writes to it, for a checkpoint is looked at several times."""
    found = path.stat()
    return _hashed(path, found.st_ino, found.st_size, found.st_mtime_ns)


@functools.cache
def _hashed(path: Path, *_identity: int) -> str:
    return files.sha256(path)


def _damage(path: Path) -> str | None:
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        for name, digest in manifest["files"].items():
            if not (path / name).is_file():
                return f"{name} is missing"
            if _digest(path / name) != digest:
                return f"{name} has changed or is cut short"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{MANIFEST}: {error}"
    return None


def rotate(folder: Path, keep: int, newest: int) -> None:
    """Remove the oldest checkpoints beyond `keep` (0 keeps all), and what a killed process left half-written.

    `newest` is the step just written: one with a higher number was damaged, or belongs to a future that was given up.
    """
    for leftover in folder.glob(f"checkpoint-*{files.PARTIAL}"):
        shutil.rmtree(leftover, ignore_errors=True)
    numbered = sorted(
        (p for p in folder.glob("checkpoint-*") if p.name.removeprefix("checkpoint-").isdigit()),
        key=lambda p: int(p.name.removeprefix("checkpoint-")),
    )
    later = [path for path in numbered if int(path.name.removeprefix("checkpoint-")) > newest]
    kept = [path for path in numbered if path not in later]
    for path in [*later, *(kept[:-keep] if keep else [])]:
        shutil.rmtree(path, ignore_errors=True)


def where(folder: Path) -> str:
    """What is safe, in words, for the end of an error message."""
    found = newest(folder)
    if found is None:
        return "no checkpoint was written yet; nothing else was changed"
    return f"the checkpoint of step {found.step} is safe in {found.path}; `./run.sh --resume {folder.parent}` goes on from it"
