"""Rows that begin alike, computed once for what they share: the losses and gradients are those of rows computed apart."""

from __future__ import annotations

import pytest

from tests.support import by_hand
from tests.support.by_hand import adapted, measured

pytestmark = pytest.mark.tiny

# Of float64, whose sums are taken in another order.
ORDER = 1e-12


def beginnings():
    """Rows with a system text in common, turns of one talk, a row twice, and one of its own."""
    import torch

    torch.manual_seed(3)
    system, *turns = (torch.randint(0, 101, (length,)) for length in (40, 5, 9, 30, 20, 17, 40))
    talks = ([0], [1], [2, 3], [2, 3, 4], [2], [0])
    return [torch.cat([system, *(turns[turn] for turn in talk)]) for talk in talks] + [turns[5]]


def padded(rows, untrained=3):
    """A micro-batch; of row i the first `untrained` x i tokens carry no loss."""
    import torch

    pad = torch.nn.utils.rnn.pad_sequence
    labels = [torch.where(torch.arange(len(row)) < untrained * i, -100, row) for i, row in enumerate(rows)]
    return {
        "input_ids": pad(rows, batch_first=True),
        "labels": pad(labels, batch_first=True, padding_value=-100),
        "attention_mask": pad([torch.ones_like(row) for row in rows], batch_first=True),
    }


def both(model, inputs):
    """Loss and gradients computed apart and shared, and the layers that shared."""
    from training.fast_cpu.decoder import Decoder

    apart, together = (Decoder(model.get_base_model(), shares) for shares in (False, True))
    return measured(model, inputs, apart), measured(model, inputs, together), together


def off(one, other):
    """How far gradients are apart, of their length."""
    squares = lambda found: sum(float(part.double().norm()) ** 2 for part in found.values())  # noqa: E731
    return (squares({name: one[name] - other[name] for name in one}) / squares(other)) ** 0.5


@pytest.mark.parametrize(("dtype", "most"), [("float64", ORDER), ("float32", 1e-5), ("bfloat16", 0.03)])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_losses_and_gradients_are_those_of_rows_computed_apart(family, dtype, most):
    apart, together, layers = both(adapted(family, dtype=dtype, head_dim=16), padded(beginnings()))
    assert layers.shared == (166, 446), "what rows have in common was computed again"
    assert together[0] == pytest.approx(apart[0], rel=most)
    assert off(together[1], apart[1]) <= most


def test_shared_tokens_of_several_blocks_of_queries_are_seen_by_all_after_them(monkeypatch):
    from training.fast_cpu import policy

    monkeypatch.setattr(policy, "BLOCK", 7)
    apart, together, layers = both(adapted(), padded(beginnings()))
    assert layers.shared and off(together[1], apart[1]) <= ORDER


def test_gradient_checkpointing_changes_nothing_of_it():
    model = adapted()
    before = both(model, padded(beginnings()))[1]
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()
    after = both(model, padded(beginnings()))[1]
    assert after[0] == before[0] and off(after[1], before[1]) <= ORDER


def test_gradients_that_meet_in_a_shared_token_are_the_same_bit_for_bit_each_time():
    import torch

    from training.fast_cpu import fast_loss

    # More than 32,768 numbers, which threads share out; most are of one token.
    torch.manual_seed(0)
    places = torch.where(torch.arange(400) < 200, 3, torch.randint(0, 300, (400,)))
    gradient = torch.randn(400, 576) * torch.logspace(-4, 4, 400)[:, None]
    states, threads, found = torch.randn(300, 576, requires_grad=True), torch.get_num_threads(), []
    torch.set_num_threads(2)
    try:
        for _ in range(30):
            found.append(torch.autograd.grad(fast_loss.picked(states, places), states, gradient)[0])
    finally:
        torch.set_num_threads(threads)
    assert all(one.equal(found[0]) for one in found)


@pytest.mark.parametrize("form", ["padded", "joined", "one joined", "a short one"])
def test_the_rows_of_the_proof_begin_alike_so_that_sharing_is_tried(form):
    import torch

    from training.fast_cpu import fast_loss, shared

    torch.manual_seed(0)
    lengths = {"one joined": (300,), "a short one": (250, 9)}.get(form, (100, 40, 30))
    rows = [torch.randint(0, 101, (length,)) for length in lengths]
    inputs = padded(rows, untrained=0)
    if form != "padded":
        positions = torch.cat([torch.arange(len(row)) for row in rows])[None]
        inputs = {"input_ids": torch.cat(rows)[None], "labels": torch.cat(rows)[None], "position_ids": positions}
    before = {name: value.clone() for name, value in inputs.items()}
    ids, _, lengths = fast_loss.joined(fast_loss.sample(inputs))
    alike = shared.found(ids, lengths)
    assert alike is not None and len(alike.ids) < len(ids)
    assert len(lengths) >= 2 and all(inputs[name].equal(before[name]) for name in inputs), "the batch stays as it was"


def test_rows_joined_without_padding_share_too():
    import torch

    from training.fast_cpu.decoder import Decoder

    model, rows = adapted(), beginnings()
    one = padded(rows, untrained=0)
    two = {
        "input_ids": torch.cat(rows)[None],
        "labels": torch.cat(rows)[None],
        "position_ids": torch.cat([torch.arange(len(row)) for row in rows])[None],
    }
    found = [measured(model, inputs, Decoder(model.get_base_model())) for inputs in (one, two)]
    assert found[0][0] == found[1][0] and off(found[1][1], found[0][1]) <= ORDER


def test_a_row_that_is_the_beginning_of_another_and_equal_rows_are_pieces_of_them():
    import torch

    from training.fast_cpu import shared

    row = torch.arange(60)
    lengths = [60, 20, 60, 40]
    found = shared.found(torch.cat([row[:length] for length in lengths]), lengths)
    assert found.ids.tolist() == list(range(60)), "each token once"
    assert found.rows.positions.tolist() == list(range(60))
    assert found.places.tolist() == [at for length in lengths for at in range(length)]


def test_rows_with_little_in_common_are_computed_as_before():
    import torch

    from training.fast_cpu import policy, shared

    torch.manual_seed(0)
    start = torch.arange(policy.LEAST_SHARED - 1)
    rows = [torch.cat([start, torch.randint(100, 999, (30,))]) for _ in range(4)]
    assert shared.found(torch.cat(rows), [len(row) for row in rows]) is None
    # A piece that all could share, and that is next to nothing of the whole.
    start = torch.arange(policy.LEAST_SHARED)
    rows = [torch.cat([start, torch.randint(100, 999, (600,))]) for _ in range(4)]
    assert shared.found(torch.cat(rows), [len(row) for row in rows]) is None
    assert shared.found(rows[0], [len(rows[0])]) is None, "one row shares with none"


def attended(dtype, heads, groups, dim):
    """Attention of three rows after 70 tokens that they share, and one of its own; and the gradient, in `dtype`."""
    import torch

    from training.fast_cpu.attention import Attention, Rows

    torch.manual_seed(0)
    counts, befores = (70, 33, 64, 1, 20), (0, 70, 70, 70, 0)
    firsts = [sum(counts[:at]) for at in range(len(counts))]
    sources = [
        torch.cat([torch.arange(before), first + torch.arange(count)])
        for first, count, before in zip(firsts, counts, befores, strict=True)
    ]
    tokens, width = sum(counts), (heads + 2 * groups) * dim
    qkv, outer = (torch.randn(tokens, size).bfloat16().to(dtype) for size in (width, heads * dim))
    angles = (torch.ones(tokens, dim, dtype=dtype), torch.zeros(tokens, dim, dtype=dtype))  # not turned
    qkv.requires_grad_()
    rows = Rows(counts, befores, torch.cat(sources))
    found = Attention.apply(qkv, *angles, rows, heads, groups, dim**-0.5, None, None, 0.0)
    return found.detach().double(), torch.autograd.grad(found, qkv, outer)[0].double()


@pytest.mark.parametrize(("heads", "groups", "dim"), [(9, 3, 64), (4, 2, 16), (7, 1, 80)])
@pytest.mark.parametrize(("dtype", "rounding"), [("bfloat16", 3e-3), ("float32", 1e-6)])
def test_attention_in_vector_units_sees_what_is_shared(heads, groups, dim, dtype, rounding):
    import torch

    by_hand.needs_vectors(getattr(torch, dtype))
    exact, found = (attended(one, heads, groups, dim) for one in (torch.float64, getattr(torch, dtype)))
    for one, other in zip(exact, found, strict=True):
        assert float((other - one).norm()) <= rounding * float(one.norm())


def test_attention_after_shared_tokens_has_the_gradient_of_finite_differences():
    import torch

    from training.fast_cpu.attention import Attention, Rows

    torch.manual_seed(0)
    rows = Rows((3, 2, 1), (0, 3, 3), torch.tensor([0, 1, 2, 0, 1, 2, 3, 4, 0, 1, 2, 5]))
    angles = [torch.randn(6, 4, dtype=torch.float64) for _ in range(2)]
    qkv = torch.randn(6, 32, dtype=torch.float64, requires_grad=True)
    for norms in ((None, None, 0.0), (torch.rand(4).double(), torch.rand(4).double(), 1e-5)):
        assert torch.autograd.gradcheck(Attention.apply, (qkv, *angles, rows, 4, 2, 0.5, *norms))


def test_a_run_says_once_what_it_shares_and_a_resumed_one_does_as_it_did(monkeypatch, tmp_path, logged):
    from types import SimpleNamespace

    from training.fast_cpu import fast_loss
    from training.runs.checkpoint import Carried
    from training.train import Watch, hooks

    class Plain:
        accelerator = SimpleNamespace(unwrap_model=lambda model: model)

        def compute_loss(self, *_):
            raise AssertionError("the plain way")

    asked = []
    layers = SimpleNamespace(
        shared=None, shares=True, by=SimpleNamespace(name="onednn"), in_8_bits=False,
        sound=lambda: True, set_aside=lambda: None,
    )  # fmt: skip

    def loss(causal_lm, inputs, *_):
        layers.shared = inputs["shared"]
        return 0.0

    monkeypatch.setattr(fast_loss, "layers", lambda *given, **named: asked.append(given[1:]) or layers)
    # The proof is made with some rows alone.
    monkeypatch.setattr(fast_loss, "agrees", lambda model, plain, fast, rounded: fast() == 0)
    monkeypatch.setattr(fast_loss, "plain_head", lambda causal_lm: True)
    monkeypatch.setattr(fast_loss, "sample", lambda inputs: {"shared": (20, 30)})
    monkeypatch.setattr(fast_loss, "loss", loss)
    monkeypatch.setattr("torch.is_tensor", lambda value: True)
    model = SimpleNamespace(get_base_model=lambda: None)
    older, newer = Carried(fast_path="layers"), Carried()
    for carried in (older, newer):
        trainer = hooks.hooked(Plain, Watch(folder=tmp_path, fingerprint={}, keep=1, carried=carried, fast=True))()
        for tokens in (None, (1166, 2446), (1000, 2000)):
            trainer.compute_loss(model, {"shared": tokens})
    assert asked == [(False, None), ()], "the older run had neither"
    assert Carried.read(newer.as_dict()) == newer and (newer.shares, newer.products) == (True, layers.by.name)
    said = [line for line in logged if "begin alike" in line]
    assert said == ["rows that begin alike are computed once for what they share: here 1,166 of 2,446 tokens"] * 2


def test_rows_that_begin_alike_and_train_nothing_have_no_loss():
    from training.fast_cpu import fast_loss
    from training.fast_cpu.decoder import Decoder

    model = adapted()
    inputs = padded(beginnings(), untrained=1000)
    inputs["labels"][:] = -100
    assert float(fast_loss.loss(model.get_base_model(), inputs, 7, Decoder(model.get_base_model())).detach()) == 0
