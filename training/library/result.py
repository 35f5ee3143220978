"""A run that has come to its end, as Python sees it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training import runs
from training.errors import UserError
from training.runs import directory
from training.system import paths


@dataclass(frozen=True)
class FineTuningRun(os.PathLike[str]):
    """A run: its folder, what is in it, and its report. It is a path itself: open(), Path() and every function that takes
    a run's folder take it.
    """

    path: Path

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> FineTuningRun:
        """The run in a folder, made by whichever door. UserError where there is none."""
        return cls(runs.find(Path.cwd(), paths.expanded(os.fspath(path)).absolute()).path)

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    @property
    def state(self) -> str:
        """completed, interrupted, failed, killed, running or queued, as it is now."""
        return directory.state(runs.open_run(self.path))

    @property
    def report(self) -> dict[str, Any]:
        """What report.json says: losses, scores, checks, files and versions. UserError where the run is not done."""
        file = self.path / runs.REPORT
        if not file.is_file():
            raise UserError(f"{self.path} has no {runs.REPORT} yet: it is {self.state}")
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return content

    @property
    def files(self) -> dict[str, Path]:
        """What the run has made, by what it is: adapter, merged, gguf, modelfile, report, log, config."""
        ggufs = sorted(self.path.glob("*.gguf"))
        named = {
            "adapter": self.path / runs.ADAPTER,
            "merged": self.path / runs.MERGED,
            **({"gguf": self._first(ggufs)} if ggufs else {}),
            "modelfile": self.path / "Modelfile",
            "report": self.path / "report.html",
            "log": self.path / runs.LOG,
            "config": self.path / runs.CONFIG,
        }
        return {name: path for name, path in named.items() if path.exists()}

    def _first(self, ggufs: list[Path]) -> Path:
        """The file that the Modelfile is written for, where there are several."""
        modelfile = self.path / "Modelfile"
        text = modelfile.read_text(encoding="utf-8", errors="replace") if modelfile.is_file() else ""
        return next((gguf for gguf in ggufs if f"FROM ./{gguf.name}\n" in text), ggufs[0])
