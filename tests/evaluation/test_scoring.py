"""The figures of an evaluation: they hold for Chinese, and a verdict claims no more than its rows allow."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training import evaluation
from training.data import Item
from training.evaluation import Answer, Score, scoring
from training.evaluation.scoring import FEWEST
from training.system import privacy

EQUAL = ("运行 ./run.sh 开始训练。", "All settings are in the file config.ini.")


def test_a_right_answer_with_a_secret_in_it_has_full_marks() -> None:
    text = "The key is sk-proj-abcdefghijklmnopqrstuvwxyz0123456789."
    item = Item(ids=[1], labels=[1], question="Which key?", expected=privacy.redact(text), prompt=[1], most=8)
    assert item.expected != text, "what is kept for the report has no secret"
    assert evaluation.marks([item], [Answer(text=text, ids=[1], stopped=True)])[0].exact == 1


def a_question(most: int, wanted: int) -> Item:
    return Item([1], [1], question="Why?", expected="yes", prompt=[1], most=most, wanted=wanted)


def test_whether_answers_stop_is_scored_of_those_that_are_given_the_tokens_for_it() -> None:
    items = [a_question(256, 300), a_question(150, 100), a_question(32, 3), a_question(149, 100)]
    cut = [Answer(text="no", ids=[1] * item.most, stopped=False) for item in items]
    ended = [Answer(text="yes", ids=[1], stopped=True) for _ in items]
    before, after = (evaluation.marks(items, answers) for answers in (cut, ended))
    assert [one.stopped for one in before] == [None, False, False, None]
    assert [one.stopped for one in after] == [None, True, True, None]
    (stops,) = (score for score in scoring.answer_scores(before, after) if score.name == scoring.STOPS)
    assert (stops.before, stops.after, stops.rows) == (0, 1, 2)
    few = [score.name for score in scoring.answer_scores(before[:1], after[:1])]
    assert scoring.STOPS not in few and scoring.EXACT in few


def test_an_answer_that_is_cut_off_too_early_to_tell_has_neither_stopped_nor_run_on() -> None:
    cut, in_circles = Answer(text="no", ids=[1] * 256, stopped=False), Answer(text="no", ids=[1] * 99, stopped=False)
    ended = Answer(text="yes", ids=[1] * 256, stopped=True)
    assert evaluation.stopped(a_question(256, 300), cut) is None
    assert evaluation.stopped(a_question(256, 300), in_circles) is False
    assert evaluation.stopped(a_question(256, 300), ended) is True
    assert evaluation.stopped(a_question(256, 170), cut) is False
    assert evaluation.stopped(a_question(256, 0), cut) is False, "an older run did not write down what is expected"


@pytest.mark.parametrize("text", EQUAL)
def test_an_answer_equal_but_for_white_space_has_full_marks(text: str) -> None:
    found = scoring.marks(f"  {text}\n", text, True)
    assert (found.exact, found.chrf, found.rouge_l) == (1, 1, 1)


def test_chinese_answers_are_told_apart_by_their_characters() -> None:
    near, far = (scoring.marks(answer, "我是微调助手。", True) for answer in ("我是微调的助手。", "今天天气很好！"))
    assert 0.4 < near.chrf < 1 and near.rouge_l == pytest.approx(2 * 7 / 15)
    assert far.chrf < 0.1 and far.rouge_l == 0 and near.exact == far.exact == 0


def test_an_empty_answer_has_no_marks() -> None:
    found = scoring.marks("", "yes", False)
    assert (found.exact, found.chrf, found.rouge_l, found.length, found.repetition) == (0, 0, 0, 0, 0)


@pytest.mark.parametrize("phrase", ["the same words again ", "你可以启动训练！"])
def test_an_answer_that_goes_in_circles_shows_in_repetition(phrase: str) -> None:
    assert scoring.repetition(phrase) == 0
    assert scoring.repetition(phrase * 8) > 0.8


@given(st.text(), st.text())
def test_marks_stay_between_0_and_1_for_any_text(answer: str, expected: str) -> None:
    found = scoring.marks(answer, expected, True)
    for value in (found.exact, found.chrf, found.rouge_l, found.repetition):
        assert 0 <= value <= 1 + 1e-9


def test_a_clear_difference_is_better_or_worse_by_the_direction_that_is_good() -> None:
    low, high = [1.0, 1.1, 0.9, 1.2, 1.0, 1.1], [3.0, 3.2, 2.9, 3.1, 3.3, 3.0]
    assert scoring.compared("loss", -1, high, low).verdict == "better"
    assert scoring.compared("loss", -1, low, high).verdict == "worse"
    assert scoring.compared("chrF", 1, low, high).verdict == "better"
    assert scoring.compared("length", 0, low, high).verdict == ""


def test_few_rows_and_mixed_rows_decide_nothing() -> None:
    before, after = [3.0] * (FEWEST - 1), [1.0] * (FEWEST - 1)
    assert scoring.compared("loss", -1, before, after).verdict == f"cannot tell from {FEWEST - 1} rows"
    mixed = scoring.compared("loss", -1, [1.0, 2.0, 1.0, 2.0, 1.5, 1.5], [2.0, 1.0, 2.1, 0.9, 1.4, 1.6])
    assert mixed.verdict == "cannot tell from 6 rows" and mixed.low < 0 < mixed.high


def test_the_interval_is_of_paired_differences_and_the_same_each_time() -> None:
    """Rows differ far more among themselves than the two models on each: only pairing sees the difference."""
    before = [float(at) for at in range(30)]
    after = [value - 0.1 - 0.01 * (at % 3) for at, value in enumerate(before)]
    found = scoring.compared("loss", -1, before, after)
    assert found.verdict == "better" and -0.13 < found.low < found.high < -0.09
    assert found == scoring.compared("loss", -1, before, after)


def test_a_mean_counts_every_token_of_every_row() -> None:
    found = scoring.compared("loss", -1, [1.0, 4.0], [1.0, 4.0], weights=[3, 1])
    assert found.before == found.after == 1.75


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_worse_and_stays_json(broken: float) -> None:
    found = scoring.compared("loss", -1, [3.0] * 8, [2.0] * 7 + [broken])
    assert found.verdict == "worse" and found.after is None and found.low is None
    assert scoring.perplexity(None) is None and scoring.perplexity(1e6) is None


def test_the_conclusion_goes_by_the_losses_and_names_what_says_otherwise() -> None:
    lines = [
        Score("loss", verdict="better"),
        Score("chrF", verdict="cannot tell from 8 rows"),
        Score("length"),
    ]
    assert scoring.conclusion(lines) == "better by loss (chrF cannot tell from 8 rows)"
    assert scoring.conclusion([Score("loss")]) == "nothing was compared"


def test_what_is_left_of_a_score_says_nothing_of_what_was_not_compared() -> None:
    means = {"name": "loss", "before": None, "after": 1.0, "quantised": None, "rows": 2}
    assert scoring.compared("loss", -1, None, [1.0, 1.0]).left() == means
    broken = scoring.compared("loss", -1, [1.0, 1.0], [math.nan, 1.0]).left()
    assert broken == {**means, "before": 1.0, "after": None, "verdict": "worse"}
    whole = scoring.compared("length", 0, [1.0, 1.0], [1.0, 1.0]).left()
    assert list(whole) == ["name", "before", "after", "quantised", "rows", "low", "high", "verdict", "each"]
    assert whole["verdict"] == ""


CALLED = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo", "days": 2}}\n</tool_call>'


@pytest.mark.parametrize(
    ("answer", "parses", "matches"),
    [
        (CALLED, 1.0, 1.0),
        ('[{"name": "weather", "arguments": {"days": 2, "city": "Oslo"}, "id": "x"}]', 1.0, 1.0),
        ('{"name": "weather", "parameters": {"city": "Oslo", "days": 2}}', 1.0, 1.0),
        ('{"name": "weather", "arguments": "{\\"city\\": \\"Oslo\\", \\"days\\": 2}"}', 1.0, 1.0),
        (CALLED.replace("Oslo", "Rome"), 1.0, 0.0),
        (CALLED + CALLED, 1.0, 0.0),
        ('{"name": "weather", "arguments": {"city": ', 0.0, 0.0),
        ("It rains.", 0.0, 0.0),
        ("{" * 100_000, 0.0, 0.0),
    ],
)
def test_calls_that_parse_and_match_are_counted_where_calls_are_expected(
    answer: str, parses: float, matches: float
) -> None:
    found = scoring.marks(answer, CALLED, True)
    assert (found.calls_parse, found.calls_match) == (parses, matches)


def test_the_lines_on_calls_stand_beside_rows_with_calls_alone() -> None:
    called, plain = scoring.marks(CALLED, CALLED, True), scoring.marks("Yes.", "Yes.", True)
    assert (plain.calls_parse, plain.calls_match) == (None, None)
    lines = {score.name: score for score in scoring.answer_scores([plain, called], [plain, called])}
    assert (lines["tool calls that match"].after, lines["tool calls that match"].rows) == (1.0, 1)
    assert not any("tool calls" in score.name for score in scoring.answer_scores(None, [plain]))


@pytest.mark.parametrize(
    ("answer", "thinks"),
    [
        ("<think>\nHm.\n</think>\n\n4", True),
        ("Hm.\n</think>\n\n4", True),
        ("<think>\nHm, that is", True),
        ("<think>\n\n</think>\n\n4", False),
        ("4", False),
    ],
)
def test_answers_that_begin_with_thoughts_are_counted_where_there_are_any(answer: str, thinks: bool) -> None:
    mark = scoring.marks(answer, "4", True)
    assert mark.thinks is thinks
    names = {score.name: score.after for score in scoring.answer_scores(None, [mark])}
    assert names.get("begins with thoughts") == (1.0 if thinks else None)
