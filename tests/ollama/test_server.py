"""The client of a live Ollama, against the stand-in; the stand-in against what real servers answered."""

from __future__ import annotations

import io
import json
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.ollama_exchange import exchange
from tests.support.ollama_server import FakeOllama, Model, running
from training import ollama, to_ollama
from training.errors import MachineError, RunError, UserError
from training.ollama import CreateRequest, Server, asking, delivery
from training.ollama.address import Address
from training.ollama.server import beside

ANSWERS = Path(__file__).with_name("answers")
VERSIONS = sorted(path.stem for path in ANSWERS.glob("*.json"))
MODELFILE = 'FROM ./model.gguf\nTEMPLATE """{{ .Prompt }} it"""\nSYSTEM """Be\nbrief."""\nPARAMETER stop "<e>"\nPARAMETER stop "<f>"\nPARAMETER num_ctx 512\nPARAMETER top_p 0.5\nRENDERER qwen3\n'
CHAT = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def fake() -> Iterator[FakeOllama]:
    with running(FakeOllama()) as server:
        yield server


@pytest.fixture
def request_of(tmp_path: Path) -> Callable[..., ollama.CreateRequest]:
    def make(text: str = MODELFILE) -> ollama.CreateRequest:
        (tmp_path / "model.gguf").write_bytes(b"GGUF" * 1_000_000)
        (tmp_path / "Modelfile").write_text(text)
        return ollama.of_modelfile(tmp_path / "Modelfile")

    return make


@pytest.mark.parametrize("version", VERSIONS)
def test_the_stand_in_answers_as_the_real_servers_did(tmp_path: Path, version: str) -> None:
    (tmp_path / "tiny.F16.gguf").write_bytes(b"GGUF")
    with running(FakeOllama(version=version)) as fake:
        got = exchange("127.0.0.1", fake.port, tmp_path / "tiny.F16.gguf")
    wanted = json.loads((ANSWERS / f"{version}.json").read_text())
    assert wanted, "what a real server answered"
    for what, answer in wanted.items():
        assert got[what] == answer, what


def test_a_modelfile_becomes_a_request_with_all_that_it_says(request_of) -> None:
    request = request_of()
    assert request.stops == ["<e>", "<f>"]
    assert request.body("mine", {request.gguf: "ab"}) == {
        "model": "mine",
        "files": {"model.gguf": "sha256:ab"},
        "template": "{{ .Prompt }} it",
        "system": "Be\nbrief.",
        "renderer": "qwen3",
        "parameters": {"stop": ["<e>", "<f>"], "num_ctx": 512, "top_p": 0.5},
    }


def test_a_messages_text_loses_its_quotes_as_at_ollamas_reader(request_of) -> None:
    text = (
        'FROM base\nMESSAGE user "Hi"\nMessage assistant """Hello: you.\nSYSTEM is a word."""\nMESSAGE user so: what\n'
    )
    assert request_of(text).said["messages"] == [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello: you.\nSYSTEM is a word."},
        {"role": "user", "content": "so: what"},
    ]
    with pytest.raises(UserError, match="Modelfile:2: not a line that Ollama reads"):
        request_of("FROM base\nMESSAGE User Hi\n")


def test_a_draft_is_not_left_out_without_a_word(request_of) -> None:
    with pytest.raises(UserError, match=r"DRAFT ./d.gguf is not sent through the API; .*:  ollama create NAME -f /"):
        request_of("FROM ./model.gguf\nDRAFT ./d.gguf\n")


def test_an_adapter_goes_onto_a_model_that_is_there(request_of, tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    request = request_of("FROM base:1b\nADAPTER ./a.gguf\n")
    assert request.files == (tmp_path / "a.gguf",)
    body = request.body("mine", {tmp_path / "a.gguf": "cd"})
    assert (body["from"], body["adapters"]) == ("base:1b", {"a.gguf": "sha256:cd"})


def test_what_a_refused_switch_offers_is_what_was_typed(request_of, tmp_path: Path) -> None:
    own = request_of()
    assert to_ollama._without_switch(tmp_path, own, "mine").endswith(f"export_ollama.sh {tmp_path} mine")
    chosen = replace(own, gguf=tmp_path / "model.F16.gguf")
    assert to_ollama._without_switch(tmp_path, chosen, "mine").endswith(f" {tmp_path}/model.F16.gguf mine")
    adapter = CreateRequest(own.modelfile, base="base:1b", adapter=tmp_path / "a.gguf")
    assert to_ollama._without_switch(tmp_path, adapter, "mine").endswith(f" --adapter base:1b {tmp_path} mine")


@pytest.mark.parametrize(
    ("text", "said"), [("FROM ./no.gguf\n", "no file ./no.gguf beside it"), ("SYSTEM x\n", "no FROM")]
)
def test_a_modelfile_of_what_is_not_there_is_refused(request_of, text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        request_of(text)


def test_a_model_is_made_beside_its_name_and_takes_its_place_at_once(fake: FakeOllama, request_of) -> None:
    old = Model({}, "old")
    fake.models["team/mine:v1"] = old
    with delivery.made(fake.server(), request_of(), "team/mine:v1", lambda line: None) as model:
        assert model.name == "team/mine-next:v1"
        assert fake.models["team/mine:v1"] is old
        delivery.put_in_place(fake.server(), model)
    assert fake.models.keys() == {"team/mine:v1"}
    assert fake.models["team/mine:v1"].digest == model.digest != "old"


def test_a_file_that_is_there_is_not_sent_again(fake: FakeOllama, request_of) -> None:
    said: list[str] = []
    for _ in range(2):
        with delivery.made(fake.server(), request_of(), "mine", said.append):
            pass
    assert fake.calls.count("POST blob") == 1
    assert any("has model.gguf already" in line for line in said)


@pytest.mark.parametrize(
    ("breaks", "said"),
    [
        ({"blob": "die"}, "the line broke after .* of 4,000,000 bytes of model.gguf .*is there room on its disk"),
        ({"blob": "write /models/x: no space left on device"}, "no space left on device"),
        ({"blob": "hang"}, "nothing came in time|took in model.gguf"),
        ({"create": "die"}, "it broke off while it created the model"),
        ({"create": "write /models/x: no space left on device"}, "no space left on device"),
        ({"create": "hang"}, "it broke off while it created the model .nothing came in time"),
    ],
)
def test_what_breaks_at_the_server_is_one_message_and_the_old_model_answers(
    fake: FakeOllama, request_of, breaks: dict[str, str], said: str
) -> None:
    fake.models["mine:latest"] = old = Model({}, "old")
    fake.breaks = breaks
    server = fake.server(0.3 if "hang" in breaks.values() else 60)
    with pytest.raises(RunError, match=said) as error, delivery.made(server, request_of(), "mine", print):
        raise AssertionError("was made")
    assert "\n" not in str(error.value)
    assert fake.models == {"mine:latest": old}


def test_a_model_of_somebody_beside_the_name_is_left_alone(fake: FakeOllama, request_of) -> None:
    fake.models = {
        "my:latest": Model({}, "old"),
        "my-next:latest": Model({}, "own"),
        "my-previous:latest": Model({}, "1"),
    }
    there = dict(fake.models)
    said = "has a model my-next, .*Where it may go:  ollama rm my-next$"
    with pytest.raises(UserError, match=said), delivery.made(fake.server(), request_of(), "my", print):
        raise AssertionError("was made")
    with pytest.raises(UserError, match="a --rollback was killed .ollama cp my-next my-previous keeps it"):
        delivery.roll_back(fake.server(), "my")
    assert fake.models == there
    assert "POST blob" not in fake.calls, "nothing was sent for it"


def test_a_model_under_the_name_for_what_is_replaced_is_told_before_anything_is_sent(
    fake: FakeOllama, request_of
) -> None:
    fake.models["my-replaced:latest"] = own = Model({}, "own")
    with (
        pytest.raises(UserError, match="ollama rm my-replaced"),
        delivery.made(fake.server(), request_of(), "my", print),
    ):
        raise AssertionError("was made")
    assert "POST blob" not in fake.calls and fake.models == {"my-replaced:latest": own}


def test_a_switch_does_not_put_the_old_model_in_the_place_of_the_base(fake: FakeOllama, tmp_path: Path) -> None:
    request = CreateRequest(tmp_path / "Modelfile", base="Team/my-previous:latest")
    asked = Namespace(name="team/my", switch=True, modelfile=request.modelfile)
    with pytest.raises(UserError, match="which is the base: give another NAME"):
        to_ollama._able(fake.server(), request, asked, io.StringIO())


def test_a_name_that_cannot_have_another_one_beside_it_is_refused(fake: FakeOllama, request_of) -> None:
    name = "m" * 75 + "-next"
    fake.models[f"{name}:latest"] = Model({}, "old")
    with pytest.raises(UserError, match="is needed here"), delivery.made(fake.server(), request_of(), name, print):
        raise AssertionError("was made")
    assert fake.models.keys() == {f"{name}:latest"}


def test_a_name_that_somebody_changes_meanwhile_is_not_put_in_place(fake: FakeOllama, request_of) -> None:
    with (
        pytest.raises(RunError, match="somebody else"),
        delivery.made(fake.server(), request_of(), "mine", print) as model,
    ):
        fake.models["mine-next:latest"] = Model({}, "another")
        delivery.put_in_place(fake.server(), model)
    assert "mine:latest" not in fake.models


@pytest.mark.parametrize(
    ("listed", "asked"),
    [
        ("mine:latest", "library/Mine"),
        ("Mine:latest", "registry.ollama.ai/library/mine:Latest"),
        ("Team/mine:v1", "registry.ollama.ai/team/MINE:v1"),
        ("h.x:5000/library/mine:latest", "H.x:5000/library/mine"),
    ],
)
def test_a_name_is_known_however_it_is_spelt(fake: FakeOllama, request_of, listed: str, asked: str) -> None:
    fake.models[listed] = Model({}, "old")
    server = fake.server()
    assert server.digest(asked) == "old"
    assert server.digest(asked + "s") is None
    with delivery.made(server, request_of(), asked, print) as model:
        delivery.put_in_place(server, model, keep=True)
    assert len(fake.models) == 2
    assert fake.models[listed].digest == model.digest != "old"
    assert server.digest(beside(asked, "previous")) == "old"


def test_a_namespace_of_another_host_is_part_of_the_name(fake: FakeOllama) -> None:
    fake.models["mine:latest"] = Model({}, "old")
    assert fake.server().digest("h.x/library/mine") is None
    assert fake.server().digest("team/mine") is None


def test_a_model_that_the_server_does_not_list_takes_no_place(fake: FakeOllama) -> None:
    fake.models["mine:latest"] = old = Model({}, "old")
    with pytest.raises(RunError, match="does not list mine-next, which it has just made"):
        delivery.put_in_place(fake.server(), delivery.Made("mine-next", "mine", None))
    assert fake.models == {"mine:latest": old}


def test_a_server_that_is_not_there_is_the_machines_fault() -> None:
    with pytest.raises(MachineError, match=r"no Ollama answers at http://127.0.0.1:9 .*refused"):
        Server(Address(port=9)).version()


def test_a_server_that_hangs_is_given_up(fake: FakeOllama) -> None:
    fake.breaks = {"/api/version": "hang"}
    with pytest.raises(RunError, match="nothing came in time"):
        fake.server(0.2).version()


def test_what_is_no_ollama_is_told(fake: FakeOllama, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Server, "_whole", lambda *_: b"<html>Welcome</html>")
    with pytest.raises(RunError, match="is no Ollama: it says '<html>Welcome"):
        fake.server().version()


def test_a_server_behind_a_path_is_asked_there(fake: FakeOllama) -> None:
    Server(Address(port=fake.port, path="/some where/ollama")).version()
    assert fake.calls == ["GET /some%20where/ollama/api/version"]


def test_an_answer_that_goes_round_in_circles_is_cut_off(fake: FakeOllama) -> None:
    fake.models["mine:latest"] = Model({}, "one")
    fake.reply = lambda file, prompt, most: ("and so on, " * 5000, "length")
    answer = asking.answer(fake.server(), "mine", CHAT, 5000)
    assert answer.looped and not answer.stopped
    assert len(answer.text) < 1000
    fake.reply = lambda file, prompt, most: (" ".join(str(number) for number in range(2000)), "stop")
    answer = asking.answer(fake.server(), "mine", CHAT, 5000)
    assert answer.stopped and not answer.looped


@pytest.mark.parametrize("version", VERSIONS)
def test_an_answer_that_the_server_cuts_off_for_saying_one_token_only_goes_round_in_circles(
    fake: FakeOllama, version: str
) -> None:
    fake.version, fake.models["mine:latest"] = version, Model({}, "one")
    fake.reply = lambda file, prompt, most: ("ha " * 60, "length")
    answer = asking.answer(fake.server(), "mine", "Hi", 100)
    assert answer.looped and not answer.stopped
    assert answer.text == "ha " * 31, "as the server has sent it"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (("and so on " * 9999, "length"), "the answer only repeats itself: and so on .*\n.*OLLAMA_ANSWER_TOKENS=5000"),
        ((" ".join(map(str, range(999))), "length"), "the answer did not stop by itself within 1000 tokens: 0 1 2"),
        (("  ", "stop"), "the answer is empty$"),
    ],
)
def test_an_answer_that_is_none_is_told(fake: FakeOllama, request_of, answer: tuple[str, str], said: str) -> None:
    fake.models["mine:latest"] = Model({}, "one")
    fake.reply = lambda file, prompt, most: answer
    with pytest.raises(RunError, match=said):
        to_ollama.ask(fake.server(), "mine", request_of())


@pytest.mark.parametrize("written", ["0", "000", "1000000", "9999999999", "-1", "1.5", "1e3", " 5", "5\n", "\u0663"])
def test_a_limit_that_cannot_be_is_refused(monkeypatch: pytest.MonkeyPatch, written: str) -> None:
    monkeypatch.setenv("OLLAMA_ANSWER_SECONDS", written)
    with pytest.raises(UserError, match="whole numbers from 1 to 999999"):
        to_ollama._limit("OLLAMA_ANSWER_SECONDS", 300)


@pytest.mark.parametrize(("written", "seconds"), [("", 300), ("1", 1), ("0090", 90), ("999999", 999_999)])
def test_a_limit_is_a_decimal_number(monkeypatch: pytest.MonkeyPatch, written: str, seconds: int) -> None:
    monkeypatch.setenv("OLLAMA_ANSWER_SECONDS", written)
    assert to_ollama._limit("OLLAMA_ANSWER_SECONDS", 300) == seconds


def test_an_answer_that_is_shown_as_thoughts_is_none(fake: FakeOllama, request_of) -> None:
    fake.models["mine:latest"] = Model({}, "one")
    fake.thinks = True
    with pytest.raises(RunError, match="the answer is empty, all of it is shown as thoughts"):
        to_ollama.ask(fake.server(), "mine", request_of())


def test_a_server_that_dies_amid_an_answer_is_told(fake: FakeOllama) -> None:
    fake.models["mine:latest"] = Model({}, "one")
    fake.breaks = {"answer": "die"}
    with pytest.raises(RunError, match="broke off amid an answer"):
        asking.answer(fake.server(), "mine", CHAT, 50)


def test_a_server_of_old_does_not_tell_how_it_writes_a_prompt(fake: FakeOllama) -> None:
    fake.models["mine:latest"] = Model({}, "one")
    fake.version = "0.9.0"
    assert asking.rendered(fake.server(), "mine", CHAT) is None
    assert asking.counted(fake.server(), "mine", CHAT) == 10


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("mine", "mine-next"),
        ("a/mine:v1", "a/mine-next:v1"),
        ("h:1/a/mine", "h:1/a/mine-next"),
        ("m" * 80, "m" * 75 + "-next"),
    ],
)
def test_the_name_beside_another_is_a_name_too(name: str, wanted: str) -> None:
    assert beside(name, "next") == wanted
    assert not ollama.modelfile.model_name_problems(wanted)
