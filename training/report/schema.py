"""What a run's report holds, as frozen records; report.json is exactly this. Parts that a run did not reach are None."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training.checks import Outcome
from training.checks.served_facts import Served
from training.evaluation import Ledger, Score
from training.runs import State
from training.runs.working_time import Session
from training.system import privacy, records
from training.train.link import Exchange

VERSION = 1  # of report.json; goes up when a field changes its meaning


@dataclass(frozen=True)
class RunFacts:
    """The run itself. Times are seconds since 1970; `stages` maps a stage's name to its seconds, in order.

    `sessions`: the stretches in which it was worked on, more than one where it was interrupted.
    """

    id: str
    directory: str  # absolute
    state: State = "completed"
    started: float | None = None
    finished: float | None = None
    stages: dict[str, float] = field(default_factory=dict)
    seconds: float | None = None  # of work; not the hours in which nothing ran
    sessions: tuple[Session, ...] = ()
    failed_stage: str = ""
    error: str = ""  # what stopped a run that is not completed, for people
    safe: str = ""  # what is safe on the disk then, and how to go on


@dataclass(frozen=True)
class BaseFacts:
    """The model that training started from."""

    name: str
    kind: str = ""  # embedded, folder, hub, modelscope, gguf, ollama
    revision: str | None = None
    parameters: int | None = None
    trainable: int | None = None  # parameters of the adapter
    max_length: int | None = None  # tokens


@dataclass(frozen=True)
class DataFile:
    """One file that was read."""

    path: str
    role: str = "training"  # training, replay, validation, test
    sha256: str = ""
    bytes: int | None = None
    rows: int | None = None


@dataclass(frozen=True)
class DataFacts:
    """The rows. `percentiles` are of tokens a row: {"50": 41, "95": 80, "100": 131}."""

    files: tuple[DataFile, ...] = ()
    rows: dict[str, int] = field(default_factory=dict)  # {"training": 120, "validation": 24}
    tokens: int | None = None  # of one epoch
    trained_tokens: int | None = None  # of those, the ones with a loss
    percentiles: dict[str, int] = field(default_factory=dict)
    prompts: dict[str, int] = field(default_factory=dict)  # percentiles of tokens a prompt
    answers: dict[str, int] = field(default_factory=dict)  # percentiles of trained tokens a row
    turns: int | None = None  # rows that are conversations; the others are plain text
    # Share of the training rows (of at most 1,000 of them) whose answer has Chinese characters.
    chinese: float | None = None
    distinct: float | None = None  # share of different answers among them
    cut: int = 0  # rows cut by MAX_SEQ_LENGTH
    rejected: int = 0  # rows that ON_BAD_ROW = skip left out


@dataclass(frozen=True)
class Step:
    """One optimizer step. A loss of None is one that was not a finite number."""

    step: int
    loss: float | None
    learning_rate: float | None = None
    gradient_norm: float | None = None
    tokens_per_second: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """Validation loss after a step; step 0 is the base model."""

    step: int
    loss: float | None


@dataclass(frozen=True)
class TrainingFacts:
    """How training went. Losses are means over answer tokens, in nats."""

    steps: int = 0  # done
    total: int = 0  # planned
    epochs: float | None = None
    before: float | None = None  # validation loss of the base model
    after: float | None = None
    best: float | None = None
    best_step: int | None = None
    stopped_early: bool = False  # by EARLY_STOPPING_PATIENCE; `after` is then the best, whose adapter was kept
    tokens_per_second: float | None = None  # real tokens, optimizer included
    peak_memory: int | None = None  # bytes
    losses: tuple[Step, ...] = ()
    evaluations: tuple[Evaluation, ...] = ()
    exchange: Exchange | None = None  # between the processes, where there were several


@dataclass(frozen=True)
class Sample:
    """One question and its answers; `stopped` tells whether the tuned model ended by itself (None: cut off before that could
    be told).

    `quantised`: the answer of the first quantised file, which is what Ollama runs.
    """

    question: str
    before: str | None = None
    after: str | None = None
    stopped: bool | None = None
    expected: str = ""
    quantised: str | None = None
    quantised_stopped: bool | None = None


@dataclass(frozen=True)
class Quantised:
    """One GGUF file: kl is its mean divergence from f16 in nats a token, top1 the share of equal next tokens (0-1)."""

    file: str
    method: str
    bytes: int | None = None
    kl: float | None = None
    top1: float | None = None
    perplexity: float | None = None
    fallback: str | None = None  # tensors that could not take the method, and what they took instead
    tokens_per_second: float | None = None  # of answering on this machine
    importance: bool = False  # made with an importance matrix
    perplexity_change: float | None = None  # against the f16 file's: 0.012 is 1.2 % more


@dataclass(frozen=True)
class Artefact:
    """A file of the run; `path` is relative to the run directory."""

    path: str
    bytes: int
    sha256: str = ""


@dataclass(frozen=True)
class Point:
    """One point of the checklist. `done` None: a person must look; `why` says at what, or what was found."""

    part: str  # data, training, evaluation, deployment
    text: str
    done: bool | None
    why: str = ""


@dataclass(frozen=True)
class Report:
    """Everything that report.json, report.md and report.html say."""

    name: str  # NEW_MODEL_NAME
    run: RunFacts
    base: BaseFacts
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)  # Settings.as_dict()
    differences: tuple[tuple[Any, ...], ...] = ()  # Settings.differences(): key, value, default, origin
    choices: tuple[tuple[Any, ...], ...] = ()  # Settings.choices: key, value, reason
    seed: int | None = None
    versions: dict[str, Any] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    data: DataFacts | None = None
    training: TrainingFacts | None = None
    samples: tuple[Sample, ...] = ()
    scores: tuple[Score, ...] = ()
    general: tuple[Score, ...] = ()  # on the shipped general questions: what the tuning cost elsewhere
    ledger: Ledger | None = None  # what the training did to the rows that were learned; all of them are in rows.csv
    quantised: tuple[Quantised, ...] = ()
    checks: tuple[Outcome, ...] = ()
    artefacts: tuple[Artefact, ...] = ()
    ollama: Served | None = None  # what a live Ollama made of it, when it was put there last
    warnings: tuple[str, ...] = ()
    next_commands: tuple[str, ...] = ()  # empty: what the state of the run asks for
    v: int = VERSION


def build(record: object) -> Report:
    """A report from plain data such as a parsed report.json; a report passes. An unknown field raises ValueError."""
    return records.build(record, Report, strict=True)


def plain(value: object, name: str = "") -> Any:
    """`value` as JSON can hold it, and as anybody may read it: NaN and infinity become None, secrets are hidden."""
    if dataclasses.is_dataclass(value):
        return {item.name: plain(getattr(value, item.name), item.name) for item in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {plain(str(key)): plain(item, str(key)) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        items = list(value) if isinstance(value, (list, tuple)) else sorted(value, key=str)
        # (key, value, ...) as in `differences`: the first item names the others
        named = name in ("differences", "choices") and items and isinstance(items[0], str)
        return [plain(item, items[0] if named and at == 1 else name) for at, item in enumerate(items)]
    if isinstance(value, (bool, int)) or value is None:
        return value
    if isinstance(value, float):
        return privacy.finite(value)
    if isinstance(value, Path) or not isinstance(value, str):
        value = str(value)
    if value and privacy.names_a_secret(name):
        return privacy.HIDDEN
    return privacy.redact(privacy.writable(value))
