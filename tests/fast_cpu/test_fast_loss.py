"""The fast path for CPUs, and rows joined without padding, against the plain path: equal losses and gradients."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.tiny

# transformers computes norms, softmax and losses in float32 also for a model in float64, and each CPU sums them in an
# order of its own. Such a sum is off by a few units of float32's last place, 2**-23 of the value; a mistake (a row that
# sees another, a token too many) by more than a thousandth.
ROUNDING = 16 * 2**-23


@pytest.fixture(scope="module")
def model(tiny_model):
    """The tiny model with an untrained adapter, in float64, where all but a few parts are free of rounding."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    loaded = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64)
    loaded = get_peft_model(loaded, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    return loaded.double().train()


@pytest.fixture(scope="module")
def rows():
    """Rows of unequal length with a prompt that is not trained: (input_ids, labels)."""
    import torch

    torch.manual_seed(1)
    made = []
    for length, prompt in ((9, 4), (17, 12), (5, 1), (12, 7)):
        ids = torch.randint(100, 40_000, (length,))
        made.append((ids, torch.where(torch.arange(length) < prompt, -100, ids)))
    return made


def padded(rows):
    import torch

    pad = torch.nn.utils.rnn.pad_sequence
    ids, labels = [row[0] for row in rows], [row[1] for row in rows]
    mask = pad([torch.ones_like(row) for row in ids], batch_first=True)
    return {
        "input_ids": pad(ids, batch_first=True),
        "labels": pad(labels, batch_first=True, padding_value=-100),
        "attention_mask": mask,
    }


def joined(rows):
    """What TRL's collator makes with padding_free: one sequence, positions that start again with each row."""
    import torch

    labels = [torch.cat([torch.tensor([-100]), row[1][1:]]) for row in rows]
    positions = torch.cat([torch.arange(len(row[0])) for row in rows])
    return {
        "input_ids": torch.cat([row[0] for row in rows])[None],
        "labels": torch.cat(labels)[None],
        "position_ids": positions[None],
    }


def measured(model, value):
    import torch

    model.zero_grad()
    value.backward()
    return float(value.detach()), torch.cat(
        [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    ).clone()


def close(one, other, tolerance=ROUNDING):
    assert one[0] == pytest.approx(other[0], rel=tolerance)
    assert float((one[1] - other[1]).norm() / other[1].norm()) < tolerance


def test_the_loss_over_trained_tokens_alone_is_the_models_own_loss(model, rows):
    from training.fast_cpu import fast_loss

    batch = padded(rows)
    items = int((batch["labels"][:, 1:] != -100).sum())
    plain = measured(model, model(**batch, num_items_in_batch=items).loss)
    close(measured(model, fast_loss.loss(model.get_base_model(), batch, items)), plain)


def test_the_loss_is_the_same_when_logits_are_computed_in_chunks(model, rows, monkeypatch):
    from training.fast_cpu import fast_loss, policy

    batch = padded(rows)
    whole = measured(model, fast_loss.loss(model.get_base_model(), batch, None))
    monkeypatch.setattr(policy, "LOSS_CHUNK", 3)
    close(measured(model, fast_loss.loss(model.get_base_model(), batch, None)), whole)


def test_rows_taken_together_have_the_gradient_of_rows_in_micro_batches(model, rows):
    from training.fast_cpu import fast_loss

    causal, items = model.get_base_model(), 100
    together = measured(model, fast_loss.loss(causal, padded(rows), items))
    apart = measured(
        model, fast_loss.loss(causal, padded(rows[:2]), items) + fast_loss.loss(causal, padded(rows[2:]), items)
    )
    close(together, apart)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_rows_joined_without_padding_do_not_see_each_other(model, rows, attention):
    from training.fast_cpu import fast_loss

    causal = model.get_base_model()
    causal.set_attn_implementation(attention)
    close(
        measured(model, fast_loss.loss(causal, joined(rows), None)),
        measured(model, fast_loss.loss(causal, padded(rows), None)),
    )


def test_a_path_that_gives_another_loss_is_found_out(model, rows):
    from training.fast_cpu import fast_loss

    causal, batch = model.get_base_model(), padded(rows)
    right = lambda: fast_loss.loss(causal, batch, None)  # noqa: E731
    assert fast_loss.agrees(model, right, right)
    assert not fast_loss.agrees(model, right, lambda: 1.02 * right())
    assert not fast_loss.agrees(
        model, right, lambda: right() + 0.1 * (fast_loss.loss(causal, padded(rows[:1]), None) - right())
    )


def test_a_model_that_changes_its_logits_takes_the_plain_path(model):
    from training.fast_cpu import fast_loss

    causal = model.get_base_model()
    assert fast_loss.plain_head(causal)
    causal.config.final_logit_softcapping = 30.0
    try:
        assert not fast_loss.plain_head(causal)
    finally:
        del causal.config.final_logit_softcapping


@pytest.mark.parametrize(
    ("carried", "equal", "taken", "kept"),
    [
        (None, True, "layers", "layers"),
        (None, False, "plain", "none"),
        ("layers", None, "layers", "layers"),
        ("head", None, "head", "head"),
        ("none", None, "plain", "none"),
    ],
)
def test_a_resumed_run_takes_the_path_that_it_took_and_does_not_ask_again(
    monkeypatch, tmp_path, carried, equal, taken, kept
):
    from types import SimpleNamespace

    from training.fast_cpu import fast_loss
    from training.runs.checkpoint import Carried
    from training.train import Watch, hooks

    class Plain:
        accelerator = SimpleNamespace(unwrap_model=lambda model: model)

        def compute_loss(self, *_):
            return "plain"

    def agrees(*_):
        assert equal is not None, "a first batch after the resume must not decide"
        return equal

    monkeypatch.setattr(fast_loss, "agrees", agrees)
    monkeypatch.setattr(fast_loss, "plain_head", lambda causal_lm: True)
    monkeypatch.setattr(fast_loss, "sample", lambda inputs: inputs)
    by_hand = SimpleNamespace(
        shared=None,
        shares=True,
        by=SimpleNamespace(name="onednn"),
        in_8_bits=False,
        set_aside=lambda: None,
        sound=lambda: True,
    )
    monkeypatch.setattr(
        fast_loss, "layers", lambda causal_lm, shares=True, by="", in_8_bits=False, packs=False: by_hand
    )
    monkeypatch.setattr(fast_loss, "loss", lambda causal_lm, inputs, num_items, layers: "layers" if layers else "head")
    watch = Watch(folder=tmp_path, fingerprint={}, keep=1, carried=Carried(fast_path=carried), fast=True)
    model = SimpleNamespace(get_base_model=lambda: None)
    assert hooks.hooked(Plain, watch)().compute_loss(model, {}) == taken
    assert watch.carried.fast_path == kept
