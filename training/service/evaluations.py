"""Evaluations over HTTP: each a process of its own and a folder under OUTPUT_DIR/evaluations, which is all that is known of it."""

from __future__ import annotations

import json
import re
import secrets
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from training.runs import directory
from training.service.asked import Problem, Refused
from training.service.jobs import Jobs, NotFound
from training.system import files, foreign_json
from training.system.foreign_json import COUNT, MOMENT, OBJECTS, TEXT

STATUS, ANSWERS = "evaluation.json", "answers.csv"
ID = re.compile(r"evaluation_[0-9]{8}_[0-9]{6}_[0-9a-f]{8}")
KINDS = {
    "state": foreign_json.one_of(("queued", "running", "completed", "failed")),
    **dict.fromkeys(("pid", "pid_started", "rows"), COUNT.or_none()),
    **dict.fromkeys(("model", "error", "conclusion"), TEXT.or_none()),
    "scores": OBJECTS.or_none(),
    "created": MOMENT,
}
WORKER = Path(__file__).with_name("evaluation_worker.py")
STARTS = 60.0  # seconds that a process may take to say that it is there


class Evaluations:
    """All evaluations of one OUTPUT_DIR. One works at a time: each fills the machine."""

    def __init__(self, jobs: Jobs) -> None:
        self.jobs = jobs
        self.folder = jobs.home / "evaluations"
        self._last: subprocess.Popen[bytes] | None = None

    @property
    def busy(self) -> bool:
        """Whether one works that this server has started."""
        return self._last is not None and self._last.poll() is None

    def start(self, run: str, test_data: str | None, max_rows: int) -> str:
        """Begin to measure a run; the id of the evaluation."""
        path = self.jobs.find(run).path
        rows = None
        if test_data is not None:
            try:
                found = self.jobs.places.inside(test_data)
                if not found.is_file():
                    raise ValueError(f"no such file ({test_data})")
                rows = str(found)
            except ValueError as error:
                raise Refused([Problem("test_data", f"test_data: {error}")]) from None
        name = f"evaluation_{time.strftime('%Y%m%d_%H%M%S')}_{secrets.token_hex(4)}"
        folder = self.folder / name
        folder.mkdir(parents=True, mode=0o700)
        spec = {
            "model": run,
            "path": str(path),
            "test_data": rows,
            "max_rows": max_rows,
            "config": str(self.jobs.own.config),
            "created": round(time.time(), 3),
        }
        files.write_json(folder / STATUS, {**spec, "state": "queued"})
        self._last = subprocess.Popen(
            [sys.executable, str(WORKER), str(folder), json.dumps(spec)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        return name

    def find(self, name: str) -> dict[str, Any]:
        """What is known of an evaluation. NotFound where there is none."""
        path = self.jobs.file(self.folder / name, STATUS) if ID.fullmatch(name) else None
        if path is None:
            raise NotFound(f"there is no evaluation {name[:80]!r}")
        found = foreign_json.read(path, KINDS)
        state, error = found.get("state", "failed"), found.get("error")
        pid = found.get("pid")
        gone = state == "running" and (pid is None or directory.started(pid) != found.get("pid_started"))
        late = state == "queued" and not self.busy and time.time() - found.get("created", 0) > STARTS
        if gone or late:
            state, error = "failed", "its process is gone"
        return {
            "evaluation_id": name,
            "status": state,
            "model": found.get("model"),
            "rows": found.get("rows"),
            "scores": found.get("scores"),
            "conclusion": found.get("conclusion"),
            "error": error,
            "created": found.get("created"),
            "answers": str(self.folder / name / ANSWERS) if state == "completed" else None,
        }
