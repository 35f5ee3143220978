"""Names that others give: llama.cpp's quantisations, models in Ollama, and the nearest name to a misspelt one."""

from __future__ import annotations

import re
from collections.abc import Iterable

# What llama.cpp's quantiser makes from a 16-bit model alone (tools/quantize/quantize.cpp, llama_ftype_get_default_type).
QUANTISATIONS = (
    *("f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q5_k_s", "q5_1", "q5_0", "q4_k_m", "q4_k_s", "q4_1", "q4_0"),
    *("iq4_nl", "iq4_xs", "q3_k_l", "q3_k_m", "q3_k_s", "iq3_m", "iq3_s", "q2_k", "mxfp4_moe"),
    # Not q2_0: the gguf package (0.19) does not know the type and cannot read it back.
    *("tq2_0", "tq1_0", "q1_0"),
)
# Refused by llama.cpp without an importance matrix (training/to_gguf/importance.py): they hold IQ1, IQ2 or IQ3_XXS
# tensors, or are Q2_K_S (src/llama-quant.cpp, tensor_requires_imatrix; iq3_xs because its attention tensors become
# IQ3_XXS).
NEED_IMPORTANCE_MATRIX = ("iq3_xs", "iq3_xxs", "iq2_m", "iq2_s", "iq2_xs", "iq2_xxs", "iq1_m", "iq1_s", "q2_k_s")
QUANTISATION_ALIASES = {"q5_k": "q5_k_m", "q4_k": "q4_k_m", "q3_k": "q3_k_m"}  # llama.cpp's own


def quantisation(name: str) -> str:
    """llama.cpp's name, in lower case, for `name` in any case. Raises ValueError saying what is wrong with it."""
    method = name.lower()
    method = QUANTISATION_ALIASES.get(method, method)
    if method not in QUANTISATIONS and method not in NEED_IMPORTANCE_MATRIX:
        known = (*QUANTISATIONS, *NEED_IMPORTANCE_MATRIX, *QUANTISATION_ALIASES)
        shown, meant = " ".join(name.split())[:80], did_you_mean(name, known, "q4_k_m, q8_0 and f16 are")
        raise ValueError(f"{shown} is not a quantisation of llama.cpp{meant}")
    return method


def check_model_name(name: str) -> None:
    """Raise ValueError unless Ollama takes `name`: [[host/]namespace/]model[:tag] (its types/model/name.go)."""
    parts = name.split("/")
    parts[-1], colon, tag = parts[-1].partition(":")
    kinds = ["host", "namespace", "model"][-len(parts) :] if len(parts) <= 3 else []
    if not kinds:
        raise ValueError("has too many slashes; Ollama takes [[host/]namespace/]model[:tag]")
    for kind, part in [*zip(kinds, parts, strict=True), *([("tag", tag)] if colon else [])]:
        most = 350 if kind == "host" else 80
        marks = {"host": "_-.:", "namespace": "_-"}.get(kind, "_-.")
        if not part:
            raise ValueError(f"the {kind} is empty; Ollama takes [[host/]namespace/]model[:tag]")
        if len(part) > most:
            raise ValueError(f"the {kind} has {len(part)} characters; Ollama takes at most {most}")
        if not re.fullmatch(f"[A-Za-z0-9_][A-Za-z0-9{re.escape(marks)}]*", part):
            raise ValueError(
                f"Ollama takes a {kind} of letters, digits and {' '.join(marks)} only, beginning with a letter, a digit or _"
            )


# Of did_you_mean: how alike two names must be, and where one is split in words and the other is not. A slip of the
# fingers is above it; another word is below.
ALIKE, JOINED = 0.8, 0.9
MOST_OFFERED = 3
LONGEST = 100  # characters of a name that is compared: the time grows with their square


def did_you_mean(word: str, options: Iterable[str], otherwise: str = "") -> str:
    """`; did you mean X?` for the options that differ by a slip of the fingers; without any, `; otherwise`, or nothing.

    Another digit is no slip: q4 and q5 are two things.
    """
    by_lower = {option.lower(): option for option in options} if len(word) <= LONGEST else {}
    alike = {option: _alikeness(word.lower(), option) for option in by_lower if _digits(word) == _digits(option)}
    best = max(alike.values(), default=0.0)
    if best >= ALIKE:
        near = [by_lower[option] for option, ratio in alike.items() if ratio == best][:MOST_OFFERED]
        return f"; did you mean {' or '.join(near)}?"
    return f"; {otherwise}" if otherwise else ""


def _alikeness(word: str, option: str) -> float:
    """From 0 to 1; 0 where a word of the one is another word in the other: eval_batch_size is no train_batch_size."""
    ours, theirs = (re.split("[-_]", name.strip("-_")) for name in (word, option))
    whole = _ratio("".join(ours), "".join(theirs))
    if len(ours) != len(theirs):
        return whole if whole >= JOINED else 0.0
    slips = all(a[:1] == b[:1] and _ratio(a, b) >= ALIKE - 0.1 for a, b in zip(ours, theirs, strict=True))
    return whole if slips else 0.0


def _ratio(one: str, other: str) -> float:
    import difflib

    return difflib.SequenceMatcher(None, one, other).ratio()


def _digits(name: str) -> list[str]:
    return re.findall("[0-9]", name)
