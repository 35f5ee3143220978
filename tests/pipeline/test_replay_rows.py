"""What is said of the base model's answers, where they are not what was asked for."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest

from tests.support.plans import a_plan
from tests.support.settings import a_settings
from training.errors import RunError
from training.evaluation.base_answers import Answered
from training.pipeline import replay_rows
from training.plan.replayed import Replay
from training.runs import Run

AWAITED = Replay(count=40, longest=300, tokens=4000, share=0.2)


class Events:
    """Keeps what is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []

    def emit(self, event: str, **fields: str) -> None:
        self.told.append((event, fields["message"]))


@pytest.fixture
def answering(tmp_path, monkeypatch: pytest.MonkeyPatch):
    """The stage with a model that answers as a test says; gives the run and its events."""

    def go(found: Answered, stages: tuple[str, ...] = ()) -> tuple[Run, Events]:
        model = SimpleNamespace(training=False, train=lambda mode: None, disable_adapter=contextlib.nullcontext)
        monkeypatch.setattr(replay_rows, "engine", SimpleNamespace(load=lambda *given: SimpleNamespace(model=model)))
        monkeypatch.setattr(replay_rows, "random_state", SimpleNamespace(take=lambda: 1, put_back=lambda state: None))
        monkeypatch.setattr(replay_rows, "asked", lambda *given: found)
        monkeypatch.setattr(replay_rows, "with_answers", lambda plan, path: plan)
        monkeypatch.setattr(replay_rows, "gathering", SimpleNamespace(keep=lambda *given: None))
        run, events = Run(tmp_path, {"stages": dict.fromkeys(stages, {})}), Events()
        replay_rows.base_model_answers(a_plan(a_settings(), replay=AWAITED), run, events)
        return run, events

    return go


def answers(count: int, asked: int, in_time: bool = True) -> Answered:
    exchanges = [(f"question {number}", "Yes.") for number in range(count)]
    return Answered(exchanges=exchanges, asked=asked, unended=asked - count, seconds=9.0, in_time=in_time)


def test_a_model_that_ends_no_answer_is_told_before_anything_is_trained(answering):
    with pytest.raises(
        RunError, match="of 366 questions the base model has ended no answer within 256 tokens"
    ) as error:
        answering(answers(0, 366))
    assert "REPLAY_SHARE = 0, or a REPLAY_FILE of your own" in error.value.safe


def test_too_few_answers_are_warned_of_with_how_often_each_is_taken(answering):
    run, events = answering(answers(15, 366))
    said = (
        "REPLAY_SHARE = 0.2 asks for 40 rows of the base model's answers, and of the 366 questions that there are 15 have an "
        "answer that ended: each is taken 3 times at most in an epoch; a REPLAY_FILE of your own may hold more"
    )
    assert run.status["warnings"] == [said] and events.told == [("warning", said)]


def test_an_end_of_asking_for_want_of_time_is_warned_of(answering):
    run, _ = answering(answers(20, 32, in_time=False))
    assert "and within 15 min it gave 20: each is taken 2 times" in run.status["warnings"][0].replace(
        "15 min 00 s", "15 min"
    )


def test_enough_answers_are_kept_without_a_warning(answering, tmp_path):
    run, events = answering(answers(40, 64))
    assert not run.status.get("warnings") and not events.told
    assert (tmp_path / "replay.jsonl").read_text().count("\n") == 40


def test_a_run_that_is_trained_asks_nobody(answering, tmp_path):
    answering(answers(40, 64), stages=("train",))
    assert not (tmp_path / "replay.jsonl").exists()
