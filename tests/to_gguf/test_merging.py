"""The merge against PEFT's own, and the proof of it: broken on purpose, it must say which tensor is wrong."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from training.base_model import safetensors_file
from training.checks import tensors as proof
from training.errors import RunError
from training.to_gguf import merging

pytestmark = pytest.mark.tiny

SMALL = {
    "vocab_size": 120,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 16}
FAMILIES = {
    "llama": ("LlamaConfig", {}),
    "qwen2": ("Qwen2Config", {"tie_word_embeddings": True}),  # biases on q, k and v; a tied head
    "qwen3": ("Qwen3Config", {"head_dim": 16}),
    "gemma3": ("Gemma3TextConfig", {"head_dim": 16, "sliding_window": 16}),  # tied by default
    "mistral": ("MistralConfig", {}),
    "phi3": ("Phi3Config", {}),  # q, k and v in one tensor, gate and up in another
    "qwen3_moe": ("Qwen3MoeConfig", EXPERTS),
}


def model_of(family: str, seed: int = 0, **settings):
    """A random model with a family's real classes, in float32, with every parameter (biases too) away from 0."""
    import torch
    import transformers

    name, own = FAMILIES[family]
    config = getattr(transformers, name)(**{**SMALL, **own, **settings})
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return model


def save_base(
    folder: Path, family: str, dtype: str = "bfloat16", shard: str = "50KB", seed: int = 0, **settings
) -> Path:
    """A base model folder in several shards."""
    import torch

    model_of(family, seed, **settings).to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=shard)
    return folder


def save_adapter(folder: Path, base: Path, trained: bool = True, **settings) -> Path:
    """An adapter for a base, made and saved by PEFT itself; `trained` gives every part of it random values."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    wanted = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **settings}
    model = get_peft_model(model, LoraConfig(**wanted))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and trained:
                shift = torch.randn_like(parameter) * 0.05
                parameter.mul_(1 + shift.abs()) if "magnitude" in name else parameter.add_(shift)
    model.save_pretrained(folder)
    return folder


def state(folder: Path) -> dict:
    """Every tensor of a model folder."""
    from safetensors.torch import load_file

    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def oracle(base: Path, adapter: Path):
    """The model as PEFT itself merges it, in float32."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return PeftModel.from_pretrained(model, adapter).merge_and_unload()


def agree(base: Path, adapter: Path, merged: Path, dtype: str = "bfloat16", head: bool = True) -> None:
    """Every tensor that transformers reads from the merged folder is PEFT's, rounded once."""
    import torch
    from transformers import AutoModelForCausalLM

    expected = oracle(base, adapter).state_dict()
    found = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32).state_dict()
    assert found.keys() == expected.keys()
    steps = {"bfloat16": 2.0**-8, "float16": 2.0**-11}[dtype]  # half a step, relative to the value
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=steps * 1.01, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


ADAPTERS = {
    "plain": {},
    "all-linear": {"target_modules": "all-linear"},
    "rslora": {"use_rslora": True, "r": 8},
    "dora": {"use_dora": True},
    "dora and rslora on all": {"use_dora": True, "use_rslora": True, "target_modules": "all-linear"},
    "patterns": {"rank_pattern": {"v_proj": 2, "layers.1.self_attn.q_proj": 6}, "alpha_pattern": {"q_proj": 3}},
    "all biases": {"bias": "all"},
    "the adapted biases": {"bias": "lora_only"},
}


@pytest.mark.parametrize("settings", ADAPTERS.values(), ids=ADAPTERS)
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_merge_equals_pefts_own_merge(family: str, settings: dict, tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", family)
    adapter = save_adapter(tmp_path / "adapter", base, **settings)
    record = merging.merge(base, adapter, tmp_path / "merged")
    agree(base, adapter, tmp_path / "merged")
    figures = proof.verify(base, adapter, tmp_path / "merged")
    assert figures.targeted == figures.changed == record.targeted > 0
    assert figures.max_ulp <= 0.5
    assert figures.untrained == figures.lost == 0


@pytest.mark.parametrize("family", ["qwen3", "gemma3", "mistral", "phi3"])
def test_every_family_merges_on_all_its_linear_layers(family: str, tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", family)
    adapter = save_adapter(tmp_path / "adapter", base, target_modules="all-linear")
    merging.merge(base, adapter, tmp_path / "merged")
    agree(base, adapter, tmp_path / "merged")
    assert proof.verify(base, adapter, tmp_path / "merged").changed > 0


@pytest.mark.parametrize("targets", [["gate_up_proj", "down_proj"], ["down_proj"], ["gate_up_proj"]])
def test_experts_stored_one_by_one_get_their_share_of_the_fused_factors(targets: list[str], tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", "qwen3_moe")
    settings = {"target_modules": ["q_proj"], "target_parameters": [f"mlp.experts.{target}" for target in targets]}
    adapter = save_adapter(tmp_path / "adapter", base, **settings)
    merging.merge(base, adapter, tmp_path / "merged")
    agree(base, adapter, tmp_path / "merged")
    figures = proof.verify(base, adapter, tmp_path / "merged")
    assert figures.changed == 2 + 2 * 4 * (2 * ("gate_up_proj" in targets) + ("down_proj" in targets))


def test_all_linear_on_a_mixture_of_experts_reaches_router_and_experts(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", "qwen3_moe")
    adapter = save_adapter(tmp_path / "adapter", base, target_modules="all-linear")
    merging.merge(base, adapter, tmp_path / "merged")
    agree(base, adapter, tmp_path / "merged")
    assert proof.verify(base, adapter, tmp_path / "merged").changed == 2 * (4 + 1 + 4 * 3)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_base_of_another_dtype_is_merged_in_its_own_16_bits_and_float32_in_bfloat16(
    dtype: str, tmp_path: Path
) -> None:
    base = save_base(tmp_path / "base", "llama", dtype=dtype)
    adapter = save_adapter(tmp_path / "adapter", base)
    record = merging.merge(base, adapter, tmp_path / "merged")
    written = "float16" if dtype == "float16" else "bfloat16"
    assert (record.base_dtype, record.dtype) == (dtype, written)
    assert {str(tensor.dtype) for tensor in state(tmp_path / "merged").values()} == {f"torch.{written}"}
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == written
    agree(base, adapter, tmp_path / "merged", dtype=written)
    assert proof.verify(base, adapter, tmp_path / "merged").max_ulp <= 0.5
    sizes = [tensor.nbytes for tensor in state(tmp_path / "merged").values()]
    index = json.loads((tmp_path / "merged" / safetensors_file.INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(sizes)


HEADS = {
    "the head": {"target_modules": ["lm_head", "q_proj"]},
    "the embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "a whole head": {"modules_to_save": ["lm_head"]},
    "the head, with DoRA": {"target_modules": ["lm_head", "q_proj"], "use_dora": True},
    "both, rank-stabilised": {"target_modules": ["lm_head", "embed_tokens"], "use_rslora": True},
}


@pytest.mark.parametrize("settings", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "own head"])
def test_a_trained_head_or_embedding_is_merged_and_a_tied_one_untied(
    tied: bool, settings: dict, tmp_path: Path
) -> None:
    """Trained, a tied head and embedding are two tensors: PEFT adapts one of them only (its own merge forgets that)."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = save_base(tmp_path / "base", "llama", tie_word_embeddings=tied)
    adapter = save_adapter(tmp_path / "adapter", base, **settings)
    record = merging.merge(base, adapter, tmp_path / "merged")
    assert record.untied is tied
    figures = proof.verify(base, adapter, tmp_path / "merged")
    assert figures.tensors == len(state(base)) + tied
    tokens = torch.arange(40).view(1, -1)
    trained = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    expected, found = trained.eval()(tokens).logits, merged.eval()(tokens).logits
    assert (found - expected).abs().max() < 0.02 * expected.abs().max()


def test_a_checkpoint_that_names_its_layers_otherwise_is_matched(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", "llama", shard="5GB")
    adapter = save_adapter(tmp_path / "adapter", base)
    edit(base, lambda tensors: {f"language_model.{name}": tensor for name, tensor in tensors.items()})
    assert merging.merge(base, adapter, tmp_path / "merged").targeted == 4
    assert proof.verify(base, adapter, tmp_path / "merged").changed == 4


# ---- what the folder holds ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A base in shards with tokenizer files, an adapter for it, and the two merged; tests copy what they change."""
    folder = tmp_path_factory.mktemp("parts")
    base = save_base(folder / "base", "llama")
    (base / "tokenizer.json").write_bytes(b'{"version": "1.0"}\r\n')
    (base / "tokenizer_config.json").write_text('{"eos_token": "</s>",\n "chat_template": "{{ own }}"}')
    (base / "generation_config.json").write_text('{ "eos_token_id": [2, 5] }')
    (base / "pytorch_model.bin").write_bytes(b"pickle")
    (base / "README.md").write_text("the base's own page")
    adapter = save_adapter(folder / "adapter", base)
    merging.merge(base, adapter, folder / "merged")
    return base, adapter, folder / "merged"


def edit(folder: Path, change: Callable[[dict], dict]) -> None:
    """Rewrite every shard of a model folder with its tensors changed (an index is dropped, one shard remains)."""
    from safetensors.torch import save_file

    tensors = change(state(folder))
    for file in [*folder.glob("*.safetensors"), *folder.glob("*.index.json")]:
        file.unlink()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def copy(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to


def test_the_folder_holds_the_bases_own_files_byte_for_byte_and_no_other_weights(parts) -> None:
    base, _, merged = parts
    expected = {file.name for file in base.iterdir()} - {"pytorch_model.bin", "README.md"}
    assert {file.name for file in merged.iterdir()} == expected
    for file in merged.iterdir():
        if file.suffix != ".safetensors":
            assert file.read_bytes() == (base / file.name).read_bytes(), file.name


def test_shards_keep_their_names_their_headers_and_every_untouched_byte(parts) -> None:
    base, _, merged = parts
    shards = sorted(base.glob("*.safetensors"))
    assert len(shards) > 2
    for shard in shards:
        old, new = shard.read_bytes(), (merged / shard.name).read_bytes()
        header = 8 + int.from_bytes(old[:8], "little")
        assert len(old) == len(new)
        assert old[:header] == new[:header]


def test_the_size_said_before_is_the_size_on_disk(parts, tmp_path: Path) -> None:
    base, adapter, merged = parts
    size = sum(file.stat().st_size for file in merged.iterdir())
    assert size <= merging.merge_bytes(base) <= size + 20_000


def test_a_template_trained_with_is_written_to_both_places(parts, tmp_path: Path) -> None:
    base, adapter, _ = parts
    record = merging.merge(base, adapter, tmp_path / "out", chat_template="{{ 另一個 }}\r\n")
    assert (tmp_path / "out" / "chat_template.jinja").read_bytes() == "{{ 另一個 }}\r\n".encode()
    settings = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text("utf-8"))
    assert settings == {"eos_token": "</s>", "chat_template": "{{ 另一個 }}\r\n"}
    assert record.template == "the one trained with, in place of the base's"


def test_the_bases_own_template_leaves_its_files_alone(parts, tmp_path: Path) -> None:
    base, adapter, merged = parts
    record = merging.merge(base, adapter, tmp_path / "out", chat_template="{{ own }}")
    assert record.template == "the base's own"
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == {
        file.name: file.read_bytes() for file in merged.iterdir()
    }


def test_every_place_for_a_template_says_the_one_trained_with_where_the_base_has_two(parts, tmp_path: Path) -> None:
    base, adapter = copy(parts[0], tmp_path / "base"), parts[1]
    (base / "chat_template.jinja").write_text("{{ trained }}")
    (base / "chat_template.json").write_text('{"chat_template": "{{ older }}"}')
    record = merging.merge(base, adapter, tmp_path / "out", chat_template="{{ trained }}")
    assert record.template == "the base's own"
    settings = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text("utf-8"))
    assert settings == {"eos_token": "</s>", "chat_template": "{{ trained }}"}
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "{{ trained }}"
    assert not (tmp_path / "out" / "chat_template.json").exists()


def test_an_old_template_file_that_is_damaged_does_not_stop_the_merge(parts, tmp_path: Path) -> None:
    base, adapter = copy(parts[0], tmp_path / "base"), parts[1]
    (base / "chat_template.json").write_text("{")
    assert merging.merge(base, adapter, tmp_path / "out", chat_template="{{ own }}").template == "the base's own"
    assert not (tmp_path / "out" / "chat_template.json").exists()


def test_named_templates_stay_where_their_default_was_trained_with_and_go_where_not(parts, tmp_path: Path) -> None:
    base, adapter = copy(parts[0], tmp_path / "base"), parts[1]
    named = [{"name": "default", "template": "{{ own }}"}, {"name": "tool_use", "template": "{{ tools }}"}]
    (base / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    for wanted, held in (("{{ own }}", named), ("{{ new }}", "{{ new }}")):
        merging.merge(base, adapter, tmp_path / "out", chat_template=wanted)
        assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())["chat_template"] == held
    # By the one for tools, readers would write chats that were learned by the one that was chosen.
    merging.merge(base, adapter, tmp_path / "out", chat_template="{{ own }}", alone=True)
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())["chat_template"] == "{{ own }}"


def test_a_template_from_an_old_file_is_written_where_readers_look_today(parts, tmp_path: Path) -> None:
    base, adapter = copy(parts[0], tmp_path / "base"), parts[1]
    (base / "tokenizer_config.json").write_text('{"eos_token":"</s>"}')
    (base / "chat_template.json").write_text('{"chat_template": "{{ old }}"}')
    assert merging.merge(base, adapter, tmp_path / "out", chat_template="{{ old }}").template == "the base's own"
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "{{ old }}"


def test_a_template_for_a_base_without_one_is_written_beside_its_untouched_tokenizer(parts, tmp_path: Path) -> None:
    base, adapter = copy(parts[0], tmp_path / "base"), parts[1]
    (base / "tokenizer_config.json").write_text('{"eos_token":"</s>"}')
    record = merging.merge(base, adapter, tmp_path / "out", chat_template="{{ new }}")
    assert record.template == "the one trained with"
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "{{ new }}"
    assert (tmp_path / "out" / "tokenizer_config.json").read_text() == '{"eos_token":"</s>"}'


def test_quantization_config_does_not_reach_the_merged_model(parts, tmp_path: Path) -> None:
    base, adapter = copy(parts[0], tmp_path / "base"), parts[1]
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gguf"}}))
    merging.merge(base, adapter, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == config


def test_what_only_the_owner_of_the_base_may_read_is_for_nobody_else_in_the_merged_model(parts, tmp_path: Path) -> None:
    base, adapter = copy(parts[0], tmp_path / "base"), parts[1]
    for file in base.iterdir():
        file.chmod(0o600)
    merging.merge(base, adapter, tmp_path / "out")
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "out").iterdir()} == {0o600}


# ---- failures ----------------------------------------------------------------------------------------------------


def test_a_full_disk_says_how_much_is_needed_and_leaves_nothing_behind(parts, tmp_path: Path, monkeypatch) -> None:
    base, adapter, _ = parts

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(merging, "_copy_bytes", full)
    with pytest.raises(RunError) as error:
        merging.merge(base, adapter, tmp_path / "out")
    assert f"needs {merging.merge_bytes(base):,} bytes" in str(error.value)
    assert "the disk is full" in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_too_little_room_is_said_before_anything_is_written(parts, tmp_path: Path, monkeypatch) -> None:
    base, adapter, _ = parts
    monkeypatch.setattr(merging.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(RunError, match=r"0\.0 GB are free"):
        merging.merge(base, adapter, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_of_a_larger_model_is_refused_by_name(parts, tmp_path: Path) -> None:
    other = save_base(tmp_path / "other", "llama", hidden_size=32)
    with pytest.raises(RunError, match=r"q_proj\.lora_A\.weight is \[4, 64\].*another model"):
        merging.merge(other, parts[1], tmp_path / "out")


def test_an_adapter_of_a_deeper_model_is_refused_by_name(parts, tmp_path: Path) -> None:
    other = save_base(tmp_path / "other", "llama", num_hidden_layers=1)
    with pytest.raises(RunError, match=r"layers\.1\.self_attn\.q_proj\.weight, which the base does not have"):
        merging.merge(other, parts[1], tmp_path / "out")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_values_that_are_not_finite_are_refused_by_name(parts, value: float, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    adapter = copy(parts[1], tmp_path / "adapter")
    tensors = load_file(adapter / "adapter_model.safetensors")
    name = next(name for name in tensors if "layers.1.self_attn.v_proj.lora_B" in name)
    tensors[name][0, 0] = value
    tensors[name.replace("lora_B", "lora_A")][0] = 4.0
    save_file(tensors, adapter / "adapter_model.safetensors")
    with pytest.raises(RunError, match=r"layers\.1\.self_attn\.v_proj\.weight would hold values that are not finite"):
        merging.merge(parts[0], adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---- the proof, with each link broken on purpose -------------------------------------------------------------------


def broken(parts, tmp_path: Path, change: Callable[[dict], dict]) -> str:
    """What the proof says of a merged folder whose tensors were changed."""
    base, adapter, merged = parts
    folder = copy(merged, tmp_path / "broken")
    edit(folder, change)
    with pytest.raises(RunError) as error:
        proof.verify(base, adapter, folder)
    return str(error.value)


def put(name: str, change: Callable) -> Callable[[dict], dict]:
    return lambda tensors: {**tensors, name: change(tensors[name]).contiguous()}


Q = "model.layers.1.self_attn.q_proj.weight"
UP = "model.layers.0.mlp.up_proj.weight"


def test_the_proof_sees_another_base(parts, tmp_path: Path) -> None:
    other = save_base(tmp_path / "other", "llama", seed=7)
    with pytest.raises(RunError, match="is not targeted by the adapter, but differs from the base"):
        proof.verify(other, parts[1], parts[2])


def test_the_proof_sees_a_shuffled_tensor(parts, tmp_path: Path) -> None:
    assert f"{Q} is not base + update" in broken(parts, tmp_path, put(Q, lambda tensor: tensor.flip(0)))


def test_the_proof_sees_a_shuffled_tensor_that_no_adapter_touched(parts, tmp_path: Path) -> None:
    assert f"{UP} is not targeted" in broken(parts, tmp_path, put(UP, lambda tensor: tensor.flip(1)))


def test_the_proof_sees_one_bit_in_an_untouched_tensor(parts, tmp_path: Path) -> None:
    def flip(tensor):
        import torch

        bits = tensor.clone().view(torch.int16)
        bits[3, 5] ^= 1
        return bits.view(torch.bfloat16)

    assert f"{UP} is not targeted" in broken(parts, tmp_path, put(UP, flip))


def test_the_proof_sees_one_value_that_is_two_steps_off(parts, tmp_path: Path) -> None:
    def nudge(tensor):
        import torch

        bits = tensor.clone().view(torch.int16)
        bits[3, 5] += 2
        return bits.view(torch.bfloat16)

    assert f"{Q} is not base + update" in broken(parts, tmp_path, put(Q, nudge))


def test_the_proof_sees_a_tensor_that_the_merge_left_out(parts, tmp_path: Path) -> None:
    own = state(parts[0])[Q]
    assert f"{Q} is not base + update" in broken(parts, tmp_path, put(Q, lambda _: own))


def test_the_proof_sees_a_merge_that_did_nothing(parts, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not base \\+ update"):
        proof.verify(parts[0], parts[1], parts[0])


def test_the_proof_sees_a_missing_and_an_extra_tensor(parts, tmp_path: Path) -> None:
    said = broken(parts, tmp_path, lambda tensors: {name: tensor for name, tensor in tensors.items() if name != UP})
    assert f"lacks 1 tensors of the base, the first of them {UP}" in said
    shutil.rmtree(tmp_path / "broken")
    said = broken(parts, tmp_path, lambda tensors: {**tensors, "extra.weight": tensors[UP].clone()})
    assert "holds 1 tensors that the base has not, the first of them extra.weight" in said


def test_the_proof_sees_a_wrong_scaling(parts, tmp_path: Path) -> None:
    adapter = copy(parts[1], tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 8.1}))
    with pytest.raises(RunError, match="is not base \\+ update"):
        proof.verify(parts[0], adapter, parts[2])


def test_an_untrained_adapter_fails_the_proof(parts, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "adapter", parts[0], trained=False)
    merging.merge(parts[0], adapter, tmp_path / "out")
    with pytest.raises(RunError, match="the adapter changes nothing: .* exactly 0: it was not trained"):
        proof.verify(parts[0], adapter, tmp_path / "out")


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_an_untrained_dora_adapter_is_told_from_updates_that_are_too_small(dtype: str, tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", "llama", dtype)
    adapter = save_adapter(tmp_path / "adapter", base, trained=False, use_dora=True)
    merging.merge(base, adapter, tmp_path / "out")
    with pytest.raises(RunError, match="the updates of all 4 targeted tensors are exactly 0: it was not trained"):
        proof.verify(base, adapter, tmp_path / "out")


@pytest.mark.parametrize("part", ["lora_B", "lora_magnitude_vector"])
def test_either_part_of_a_dora_adapter_counts_as_trained(part: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    base = save_base(tmp_path / "base", "llama")
    adapter = save_adapter(tmp_path / "adapter", base, trained=False, use_dora=True)
    tensors = load_file(adapter / "adapter_model.safetensors")
    name = next(name for name in tensors if part in name)
    tensors[name][0] += 0.01  # of one row of one tensor
    save_file(tensors, adapter / "adapter_model.safetensors")
    merging.merge(base, adapter, tmp_path / "out")
    found = proof.verify(base, adapter, tmp_path / "out")
    assert (found.targeted, found.changed, found.untrained, found.lost) == (4, 1, 3, 0)


def test_updates_too_small_for_16_bits_fail_the_proof(parts, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    adapter = save_adapter(tmp_path / "adapter", parts[0], trained=False)
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file({n: t + 1e-12 if "lora_B" in n else t for n, t in tensors.items()}, adapter / "adapter_model.safetensors")
    base = copy(parts[0], tmp_path / "base")
    edit(base, lambda tensors: {name: tensor.abs() + 0.5 for name, tensor in tensors.items()})
    merging.merge(base, adapter, tmp_path / "out")
    with pytest.raises(RunError, match="smaller than a 16-bit step: train longer or raise LEARNING_RATE"):
        proof.verify(base, adapter, tmp_path / "out")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_of_merge_and_proof_does_not_grow_with_the_shard(tmp_path: Path) -> None:
    """A shard of 192 MB, half of it one targeted tensor: both stay well below that, above an idle torch."""
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    for folder in (base, adapter):
        folder.mkdir()
    shape, rank = (24_000, 2_000), 8
    name = "model.layers.0.mlp.up_proj"
    entries = {f"{name}.weight": ("BF16", shape), "model.other.weight": ("BF16", shape)}
    with (base / "model.safetensors").open("wb") as file:
        file.write(safetensors_file.encode_header(entries, {"format": "pt"}))
        file.write(b"\x11\x3c" * (2 * shape[0] * shape[1]))  # 0.00885 in bfloat16, everywhere
    (base / "config.json").write_text("{}")
    factors = {"lora_A": (rank, shape[1]), "lora_B": (shape[0], rank)}
    with (adapter / "adapter_model.safetensors").open("wb") as file:
        sizes = {f"base_model.model.{name}.{part}.weight": ("F32", size) for part, size in factors.items()}
        file.write(safetensors_file.encode_header(sizes, {}))
        file.write(b"\x00\x00\x80\x3c" * sum(rows * width for rows, width in factors.values()))  # 2**-6
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": 16}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    script = (  # not ru_maxrss: a child starts with its parent's peak in it
        "import re, sys, torch; from pathlib import Path; from training.to_gguf import merging; from training.checks import tensors\n"
        "peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])\n"
        "idle, paths = peak(), [Path(path) for path in sys.argv[1:]]\n"
        "merging.merge(*paths); merged = peak(); assert tensors.verify(*paths).changed == 1\n"
        "print(merged - idle, peak() - idle)"
    )
    command = [sys.executable, "-c", script, str(base), str(adapter), str(tmp_path / "merged")]
    root = Path(merging.__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    merge_kb, proof_kb = map(int, done.stdout.split())
    assert merge_kb < 130_000
    assert proof_kb < 130_000
