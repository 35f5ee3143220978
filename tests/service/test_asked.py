"""What a request says of a run: the same rules and texts as in config.ini, each problem with its field."""

from __future__ import annotations

from pathlib import Path

import pytest

from training import settings
from training.service import asked
from training.service.asked import Refused
from training.service.places import Places
from training.settings import Settings


@pytest.fixture
def own(tmp_path: Path) -> Settings:
    """The server's own settings, with rows beside them; secrets lie outside."""
    (tmp_path / "home").mkdir()
    (tmp_path / "secret.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    (tmp_path / "home" / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    config = tmp_path / "home" / "config.ini"
    config.write_text("[Dataset]\nDATASET_FILE = rows.jsonl\n[Training]\nMAX_STEPS = 9\n")
    return settings.load(config)


def read(own: Settings, **body: object) -> Settings:
    return asked.settings_of(body, own, Places.of(own))


def refused(own: Settings, **body: object) -> dict[str, str]:
    with pytest.raises(Refused) as error:
        read(own, **body)
    return {problem.field: problem.message for problem in error.value.found}


def test_a_request_is_read_by_the_names_of_guides_flags_and_settings(own):
    found = read(own, base_model="Qwen/Qwen3-0.6B", dataset_path="rows.jsonl", num_epochs=2, batch_size=1, lora_r=4)
    assert found.model.base_model_name == "Qwen/Qwen3-0.6B"
    assert (found.training.num_train_epochs, found.training.max_steps) == (2, 0)
    assert (found.training.per_device_train_batch_size, found.lora.r) == (1, 4)
    assert read(own, learning_rate=1e-3, load_in_4bit=False).training.learning_rate == 1e-3
    assert read(own, quantization_method=["q8_0", "f16"]).quantization.quantization_method == ("q8_0", "f16")


def test_what_is_not_said_is_as_in_the_servers_file(own):
    assert read(own).training.max_steps == 9


def test_steps_that_were_asked_for_hold_beside_epochs(own):
    assert read(own, max_steps=7, num_epochs=2).training.max_steps == 7
    assert read(own, num_epochs=2, max_steps=7).training.max_steps == 7


def test_every_problem_is_told_with_its_field_and_in_the_words_of_the_settings_file(own):
    found = refused(own, learning_rat=1, learning_rate="fast", lora_r=0, eval_steps=100)
    assert found == {
        "learning_rat": "learning_rat: is not a field; did you mean learning_rate?",
        "learning_rate": "learning_rate: [Training] LEARNING_RATE = fast: expected a number such as 0.1 or 2e-4",
        "lora_r": "lora_r: [LoRA] R = 0: must be at least 1",
        "eval_steps": "eval_steps: [Training] EVAL_STEPS = 100: is longer than the run: [Training] MAX_STEPS = 9 (config.ini:4)",
    }


def test_the_same_said_twice_is_refused(own):
    assert refused(own, epochs=1, num_epochs=2) == {
        "num_epochs": "num_epochs: says the same as epochs; give one of the two"
    }


@pytest.mark.parametrize("value", [{"a": 1}, [1], float("nan"), float("inf")])
def test_a_value_that_no_setting_can_be_is_refused(own, value):
    assert list(refused(own, learning_rate=value)) == ["learning_rate"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dataset_path", "../secret.jsonl"),
        ("dataset_path", "/etc/passwd"),
        ("dataset_path", "link.jsonl"),
        ("dataset_path", "link/secret.jsonl"),
        ("dataset_path", "~/secret.jsonl/../../../../etc/passwd"),
        ("validation_file", "../secret.jsonl"),
        ("replay_file", "../secret.jsonl"),
        ("replay_file", "link.jsonl"),
        ("output_dir", "../elsewhere"),
        ("output_dir", "link"),
        ("base_model", "../model"),
        ("base_model", "link"),
        ("chat_template", "../template.jinja"),
        ("chat_template", "@/etc/passwd"),
    ],
)
def test_paths_outside_of_the_roots_are_refused_links_or_not(own, tmp_path, field, value):
    (tmp_path / "home" / "link").symlink_to(tmp_path)
    (tmp_path / "home" / "link.jsonl").symlink_to(tmp_path / "secret.jsonl")
    assert "lies outside" in refused(own, **{field: value})[field]


def test_the_questions_that_come_with_the_project_are_no_path(own):
    assert read(own, replay_share=0.1, replay_file="General").dataset.replay_file == "general"
    assert read(own, replay_share=0.1, replay_file="hf:a/b:train").dataset.replay_file == "hf:a/b:train"


def test_the_token_cannot_be_trained_on(own, tmp_path):
    token = tmp_path / "home" / "token"
    token.write_text("x" * 32)
    places = Places((tmp_path / "home",), tmp_path / "home", (token,))
    with pytest.raises(Refused, match="lies outside"):
        asked.settings_of({"dataset_path": "token"}, own, places)


def test_no_text_names_a_file_and_each_is_taken_as_it_is(own):
    assert "begins with @" in refused(own, system_prompt="@/etc/passwd")["system_prompt"]
    text = 'C:\\new "line"\n\tsecond # no comment'
    assert read(own, system_prompt=text).model.system_prompt == text


@pytest.mark.parametrize("value", [True, "true", "TRUE", "yes"])
def test_code_of_a_model_cannot_be_switched_on(own, value):
    assert "does not allow it" in refused(own, trust_remote_code=value)["trust_remote_code"]


def test_code_of_a_model_can_be_asked_for_where_the_server_allows_it(own):
    own.config.write_text(own.config.read_text() + "[Model]\nTRUST_REMOTE_CODE = true\n")
    assert read(settings.load(own.config), trust_remote_code=True).model.trust_remote_code


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_machines", 2), ("machine_rank", 1), ("main_process_address", "10.0.0.5:80")],
)
def test_a_request_cannot_make_the_server_join_other_machines(own, field, value):
    assert "server's own settings only" in refused(own, **{field: value})[field]


def test_the_kind_of_file_must_be_that_of_its_name(own):
    read(own, dataset_path="rows.jsonl", dataset_format="jsonl")
    told = refused(own, dataset_path="rows.jsonl", dataset_format="csv")["dataset_format"]
    assert "rows.jsonl is read as jsonl, as its ending says" in told
    assert read(own, dataset_format="alpaca").dataset.format == "alpaca"
    assert list(refused(own, dataset_format="parquet")) == ["dataset_format"]


def test_names_that_mean_several_settings_are_taken(own):
    found = read(own, use_wandb=False, bf16=True, use_quantization=False)
    assert (found.training.report_to, found.hardware.precision, found.hardware.auto_fp16_bf16) == (
        "none",
        "bf16",
        False,
    )
    assert found.quantization.load_in_4bit is False
    assert refused(own, fp16="maybe") == {"fp16": "fp16: expected true or false"}


def test_the_settings_of_the_server_are_no_fields(own):
    assert "is not a field" in refused(own, token_file="x")["token_file"]


@pytest.mark.parametrize(
    "value", ["rows.jsonl, ../secret.jsonl", "rows.jsonl*2", "*.jsonl", ["rows.jsonl", "../secret.jsonl"]]
)
def test_a_list_of_files_is_not_for_requests_so_that_each_file_is_looked_at(own, value):
    assert refused(own, dataset_path=value) == {
        "dataset_path": "dataset_path: names one file, without any of * , ? [: a list is for settings files"
    }


def test_a_data_set_on_a_hub_is_taken_as_a_base_model_is_and_no_path_is_reached_by_its_name(own: Settings) -> None:
    found = read(own, dataset_path="hf:owner/rows:train", validation_file="ms:owner/rows:test")
    assert (str(found.dataset.dataset_file), str(found.dataset.validation_file)) == (
        "hf:owner/rows:train",
        "ms:owner/rows:test",
    )
    for name in ("hf:../../secret.jsonl", "ms:owner/../../secret.jsonl", "hf:/etc/passwd", "hf:owner/rows, rows.jsonl"):
        assert "is written" in (said := refused(own, dataset_path=name)["dataset_path"]) or "names one file" in said
    # Of a folder it is no name.
    assert "lies outside" in refused(own, output_dir="../hf:owner/rows")["output_dir"]
