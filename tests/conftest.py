"""Shared by all tests: where the repository is, the embedded model, and a tiny random model made on the spot."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.support import live_ollama, warm
from tests.support.faults import FAULT
from tests.support.paths import ROOT
from tests.support.programs import whole_run
from tests.support.session import locked, once, session_folder
from tests.support.tiny import write_smallest_model, write_tiny_config, write_tiny_model
from training.system import before_torch, forkserver

sys.path.insert(0, str(ROOT))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Else the threads of torch in one worker spin, waiting for each other, on the cores that another worker needs.
for name, value in before_torch.THREADS.items():
    os.environ.setdefault(name, value)
# The same examples in every run, so that nobody's change fails by another's find; tests/run.sh --hypothesis-profile campaign
# looks for new ones. No deadline: a shared machine may be slow.
hypothesis.settings.register_profile("same", deadline=None, derandomize=True)
hypothesis.settings.register_profile("campaign", deadline=None, max_examples=2000, print_blob=True)
hypothesis.settings.load_profile("same")
FUZZ = 150


@pytest.fixture(autouse=True)
def kept_quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A test without a marker starts no program and does not load torch: the first layer is to take seconds."""
    if any(request.node.get_closest_marker(name) for name in ("slow", "tiny", "embedded", "ollama")):
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


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """What is logged while a test runs, a message a line."""
    from loguru import logger

    lines: list[str] = []
    sink = logger.add(lambda message: lines.append(str(message).rstrip("\n")), format="{message}")
    yield lines
    logger.remove(sink)


def pytest_addoption(parser: pytest.Parser) -> None:
    """tests/run.sh tests --faults 500: a longer campaign; --fuzz 20000: more random files; --io-faults each, all: every read and write.

    tests/run.sh tests/test_guides.py --guides-model embedded: the guides' commands train the shipped model.
    tests/run.sh tests/test_golden.py --golden: take what users see now.
    """
    parser.addoption("--faults", type=int, default=3, help="how many times runs are killed at random moments")
    parser.addoption("--io-faults", default="2", help="how many reads or writes of runs fail, or `each`, or `all`")
    parser.addoption("--fuzz", type=int, default=FUZZ, help="how many random files and texts of each kind are tried")
    parser.addoption(
        "--guides-model",
        choices=("tiny", "embedded"),
        default="tiny",
        help="the model of the guides' commands; with `embedded` every training among them goes to its end",
    )
    parser.addoption("--ollama", action="store_true", help="ask a real Ollama: OLLAMA=path, else the one on the PATH")
    parser.addoption(
        "--golden", action="store_true", help="write tests/golden/ anew: a change of what users see is wanted"
    )


def pytest_configure(config: pytest.Config) -> None:
    """--fuzz N is also for the properties of rows, settings and Modelfiles: N examples, from the same seed each time."""
    if (count := config.getoption("--fuzz")) != FUZZ:
        hypothesis.settings.register_profile("fuzz", deadline=None, derandomize=True, max_examples=count)
        hypothesis.settings.load_profile("fuzz")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what asks a real Ollama where nobody asked for that, or none is here, before anything is made for it."""
    if config.getoption("--ollama") and live_ollama.programs():
        return
    why = "there is no ollama command on the PATH, and OLLAMA names none"
    if not config.getoption("--ollama"):
        why = "a real Ollama is asked by tests/run.sh --ollama only"
    for item in items:
        if item.get_closest_marker("ollama"):
            item.add_marker(pytest.mark.skip(reason=why))


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
    return _tiny_model(tmp_path_factory, embedded)


def _tiny_model(tmp_path_factory: pytest.TempPathFactory, embedded: Path) -> Path:
    return once(tmp_path_factory, "tiny", lambda folder: write_tiny_model(folder, embedded))[0]


@pytest.fixture(scope="session")
def smallest_model(tmp_path_factory: pytest.TempPathFactory, embedded: Path) -> Path:
    """The quickest model that is real in every part."""
    return once(tmp_path_factory, "smallest", lambda folder: write_smallest_model(folder, embedded))[0]


@pytest.fixture(scope="module")
def forks() -> Iterator[None]:
    """Programs started by the package, and with `forked`, begin as those of a run do: torch is imported already. That is
    four seconds less for each; tests that do not ask for it have plain processes."""
    forkserver.server = warm.warmed().server
    yield
    forkserver.server = None


@pytest.fixture
def tiny_config(tmp_path: Path, tiny_model: Path) -> Path:
    """Settings for a run of six steps on the tiny model, with a dozen rows; outputs go beside the file."""
    return write_tiny_config(tmp_path, tiny_model)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, embedded: Path) -> Path:
    """One finished run on the tiny model, which the tests only look at; not on what a module has in its place."""
    model = _tiny_model(tmp_path_factory, embedded)
    return Path(once(tmp_path_factory, "undisturbed", lambda folder: whole_run(folder, model))[1])
