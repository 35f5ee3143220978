"""The verdict: one answer out of all figures, and never green over answers that are wrong."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests.support.reports import good
from training.checks import Outcome
from training.evaluation import EXACT, GENERAL_LOSS, LOSS, STOPS, Score
from training.report import Report, as_html, as_markdown, checklist, contents, verdict
from training.report.schema import Sample, TrainingFacts

BETTER = Score(LOSS, 3.0, 1.0, None, -2.1, -1.9, 24, "better")
RIGHT = Score(EXACT, 0.0, 0.875, None, 0.5, 1.0, 8, "better")


def made(*scores: Score, **changes: object) -> Report:
    return good(Path("/r"), scores=(BETTER, *scores), **changes)


def test_a_loss_that_fell_over_answers_that_are_wrong_is_no_green_better() -> None:
    found = contents.result(made(Score(EXACT, 0.0, 0.0, None, 0.0, 0.0, 8, "cannot tell from 8 rows")))
    said = "validation loss 3.180 -> 1.010 (-68.2 %), but none of 8 answers is the expected one word for word."
    assert (found.tone, found.text) == ("warn", f"Mixed: {said}")
    page = as_html.html(made(Score(EXACT, 0.0, 0.25, rows=8)))
    assert "only 2 of 8 answers are the expected one word for word" in page and '<p class="result good">' not in page


def test_a_model_with_right_answers_is_better_and_the_sentence_says_how_many() -> None:
    found = contents.result(made(RIGHT))
    assert found.tone == "good"
    assert found.text == "Better: validation loss 3.180 -> 1.010 (-68.2 %), 7 of 8 answers as expected."


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"general": (Score(GENERAL_LOSS, 2.0, 2.4, None, 0.1, 0.6, 24, "worse"),)},
            "it is worse on general questions (loss 2.000 -> 2.400)",
        ),
        (
            {"samples": (Sample("q", "a", "b", True), Sample("q", "a", "b b b", False))},
            "1 of 2 answers did not stop by themselves",
        ),
        (
            {"checks": (Outcome("merged logits", True, {"mean_kl": 0.03, "mean_kl_of_training": 0.1}),)},
            "rounding the merge to 16 bits moved its predictions by 30 % of what the training did",
        ),
        (
            {"checks": (Outcome("answers", True, {"prompts": 4, "stopped": {"merged": 4, "f16": 4, "q2_k": 1}}),)},
            "the quantised file ran on in 3 of 4 answers to training prompts",
        ),
        ({"training": TrainingFacts(60, 60, before=1.0, after=1.5)}, "validation loss 1.000 -> 1.500 (+50.0 %)"),
    ],
)
def test_whatever_speaks_against_the_model_stands_in_the_same_sentence(changes: dict[str, object], said: str) -> None:
    found = contents.result(made(RIGHT, **changes))
    assert found.tone == "warn" and found.text.startswith("Mixed: ") and found.text.endswith(f", but {said}.")


def test_answers_that_got_worse_or_do_not_stop_are_a_price() -> None:
    scores = (Score("chrF", 0.6, 0.3, None, -0.4, -0.2, 8, "worse"), Score(STOPS, 1.0, 0.75, rows=8))
    text = contents.result(made(RIGHT, *scores)).text
    assert "but chrF got worse (0.600 -> 0.300) and 2 of 8 answers did not stop by themselves." in text


def test_what_quantising_takes_back_is_a_price() -> None:
    lost = dataclasses.replace(BETTER, quantised=1.4)
    text = contents.result(good(Path("/r"), scores=(lost, RIGHT))).text
    assert "but the quantised file predicts less well (loss 1.000 -> 1.400)." in text
    kept = dataclasses.replace(BETTER, quantised=1.02)
    assert contents.result(good(Path("/r"), scores=(kept, RIGHT))).tone == "good"


def test_what_bfloat16_sums_alone_may_cost_is_no_price() -> None:
    figures = {"dtype": "bfloat16", "mean_kl": 0.003, "mean_kl_of_training": 0.01}
    assert contents.result(made(RIGHT, checks=(Outcome("merged logits", True, figures),))).tone == "good"


def test_a_cost_that_was_not_measured_is_none() -> None:
    assert verdict.merge_cost(made()) is None
    checks = (Outcome("merged logits", None, {}, why="too little memory"),)
    assert verdict.merge_cost(made(checks=checks)) is None


def test_a_worse_or_undecided_model_tells_its_price_too() -> None:
    general = (Score(GENERAL_LOSS, 2.0, 2.4, None, 0.1, 0.6, 24, "worse"),)
    undecided = dataclasses.replace(BETTER, verdict="cannot tell from 5 rows", rows=5)
    found = contents.result(good(Path("/r"), scores=(undecided,), general=general))
    assert found.tone == "warn" and found.text.startswith("Cannot tell from 5 rows whether it is better: loss")
    assert found.text.endswith("which may be chance, and it is worse on general questions (loss 2.000 -> 2.400).")
    found = contents.result(good(Path("/r"), scores=(dataclasses.replace(BETTER, verdict="worse"),), general=general))
    assert found.tone == "bad" and "beyond chance, and it is worse on general questions" in found.text


def test_wrong_answers_leave_a_point_of_the_checklist_open() -> None:
    text = "most answers are the expected ones, word for word"
    ticks = {point.text: point.done for point in checklist.points(made(Score(EXACT, 0.0, 0.25, rows=8)))}
    assert ticks[text] is False
    assert {point.text: point.done for point in checklist.points(made(RIGHT))}[text] is True


def test_the_verdict_opens_report_md_too() -> None:
    assert "**Mixed: validation loss" in as_markdown.markdown(made(Score(EXACT, 0.0, 0.0, rows=8)))
