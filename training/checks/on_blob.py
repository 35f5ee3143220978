"""An adapter on a model that Ollama has: does that predict what base and adapter did in training?"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

from training import llama, runs
from training.base_model import ollama_store
from training.checks.check import Check, timed
from training.checks.gguf_files import MOST_PERPLEXITY
from training.evaluation import divergence, reference
from training.evaluation.reference import TooLarge
from training.ollama import Server
from training.to_gguf import Job

# Of what is done when a model goes into Ollama; no check of a run.
NAME = "adapter on blob"
_FROM = re.compile(r"^FROM\s+(\S*sha256-([0-9a-f]{64}))\s*$", re.MULTILINE)


def file_of(server: Server, base: str) -> Path | None:
    """The file of a model of the server's, where that lies on this machine and may be read."""
    found = _FROM.search(str((server.show(base) or {}).get("modelfile") or ""))
    if found is None:
        return None
    places = [Path(found[1]), *(store / "blobs" / f"sha256-{found[2]}" for store in ollama_store.stores())]
    return next((place for place in places if _readable(place)), None)


def _readable(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) == b"GGUF"
    except OSError:
        return False


def adapter_on_blob(job: Job, blob: Path, adapter: Path) -> Check:
    """The base's file with the adapter on it against base and adapter as trained, on held-out answers.

    What is found is what the file's quantisation costs; a file of another base, or a damaged adapter, goes beyond that.
    """
    check = Check(
        NAME,
        True,
        {},
        f"perplexity is finite and <= {MOST_PERPLEXITY:.0f} times that of base and adapter as trained",
        "the base in Ollama is quantised: what that costs is reported, not judged; another base goes beyond this",
    )

    def measure() -> Check:
        rows, first = divergence.bounded(
            [one.ids for one in job.facts.sequences], [one.first for one in job.facts.sequences]
        )
        if not rows:
            return replace(check, skipped="there are no held-out answers")
        with reference.opened(job.base, adapter=job.run.path / runs.ADAPTER) as model:
            if isinstance(model, TooLarge):
                return replace(check, skipped=model.reason)
            with llama.opened(blob, adapter) as process:
                theirs = llama.logits_each(process, rows, first)
                found = divergence.compare(model.logits(rows, first), theirs, rows, first)
        ratio = found.perplexity / found.perplexity_reference
        figures = {**found.figures(), "perplexity_ratio": ratio if math.isfinite(ratio) else None}
        if ratio <= MOST_PERPLEXITY:  # NaN is not
            return replace(check, figures=figures)
        failure = (
            f"the model in Ollama with the adapter on it has perplexity {found.perplexity:.4g} on held-out answers, base and "
            f"adapter as trained {found.perplexity_reference:.4g}: is it the model that was trained on?"
        )
        return replace(check, passed=False, figures=figures, failure=failure)

    return timed(check, measure)
