"""One evaluation that was asked for over HTTP, in a process of its own: it leaves its scores in its folder, whatever
becomes of the server.
"""

# ruff: noqa: E402  what stands between the imports must come before some of them

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # as a script, this folder stands first on the path and would shadow installed packages
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from training import evaluate_model
from training.errors import FinetuneError
from training.evaluation import scoring
from training.evaluation.target import Target
from training.runs import directory
from training.service.evaluations import ANSWERS, STATUS
from training.system import files, foreign_code, last_net, launchers, log, privacy


def evaluate(folder: Path, spec: Mapping[str, Any]) -> None:
    """Measure, and write the scores."""

    def write(**found: object) -> None:
        files.write_json(folder / STATUS, {**dict(spec), **directory.identity(), **found})

    write(state="running")
    try:
        target = Target.named(spec["path"], None, Path(spec["config"]))
        items, made = evaluate_model.measured(target, spec["test_data"], spec["max_rows"])
        lines = evaluate_model.scores(items, made)
        files.write_text(folder / ANSWERS, evaluate_model.csv_text(items, made, bom=False))
    except FinetuneError as error:
        write(state="failed", error=privacy.shown(str(error)))
    except Exception as error:
        write(state="failed", error=privacy.shown(str(last_net.caught(error))))
    else:
        scores = [line.left() for line in lines]
        write(state="completed", rows=len(items), scores=privacy.hidden(scores), conclusion=scoring.conclusion(lines))


def main(folder: str, spec: str) -> int:
    """Evaluate as `spec` (JSON) says, into `folder`."""
    foreign_code.trust(False)
    log.claim_stdout()
    log.start(terminal=False)
    launchers.tell()
    evaluate(Path(folder), json.loads(spec))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1], sys.argv[2]))
