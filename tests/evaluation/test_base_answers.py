"""The base model is asked before it is trained: how, how long, and which of its answers become rows."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support.plans import a_base_model
from training.data import ChatTemplate
from training.data.encoding import Encoded, NothingToTrain
from training.evaluation import base_answers
from training.evaluation.base_answers import Answered, Asking, ask, options
from training.evaluation.generate import Answer

TEMPLATE = ChatTemplate("", "a test")
QUESTIONS = [f"question {number}" for number in range(100)]


class Model:
    """Says what a test wants it to say, and remembers how it was asked."""

    def __init__(self, says=lambda question: "An answer.") -> None:
        self.says, self.batches, self.most, self.options = says, [], [], {}

    def answers(self, model, tokenizer, items, end_ids, **options):
        """As generate.answers does; None is an answer that does not end."""
        self.batches.append([item.question for item in items])
        self.most += [item.most for item in items]
        self.options = options
        said = [self.says(item.question) for item in items]
        return [Answer(text=text or "and so on", ids=[], stopped=text is not None) for text in said]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch):
    def go(model: Model, wanted: int, longest: int = 400, **given: object) -> Answered:
        monkeypatch.setattr(base_answers, "generate", model)
        monkeypatch.setattr(base_answers.encoding, "prompt_ids", lambda *given: [1] * 40)
        monkeypatch.setattr(base_answers.encoding, "encode", encode)
        asking = Asking(own=TEMPLATE, end_ids=[0], options=given, rows=TEMPLATE, longest=longest)
        return ask(SimpleNamespace(), None, asking, QUESTIONS, wanted)

    def encode(template, tokenizer, row, longest):
        answer = row.messages[-1].content
        if answer == "no room":
            raise NothingToTrain("no place for thoughts")
        return [Encoded([1], [1], answer == "cut")] * (2 if answer == "two" else 1)

    return go


def test_the_model_is_asked_until_so_many_answers_have_ended(asked):
    model = Model()
    found = asked(model, 20)
    assert [len(batch) for batch in model.batches] == [16, 16], "no more than are needed, a batch at a time"
    assert found.asked == 32 and found.exchanges[:2] == [("question 0", "An answer."), ("question 1", "An answer.")]


def test_an_answer_that_does_not_end_is_no_row_and_others_are_asked_for_instead(asked):
    found = asked(Model(lambda question: None if int(question.split()[1]) % 2 else "Yes."), 10)
    assert [question for question, _ in found.exchanges] == [f"question {number}" for number in range(0, 32, 2)]
    assert (found.asked, found.unended) == (32, 16)


@pytest.mark.parametrize("text", ["no room", "cut", "two", " \n", "a\0b"])
def test_an_answer_that_makes_no_whole_row_is_left_out(asked, text):
    found = asked(Model(lambda question: text), 5)
    assert not found.exchanges and found.asked == found.unended == 100


def test_an_answer_is_bounded_in_tokens_and_within_the_row(asked):
    model = Model()
    asked(model, 1)
    asked(model, 1, longest=100)
    assert set(model.most) == {base_answers.LONGEST_ANSWER, 60}


def test_asking_is_bounded_in_time(asked, monkeypatch):
    clock = iter(range(0, 100_000, 400))
    monkeypatch.setattr(base_answers.time, "monotonic", lambda: float(next(clock)))
    found = asked(Model(), 100)
    assert found.asked == 32 and not found.in_time and len(found.exchanges) == 32


def said(folder: Path, text: str) -> dict[str, object]:
    (folder / "generation_config.json").write_text(text, encoding="utf-8")
    return options(a_base_model(path=folder))


def test_a_model_is_asked_as_its_generation_config_says(tmp_path, asked):
    own = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.05}
    assert said(tmp_path, json.dumps({**own, "max_length": 20, "eos_token_id": 2})) == own
    model = Model()
    asked(model, 1, **own)
    assert model.options == own


@pytest.mark.parametrize("text", ['{"temperature": 0.6}', '{"do_sample": false, "top_k": 20}'])
def test_a_model_that_takes_no_chances_gives_its_likeliest_answers(tmp_path, text):
    assert said(tmp_path, text) == {}


def test_what_a_generation_config_leaves_empty_is_left_to_the_library(tmp_path):
    assert said(tmp_path, '{"do_sample": true, "top_p": null, "top_k": 0}') == {"do_sample": True}
