"""What the merge refuses before it reads a weight: quick, for only headers are read, and no torch is imported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.folders import write
from training.base_model import safetensors_file
from training.errors import RunError
from training.to_gguf import merging

Q = "model.layers.0.self_attn.q_proj"
ADAPTER = {
    f"base_model.model.{Q}.lora_A.weight": ("F32", (4, 8)),
    f"base_model.model.{Q}.lora_B.weight": ("F32", (6, 4)),
}
BASE = {"model.embed_tokens.weight": ("BF16", (10, 8)), f"{Q}.weight": ("BF16", (6, 8)), f"{Q}.bias": ("BF16", (6,))}


def plan(folder: Path, base: dict | None = None, adapter: dict | None = None, model: dict | None = None, **config):
    """The plan of a merge of files with these tensors; `config` goes over the adapter's settings."""
    write(folder / "base" / "model.safetensors", BASE if base is None else base)
    (folder / "base" / "config.json").write_text(json.dumps(model or {}))
    write(folder / "adapter" / "adapter_model.safetensors", ADAPTER if adapter is None else adapter)
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, **config}
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(settings))
    return merging.plan(folder / "base", folder / "adapter")


def refused(folder: Path, **given) -> str:
    with pytest.raises(RunError) as error:
        plan(folder, **given)
    assert error.value.stage == "merge"
    return error.value.message


def test_an_adapter_finds_its_tensor_and_leaves_the_others(tmp_path: Path) -> None:
    planned = plan(tmp_path)
    assert [name for name, output in planned.outputs.items() if output.changes] == [f"{Q}.weight"]
    assert planned.outputs[f"{Q}.weight"].changes[0].scaling == 2
    assert not planned.untied


def test_rank_stabilised_scaling_divides_by_the_root(tmp_path: Path) -> None:
    assert plan(tmp_path, use_rslora=True).outputs[f"{Q}.weight"].changes[0].scaling == 4


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"peft_type": "LOHA"}, "the adapter is of PEFT type LOHA; only LORA can be merged"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights = pissa (it rewrites the base's weights)"),
        ({"fan_in_fan_out": True}, "the adapter was made with fan_in_fan_out = True, which cannot be merged here"),
        ({"lora_bias": True}, "the adapter was made with lora_bias = True"),
        ({"use_dora": True}, f"use_dora is True, but {Q} does not agree: a damaged adapter"),
        ({"r": 8}, "lora_A.weight is [4, 8], but model.layers.0.self_attn.q_proj.weight of the base, [6, 8], asks for"),
    ],
)
def test_settings_that_cannot_be_merged_are_named(settings: dict, said: str, tmp_path: Path) -> None:
    assert said in refused(tmp_path, **settings)


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"base_model.model.x.lora_C": ("F32", (1,))}, "holds base_model.model.x.lora_C, which is no part of a LoRA"),
        ({"x.lora_A.weight": ("F32", (1,))}, "holds x.lora_A.weight, which is no part of a LoRA"),
        ({"base_model.model.x.lora_A.weight": ("F32", (4, 8))}, "holds only one of the two factors of x"),
        ({"base_model.model.x.lora_A.weight": ("I8", (4, 8))}, "the adapter's base_model.model.x.lora_A.weight is I8"),
        ({"base_model.model.x.bias": ("F32", (6,))}, "the adapter changes x.bias, which the base does not have"),
        (
            {f"base_model.model.{Q}.bias": ("F32", (5,))},
            f"{Q}.bias is [5], but {Q}.bias of the base, [6], asks for [6]",
        ),
        (
            {"base_model.model.model.embed_tokens.base_layer.weight": ("F32", (12, 8))},
            "embed_tokens.base_layer.weight is [12, 8], but model.embed_tokens.weight of the base, [10, 8]",
        ),
    ],
)
def test_no_tensor_of_the_adapter_is_skipped_in_silence(extra: dict, said: str, tmp_path: Path) -> None:
    assert said in refused(tmp_path, adapter={**ADAPTER, **extra})


def test_an_empty_adapter_is_refused(tmp_path: Path) -> None:
    assert "is empty: nothing was trained" in refused(tmp_path, adapter={})


def test_dora_on_an_embedding_is_refused(tmp_path: Path) -> None:
    root = "base_model.model.model.embed_tokens."
    factors = {f"{root}lora_embedding_A": ("F32", (4, 10)), f"{root}lora_embedding_B": ("F32", (8, 4))}
    adapter = {**factors, f"{root}lora_magnitude_vector": ("F32", (8,))}
    said = refused(tmp_path, adapter=adapter, use_dora=True)
    assert "DoRA on an embedding (model.embed_tokens) cannot be merged; leave it out of TARGET_MODULES" in said


def test_experts_whose_parameter_is_not_known_are_refused(tmp_path: Path) -> None:
    root = "base_model.model.model.layers.0.mlp.experts."
    adapter = {f"{root}lora_A.weight": ("F32", (16, 8)), f"{root}lora_B.weight": ("F32", (6, 16))}
    assert "does not say which parameter of model.layers.0.mlp.experts was trained" in refused(
        tmp_path, adapter=adapter
    )


def test_more_experts_in_the_base_than_in_the_adapter_are_refused(tmp_path: Path) -> None:
    root = "model.layers.0.mlp.experts."
    base = {f"{root}{index}.down_proj.weight": ("BF16", (6, 8)) for index in range(5)}
    names = ("lora_A.weight", (16, 8)), ("lora_B.weight", (6, 16))
    adapter = {f"base_model.model.{root}{name}": ("F32", shape) for name, shape in names}
    said = refused(tmp_path, base=base, adapter=adapter, target_parameters=["mlp.experts.down_proj"])
    assert "does not fit the experts of the base" in said


def test_two_tensors_that_answer_to_one_name_are_refused(tmp_path: Path) -> None:
    base = {f"language_model.{Q}.weight": ("BF16", (6, 8)), f"model.language_model.{Q}.weight": ("BF16", (6, 8))}
    assert f"{Q}.weight of the adapter may be" in refused(tmp_path, base=base)


def test_a_quantised_tensor_is_never_merged_into(tmp_path: Path) -> None:
    said = refused(tmp_path, base={f"{Q}.weight": ("I8", (6, 8))})
    assert f"{Q}.weight of the base is I8: an adapter is merged into 16-bit weights, never into quantised ones" in said
    assert "name the 16-bit model as BASE_MODEL_NAME" in said


def test_a_base_whose_config_says_that_it_is_quantised_is_refused(tmp_path: Path) -> None:
    base = {**BASE, "model.layers.0.mlp.up_proj.weight": ("U8", (24, 1))}
    said = refused(tmp_path, base=base, model={"quantization_config": {"load_in_4bit": True}})
    assert "holds quantised weights (model.layers.0.mlp.up_proj.weight is U8)" in said


def test_a_folder_without_an_adapter_is_refused(tmp_path: Path) -> None:
    plan(tmp_path)
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(RunError, match="is no PEFT adapter: adapter_model.safetensors is missing"):
        merging.plan(tmp_path / "base", tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_config.json").unlink()
    with pytest.raises(RunError, match="is no PEFT adapter: adapter_config.json cannot be read"):
        merging.plan(tmp_path / "base", tmp_path / "adapter")


def test_a_damaged_base_is_refused_by_file(tmp_path: Path) -> None:
    plan(tmp_path)
    shard = tmp_path / "base" / "model.safetensors"
    whole = shard.read_bytes()
    for content, said in (
        (whole[:-1], "is cut short"),
        (whole[:20], "header claims"),
        (b"\x02" + bytes(7) + b"[]", "is not a whole safetensors file"),
        (whole.replace(b"[10,8]", b"[10,9]"), "model.embed_tokens.weight has 160 bytes, which is not BF16"),
    ):
        shard.write_bytes(content)
        with pytest.raises(RunError, match=said):
            merging.plan(tmp_path / "base", tmp_path / "adapter")
    shard.unlink()
    with pytest.raises(RunError, match="holds no safetensors weights"):
        merging.plan(tmp_path / "base", tmp_path / "adapter")


def test_an_index_is_followed_and_checked(tmp_path: Path) -> None:
    plan(tmp_path)
    base = tmp_path / "base"
    (base / "model.safetensors").rename(base / "a.safetensors")
    write(base / "consolidated.safetensors", BASE)  # another copy of the weights, as Mistral ships, is not read
    index = base / safetensors_file.INDEX
    index.write_text(json.dumps({"weight_map": dict.fromkeys(BASE, "a.safetensors")}))
    assert list(merging.plan(base, tmp_path / "adapter").shards) == ["a.safetensors"]
    index.write_text(json.dumps({"weight_map": {"x": "b.safetensors", "y": "../a.safetensors"}}))
    with pytest.raises(RunError, match=r"lacks \.\./a\.safetensors, b\.safetensors, which its index names"):
        merging.plan(base, tmp_path / "adapter")
    index.write_text("[]")
    with pytest.raises(RunError, match="is not a safetensors index"):
        merging.plan(base, tmp_path / "adapter")


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    plan(tmp_path)
    base = tmp_path / "base"
    (base / "model.safetensors").rename(base / "model-1.safetensors")
    write(base / "model-2.safetensors", {f"{Q}.weight": ("BF16", (6, 8))})
    (base / safetensors_file.INDEX).write_text(
        json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}})
    )
    with pytest.raises(RunError, match="q_proj.weight is in model-1.safetensors and in model-2.safetensors"):
        merging.plan(base, tmp_path / "adapter")
