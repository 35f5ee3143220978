"""Gain and price of a training in one table and one sentence, of one run and of several."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests.support.reports import good
from training.evaluation import GENERAL_LOSS, LOSS, Score
from training.report import Report, as_html, as_markdown, comparison, contents, price
from training.report.blocks import Table

CANNOT = "cannot tell from 24 rows"


def run(own: str | None, general: str | None, share: float = 0.0, name: str = "r") -> Report:
    scores = (Score(LOSS, 3.0, 1.0, None, -2.1, -1.9, 15, own),) if own is not None else ()
    costs = (Score(GENERAL_LOSS, 2.0, 2.4, None, 0.1, 0.6, 24, general),) if general is not None else ()
    made = good(Path("/runs") / name, scores=scores, general=costs, settings={"Dataset": {"REPLAY_SHARE": share}})
    return dataclasses.replace(made, name=name)


LOSSES = "loss on your own questions 3.000 -> 1.000, on general questions 2.000 -> 2.400."
LEARNED = "It learned what your rows teach"


@pytest.mark.parametrize(
    ("own", "general", "said"),
    [
        ("better", CANNOT, f"{LEARNED}, and what it lost of the rest, if anything, is too little to tell: {LOSSES}"),
        ("better", "better", f"{LEARNED}, and it is better at the rest, too: {LOSSES}"),
        ("worse", CANNOT, f"It is worse at your own questions, but what it lost of the rest, if anything, is too little to tell: {LOSSES}"),
        ("cannot tell from 5 rows", "worse", f"Whether it learned what your rows teach cannot be told, and it forgot some of the rest: {LOSSES} REPLAY_SHARE = 0.1 holds a model to what it could do, for a tenth of the rows."),
    ],
)  # fmt: skip
def test_one_sentence_says_what_was_learned_and_what_it_cost(own, general, said):
    assert price.sentence(run(own, general)) == said


def test_what_was_forgotten_comes_with_what_helps_and_with_replay_with_what_helps_more():
    assert price.sentence(run("better", "worse")) == (
        f"{LEARNED}, but it forgot some of the rest: {LOSSES} "
        "REPLAY_SHARE = 0.1 holds a model to what it could do, for a tenth of the rows."
    )
    assert price.sentence(run("better", "worse", share=0.2)).endswith(
        "That is with REPLAY_SHARE = 0.2; a higher one, fewer steps or a lower LEARNING_RATE keep more."
    )


def test_without_held_out_rows_the_price_is_told_alone():
    assert price.sentence(run(None, "worse")).startswith(
        "Whether it learned what your rows teach cannot be told, and it forgot some of the rest: "
        "loss on general questions 2.000 -> 2.400."
    )


def test_the_report_has_own_and_general_questions_in_one_table():
    made = run("better", "worse")
    (section,) = [section for section in contents.sections(made) if section.title == "Evaluation"]
    tables = [block for block in section.blocks if isinstance(block, Table)]
    assert [row[0] for row in tables[-1].rows] == [price.OWN, price.GENERAL]
    assert tables[-1].rows[0][1:4] == ("better", "3.000", "1.000")
    assert tables[-1].rows[1][1:4] == ("worse", "2.000", "2.400")
    for page in (as_html.html(made), as_markdown.markdown(made)):
        assert "it forgot some of the rest" in page and price.OWN in page


def test_where_general_questions_were_not_measured_nothing_is_said_of_them():
    assert price.sentence(run("better", None)) == "" and price.scores(run("better", None)) == ()
    assert price.sentence(run("better", "")) == "", "with trained biases the base model cannot be asked"


def test_runs_are_compared_by_gain_and_price():
    made = [run("better", "worse", name="without"), run("better", CANNOT, 0.2, "with")]
    (section,) = [one for one in comparison.sections(made) if one.title.startswith("Gain and price")]
    assert section.blocks[0].headers == ("", "without", "with")
    assert section.blocks[0].rows == (
        (price.OWN, "3.000 -> 1.000, better", "3.000 -> 1.000, better"),
        (price.GENERAL, "2.000 -> 2.400, worse", f"2.000 -> 2.400, {CANNOT}"),
    )
