"""Word by word gives the very tokens of the whole text, for every way of cutting that is taken for safe."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from training.base_model.gguf_tokenizer import PRE_TOKENIZERS
from training.data import word_cache

TEXT = [
    "The river's end, and the treaties of 1648; don't  look\n\nback: you'LL see a\tb c.\n- one\n - two 你好，世界 é ½ x_y",
    "  indented = [i for i in range(10)]\n        return 'the river of treaties'  # and the end\r\n the the the of of",
]
# The ways of models' own files, which write the contractions as one group.
OWN = {
    "llama 3": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "gpt 4o": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}


def _splits(*expressions: str) -> list[Any]:
    return [
        *(pre_tokenizers.Split(Regex(expression), "isolated") for expression in expressions),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]


CUTS = {
    "gpt 2": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "smollm 2": [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)],
    **{name: _splits(expression) for name, expression in OWN.items()},
    **{name: _splits(*PRE_TOKENIZERS[name][0]) for name in ("llama-bpe", "qwen2", "qwen35", "tekken", "deepseek-v3")},
}


def _tokenizer(steps: list[Any], normalizer: Any = None) -> Tokenizer:
    """A byte-level BPE tokenizer that has learned TEXT."""
    made = Tokenizer(models.BPE())
    made.normalizer = normalizer
    made.pre_tokenizer = pre_tokenizers.Sequence(steps)
    letters = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        TEXT * 3, trainers.BpeTrainer(vocab_size=600, initial_alphabet=letters, show_progress=False)
    )
    made.add_special_tokens(["<|end|>"])
    return made


# Pieces that cutting depends on: kinds of white space, also those that Python and Unicode do not agree about.
PIECES = (
    *(
        " ",
        " ",
        " ",
        "  ",
        "\n",
        "\r\n",
        "\t",
        "\u00a0",
        "\u3000",
        "\x1c",
        "\x85",
        "\u200b",
        "a",
        "Be",
        "'s",
        " 'LL",
        "12345",
    ),
    *("½", "你好", "，", "!", "...", "<|end|>", "/", "e\u0301", "\u0301", "😀", "_", "the", "of", "'", '"', "treaties"),
)
TEXTS = st.lists(st.lists(st.sampled_from(PIECES), max_size=14).map("".join), min_size=1, max_size=5)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "normalizer"), [*((name, None) for name in CUTS), ("qwen2", normalizers.NFC())])
def test_word_by_word_gives_the_tokens_of_the_whole_text(name: str, normalizer: Any) -> None:
    tokenizer = _tokenizer(CUTS[name], normalizer)
    tokenise = word_cache.word_tokeniser(tokenizer)  # keeps its words from example to example, as from batch to batch
    assert tokenise is not None

    @settings(max_examples=60, deadline=None)
    @given(TEXTS)
    def same(texts: list[str]) -> None:
        assert tokenise(texts) == [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]

    same()
    assert tokenise(TEXT) == [tokenizer.encode(text, add_special_tokens=False).ids for text in TEXT]


def test_a_memory_that_is_full_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(word_cache, "MOST", 3)
    tokenizer = _tokenizer(CUTS["gpt 2"])
    tokenise = word_cache.word_tokeniser(tokenizer)
    for text in ("one two three four five", "two three", "six two seven three", "one two"):
        assert tokenise([text, text]) == [tokenizer.encode(text).ids] * 2


@pytest.mark.parametrize(
    ("why", "change"),
    [
        ("a space in front of every text", {"steps": [pre_tokenizers.ByteLevel(add_prefix_space=True)]}),
        ("no cutting", {"steps": [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]}),
        (
            "no cutting but at digits",
            {"steps": [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False, use_regex=False)]},
        ),
        ("no cutting but at line breaks", {"steps": _splits(r"\s*[\r\n]+")}),
        ("spaces inside of words", {"steps": _splits(r"\p{L}+ ?|\s+|[^\s\p{L}]+")}),
        ("cut behind the space", {"steps": [pre_tokenizers.Metaspace()]}),
        ("white space is changed", {"normalizer": normalizers.Strip()}),
        ("a token that takes the space in front", {"added": AddedToken("<x>", lstrip=True)}),
        ("a token that takes the space behind", {"added": AddedToken("<x>", rstrip=True)}),
        ("a token that must stand alone", {"added": AddedToken("<x>", single_word=True)}),
        ("a token with a space in it", {"added": AddedToken("x y")}),
    ],
)
def test_a_tokenizer_without_borders_is_told_apart(why: str, change: dict[str, Any]) -> None:
    tokenizer = _tokenizer(change.get("steps", CUTS["gpt 2"]), change.get("normalizer"))
    if added := change.get("added"):
        tokenizer.add_tokens([added])
    assert not word_cache.has_borders(tokenizer), why
