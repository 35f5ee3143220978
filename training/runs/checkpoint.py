"""Checkpoints: complete folders `checkpoints/checkpoint-N`, each with a manifest that proves it whole.

The manifest (checkpoint.json) is written last into the folder, before the folder gets its name: it holds the SHA-256
of every file, the fingerprint of the run, and what the trainer itself does not keep.
"""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from loguru import logger

from training.base_model import BaseModel, base_files
from training.base_model.lora_adapter import CONFIG, WEIGHTS
from training.errors import UserError
from training.runs import pickled, processes
from training.runs.directory import ADAPTER, CHECKPOINTS, Run
from training.settings import Settings
from training.settings.table import TABLE
from training.system import files, foreign_json, privacy, shell, wire
from training.system.foreign_json import COUNT, NUMBER, OBJECT, OBJECTS, Damaged

MANIFEST, VERSION = "checkpoint.json", 1
TRAINER_STATE = "trainer_state.json"
TRAINER_KINDS = {
    **dict.fromkeys(("global_step", "max_steps", "num_train_epochs"), COUNT),
    "train_batch_size": COUNT.or_none(),
    **dict.fromkeys(("epoch", "total_flos"), NUMBER.or_none()),
    "log_history": OBJECTS,
    "stateful_callbacks": OBJECT,
}
# Of the fingerprint: in which order the parameters and arguments of functions stand; AS_HANDED in runs of older versions.
FUNCTIONS, BY_NAME, AS_HANDED = "functions", "in the order of their names", "in the order of the rows"
BASE = "base model file "  # the beginning of a field of the fingerprint, before the file's name
# Settings that change neither the losses nor the adapter.
NOT_COMPARED = {
    "Model.NEW_MODEL_NAME",
    "Model.REVISION",  # the commit that it means counts: "base model revision"
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
    "Hardware.MAX_RESTARTS",
    "Hardware.MAIN_PROCESS_ADDRESS",
    "Hardware.LINK_GBPS",
    "Dataset.DATASET_FILE",  # its content counts: "data SHA-256"
    "Dataset.VALIDATION_FILE",
    "Dataset.TEST_FILE",
    "Dataset.REPLAY_FILE",
}


@dataclass(kw_only=True)
class Carried:
    """What the training has found out, and goes on with when it is resumed. None: not yet known."""

    # The way to the loss on a CPU that has proved equal: "layers", "head" or "none".
    fast_path: str | None = None
    # Of the layers: rows that begin alike are computed once. Not so in runs that older versions began.
    shares: bool = False
    # And whose matrix products were the quickest there. None, as in runs of older versions: torch's own.
    products: str | None = None
    # Validation losses: of the base model, and of the last evaluation, which was at this step.
    before: float | None = None
    after: float | None = None
    evaluated_at: int | None = None
    best_loss: float | None = None
    best_step: int | None = None
    worse: int = 0  # evaluations since the best one
    stopped_early: bool = False
    # The first step of the warm-up has a learning rate above 0. Not so in runs that older versions began.
    rises_at_once: bool = False

    def as_dict(self) -> dict[str, object]:
        """What is known, as JSON has it."""
        known = {name: value for name, value in asdict(self).items() if value is not None and value is not False}
        if self.best_loss is None:
            del known["worse"]
        return known

    @classmethod
    def read(cls, value: object) -> Carried:
        """What `as_dict` gave. Raises ValueError where it is nothing of the kind."""
        if not isinstance(value, Mapping):
            raise ValueError("what it carries is no table")
        known = {field.name: value[field.name] for field in fields(cls) if field.name in value}
        for name, one in known.items():
            if type(one) not in _KINDS[name]:
                raise ValueError(f"{name} is no {_KINDS[name][0].__name__}")
        return cls(**known)


_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("fast_path", "products"), (str,)),
    **dict.fromkeys(("before", "after", "best_loss"), (float, int)),
    **dict.fromkeys(("evaluated_at", "best_step", "worse"), (int,)),
    **dict.fromkeys(("shares", "stopped_early", "rises_at_once"), (bool,)),
}


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a checkpoint's folder says of itself: its files, and what the trainer itself does not keep."""

    step: int
    files: Mapping[str, str]  # name -> SHA-256
    fingerprint: Mapping[str, object]  # as it is `kept`
    micro_batch: tuple[int, int]  # rows a micro-batch, micro-batches a step
    carried: Carried

    def as_dict(self) -> dict[str, object]:
        """The manifest as JSON has it."""
        return {
            "v": VERSION,
            "step": self.step,
            "files": dict(self.files),
            "fingerprint": dict(self.fingerprint),
            "micro_batch": list(self.micro_batch),
            "carried": self.carried.as_dict(),
        }

    @classmethod
    def read(cls, value: object) -> Manifest:
        """What `as_dict` gave. Raises ValueError or TypeError where it is nothing of the kind: its files' names become
        paths."""
        if not isinstance(value, Mapping) or (missing := {field.name for field in fields(cls)} - value.keys()):
            raise ValueError("it is no table" if not isinstance(value, Mapping) else f"{min(missing)} is missing")
        names, fingerprint = value["files"], value["fingerprint"]
        if not isinstance(names, Mapping) or any(Path(name).name != name or name in ("", "..") for name in names):
            raise ValueError("its files are no files of one folder")
        if not isinstance(fingerprint, Mapping):
            raise ValueError("fingerprint is no table")
        numbers = [value["step"], *value["micro_batch"]]
        if len(numbers) != 3 or any(type(number) is not int for number in numbers):
            raise ValueError("step or micro_batch is no number")
        step, *micro_batch = numbers
        carried = Carried.read(value["carried"])
        return cls(step=step, files=names, fingerprint=fingerprint, micro_batch=tuple(micro_batch), carried=carried)


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint: its folder, and the manifest."""

    path: Path
    manifest: Manifest

    @property
    def step(self) -> int:
        """The optimizer step after which it was written."""
        return self.manifest.step


def fingerprint(settings: Settings, data_sha256: str, base: BaseModel, template: str) -> dict[str, object]:
    """What must be equal for a resumed run to give the losses of an undisturbed one, field by field."""
    every = {f"{section}.{key}": value for section, keys in settings.as_dict().items() for key, value in keys.items()}
    kept = {
        key: value
        for key, value in every.items()
        if key not in NOT_COMPARED and not key.startswith(("Quantization.QUANTIZATION", "Quantization.KEEP"))
    }
    return kept | {
        # Where the shares are is each machine's own affair, and may be another after a resume.
        "Hardware.SHARDING": settings.hardware.sharding.removesuffix("-offload"),
        processes.STEP: settings.rows_a_step,
        "data SHA-256": data_sha256,
        "base model revision": base.revision,
        "chat template": template,
        **{f"{BASE}{name}": digest for name, digest in base_files.of(base).items()},
    }


def kept(marks: Mapping[str, object]) -> dict[str, object]:
    """A fingerprint as it is written down: of a text with a secret in it, what can be shown and a digest of all of it."""
    return {field: _kept(value) for field, value in _plain(marks).items()}


def _plain(marks: Mapping[str, object]) -> dict[str, object]:
    """A fingerprint as it would come back from a file."""
    plain: dict[str, object] = json.loads(json.dumps(marks, default=str))
    return plain


def _kept(value: object) -> object:
    shown: object = privacy.hidden(value)
    return value if shown == value else f"{shown}{_digest_of(value)}"


def _digest_of(value: object) -> str:
    return f" (SHA-256 {hashlib.sha256(str(value).encode('utf-8', 'replace')).hexdigest()[:8]})"


def _equal(stored: object, current: object) -> bool:
    """Whether a field of a fingerprint is what was written down; another environment may have had other secrets."""
    return stored == current or (isinstance(stored, str) and stored.endswith(_digest_of(current)))


def refuse_mismatch(stored: Mapping[str, object], current: Mapping[str, object]) -> None:
    """Raise UserError naming every field in which a run (`kept`) and the attempt to resume it differ.

    A setting that came after the run was made had no other value than its default, or did as its rule says.
    """
    # What an older version compared is left out of both.
    stored = {field: value for field, value in _plain(stored).items() if field not in NOT_COMPARED}
    current = _plain(current)
    problems = processes.unlike(stored, current)
    later = {name: item.rule for name, item in TABLE.items() if name in current and name not in stored}
    stored |= _plain({name: rule.default if rule.before is None else rule.before for name, rule in later.items()})
    if FUNCTIONS in current:
        stored.setdefault(FUNCTIONS, AS_HANDED)
    if not any(field.startswith(BASE) for field in stored):  # a run from before they were kept
        current = {field: value for field, value in current.items() if not field.startswith(BASE)}
    problems += [
        _difference(field, stored.get(field), current.get(field))
        for field in sorted({*stored, *current})
        if not _equal(stored.get(field), current.get(field))
    ]
    if problems:
        raise UserError(
            [*problems, "put it back as it was, or start a new run with --fresh"], "this run cannot be resumed"
        )


def _difference(field: str, before: object, now: object) -> str:
    if not field.startswith(BASE):
        return f"{field} = {_kept(before)!r} in the run, {_kept(now)!r} now"
    how = "has gone" if now is None else "has come" if before is None else "has changed"
    return f"{field.removeprefix(BASE)} of the base model {how} since the run began"


@contextmanager
def writing(folder: Path, manifest: Manifest) -> Iterator[Path]:
    """Give a folder to write a checkpoint's files to; it becomes `checkpoint-<step>` when the block ends well. The manifest
    gets the files' names, and its fingerprint is written as it may be kept."""
    with files.whole_folder(folder / f"checkpoint-{manifest.step}") as partial:
        yield partial
        written = {p.name: files.sha256(p) for p in sorted(partial.iterdir()) if p.is_file()}
        whole = replace(manifest, files=written, fingerprint=kept(manifest.fingerprint))
        files.write_json(partial / MANIFEST, whole.as_dict())


def newest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole; damaged ones are named in the log and passed over."""
    steps = _steps(folder)
    for step in reversed(steps):
        path = folder / f"checkpoint-{step}"
        try:
            return Checkpoint(path, _proved(path))
        except (OSError, ValueError) as damage:
            instead = "the one before it is used" if step > steps[0] else "there is none before it: back to the start"
            logger.warning("{} is damaged ({}); {}", path.name, damage, instead)
    return None


def told(checkpoint: Checkpoint | None) -> list[object] | None:
    """A checkpoint as ranks may tell it to each other."""
    return None if checkpoint is None else [str(checkpoint.path), checkpoint.manifest.as_dict()]


def heard(said: object) -> Checkpoint | None:
    """What `told` was given. Raises RunError where it is nothing of the kind."""
    try:
        match said:
            case None:
                return None
            case [str(path), manifest]:
                return Checkpoint(Path(path), Manifest.read(manifest))
    except (TypeError, ValueError):
        pass
    raise wire.refused("what another process sends is no checkpoint")


def _digest(path: Path) -> str:
    """The SHA-256 of a file; hashed once as long as nobody writes to it, for a checkpoint is looked at several times."""
    now = path.stat()
    return _hashed(path, now.st_ino, now.st_size, now.st_mtime_ns)


@functools.cache
def _hashed(path: Path, *_identity: int) -> str:
    return files.sha256(path)


def _proved(path: Path) -> Manifest:
    """The manifest of a checkpoint. Raises OSError or ValueError, with the reason, where it is not whole."""
    try:
        manifest = Manifest.read(foreign_json.read(path / MANIFEST))
    except Damaged as damage:
        raise ValueError(str(damage).replace(f"{path / MANIFEST}", MANIFEST)) from None
    except (ValueError, TypeError) as error:
        raise ValueError(f"{MANIFEST}: {error}") from error
    for name, digest in manifest.files.items():
        if not (path / name).is_file():
            raise ValueError(f"{name} is missing")
        if _digest(path / name) != digest:
            raise ValueError(f"{name} has changed or is cut short")
        if name.endswith(pickled.ENDS):
            pickled.prove(path / name)
    _prove_trainer_state(path / TRAINER_STATE, manifest.step)
    return manifest


def _prove_trainer_state(file: Path, step: int) -> None:
    """Raise ValueError where the trainer could not go on from its own file."""
    if not file.exists():
        return
    try:
        found = foreign_json.read(file, TRAINER_KINDS)
    except Damaged as damage:
        raise ValueError(str(damage).replace(str(file), file.name)) from None
    if found.get("global_step") != step:
        raise ValueError(f"{file.name}: global_step = {found.get('global_step')}, and it is the checkpoint of {step}")


def rotate(folder: Path, keep: int, newest: int) -> None:
    """Remove the oldest checkpoints beyond `keep` (0 keeps all), and what a killed process left half-written.

    `newest` is the step just written: one with a higher number was damaged, or belongs to a future that was given up.
    """
    for leftover in folder.glob(f"checkpoint-*{files.PARTIAL}"):
        shutil.rmtree(leftover, ignore_errors=True)
    steps = _steps(folder)
    kept = [step for step in steps if step <= newest]
    later = steps[len(kept) :]
    for step in [*later, *(kept[:-keep] if keep else [])]:
        shutil.rmtree(folder / f"checkpoint-{step}", ignore_errors=True)


def _steps(folder: Path) -> list[int]:
    """The steps of which there is a checkpoint, whole or not, the first one first."""
    names = (path.name.removeprefix("checkpoint-") for path in folder.glob("checkpoint-*"))
    return sorted(int(name) for name in names if name.isdigit())


def where(folder: Path) -> str:
    """What is safe, in words, for the end of an error message."""
    resume = shell.lasting("run.sh", "--resume", folder.parent)
    try:
        last = newest(folder)
    except OSError:  # the drive that failed before
        return f"what is safe there cannot be read now; `{resume}` goes on from it"
    if last is None:
        return f"no checkpoint was written yet; `{resume}` begins again"
    return f"the checkpoint of step {last.step} is safe in {last.path}; `{resume}` goes on from it"


def does_the_rest(run: Path) -> str:
    """How a run goes on whose training is done."""
    return f"`{shell.lasting('run.sh', '--resume', run)}` does the rest"


def has_adapter(run: Path) -> bool:
    """Whether what the training left is there. Where the drive does not say so it is believed to be."""
    try:
        return all((run / ADAPTER / name).is_file() for name in (CONFIG, WEIGHTS))
    except OSError:
        return True


def adapter_is(run: Path, again: bool = False) -> str:
    """What there is of the adapter of a run that is trained, and how to go on. `again`: the rest was begun before."""
    if has_adapter(run):
        return f"the adapter is safe in {run / ADAPTER}; {does_the_rest(run)}{' again' if again else ''}"
    try:
        last = newest(run / CHECKPOINTS)
    except OSError:
        last = None
    how = f"makes them again from the checkpoint of step {last.step}" if last else "trains again"
    return f"{run / ADAPTER} has lost its files; `{shell.lasting('run.sh', '--resume', run)}` {how}"


def left(run: Run) -> str:
    """What a run that ended without a word of its own has lost, what it leaves, and how to go on."""
    resume = shell.lasting("run.sh", "--resume", run.path)
    if run.stage("train") is not None:
        return f"{'nothing of the training is lost: ' if has_adapter(run.path) else ''}{adapter_is(run.path)}"
    step, last = run.status.get("step", 0), newest(run.path / CHECKPOINTS)
    if last is None:
        lost = f"all {step} steps are lost" if step else "nothing is lost"
        return f"{lost}: no checkpoint was written yet; `{resume}` begins again with the first step"
    lost = f"the steps after {last.step} are lost" if step > last.step else "no step is lost"
    return f"{lost}; {where(run.path / CHECKPOINTS)}"
