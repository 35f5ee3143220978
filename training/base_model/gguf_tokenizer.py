"""Rebuild a tokenizer from what a GGUF file says, and prove that it cuts text into llama.cpp's own tokens.

The tokenizers that transformers rebuilds from a GGUF are not to be trusted: they take no notice of `tokenizer.ggml.pre`
("½", emoji and digits come out differently) nor of which token ends a turn. Here the file's tokens, types, merges or
scores are taken as they are, with the pre-tokenizer that llama.cpp uses for that name (`src/llama-vocab.cpp`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training import llama
from training.errors import UserError
from training.llama import GGUF, Process, process
from training.llama.hard_texts import HARD_TEXTS
from training.system import files

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# llama.h: llama_token_attr. llama.cpp's flags and not the file's types: it corrects those of some well-known tokens.
UNKNOWN, UNUSED, CONTROL, USER_DEFINED, BYTE, LSTRIP, RSTRIP = 1 << 0, 1 << 1, 1 << 3, 1 << 4, 1 << 5, 1 << 7, 1 << 8
SPECIAL = UNKNOWN | CONTROL | USER_DEFINED  # recognised in a text as they stand

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_CONTRACTION = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_END = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_END}"
_QWEN2 = rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_END}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_GPT4O_END = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_ANY = r"[^\r\n\p{L}\p{N}]?"
_TEKKEN = rf"{_ANY}{_UPPER}*{_LOWER}+|{_ANY}{_UPPER}+{_LOWER}*|\p{{N}}|{_GPT4O_END}"
_GPT4O = rf"{_ANY}{_UPPER}*{_LOWER}+{_CONTRACTION}?|{_ANY}{_UPPER}+{_LOWER}*{_CONTRACTION}?|\p{{N}}{{1,3}}|{_GPT4O_END}"
_DEEPSEEK3 = (
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
)
_DIGITS_GPT2 = (r"\p{N}", _GPT2)

# tokenizer.ggml.pre -> the expressions that cut the text one after the other, and whether a whole word that is in the
# vocabulary is taken without merging. Nothing rests on this table: every file's tokenizer is proved before it is used.
PRE_TOKENIZERS: dict[str, tuple[tuple[str, ...], bool]] = {
    **dict.fromkeys(
        ("gpt-2", "phi-2", "mpt", "olmo", "jais", "exaone4", "gigachat", "a.x-4.0", "mellum"), ((_GPT2,), False)
    ),
    **dict.fromkeys(("trillion", "granite-docling"), ((_GPT2,), False)),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"), (_DIGITS_GPT2, False)),
    **dict.fromkeys(("minerva-7b", "mellum2"), (_DIGITS_GPT2, False)),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "lfm2"), ((_LLAMA3,), True)),
    **dict.fromkeys(("dbrx", "smaug-bpe", "chatglm-bpe"), ((_LLAMA3,), False)),
    "glm4": ((_LLAMA3,), True),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "kormo", "stablelm2", "megrez", "hunyuan"), ((_QWEN2,), False)),
    **dict.fromkeys(("solar-open", "grok-2"), ((_QWEN2,), False)),
    "qwen35": (
        (
            rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*"
            r"|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        False,
    ),
    "falcon": ((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]"), False),
    "default": ((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"), False),
    **dict.fromkeys(("deepseek-v3", "hunyuan-dense", "joyai-llm"), (_DEEPSEEK3, False)),
    "deepseek-coder": ((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-퟿]+", r"\p{N}"), False),
    "tekken": ((_TEKKEN,), True),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2", "minimax-m2"), ((_GPT4O,), False)),
}


@dataclass(frozen=True)
class Vocabulary:
    """What a GGUF file says about its tokenizer, with what llama.cpp makes of it (`vocab` of llama.metadata)."""

    model: str
    pre: str
    tokens: list[str]
    scores: list[float]
    merges: list[str]
    unknown: int | None
    space_prefix: bool
    chat_template: str | None
    special: dict[str, Any]  # "vocab" of llama.metadata: bos, eos, eot, pad, add_bos, add_eos, end, attributes

    def text(self, name: str) -> str | None:
        """The text of the special token `name` (bos, eos, pad), None where the vocabulary has none."""
        token = self.special[name]
        return self.tokens[token] if 0 <= token < len(self.tokens) else None


def read(gguf: GGUF, opened: Process | None = None) -> Vocabulary:
    """What the file says about its tokenizer. Raises UserError when it says nothing.

    opened: a process of llama.cpp that has the file already.
    """
    fields = {key.removeprefix("tokenizer."): value for key, value in gguf.fields.items()}
    tokens = fields.get("ggml.tokens")
    if not tokens:
        raise UserError("it holds no vocabulary")
    return Vocabulary(
        model=fields.get("ggml.model", ""),
        pre=fields.get("ggml.pre") or "default",
        tokens=tokens,
        scores=fields.get("ggml.scores", []),
        merges=fields.get("ggml.merges", []),
        unknown=fields.get("ggml.unknown_token_id"),
        space_prefix=fields.get("ggml.add_space_prefix", True),
        chat_template=fields.get("chat_template"),
        special=llama.metadata(opened or gguf.path)["vocab"],
    )


def build(vocabulary: Vocabulary) -> Tokenizer:
    """The tokenizer, without its post-processor for BOS. Raises UserError for a kind that cannot be rebuilt."""
    if vocabulary.model == "gpt2":
        tokenizer = _byte_level(vocabulary)
    elif vocabulary.model == "llama":
        tokenizer = _sentencepiece(vocabulary)
    else:
        raise UserError(
            f'its tokenizer is of the kind "{vocabulary.model}"; byte-level BPE and SentencePiece are known'
        )
    _add_special(tokenizer, vocabulary)
    return tokenizer


def _byte_level(vocabulary: Vocabulary) -> Tokenizer:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    if vocabulary.pre not in PRE_TOKENIZERS:
        raise UserError(
            f'its pre-tokenizer "{vocabulary.pre}" is not known; known: {", ".join(sorted(PRE_TOKENIZERS))}'
        )
    expressions, whole_words = PRE_TOKENIZERS[vocabulary.pre]
    ids = {token: number for number, token in enumerate(vocabulary.tokens)}
    tokenizer = Tokenizer(models.BPE(ids, _pairs(vocabulary.merges, ids), ignore_merges=whole_words))
    if expressions in ((_GPT2,), _DIGITS_GPT2):
        # Said the way its makers say it: the same cuts, several times faster than expressions.
        digits = [pre_tokenizers.Digits(individual_digits=True)] if len(expressions) == 2 else []
        steps = [*digits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    else:
        steps = [pre_tokenizers.Split(Regex(expression), "isolated") for expression in expressions]
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps) if len(steps) > 1 else steps[0]
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _pairs(merges: list[str], ids: dict[str, int]) -> list[tuple[str, str]]:
    """Merges as pairs. llama.cpp cuts at the first space after the first character; `tokenizers` refuses a merge whose
    parts or result are no tokens, which llama.cpp could never use either."""
    pairs = []
    for merge in merges:
        at = merge.find(" ", 1)
        left, right = merge[:at], merge[at + 1 :]
        if at > 0 and left in ids and right in ids and left + right in ids:
            pairs.append((left, right))
    return pairs


def _sentencepiece(vocabulary: Vocabulary) -> Tokenizer:
    """The fast form of a SentencePiece BPE model: pieces merged by score, what is left over cut into bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    if len(vocabulary.scores) != len(vocabulary.tokens):
        raise UserError("its SentencePiece vocabulary has no scores")
    ids = {token: number for number, token in enumerate(vocabulary.tokens)}
    unknown = vocabulary.tokens[vocabulary.unknown] if vocabulary.unknown is not None else None
    merges = _merges_by_score(vocabulary, ids)
    tokenizer = Tokenizer(models.BPE(ids, merges, unk_token=unknown, fuse_unk=True, byte_fallback="<0x00>" in ids))
    prefix = [normalizers.Prepend("▁")] if vocabulary.space_prefix else []
    tokenizer.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", "▁")])
    strip = [decoders.Strip(" ", 1, 0)] if vocabulary.space_prefix else []
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def _merges_by_score(vocabulary: Vocabulary, ids: dict[str, int]) -> list[tuple[str, str]]:
    """Every way to put two tokens together to a third, the third's score deciding, as SentencePiece does."""
    pairs = []
    for token, number in ids.items():
        if vocabulary.special["attributes"].get(number, 0) & (SPECIAL | BYTE):
            continue
        cuts = [(token[:i], token[i:]) for i in range(1, len(token))]
        cuts = [(left, right) for left, right in cuts if left in ids and right in ids]
        cuts.sort(key=lambda pair: (ids[pair[0]], ids[pair[1]]))
        pairs += [(-vocabulary.scores[number], cut) for cut in cuts]
    pairs.sort(key=lambda pair: pair[0])
    return [cut for _, cut in pairs]


def _add_special(tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    """Tell the tokenizer which tokens are recognised in a text as they stand."""
    from tokenizers import AddedToken

    for number, flags in vocabulary.special["attributes"].items():
        token = vocabulary.tokens[number]
        if not flags & SPECIAL or not token:
            continue
        special = not flags & USER_DEFINED
        strip = {"lstrip": bool(flags & LSTRIP), "rstrip": bool(flags & RSTRIP)}
        added = AddedToken(token, special=special, normalized=False, **strip)
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)([added])


def prove(tokenizer: Tokenizer, gguf: Path | Process, vocabulary: Vocabulary) -> int:
    """Compare with llama.cpp's tokens of the same texts; gives their number. Raises UserError at the first difference."""
    attributes = vocabulary.special["attributes"]
    specials = [vocabulary.tokens[i] for i, flags in attributes.items() if flags & (CONTROL | USER_DEFINED)]
    specials = [*specials[:20], *filter(None, (vocabulary.text(name) for name in ("bos", "eos", "eot", "pad")))]
    texts = [*HARD_TEXTS, *specials, *(f"a{s}b {s} \n{s}\nuser" for s in specials), "".join(specials)]
    texts += ["".join(t for t in HARD_TEXTS if "\x00" not in t)]
    expected = process.tokenise(gguf, texts)
    for text, theirs in zip(texts, expected, strict=True):
        ours = tokenizer.encode(text, add_special_tokens=False).ids
        if ours != theirs:
            raise UserError(
                f'its tokenizer (model "{vocabulary.model}", pre "{vocabulary.pre}") cannot be rebuilt faithfully: '
                f"{text[:60]!r} gives the tokens {_around(ours, theirs)}, but {_around(theirs, ours)} in llama.cpp"
            )
    return len(texts)


def _around(ids: list[int], other: list[int]) -> str:
    """A few tokens around the first difference."""
    at = next((i for i, (a, b) in enumerate(zip(ids, other, strict=False)) if a != b), min(len(ids), len(other)))
    return f"{'...' if at > 1 else ''}{ids[max(0, at - 1) : at + 4]}"


def save(tokenizer: Tokenizer, vocabulary: Vocabulary, folder: Path, max_length: int | None) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja."""
    from tokenizers.processors import TemplateProcessing

    bos, eos = vocabulary.text("bos"), vocabulary.text("eos")
    around = [(vocabulary.special["add_bos"], bos, "bos"), (vocabulary.special["add_eos"], eos, "eos")]
    used = [(text, vocabulary.special[name]) for wanted, text, name in around if wanted and text]
    if used:
        single = " ".join(
            [*(["$BOS"] if around[0][0] and bos else []), "$A", *(["$EOS"] if around[1][0] and eos else [])]
        )
        names = {"$BOS": bos or "", "$EOS": eos or ""}
        pieces = [names.get(piece, piece) for piece in single.split()]
        tokenizer.post_processor = TemplateProcessing(
            single=pieces, pair=[*pieces, *(p.replace("$A", "$B:1") for p in pieces)], special_tokens=used
        )
    files.write_text(folder / "tokenizer.json", tokenizer.to_str())
    unknown = vocabulary.tokens[vocabulary.unknown] if vocabulary.unknown is not None else None
    settings: dict[str, object] = {
        # The class that takes tokenizer.json as it stands; the classes of single models rebuild their own idea of it.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos,
        "eos_token": eos,
        "unk_token": unknown,
        "pad_token": vocabulary.text("pad") or eos,
        "add_bos_token": bool(vocabulary.special["add_bos"]),
        "add_eos_token": bool(vocabulary.special["add_eos"]),
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length or int(1e30),
    }
    if vocabulary.model == "llama":
        settings |= {"add_prefix_space": vocabulary.space_prefix, "added_tokens_decoder": _added(vocabulary)}
        files.write_bytes(folder / "tokenizer.model", _sentencepiece_model(vocabulary))
    files.write_json(folder / "tokenizer_config.json", {k: v for k, v in settings.items() if v is not None})
    if vocabulary.chat_template:
        files.write_text(folder / "chat_template.jinja", vocabulary.chat_template)


def _added(vocabulary: Vocabulary) -> dict[str, dict[str, object]]:
    """tokenizer_config.json's list of special tokens, from which the converter takes their types beside tokenizer.model."""
    return {
        str(number): {
            "content": vocabulary.tokens[number], "special": not flags & USER_DEFINED, "normalized": False,
            "lstrip": bool(flags & LSTRIP), "rstrip": bool(flags & RSTRIP), "single_word": False,
        }
        for number, flags in vocabulary.special["attributes"].items()
        if flags & (CONTROL | USER_DEFINED)
    }  # fmt: skip


def _sentencepiece_model(vocabulary: Vocabulary) -> bytes:
    """tokenizer.model: without it llama.cpp's converter would take the tokenizer for byte-level BPE."""
    from sentencepiece import sentencepiece_model_pb2 as proto

    kinds = proto.ModelProto.SentencePiece
    by_flag = {UNKNOWN: kinds.UNKNOWN, CONTROL: kinds.CONTROL, USER_DEFINED: kinds.USER_DEFINED, UNUSED: kinds.UNUSED}
    by_flag[BYTE] = kinds.BYTE
    model = proto.ModelProto()
    for number, (token, score) in enumerate(zip(vocabulary.tokens, vocabulary.scores, strict=True)):
        flags = vocabulary.special["attributes"].get(number, 0)
        kind = next((kind for flag, kind in by_flag.items() if flags & flag), kinds.NORMAL)
        if kind == kinds.UNKNOWN and number != vocabulary.unknown:
            # SentencePiece takes one unknown piece only; padding in Phi-3's file is marked so, too.
            kind = kinds.CONTROL
        model.pieces.add(piece=token, score=score, type=kind)
    model.trainer_spec.model_type = proto.TrainerSpec.BPE
    model.trainer_spec.vocab_size = len(vocabulary.tokens)
    model.trainer_spec.byte_fallback = "<0x00>" in vocabulary.tokens
    for name in ("bos", "eos", "pad"):
        setattr(model.trainer_spec, f"{name}_id", vocabulary.special[name])
    model.trainer_spec.unk_id = -1 if vocabulary.unknown is None else vocabulary.unknown
    if vocabulary.unknown is not None:
        model.trainer_spec.unk_piece = vocabulary.tokens[vocabulary.unknown]
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = vocabulary.space_prefix
    model.normalizer_spec.remove_extra_whitespaces = False
    model.normalizer_spec.escape_whitespaces = True
    content: bytes = model.SerializeToString()
    return content
