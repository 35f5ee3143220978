"""Templates and masks on real vocabularies and real chat templates: llama.cpp's vocabulary files, TRL's and llama.cpp's Jinja."""

from __future__ import annotations

import copy
import dataclasses
import datetime
import functools
import importlib.util
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.base_models import a_base_model
from tests.support.settings import a_settings
from training.base_model import gguf_tokenizer
from training.data import ChatTemplate, Row, Turn, chat_template, encoding, fast_tokenising, serving, tokenising
from training.data.encoding import IGNORED, Encoded, NothingToTrain
from training.errors import UserError
from training.llama import gguf_file
from training.settings import Settings, prompt_template
from training.system import paths

pytestmark = pytest.mark.tiny

LLAMA_CPP = Path(sys.prefix) / "llama.cpp/models"
TRL = Path(importlib.util.find_spec("trl").origin).parent / "chat_templates"
GEMMA = ("<start_of_turn>", "<end_of_turn>")
DEEPSEEK = ("<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>")
MISTRAL = ("[INST]", "[/INST]")

# name: (vocabulary, template, tokens the vocabulary lacks, the text that ends a turn)
FAMILIES = {
    "llama-3": ("llama-bpe", TRL / "llama3.jinja", (), "<|eot_id|>"),
    "llama-3.1": ("llama-bpe", LLAMA_CPP / "templates/meta-llama-Llama-3.1-8B-Instruct.jinja", (), "<|eot_id|>"),
    "llama-3.2": ("llama-bpe", LLAMA_CPP / "templates/meta-llama-Llama-3.2-3B-Instruct.jinja", (), "<|eot_id|>"),
    "qwen-2.5": ("qwen2", TRL / "qwen2_5.jinja", (), "<|im_end|>"),
    "qwen-3": ("qwen2", LLAMA_CPP / "templates/Qwen-Qwen3-0.6B.jinja", (), "<|im_end|>"),
    "qwen-3-instruct-2507": ("qwen2", TRL / "qwen3_instruct_2507.jinja", (), "<|im_end|>"),
    "qwen-3.5-thinking": ("qwen2", TRL / "qwen3_5_think.jinja", (), "<|im_end|>"),
    "qwen-3.5-not-thinking": ("qwen2", TRL / "qwen3_5_nothink.jinja", (), "<|im_end|>"),
    "qwq": ("qwen2", LLAMA_CPP / "templates/Qwen-QwQ-32B.jinja", (), "<|im_end|>"),
    "smollm3": ("qwen2", LLAMA_CPP / "templates/HuggingFaceTB-SmolLM3-3B.jinja", (), "<|im_end|>"),
    "deepseek-r1": (
        "llama-bpe",
        LLAMA_CPP / "templates/deepseek-ai-DeepSeek-R1-Distill-Llama-8B.jinja",
        DEEPSEEK,
        "<｜end▁of▁sentence｜>",
    ),
    "deepseek-r1-not-thinking": (
        "llama-bpe",
        LLAMA_CPP / "templates/deepseek-ai-DeepSeek-R1-Distill-Qwen-32B.jinja",
        DEEPSEEK,
        "<｜end▁of▁sentence｜>",
    ),
    "gemma-2": ("llama-spm", LLAMA_CPP / "templates/google-gemma-2-2b-it.jinja", GEMMA, "<end_of_turn>"),
    "gemma-3": ("llama-spm", TRL / "gemma3.jinja", GEMMA, "<end_of_turn>"),
    "mistral-nemo": (
        "llama-spm",
        LLAMA_CPP / "templates/mistralai-Mistral-Nemo-Instruct-2407.jinja",
        MISTRAL,
        "</s>",
    ),
    "mistral": ("llama-spm", "mistral", (), "</s>"),
    "phi-3": ("phi-3", TRL / "phi3.jinja", (), "<|end|>"),
    "phi-3.5": ("phi-3", TRL / "phi3_5.jinja", (), "<|end|>"),
    "smollm2": ("embedded", None, (), "<|im_end|>"),
    "chatml": ("qwen2", "chatml", (), "<|im_end|>"),
    "chatml-without-its-tokens": ("llama-spm", "chatml", (), "</s>"),
    "alpaca": ("llama-spm", "alpaca", (), "</s>"),
    "zephyr": ("llama-spm", "zephyr", (), "</s>"),
    "vicuna": ("llama-spm", "vicuna", (), "</s>"),
}

ONE = (Turn("user", "What is 2+2?"), Turn("assistant", "It is 4."))
TWO = (*ONE, Turn("user", "And 你好 in French?"), Turn("assistant", "Bonjour, my friend.\nIt is 'salut' too."))


def _settings(chat: str = "auto", system: str | None = None, prompt: str | None = None) -> Settings:
    defaults = a_settings()
    return dataclasses.replace(
        defaults,
        model=dataclasses.replace(defaults.model, chat_template=chat, system_prompt=system),
        dataset=dataclasses.replace(defaults.dataset, prompt_template=prompt),
    )


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory, embedded: Path) -> Callable[..., Any]:
    """A real tokenizer by the name of llama.cpp's vocabulary file, with further special tokens if asked for.

    Each is loaded once, which takes up to three seconds. What is given is a copy with a chat template of its own.
    """
    from transformers import AutoTokenizer

    folders: dict[str, Path] = {"embedded": embedded}

    @functools.cache
    def loaded(name: str, *added: str) -> Any:
        words = AutoTokenizer.from_pretrained(folder_of(name))
        if added:
            words.add_special_tokens({"additional_special_tokens": list(added)})
        return words

    def folder_of(name: str) -> Path:
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp("vocabulary") / name
            folders[name].mkdir()
            vocabulary = gguf_tokenizer.read(gguf_file.read(LLAMA_CPP / f"ggml-vocab-{name}.gguf"))
            gguf_tokenizer.save(gguf_tokenizer.build(vocabulary), vocabulary, folders[name], None)
        return folders[name]

    return lambda name, *added: copy.copy(loaded(name, *added))


@pytest.fixture(scope="session")
def families(tokenizer: Callable[..., Any]) -> dict[str, tuple[Any, ChatTemplate]]:
    """The tokenizer and the template of each family, made when it is asked for."""

    class Families(dict):
        def __missing__(self, name: str) -> tuple[Any, ChatTemplate]:
            vocabulary, template, added, _ = FAMILIES[name]
            words = tokenizer(vocabulary, *added)
            if isinstance(template, Path):
                words.chat_template = template.read_text("utf-8")
            named = template if isinstance(template, str) else "auto"
            self[name] = words, chat_template.choose(None, _settings(named), words)
            return self[name]

    return Families()


def _trained(sequence: Encoded, words: Any) -> str:
    return words.decode([label for label in sequence.labels if label != IGNORED], skip_special_tokens=False)


def _row(turns: tuple[Turn, ...] = ONE) -> Row:
    return Row(turns, None, "a.jsonl", 1)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("turns", [ONE, TWO], ids=["one", "two"])
def test_every_answer_ends_in_a_trained_turn_end_and_nothing_after_it(name: str, turns: tuple, families: dict) -> None:
    words, template = families[name]
    sequences = encoding.encode(template, words, _row(turns), 4096)
    end = words.convert_tokens_to_ids(FAMILIES[name][3])
    answers = [turn.content for turn in turns if turn.role == "assistant"]
    closed = [position for one in sequences for position in _ends_of_spans(one)]
    assert len(closed) == len(answers)
    for one in sequences:
        assert not one.cut
        assert one.labels[-1] == one.input_ids[-1] == end
        assert all(one.labels[position] == end for position in _ends_of_spans(one))
        assert all(label in (IGNORED, token) for label, token in zip(one.labels, one.input_ids, strict=True))
    trained = "".join(_trained(one, words) for one in sequences)
    assert all(answer in trained for answer in answers)
    assert not any(turn.content in trained for turn in turns if turn.role == "user")


def _ends_of_spans(one: Encoded) -> list[int]:
    flags = [label != IGNORED for label in one.labels]
    return [i for i, flag in enumerate(flags) if flag and not (flags + [False])[i + 1]]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("turns", [ONE, TWO], ids=["one", "two"])
def test_the_prompt_has_exactly_the_tokens_that_inference_gives_it(name: str, turns: tuple, families: dict) -> None:
    words, template = families[name]
    sequences = encoding.encode(template, words, _row(turns), 4096)
    chats = [[{"role": t.role, "content": t.content} for t in turns[:i]] for i in range(1, len(turns), 2)]
    for number, messages in enumerate(chats):
        text = words.apply_chat_template(
            messages, chat_template=template.jinja, add_generation_prompt=True, tokenize=False
        )
        ids = words(text, add_special_tokens=False)["input_ids"]
        if words("a")["input_ids"][0] == words.bos_token_id != ids[0]:
            ids = [words.bos_token_id, *ids]  # as llama.cpp does for this vocabulary
        one = sequences[number if len(sequences) > 1 else 0]
        assert one.input_ids[: len(ids)] == ids
        assert one.labels[len(ids)] != IGNORED
        assert one.labels[len(ids) - 1] == IGNORED
        turn = [Turn(message["role"], message["content"]) for message in messages]
        assert encoding.prompt_ids(template, words, turn) == ids


@pytest.mark.parametrize("name", FAMILIES)
def test_bos_stands_once_where_the_model_has_one_and_nowhere_else(name: str, families: dict) -> None:
    words, template = families[name]
    bos = words.bos_token_id
    for row in (_row(ONE), _row(TWO), Row(None, "just text", "a.jsonl", 1)):
        for one in encoding.encode(template, words, row, 4096):
            if name == "smollm2":  # its BOS is <|im_start|>, which opens every turn, and is not added to plain text
                assert (one.input_ids[0] == bos) == (row.messages is not None)
                assert one.input_ids[1] != bos
            elif chat_template.adds_bos(words):
                assert one.input_ids[0] == bos
                assert one.input_ids.count(bos) == 1
            else:
                assert one.input_ids[0] != bos  # Qwen's GGUF names <|endoftext|>, which is its eos, too
                assert bos not in one.input_ids[:-1]


ODD = (
    *(
        "plain",
        " spaces around ",
        "\n\n",
        "你好，世界",
        "a<|im_end|>b",
        "<s> </s>",
        "<start_of_turn>",
        "[INST]x[/INST]",
    ),
    *("<|im_", "😀é", "<|eot_id|> \t", "x</think>\n\ny", "<|endoftext|>", "▁▁", "<0x0A>"),
)  # what rows may hold, special tokens of other models among it


@pytest.mark.parametrize("name", FAMILIES)
def test_stretch_by_stretch_gives_the_very_same_tokens(name: str, families: dict) -> None:
    words, template = families[name]
    chats = [(Turn("user", f"{one}?"), Turn("assistant", other), *TWO) for one in ODD for other in ODD]
    texts = [chat_template.render(template, one[:size], size % 2 == 1) for one in chats for size in (1, 2, 3, 4)]
    texts += [one + other for one in ODD for other in ODD]
    assert fast_tokenising.quick_tokeniser(words)(texts) == fast_tokenising.tokeniser(words)(texts)


def test_a_quick_way_that_gives_other_tokens_is_not_taken(families: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    words, template = families["smollm2"]
    monkeypatch.setattr(fast_tokenising, "_joined", lambda own, found: [0])
    texts = [chat_template.render(template, ONE)]
    assert fast_tokenising.quick_tokeniser(words)(texts) == fast_tokenising.tokeniser(words)(texts)


@pytest.mark.parametrize(
    ("name", "vocabulary", "added"),
    [
        ("llama3", "llama-bpe", ()),
        ("qwen2_5", "qwen2", ()),
        ("qwen3_instruct_2507", "qwen2", ()),
        ("phi3", "phi-3", ()),
        ("gemma3", "llama-spm", GEMMA),
    ],
)
def test_the_mask_is_that_of_trls_own_training_template(
    name: str, vocabulary: str, added: tuple, tokenizer: Callable[..., Any]
) -> None:
    """TRL carries each template a second time, with the answers marked: an independent word on what is to be trained."""
    words = tokenizer(vocabulary, *added)
    words.chat_template = (TRL / f"{name}.jinja").read_text("utf-8")
    (ours,) = encoding.encode(chat_template.choose(None, _settings(), words), words, _row(TWO), 4096)
    theirs = words.apply_chat_template(
        [{"role": turn.role, "content": turn.content} for turn in TWO],
        chat_template=(TRL / f"{name}_training.jinja").read_text("utf-8"),
        return_assistant_tokens_mask=True,
        return_dict=True,
    )
    length = len(ours.input_ids)
    ids = theirs["input_ids"]
    offset = int(ids[0] != ours.input_ids[0])  # BOS, where only the tokenizer writes it
    assert ids[: length - offset] == ours.input_ids[offset:]
    newline = set(words("\n", add_special_tokens=False)["input_ids"])
    mask = theirs["assistant_masks"]
    ours_mask = [int(label != IGNORED) for label in ours.labels[offset:]]
    different = [ids[i] for i in range(length - offset) if mask[i] != ours_mask[i]]
    assert set(different) <= newline  # TRL trains the line break after the turn end where the template has one


def test_qwen3_trains_each_answer_as_it_is_asked_for(families: dict) -> None:
    words, template = families["qwen-3"]
    first, second = encoding.encode(template, words, _row(TWO), 4096)
    assert _trained(first, words) == "<think>\n\n</think>\n\nIt is 4.<|im_end|>"
    assert _trained(second, words) == f"<think>\n\n</think>\n\n{TWO[-1].content}<|im_end|>"
    assert "<think>" not in words.decode(
        [t for t, lb in zip(second.input_ids, second.labels, strict=True) if lb == IGNORED]
    )


def test_qwen3_keeps_the_rows_own_thoughts(families: dict) -> None:
    words, template = families["qwen-3"]
    (one,) = encoding.encode(
        template, words, _row((ONE[0], Turn("assistant", "<think>\n2 and 2\n</think>\n\n4"))), 4096
    )
    assert _trained(one, words) == "<think>\n2 and 2\n</think>\n\n4<|im_end|>"


def test_a_think_block_that_the_prompt_opens_is_closed_by_the_answer(families: dict) -> None:
    words, template = families["qwen-3.5-thinking"]
    assert template.opens_think
    (plain,) = encoding.encode(template, words, _row(), 4096)
    (thought,) = encoding.encode(
        template, words, _row((ONE[0], Turn("assistant", "<think>\n2 and 2\n</think>\n\n4"))), 4096
    )
    assert words.decode(plain.input_ids).endswith("<think>\n\n</think>\n\nIt is 4.<|im_end|>")
    assert words.decode(thought.input_ids).endswith("<think>\n2 and 2\n</think>\n\n4<|im_end|>")


@pytest.mark.parametrize(
    ("name", "trained"),
    [
        ("qwen-3", "<think>\n2 and 2\n</think>\n\n4<|im_end|>"),
        ("smollm3", "<think>\n2 and 2\n</think>\n\n4<|im_end|>"),
        ("deepseek-r1", "2 and 2\n</think>\n\n4<｜end▁of▁sentence｜>"),  # the prompt ends in "<think>\n"
    ],
)
def test_thoughts_are_trained_where_the_prompt_leaves_room_for_them(name: str, trained: str, families: dict) -> None:
    words, template = families[name]
    thinking = (ONE[0], Turn("assistant", "<think>\n2 and 2\n</think>\n\n4"))
    (one,) = encoding.encode(template, words, _row(thinking), 4096)
    assert _trained(one, words) == trained
    *_, later = encoding.encode(template, words, _row((*thinking, *ONE)), 4096, train_turns="last")
    assert name == "smollm3" or "2 and 2" not in words.decode(later.input_ids)  # as inference leaves it out
    assert _trained(later, words).endswith(f"It is 4.{FAMILIES[name][3]}")


def test_an_end_text_that_is_no_token_is_followed_by_a_trained_eos(families: dict) -> None:
    words, template = families["chatml-without-its-tokens"]
    assert template.eos_follows
    assert template.end_tokens == ("<|im_end|>", "</s>")
    sequences = encoding.encode(template, words, _row(TWO), 4096)
    assert [_trained(one, words).endswith("<|im_end|></s>") for one in sequences] == [True, True]
    assert [one.input_ids.count(words.eos_token_id) for one in sequences] == [1, 1]  # none inside a prompt


@pytest.mark.parametrize(
    ("prompt", "answer"), [("Q: {instruction}\nA: {response}", "word"), ("{instruction}=>{response}", "> > x"), ("{instruction} a{response}", "bc")]
)  # fmt: skip
@pytest.mark.parametrize("vocabulary", ["embedded", "llama-spm", "qwen2", "llama-bpe"])
def test_a_token_never_runs_across_the_border_of_prompt_and_answer(
    prompt: str, answer: str, vocabulary: str, tokenizer: Callable[..., Any]
) -> None:
    words = tokenizer(vocabulary)
    template = chat_template.choose(None, _settings(prompt=prompt), words)
    (one,) = encoding.encode(template, words, _row((Turn("user", "why"), Turn("assistant", answer))), 4096)
    asked = encoding.prompt_ids(template, words, [Turn("user", "why")])
    assert one.input_ids[: len(asked)] == asked
    whole = words.decode(one.input_ids, skip_special_tokens=True)
    assert whole == prompt.replace("{instruction}", "why").replace("{response}", answer)


def test_the_last_answer_alone_or_everything_is_trained_when_asked_for(families: dict) -> None:
    words, template = families["smollm2"]
    (last,) = encoding.encode(template, words, _row(TWO), 4096, train_turns="last")
    assert _trained(last, words) == TWO[-1].content + "<|im_end|>"
    (everything,) = encoding.encode(template, words, _row(TWO), 4096, train_on="all")
    assert everything.labels[1:] == everything.input_ids[1:]
    assert everything.input_ids == last.input_ids


def test_plain_text_is_trained_whole_with_eos(families: dict) -> None:
    for name in ("smollm2", "llama-3", "phi-3"):
        words, template = families[name]
        (one,) = encoding.encode(template, words, Row(None, "just text", "a.jsonl", 1), 4096)
        start = int(chat_template.adds_bos(words))
        assert one.labels[start:] == one.input_ids[start:]
        assert one.input_ids[-1] == words.eos_token_id
        assert words.decode(one.input_ids, skip_special_tokens=True) == "just text"


def test_a_cut_answer_gets_no_end_token_and_a_row_without_room_for_one_is_refused(families: dict) -> None:
    words, template = families["smollm2"]
    (whole,) = encoding.encode(template, words, _row(), 4096)
    length = len(whole.input_ids)
    (fits,) = encoding.encode(template, words, _row(), length)
    assert fits == whole
    (cut,) = encoding.encode(template, words, _row(), length - 1)
    assert cut.cut
    assert cut.input_ids == whole.input_ids[:-1]
    assert words.eos_token_id != cut.labels[-1]
    with pytest.raises(NothingToTrain) as caught:
        encoding.encode(template, words, _row(), whole.prompt_length)
    assert str(caught.value) == (
        f"the prompt has {whole.prompt_length} tokens and MAX_SEQ_LENGTH is {whole.prompt_length}: "
        "no token of the answer is left"
    )


def test_a_system_prompt_stands_in_front_unless_the_row_has_one(embedded: Path, tokenizer: Callable[..., Any]) -> None:
    words = tokenizer("embedded")
    template = chat_template.choose(None, _settings(system="Be brief."), words)
    (one,) = encoding.encode(template, words, _row(), 4096)
    assert words.decode(one.input_ids).startswith("<|im_start|>system\nBe brief.<|im_end|>\n")
    (own,) = encoding.encode(template, words, _row((Turn("system", "Be long."), *ONE)), 4096)
    assert words.decode(own.input_ids).startswith("<|im_start|>system\nBe long.<|im_end|>\n<|im_start|>user")


def test_a_template_without_system_role_folds_it_in_or_refuses(families: dict, tokenizer: Callable[..., Any]) -> None:
    words, template = families["gemma-3"]
    (one,) = encoding.encode(template, words, _row((Turn("system", "Be brief."), *ONE)), 4096)
    assert "<start_of_turn>user\nBe brief.\n\nWhat is 2+2?<end_of_turn>" in chat_template.render(
        template, (Turn("system", "Be brief."), *ONE)
    )
    assert one.labels[-1] != IGNORED
    words, template = families["gemma-2"]
    with pytest.raises(NothingToTrain, match="^the row has a system message, and the chat template takes none$"):
        encoding.encode(template, words, _row((Turn("system", "Be brief."), *ONE)), 4096)
    with pytest.raises(UserError) as caught:
        chat_template.choose(None, _settings(system="Be brief."), words)
    assert str(caught.value) == (
        "[Model] SYSTEM_PROMPT: the chat template refuses: System role not supported (the model's own)"
    )


@pytest.mark.parametrize(
    ("jinja", "message"),
    [
        ("{% for m in messages %}", "the chat template refuses: Unexpected end of template."),
        ("{{ messages[0].content }}", "the template does not write out the question and the answer once"),
        ("{{ nothing.at.all }}", "the chat template refuses: 'nothing' is undefined"),
        ("{{ raise_exception('no') }}", "the chat template refuses: no"),
    ],
)
def test_a_template_that_cannot_serve_is_refused(
    jinja: str, message: str, tokenizer: Callable[..., Any], tmp_path: Path
) -> None:
    path = tmp_path / "t.jinja"
    path.write_text(jinja, "utf-8")
    with pytest.raises(UserError) as caught:
        chat_template.choose(None, _settings(str(path)), tokenizer("embedded"))
    assert str(caught.value).startswith(f"CHAT_TEMPLATE = {path}: {message}")


def test_the_choice_says_where_it_is_from(tokenizer: Callable[..., Any], tmp_path: Path) -> None:
    words = tokenizer("embedded")
    assert chat_template.choose(None, _settings(), words).source == "the model's own"
    assert chat_template.choose(None, _settings("alpaca"), words).source == "CHAT_TEMPLATE = alpaca"
    assert chat_template.choose(None, _settings(prompt="{instruction} {response}"), words).source == "PROMPT_TEMPLATE"
    with pytest.raises(UserError, match="^\\[Model\\] CHAT_TEMPLATE = chatlm: neither a file nor a known name"):
        chat_template.choose(None, _settings("chatlm"), words)
    with pytest.raises(UserError, match="PROMPT_TEMPLATE and \\[Model\\] CHAT_TEMPLATE both say"):
        chat_template.choose(None, _settings("alpaca", prompt="{instruction} {response}"), words)
    words.chat_template = None
    base = a_base_model(tmp_path)
    assert (
        chat_template.choose(base, _settings(), words).source
        == "CHAT_TEMPLATE = chatml (auto: the model has no template of its own)"
    )
    (tmp_path / "chat_template.jinja").write_text((paths.CHAT_TEMPLATES / "zephyr.jinja").read_text("utf-8"), "utf-8")
    assert chat_template.choose(base, _settings(), words).source == "the model's own"


CHATML_ONLY = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def test_a_template_without_a_generation_prompt_gets_the_header_of_its_answers(tokenizer: Callable[..., Any]) -> None:
    words = tokenizer("qwen2")
    words.chat_template = CHATML_ONLY
    template = chat_template.choose(None, _settings(), words)
    assert "with the generation prompt that it lacks, '<|im_start|>assistant\\n'" in template.source
    one, two = (encoding.encode(template, words, _row(turns), 4096)[-1] for turns in (ONE, TWO))
    assert _trained(one, words) == "It is 4.<|im_end|>"
    assert _trained(two, words) == f"It is 4.<|im_end|>{TWO[-1].content}<|im_end|>"
    assert chat_template.render(template, TWO) == chat_template.render(ChatTemplate(CHATML_ONLY, ""), TWO)


@pytest.mark.parametrize("name", ["llama-3", "qwen-3", "mistral", "gemma-2", "deepseek-r1", "vicuna"])
def test_a_template_with_a_generation_prompt_stays_as_it_is(name: str, families: dict) -> None:
    assert "that it lacks" not in families[name][1].source


def _folder(tmp_path: Path, words: Any, **files: str) -> Any:
    """A base's folder with the files in it, and the tokenizer's own template taken away."""
    for name, text in files.items():
        (tmp_path / name.replace("_json", ".json")).write_text(text)
    words.chat_template = None
    return a_base_model(tmp_path)


@pytest.mark.parametrize(
    "held",
    [CHATML_ONLY, {"default": CHATML_ONLY, "rag": "x"}, [{"name": "default", "template": CHATML_ONLY}]],
    ids=["a text", "a table", "a list"],
)
def test_a_template_in_an_old_chat_template_json_is_the_models_own(
    held: object, tokenizer: Callable[..., Any], tmp_path: Path
) -> None:
    words = tokenizer("qwen2")
    base = _folder(tmp_path, words, chat_template_json=json.dumps({"chat_template": held}))
    found = chat_template.choose(base, _settings(), words)
    assert found.source.startswith("the model's own") and found.jinja.startswith(CHATML_ONLY)
    (tmp_path / "chat_template.json").write_text('{"chat_template": 7}')
    with pytest.raises(UserError, match=r"chat_template\.json: chat_template = 7 is no template; repair it, or set"):
        chat_template.choose(base, _settings(), words)
    (tmp_path / "chat_template.json").write_text("{")
    with pytest.raises(UserError, match=r"chat_template\.json cannot be read as JSON: .*set \[Model\] CHAT_TEMPLATE"):
        chat_template.choose(base, _settings(), words)


def test_the_only_named_template_is_the_models_own_and_of_several_one_must_be_chosen(
    tokenizer: Callable[..., Any],
) -> None:
    words = tokenizer("qwen2")
    words.chat_template = {"chat": CHATML_ONLY}
    assert chat_template.choose(None, _settings(), words).source.startswith("the model's own, named chat")
    words.chat_template = {"rag": CHATML_ONLY, "chat": CHATML_ONLY}
    with pytest.raises(UserError, match="chat templates named chat, rag and none named default: copy the one to train"):
        chat_template.choose(None, _settings(), words)


def test_a_template_for_tools_in_a_folder_of_its_own_does_not_stand_for_the_one_for_chats(
    tokenizer: Callable[..., Any], tmp_path: Path
) -> None:
    words = tokenizer("qwen2")
    base = _folder(tmp_path, words, tokenizer_config_json=json.dumps({"chat_template": CHATML_ONLY}))
    # What transformers makes of additional_chat_templates/tool_use.jinja, and of nothing else.
    words.chat_template = {"tool_use": "{{ 'tools' }}"}
    found = chat_template.choose(base, _settings(), words)
    assert found.source.startswith("the model's own, with the generation prompt")
    assert found.jinja.startswith(CHATML_ONLY)


KNOWS_TOOLS = (
    "{% if tools %}<tools>{{ tools | tojson }}{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content }}{% for c in m.tool_calls or [] %}<call>{{ c | tojson }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_rows_with_tools_are_refused_where_servers_would_take_the_models_template_for_tools(
    tokenizer: Callable[..., Any],
) -> None:
    words = tokenizer("qwen2")
    words.chat_template = {"default": KNOWS_TOOLS, "tool_use": "{% if tools %}.{% endif %}" + KNOWS_TOOLS}
    found = chat_template.choose(None, _settings(), words)
    assert encoding.encode(found, words, Row(ONE, None, "a.jsonl", 1), 4096)
    with pytest.raises(
        NothingToTrain, match=r"named tool_use: CHAT_TEMPLATE = tool_use learns .* = default by the one"
    ):
        encoding.encode(found, words, Row(CALLED, None, "a.jsonl", 1, TOOLS), 4096)
    for name in ("tool_use", "default"):
        chosen = chat_template.choose(None, _settings(name), words)
        assert (chosen.jinja, chosen.source) == (words.chat_template[name], f"CHAT_TEMPLATE = {name} (the model's own)")
        assert chosen.alone and not found.alone
        assert encoding.encode(chosen, words, Row(CALLED, None, "a.jsonl", 1, TOOLS), 4096)
    words.chat_template = {"tool_use": KNOWS_TOOLS}  # the only one is the one for all chats
    only = chat_template.choose(None, _settings(), words)
    assert encoding.encode(only, words, Row(CALLED, None, "a.jsonl", 1, TOOLS), 4096)
    words.chat_template = {"default": KNOWS_TOOLS, "tool_use": "{{ 1 }}"}
    with pytest.raises(UserError, match="CHAT_TEMPLATE = rag: the model has no .* named so: it has default, tool_use"):
        chat_template.choose(None, _settings("rag"), words)


# ---- what a server writes before an answer -------------------------------------------------------------------------

EMPTY_THOUGHT = "<think>\n\n</think>\n\n"
SWITCHED_OFF, SWITCHED_ON = "{%- set enable_thinking = false %}", "{%- set enable_thinking = true %}"
# family -> the line in front of the exported template, and what TEMPLATE writes after the generation prompt
SERVED = {
    "llama-3": ("", ""),
    "llama-3.1": ('{%- set date_string = "26 Jul 2024" %}', ""),
    "llama-3.2": ("", ""),
    "qwen-2.5": ("", ""),
    "qwen-3": ("", EMPTY_THOUGHT),
    "qwen-3-instruct-2507": ("", ""),
    "qwen-3.5-thinking": ("", "\n</think>\n\n"),
    "qwen-3.5-not-thinking": (SWITCHED_OFF, ""),
    "qwq": (SWITCHED_OFF, ""),
    "smollm3": (SWITCHED_ON, ""),
    "deepseek-r1": ("", "\n</think>\n\n"),
    "deepseek-r1-not-thinking": (SWITCHED_OFF, ""),
    "gemma-3": ("", ""),
    "mistral-nemo": ("", ""),
    "phi-3": ("", ""),
}


@pytest.mark.parametrize("name", SERVED)
def test_rows_without_thoughts_are_served_after_the_prompt_that_they_were_trained_with(
    name: str, families: dict
) -> None:
    words, template = families[name]
    closed, _, left = serving.close(template, words, thoughts=False)
    assert (closed.exported.removesuffix(template.jinja), closed.opening) == SERVED[name]
    assert left == []
    for turns in (ONE, TWO):
        piece = encoding.plan_row(template, _row(turns), "last", "completion").pieces[-1]
        text = piece.prompt + piece.answer
        for on in (True, False):
            given = {"enable_thinking": on}
            given |= {} if "strftime_now" in template.jinja else {"date_string": "29 Nov 2026", "datetime": "now"}
            prompt = chat_template.as_served(template, turns[:-1], closed.exported, given)
            assert text.startswith(prompt), "what the server writes is not how the row begins"
            assert prompt.startswith(piece.prompt), "the model must write what has no loss"
        asked = [vars_of(turn) for turn in turns[:-1]]
        assert text.startswith(chat_template.prompt_served(closed, asked, True) + turns[-1].content)


def vars_of(turn: Turn) -> dict[str, str]:
    return {"role": turn.role, "content": turn.content}


@pytest.mark.parametrize("name", ["qwen-3", "deepseek-r1", "smollm3"])
def test_rows_with_thoughts_keep_the_switch(name: str, families: dict) -> None:
    words, template = families[name]
    closed, said, told = serving.close(template, words, thoughts=True)
    assert (closed.served, closed.opening, said, told) == ("", "", [], [])


def test_a_line_break_that_would_be_another_token_than_was_trained_is_left_to_the_model(families: dict) -> None:
    _, template = families["qwen-3"]
    words, _ = families["smollm2"]  # cuts line breaks as GPT-2 does
    closed, _, left = serving.close(template, words, thoughts=False)
    assert (closed.opening, left) == ("<think>\n\n</think>", [])
    assert closed.exported == SWITCHED_ON + template.jinja, (
        "thinking off would end in the line break that was not trained"
    )


def test_a_template_that_no_line_puts_right_is_said_with_the_place(tokenizer: Callable[..., Any]) -> None:
    words = tokenizer("qwen2")
    opens = "{% if add_generation_prompt %}<|im_start|>assistant\n{% if date_string %}{{ date_string }}{% endif %}{% endif %}"
    words.chat_template = CHATML_ONLY + opens
    _, said, left = serving.close(chat_template.choose(None, _settings(), words), words, thoughts=False)
    assert said == [] and len(left) == 2
    assert "the server writes '01 Feb 2003'" in left[0]


def test_a_template_that_writes_the_date_gets_the_runs(families: dict) -> None:
    words, _ = families["llama-3.2"]
    template = chat_template.choose(None, _settings(), words, datetime.date(2024, 2, 29))
    assert "Today Date: 29 Feb 2024" in chat_template.render(template, ONE)


def test_a_prompt_template_becomes_a_chat_template(tokenizer: Callable[..., Any]) -> None:
    words = tokenizer("llama-spm")
    template = chat_template.choose(None, _settings(prompt='<<{instruction}\\ "😀">>\n{response}!'), words)
    assert chat_template.render(template, ONE) == '<s><<What is 2+2?\\ "😀">>\nIt is 4.!</s>'
    assert chat_template.render(template, ONE[:1], True) == '<s><<What is 2+2?\\ "😀">>\n'
    assert prompt_template.parse("{instruction} {response}").jinja("").count("eos_token") == 0


# A whole dataset


@pytest.fixture
def rows() -> Any:
    import datasets

    turn = [{"role": t.role, "content": t.content} for t in TWO]
    long = [{"role": "user", "content": "word " * 500}, {"role": "assistant", "content": "short"}]
    records = [{"messages": turn, "text": None}, {"messages": long, "text": None}, {"messages": None, "text": "plain"}]
    return datasets.Dataset.from_list([{**one, "file": "a.jsonl", "line": i} for i, one in enumerate(records, 1)])


def test_a_dataset_gives_the_sequences_of_its_rows_and_names_those_without(
    rows: Any, families: dict, tmp_path: Path
) -> None:
    words, template = families["qwen-3"]
    data, rejected = tokenising.tokenise(rows, template, words, 100, "all", "completion", tmp_path)
    expected = [
        *encoding.encode(template, words, _row(TWO), 100),
        *encoding.encode(template, words, Row(None, "plain", "a", 3), 100),
    ]
    assert [(one["input_ids"], one["labels"]) for one in data] == [(one.input_ids, one.labels) for one in expected]
    assert data["line"][:] == [1, 1, 3]
    assert [str(bad)[:45] for bad in rejected] == ["a.jsonl:2: the prompt has 509 tokens and MAX_"]
    nothing, rejected = tokenising.tokenise(rows.select([1]), template, words, 100, "all", "completion", tmp_path)
    assert (nothing, len(rejected)) == (None, 1)


def test_tokenising_is_cached_by_content_not_by_file(
    rows: Any, families: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, template = families["qwen-3"]
    first, _ = tokenising.tokenise(rows, template, words, 2000, "all", "completion", tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(tokenising, "plan_row", None)  # to render again would fail
        again, _ = tokenising.tokenise(rows, template, words, 2000, "all", "completion", tmp_path)
        assert again.to_list() == first.to_list()
    other, _ = tokenising.tokenise(rows, template, words, 20, "all", "completion", tmp_path)
    assert other.to_list() != first.to_list()


def test_cached_rows_that_nobody_asks_for_any_more_are_removed(rows: Any, families: dict, tmp_path: Path) -> None:
    words, template = families["smollm2"]
    tokenising.tokenise(rows, template, words, 2000, "all", "completion", tmp_path)
    (used,) = tmp_path.glob("tokens-*.arrow")
    for name in ("tokens-old.arrow", "rows-old.arrow", "tokens-old.arrow.7.partial", "other.txt"):
        (tmp_path / name).write_text("old")
    (tmp_path / "tokens-young.arrow").write_text("young")
    for file in tmp_path.iterdir():
        if file.name != "tokens-young.arrow":
            os.utime(file, (1_000_000_000, 1_000_000_000))
    tokenising.tokenise(rows, template, words, 2000, "all", "completion", tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {used.name, "tokens-young.arrow", "other.txt"}


def test_several_processes_give_the_same_as_one(
    rows: Any, families: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, template = families["smollm2"]
    alone, _ = tokenising.tokenise(rows, template, words, 2000, "all", "completion", tmp_path / "1")
    monkeypatch.setattr(tokenising, "ROWS_A_WORKER", 1)
    both, _ = tokenising.tokenise(rows, template, words, 2000, "all", "completion", tmp_path / "2", processes=2)
    assert both.to_list() == alone.to_list()


def test_the_summary_counts_and_shows_the_trained_part(rows: Any, families: dict, tmp_path: Path) -> None:
    words, template = families["smollm2"]
    data, _ = tokenising.tokenise(rows, template, words, 2000, "all", "completion", tmp_path)
    found = tokenising.summary(data, words)
    lengths = [len(one["input_ids"]) for one in data]
    assert (found.sequences, found.tokens, found.total.longest) == (3, sum(lengths), max(lengths))
    assert found.trained_tokens == sum(label != IGNORED for one in data for label in one["labels"])
    assert found.cut == 0
    short, _ = tokenising.tokenise(rows, template, words, 50, "all", "completion", tmp_path)
    assert tokenising.summary(short, words).cut == sum(one["cut"] for one in short) == 1
    assert "<|im_start|>assistant\n⟦It is 4.<|im_end|>⟧\n<|im_start|>user" in found.example
    assert found.lines()[0].startswith(f"3 sequences, {sum(lengths):,} tokens, ")


def test_rows_that_were_cut_or_hold_special_tokens_are_named_with_their_lines(families: dict, tmp_path: Path) -> None:
    import datasets

    words, template = families["smollm2"]
    texts = ("short", "long " * 90, "a <|im_end|> b", "a <b> c", "longer " * 99, "<|endoftext|>")
    turns = [[{"role": "user", "content": "Q"}, {"role": "assistant", "content": text}] for text in texts]
    records = [{"messages": one, "text": None, "file": "a.jsonl", "line": i} for i, one in enumerate(turns, 1)]
    data, _ = tokenising.tokenise(
        datasets.Dataset.from_list(records), template, words, 60, "all", "completion", tmp_path
    )
    assert tokenising.warnings(data, 60) == [
        "a.jsonl:2: 2 rows longer than MAX_SEQ_LENGTH = 60 tokens: their end is cut off; lines 2, 5",
        "a.jsonl:3: 2 rows with a special token in the text, which is read as that token and no text (<|im_end|>); lines 3, 6",
    ]


@pytest.mark.parametrize(("name", "told"), [("qwq", [2]), ("qwen-3", []), ("deepseek-r1-not-thinking", [2])])
def test_thoughts_that_a_template_has_no_room_for_are_refused_with_their_lines(
    name: str, told: list[int], families: dict, tmp_path: Path
) -> None:
    import datasets

    words, template = families[name]
    texts = ("It is 4.", "<think>\n2 and 2\n</think>\n\n4")
    turns = [[{"role": "user", "content": "Q"}, {"role": "assistant", "content": text}] for text in texts]
    records = [{"messages": one, "text": None, "file": "a.jsonl", "line": i} for i, one in enumerate(turns, 1)]
    _, bad = tokenising.tokenise(
        datasets.Dataset.from_list(records), template, words, 99, "all", "completion", tmp_path
    )
    assert list(map(str, bad)) == [
        f"a.jsonl:{line}: the answer has thoughts, and the chat template leaves no room for them behind its prompt: "
        "THINKING = off leaves them out, and another template (CHAT_TEMPLATE) would take them"
        for line in told
    ]


# ---- what of a row is learned: turns that are not, tools, thoughts, joined turns ---------------------------------

FOUR = ("qwen-3", "llama-3.1", "mistral-nemo", "smollm2")
END = {name: FAMILIES[name][3] for name in FOUR}


def _learned(name: str, turns: tuple[Turn, ...], families: dict, thinking: str = "auto", tools: str = "") -> list[str]:
    """What is trained of a row, sequence by sequence."""
    words, template = families[name]
    template = dataclasses.replace(template, thinking=thinking)
    row = dataclasses.replace(_row(turns), tools=tools)
    return [_trained(one, words) for one in encoding.encode(template, words, row, 4096)]


@pytest.mark.parametrize("name", FOUR)
def test_an_answer_that_is_not_to_be_learned_is_in_the_context_and_not_in_the_loss(name: str, families: dict) -> None:
    words, template = families[name]
    first = dataclasses.replace(TWO[1], trained=False)
    (one,) = encoding.encode(template, words, _row((TWO[0], first, *TWO[2:])), 4096)
    *_, whole = encoding.encode(template, words, _row(TWO), 4096)
    assert one.input_ids == whole.input_ids and "It is 4." in words.decode(one.input_ids)
    empty = "<think>\n\n</think>\n\n" if name == "qwen-3" else ""
    space = " " if name == "mistral-nemo" else ""
    assert _trained(one, words).strip() == (empty + space + TWO[3].content + END[name]).strip()
    with pytest.raises(NothingToTrain, match="its last answer is not to be learned, and TRAIN_TURNS = last"):
        last = (*TWO[:3], dataclasses.replace(TWO[3], trained=False))
        encoding.encode(template, words, _row(last), 4096, train_turns="last")
    with pytest.raises(NothingToTrain, match="TRAIN_ON = all learns every text"):
        encoding.encode(template, words, _row((TWO[0], first, *TWO[2:])), 4096, train_on="all")


@pytest.mark.parametrize("name", FOUR)
def test_turns_of_one_speaker_that_are_kept_apart_are_each_learned_or_refused_by_the_template(
    name: str, families: dict
) -> None:
    turns = (ONE[0], Turn("user", "Say."), ONE[1], Turn("assistant", "Four."))
    joined = (Turn("user", "What is 2+2?\n\nSay."), Turn("assistant", "It is 4.\n\nFour."))
    assert "It is 4.\n\nFour." in _learned(name, joined, families)[0]
    if name in ("mistral-nemo", "qwen-3"):  # Qwen 3 writes an answer otherwise when another follows it
        refused = "the chat template refuses: .*alternate|is not how the answer's turn begins"
        with pytest.raises(NothingToTrain, match=refused):
            _learned(name, turns, families)
        return
    text = "".join(_learned(name, turns, families))
    assert text.count(END[name]) == 2 and "It is 4." in text and "Four." in text


@pytest.mark.parametrize("name", FOUR)
def test_a_greeting_is_context_where_the_template_takes_one(name: str, families: dict) -> None:
    turns = (Turn("assistant", "Welcome!", trained=False), *ONE)
    if name == "mistral-nemo":
        with pytest.raises(NothingToTrain, match="the chat template refuses"):
            _learned(name, turns, families)
        return
    (text,) = _learned(name, turns, families)
    assert "Welcome!" not in text and "It is 4." in text


@pytest.mark.parametrize("name", FOUR)
def test_a_later_system_text_is_written_by_the_template_or_refused_by_name(name: str, families: dict) -> None:
    turns = (*ONE, Turn("system", "Be brief."), *TWO[2:])
    if name == "mistral-nemo":
        with pytest.raises(NothingToTrain, match="refuses|leaves out a system text"):
            _learned(name, turns, families)
        return
    assert "Be brief." not in "".join(_learned(name, turns, families))


TOOLS = json.dumps([{"type": "function", "function": {"name": "weather", "description": "It.", "parameters": {}}}])
CALL = {"id": "abc123def", "type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
CALLED = (
    Turn("user", "Weather in Oslo?"),
    Turn("assistant", "", more=json.dumps({"tool_calls": [CALL]})),
    Turn("tool", "rain", more=json.dumps({"tool_call_id": "abc123def"})),
    Turn("assistant", "It rains."),
)


@pytest.mark.parametrize("name", FOUR)
def test_a_call_and_the_answer_after_its_result_are_learned_as_the_template_writes_them(
    name: str, families: dict
) -> None:
    if name == "smollm2":
        with pytest.raises(NothingToTrain, match="tools are offered in the row, and the chat template writes none"):
            _learned(name, CALLED, families, tools=TOOLS)
        with pytest.raises(NothingToTrain, match="a tool is called in the row, and the chat template writes none"):
            _learned(name, CALLED[:2], families)
        return
    text = "".join(_learned(name, CALLED, families, tools=TOOLS))
    assert text.count("Oslo") == 1 and "weather" in text and "rain\n" not in text and "Weather in" not in text
    assert "It rains." in text and text.count(END[name]) == 2
    words, template = families[name]
    prompt = words.decode(encoding.prompt_ids(template, words, CALLED[:1], TOOLS))
    assert '"weather"' in prompt and "Weather in Oslo?" in prompt


@pytest.mark.parametrize("name", FOUR)
def test_thoughts_in_a_field_are_learned_where_the_template_has_a_place_for_them(name: str, families: dict) -> None:
    turns = (ONE[0], dataclasses.replace(ONE[1], thoughts="2 and 2"))
    if name == "qwen-3":
        assert _learned(name, turns, families) == ["<think>\n2 and 2\n</think>\n\nIt is 4.<|im_end|>"]
    else:
        with pytest.raises(NothingToTrain, match="has no place for thoughts: THINKING = off leaves them out"):
            _learned(name, turns, families)
    within = (ONE[0], Turn("assistant", "<think>\n2 and 2\n</think>\n\nIt is 4."))
    for one in (turns, within):
        (text,) = _learned(name, one, families, "off")
        assert text.strip() == "It is 4." + END[name]


def test_rows_that_are_all_refused_are_all_named(families: dict, tmp_path: Path) -> None:
    import datasets

    words, template = families["smollm2"]
    held = {"messages": [{"role": turn.role, "content": turn.content} for turn in ONE], "text": None, "file": "a.jsonl"}
    more = json.dumps({"tools": TOOLS, "turns": {}})
    data = datasets.Dataset.from_list([{**held, "line": line, "more": more} for line in (4, 7)])
    nothing, rejected = tokenising.tokenise(data, template, words, 4096, "all", "completion", tmp_path)
    assert nothing is None and [bad.line for bad in rejected] == [4, 7]
    assert all("tools are offered in the row, and the chat template writes none" in bad.reason for bad in rejected)


def test_thinking_keep_learns_no_empty_thoughts_and_leaves_the_switch_to_the_server(families: dict) -> None:
    words, template = families["qwen-3"]
    assert _learned("qwen-3", ONE, families) == ["<think>\n\n</think>\n\nIt is 4.<|im_end|>"]
    assert _learned("qwen-3", ONE, families, "keep") == ["It is 4.<|im_end|>"]
    assert _learned("deepseek-r1", ONE, families, "keep") == ["It is 4.<｜end▁of▁sentence｜>"]
    kept = dataclasses.replace(template, thinking="keep")
    closed, _, left = serving.close(kept, words, False)
    assert (closed.served, closed.opening, left) == ("", "", [])
    (one,) = encoding.encode(kept, words, _row(), 4096)
    assert words.decode(one.input_ids[: one.prompt_length]).endswith("assistant\n<think>\n\n</think>\n\n")


def test_thinking_off_trains_and_serves_answers_without_thoughts(families: dict) -> None:
    words, template = families["qwen-3"]
    off = dataclasses.replace(template, thinking="off")
    (one,) = encoding.encode(off, words, _row(), 4096)
    assert encoding.prompt_ids(off, words, ONE[:1]) == one.input_ids[: one.prompt_length]
    closed, notes, left = serving.close(off, words, False)
    assert closed.exported.startswith("{%- set enable_thinking = false %}") and left == []
    text = chat_template.as_served(closed, ONE[:1], closed.exported, {"enable_thinking": True})
    assert text == chat_template.render(off, ONE[:1], True)


def test_rows_as_people_and_programs_write_them_train_their_answers(families: dict, tmp_path: Path) -> None:
    """Alpaca rows of both languages (after the demo files of LLaMA-Factory), the Go host's prefixes, text written as turns."""
    from training import settings
    from training.data import dataset

    lines = [
        r'{"instruction": "Describe a process of making crepes.", "input": "", "output": "Easy!\n\n1. Mix: 1 cup flour.\n2. Rest."}',
        '{"instruction": "输入三支篮球队的名称并生成一个适当的口号。", "input": "输入：雷霆队，公牛队。", "output": "输出： \\"各显神通!\\""}',
        r'{"completion":"助手: \u003cb\u003e您好\u003c/b\u003e \u0026 再见","prompt":"用户: 你好，用户: 是什么？"}',
        r'{"text": "用户：你好\n助手：您好！\n用户：几点了？\n助手：三点。"}',
        r'{"text": "User: Hi\nAssistant: Hello.\nGoodbye."}',
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines), "utf-8")
    config = tmp_path / "config.ini"
    config.write_text("[Dataset]\nDATASET_FILE = rows.jsonl\nVALIDATION_SPLIT = 0\n", "utf-8")
    data = dataset.load(settings.load(config), tmp_path / "cache")
    assert data.warnings == []
    words, template = families["smollm2"]
    made, bad = tokenising.tokenise(data.train, template, words, 4096, "all", "completion", tmp_path / "cache")
    assert bad == []
    end, start = "<|im_end|>\n", "<|im_start|>"
    asked = [tokenising.marked(one["input_ids"], one["labels"], words).partition(f"{start}user\n")[2] for one in made]
    assert asked == [
        f"Describe a process of making crepes.{end}{start}assistant\n⟦Easy!\n\n1. Mix: 1 cup flour.\n2. Rest.<|im_end|>⟧",
        f'输入三支篮球队的名称并生成一个适当的口号。\n\n输入：雷霆队，公牛队。{end}{start}assistant\n⟦输出： "各显神通!"<|im_end|>⟧',
        f"你好，用户: 是什么？{end}{start}assistant\n⟦<b>您好</b> & 再见<|im_end|>⟧",
        f"你好{end}{start}assistant\n⟦您好！<|im_end|>⟧\n{start}user\n几点了？{end}{start}assistant\n⟦三点。<|im_end|>⟧",
        f"Hi{end}{start}assistant\n⟦Hello.\nGoodbye.<|im_end|>⟧",
    ]


def test_samples_hold_every_turn_that_the_template_takes() -> None:
    marked = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<go>{% endif %}"
    )
    found = chat_template.samples(ChatTemplate(marked, "test"))
    assert len(found) == 4 and found[0] == "<user>What is 3 + 3?<go>" and found[1].endswith("6, of course.\n")
    assert found[3].startswith("<system>") and found[3].endswith("<go>")
    strict = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + marked
    assert chat_template.samples(ChatTemplate(strict, "test")) == found[:3]
