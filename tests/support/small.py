"""For modules whose runs need no real vocabulary: what they know as the tiny model has some 700 words in place of 49,152.

A run on it takes 8 s of work in place of 19: most of the tiny model is its vocabulary, which every reader reads, the converter
writes and each token is compared with. A module asks for it by taking these fixtures for its own. Its steps are over in a
moment: a test that catches a run in the middle of them slows them down (tests/support/ranks.py).
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import runs
from tests.support.programs import whole_run
from tests.support.session import once
from tests.support.tiny import write_smallest_model, write_tiny_config

# Its tokenizer is SentencePiece's.
RUN_FILES = {*runs.RUN_FILES, "merged/tokenizer.model"}


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, embedded: Path) -> Path:
    """The tiny model but for its vocabulary."""
    return _model(tmp_path_factory, embedded)


def _model(tmp_path_factory: pytest.TempPathFactory, embedded: Path) -> Path:
    return once(tmp_path_factory, "small", lambda at: write_smallest_model(at, embedded, layers=2))[0]


@pytest.fixture
def tiny_config(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, embedded: Path) -> Path:
    """Settings for a run of six steps on it, for a module that has runs on both."""
    return write_tiny_config(tmp_path, _model(tmp_path_factory, embedded))


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, embedded: Path) -> Path:
    """One finished run on it, which the tests only look at."""
    model = _model(tmp_path_factory, embedded)
    return Path(once(tmp_path_factory, "undisturbed-small", lambda folder: whole_run(folder, model))[1])
