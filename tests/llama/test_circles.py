"""Answers that go round in circles."""

from __future__ import annotations

import pytest

from training.llama import circles


@pytest.mark.parametrize("stretch", [[7], [1, 2, 3], list(range(16)), list(range(32))])
def test_an_answer_that_says_the_same_over_and_over_has_come_to_go_round(stretch: list[int]) -> None:
    before = list(range(100, 140))
    ids = before + stretch * 200
    at = circles.end(ids)
    assert at is not None and at <= len(before) + max(circles.TOKENS, circles.TIMES * len(stretch)) + len(stretch)
    assert not circles.goes_round(ids[: at - 1]) and circles.goes_round(ids[:at])


def test_a_list_with_lines_that_differ_a_little_goes_on() -> None:
    line = list(range(10))
    ids = [token for number in range(50) for token in [*line, 1000 + number]]
    assert circles.end(ids) is None


def test_few_repetitions_are_none() -> None:
    assert circles.end([1, 2, 3, 4] * 15) is None, "60 tokens"
    assert circles.end(list(range(30)) * 3) is None, "three times"
