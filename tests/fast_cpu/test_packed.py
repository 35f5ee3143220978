"""Frozen weights laid out for their products: the same numbers to the last bit, where there is memory for them."""

from __future__ import annotations

import pytest

from tests.support.by_hand import adapted, batch, measured

pytestmark = pytest.mark.tiny


@pytest.fixture
def packed():
    """The module, on a machine whose torch can do it."""
    import torch

    from training.fast_cpu import packed

    if not packed.possible(torch.bfloat16):
        pytest.skip("this torch has no products with weights that are laid out")
    return packed


@pytest.mark.parametrize("tokens", [1, 7, 60, 331, 1024])
@pytest.mark.parametrize("sizes", [(960, 576), (31, 77), (128, 96)])
def test_products_are_those_of_the_weights_as_they_were_to_the_last_bit(packed, tokens, sizes):
    import torch

    torch.manual_seed(0)
    weights = [torch.randn(outputs, sizes[1]).bfloat16() for outputs in (sizes[0], 16)]
    whole, kept = torch.cat(weights), packed.packed(weights)
    if not packed.equal(kept, weights):
        pytest.skip("on this CPU they are not, so that they are not taken")
    x, gradient = torch.randn(tokens, sizes[1]).bfloat16(), torch.randn(tokens, len(whole)).bfloat16()
    bias = torch.randn(len(whole)).bfloat16()
    assert torch.equal(packed.linear(x, kept, bias), torch.nn.functional.linear(x, whole, bias))
    assert torch.equal(packed.back(gradient, kept), gradient @ whole)


def decoders(model):
    """The hand-written layers with weights laid out, and as they are; in this order, for the second puts weights together."""
    from training.fast_cpu.decoder import Decoder

    return Decoder(model.get_base_model(), packs=True), Decoder(model.get_base_model())


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_loss_and_gradients_are_the_same_to_the_last_bit(packed, family):
    import torch

    model = adapted(family, dtype="bfloat16")
    laid_out, joined = decoders(model)
    assert not joined.packs
    if not laid_out.packs:
        pytest.skip("on this CPU the products differ, so that they are not taken")
    value, gradients = measured(model, batch(), laid_out)
    plain, wanted = measured(model, batch(), joined)
    assert value == plain and gradients.keys() == wanted.keys()
    assert all(torch.equal(gradients[name], wanted[name]) for name in wanted)


def test_the_models_own_weights_stay_as_they_are(packed):
    import torch

    model = adapted(dtype="bfloat16")
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    from training.fast_cpu.decoder import Decoder

    Decoder(model.get_base_model(), packs=True)
    for name, value in model.named_parameters():
        assert torch.equal(value, before[name]), name


def test_where_the_products_differ_the_weights_are_taken_as_they_are(packed, monkeypatch):
    import torch

    monkeypatch.setattr(packed, "equal", lambda weight, weights: False)
    laid_out, _ = decoders(adapted(dtype="bfloat16"))
    assert not laid_out.packs and isinstance(laid_out.layers[0].qkv.weight, torch.Tensor)


def test_a_layout_that_multiplies_wrongly_is_seen(packed):
    import torch

    weights = [torch.randn(48, 32).bfloat16()]
    right, other = packed.packed(weights), packed.packed([weights[0] + 1])
    assert not packed.equal(packed.Packed(other.forward, right.back), weights)
    assert not packed.equal(packed.Packed(right.forward, other.back), weights)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_other_types_are_not_laid_out(packed, dtype):
    laid_out, _ = decoders(adapted(dtype=dtype))
    assert not laid_out.packs


def test_the_plan_s_word_reaches_the_layers(tmp_path, monkeypatch):
    from types import SimpleNamespace

    from training.fast_cpu import fast_loss
    from training.runs.checkpoint import Carried
    from training.train import Watch, hooks

    class Plain:
        accelerator = SimpleNamespace(unwrap_model=lambda model: model)

    asked = []
    monkeypatch.setattr(fast_loss, "layers", lambda *_, **named: asked.append(named["packs"]))
    monkeypatch.setattr(fast_loss, "loss", lambda *_: 0.0)
    for packs in (True, False):
        carried = Carried(fast_path="layers", products="torch")
        watch = Watch(folder=tmp_path, fingerprint={}, keep=1, fast=True, packs=packs, carried=carried)
        model = SimpleNamespace(get_base_model=lambda: None, training=True)
        hooks.hooked(Plain, watch)().compute_loss(model, {})
    assert asked == [True, False]


def test_a_cpu_without_such_products_trains_in_bf16_with_weights_as_they_are(monkeypatch):
    import torch

    torch.ops.mkldnn._is_mkldnn_bf16_supported()
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    model = adapted(dtype="bfloat16")
    laid_out, _ = decoders(model)
    assert not laid_out.packs
    assert measured(model, batch(), laid_out)[1]
