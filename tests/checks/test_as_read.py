"""What llama.cpp makes of prompts and rows by the GGUF's own metadata: the embedded model's tokenizer, changed in one place."""

from __future__ import annotations

import json
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.settings import a_settings
from training import llama
from training.base_model import BaseModel
from training.checks import as_read
from training.data import ChatTemplate, chat_template, encoding, tokenising
from training.data.row_texts import RowText, RowTexts
from training.errors import UserError
from training.llama import gguf_file, process
from training.plan import plan as reader_view
from training.to_gguf import conversion, reader_metadata

pytestmark = [pytest.mark.tiny, pytest.mark.usefixtures("forks")]

PROMPT = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}


def edit(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(file.read_text(encoding="utf-8"))
    change(content)
    file.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model's config.json and tokenizer files, to be changed."""
    out = tmp_path / "model"
    out.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tiny_model / name, out)
    return out


def with_token(folder: Path, text: str, **flags: bool) -> None:
    """Add a token to the tokenizer, and room for it in config.json."""
    size = json.loads((folder / "config.json").read_text())["vocab_size"]
    token = {"id": size, "content": text, **FLAGS, **flags}
    edit(folder / "tokenizer.json", lambda content: content["added_tokens"].append(token))
    edit(folder / "config.json", lambda content: content.update(vocab_size=size + 1))


def base_at(folder: Path) -> BaseModel:
    """A base model of which only the name and the folder count."""
    return BaseModel("a model", folder, "folder", None, {}, 0, None)


def chosen(folder: Path) -> tuple[Any, ChatTemplate]:
    words = reader_metadata.tokenizer(folder)
    return words, chat_template.choose(base_at(folder), a_settings(), words)


# ---- flags, template and end ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said",
    [
        {"add_eos_token": True},
        {"add_bos_token": True, "bos_token": "<|endoftext|>"},
        {"add_bos_token": True, "bos_token": "<|endoftext|>", "add_eos_token": True},
    ],
)
def test_a_reader_adds_nothing_that_was_not_trained_whatever_tokenizer_config_says(folder: Path, said: dict) -> None:
    with_token(folder, "<x>")  # of SmolLM2's own size the converter knows that it takes no BOS
    edit(folder / "tokenizer.json", lambda content: content.update(post_processor=None))
    edit(folder / "tokenizer_config.json", lambda content: content.update(said))
    words, template = chosen(folder)
    trained = encoding.with_bos(words(PROMPT, add_special_tokens=False)["input_ids"], words)
    left = conversion.vocabulary(folder, folder / "left.gguf")
    assert process.read_prompts(left, [PROMPT]) != [trained], "this flag would have done no harm"
    made = conversion.vocabulary(folder, folder / "made.gguf", reader_metadata.pairs(words, template))
    assert process.read_prompts(made, [PROMPT]) == [trained]
    assert as_read.read_as_trained(made, folder, template, RowTexts()).passed


def test_a_file_whose_flags_change_prompts_fails_the_check_with_the_tokens(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", lambda content: content.update(add_eos_token=True))
    words, template = chosen(folder)
    wanted = reader_metadata.pairs(words, template) | {"tokenizer.ggml.add_eos_token": True}
    made = conversion.vocabulary(folder, folder / "made.gguf", wanted)
    found = as_read.read_as_trained(made, folder, template, RowTexts())
    assert not found.passed
    assert "texts are read as other tokens than were trained; a chat of the template:" in found.failure
    assert found.figures["add_eos"] is True


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        (
            {"tokenizer.chat_template": "{{ other }}"},
            "the chat template in the GGUF is not the one that was trained with",
        ),
        ({"tokenizer.ggml.eot_token_id": 3}, "ends the trained answers, and llama.cpp does not take it for an end"),
    ],
)
def test_another_template_or_end_in_the_file_fails_the_check(folder: Path, pair: dict, said: str) -> None:
    with_token(folder, "<stop>", special=True)
    text = "{% for m in messages %}{{ m.role }}: {{ m.content }}<stop>{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    (folder / "chat_template.jinja").write_text(text)
    words, template = chosen(folder)
    made = conversion.vocabulary(folder, folder / "made.gguf", reader_metadata.pairs(words, template) | pair)
    assert said in as_read.read_as_trained(made, folder, template, RowTexts()).failure


def test_the_token_that_ends_trained_answers_is_an_end_for_llama_cpp_whatever_its_name(folder: Path) -> None:
    with_token(folder, "<stop>", special=True)
    text = "{% for m in messages %}{{ m.role }}: {{ m.content }}<stop>{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    (folder / "chat_template.jinja").write_text(text)
    words, template = chosen(folder)
    end = words.convert_tokens_to_ids("<stop>")
    assert end not in llama.metadata(conversion.vocabulary(folder, folder / "left.gguf"))["vocab"]["end"]
    made = conversion.vocabulary(folder, folder / "made.gguf", reader_metadata.pairs(words, template))
    assert end in llama.metadata(made)["vocab"]["end"]


@pytest.mark.parametrize("place", ["tokenizer_config", "named", "chat_template.json"])
def test_the_file_has_the_template_that_was_trained_with_whatever_else_lies_in_the_folder(
    folder: Path, place: str
) -> None:
    other = "{% for m in messages %}{{ m.role|upper }}: {{ m.content }}<|im_end|>{% endfor %}"
    if place == "chat_template.json":
        (folder / "chat_template.json").write_text(json.dumps({"chat_template": other}))
    named = [{"name": "default", "template": other}, {"name": "tool_use", "template": other}]
    value = {"tokenizer_config": other, "named": named}.get(place)
    edit(folder / "tokenizer_config.json", lambda content: content.update({"chat_template": value} if value else {}))
    words, template = chosen(folder)
    made = conversion.vocabulary(folder, folder / "made.gguf", reader_metadata.pairs(words, template))
    assert gguf_file.read(made).fields["tokenizer.chat_template"] == (folder / "chat_template.jinja").read_text()


def test_the_file_of_a_model_of_plain_text_is_told_its_flags_and_no_template(folder: Path) -> None:
    words, _ = chosen(folder)
    wanted = reader_metadata.pairs(words, None)
    assert wanted["tokenizer.ggml.add_eos_token"] is False and wanted["tokenizer.ggml.add_bos_token"] is False
    assert "tokenizer.chat_template" not in wanted


# ---- the run's own rows --------------------------------------------------------------------------------------------


def planned(folder: Path, contents: list[str], tmp_path: Path) -> Any:
    """As much of a plan as `hold` looks at."""
    import datasets

    words, template = chosen(folder)
    rows = datasets.Dataset.from_list(
        [
            {
                "messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "Yes."}],
                "text": None,
                "file": "rows.jsonl",
                "line": number,
            }
            for number, text in enumerate(contents, start=1)
        ],
        features=dataset_features(),
    )
    tokenised, _ = tokenising.tokenise(rows, template, words, 500, "all", "completion", tmp_path / "cache", 1)
    settings = a_settings(TRAIN_TURNS="all", TRAIN_ON="completion")
    return SimpleNamespace(
        base=base_at(folder), tokenizer=words, template=template, train=tokenised,
        data=SimpleNamespace(plain=False, train=rows), settings=settings,
    )  # fmt: skip


def dataset_features() -> Any:
    import datasets

    turn = {"role": datasets.Value("string"), "content": datasets.Value("string")}
    names = {"text": "string", "file": "string", "line": "int64"}
    return datasets.Features({"messages": [turn], **{name: datasets.Value(kind) for name, kind in names.items()}})


@pytest.mark.parametrize(
    ("flags", "text", "said"),
    [
        ({"lstrip": True}, "Look up <dom> now", "the token <dom> is lstrip in tokenizer.json"),
        ({"rstrip": True}, "Look up <dom> now", "the token <dom> is rstrip in tokenizer.json"),
        ({"single_word": True}, "a<dom>b", "change how it stands in a word in the rows"),
        ({"lstrip": True, "special": True}, "x <dom>", "change the white space beside it in the rows"),
    ],
)
def test_rows_that_llama_cpp_would_read_otherwise_are_named_before_the_training(
    folder: Path, tmp_path: Path, flags: dict, text: str, said: str
) -> None:
    with_token(folder, "<dom>", **flags)
    plan = planned(folder, ["plain", text, "also plain"], tmp_path)
    made = conversion.vocabulary(folder, folder / "v.gguf")
    with pytest.raises(UserError) as told:
        reader_view.hold(made, plan)
    message = str(told.value)
    assert message.startswith("1 of 3 rows would be read in Ollama as other tokens than are trained:")
    assert "rows.jsonl:2: " in message and said in message


def test_a_token_that_takes_white_space_where_none_stands_is_no_fault(folder: Path, tmp_path: Path) -> None:
    with_token(folder, "<dom>", lstrip=True, rstrip=True)
    reader_view.hold(conversion.vocabulary(folder, folder / "v.gguf"), planned(folder, ["in<dom>it"], tmp_path))


def test_text_outside_nfc_that_the_tokenizer_composes_is_told_and_trained(folder: Path, tmp_path: Path) -> None:
    from loguru import logger

    edit(folder / "tokenizer.json", lambda content: content.update(normalizer={"type": "NFC"}))
    plan = planned(folder, ["plain", unicodedata.normalize("NFD", "Crème brûlée")], tmp_path)
    lines: list[str] = []
    sink = logger.add(lines.append, level="WARNING", format="{message}")
    try:
        reader_view.hold(conversion.vocabulary(folder, folder / "v.gguf"), plan)
    finally:
        logger.remove(sink)
    assert "".join(lines).startswith("rows.jsonl:2: text outside Unicode NFC is trained as its NFC form")


def test_one_process_of_llama_cpp_reads_our_texts_and_the_rows(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(folder / "tokenizer.json", lambda content: content.update(normalizer={"type": "NFC"}))
    plan = planned(folder, ["plain", unicodedata.normalize("NFD", "Crème brûlée")], tmp_path)
    made, begun = conversion.vocabulary(folder, folder / "v.gguf"), []

    class Counted(process.Process):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            begun.append(arguments)
            super().__init__(*arguments, **options)

    monkeypatch.setattr(process, "Process", Counted)
    reader_view.hold(made, plan)
    assert len(begun) == 1


def test_a_normalizer_that_changes_all_text_is_refused_with_its_rows(folder: Path, tmp_path: Path) -> None:
    plan = planned(folder, ["Loud Words"], tmp_path)
    made = conversion.vocabulary(folder, folder / "v.gguf")
    edit(folder / "tokenizer.json", lambda content: content.update(normalizer={"type": "Lowercase"}))
    plan.tokenizer = reader_metadata.tokenizer(folder)
    with pytest.raises(UserError, match="a model cannot be served as it is trained: llama.cpp cuts"):
        reader_view.hold(made, plan)


def test_odd_rows_come_before_the_sample_and_the_sample_is_the_same_each_time(folder: Path, tmp_path: Path) -> None:
    with_token(folder, "<dom>")
    contents = [f"row {number}" for number in range(200)]
    contents[150], contents[170] = "has <dom> in it", unicodedata.normalize("NFD", "é")
    plan = planned(folder, contents, tmp_path)
    one, again = (reader_view.of_plan(plan, 2000) for _ in range(2))
    assert one == again and one.total == 200 and 2 < one.rows < 200
    assert [text.line for text in one.texts[::2][:2]] == [151, 171]
    assert reader_view.of_plan(plan, 1 << 20).rows == 200


def test_a_row_that_the_finished_file_reads_otherwise_fails_the_check_with_its_place(folder: Path) -> None:
    with_token(folder, "<dom>", rstrip=True)
    words, template = chosen(folder)
    made = conversion.vocabulary(folder, folder / "made.gguf", reader_metadata.pairs(words, template))
    text = RowText(PROMPT.replace("Hi", "<dom> Hi"), "rows.jsonl", 7)
    found = as_read.read_as_trained(made, folder, template, RowTexts((text,), 1, 90))
    assert found.figures["different"] == 1 and (found.figures["rows"], found.figures["of_rows"]) == (1, 90)
    assert "rows.jsonl:7: " in found.failure


# ---- the tokenizer as it is loaded ---------------------------------------------------------------------------------


def test_a_tokenizer_that_loses_all_spaces_is_refused_with_what_would_do(folder: Path) -> None:
    from training.train import engine

    base = base_at(folder)
    edit(folder / "tokenizer_config.json", lambda content: content.update(tokenizer_class="LlamaTokenizerFast"))
    with pytest.raises(UserError, match="loses the spaces: .* set it to PreTrainedTokenizerFast"):
        engine.tokenizer(base)
    edit(folder / "tokenizer_config.json", lambda content: content.update(tokenizer_class="PreTrainedTokenizerFast"))
    words = engine.tokenizer(base)
    assert words.decode(words.encode("mended as it says")) == "mended as it says"


def test_of_rows_with_secrets_no_text_is_kept_for_the_export_and_all_of_the_others_is():
    texts = (
        *(RowText("my key", "r.jsonl", 1), RowText("is sk-0123456789abcdefghij", "r.jsonl", 1)),
        *(RowText("write to bob@example.org", "r.jsonl", 2), RowText("a line more", "r.jsonl", 2)),
    )
    assert RowTexts(texts, 2, 9).without_secrets() == RowTexts(texts[2:], 1, 9)
    assert RowTexts(texts[2:], 1, 9).without_secrets() == RowTexts(texts[2:], 1, 9)
