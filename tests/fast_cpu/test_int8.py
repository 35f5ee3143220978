"""Frozen weights in 8 bits: products within the bounds of the rounding, exact evaluations, and a check that sees mistakes."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from tests.support.by_hand import adapted

pytestmark = pytest.mark.tiny


@pytest.fixture
def int8():
    """The module, on a CPU that has such products."""
    from training.fast_cpu import fast_loss, int8

    if why := fast_loss.without_8_bits():
        pytest.skip(why)
    return int8


def tensors(rows=13, inputs=96, outputs=76, dtype="float32"):
    """x with one input that is much larger than the others, as hidden states have it, a gradient and a weight."""
    import torch

    chance = torch.Generator().manual_seed(3)
    x, gradient, weight = (
        torch.randn(size, generator=chance).to(getattr(torch, dtype))
        for size in ((rows, inputs), (rows, outputs), (outputs, inputs))
    )
    x[:, 5 % inputs] *= 100
    return x, gradient, weight


# Rows and panels that are filled and not filled, several shares of a panel, blocks of every size.
SIZES = [(1, 4, 4), (13, 96, 76), (6, 64, 64), (7, 40, 132), (400, 192, 68), (5, 44, 200)]


@pytest.mark.parametrize(("rows", "inputs", "outputs"), SIZES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_products_are_those_of_float64_within_the_rounding_to_8_bits(int8, rows, inputs, outputs, dtype):
    import torch

    x, gradient, weight = tensors(rows, inputs, outputs, dtype)
    kept = int8.rounded([weight[: outputs // 2], weight[outputs // 2 :]])
    exact = int8.widened(kept).double()
    last = 2**-8 if dtype == "bfloat16" else 1e-5
    # A rounded number is off by half a scale: a turned row by sqrt(inputs) of these, and turning keeps lengths.
    assert ((exact - weight.double()).norm(dim=1) <= (0.5001 * math.sqrt(inputs) * kept.scales + 1e-6)).all()
    # No turned number is longer than the row, of which 127 scales are the largest.
    most = 0.5001 * math.sqrt(inputs) * x.double().norm(dim=1) / 127
    wanted, found = x.double() @ exact.t(), int8.linear(x, kept, None).double()
    assert ((found - wanted).abs() <= most[:, None] * exact.norm(dim=1) + last * wanted.abs() + 1e-4).all()
    scaled = gradient.double() * kept.scales
    most = 0.5001 * math.sqrt(outputs) * scaled.abs().amax(1) / 127
    wanted, found = gradient.double() @ exact, int8.back(gradient, kept).double()
    off = most * torch.linalg.matrix_norm(kept.values.double(), 2)
    assert ((found - wanted).norm(dim=1) <= off + last * wanted.norm(dim=1)).all()


def test_one_large_input_does_not_drown_the_others(int8):
    x, _, weight = tensors(rows=64, inputs=512)
    kept = int8.rounded([weight])
    wanted = x.double() @ weight.double().t()
    off = lambda one: float((one.double() - wanted).norm() / wanted.norm())  # noqa: E731
    # Without turning, half a scale is 0.4 % of the large input, and of the others 40 %.
    scale = x.abs().amax(1, keepdim=True) / 127
    plain = (x / scale).round() * scale
    assert off(int8.linear(x, kept, None)) < 0.5 * off(plain @ weight.t())


def test_a_bias_is_added(int8):
    import torch

    x, _, weight = tensors()
    kept, bias = int8.rounded([weight]), torch.arange(76.0)
    assert torch.equal(int8.linear(x, kept, bias), int8.linear(x, kept, None) + bias)


def test_any_number_of_threads_gives_the_same_bits(int8):
    import torch

    x, gradient, weight = tensors(rows=900)
    kept, before, found = int8.rounded([weight]), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append((int8.linear(x, kept, None), int8.back(gradient, kept)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(*pair) for one in found[1:] for pair in zip(one, found[0], strict=True))


def test_no_number_stays_no_number_in_its_row_alone(int8):
    x, gradient, weight = tensors()
    x[2, 7], gradient[3, 1] = float("nan"), float("inf")
    kept = int8.rounded([weight])
    for found, row in ((int8.linear(x, kept, None), 2), (int8.back(gradient, kept), 3)):
        assert found[row].isnan().all() and not found[:row].isnan().any() and not found[row + 1 :].isnan().any()


@pytest.mark.parametrize(("target", "flag"), [("x86-64-v3", "avx2"), ("alderlake", "avx_vnni")])
def test_cpus_with_fewer_units_get_the_same_numbers(int8, monkeypatch, tmp_path, target, flag):
    import torch

    from training.fast_cpu import kernels

    if flag.encode() not in kernels.cpu().split():
        pytest.skip(f"this CPU has no {flag}")
    x, gradient, weight = tensors(rows=50, inputs=192)
    found = []
    for flags in (kernels.FLAGS, tuple(one.replace("native", target) for one in kernels.FLAGS)):
        monkeypatch.setattr(kernels, "FLAGS", flags)
        monkeypatch.setattr(kernels, "CACHE", tmp_path)
        kernels.load.cache_clear()
        kept = int8.rounded([weight])
        found.append((int8.linear(x, kept, None), int8.back(gradient, kept)))
    kernels.load.cache_clear()
    for one, other in zip(*found, strict=True):
        # Floats are turned by other instructions, which may round one byte the other way.
        assert float((one - other).norm()) < 1e-3 * float(one.norm())
    assert torch.isfinite(found[1][0]).all()


def in_8_bits(model):
    from training.fast_cpu import products
    from training.fast_cpu.decoder import Decoder

    return Decoder(model.get_base_model(), by=products.in_8_bits(products.TORCH))


def batch():
    """Two rows, one shorter."""
    import torch

    ids = torch.randint(0, 101, (2, 19), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(19)[None] < torch.tensor([[19], [11]])).long()
    return {"input_ids": ids, "labels": ids.masked_fill(mask == 0, -100), "attention_mask": mask}


def proved(model, decoder):
    """What the check at the start of a training says."""
    from training.fast_cpu import fast_loss

    plain, fast = (
        (lambda: model(**batch()).loss),
        (lambda: fast_loss.loss(model.get_base_model(), batch(), None, decoder)),
    )
    return fast_loss.agrees(model, plain, fast, in_8_bits=True) and decoder.sound()


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_whole_models_pass_the_check_at_the_start(int8, family, dtype):
    model = adapted(family, dtype=dtype)
    assert proved(model, in_8_bits(model))


@pytest.mark.parametrize("broken", ["not turned back", "other scales", "other rows", "shifted forward"])
def test_the_check_at_the_start_sees_a_broken_product(int8, monkeypatch, broken):
    from training.fast_cpu import kernels

    called, right = kernels.call, int8.back
    if broken == "not turned back":

        def copied(name, like, *rest):
            return called(name, like, *rest) if name != "int8_turned" else float(rest[1].copy_(rest[0]).sum() * 0)

        monkeypatch.setattr(kernels, "call", copied)
    elif broken == "other scales":
        monkeypatch.setattr(int8, "back", lambda gradient, weight: 2 * right(gradient, weight))
    elif broken == "other rows":
        monkeypatch.setattr(int8, "back", lambda gradient, weight: right(gradient.roll(1, 0), weight))
    else:
        forward = int8.linear
        monkeypatch.setattr(int8, "linear", lambda x, weight, bias: forward(x, weight, bias).roll(1, 1))
    model = adapted("llama", dtype="float32")
    assert not proved(model, in_8_bits(model))


def test_the_models_own_weights_are_left_for_what_is_exact(int8):
    import torch

    model, other = adapted("llama", dtype="float32"), adapted("llama", dtype="float32")
    decoder = in_8_bits(model)
    decoder.set_aside()
    for one, same in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, same)


@pytest.mark.parametrize(("training", "taken"), [(True, "8 bits"), (False, "exact")])
def test_evaluations_are_of_the_exact_weights(monkeypatch, tmp_path, training, taken):
    from training.fast_cpu import fast_loss
    from training.train import Watch, hooks

    class Plain:
        accelerator = SimpleNamespace(unwrap_model=lambda model: model)

    monkeypatch.setattr(fast_loss, "loss", lambda causal_lm, inputs, num_items, layers: "8 bits" if layers else "exact")
    trainer = hooks.hooked(Plain, Watch(folder=tmp_path, fingerprint={}, keep=1, fast=True))()
    trainer._fast_is_proved = True
    trainer._layers = SimpleNamespace(in_8_bits=True, shared=None)
    model = SimpleNamespace(get_base_model=lambda: None, training=training)
    assert trainer.compute_loss(model, {}) == taken


@pytest.fixture
def too_coarse(monkeypatch, tmp_path):
    """A trainer, and what it makes, where weights in 8 bits are too far from the exact ones."""
    from training.fast_cpu import fast_loss
    from training.train import Watch, hooks

    class Plain:
        accelerator = SimpleNamespace(unwrap_model=lambda model: model)

        def compute_loss(self, *_):
            return "plain"

    beside = []

    def layers(causal_lm, shares=True, by="", in_8_bits=False, packs=False):
        beside.append(trainer._layers)
        name = "int8 torch" if in_8_bits else "torch"
        return SimpleNamespace(
            shared=None,
            shares=True,
            by=SimpleNamespace(name=name),
            in_8_bits=in_8_bits,
            set_aside=lambda: None,
            sound=lambda: True,
        )

    monkeypatch.setattr(fast_loss, "agrees", lambda model, plain, fast, in_8_bits: not in_8_bits)
    monkeypatch.setattr(fast_loss, "plain_head", lambda causal_lm: True)
    monkeypatch.setattr(fast_loss, "sample", lambda inputs: inputs)
    monkeypatch.setattr(fast_loss, "layers", layers)
    monkeypatch.setattr(fast_loss, "loss", lambda causal_lm, inputs, num_items, layers: layers.in_8_bits)
    watch = Watch(folder=tmp_path, fingerprint={}, keep=1, fast=True, in_8_bits=True)
    trainer = hooks.hooked(Plain, watch)()
    weight = SimpleNamespace(requires_grad=False)
    causal_lm = SimpleNamespace(parameters=lambda: [weight])
    model = SimpleNamespace(get_base_model=lambda: causal_lm, training=True)
    return SimpleNamespace(trainer=trainer, model=model, watch=watch, beside=beside)


def test_where_8_bits_are_too_coarse_the_exact_weights_are_taken_and_that_is_said(
    too_coarse, int8, monkeypatch, logged
):
    monkeypatch.setattr(int8, "in_files", lambda weights: 0)
    assert too_coarse.trainer.compute_loss(too_coarse.model, {}) is False
    assert too_coarse.watch.carried.products == "torch"
    assert too_coarse.beside == [None, None], "two copies of the weights at once"
    assert any("FAST_CPU = int8" in text and "exact weights" in text for text in logged)


def test_where_the_exact_weights_do_not_fit_that_is_said_before_the_system_kills_the_run(too_coarse, int8, monkeypatch):
    from training.errors import MachineError
    from training.system import this_machine

    monkeypatch.setattr(int8, "in_files", lambda weights: 14_000_000_000 * len(weights))
    monkeypatch.setattr(this_machine, "memory", lambda: (12_000_000_000, 9_000_000_000))
    with pytest.raises(
        MachineError, match="exact weights need 14.0 GB, of which 9.0 GB are free; choose a smaller BASE_MODEL_NAME"
    ):
        too_coarse.trainer.compute_loss(too_coarse.model, {})


def test_weights_in_a_file_are_told_from_those_in_memory(int8, tmp_path):
    import torch

    file = tmp_path / "weights"
    file.write_bytes(bytes(1 << 16))
    mapped = torch.from_file(str(file), size=1 << 14, dtype=torch.float32)
    assert int8.in_files([mapped[:4096], torch.zeros(1 << 20), mapped[8192:]]) == 4 * (4096 + 8192)


def test_a_resumed_run_has_weights_in_8_bits_again():
    from training.fast_cpu import products

    again = products.named(products.in_8_bits(products.TORCH).name)
    assert again.in_8_bits and again.linear is products.TORCH.linear
    assert not products.named("onednn").in_8_bits and not products.named(None).in_8_bits


@pytest.mark.parametrize(
    ("outputs", "inputs", "dtype"),
    [(64, 42, "float32"), (66, 64, "float32"), (64, 64, "float64"), (2**17, 64, "float32")],
)
def test_weights_that_do_not_fit_are_refused_in_words(int8, outputs, inputs, dtype):
    import torch

    assert int8.unsuited(outputs, inputs, getattr(torch, dtype))
    assert not int8.unsuited(64, 64, torch.float32)
