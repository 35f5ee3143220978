"""What stands in the small files of a model folder is told by file and field, or it is none of our business."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from tests.support.folders import folder, write
from training import base_model
from training.base_model import kept_files, leftovers, lora_adapter, model_folder, model_json
from training.errors import FinetuneError, RunError, UserError
from training.evaluation.target import Target
from training.settings.table import Model

WRONG: list[tuple[str, object, str]] = [
    ("config.json", {"vocab_size": "49152"}, 'vocab_size = "49152" is no whole number from 1'),
    # transformers takes no other number there, either.
    ("config.json", {"vocab_size": 32000.0}, "vocab_size = 32000.0 is no whole number from 1"),
    ("config.json", {"vocab_size": -1}, "vocab_size = -1 is no whole number from 1"),
    ("config.json", {"max_position_embeddings": None}, "max_position_embeddings = null is no whole number"),
    ("config.json", {"num_attention_heads": 0}, "num_attention_heads = 0 is no whole number from 1"),
    ("config.json", {"num_labels": 100_000_000}, "num_labels = 100000000 is no whole number from 1 to 1,048,576"),
    ("config.json", {"dtype": "os.system"}, 'dtype = "os.system" is no dtype'),
    ("config.json", {"architectures": "LlamaForCausalLM"}, "architectures = .* is no list of texts"),
    ("config.json", {"text_config": {"hidden_size": []}}, r"text_config: hidden_size = \[\] is no whole number"),
    ("config.json", {"eos_token_id": ["2"]}, r'eos_token_id = \["2"\] is no token id'),
    ("config.json", {"hidden_size": 1 << 40}, "hidden_size = 1099511627776 is no whole number from 1 to 1,048,576"),
    ("generation_config.json", [], r"is not a JSON object: it holds \[\]"),
    ("generation_config.json", {"temperature": "hot"}, 'temperature = "hot" is no finite number'),
    ("tokenizer_config.json", {"eos_token": 7}, "eos_token = 7 is no token"),
    ("tokenizer_config.json", {"chat_template": 7}, "chat_template = 7 is no template"),
    ("tokenizer_config.json", 7, "is not a JSON object: it holds 7"),
    ("special_tokens_map.json", [], "is not a JSON object"),
    ("model.safetensors.index.json", {"weight_map": []}, r"weight_map = \[\] is no object of files' names"),
]


@pytest.mark.parametrize(("name", "content", "said"), WRONG)
def test_what_is_wrong_with_a_models_file_is_told_with_file_and_field(
    name: str, content: Any, said: str, tmp_path: Path
) -> None:
    path = folder(tmp_path / "m")
    if name == "config.json":
        content = json.loads((path / name).read_text()) | content
    (path / name).write_text(json.dumps(content))
    with pytest.raises(UserError, match=said) as caught:
        base_model.locate(Model(base_model_name=str(path), revision=None, trust_remote_code=False))
    assert str(caught.value).startswith(str(path / name))


def test_what_published_models_have_there_is_taken(tmp_path: Path) -> None:
    path = folder(
        tmp_path / "m", num_key_value_heads=None, eos_token_id=[1, 2], torch_dtype="bfloat16", sliding_window=None,
        pad_token_id=-1, head_dim=None, dtype="torch.float16", id2label={"0": "x"}, rope_scaling=None,
    )  # fmt: skip
    words = {"model_max_length": 10**30, "eos_token": {"content": "x"}, "pad_token": None, "chat_template": [{}]}
    (path / "tokenizer_config.json").write_text(json.dumps(words))
    (path / "generation_config.json").write_text('{"temperature": 1, "top_p": 0.9, "eos_token_id": 2}')
    assert model_folder.check(path)[1] == 15


ODD_BUT_RIGHT = {
    "config.json": [
        {"eos_token_id": [1, 2]}, {"eos_token_id": None}, {"rope_scaling": None}, {"torch_dtype": None}, {"dtype": None},
        {"dtype": {"text_config": "bfloat16", "": "float32"}}, {"torch_dtype": "auto"}, {"torch_dtype": "float8_e4m3fn"},
        {"rope_theta": 10000}, {"rope_theta": 1e6}, {"rms_norm_eps": 1e-05}, {"rms_norm_eps": 0}, {"sliding_window": 0},
        {"rope_parameters": {"sliding_attention": {"rope_type": "default"}}}, {"architectures": None},
        {"text_config": None}, {"text_config": {}}, {"num_key_value_heads": None}, {"id2label": {"0": "LABEL_0"}},
        {"tie_word_embeddings": None},
    ],
    "generation_config.json": [
        {"eos_token_id": [1, 2]}, {"temperature": None}, {"top_k": 50.0}, {"top_k": 0}, {"max_length": 131072.0}, {"num_beams": 1.0},
        {"do_sample": None}, {"pad_token_id": -1}, {"bos_token_id": None}, {},
    ],
    "tokenizer_config.json": [
        {"model_max_length": 1e30}, {"model_max_length": 10**30}, {"model_max_length": None}, {"pad_token": None},
        {"eos_token": {"__type": "AddedToken", "content": "</s>", "lstrip": False}}, {"tokenizer_class": None},
        {"added_tokens_decoder": {}}, {"chat_template": [{"name": "default", "template": "x"}]}, {"chat_template": None},
        {"extra_special_tokens": []}, {"extra_special_tokens": {}}, {"add_bos_token": None}, {"auto_map": {}},
        {"additional_special_tokens": ["<a>"]}, {"fast_tokenizer_files": ["tokenizer.json"]}, {"name_or_path": None},
    ],
    "adapter_config.json": [
        {"r": 16, "lora_alpha": 32.0}, {"lora_alpha": 16, "rank_pattern": {}, "modules_to_save": None},
        {"peft_type": None}, {"base_model_name_or_path": None}, {"use_dora": False, "layers_to_transform": 3},
    ],
    "special_tokens_map.json": [{"eos_token": "</s>"}, {"additional_special_tokens": [{"content": "<a>"}]}],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content"), [(name, content) for name, some in ODD_BUT_RIGHT.items() for content in some]
)
def test_what_is_odd_and_right_is_taken(name: str, content: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / name).write_text(json.dumps(content))
    assert model_json.read(tmp_path / name) == content


@pytest.mark.tiny
def test_the_settings_of_every_language_model_that_transformers_knows_are_taken() -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    found = 0
    for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        try:
            config = CONFIG_MAPPING[kind]().to_dict()
        except Exception:  # a few ask for the settings of their parts
            continue
        found += 1
        assert model_json.parse(json.dumps(config, default=str).encode(), kind)
    assert found > 100


@pytest.mark.parametrize("content", ["[]", "{", '{"peft_type": 7}', '{"r": "4"}', '{"base_model_name_or_path": []}'])
def test_a_broken_adapter_config_is_told_by_whoever_reads_it(content: str, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(content)
    with pytest.raises(UserError, match="adapter_config.json"):
        model_folder.find(tmp_path)
    with pytest.raises(UserError, match="adapter_config.json"):
        Target.named(str(tmp_path), None, tmp_path / "config.ini")
    with pytest.raises(RunError, match="is no PEFT adapter: .*adapter_config.json"):
        lora_adapter.changes({}, tmp_path, False)


def test_the_litter_of_macos_is_no_file_of_the_model(tmp_path: Path) -> None:
    path = folder(tmp_path / "m")
    names = [
        "config.json",
        "tokenizer.json",
        "tokenizer.model",
        "model.safetensors",
        "x.safetensors",
        "LICENSE",
        "a.py",
    ]
    for name in names:
        (path / f"._{name}").write_bytes(b"\x00\x05\x16\x07" + bytes(60))
    assert model_folder.check(path)[1] == 15
    assert not any(file.name.startswith(".") for file in kept_files.kept(path))
    assert not kept_files.left_out(path)
    with leftovers.kept_out(path) as seen:
        assert {file.name for file in seen.glob("*.safetensors")} == {"model.safetensors"}
    (tmp_path / "g").mkdir()
    (tmp_path / "g" / "._x.gguf").write_bytes(b"")
    with pytest.raises(UserError, match="is no model folder: it holds no config.json"):
        model_folder.find(tmp_path / "g")


def test_a_safetensors_header_that_is_nested_without_end_is_damage(tmp_path: Path) -> None:
    path = folder(tmp_path / "m")
    header = b"[" * 100_000
    (path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(UserError, match="is not a whole safetensors file: its header cannot be read: it is nested"):
        model_folder.check(path)


def test_whatever_stands_in_the_files_of_a_model_ends_in_words(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    """Fields and values at random, from a seed; --fuzz N for more."""
    chance = random.Random(7)
    values: list[object] = [None, True, -1, 0, 1e300, "x", [], {}, [1], {"a": 1}, [{}], "\ud800", 10**30, [[]]]
    path = folder(tmp_path / "m")
    before = json.loads((path / "config.json").read_text())
    names = [name for name in model_json.FILES if name != "config.json"]
    for _ in range(pytestconfig.getoption("--fuzz")):
        kinds = sorted({*model_json.CONFIG_KINDS, "model_type", "quantization_config", "auto_map"})
        config = before | {key: chance.choice(values) for key in chance.sample(kinds, 2)}
        (path / "config.json").write_text(json.dumps(config))
        name = chance.choice(names)
        some = {key: chance.choice(values) for key in [*model_json.kinds_of(name), "fast_tokenizer_files"]}
        (path / name).write_text(json.dumps(chance.choice([some, chance.choice(values)])))
        try:
            base_model.locate(Model(base_model_name=str(path), revision=None, trust_remote_code=False))
        except FinetuneError as error:
            assert str(path) in str(error)
        (path / name).unlink()


@pytest.mark.tiny
@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("tokenizer.json", '{"version": "1.0", "model": 7}', "its tokenizer cannot be read: "),
        ("tokenizer.json", "[]", "its tokenizer cannot be read: "),
        ("config.json", {"rope_scaling": {"rope_type": "odd"}}, "transformers makes no model|cannot be put together"),
        ("config.json", {"hidden_act": 7}, "transformers makes no model"),
        ("config.json", {"num_attention_heads": 7}, "transformers makes no model|asks for|no file holds"),
        ("generation_config.json", '{"max_new_tokens": -5}', "generation_config.json: transformers cannot read it"),
    ],
)
def test_what_a_library_makes_of_a_folder_names_the_folder(name: str, content: Any, said: str, tmp_path: Path) -> None:
    from training.base_model import weights_fit

    path = folder(tmp_path / "m", vocab_size=8, hidden_size=4, num_hidden_layers=1, num_attention_heads=1)
    write(path / "model.safetensors", {"model.norm.weight": ("BF16", (4,))})
    text = content if isinstance(content, str) else json.dumps(json.loads((path / name).read_text()) | content)
    (path / name).write_text(text)
    with pytest.raises(UserError, match=said) as caught:
        base_model.load_tokenizer(path) if name == "tokenizer.json" else weights_fit.check(
            path, json.loads((path / "config.json").read_text())
        )
    assert str(path) in str(caught.value)
