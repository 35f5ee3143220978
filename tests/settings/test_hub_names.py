"""Names of what stands on a hub (training/settings/hub_names.py), and the settings that take them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training import settings
from training.errors import UserError
from training.settings import Override, hub_names
from training.settings.hub_names import HubName
from training.system import privacy


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("hf:o/n", HubName("hf", "o/n")),
        ("MS://o/n", HubName("ms", "o/n")),
        ("hf:o/n@v1.0", HubName("hf", "o/n", "v1.0")),
        ("hf:o/n@refs/convert/parquet:en:train", HubName("hf", "o/n", "refs/convert/parquet", words=("en", "train"))),
        ("ms:o/n:train", HubName("ms", "o/n", words=("train",))),
        ("hf:o/n::train", HubName("hf", "o/n", words=("", "train"))),
        ("hf:o/n/data/x.jsonl@main", HubName("hf", "o/n", "main", "data/x.jsonl")),
    ],
)
def test_a_name_is_read_and_written_the_same(text: str, found: HubName) -> None:
    assert hub_names.parse(text) == found
    assert hub_names.parse(found.written()) == found
    assert hub_names.of(Path(found.written())) == found


@pytest.mark.parametrize(
    "text",
    ["hf:", "hf:n", "hf:o/n:", "hf:o/n:a:", "hf:o/n::", "hf:o/n:a:b:c", "hf:../n", "hf:o/..", "hf:o/n@", "hf:o/n/../x", "hf:o/n/x:a",
     "hf:o n/x", "hf:o/n@../x", "hf:o/n?x", "hf:/o/n", "ms:o/n@-x"],
)  # fmt: skip
def test_a_name_that_is_none_is_refused_with_how_it_is_written(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"^is written {text[:2]}:owner/name, "):
        hub_names.parse(text)
    with pytest.raises(UserError, match=rf"DATASET_FILE = .*: is written {text[:2]}:owner/name|\*"):
        load(tmp_path, f"[Dataset]\nDATASET_FILE = {text}\n")


@given(st.text(max_size=30))
def test_whatever_is_written_is_a_name_that_reads_back_or_is_refused(text: str) -> None:
    try:
        found = hub_names.parse(f"hf:{text}")
    except ValueError:
        return
    assert hub_names.parse(found.written()) == found
    assert ".." not in f"{found.name}/{found.file or ''}{found.revision or ''}"


def load(folder: Path, text: str, *overrides: Override) -> settings.Settings:
    (folder / "config.ini").write_text(text, "utf-8")
    return settings.load(folder / "config.ini", overrides)


def test_data_settings_take_names_alone_and_in_a_list(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{}")
    found = load(
        tmp_path,
        "[Dataset]\nDATASET_FILE = a.jsonl, HF://o/n:train*0.5, ms:p/q\nVALIDATION_FILE = hf:o/n:test\nTEST_FILE = ms:o/n\n",
    )
    assert str(found.dataset.dataset_file) == f"{tmp_path}/a.jsonl, hf:o/n:train*0.5, ms:p/q"
    assert (str(found.dataset.validation_file), str(found.dataset.test_file)) == ("hf:o/n:test", "ms:o/n")
    (tmp_path / "own").mkdir()
    assert load(tmp_path / "own", found.to_ini()).dataset == found.dataset


def test_a_file_that_is_missing_is_told_behind_a_name_too(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        load(tmp_path, "[Dataset]\nDATASET_FILE = hf:o/n, gone.jsonl\n")


def test_the_same_data_set_for_training_and_validation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the model would be validated on its training rows"):
        load(tmp_path, "[Dataset]\nDATASET_FILE = hf:o/n\nVALIDATION_FILE = hf:o/n\n")


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("https://huggingface.co/datasets/o/n", "an address is not fetched: write hf:o/n"),
        ("https://huggingface.co/datasets/o/n/resolve/main/x.jsonl", "an address is not fetched: write hf:o/n"),
        ("https://www.modelscope.cn/datasets/o/n", "an address is not fetched: write ms:o/n"),
        ("https://example.org/x.jsonl", "an address is not fetched: download the file and name it here"),
    ],
)
def test_the_address_of_a_page_is_told_as_a_name(address: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        load(tmp_path, f"[Dataset]\nDATASET_FILE = {address}\n")


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("ms:Qwen/Qwen3-0.6B", "ms:Qwen/Qwen3-0.6B"),
        ("ms://Qwen/Qwen3-0.6B", "ms:Qwen/Qwen3-0.6B"),
        ("hf:Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B"),
        ("hf://Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B"),
    ],
)
def test_a_base_model_is_named_on_either_hub(written: str, kept: str, tmp_path: Path) -> None:
    found = load(tmp_path, f"[Model]\nBASE_MODEL_NAME = {written}\nREVISION = v1\n[Dataset]\nDATASET_FILE = hf:o/n\n")
    assert (found.model.base_model_name, found.model.revision) == (kept, "v1")


@pytest.mark.parametrize(
    "written", ["ms:Qwen", "ms:Qwen/Qwen3@v1", "ms:a/b:c", "hf:a/b/c", "ms:", "ms:a/b/c.gguf2", "hf:../b"]
)
def test_a_base_model_on_a_hub_that_says_more_is_refused(written: str, tmp_path: Path) -> None:
    hub = written[:2]
    said = rf"BASE_MODEL_NAME = .*: is written {hub}:owner/name, as in {hub}:Qwen/Qwen3-0.6B; REVISION names"
    with pytest.raises(UserError, match=said):
        load(tmp_path, f"[Model]\nBASE_MODEL_NAME = {written}\n")


@pytest.mark.parametrize(
    ("address", "name"),
    [("https://modelscope.cn/models/Qwen/Qwen3-0.6B", "ms:Qwen/Qwen3-0.6B"), ("https://huggingface.co/Qwen/Qwen3-0.6B/tree/main", "Qwen/Qwen3-0.6B"),
     ("https://huggingface.co/datasets/o/n", "the Hub id, such as Qwen/Qwen3-0.6B")],
)  # fmt: skip
def test_the_address_of_a_models_page_is_told_as_its_name(address: str, name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"is an address; write {name}\n"):
        load(tmp_path, f"[Model]\nBASE_MODEL_NAME = {address}\n")


def test_a_name_with_its_revision_is_not_hidden_as_a_password() -> None:
    said = f"DATASET_FILE = hf:owner/name@{'a' * 40}:default:train, ms:o/n/x.jsonl@main*2"
    assert privacy.redact(said) == said
    assert "word" not in privacy.redact("hf:pass/word@more@host.org")
    assert "secret" not in privacy.redact("hf:secret@host")
