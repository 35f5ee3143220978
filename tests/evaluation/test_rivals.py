"""--switch: a new model takes the place of the one in use only where its answers are no worse; --rollback goes back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from tests.support.ollama_server import FakeOllama, Model, running
from training.data import Item
from training.errors import UserError
from training.evaluation import rivals
from training.ollama import delivery
from training.ollama.delivery import Made

EXPECTED = [f"The answer to question {number} is the number {number * 7} and nothing else." for number in range(12)]


@pytest.fixture
def fake() -> Iterator[FakeOllama]:
    one = FakeOllama()
    one.models = {"mine:latest": Model({}, "old"), "mine-next:latest": Model({}, "new")}
    with running(one) as server:
        yield server


def asked(count: int = 12):
    return [
        ([{"role": "user", "content": str(number)}], Item([1], [1], str(number), EXPECTED[number], [1], 50))
        for number in range(count)
    ]


def judge(fake: FakeOllama, old, new, count: int = 12) -> rivals.Judged:
    """old, new: question's number -> (answer, how it ended)."""

    def reply(body_model: str, prompt: str) -> tuple[str, str]:
        number = int(prompt.split("user\n")[1].split("<")[0])
        return (new if "next" in body_model else old)(number)

    fake.reply = lambda file, prompt, most: reply(fake.bodies[-1]["model"], prompt)
    return rivals.judge(fake.server(), "mine", "mine-next", asked(count), lambda line: None)


def right(number: int) -> tuple[str, str]:
    return EXPECTED[number], "stop"


def wrong(number: int) -> tuple[str, str]:
    return "Who knows?", "stop"


def test_a_better_or_an_equal_model_is_not_worse(fake: FakeOllama) -> None:
    assert judge(fake, wrong, right).verdict == rivals.NOT_WORSE
    assert judge(fake, right, right).verdict == rivals.NOT_WORSE


def test_a_worse_model_is_worse(fake: FakeOllama) -> None:
    judged = judge(fake, right, wrong)
    assert judged.verdict == rivals.WORSE
    assert "likeness to the expected answers 1.000 -> 0." in judged.words and "12 questions" in judged.words


def test_a_model_that_does_not_stop_any_more_is_worse(fake: FakeOllama) -> None:
    judged = judge(fake, right, lambda number: (EXPECTED[number], "length"))
    assert judged.verdict == rivals.WORSE
    assert "100% -> 0% stop by themselves" in judged.words


def test_what_cannot_be_told_is_said(fake: FakeOllama) -> None:
    mixed = judge(fake, lambda n: right(n) if n % 2 else wrong(n), lambda n: wrong(n) if n % 2 else right(n))
    assert mixed.verdict == rivals.UNCLEAR
    few = judge(fake, right, right, 5)
    assert few.verdict == rivals.UNCLEAR
    assert "only 5 held-out questions can be asked in a chat; 6 are needed at least" in few.words


def test_a_switch_keeps_what_was_there_and_going_back_can_be_taken_back(fake: FakeOllama) -> None:
    delivery.put_in_place(fake.server(), Made("mine-next", "mine", "new"), keep=True)
    assert {name: model.digest for name, model in fake.models.items()} == {
        "mine:latest": "new",
        "mine-next:latest": "new",
        "mine-previous:latest": "old",
    }
    fake.models.pop("mine-next:latest")
    for now, before in (("old", "new"), ("new", "old")):
        delivery.roll_back(fake.server(), "mine")
        assert {name: model.digest for name, model in fake.models.items()} == {
            "mine:latest": now,
            "mine-previous:latest": before,
        }


def test_the_same_switch_again_keeps_the_way_back(fake: FakeOllama) -> None:
    for _ in range(2):
        delivery.put_in_place(fake.server(), Made("mine-next", "mine", "new"), keep=True)
    assert fake.models["mine-previous:latest"].digest == "old"


def test_without_a_previous_one_there_is_no_way_back(fake: FakeOllama) -> None:
    with pytest.raises(UserError, match="has no mine-previous: --switch keeps one"):
        delivery.roll_back(fake.server(), "mine")
    assert fake.models["mine:latest"].digest == "old"


@pytest.mark.parametrize("dies_at", range(1, 4))
def test_a_death_in_between_leaves_the_name_answering(fake: FakeOllama, dies_at: int) -> None:
    server, copies = fake.server(), []
    copy = server.copy

    def dying(source: str, destination: str) -> None:
        copies.append(source)
        if len(copies) == dies_at:
            raise KeyboardInterrupt
        copy(source, destination)

    server.copy = dying  # type: ignore[method-assign]
    for work in (
        lambda: delivery.put_in_place(server, Made("mine-next", "mine", "new"), keep=True),
        lambda: delivery.roll_back(server, "mine"),
    ):
        with contextlib.suppress(KeyboardInterrupt, UserError):
            work()
        assert fake.models["mine:latest"].digest in ("old", "new")
