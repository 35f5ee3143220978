"""TARGET_MODULES outside of the blocks: lm_head and embed_tokens, trained, saved, merged, converted and checked."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest

from tests.support import small
from tests.support.faults import NO_EXPORT, STOPPED, faulty, only_run
from tests.support.folders import write
from tests.support.plans import a_base_model
from tests.support.programs import finetune
from tests.support.runs import losses
from tests.support.tiny import write_tiny_config
from training import settings
from training.base_model import BaseModel, safetensors_file
from training.errors import UserError
from training.fast_cpu import policy
from training.plan import choices, disk_space, memory
from training.settings import Settings

# Its runs need no real vocabulary.
tiny_model = small.tiny_model

Q = "model.layers.0.self_attn.q_proj.weight"
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def targeting(tmp_path: Path, modules: str, more: str = "") -> Settings:
    config = tmp_path / "config.ini"
    config.write_text(f"[LoRA]\nR = 4\nTARGET_MODULES = {modules}\n{more}", encoding="utf-8")
    return settings.load(config, check_files=False)


def model(folder: Path, tied: bool) -> BaseModel:
    """A model of one layer as the plan sees it: 100 tokens, 8 wide."""
    entries = {EMBED: ("BF16", (100, 8)), Q: ("BF16", (6, 8))} | ({} if tied else {HEAD: ("BF16", (100, 8))})
    write(folder / safetensors_file.WHOLE, entries)
    parameters = sum(math.prod(shape) for _, shape in entries.values())
    config = {"hidden_size": 8, "num_hidden_layers": 1, "vocab_size": 100, "tie_word_embeddings": tied}
    return a_base_model(config, parameters, folder, name="m")


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "own head"])
@pytest.mark.parametrize("modules", ["q_proj,lm_head", "embed_tokens", "q_proj,lm_head,embed_tokens"])
def test_head_and_embedding_may_be_targeted_and_are_counted(modules: str, tied: bool, tmp_path: Path) -> None:
    base = model(tmp_path / "m", tied)
    asked = targeting(tmp_path, modules)
    assert choices.fit_to_model(asked, base) is asked
    outer = [name for name in modules.split(",") if name != "q_proj"]
    trained = 4 * ((6 + 8) * ("q_proj" in modules) + (100 + 8) * len(outer))
    assert disk_space.adapter_parameters(asked, base) == trained
    assert disk_space.disk_needed(asked, base, 1)["merged"] == 2 * (base.parameters + 100 * 8 * tied)
    shape = memory.shape(base.config, base.parameters)
    inside = memory.adapter_parameters(targeting(tmp_path, "q_proj"), shape) * ("q_proj" in modules)
    assert memory.adapter_parameters(asked, shape) == inside + 4 * 108 * len(outer)


def test_the_plan_says_that_a_tied_model_grows(tmp_path: Path) -> None:
    told: list[str] = []
    sink = choices.logger.add(lambda message: told.append(str(message)), format="{message}")
    try:
        choices.fit_to_model(targeting(tmp_path, "lm_head"), model(tmp_path / "m", tied=True))
        choices.fit_to_model(targeting(tmp_path, "lm_head"), model(tmp_path / "own", tied=False))
        choices.fit_to_model(targeting(tmp_path, "q_proj"), model(tmp_path / "other", tied=True))
    finally:
        choices.logger.remove(sink)
    assert told == [
        "config.ini:3: [LoRA] TARGET_MODULES = lm_head: m has one matrix for embedding and output layer; trained they are "
        "two, so the merged model has 800 more\n"
    ]


def test_all_linear_is_the_blocks_own_without_the_output_layer(tmp_path: Path) -> None:
    base = model(tmp_path / "m", tied=False)
    assert disk_space.adapter_parameters(targeting(tmp_path, "all-linear"), base) == 4 * (6 + 8)


def test_a_module_that_is_not_there_is_named_with_all_that_are(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="m has no module wte; it has embed_tokens, lm_head, q_proj, or use all-linear"):
        choices.fit_to_model(targeting(tmp_path, "q_proj,wte"), model(tmp_path / "m", tied=False))


def test_dora_on_an_embedding_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        targeting(tmp_path, "q_proj,embed_tokens", "USE_DORA = true\n")
    assert caught.value.problems == [
        "config.ini:3: [LoRA] TARGET_MODULES = q_proj,embed_tokens: embed_tokens cannot be merged with DoRA; leave one of the "
        "two out: [LoRA] USE_DORA = true (config.ini:4)"
    ]
    targeting(tmp_path, "q_proj,lm_head", "USE_DORA = true\n")


@pytest.mark.parametrize("name", ["lm_head", "embed_tokens"])
def test_the_fast_path_is_not_taken_where_head_or_embedding_are_trained(name: str, tmp_path: Path) -> None:
    asked = targeting(tmp_path, f"q_proj,{name}", "[Hardware]\nDEVICE = cpu\nENGINE = transformers\n")
    assert policy.wanted(asked) == (False, f"{name} is trained")


# ---- whole runs -----------------------------------------------------------------------------------------------------


def config(tmp_path: Path, tiny_model: Path, tied: bool, lora: str) -> Path:
    """Settings of a run on the tiny model, with a head of its own unless `tied`."""
    folder = tiny_model
    if not tied:
        from transformers import AutoModelForCausalLM

        folder = tmp_path / "own"
        model = AutoModelForCausalLM.from_pretrained(
            tiny_model, tie_word_embeddings=False, ignore_mismatched_sizes=True
        )
        model.save_pretrained(folder)
        for file in tiny_model.iterdir():
            if not (folder / file.name).exists():
                (folder / file.name).write_bytes(file.read_bytes())
    path = write_tiny_config(tmp_path, folder)
    path.write_text(path.read_text(encoding="utf-8") + f"[LoRA]\nR = 4\n{lora}\n", encoding="utf-8")
    return path


def targeted(run: Path, expected: int) -> dict[str, tuple[int, ...]]:
    """The tensors of a finished run's adapter, once its checks say that so many of the base's were changed."""
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    assert {check["passed"] for check in report["checks"]} == {True}
    merged = next(check for check in report["checks"] if check["name"] == "merged tensors")["figures"]
    assert (merged["targeted"], merged["changed"]) == (expected, expected)
    return {
        name: tensor.shape
        for name, tensor in safetensors_file.header(run / "adapter" / "adapter_model.safetensors")[0].items()
    }


@pytest.mark.tiny
def test_a_head_of_its_own_and_the_embedding_are_trained_stopped_resumed_and_exported(
    tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "whole").mkdir()
    lora = "TARGET_MODULES = q_proj,lm_head,embed_tokens\nBIAS = lora_only"
    undisturbed = config(tmp_path / "whole", tiny_model, False, lora)
    assert "evaluate: enough" in faulty(NO_EXPORT, "--config", undisturbed).stderr
    stopped = write_tiny_config(tmp_path, tmp_path / "whole" / "own")
    stopped.write_text(undisturbed.read_text(encoding="utf-8"), encoding="utf-8")
    assert faulty(STOPPED.format(at=6), "--config", stopped).returncode == 143
    ended = finetune("--config", stopped, "--resume", only_run(stopped))
    assert ended.code == 0, ended.stderr
    assert losses(ended.run) == losses(only_run(undisturbed))
    parts = targeted(ended.run, 2 + 2)
    assert not [name for name in parts if "base_layer" in name], "a copy of a whole matrix"
    merged = safetensors_file.tensors(ended.run / "merged")
    assert merged[HEAD].shape == merged[EMBED].shape == parts["base_model.model.lm_head.lora_B.weight"][:1] + (256,)


@pytest.mark.tiny
def test_a_tied_head_becomes_a_matrix_of_its_own(tiny_model: Path, tmp_path: Path) -> None:
    ended = finetune(
        "--config", config(tmp_path, tiny_model, True, "TARGET_MODULES = q_proj,lm_head\nUSE_RSLORA = true")
    )
    assert ended.code == 0, ended.stderr
    assert "has one matrix for embedding and output layer; trained they are two" in ended.stderr
    assert "UserWarning" not in ended.stderr, "PEFT warns of what the merge does right"
    targeted(ended.run, 2 + 1)
    merged = ended.run / "merged"
    assert {HEAD, EMBED} <= safetensors_file.tensors(merged).keys()
    assert json.loads((merged / "config.json").read_text())["tie_word_embeddings"] is False


@pytest.mark.tiny
def test_dora_on_an_output_layer_with_an_empty_row_is_refused_before_training(tiny_model: Path, tmp_path: Path) -> None:
    path = config(tmp_path, tiny_model, True, "TARGET_MODULES = q_proj,lm_head\nUSE_DORA = true")
    padding = json.loads((tiny_model / "config.json").read_text())["pad_token_id"]
    ended = finetune("--config", path, "--check")
    assert ended.code == 2
    assert (
        f"{tiny_model}: row {padding} of model.embed_tokens.weight is all zeros, and USE_DORA divides by"
        in ended.stderr
    )


@pytest.mark.tiny
def test_dora_on_a_layer_with_an_empty_row_is_refused_when_it_is_loaded(tiny_model: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tiny_model, tmp_path / "pruned")
    tensors = load_file(folder / safetensors_file.WHOLE)
    tensors["model.layers.1.self_attn.q_proj.weight"][64:128] = 0
    save_file(tensors, folder / safetensors_file.WHOLE, {"format": "pt"})
    ended = faulty(NO_EXPORT, "--config", config(tmp_path, folder, True, "USE_DORA = true"))
    assert (
        "model: model.layers.1.self_attn.q_proj has a row of zeros, and USE_DORA divides by the length" in ended.stderr
    )


@pytest.mark.tiny
def test_dora_on_an_output_layer_without_an_empty_row_is_not_refused(tmp_path: Path) -> None:
    from training.base_model import weights_fit

    entries = {EMBED: ("BF16", (10, 4)), HEAD: ("BF16", (10, 4))}
    ones = b"\x80\x3f" * 40
    (tmp_path / safetensors_file.WHOLE).write_bytes(safetensors_file.encode_header(entries, {}) + bytes(80) + ones)
    weights_fit.check_dora(tmp_path, ("lm_head",))
    (tmp_path / safetensors_file.WHOLE).write_bytes(
        safetensors_file.encode_header(entries, {}) + ones + ones[:-8] + bytes(8)
    )
    with pytest.raises(UserError, match="row 9 of lm_head.weight is all zeros"):
        weights_fit.check_dora(tmp_path, ("lm_head",))
    weights_fit.check_dora(tmp_path, ("q_proj",))
