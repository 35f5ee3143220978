"""The weights of a folder against its config.json (training/base_model/weights_fit.py), as transformers itself would load them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.architectures import ARCHITECTURES, EXPERTS, SLIDING, SMALL, random_model
from training.base_model import safetensors_file, weights_fit
from training.errors import RunError, UserError
from training.evaluation import reference

if TYPE_CHECKING:
    import torch

    Tensors = dict[str, torch.Tensor]
    Change = Callable[[Tensors], Tensors]

pytestmark = pytest.mark.tiny

SIZE = {**SMALL, "hidden_size": 64, "intermediate_size": 128, "head_dim": 16, "vocab_size": 500}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {**SIZE, **config}) for name, (_, config, _) in ARCHITECTURES.items()},
    "a tied llama": ("llama", {**SIZE, "tie_word_embeddings": True}),
    "gpt2": ("gpt2", {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 500}),
    "opt": ("opt", {**SIZE, "ffn_dim": 128, "word_embed_proj_dim": 64}),
    "mixtral": ("mixtral", {**SIZE, "num_local_experts": 4}),
    "gpt_neox": ("gpt_neox", SIZE),
    "glm4_moe": ("glm4_moe", {**SIZE, "n_routed_experts": 4, "num_experts_per_tok": 2, "first_k_dense_replace": 1}),
    "gemma3 that sees": (
        "gemma3",
        {
            "text_config": {**SIZE, **SLIDING, "model_type": "gemma3_text"},
            "vision_config": {**VISION, "patch_size": 14, "model_type": "siglip_vision_model"},
            "mm_tokens_per_image": 4,
        },
    ),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A random model of each kind, saved by transformers; made when it is first asked for."""
    root = tmp_path_factory.mktemp("kinds")

    def folder(kind: str) -> Path:
        if not (root / kind).exists():
            random_model(root / kind, KINDS[kind][0], **KINDS[kind][1])
        return root / kind

    return folder


def changed(base: Path, out: Path, change: Change | None = None, **config: Any) -> Path:
    """A copy of a model folder with other tensors, or other values in its config.json."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(base / safetensors_file.WHOLE)
    tensors = change(tensors) if change else tensors
    out.mkdir()
    save_file(
        {name: tensor.contiguous().clone() for name, tensor in tensors.items()},
        out / safetensors_file.WHOLE,
        {"format": "pt"},
    )
    values = json.loads((base / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**values, **config}))
    return out


def check(folder: Path) -> None:
    weights_fit.check(folder, json.loads((folder / "config.json").read_text()))


@pytest.mark.parametrize("kind", KINDS)
def test_what_transformers_has_saved_fits(kind: str, made: Callable[[str], Path]) -> None:
    check(made(kind))


def with_(**more: tuple[int, ...]) -> Change:
    """Further tensors, of ones; "__" stands for a dot in their names."""
    import torch

    return lambda tensors: {**tensors, **{name.replace("__", "."): torch.ones(shape) for name, shape in more.items()}}


def renamed(*pairs: tuple[str, str]) -> Change:
    """The tensors with other beginnings of their names; the first pair that fits counts."""

    def change(tensors: Tensors) -> Tensors:
        found = {}
        for name, tensor in tensors.items():
            old, new = next(((old, new) for old, new in pairs if name.startswith(old)), ("", ""))
            found[new + name.removeprefix(old)] = tensor
        return found

    return change


HARMLESS: dict[str, tuple[str, Callable[[], Change], dict[str, Any]]] = {
    "no prefix": ("a tied llama", lambda: renamed(("model.", "")), {}),
    "a head stored though tied": ("a tied llama", lambda: with_(lm_head__weight=(500, 64)), {}),
    "rotary buffers of each layer": (
        "llama", lambda: with_(model__layers__0__self_attn__rotary_emb__inv_freq=(8,)), {}
    ),
    "GPT-2 as its makers named it": ("gpt2", lambda: renamed(("transformer.", "")), {}),
    "masks of GPT-2": ("gpt2", lambda: with_(transformer__h__0__attn__bias=(1, 1, 8, 8)), {}),
    "masks of Pythia": (
        "gpt_neox",
        lambda: with_(gpt_neox__layers__0__attention__bias=(1, 1, 8, 8), gpt_neox__layers__0__attention__masked_bias=(1,)),
        {},
    ),
    "a layer that guesses further tokens": (
        "glm4_moe", lambda: with_(model__layers__2__eh_proj__weight=(4, 4)), {"num_nextn_predict_layers": 1}
    ),
    "a head of a reward model": ("llama", lambda: with_(v_head__summary__weight=(1, 64)), {}),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "change", "config"), HARMLESS.values(), ids=HARMLESS)
def test_what_does_no_harm_is_no_reason(
    kind: str, change: Callable[[], Change], config: dict[str, Any], made: Callable[[str], Path], tmp_path: Path
) -> None:
    check(changed(made(kind), tmp_path / "m", change(), **config))


def without(part: str) -> Change:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if part not in name}


def as_type(part: str, dtype: str) -> Change:
    import torch

    def change(tensors: Tensors) -> Tensors:
        return {n: t.to(getattr(torch, dtype)) if part in n and t.ndim > 1 else t for n, t in tensors.items()}

    return change


def packed(tensors: Tensors) -> Tensors:
    """As mlx packs 4 bits: eight numbers in one of 32 bits, with scales and biases beside."""
    import torch

    found = {}
    for name, tensor in tensors.items():
        if tensor.ndim < 2:
            found[name] = tensor
            continue
        found[name] = torch.zeros(tensor.shape[0], tensor.shape[1] // 8, dtype=torch.int32).view(torch.uint32)
        found[name.replace("weight", "scales")] = torch.ones(tensor.shape[0], 1)
    return found


LAYERS = "config.json says num_hidden_layers = {}, the files hold 2 layers; download the model again, or put the config"
BAD: dict[str, tuple[str, Change | None, dict[str, Any], str]] = {
    "more layers": ("llama", None, {"num_hidden_layers": 3}, LAYERS.format(3)),
    "fewer layers": ("llama", None, {"num_hidden_layers": 1}, LAYERS.format(1)),
    "fewer layers of GPT-2": ("gpt2", None, {"n_layer": 1}, LAYERS.format(1)),
    "one tensor missing": ("llama", without("1.mlp.up"), {}, "no file holds model.layers.1.mlp.up_proj.weight of the"),
    "two tensors missing": ("llama", without("mlp.up"), {}, "up_proj.weight and 1 tensors more of the model that config"),
    "no norm": ("llama", without("model.norm"), {}, "no file holds model.norm.weight"),
    "untied without a head": (
        "a tied llama", None, {"tie_word_embeddings": False},
        "config.json says tie_word_embeddings = false, and no file holds lm_head.weight; write true there if the model",
    ),
    "another vocabulary": (
        "a tied llama", None, {"vocab_size": 503}, "model.embed_tokens.weight is [500, 64] in the files, and config.json asks"
    ),
    "other heads": ("llama", None, {"num_key_value_heads": 4}, "[32, 64] in the files, and config.json asks for [64, 64]"),
    "weights of Qwen3 called Qwen2": (
        "qwen3", None, {"model_type": "qwen2"}, "the files hold model.layers.0.self_attn.k_norm.weight and 3 tensors more"
    ),
    "biases that config.json does not know": ("qwen2", None, {"model_type": "llama"}, "self_attn.k_proj.bias and 5 tensors"),
    "an expert missing": ("qwen3_moe", without("experts.3."), {}, "is [3, "),
    "half of an expert missing": ("qwen3_moe", without("0.mlp.experts.3.up"), {}, "one of a group (experts, projections"),
    "a joined projection missing": ("phi3", without("0.self_attn.qkv"), {}, "no file holds model.layers.0.self_attn.qkv_pr"),
    "a layer of a model that sees missing": ("gemma3 that sees", without("language_model.model.layers.5"), {},
        "config.json says num_hidden_layers = 6, the files hold 5 layers"),
    "packed by mlx": ("llama", packed, {}, "is U32: its weights are quantized already; name the original in 16 bits"),
    "in 64 bits": ("llama", lambda tensors: as_type("", "float64")(tensors), {}, "is F64, floats of 64 bits; save the model"),
    "in 8 bits": ("llama", lambda tensors: as_type("mlp", "float8_e4m3fn")(tensors), {}, "is F8_E4M3: its weights are quan"),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "change", "config", "said"), BAD.values(), ids=BAD)
def test_weights_of_another_model_than_config_jsons_are_refused(
    kind: str, change: Change | None, config: dict[str, Any], said: str, made: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught:
        check(changed(made(kind), tmp_path / "m", change, **config))
    assert said in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path / 'm'}: ")


def test_what_is_no_part_of_the_model_is_named_and_not_refused(made: Callable[[str], Path], tmp_path: Path) -> None:
    from loguru import logger

    told: list[str] = []
    sink = logger.add(lambda message: told.append(str(message)), format="{message}", level="WARNING")
    try:
        check(changed(made("llama"), tmp_path / "m", with_(v_head__summary__weight=(1, 64))))
    finally:
        logger.remove(sink)
    assert told == [
        f"{tmp_path / 'm'}: v_head.summary.weight: no part of a LlamaForCausalLM; not trained, and the converter may refuse it\n"
    ]


def test_a_model_that_continues_no_text_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    from tests.support.folders import write

    write(tmp_path / safetensors_file.WHOLE, {"a.weight": ("BF16", (3, 5))})
    config = {"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="transformers makes no model that continues a text of it: Unrecognized config"):
        weights_fit.check(tmp_path, config)


def test_code_that_comes_with_a_model_is_not_asked(tmp_path: Path) -> None:
    from tests.support.folders import write

    write(tmp_path / safetensors_file.WHOLE, {"a.weight": ("BF16", (3, 5))})
    weights_fit.check(tmp_path, {"model_type": "own", "auto_map": {"AutoModelForCausalLM": "x.Y"}})
    weights_fit.check(tmp_path, {"model_type": "llama", "auto_map": {"AutoModelForCausalLM": "x.Y"}}, trusted=True)


def test_a_model_is_not_run_with_weights_that_were_made_up(made: Callable[[str], Path], tmp_path: Path) -> None:
    folder = changed(made("llama"), tmp_path / "m", without("1.mlp.up"))
    with (
        pytest.raises(RunError, match="no file holds model.layers.1.mlp.up_proj.weight, or it"),
        reference.opened(folder),
    ):
        pass


def test_an_adapter_beside_a_model_is_not_put_over_it(made: Callable[[str], Path], tmp_path: Path) -> None:
    import torch

    from tests.support.architectures import random_adapter

    folder = changed(made("llama"), tmp_path / "m")
    random_adapter(folder, folder)
    with reference.opened(made("llama")) as alone, reference.opened(folder) as beside:
        theirs = beside.model.state_dict()
        assert list(theirs) == list(alone.model.state_dict())
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in alone.model.state_dict().items())


def test_experts_are_counted_by_config_json(made: Callable[[str], Path], tmp_path: Path) -> None:
    config = json.loads((made("qwen3_moe") / "config.json").read_text())
    name = next(key for key in config if key in ("num_experts", "num_local_experts"))
    with pytest.raises(UserError, match=rf"is \[{EXPERTS['num_experts']}, .* asks for \[8, "):
        check(changed(made("qwen3_moe"), tmp_path / "m", **{name: 8}))
