"""What the workers of one test session make once, and share."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


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
