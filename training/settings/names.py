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


def did_you_mean(word: str, options: Iterable[str], otherwise: str = "") -> str:
    """`; did you mean X?` for the option nearest to `word`; where none is near, `; otherwise`, or nothing."""
    import difflib

    by_lower = {option.lower(): option for option in options}
    near = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {by_lower[near[0]]}?"
    return f"; {otherwise}" if otherwise else ""
