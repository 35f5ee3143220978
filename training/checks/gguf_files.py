"""The checks between trained weights and quantised file: each link against the one before it, with its figure.

A check gives a record, passed or not; `require` then fails the run with the name of the first link that broke, because
what comes after a broken link is broken too. Inputs are plain: token ids, where the answers begin in them, prompts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from training import evaluation, llama
from training.base_model import load_tokenizer
from training.checks import tensors
from training.checks.check import Check, timed
from training.data import held_out
from training.evaluation import divergence
from training.evaluation.divergence import Agreement
from training.evaluation.reference import Reference, TooLarge
from training.llama import process
from training.llama.hard_texts import HARD
from training.system.wording import shorten

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerBase

# Mean KL in nats, by the dtype that transformers computed in. Measured on SmolLM2-135M-Instruct, 145 answer tokens:
#   merged against base + adapter  float32 3.2e-5 (the weights' rounding)           bfloat16 2.7e-3 (the activations')
#   f16 GGUF against merged        float32 4.7e-6 (llama.cpp's f16 activations)     bfloat16 1.8e-3
# A rope frequency, a bias or a scaling that is wrong costs 0.01 to several nats. So: well above the noise, well below that.
MOST_KL = {"float32": 2e-3, "bfloat16": 2e-2}
# Of the positions where the reference leads clearly (agreement.MARGIN); measured: float32 1.0, bfloat16 0.992.
LEAST_TOP1 = {"float32": 0.98, "bfloat16": 0.95}
# And so many disagreements more, because a share of a few clear cases is chance: where one in 125 differs in a sound file
# (bfloat16), the share alone fails one row of nine in 14, and two of 39 are common. With three more: one in 50,000 rows.
FEW = {"float32": 0, "bfloat16": 3}
# No quantisation that is worth shipping does this (q2_k of a small model: 3 times); a damaged file does it at once.
MOST_PERPLEXITY = 10.0


def merged_tensors(base: Path, adapter: Path, merged: Path) -> Check:
    """merged = base + update, tensor by tensor, and nothing else has changed (proof.verify)."""
    check = Check(
        "merged tensors",
        True,
        {},
        f"max_ulp <= {tensors.MOST_ULP}; untouched tensors equal bit for bit; some tensor changed",
        "rounding once to 16 bits moves a value by half a step at most",
    )

    def measure() -> Check:
        found = tensors.verify(base, adapter, merged)
        warnings = []
        if found.untrained:
            warnings.append(
                f"{found.untrained} of {found.targeted} targeted tensors were not trained: their update is 0"
            )
        if found.lost:
            warnings.append(f"the updates of {found.lost} of {found.targeted} tensors are too small for 16 bits")
        return replace(check, figures=asdict(found), warnings=tuple(warnings))

    return timed(check, measure)


def gguf_tokenizer(
    gguf: Path | llama.Process,
    folder: Path,
    texts: Sequence[str] = (),
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Check:
    """llama.cpp cuts texts into the tokens that the folder's own tokenizer gives: HARD and `texts` (chats as rendered).

    A GGUF file without weights will do, so that this can be proved before anything is trained; or one that is open already.
    tokenizer: the folder's, where it is loaded already.
    """
    check = Check(
        "GGUF tokenizer",
        True,
        {},
        "every text gives the same tokens",
        "a model that reads other tokens than it was trained on babbles, and no figure of the weights shows it",
    )

    def measure() -> Check:
        known = tokenizer or load_tokenizer(folder)
        corpus = [*HARD, *_specials(known), *texts]
        ours = [known.encode(text, add_special_tokens=False) for text in corpus]
        theirs = process.tokenise(gguf, corpus)
        wrong = [number for number in range(len(corpus)) if ours[number] != theirs[number]]
        figures = {"texts": len(corpus), "tokens": sum(map(len, ours)), "different": len(wrong)}
        if not wrong:
            return replace(check, figures=figures)
        one = wrong[0]
        failure = (
            f"llama.cpp cuts {len(wrong)} of {len(corpus)} texts otherwise than the tokenizer in {folder}; the first is "
            f"{_quoted(corpus[one])}: {_quoted(theirs[one])} instead of {_quoted(ours[one])}"
        )
        return replace(check, passed=False, figures=figures, failure=failure)

    return timed(check, measure)


def f16_agrees(
    f16: Path,
    model: Reference | TooLarge,
    sequences: Sequence[Sequence[int]],
    starts: Sequence[int],
    keep: Path | None = None,
) -> Check:
    """The f16 GGUF, run by llama.cpp, predicts what the merged model, run by transformers, predicts.

    model: the merged folder as reference.opened gives it. keep: a folder in which the GGUF's logits wait for `quantised`.
    """
    check = Check(
        "f16 GGUF",
        True,
        {},
        f"mean KL <= {MOST_KL['float32']} nats and first choice equal in {LEAST_TOP1['float32']:.0%} of the clear cases "
        f"(transformers in float32; in bfloat16 {MOST_KL['bfloat16']} and {LEAST_TOP1['bfloat16']:.0%}, "
        f"{FEW['bfloat16']} cases aside)",
        "the converter permutes and renames tensors; a mistake there costs 0.01 nats to several, f16 alone 5e-6",
    )

    def measure() -> Check:
        rows, first = divergence.bounded(sequences, starts)
        if not rows:
            return replace(check, skipped="there are no held-out answers")
        if isinstance(model, TooLarge):
            return replace(check, skipped=f"the merged model was not run: {model.reason}")
        found = divergence.compare(model.logits(rows, first), _logits(f16, rows, first, keep), rows, first)
        figures = {"dtype": model.dtype, **found.figures()}
        failure = "the f16 GGUF does not predict what the merged model predicts"
        judged = _judged(check, figures, found, MOST_KL[model.dtype], failure)
        if judged.passed and found.top1_sure * found.sure + FEW[model.dtype] < LEAST_TOP1[model.dtype] * found.sure:
            failure = (
                f"the f16 GGUF's first choice is the merged model's in only {found.top1_sure:.1%} of the clear cases"
            )
            return replace(judged, passed=False, failure=failure)
        return judged

    return timed(check, measure)


def quantised(
    f16: Path, other: Path, sequences: Sequence[Sequence[int]], starts: Sequence[int], keep: Path | None = None
) -> Check:
    """What quantising cost: KL, first choices and perplexities against the f16 file, on held-out answers.

    keep: the folder in which f16_agrees left the f16 file's logits for the same sequences.
    """
    check = Check(
        f"quantised {other.name}",
        True,
        {},
        f"perplexity is finite and <= {MOST_PERPLEXITY:.0f} times the f16 file's",
        "what is lost is reported, not judged; only a damaged file goes beyond this",
    )

    def measure() -> Check:
        rows, first = divergence.bounded(sequences, starts)
        if not rows:
            return replace(check, skipped="there are no held-out answers")
        ours, theirs = _logits(f16, rows, first, keep), llama.logits_each(other, rows, first)
        found = divergence.compare(ours, theirs, rows, first)
        before, after = found.perplexity_reference, found.perplexity
        ratio = after / before
        figures = {**found.figures(), "perplexity_ratio": ratio if math.isfinite(ratio) else None}
        if math.isfinite(before) and ratio <= MOST_PERPLEXITY:  # NaN is not
            return replace(check, figures=figures)
        failure = f"{other.name} is damaged: perplexity {after:.4g} on held-out answers, {before:.4g} before quantising"
        if not math.isfinite(before):  # finite / infinite is 0, which no bound of the ratio sees
            figures["perplexity_ratio"] = None
            failure = f"{f16.name} is damaged, and {other.name} was made from it: perplexity {before:.4g}"
        return replace(check, passed=False, figures=figures, failure=failure)

    return timed(check, measure)


def answers(
    model: Reference | TooLarge,
    f16: Path,
    others: Mapping[str, Path],
    prompts: Sequence[Sequence[int]],
    stop_ids: Sequence[int],
    most: Sequence[int],
    questions: Sequence[str] = (),
    wanted: Sequence[int] = (),
) -> Check:
    """Greedy answers of the merged model and the GGUF files to the same prompts: do they stop where the merged model does?

    prompts: token ids up to where the answer begins; most: tokens that each answer may take. stop_ids end the merged model's
    answers; the GGUF files are left to what they take for an end, as Ollama does. questions: the prompts in words, to name those
    that do not stop; wanted: tokens of the trained answers, for what is cut off before its time has not run on. Where the f16
    GGUF's answer does not stop it reads the merged model's: being led elsewhere by a near tie is no fault.
    """
    check = Check(
        "answers",
        True,
        {},
        "where the merged model stops, the f16 GGUF stops too, or ends the merged model's own answer as it does",
        "a GGUF with a wrong end token answers without end; an answer of its own after a near tie is no fault",
    )

    def measure() -> Check:
        if isinstance(model, TooLarge):
            return replace(check, skipped=f"the merged model was not run: {model.reason}")
        ours = llama.answer(f16, prompts, most)
        merged = model.answers(prompts, stop_ids, most, drafts=[answer.ids for answer in ours])
        faults = list(_faults(f16, prompts, merged, ours))
        of_files = {name: llama.answer(file, prompts, most) for name, file in others.items()}
        every: dict[str, Sequence[evaluation.Answer | llama.Answer]] = {"merged": merged, **of_files}
        stopped = {name: sum(answer.stopped for answer in answers) for name, answers in every.items()}
        texts = [{name: answers[number].text for name, answers in every.items()} for number in range(len(prompts))]
        figures = {
            "prompts": len(prompts),
            "stopped": {**stopped, "f16": sum(answer.stopped for answer in ours)},
            "answers": texts,
        }
        told = every if others else {**every, "f16": ours}  # of the GGUF files those that will be used
        warnings = [
            warning
            for name, answers in told.items()
            for warning in _ran_on(name, answers, most, wanted or [0] * len(prompts), questions or [""] * len(prompts))
        ]
        measured = replace(check, figures=figures, warnings=tuple(warnings))
        return replace(measured, passed=False, failure=faults[0]) if faults else measured

    return timed(check, measure)


def _ran_on(
    name: str,
    answers: Sequence[evaluation.Answer | llama.Answer],
    most: Sequence[int],
    wanted: Sequence[int],
    questions: Sequence[str],
) -> Iterator[str]:
    """The warning of answers that do not stop: they go round in circles, or are long past the length of what was trained."""
    endless = [
        number
        for number, answer in enumerate(answers)
        if held_out.stopped(answer.stopped, len(answer.ids), most[number], wanted[number]) is False
    ]
    if endless:
        limits = {most[number] for number in endless}
        within = " to ".join(str(limit) for limit in sorted({min(limits), max(limits)}))
        named = ", ".join(f"“{shorten(questions[number])}”" for number in endless if questions[number])
        which = f"{len(endless)} of {len(answers)} prompts{': ' if named else ''}{named}"
        yield f"{name} did not stop within {within} tokens on {which}"


def _faults(
    f16: Path,
    prompts: Sequence[Sequence[int]],
    merged: Sequence[evaluation.Answer],
    ours: Sequence[llama.Answer],
) -> Iterator[str]:
    """Why the GGUF does not stop where the merged model does: of each such answer, which neither it nor its own ends."""
    pairs = enumerate(zip(merged, ours, strict=True))
    ended = [number for number, (answer, own) in pairs if answer.stopped and not own.stopped]
    if not ended:
        return
    known = llama.metadata(f16)["vocab"]["end"]
    read = [[*prompts[number], *merged[number].ids[:-1]] for number in ended]
    after = llama.logits(f16, read, [len(ids) - 1 for ids in read])
    for number, rows in zip(ended, after, strict=True):
        end, first = merged[number].ids[-1], int(rows[-1].argmax())
        if end in known and first == end:
            continue
        if end not in known:
            yield f"the merged model stops at token {end}, which the GGUF does not take for an end (it knows {known})"
        else:
            yield f"after the merged model's own answer the GGUF goes on with token {first} instead of the end, {end}"


def _logits(gguf: Path, rows: list[list[int]], first: list[int], keep: Path | None) -> Iterator[np.ndarray]:
    """A GGUF file's logits, kept under its name in `keep` for the next check."""
    logits = llama.logits_each(gguf, rows, first)
    return logits if keep is None else divergence.kept_logits(keep / f"{gguf.name}.logits", logits, len(rows))


def _judged(check: Check, figures: Mapping[str, object], found: Agreement, most: float, failure: str) -> Check:
    if found.mean_kl <= most:  # NaN is not
        return replace(check, figures=figures)
    says = f"{failure}: mean KL {found.mean_kl:.3g} nats over {found.tokens} tokens, at most {most:.3g} is rounding"
    return replace(check, figures=figures, passed=False, failure=says)


def _specials(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Texts around the tokenizer's own special tokens: those that a chat template writes."""
    return [f"{token}user\nHi{token}" for token in tokenizer.all_special_tokens]


def _quoted(value: object) -> str:
    """A text or its tokens as Python writes them, at most 120 characters."""
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
