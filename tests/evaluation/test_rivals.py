"""--switch: a new model takes the place of the one in use only where its answers are no worse; --rollback goes back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.ollama_server import FakeOllama, Model, running
from training import to_ollama
from training.data import Item
from training.errors import MachineError, UserError
from training.evaluation import rivals
from training.ollama import Server, delivery
from training.ollama.address import Address
from training.ollama.delivery import Made
from training.ollama.server import NoServer

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


def test_a_model_that_stops_less_often_is_not_taken_even_where_that_may_be_chance(fake: FakeOllama) -> None:
    judged = judge(fake, right, lambda number: (EXPECTED[number], "length" if number == 3 else "stop"))
    assert judged.verdict == rivals.UNCLEAR
    assert "100% -> 92% stop by themselves" in judged.words


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


def test_the_same_switch_again_keeps_the_way_back(fake: FakeOllama, logged: list[str]) -> None:
    for _ in range(2):
        delivery.put_in_place(fake.server(), Made("mine-next", "mine", "new"), keep=True)
    assert fake.models["mine-previous:latest"].digest == "old"
    assert logged == ["mine is this very model already; mine-previous is as it was"]


def test_a_switch_to_what_is_there_already_says_that_there_is_no_way_back(fake: FakeOllama, logged: list[str]) -> None:
    fake.models["mine:latest"].digest = "new"
    delivery.put_in_place(fake.server(), Made("mine-next", "mine", "new"), keep=True)
    assert "mine-previous:latest" not in fake.models
    assert logged == ["mine is this very model already; mine-previous is not there: nothing was replaced"]


@pytest.mark.parametrize("keep", [True, False])
def test_what_is_replaced_leaves_the_servers_disk(fake: FakeOllama, keep: bool) -> None:
    fake.models["mine-previous:latest"] = Model({}, "older")
    delivery.put_in_place(fake.server(), Made("mine-next", "mine", "new"), keep=keep)
    kept = "old" if keep else "older"
    assert fake.models["mine-previous:latest"].digest == kept
    assert "mine-replaced:latest" not in fake.models
    assert fake.layers == {"new", kept}


def test_what_cannot_be_deleted_is_said_and_the_new_model_has_its_place(fake: FakeOllama, logged: list[str]) -> None:
    fake.breaks = {"delete": "the disk is read-only"}
    delivery.put_in_place(fake.server(), Made("mine-next", "mine", "new"))
    assert fake.models["mine:latest"].digest == "new"
    assert any("mine-replaced was not deleted" in line and "ollama rm mine-replaced" in line for line in logged)


def test_a_model_of_somebody_under_the_name_for_what_is_replaced_is_left_alone(fake: FakeOllama) -> None:
    fake.models["mine-replaced:latest"] = Model({}, "own")
    with pytest.raises(UserError, match="ollama rm mine-replaced"):
        delivery.put_in_place(fake.server(), Made("mine-next", "mine", "new"))
    assert (fake.models["mine:latest"].digest, fake.models["mine-replaced:latest"].digest) == ("old", "own")


@pytest.mark.parametrize(
    ("breaks", "placing", "said"),
    [
        ({}, False, "mine answers in Ollama as before"),
        ({}, True, "mine answers in Ollama as before"),
        ({"/api/tags": "no"}, False, "mine answers in Ollama as before"),
        ({"/api/tags": "no"}, True, "whether mine stands for the new model by now is not known"),
    ],
)
def test_after_a_failure_it_is_said_what_the_name_stands_for(
    fake: FakeOllama, breaks: dict[str, str], placing: bool, said: str
) -> None:
    fake.breaks = breaks
    assert to_ollama._stands(fake.server(), "mine", "old", placing).startswith(said)
    if placing and not breaks:
        fake.models["mine:latest"] = Model({}, "new")
        assert to_ollama._stands(fake.server(), "mine", "old", True) == "mine stands for another model than before"


def test_a_server_that_is_gone_amid_the_work_fails_the_export_with_what_is_safe(fake: FakeOllama) -> None:
    with pytest.raises(MachineError) as gone:
        Server(Address(port=9)).delete("mine")
    assert isinstance(gone.value, NoServer)
    failed = to_ollama._failed(gone.value, "mine answers in Ollama as before")
    assert failed.exit_code == 1
    assert "no Ollama answers at http://127.0.0.1:9" in str(failed)
    assert str(failed).endswith("\nmine answers in Ollama as before")


def test_without_a_previous_one_there_is_no_way_back(fake: FakeOllama) -> None:
    with pytest.raises(UserError, match="has no mine-previous: --switch keeps one"):
        delivery.roll_back(fake.server(), "mine")
    assert fake.models["mine:latest"].digest == "old"


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("dies_at", range(1, 3))
def test_a_death_amid_a_switch_leaves_the_name_answering(fake: FakeOllama, dies_at: int, keep: bool) -> None:
    with pytest.raises(KeyboardInterrupt):
        delivery.put_in_place(dying(fake, dies_at), Made("mine-next", "mine", "new"), keep=keep)
    assert fake.models["mine:latest"].digest == "old"


@pytest.mark.parametrize(("dies_at", "now"), [(1, "new"), (2, "new"), (3, "old")])
def test_a_death_amid_the_way_back_leaves_the_name_answering_and_loses_no_model(
    fake: FakeOllama, dies_at: int, now: str
) -> None:
    fake.models = {"mine:latest": Model({}, "new"), "mine-previous:latest": Model({}, "old")}
    with pytest.raises(KeyboardInterrupt):
        delivery.roll_back(dying(fake, dies_at), "mine")
    assert fake.models["mine:latest"].digest == now
    assert {model.digest for model in fake.models.values()} == {"old", "new"}


def dying(fake: FakeOllama, at: int) -> Server:
    """A server at whose copy number `at` the export is killed."""
    server, copies = fake.server(), []
    copy = server.copy

    def counted(source: str, destination: str) -> None:
        copies.append(source)
        if len(copies) == at:
            raise KeyboardInterrupt
        copy(source, destination)

    server.copy = counted  # type: ignore[method-assign]
    return server
