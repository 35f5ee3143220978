"""Several answers at once are the answers that each prompt has alone."""

from __future__ import annotations

import numpy as np
import pytest

from training.llama import together

END = 0


def logits(ids):
    """Of a made-up model that sees all tokens before: the next one is their sum, and a sum of 30 or more ends."""
    row = np.zeros(40, np.float32)
    row[sum(ids) % 40 if sum(ids) < 30 else END] = 1
    return row


class Sequences:
    """What a context holds: the tokens of each sequence."""

    def __init__(self) -> None:
        self.ids: dict[int, list[int]] = {}
        self.steps: list[int] = []

    def read(self, number, ids):
        """A prompt."""
        self.ids[number] = list(ids)
        return logits(ids)

    def step(self, fed):
        """One token of each."""
        self.steps.append(len(fed))
        for number, token, position in fed:
            assert position == len(self.ids[number])
            self.ids[number].append(token)
        return np.stack([logits(self.ids[number]) for number, _, _ in fed])


def grown(prompts, most):
    sequences = Sequences()
    ends, piece = (lambda token: token == END), (lambda token: f"{token} ".encode())
    return together.grow(prompts, most, sequences.read, sequences.step, ends, piece), sequences.steps


def test_each_prompt_has_its_own_answer_whenever_the_others_end():
    prompts = [[1], [1, 2], [40], [7, 7]]
    answers, steps = grown(prompts, [9, 2, 9, 1])
    assert [one["ids"] for one in answers] == [[1, 2, 4, 8, 16], [3, 6], [], [14]]
    assert [one["stopped"] for one in answers] == [True, False, True, False]
    assert answers[0]["text"] == "1 2 4 8 16 "
    assert steps == [2, 1, 1, 1, 1], "what has ended was fed on"
    for prompt, most, one in zip(prompts, [9, 2, 9, 1], answers, strict=True):
        assert grown([prompt], [most])[0][0]["ids"] == one["ids"]


@pytest.mark.parametrize(
    ("sizes", "groups"),
    [
        ([], []),
        ([5000], [[0]]),
        ([1000, 1000, 1000, 1000, 1000], [[0, 1, 2, 3], [4]]),
        ([1] * (together.MOST + 1), [list(range(together.MOST)), [together.MOST]]),
        ([100, 3000, 100, 100], [[0], [1], [2, 3]]),
    ],
)
def test_no_more_are_held_at_once_than_the_memory_of_one_long_one(sizes, groups):
    assert list(together.groups(sizes)) == groups


def test_an_answer_that_goes_round_in_circles_ends_there_and_has_not_stopped(monkeypatch):
    monkeypatch.setattr(together.circles, "goes_round", lambda ids: len(ids) == 3)
    (one, other), steps = grown([[1], [1, 2]], [9, 9])
    assert (one["ids"], one["stopped"], one["text"]) == ([1, 2, 4], False, "1 2 4 ")
    assert (other["ids"], other["stopped"]) == ([3, 6, 12], False)
    assert steps == [2, 2]
