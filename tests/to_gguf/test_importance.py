"""Importance matrices: what they hold, whose inputs they are, and that quantising with one is better for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.architectures import EXPERTS, SMALL, random_model, tokenizer_into
from tests.support.paths import ROOT
from training import llama
from training.errors import RunError, UserError
from training.evaluation import divergence, reference
from training.evaluation.reference import TooLarge
from training.llama import gguf_file
from training.to_gguf import conversion, importance, trial

IDS = [(position * 7919 + 13) % 32000 for position in range(600)]


# ---- which tokens ---------------------------------------------------------------------------------------------------


def test_rows_are_taken_from_all_over_the_data_up_to_a_limit() -> None:
    rows = [[number] * 10 for number in range(32)]
    taken = importance.joined(rows, 100)
    assert len(taken) == 100
    assert taken[::10] == [0, 8, 16, 24, 1, 9, 17, 25, 2, 10]
    assert sorted(importance.joined(rows, 1000)) == sorted(token for row in rows for token in row)
    assert importance.joined([[5] * 30], 20) == [5] * 20
    assert importance.joined([]) == []


# ---- what is measured -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory, embedded: Path, forks: None) -> dict[str, Path]:
    """A Llama whose norms stress few of the inputs, as trained models' do; with and without experts, and a fused Phi-3."""
    import torch
    from safetensors.torch import load_file, save_file

    root = tmp_path_factory.mktemp("importance")
    kinds = (
        ("llama", "smollm", {"tie_word_embeddings": True}),
        ("qwen3_moe", "smollm", EXPERTS),
        ("phi3", "phi-3", {"sliding_window": None}),
    )
    for name, kind, config in kinds:
        folder = root / name
        size = tokenizer_into(folder, kind, embedded)
        random_model(folder, name, **{**SMALL, **config, "vocab_size": size})
        tensors = load_file(folder / "model.safetensors")
        torch.manual_seed(1)
        for key, tensor in tensors.items():
            if key.endswith("layernorm.weight"):
                tensors[key] = torch.exp(torch.randn(tensor.shape) * 1.5).to(tensor.dtype)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        conversion.to_gguf(folder, root / f"{name}.gguf")
    return {name: root / name for name in ("llama", "qwen3_moe", "phi3")}


@pytest.fixture(scope="module")
def measured(uneven: dict[str, Path]) -> dict[str, dict[str, Any]]:
    """For each of them its importance matrix, tensor by tensor."""
    import numpy as np

    found = {}
    for name, folder in uneven.items():
        out = folder.with_suffix(".npz")
        record = importance.write(folder, folder.with_suffix(".gguf"), IDS, out)
        with np.load(out) as rows:
            found[name] = {key: rows[key] for key in rows}
        assert (record.tokens, record.tensors, record.dtype) == (600, len(found[name]), "float32")
    return found


@pytest.mark.tiny
def test_every_matrix_but_embedding_and_output_has_the_mean_squares_of_its_inputs(
    uneven: dict[str, Path], measured: dict[str, Any]
) -> None:
    import torch

    names = {f"blk.{layer}.{part}.weight" for layer in range(2) for part in (
        "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down",
    )}  # fmt: skip
    assert set(measured["llama"]) == names
    seen: dict[str, list] = {"model.layers.1.mlp.down_proj": [], "model.layers.0.self_attn.q_proj": []}
    with reference.opened(uneven["llama"]) as model:
        for name, inputs in seen.items():
            module = model.model.get_submodule(name)
            module.register_forward_pre_hook(lambda _, given, inputs=inputs: inputs.append(given[0][0]))
        for low in (0, importance.CHUNK):
            with torch.inference_mode():
                model.model(input_ids=torch.tensor([IDS[low : low + importance.CHUNK]]))
    for name, tensor in (
        ("model.layers.1.mlp.down_proj", "blk.1.ffn_down"),
        ("model.layers.0.self_attn.q_proj", "blk.0.attn_q"),
    ):
        by_hand = torch.cat(seen[name]).square().mean(dim=0).numpy()
        least = importance.FLOOR * by_hand.mean()
        assert measured["llama"][f"{tensor}.weight"][0] == pytest.approx(by_hand.clip(least), rel=1e-3)


@pytest.mark.tiny
def test_each_expert_has_its_own_and_fused_matrices_are_one(measured: dict[str, Any]) -> None:
    experts = measured["qwen3_moe"]
    gate, up, down = (experts[f"blk.0.ffn_{part}_exps.weight"] for part in ("gate", "up", "down"))
    assert gate.shape == up.shape == (4, 256)
    assert down.shape == (4, 256)
    assert (gate == up).all()
    assert len({row.tobytes() for row in down}) == 4
    assert {"blk.0.attn_qkv.weight", "blk.0.ffn_up.weight"} < set(measured["phi3"])


@pytest.mark.tiny
def test_an_expert_that_no_token_reached_weighs_its_inputs_alike_and_no_input_weighs_nothing() -> None:
    import torch

    rows = importance._rows(torch.tensor([[0.0, 8.0, 16.0], [5.0, 5.0, 5.0]]), torch.tensor([4, 0]))
    assert rows[0, 1:].tolist() == [2.0, 4.0]
    assert 0 < rows[0, 0] < 1e-5
    assert rows[1].tolist() == [1.0, 1.0, 1.0]


# ---- what it is good for --------------------------------------------------------------------------------------------


@pytest.mark.tiny
@pytest.mark.parametrize(("name", "share"), [("llama", 0.9), ("qwen3_moe", 1.0), ("phi3", 0.9)])
def test_a_type_that_permits_both_diverges_less_with_it_and_one_that_needs_it_works(
    name: str, share: float, uneven: dict[str, Path], measured: dict[str, Any], tmp_path: Path
) -> None:
    """Of the experts each has seen a few tokens only, and random ones gain less: 7 %."""
    f16, matrix = uneven[name].with_suffix(".gguf"), uneven[name].with_suffix(".npz")
    rows, first = divergence.bounded([[(position * 104729 + 7) % 32000 for position in range(200)]], [1])

    def cost(method: str, importance: Path | None) -> float:
        made = conversion.quantise(f16, tmp_path / f"{method}.{bool(importance)}.gguf", method, importance=importance)
        assert made.fell_back == 0
        both = (llama.logits_each(file, rows, first) for file in (f16, made.path))
        return divergence.compare(*both, rows, first).mean_kl

    with_it, without = cost("q3_k_s", matrix), cost("q3_k_s", None)
    assert with_it < share * without, (with_it, without)
    assert cost("iq2_xs", matrix) < 20
    with pytest.raises(RunError, match="quantise to iq2_xs: llama.cpp: this quantization requires an imatrix"):
        conversion.quantise(f16, tmp_path / "none.gguf", "iq2_xs")
    fields = gguf_file.read(tmp_path / "iq2_xs.True.gguf").fields
    assert fields["quantize.imatrix.entries_count"] == len(measured[name])
    assert fields["quantize.imatrix.dataset"] == "rows of the training data"


# ---- refused --------------------------------------------------------------------------------------------------------


def refused(folder: Path, ids: Any, out: Path) -> str:
    with pytest.raises(RunError) as error:
        importance.write(folder, folder.with_suffix(".gguf"), ids, out)
    assert not out.exists()
    return error.value.message


@pytest.mark.tiny
def test_without_rows_or_memory_it_says_what_needs_none(
    uneven: dict[str, Path], tmp_path: Path, monkeypatch: Any
) -> None:
    assert "there are no training rows to take it from" in refused(uneven["llama"], [], tmp_path / "a.npz")
    monkeypatch.setattr(reference, "fitting", lambda *_: TooLarge("it takes 16.0 GB of memory"))
    said = refused(uneven["llama"], IDS, tmp_path / "a.npz")
    assert said == "the model must be run for it, and it takes 16.0 GB of memory; q3_k_m and q2_k need none"


@pytest.mark.tiny
def test_columns_in_another_order_are_found_out(uneven: dict[str, Path], tmp_path: Path) -> None:
    import shutil

    from tests.support.gguf import edit_tensor

    folder = shutil.copytree(uneven["llama"], tmp_path / "llama")

    def reverse(data: Any) -> None:
        data[:] = data[:, ::-1].copy()

    edit_tensor(uneven["llama"].with_suffix(".gguf"), folder.with_suffix(".gguf"), "blk.1.ffn_down.weight", reverse)
    said = refused(folder, IDS, tmp_path / "a.npz")
    assert "blk.1.ffn_down.weight has its columns in another order than model.layers.1.mlp.down_proj.weight" in said


@pytest.mark.tiny
def test_a_matrix_whose_inputs_are_not_seen_is_refused_before_training(
    uneven: dict[str, Path], tmp_path: Path, monkeypatch: Any
) -> None:
    observed = importance._observed
    monkeypatch.setattr(
        importance, "_observed", lambda *given: {k: v for k, v in observed(*given).items() if "o_proj" not in k}
    )
    said = refused(uneven["llama"], IDS, tmp_path / "a.npz")
    assert "what blk.0.attn_output.weight is multiplied with was not seen (2 such tensors)" in said
    import json

    with pytest.raises(UserError, match="none can be made for the architecture llama: .* was not seen"):
        trial.ready(json.loads((uneven["llama"] / "config.json").read_text()), uneven["llama"], "iq2_xs")


@pytest.mark.tiny
def test_the_trial_before_training_makes_one_where_a_method_needs_it(uneven: dict[str, Path]) -> None:
    import json

    folder = uneven["qwen3_moe"]
    with trial.trial(json.loads((folder / "config.json").read_text()), folder, ("q4_k_m", "iq3_xxs")) as figures:
        found = figures()
    assert (found["architecture"], found["method"]) == ("Qwen3MoeForCausalLM", "iq3_xxs")
    assert found["types"]["IQ3_XXS"] > 0


@pytest.mark.slow
def test_importing_the_module_needs_no_torch() -> None:
    code = (
        "import sys; sys.path[:0] = sys.argv[1:]; import training.to_gguf.importance; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(ROOT)], check=True)
