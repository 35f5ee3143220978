"""The hand-written layers against transformers + PEFT, in float64. transformers itself computes its norms, softmax and
losses in float32 also then, in an order that each CPU has of its own: equal means to a few units of float32's last place."""

from __future__ import annotations

import copy
import subprocess

import pytest

from tests.support import by_hand
from tests.support.by_hand import SHAPE, adapted, batch, measured

pytestmark = pytest.mark.tiny

ROUNDING = 16 * 2**-23  # relative; float32 keeps 24 bits


def assert_equal(model, inputs, tolerance=ROUNDING):
    from training.fast_cpu.decoder import Decoder

    plain, gradients = measured(model, inputs)
    value, ours = measured(model, inputs, Decoder(model.get_base_model()))
    assert value == pytest.approx(plain, rel=tolerance)
    assert ours.keys() == gradients.keys() and len(ours) > 0
    for name, gradient in gradients.items():
        assert float((ours[name] - gradient).norm()) <= tolerance * max(1e-3, float(gradient.norm())), name


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_loss_and_gradients_are_those_of_the_family(family):
    assert_equal(adapted(family, **({"sliding_window": None} if family == "mistral" else {})), batch())


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["o_proj"], ["up_proj", "k_proj"], ["down_proj"]])
def test_any_choice_of_projections_may_be_adapted(targets):
    assert_equal(adapted(targets=targets), batch())


def test_rows_of_several_blocks_of_queries_see_all_before_them(monkeypatch):
    from training.fast_cpu import policy

    model = adapted()
    assert_equal(model, batch((300, 1100, 40)))  # three blocks in the middle
    monkeypatch.setattr(policy, "BLOCK", 5)
    assert_equal(model, batch())


def test_biases_heads_without_groups_and_long_context_rotation_are_kept():
    rope = {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    }
    rope["original_max_position_embeddings"] = 8
    assert_equal(adapted(attention_bias=True, mlp_bias=True, num_key_value_heads=6, rope_parameters=rope), batch())


def test_gradient_checkpointing_changes_nothing():
    model = adapted()
    before = measured(model, batch())
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()
    assert_equal(model, batch())
    assert measured(model, batch())[0] == pytest.approx(before[0], rel=ROUNDING)


def test_a_switched_off_adapter_is_left_out():
    import torch

    from training.fast_cpu import fast_loss
    from training.fast_cpu.decoder import Decoder

    model = adapted()
    decoder = Decoder(model.get_base_model())
    with torch.no_grad(), model.disable_adapter():
        plain = model(**batch()).loss
        ours = fast_loss.loss(model.get_base_model(), batch(), None, decoder)
        assert float(ours) == pytest.approx(float(plain), rel=ROUNDING)


def test_the_models_weights_become_views_and_keep_their_values():
    from training.fast_cpu.decoder import Decoder

    model = adapted()
    before = copy.deepcopy(model.state_dict())
    decoder = Decoder(model.get_base_model())
    after = model.state_dict()
    assert all(after[name].equal(tensor) for name, tensor in before.items())
    own = model.get_base_model().model.layers[0].mlp.gate_proj.base_layer.weight
    assert own.data_ptr() == decoder.layers[0].gate_up.weight.data_ptr(), "a second copy in memory"


def test_a_window_shorter_than_the_row_takes_the_models_own_layers():
    from training.fast_cpu import fast_loss
    from training.fast_cpu.decoder import Decoder

    model = adapted("mistral", sliding_window=8)
    decoder = Decoder(model.get_base_model())
    for lengths in ((7, 5), (20, 5)):
        value = fast_loss.loss(model.get_base_model(), batch(lengths), None, decoder)
        assert float(value.detach()) == pytest.approx(float(model(**batch(lengths)).loss.detach()), rel=ROUNDING)


def test_in_bf16_it_is_as_near_to_float32_as_the_models_own_layers_are():
    import torch

    exact, plain, hand = (
        measured_in(dtype, by_hand) for dtype, by_hand in (("float32", 0), ("bfloat16", 0), ("bfloat16", 1))
    )
    assert abs(hand[0] - exact[0]) <= 2 * abs(plain[0] - exact[0]) + 0.01
    ours, theirs = (
        (torch.cat([(g[n].float() - exact[1][n]).flatten() for n in g]).norm()) for g in (hand[1], plain[1])
    )
    assert ours <= 1.5 * theirs


def measured_in(dtype: str, by_hand: int):
    from training.fast_cpu.decoder import Decoder

    model = adapted(dtype=dtype)
    return measured(model, batch(), Decoder(model.get_base_model()) if by_hand else None)


def test_the_hand_written_parts_have_the_gradients_of_finite_differences():
    import torch

    from training.fast_cpu.attention import Attention, Rows
    from training.fast_cpu.functions import AddNorm, HeadLoss, LoraLinear, SwiGLU

    torch.manual_seed(0)

    def random(*shape, wanted=True):
        return torch.randn(*shape, dtype=torch.float64, requires_grad=wanted)

    weight, bias = random(6, 5, wanted=False), random(6, wanted=False)
    linear = (random(4, 5), weight, bias, random(3, 5), random(6, 3))
    assert torch.autograd.gradcheck(LoraLinear.apply, linear)
    assert torch.autograd.gradcheck(AddNorm.apply, (random(4, 5), random(4, 5), random(5, wanted=False), 1e-5))
    assert torch.autograd.gradcheck(SwiGLU.apply, (random(4, 6),))
    angles = [random(5, 4, wanted=False) for _ in range(2)]
    norms = [random(4, wanted=False) for _ in range(2)]
    for more in ((None, None, 0.0), (*norms, 1e-5)):
        arguments = (random(5, 32), *angles, Rows((2, 3)), 4, 2, 0.5, *more)
        assert torch.autograd.gradcheck(Attention.apply, arguments)
    targets = torch.tensor([1, 0, 5])
    assert torch.autograd.gradcheck(HeadLoss.apply, (random(3, 5), weight, bias, targets))


def attended(dtype, lengths, heads, groups, dim):
    """Attention of random queries, keys and values, and the gradient for them, in `dtype`; the same numbers in each."""
    import torch

    from training.fast_cpu.attention import Attention, Rows

    torch.manual_seed(0)
    tokens, width = sum(lengths), (heads + 2 * groups) * dim
    qkv, outer = (torch.randn(tokens, size).bfloat16().to(dtype) for size in (width, heads * dim))
    angles = (torch.ones(tokens, dim, dtype=dtype), torch.zeros(tokens, dim, dtype=dtype))  # not turned
    qkv.requires_grad_()
    found = Attention.apply(qkv, *angles, Rows(lengths), heads, groups, dim**-0.5, None, None, 0.0)
    return found.detach().double(), torch.autograd.grad(found, qkv, outer)[0].double()


# How far the rounding of a type takes a result from the exact one: of bf16 by itself 2e-3, by products of matrices 3.7e-3.
OF_TYPE = {"bfloat16": 3e-3, "float32": 1e-6}


@pytest.fixture(params=OF_TYPE)
def vectors(request):
    """A type that attention.c is for on this CPU."""
    import torch

    dtype = getattr(torch, request.param)
    by_hand.needs_vectors(dtype)
    return dtype


def off(found, exact) -> float:
    return float((found - exact).norm() / exact.norm())


@pytest.mark.parametrize(("heads", "groups", "dim"), [(9, 3, 64), (2, 2, 16), (7, 1, 80), (4, 2, 128)])
@pytest.mark.parametrize("lengths", [(1, 1), (3, 2), (15, 16, 17), (64, 65, 1), (130, 7, 300)])
def test_attention_in_vector_units_is_attention_but_for_its_types_rounding(vectors, lengths, heads, groups, dim):
    import torch

    exact, found = (attended(dtype, lengths, heads, groups, dim) for dtype in (torch.float64, vectors))
    assert max(map(off, found, exact)) <= OF_TYPE[str(vectors).removeprefix("torch.")]


@pytest.mark.parametrize("target", ["x86-64-v3", "x86-64-v4"])
def test_cpus_with_fewer_units_have_the_attention_of_float64_too(monkeypatch, tmp_path, target):
    import torch

    from training.fast_cpu import kernels

    if {"x86-64-v3": b"avx2", "x86-64-v4": b"avx512vl"}[target] not in kernels.cpu().split():
        pytest.skip("this CPU has fewer units yet")
    monkeypatch.setattr(kernels, "FLAGS", tuple(one.replace("native", target) for one in kernels.FLAGS))
    monkeypatch.setattr(kernels, "CACHE", tmp_path)
    kernels.load.cache_clear()
    kernels.attends.cache_clear()
    try:
        assert (kernels.attends(torch.float32), kernels.attends(torch.bfloat16)) == (True, False)
        exact, found = (attended(dtype, (130, 7, 300), 9, 3, 80) for dtype in (torch.float64, torch.float32))
        assert max(map(off, found, exact)) <= OF_TYPE["float32"]
    finally:
        kernels.load.cache_clear()
        kernels.attends.cache_clear()


def test_attention_in_vector_units_and_in_products_of_matrices_agree(vectors, monkeypatch):
    import torch

    from training.fast_cpu import kernels

    ours = attended(vectors, (130, 7, 600), 9, 3, 64)
    monkeypatch.setattr(kernels, "attends", lambda dtype: False)
    theirs = attended(vectors, (130, 7, 600), 9, 3, 64)
    for one, other in zip(ours, theirs, strict=True):
        assert not torch.equal(one, other), "both ways were taken"
        assert off(one, other) <= 4 * OF_TYPE[str(vectors).removeprefix("torch.")]


def test_where_there_are_matrix_units_for_bf16_these_are_taken(monkeypatch):
    import torch

    from training.fast_cpu import kernels

    kernels.attends.cache_clear()
    monkeypatch.setattr(kernels, "cpu", lambda: b"avx2 avx512_bf16 amx_bf16")
    before = kernels.attends(torch.bfloat16)
    kernels.attends.cache_clear()
    assert before is False


def test_more_threads_than_heads_take_products_of_matrices(vectors, monkeypatch):
    import torch

    from training.fast_cpu import kernels

    called = []
    call = kernels.call
    monkeypatch.setattr(kernels, "call", lambda name, *rest: called.append(name) or call(name, *rest))
    attended(vectors, (5,), 1, 1, 16)
    assert ("attention" in called) == (torch.get_num_threads() == 1)
    attended(vectors, (5,) * torch.get_num_threads(), 1, 1, 16)
    assert "attention" in called and "attention_backward" in called


def test_a_number_that_is_not_one_stays_so_in_its_row_of_text(vectors):
    import torch

    from training.fast_cpu.attention import Attention, Rows

    qkv = torch.ones(20, 3 * 16).to(vectors)
    qkv[12, :16] = float("nan")  # a query of the second row
    angles = torch.ones(20, 16).to(vectors), torch.zeros(20, 16).to(vectors)
    found = Attention.apply(qkv, *angles, Rows((10, 10)), 1, 1, 0.25, None, None, 0.0)
    assert found.isnan().any(1).nonzero().flatten().tolist() == [12]


def test_a_number_that_is_not_one_stays_not_one():
    import torch

    from training.fast_cpu.functions import AddNorm, HeadLoss, SwiGLU

    for dtype in (torch.float32, torch.bfloat16):
        hidden = torch.ones(3, 8, dtype=dtype)
        hidden[1, 2] = float("nan")
        assert HeadLoss.apply(hidden, torch.ones(20, 8, dtype=dtype), None, torch.tensor([1, 2, 3])).isnan()
        assert SwiGLU.apply(hidden).isnan().any()
        assert AddNorm.apply(hidden, hidden, torch.ones(8, dtype=dtype), 1e-5)[1].isnan().any()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"family": "phi3", "targets": ["o_proj"], "pad_token_id": 0}, "no hand-written layers for phi3"),
        ({"attention_dropout": 0.1}, "dropout in its attention"),
        ({"dtype": "float16"}, "Linear of torch.float16"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_with_the_reason(change, why):
    from training.fast_cpu import decoder

    assert why in decoder.unsupported(adapted(**change).get_base_model())


@pytest.mark.parametrize(
    ("lora", "why"),
    [
        ({"lora_dropout": 0.1}, "LORA_DROPOUT is not 0"),
        ({"use_dora": True}, "not plain LoRA"),
        ({"bias": "all"}, "more than adapters is trained"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_with_the_reason(lora, why):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    from training.fast_cpu import decoder

    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen2", **SHAPE))
    peft = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], **lora))
    assert why in decoder.unsupported(peft.get_base_model())


def test_without_a_compiler_training_goes_on_without_them_and_says_why(monkeypatch, tmp_path):
    from training.fast_cpu import fast_loss, kernels

    model = adapted().get_base_model()
    monkeypatch.setattr(kernels, "CACHE", tmp_path)
    for compiler, why in (("false", "false failed: no reason given"), (str(tmp_path / "cc"), "No such file")):
        kernels.load.cache_clear()
        monkeypatch.setenv("CC", compiler)
        assert fast_loss.built().startswith("training without the hand-written layers for CPUs: ")
        assert why in fast_loss.built() and fast_loss.layers(model) is None
    kernels.load.cache_clear()
    monkeypatch.delenv("CC")
    assert fast_loss.built() == "" and fast_loss.layers(model) is not None
    assert [path.suffix for path in tmp_path.iterdir()] == [".so"], "nothing half-written is left"
    kernels.load.cache_clear()


def test_the_kernels_compile_without_a_warning(root, tmp_path):
    from training.fast_cpu import kernels

    command = [
        "cc",
        *kernels.FLAGS,
        "-Wall",
        "-Wextra",
        *map(str, kernels.SOURCES),
        "-o",
        str(tmp_path / "k.so"),
        "-lm",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("padded", [True, False])
def test_the_rows_for_the_proof_are_few_short_and_trained_throughout(padded):
    import torch

    from training.fast_cpu import fast_loss

    inputs = batch((300, 30, 7))
    if not padded:  # rows that TRL's padding_free has joined
        real = inputs["attention_mask"].bool()
        positions = torch.cat([torch.arange(length) for length in (300, 30, 7)])[None]
        inputs = {"input_ids": inputs["input_ids"][real][None], "labels": inputs["labels"][real][None]}
        inputs["position_ids"] = positions
    few = fast_loss.sample(inputs)
    assert few["input_ids"].shape == ((2, 96) if padded else (1, 96))
    trained = few["labels"] != -100
    assert few["labels"][trained].equal(few["input_ids"][trained])
    assert int(trained.sum()) == (96 + 30 if padded else 94), "a row's first token follows nothing"


def test_a_row_of_the_proof_is_longer_than_a_block_of_attention_and_shorter_than_two():
    import re

    from training.fast_cpu import fast_loss, kernels

    (source,) = (path for path in kernels.SOURCES if path.name == "attention.c")
    block = int(re.search(r"BLOCK = (\d+)", source.read_text(encoding="utf-8"))[1])
    assert block < fast_loss.PROVED < 2 * block
