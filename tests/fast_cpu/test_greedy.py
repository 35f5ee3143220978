"""Answers and losses by the hand-written layers against generate() and the model's own forward pass."""

from __future__ import annotations

import pytest

from tests.support.by_hand import SHAPE, adapted

pytestmark = pytest.mark.tiny

PROMPTS = [[5, 17, 80], [3], [60, 61, 62, 63, 64, 65, 66], [9, 9, 2]]
MOST = [20, 31, 12, 25]
NO_END = [SHAPE["vocab_size"] - 1]


def decoder_of(model):
    from training.fast_cpu.decoder import Decoder

    return Decoder(model.get_base_model())


def generated(model, end_ids=NO_END) -> list[list[int]]:
    """The model's own greedy answers, one prompt after the other."""
    import torch

    from training.evaluation import generate

    words = type("Words", (), {"decode": lambda self, ids, **_: ""})()
    with torch.no_grad():
        return [generate.answer(model, words, ids, end_ids, most).ids for ids, most in zip(PROMPTS, MOST, strict=True)]


def both(model, end_ids=NO_END) -> tuple[list[list[int]], list[list[int]]]:
    with model.disable_adapter():
        before = generated(model, end_ids)
    return before, generated(model, end_ids)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_base_and_tuned_model_answer_together_as_each_does_alone(family):
    from training.fast_cpu import greedy

    model = adapted(family, **({"sliding_window": None} if family == "mistral" else {}))
    before, after = both(model)
    assert before != after
    assert greedy.answers(decoder_of(model), PROMPTS, MOST, NO_END, base=True) == (before, after)


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["down_proj"]])
def test_whatever_is_adapted_counts_and_the_base_need_not_be_asked(targets):
    from training.fast_cpu import greedy

    model = adapted(targets=targets)
    assert greedy.answers(decoder_of(model), PROMPTS, MOST, NO_END, base=False) == ([], both(model)[1])


def test_an_answer_ends_with_its_end_token_and_the_others_go_on():
    from training.fast_cpu import greedy

    model = adapted()
    free = both(model)
    ends = [free[1][0][3], free[0][1][5]]
    expected = both(model, ends)
    assert expected != free and len({len(ids) for ids in expected[1]}) > 1
    assert greedy.answers(decoder_of(model), PROMPTS, MOST, ends, base=True) == expected


def test_little_memory_takes_more_passes_to_the_same_answers(monkeypatch):
    from training.fast_cpu import greedy

    model = adapted()
    decoder = decoder_of(model)
    whole = greedy.answers(decoder, PROMPTS, MOST, NO_END, base=True)
    monkeypatch.setattr(greedy, "READ", 1)
    assert greedy.answers(decoder, PROMPTS, MOST, NO_END, base=True) == whole
    monkeypatch.setattr(greedy, "KEPT", 1)
    assert list(greedy._groups(decoder, PROMPTS, MOST, 2)) == [[0], [1], [2], [3]]
    assert greedy.answers(decoder, PROMPTS, MOST, NO_END, base=True) == whole


def test_an_answer_that_goes_round_in_circles_ends_there(monkeypatch):
    from training.fast_cpu import greedy
    from training.llama import circles

    monkeypatch.setattr(circles, "goes_round", lambda ids: len(ids) == 4)
    before, after = greedy.answers(decoder_of(adapted()), PROMPTS, MOST, NO_END, base=True)
    assert {len(ids) for ids in (*before, *after)} == {4}


def test_answers_that_the_model_would_not_give_are_noticed(monkeypatch):
    from training.fast_cpu import greedy

    decoder = decoder_of(adapted())
    right = greedy._turned
    # As from a cache whose places are wrong.
    monkeypatch.setattr(greedy, "_turned", lambda heads, cosine, sine: right(heads, cosine, -sine))
    monkeypatch.setattr(greedy, "NEAR", 0.0)
    with pytest.raises(greedy.Unsound, match="nats behind the model's first choice"):
        greedy.answers(decoder, PROMPTS, MOST, NO_END, base=True)


def test_what_is_unsound_is_answered_by_the_model_itself(monkeypatch, logged):
    from types import SimpleNamespace

    from training.data import Item
    from training.evaluation import generate
    from training.fast_cpu import greedy

    def unsound(*_args, **_more):
        raise greedy.Unsound("far off")

    model = adapted()
    decoder, (_, expected) = decoder_of(model), both(model)
    words = SimpleNamespace(decode=lambda ids, **_: "")
    items = [Item([], [], "", "", ids, most) for ids, most in zip(PROMPTS, MOST, strict=True)]
    by_hand = generate.answers_of_both(model, words, items, NO_END, True, decoder)
    monkeypatch.setattr(greedy, "answers", unsound)
    instead = generate.answers_of_both(model, words, items, NO_END, True, decoder)
    assert "far off" in logged[-1]
    assert [answer.ids for answer in by_hand[1]] == [answer.ids for answer in instead[1]] == expected


@pytest.mark.parametrize("shares", [True, False])
def test_the_losses_of_rows_are_those_of_the_model_with_its_adapter_on_and_off(shares):
    from training.data import Item
    from training.evaluation import generate
    from training.fast_cpu.decoder import Decoder

    model = adapted(dtype="float32")
    # The first two begin alike, and of the last one token is trained.
    rows = [list(range(30)), [*range(25), 77, 78, 79], list(range(50, 62)), [4, 5]]
    items = [Item(ids, [-100] * (len(ids) // 3) + ids[len(ids) // 3 :], "", "", [], 0) for ids in rows]
    decoder = Decoder(model.get_base_model(), shares)
    with model.disable_adapter():
        assert generate.losses(model, items, decoder) == pytest.approx(generate.losses(model, items), rel=1e-5)
        before = generate.losses(model, items)
    after = generate.losses(model, items, decoder)
    assert after == pytest.approx(generate.losses(model, items), rel=1e-5) and after != pytest.approx(before, rel=1e-3)


def test_layers_that_are_made_again_take_the_joined_weights_as_they_are():
    model = adapted()
    one, other = decoder_of(model), decoder_of(model)
    for ours, theirs in zip(one.layers, other.layers, strict=True):
        assert ours.qkv.weight.data_ptr() == theirs.qkv.weight.data_ptr(), "a second copy in memory"
        assert ours.gate_up.weight.equal(theirs.gate_up.weight)
