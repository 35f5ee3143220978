"""Are thoughts served as they were trained? Each link is broken once."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.ollama_server import FakeOllama, Model, running
from tests.support.settings import a_settings
from training import ollama
from training.base_model import load_tokenizer
from training.checks import served, thinking_served
from training.checks.served import Subject
from training.checks.served_prompts import Prompts, Trained
from training.data import chat_template, tool_form
from training.errors import RunError
from training.to_gguf.chat import chat_of, functions_by_name

pytestmark = pytest.mark.tiny
QWEN3 = Path(sys.prefix) / "llama.cpp/models/templates/Qwen-Qwen3-0.6B.jinja"
NUM_CTX = 2048


@pytest.fixture(scope="module")
def subject(embedded: Path, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """Rows with thoughts and functions were trained, in the template of a family that writes both."""
    folder = tmp_path_factory.mktemp("thinking")
    tokenizer = load_tokenizer(embedded)
    template = chat_template.choose(None, a_settings(folder, **{"Model.CHAT_TEMPLATE": str(QWEN3)}), tokenizer)
    template = replace(functions_by_name(template), thinks=True)
    chat = chat_of(template, adds_bos=False)
    path = folder / "Modelfile"
    (folder / "model.gguf").write_bytes(b"GGUF")
    path.write_text(ollama.compose("model.gguf", chat, stops=template.end_tokens, num_ctx=NUM_CTX))
    trained = Trained(template=template, tokenizer=tokenizer, num_ctx=NUM_CTX, thoughts=True, tools=tool_form.OLLAMA)
    exceptions = ollama.verify(path, chat).exceptions
    return Subject(trained=trained, request=ollama.of_modelfile(path), exceptions=exceptions)


@pytest.fixture
def fake(subject: Subject) -> Iterator[FakeOllama]:
    """A server that does all as it should."""
    chat = chat_of(subject.trained.template, adds_bos=False)

    def write(messages: list[dict], tools: list[dict], think: bool) -> str:
        named = [{"name" if key == "tool_name" else key: value for key, value in m.items()} for m in messages]
        return chat.with_thoughts(named, tools, True, think)

    one = FakeOllama(
        write=lambda messages: write(messages, [], True),
        write_tools=lambda messages, tools: write(messages, tools, True),
        write_thoughts=write,
        count=lambda prompt: len(subject.trained.tokens(prompt)),
    )
    one.models["mine:latest"] = Model(
        {"template": subject.request.template, "jinja": subject.trained.template.exported}, "one"
    )
    with running(one) as server:
        yield server


def asked(fake: FakeOllama, subject: Subject, version: str = "0.32.15") -> Prompts:
    fake.version = version
    server = fake.server(60)
    return thinking_served.asked(server, "mine", subject.trained, server.show("mine"), subject.exceptions)


@pytest.mark.parametrize("version", ["0.24.0", "0.32.15"])
def test_thoughts_that_are_served_as_trained_pass_and_the_line_says_so(
    fake: FakeOllama, subject: Subject, version: str
) -> None:
    fake.version = version
    proof = served.prove(fake.server(60), "mine", subject)
    assert proof.served.template == "modelfile"
    assert not [failure for failure in proof.failures if "thoughts" in failure]
    assert proof.line.endswith("with thoughts 72 of 72")


def test_thoughts_of_earlier_answers_that_are_not_dropped_are_caught(fake: FakeOllama, subject: Subject) -> None:
    write = fake.write_thoughts
    fake.write_thoughts = lambda messages, tools, think: write(messages, tools, think).replace(
        "assistant\nFar.", "assistant\n<think>\nHm.\n</think>\n\nFar.", 1
    )
    assert any(failure.startswith("an answer with thoughts: at character") for failure in asked(fake, subject).failures)
    fake.version = "0.32.15"
    with pytest.raises(RunError, match="an answer with thoughts"):
        served.prove(fake.server(60), "mine", subject).require("")


def test_a_server_that_does_not_heed_think_is_caught(fake: FakeOllama, subject: Subject) -> None:
    write = fake.write_thoughts
    fake.write_thoughts = lambda messages, tools, think: write(messages, tools, True)
    found = asked(fake, subject)
    assert found.rendered_differently == 36
    assert all(", with thinking off: " in failure for failure in found.failures)


def test_thoughts_of_which_the_server_reads_other_tokens_are_caught(fake: FakeOllama, subject: Subject) -> None:
    fake.count = lambda prompt: len(subject.trained.tokens(prompt)) + 1
    assert asked(fake, subject).counted_differently == 2


def test_a_server_that_refuses_a_chat_with_thoughts_is_caught_with_its_words(
    fake: FakeOllama, subject: Subject
) -> None:
    fake.breaks = {"functions": "no functions here"}
    found = asked(fake, subject)
    assert found.rendered_differently == 28
    assert "the server refuses it: " in found.failures[0] and "no functions here" in found.failures[0]


def test_a_server_that_knows_no_thoughts_with_this_model_is_not_asked(fake: FakeOllama, subject: Subject) -> None:
    fake.models["mine:latest"].body["template"] = "{{ range .Messages }}"
    assert asked(fake, subject, "0.24.0").conversations == 0
    plain = replace(subject.trained, template=replace(subject.trained.template, thinks=False, tools_by_name=False))
    assert asked(fake, replace(subject, trained=plain)).conversations == 0
    assert fake.bodies and not any("messages" in body for body in fake.bodies)


def test_by_another_template_than_ours_a_difference_is_said_and_fails_nothing(
    fake: FakeOllama, subject: Subject
) -> None:
    fake.models["mine:latest"].body.pop("template")
    fake.write_thoughts = lambda messages, tools, think: "nothing"
    fake.version = "0.32.15"
    proof = served.prove(fake.server(60), "mine", subject)
    assert proof.served.template == "gguf"
    assert not [failure for failure in proof.failures if "nothing" in failure]
    (note,) = (note for note in proof.notes if "thoughts are served otherwise" in note)
    assert "the server writes 'nothing'" in note
