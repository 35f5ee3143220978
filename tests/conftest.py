"""Shared by all tests: where the repository is, the embedded model, and a tiny random model made on the spot."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
hypothesis.settings.register_profile("shared machine", deadline=None)  # no timed asserts
hypothesis.settings.load_profile("shared machine")


FAULT = (
    "fault"  # a test's property (what was done to a run, whether nothing was lost): properties come back from workers
)


@pytest.fixture(autouse=True)
def kept_quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A test without a marker starts no program and does not load torch: the first layer is to take seconds."""
    if any(request.node.get_closest_marker(name) for name in ("slow", "tiny", "embedded")):
        yield
        return

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a test without a marker starts a program: mark it as slow, tiny or embedded")

    for owner, name in ((subprocess.Popen, "__init__"), (os, "fork"), (os, "posix_spawn")):
        monkeypatch.setattr(owner, name, refuse)
    monkeypatch.setattr(os, "fsync", lambda file: None)  # a seventh of the layer's time; none of it cuts the power
    loaded = "torch" in sys.modules
    yield
    assert loaded or "torch" not in sys.modules, "a test without a marker loads torch: mark it as tiny"


def pytest_addoption(parser: pytest.Parser) -> None:
    """tests/run.sh tests --faults 500: a longer campaign."""
    parser.addoption("--faults", type=int, default=3, help="how many times runs are killed at random moments")


def pytest_xdist_auto_num_workers() -> int:
    """What `-n auto` means: a worker for each core that we may use, but no more than memory for torch and a run each."""
    from training.system import pool

    return min(pool.cores(), 4)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The table of the campaign, where there was one."""
    reports = [report for found in terminalreporter.stats.values() for report in found if hasattr(report, "when")]
    properties = [pair for report in reports if report.when == "call" for pair in report.user_properties]
    faults = [fault for name, fault in properties if name == FAULT]
    if faults:
        terminalreporter.section("faults")
        terminalreporter.line(f"{'fault':<50} {'tries':>5} {'lost':>5}")
        for fault in sorted({fault for fault, _ in faults}):
            kept = [good for name, good in faults if name == fault]
            terminalreporter.line(f"{fault:<50} {len(kept):>5} {kept.count(False):>5}")


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root."""
    return ROOT


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file: the workers of one test session (pytest-xdist) make what they share one after the other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def session_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The temporary folder of this test session; a worker's own one is in it."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], str | None]) -> tuple[Path, str]:
    """A folder of the session that `make` fills, and the word that it returned; the first worker that asks makes it for all."""
    folder = session_folder(tmp_path_factory) / name
    with locked(folder.with_name(f"{name}.lock")):
        made = folder.with_name(f"{name}.made")
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a worker that failed in it
            folder.mkdir()
            made.write_text(make(folder) or "", encoding="utf-8")
        return folder, made.read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def go_cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where Go keeps what it compiled, its own library above all, from one test session to the next."""
    return str(session_folder(tmp_path_factory).parent / "go-build")


@pytest.fixture(scope="session")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked embedded model's folder."""
    from training import base_model
    from training.base_model import sources
    from training.settings.table import Model

    model = Model(base_model_name=sources.EMBEDDED)
    with locked(session_folder(tmp_path_factory) / "embedded.lock"):
        return base_model.locate(model).path


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, embedded: Path) -> Path:
    """A random Llama of two layers, hidden size 256, with SmolLM2's tokenizer: real in every part, trained in seconds."""
    folder, _ = once(tmp_path_factory, "tiny", lambda folder: write_tiny_model(folder, embedded))
    return folder


def write_tiny_model(folder: Path, embedded: Path) -> None:
    """Write `tiny_model` into a folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = json.loads((embedded / "config.json").read_text(encoding="utf-8"))
    small = LlamaConfig(
        vocab_size=config["vocab_size"], hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True, bos_token_id=config["bos_token_id"],
        eos_token_id=config["eos_token_id"], pad_token_id=config.get("pad_token_id"),
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(small).to(torch.bfloat16).save_pretrained(folder)
    for file in embedded.iterdir():
        if file.name.startswith(("tokenizer", "special", "vocab", "merges", "chat_template")):
            shutil.copy(file, folder)


@dataclass(frozen=True)
class Ended:
    """How a started program ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def run(self) -> Path:
        """The run directory that was printed."""
        lines = self.stdout.splitlines()
        assert len(lines) == 1, self.stdout + self.stderr
        return Path(lines[0])


def finetune(
    *arguments: str | Path, cwd: Path | None = None, timeout: float = 600, python: str | Path = sys.executable,
    **environment: str,
) -> Ended:  # fmt: skip
    """Run training/finetune.py in a process of its own, as run.sh does, with no terminal and no stdin."""
    done = subprocess.run(
        [str(python), str(ROOT / "training" / "finetune.py"), *map(str, arguments)],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, encoding="utf-8", timeout=timeout, cwd=cwd,
        env={**os.environ, **environment},
    )  # fmt: skip
    return Ended(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="session")
def forking() -> Iterator[tuple[socket.socket, subprocess.Popen]]:
    """This worker's zygote (training/system/forkserver.py), set aside for the tests that ask for `forks`."""
    from training.system import forkserver

    forkserver.start()
    found, forkserver._control, forkserver._zygote = (forkserver._control, forkserver._zygote), None, None
    yield found
    control, process = found
    process.stdin.close()
    process.wait()
    control.close()


@pytest.fixture(scope="module")
def forks(forking: tuple[socket.socket, subprocess.Popen]) -> Iterator[None]:
    """Programs started by the package, and with `forked`, begin as those of a run do: torch is imported already. That is
    four seconds less for each; tests that do not ask for it have plain processes."""
    from training.system import forkserver

    forkserver._control, forkserver._zygote = forking
    yield
    forkserver._control = forkserver._zygote = None


def forked(script: Path, *arguments: str | Path) -> Ended:
    """Run a script to its end as `python SCRIPT ARGUMENTS` would: a fork where there is a zygote, else a plain process."""
    from training.system import forkserver

    with tempfile.TemporaryFile() as said:
        ours = os.dup(2)
        os.dup2(said.fileno(), 2)  # what it inherits
        try:
            child = forkserver.popen(script, arguments, errors=False)
        finally:
            os.dup2(ours, 2)
            os.close(ours)
        out = child.stdout.read()
        code = child.wait()
        forkserver.end(child)
        said.seek(0)
        return Ended(code, out.decode(), said.read().decode())


@pytest.fixture
def tiny_config(tmp_path: Path, tiny_model: Path) -> Path:
    """Settings for a run of six steps on the tiny model, with a dozen rows; outputs go beside the file."""
    return write_tiny_config(tmp_path, tiny_model)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """One finished run on the tiny model, which the tests only look at."""

    def make(folder: Path) -> str:
        ended = finetune("--config", write_tiny_config(folder, tiny_model))
        assert ended.code == 0, ended.stderr
        return str(ended.run)

    return Path(once(tmp_path_factory, "undisturbed", make)[1])


def write_tiny_config(tmp_path: Path, tiny_model: Path) -> Path:
    """Write `tiny_config` and its rows into a folder."""
    rows = [{"instruction": f"What is {i} and {i}?", "output": f"It is {2 * i}."} for i in range(1, 17)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = tmp_path / "config.ini"
    config.write_text(
        f"""[Model]
BASE_MODEL_NAME = {tiny_model}
NEW_MODEL_NAME = tiny
[Dataset]
DATASET_FILE = rows.jsonl
VALIDATION_SPLIT = 0.2
[Training]
PER_DEVICE_TRAIN_BATCH_SIZE = 2
GRADIENT_ACCUMULATION_STEPS = 2
LEARNING_RATE = 1e-3
MAX_STEPS = 6
SAVE_STEPS = 2
EVAL_STEPS = 3
""",
        encoding="utf-8",
    )
    return config
