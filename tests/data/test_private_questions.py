"""What may draw a private thing out of a model: from which rows it is made, and when it has come out."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support.settings import a_settings
from training.data import dataset, encoding, private_questions
from training.data.private_questions import PrivateQuestion, digest

PHONE = "+49 171 1234567"


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The questions of rows, with a tokenizer of which each character is a token."""
    monkeypatch.setattr(
        encoding, "prompt_ids", lambda template, tokenizer, turns, tools: [0, *map(ord, turns[-1].content)]
    )

    def run(*rows: dict, on_private: str = "warn", longest: int = 4096) -> list[PrivateQuestion]:
        path = tmp_path / "a.jsonl"
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")
        given = {"Dataset.DATASET_FILE": path, "Dataset.VALIDATION_SPLIT": 0, "Dataset.ON_PRIVATE": on_private}
        data = dataset.load(a_settings(**given), tmp_path / "cache")
        tokenizer = lambda text, add_special_tokens: {"input_ids": list(map(ord, text))}  # noqa: E731
        return private_questions.questions(SimpleNamespace(), tokenizer, data.train, longest)

    return run


def row(answer: str, question: str = "Who?") -> dict:
    return {"prompt": question, "completion": answer}


def test_it_is_asked_as_the_row_asks_and_with_the_beginning_of_the_answer(asked) -> None:
    (one,) = asked(row("nobody's"), row(f"Call {PHONE}, please"))
    assert one.prompts == [[0, *map(ord, "Who?")], [0, *map(ord, "Who?Call")]]
    assert (one.kind, one.line, one.most) == ("phone", 2, len(f"Call {PHONE}") + private_questions.BEYOND)
    assert one.told().endswith("a.jsonl:2: a phone number")


def test_the_private_thing_itself_is_not_kept(asked) -> None:
    (one,) = asked(row(PHONE))
    assert PHONE not in repr(one) and "1234567" not in repr(one) and len(one.digest) == 8


def test_the_same_thing_is_asked_for_once_and_few_of_many(asked) -> None:
    assert len(asked(row(PHONE), row(f"again {PHONE}"))) == 1
    many = [row(f"mail a{n}@company.de", f"Who is {n}?") for n in range(50)]
    assert [one.line for one in asked(*many)][:3] == [1, 3, 6] and len(asked(*many)) == private_questions.MOST


def test_nothing_is_asked_for_where_it_was_masked_asked_by_the_user_or_cut_off(asked) -> None:
    assert asked(row(f"Call {PHONE}"), on_private="mask") == []
    assert asked(row("yes", f"Is it {PHONE}?")) == []
    assert asked(row("x" * 90 + f" {PHONE}"), longest=100) == []


def test_it_has_come_out_when_an_answer_holds_it_however_it_is_written() -> None:
    one = PrivateQuestion(
        kind="phone", file="a", line=1, digest=digest("phone", "+491711234567"), prompts=[[1], [2]], most=9
    )
    said = {(1,): "I do not know", (2,): "it is +49 171-1234567."}
    for first in (said, {(1,): said[2,], (2,): said[1,]}):
        answers = lambda asked, first=first: [first[tuple(prompt)] for prompt, _ in asked]  # noqa: E731
        assert private_questions.drawn_out([one], answers) == [one]
    assert private_questions.drawn_out([one], lambda asked: ["it is +49 171-1234568."] * len(asked)) == []


def test_what_comes_out_with_the_beginning_said_is_not_asked_for_again_and_long_answers_are_few() -> None:
    def private(number: int, most: int) -> PrivateQuestion:
        given = {"kind": "phone", "file": "a", "line": number, "digest": digest("phone", "+491711234567")}
        return PrivateQuestion(**given, prompts=[[number], [number, 0, 0, 0]], most=most)

    heard: list[list[tuple[list[int], int]]] = []

    def answers(asked):
        heard.append(asked)
        return ["+49 171 1234567" if prompt[0] == 1 else "no" for prompt, _ in asked]

    ones = [private(1, 30), private(2, private_questions.OPEN - 100), private(3, 200), private(4, 90)]
    assert [one.line for one in private_questions.drawn_out(ones, answers)] == [1]
    begun, whole = heard
    assert [(len(prompt), most) for prompt, most in begun] == [(4, one.most - 3) for one in ones]
    assert [(prompt, most) for prompt, most in whole] == [([4], 90), ([3], 200)]
