"""Products by the library that is quickest: the same but for the order of the sums, and the same ones when resumed."""

from __future__ import annotations

import json
import time

import pytest

from tests.support.by_hand import adapted, measured

pytestmark = pytest.mark.tiny


@pytest.fixture
def products(monkeypatch, tmp_path):
    """The module, with no record of this machine."""
    from training.fast_cpu import kernels, products

    if not products._has_onednn():
        pytest.skip("torch was built without oneDNN")
    kernels.load()
    monkeypatch.setattr(kernels, "CACHE", tmp_path)
    return products


def batch():
    """Two rows, one shorter."""
    import torch

    torch.manual_seed(1)
    ids = torch.randint(0, 101, (2, 19))
    mask = (torch.arange(19)[None] < torch.tensor([[19], [11]])).long()
    return {"input_ids": ids, "labels": ids.masked_fill(mask == 0, -100), "attention_mask": mask}


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_each_gives_the_losses_and_gradients_of_float64(products, family):
    from training.fast_cpu.decoder import Decoder

    exact = adapted(family)
    loss, gradients = measured(exact, batch(), Decoder(exact.get_base_model()))
    for by in (products.TORCH, *products.others()):
        model = adapted(family, dtype="float32")
        found, ours = measured(model, batch(), Decoder(model.get_base_model(), by=by))
        assert found == pytest.approx(loss, rel=1e-6)
        for name, gradient in gradients.items():
            assert float((ours[name].double() - gradient).norm()) <= 1e-5 * max(1e-2, float(gradient.norm())), name


def test_the_clearly_quicker_one_is_taken_and_kept_with_the_machine(products, tmp_path, monkeypatch):
    import torch

    asked = []
    monkeypatch.setattr(products, "quicker", lambda: asked.append(1) or products.ONEDNN)
    assert products.chosen(torch.float32) is products.chosen(torch.float32) is products.ONEDNN
    assert len(asked) == 1
    (record,) = tmp_path.iterdir()
    assert json.loads(record.read_text()) == {"products": "onednn"}
    record.write_text("no record")
    assert products.chosen(torch.float32) is products.ONEDNN and len(asked) == 2
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    assert products.chosen(torch.float32) is products.ONEDNN and len(asked) == 3, (
        "as many threads as it was measured with"
    )


def test_what_other_programs_take_of_the_clock_is_no_part_of_a_measurement(products):
    assert products._seconds(lambda: time.sleep(0.3)) < 0.1


@pytest.mark.parametrize(
    ("shares", "taken"),
    [
        ((1.0, 0.5, 0.6), "onednn"),
        ((1.0, 0.6, 0.5), "openblas"),
        ((1.0, 0.95, 0.93), "torch"),
        ((1.0, 2.0, 2.0), "torch"),
    ],
)
def test_what_is_as_quick_leaves_torchs_own(products, shares, taken, monkeypatch):
    monkeypatch.setattr(products, "others", lambda: [products.ONEDNN, products.OPENBLAS])
    calls = iter(range(1000))
    # Forward and back of torch's, then of the others'.
    assert products.quicker(lambda call: shares[next(calls) % 6 // 2]).name == taken


def test_other_dtypes_and_older_runs_have_torchs_own(products, tmp_path):
    import torch

    assert products.chosen(torch.bfloat16) is products.chosen(torch.float64) is products.TORCH
    assert products.named(None) is products.named("what a newer version has") is products.TORCH
    assert products.named("onednn") is products.ONEDNN
    assert products.named("openblas") is products.OPENBLAS
    assert not list(tmp_path.iterdir()), "measured for nothing"
