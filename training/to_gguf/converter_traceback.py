"""What a traceback of llama.cpp's converter tells: whether it was its part for tokenizers that gave up, and over what."""

from __future__ import annotations

import re
from collections.abc import Sequence

# The functions of the converter that read and write a tokenizer: what they refuse, no other trial would take.
TOKENIZER_PART = re.compile(r", in (?:\w*set_vocab\w*|get_vocab_base\w*|_create_vocab_\w+|does_token_look_special)$")
REFUSALS = ("AssertionError", "IndexError", "KeyError", "ValueError")


def refused_tokenizer(printed: Sequence[str]) -> str | None:
    """What the converter's part for tokenizers refused, from its traceback; None when it was not that part."""
    if not printed or not printed[-1].startswith(REFUSALS):
        return None
    frames = [number for number, line in enumerate(printed) if TOKENIZER_PART.search(line)]
    if not frames:
        return None
    said = printed[-1].partition(": ")[2] or printed[min(frames[-1] + 1, len(printed) - 1)].strip()
    if said.startswith("assert max("):
        said = "a token of the tokenizer has a number beyond the model's vocabulary (vocab_size in config.json)"
    return f"llama.cpp's converter cannot write this tokenizer: {said}"
