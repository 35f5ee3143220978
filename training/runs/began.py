"""What a run was when it began: what was decided then holds for the rest of it, whatever a later version would decide."""

from __future__ import annotations

from collections.abc import Mapping

from training.runs import checkpoint
from training.runs.directory import CHECKPOINTS, Run


def fingerprint(run: Run) -> Mapping[str, object] | None:
    """That of the training, or of the newest checkpoint; None where nothing was trained that is to be gone on with."""
    trained = run.stage("train")
    if trained is not None:
        marks: Mapping[str, object] = trained["fingerprint"]
        return marks
    newest = checkpoint.newest(run.path / CHECKPOINTS)
    return None if newest is None else newest.manifest.fingerprint


def may_order_functions(run: Run | None) -> bool:
    """Whether the parameters and arguments of functions may be trained in the order of their names, as a TEMPLATE that writes
    functions gets them: not where a run went on in another order so far, as those of older versions did."""
    marks = None if run is None else fingerprint(run)
    return marks is None or marks.get(checkpoint.FUNCTIONS) == checkpoint.BY_NAME
