"""Tokenise texts word by word, each word once: a third of the time that is left where words come again, as in English.

For the tokenizers that never look across the border of two words. Measured as in fast_tokenising.py, on top of it: rows
of one question took 0.16 and 0.22 s in place of 0.53 and 0.60 s, rows of four 0.64 and 0.42 s in place of 0.85 and 0.74 s.

Most of the time of tokenising goes into cutting the text, and most words come again and again: a word that was seen is
looked up. A border lies in front of each single space that stands between two other characters. That no token reaches
across it follows from how the tokenizer cuts a text before merging (SAFE below): GPT-2's way and those made after it
(Llama 3, Qwen, SmolLM, Mistral's Tekken, GPT-4o, DeepSeek 3) let a space stand at the beginning of a word and nowhere
else in it. SentencePiece's tokenizers (Llama 2, Gemma) do not cut at all: there is no short way for them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Words that are remembered, about 20 MB; then the memory is emptied, for later text may use other words.
MOST = 100_000
TOGETHER = 500  # words that are tokenised as one text
LONGEST = 32  # characters of a word that is remembered; longer ones (a Chinese sentence) seldom come again

CONTRACTIONS = re.compile(r"\(\?i?:(?:\|?'(?:[a-z]|\[[A-Za-z]+\])+)+\)\??|(?:^|(?<=\|))'[a-z]+(?=\|)")
# Alternatives of the expressions that cut a text. What makes one safe: a match of it that holds more than white space has
# a space as its first character or not at all, and it looks at nothing in front of it.
SAFE = frozenset(
    (
        r" ?\p{L}+",
        r" ?\p{N}+",
        r" ?[^\s\p{L}\p{N}]+",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*",
        r" ?[\p{P}\p{S}]+[\r\n]*",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+",
        r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{~][A-Za-z]+",  # its | between { and ~ is taken out before it is looked up
        r"\p{N}",
        r"\p{N}{1,3}",
        r"[0-9]",
        r"[一-龥぀-ゟ゠-ヿ]+",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
GPT2 = {r" ?\p{L}+", r" ?\p{N}+", r" ?[^\s\p{L}\p{N}]+", r"\s+(?!\S)"}  # begins a match at each space, as \s+ does
# Other white space than single spaces, or a space at an end: then what stands between two spaces may be no whole word.
UNEVEN = re.compile(r"\A\s|\A\Z|\s\Z| \s|\s ")
# The stretches between the borders, for a text with other white space than single spaces.
STRETCH = re.compile(r"\s*\S+(?:(?! \S)\s+\S+)*(?:\s+\Z)?")


def word_tokeniser(backend: Tokenizer) -> Callable[[Sequence[str]], list[list[int]]] | None:
    """Texts to token ids, as `backend.encode_batch` gives them; None where this tokenizer has no such borders.

    `backend` is a tokenizers.Tokenizer, without truncation and padding.
    """
    if not has_borders(backend):
        return None
    import numpy as np

    each = _each(backend)
    first: dict[str, bytes] = {}  # the beginning of a text -> its ids, as int32
    later: dict[str, bytes] = {}  # what follows a border, without its space

    def tokenise(texts: Sequence[str]) -> list[list[int]]:
        cut = [text.split(" ") for text in texts]
        found: list[list[bytes | None]] = [[first.get(own[0]), *map(later.get, own[1:])] for own in cut]
        unknown = [number for number, ids in enumerate(found) if None in ids]
        is_whole = True
        for number in unknown:
            if UNEVEN.search(texts[number]):
                is_whole = False
                start, *rest = STRETCH.findall(texts[number]) or [texts[number]]
                cut[number] = [start, *(stretch[1:] for stretch in rest)]
                found[number] = [first.get(start), *map(later.get, cut[number][1:])]
        starts = dict.fromkeys(cut[number][0] for number in unknown if found[number][0] is None)
        words = dict.fromkeys(
            word
            for number in unknown
            for word, ids in zip(cut[number][1:], found[number][1:], strict=True)
            if ids is None
        )
        made = each([*starts, *(f" {word}" for word in words)]) if unknown else []
        begun = dict(zip(starts, made[: len(starts)], strict=True))
        new = dict(zip(words, made[len(starts) :], strict=True))
        for number in unknown:
            (start, *rest), (ids, *others) = cut[number], found[number]
            found[number] = [begun[start] if ids is None else ids]
            found[number] += [new[word] if one is None else one for word, one in zip(rest, others, strict=True)]
        for known, more in ((first, begun), (later, new)):
            if len(known) + len(more) > MOST:
                known.clear()
            known.update(
                (word, ids) for word, ids in more.items() if len(word) <= LONGEST and (is_whole or _whole(word))
            )
        # None is left nowhere in it.
        whole = cast(list[list[bytes]], found)
        return [np.frombuffer(b"".join(ids), dtype=np.int32).tolist() for ids in whole]

    return tokenise


def _each(backend: Tokenizer) -> Callable[[list[str]], list[bytes]]:
    """The ids of each text, as bytes of int32. Many short ones cost a third when they go as one, with a token in between."""
    import numpy as np

    between, number = _separator(backend)

    def one_by_one(texts: list[str]) -> list[bytes]:
        encoded = backend.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(one.ids, dtype=np.int32).tobytes() for one in encoded]

    def joined(texts: list[str]) -> list[bytes]:
        found: list[bytes] = []
        for at in range(0, len(texts), TOGETHER):
            some = texts[at : at + TOGETHER]
            (encoded,) = backend.encode_batch_fast([between.join(some)], add_special_tokens=False)
            ids = np.array(encoded.ids, dtype=np.int32)
            ends = [*np.flatnonzero(ids == number).tolist(), len(ids)]
            if len(ends) != len(some):  # a text holds that very token
                found += one_by_one(some)
                continue
            packed, start = ids.tobytes(), 0
            for end in ends:
                found.append(packed[4 * start : 4 * end])
                start = end + 1
        return found

    return joined if between else one_by_one


def _separator(backend: Tokenizer) -> tuple[str, int]:
    """A special token that no other token can hide, and its id; ("", -1) where there is none."""
    added = backend.get_added_tokens_decoder()
    for number, token in added.items():
        others = [other.content for other in added.values() if other.content != token.content]
        if token.special and not token.normalized and not any(covers(other, token.content) for other in others):
            return token.content, number
    return "", -1


def covers(other: str, text: str) -> bool:
    """Whether `other` holds `text`, or may begin before it and end in it."""
    return text in other or any(other.endswith(text[:size]) for size in range(1, min(len(text), len(other))))


def _whole(word: str) -> bool:
    """Whether the word may be met between two borders: no white space at its ends, and a space nowhere."""
    return bool(word) and not word[0].isspace() and not word[-1].isspace() and " " not in word


def has_borders(backend: Tokenizer) -> bool:
    """Whether this tokenizers.Tokenizer gives the same ids for a text and for its words one by one."""
    if type(backend.model).__name__ != "BPE" or backend.model.dropout or backend.pre_tokenizer is None:
        return False
    if backend.normalizer is not None and type(backend.normalizer).__name__ != "NFC":  # which leaves spaces alone
        return False
    if any(
        token.lstrip or token.rstrip or token.single_word or any(map(str.isspace, token.content))
        for token in backend.get_added_tokens_decoder().values()
    ):
        return False
    cutting = json.loads(backend.pre_tokenizer.__getstate__())
    kinds = [
        _keeps_borders(step) for step in (cutting["pretokenizers"] if cutting["type"] == "Sequence" else [cutting])
    ]
    return None not in kinds and True in kinds


def _keeps_borders(step: dict[str, Any]) -> bool | None:
    """Whether one step of cutting a text cuts at every border; None where it may cut so that a border is lost."""
    if step["type"] == "ByteLevel":  # its own expression is GPT-2's
        return None if step["add_prefix_space"] else step["use_regex"]
    if step["type"] == "Digits":
        return False
    expression = step.get("pattern", {}).get("Regex")
    if step["type"] != "Split" or expression is None or step["behavior"] != "Isolated" or step["invert"]:
        return None
    plain = CONTRACTIONS.sub("", expression).replace("{|}~", "{~")
    alternatives = {alternative for alternative in plain.split("|") if alternative}
    return None if alternatives - SAFE else r"\s+" in alternatives or alternatives >= GPT2
