"""How the next token is taken."""

from __future__ import annotations

import numpy as np

from training.llama import Sampling

ROW = np.array([0.0, 3.0, 2.0, -np.inf], np.float32)


def taken(times: int = 200, **how: float) -> list[int]:
    choose = Sampling(**how).chooser()
    return [choose(ROW) for _ in range(times)]


def test_without_a_temperature_the_likeliest_is_taken():
    assert set(taken()) == {1}


def test_with_one_others_are_taken_as_often_as_their_chance_says():
    found = taken(4000, temperature=1.0, seed=1)
    odds = np.exp(ROW) / np.exp(ROW).sum()
    assert np.allclose([found.count(token) / 4000 for token in range(4)], odds, atol=0.03)


def test_top_p_leaves_the_unlikely_ones_out():
    assert set(taken(temperature=1.0, top_p=0.9, seed=1)) == {1, 2}
    assert set(taken(temperature=2.0, top_p=1e-9, seed=1)) == {1}
    assert set(taken(2000, temperature=2.0, top_p=1.0, seed=1)) == {0, 1, 2}


def test_the_same_seed_takes_the_same():
    assert taken(temperature=1.5, seed=7) == taken(temperature=1.5, seed=7) != taken(temperature=1.5, seed=8)
