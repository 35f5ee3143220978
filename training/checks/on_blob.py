"""An adapter on a model that Ollama has: does that predict what base and adapter did in training?"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

from training import llama, runs
from training.base_model import ollama_store
from training.checks import gguf_files
from training.checks.check import Check, timed
from training.checks.gguf_files import FEW, LEAST_TOP1, MOST_KL, MOST_PERPLEXITY
from training.data import chat_template
from training.evaluation import divergence, reference
from training.evaluation.divergence import Agreement
from training.evaluation.reference import TooLarge
from training.ollama import Server
from training.system import files
from training.to_gguf.job import Job

# Of what is done when a model goes into Ollama; no check of a run.
NAME = "adapter on blob"
# Of the very file that was trained on. llama.cpp rounds what goes into a quantised matrix to 8 bits, which costs about as
# much as transformers' computing in bfloat16: 2.2e-3 nats on SmolLM2-135M-Instruct as Q4_1, 202 answer tokens, and all
# clear first choices are the same.
KL, TOP1, ASIDE = MOST_KL["bfloat16"], LEAST_TOP1["bfloat16"], FEW["bfloat16"]
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


def checks(job: Job, blob: Path, adapter: Path) -> list[Check]:
    """What an adapter is held to on a model that Ollama has: on the very file that was trained on, as a merged model is."""
    texts = chat_template.samples(job.template) if job.template else []
    words = [gguf_files.gguf_tokenizer(blob, job.base, texts)] if is_own(job, blob) else []
    return [*words, adapter_on_blob(job, blob, adapter)]


def is_own(job: Job, blob: Path) -> bool:
    """Whether a file is the one that the run's base was unpacked from: that folder's name ends in its digest."""
    base = job.facts.base
    if base.kind not in ("ollama", "gguf"):
        return False
    name = blob.name.removeprefix("sha256-")
    digest = name if re.fullmatch("[0-9a-f]{64}", name) else files.sha256(blob)
    return base.path.name.endswith(f"-{digest[:12]}")


def adapter_on_blob(job: Job, blob: Path, adapter: Path) -> Check:
    """The base's file with the adapter on it against base and adapter as trained, on held-out answers.

    Of the very file that was trained on the predictions are the same. Of another form of the base, what is found is what
    its quantisation costs; a file of another base, or a damaged adapter, goes beyond that.
    """
    own = is_own(job, blob)
    check = Check(
        NAME,
        True,
        {},
        f"mean KL <= {KL} nats and first choice equal in {TOP1:.0%} of the clear cases, {ASIDE} cases aside"
        if own
        else f"perplexity is finite and <= {MOST_PERPLEXITY:.0f} times that of base and adapter as trained",
        "it is the file that was trained on: only the adapter's own conversion could change what it predicts"
        if own
        else "the base in Ollama is quantised: what that costs is reported, not judged; another base goes beyond this",
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
        if own and not _agrees(found):
            return replace(check, passed=False, figures=figures, failure=_differs(found))
        if ratio <= MOST_PERPLEXITY:  # NaN is not
            return replace(check, figures=figures)
        failure = (
            f"the model in Ollama with the adapter on it has perplexity {found.perplexity:.4g} on held-out answers, base and "
            f"adapter as trained {found.perplexity_reference:.4g}: is it the model that was trained on?"
        )
        return replace(check, passed=False, figures=figures, failure=failure)

    return timed(check, measure)


def _agrees(found: Agreement) -> bool:
    # NaN is not less.
    return found.mean_kl <= KL and found.top1_sure * found.sure + ASIDE >= TOP1 * found.sure


def _differs(found: Agreement) -> str:
    return (
        f"the file that was trained on does not predict with the adapter on it what was trained: mean KL {found.mean_kl:.4g} "
        f"nats, first choices equal in {found.top1_sure:.1%} of the clear cases"
    )
