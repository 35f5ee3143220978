"""Is what a live Ollama serves what was trained? Each link is broken once, at servers of each kind."""

from __future__ import annotations

import json
import string
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.support.ollama_server import FakeOllama, Model, chatml, running
from tests.support.settings import a_settings
from training import llama, ollama
from training.base_model import load_tokenizer
from training.checks import served, served_answers
from training.checks.served import Subject
from training.checks.served_prompts import Trained
from training.data import ChatTemplate, Turn, chat_template, tool_form
from training.errors import RunError
from training.llama import Answer
from training.ollama import CreateRequest
from training.to_gguf.chat import chat_of

pytestmark = pytest.mark.tiny
VERSIONS = ("0.9.6", "0.11.0", "0.24.0", "0.32.15")
TELL = VERSIONS[2:]  # servers that tell how they write a prompt
NUM_CTX = 2048


@pytest.fixture(scope="module")
def subject(embedded: Path, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    folder = tmp_path_factory.mktemp("served")
    tokenizer = load_tokenizer(embedded)
    template = chat_template.choose(None, a_settings(folder), tokenizer)
    (folder / "model.gguf").write_bytes(b"GGUF")
    path = folder / "Modelfile"
    chat = chat_of(template, adds_bos=False)
    path.write_text(ollama.compose("model.gguf", chat, stops=template.end_tokens, num_ctx=NUM_CTX))
    return Subject(
        trained=Trained(template=template, tokenizer=tokenizer, num_ctx=NUM_CTX),
        request=ollama.of_modelfile(path),
        gguf=folder / "model.gguf",
        exceptions=ollama.verify(path, chat).exceptions,
        questions=served_answers.questions(template, tokenizer, (), NUM_CTX),
    )


@pytest.fixture
def fake(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeOllama]:
    """A server that does all as it should, and llama.cpp with the same answer."""
    trained = subject.trained
    ids = tuple(trained.tokenizer("The sky is blue, said the cat.").input_ids)
    text = trained.tokenizer.decode(ids)
    monkeypatch.setattr(llama, "opened", lambda gguf, adapter: nullcontext(gguf))
    monkeypatch.setattr(llama, "metadata", lambda gguf: {"vocab": {"end": [2]}})
    monkeypatch.setattr(llama, "answer", lambda gguf, prompts, most: [Answer(text, ids, True)])
    one = FakeOllama(
        write=lambda messages: chat_template.prompt_served(trained.template, messages, True),
        count=lambda prompt: len(trained.tokens(prompt)),
        reply=lambda file, prompt, most: (text, "stop"),
    )
    one.models["mine:latest"] = Model({"template": subject.request.template, "jinja": ""}, "one")
    with running(one) as server:
        yield server


def prove(fake: FakeOllama, subject: Subject, version: str) -> served.Proof:
    fake.version = version
    return served.prove(fake.server(60), "mine", subject)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_server_that_serves_what_was_trained_passes_and_one_line_says_by_what(
    fake: FakeOllama, subject: Subject, version: str
) -> None:
    proof = prove(fake, subject, version)
    proof.require("")
    assert proof.served.template == "modelfile"
    assert (proof.served.counted_differently, proof.served.first_tokens_differently) == (0, 0)
    assert proof.served.stops == "3 of 3"
    assert proof.line.startswith(f"Ollama {version} serves what was trained, by the Modelfile's TEMPLATE: ")
    if version in TELL:
        assert proof.served.rendered_differently == 0
        assert "conversations written as trained, 8 of 8 read as the tokens trained, 3 of 3 answers begin" in proof.line
    else:
        assert proof.served.rendered_differently is None
        assert "it does not tell how it writes prompts, 8 of 8 read" in proof.line


def other_template(fake: FakeOllama, subject: Subject) -> None:
    write = fake.write
    fake.write = lambda messages: "[INST]" + write(messages)


def doubled_bos(fake: FakeOllama, subject: Subject) -> None:
    count = fake.count
    fake.count = lambda prompt: count(prompt) + 1


def eos_after_the_prompt(fake: FakeOllama, subject: Subject) -> None:
    count, eos = fake.count, subject.trained.template.eos
    fake.count = lambda prompt: count(prompt + eos)
    fake.reply = lambda file, prompt, most: ("", "stop")


def lost_stop(fake: FakeOllama, subject: Subject) -> None:
    text = fake.reply(None, "", 9)[0]
    fake.reply = lambda file, prompt, most: (text + "<|im_end|>\nand then he went home", "length")


def other_file(fake: FakeOllama, subject: Subject) -> None:
    fake.reply = lambda file, prompt, most: ("Something else.", "stop")


def shown_as_thoughts(fake: FakeOllama, subject: Subject) -> None:
    fake.thinks = True


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("broken", "field", "said"),
    [
        (other_template, "rendered_differently", "training has .* the server writes"),
        (doubled_bos, "counted_differently", r"the server reads \d+ tokens, training read \d+"),
        (eos_after_the_prompt, "counted_differently", r"the server reads \d+ tokens, training read \d+"),
        (lost_stop, "stops", r"does not end within \d+ tokens, and llama.cpp ends it"),
        (other_file, "first_tokens_differently", "token 1 of an answer is not llama.cpp's on the same file"),
        (shown_as_thoughts, "first_tokens_differently", "the answer is shown as thoughts, and none were trained"),
    ],
)
def test_each_broken_link_is_caught_by_the_check_that_should(
    fake: FakeOllama,
    subject: Subject,
    monkeypatch: pytest.MonkeyPatch,
    version: str,
    broken: Callable,
    field: str,
    said: str,
) -> None:
    width = len(subject.trained.tokenizer)
    monkeypatch.setattr(llama, "logits", lambda gguf, sequences, first: [np.arange(width, dtype=np.float32)[None]])
    broken(fake, subject)
    proof = prove(fake, subject, version)
    if broken is other_template and version not in TELL:
        field, said = "counted_differently", "the server reads"
    assert getattr(proof.served, field) not in (0, None, "3 of 3")
    with pytest.raises(RunError, match=said) as error:
        proof.require("mine answers as before")
    assert "does not serve what was trained" in str(error.value)
    assert error.value.safe == "mine answers as before"


def test_a_near_tie_is_said_and_passes(fake: FakeOllama, subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    words = subject.trained.tokenizer
    ours, theirs = words("The").input_ids[0], words("A").input_ids[0]
    row = np.full((1, len(words)), -9, np.float32)
    row[0, ours], row[0, theirs] = 1.0, 0.9
    monkeypatch.setattr(llama, "logits", lambda gguf, sequences, first: [row])
    fake.reply = lambda file, prompt, most: ("A sky is blue.", "stop")
    proof = prove(fake, subject, "0.32.15")
    proof.require("")
    assert (proof.served.first_tokens_differently, proof.served.near_ties) == (0, 3)
    assert "3 of 3 answers begin as llama.cpp's, 3 by a near tie" in proof.line
    assert "token 1 of an answer is another one, nearly as likely (0.10 nats)" in proof.notes
    row[0, theirs] = -3.0
    assert prove(fake, subject, "0.32.15").served.first_tokens_differently == 3


def test_a_replaced_template_is_told_where_a_server_does_not_tell_how_it_writes(
    fake: FakeOllama, subject: Subject
) -> None:
    fake.breaks = {"template": "{{ .System }} {{ .Prompt }}"}
    replaced = prove(fake, subject, "0.9.6")
    assert replaced.failures[0].startswith("another chat template stands there")
    with pytest.raises(RunError, match="OLLAMA_GO_TEMPLATE=true in its server's environment makes it use TEMPLATE"):
        replaced.require("")
    proof = prove(fake, subject, "0.24.0")
    proof.require("")
    assert proof.served.template == "other", "which writes the same prompts, as is seen there"


def test_a_renderer_of_the_servers_own_is_proved_by_what_it_writes(fake: FakeOllama, subject: Subject) -> None:
    fake.breaks = {"renderer": "gemma4"}
    proof = prove(fake, subject, "0.32.15")
    assert (proof.served.template, proof.failures) == ("renderer", ())
    fake.write = chatml
    assert prove(fake, subject, "0.32.15").failures


def test_without_the_file_here_the_first_tokens_are_left_out(fake: FakeOllama, subject: Subject) -> None:
    fake.version = "0.32.15"
    proof = served.prove(fake.server(60), "mine", replace(subject, gguf=None))
    assert proof.served.first_tokens_differently is None
    assert "llama.cpp" not in proof.line


def test_outer_white_space_excuses_no_other_word(fake: FakeOllama, subject: Subject) -> None:
    write = fake.write

    def wide(text: str) -> bool:
        return text.strip() != text.strip(string.whitespace)

    fake.write = lambda messages: write(messages) + "Well, " * any(wide(one["content"]) for one in messages)
    with pytest.raises(RunError, match="does not serve what was trained"):
        prove(fake, subject, "0.32.15").require("")


def test_outer_white_space_that_llama_cpp_leaves_is_said_and_fails_nothing(fake: FakeOllama, subject: Subject) -> None:
    write = fake.write
    fake.write = lambda messages: write(messages).replace("x \u3000\n", "x")
    proof = prove(fake, subject, "0.32.15")
    proof.require("")
    assert any(note.endswith("of llama.cpp: outer white space") for note in proof.notes)


def test_a_server_that_shows_thoughts_in_the_text_is_told_of_in_a_line(fake: FakeOllama, subject: Subject) -> None:
    thinking = replace(subject, trained=replace(subject.trained, thoughts=True))
    (note,) = (note for note in prove(fake, thinking, "0.24.0").notes if "trained with thoughts" in note)
    assert "they stand in the text of an answer" in note
    assert not any("trained with thoughts" in note for note in prove(fake, subject, "0.24.0").notes)
    fake.models["mine:latest"].body["jinja"] = "<think></think>"
    assert not any("trained with thoughts" in note for note in prove(fake, thinking, "0.32.15").notes)


# ---- functions and calls -----------------------------------------------------------------------------------------

QWEN = Path(sys.prefix) / "llama.cpp/models/templates/Qwen-Qwen2.5-7B-Instruct.jinja"


@pytest.fixture
def with_tools(fake: FakeOllama, subject: Subject, tmp_path: Path) -> Subject:
    """Rows with functions were trained, in the template of a family that writes them; the server does as it should."""
    tokenizer = subject.trained.tokenizer
    template = chat_template.choose(None, a_settings(tmp_path, **{"Model.CHAT_TEMPLATE": str(QWEN)}), tokenizer)
    trained = Trained(template=template, tokenizer=tokenizer, num_ctx=NUM_CTX, tools=tool_form.OLLAMA)
    fake.models["mine:latest"] = Model({"template": "{{ range .Messages }}", "jinja": template.exported}, "one")
    fake.write = lambda messages: chat_template.prompt_served(template, messages, True)
    fake.write_tools = lambda messages, tools: served_as(template, messages, tool_form.tools(json.dumps(tools), {}))
    return replace(subject, trained=trained, questions=())


def served_as(template: ChatTemplate, messages: list[dict], tools: str) -> str:
    """What Ollama hands to a template: functions and calls in its own form."""
    for call in (call for m in messages for call in m.get("tool_calls", ())):
        call.setdefault("id", "")
    turns = [
        Turn(m["role"], m["content"], more=json.dumps({k: v for k, v in m.items() if k not in ("role", "content")}))
        for m in messages
    ]
    formed = [tool_form.turn(turn)[0] if "tool_calls" in turn.more else turn for turn in turns]
    return chat_template.render(template, formed, True, "" if tools == "[]" else tools)


def test_functions_that_are_served_as_trained_pass_and_the_line_says_so(fake: FakeOllama, with_tools: Subject) -> None:
    proof = prove(fake, with_tools, "0.32.15")
    proof.require("")
    assert proof.served.tools == "11 of 11"
    assert proof.line.endswith("with functions 11 of 11")


def test_functions_in_another_order_than_trained_are_caught(fake: FakeOllama, with_tools: Subject) -> None:
    template = with_tools.trained.template
    fake.write_tools = lambda messages, tools: served_as(template, messages, json.dumps(tools, ensure_ascii=False))
    proof = prove(fake, with_tools, "0.32.15")
    with pytest.raises(RunError, match="functions: at character .* training has .* the server writes") as error:
        proof.require("")
    assert "does not serve what was trained" in str(error.value)
    assert proof.served.tools == "1 of 11", "the chat in which none are offered"


@pytest.mark.parametrize("version", ["0.24.0", "0.32.15"])
def test_a_template_that_writes_functions_is_asked_for_them_on_every_server(
    fake: FakeOllama, with_tools: Subject, version: str
) -> None:
    by_name = replace(with_tools.trained.template, tools_by_name=True)
    text = "{{ range .Tools }}{{ end }}{{ range .Messages }}{{ range .ToolCalls }}{{ end }}{{ end }}"
    fake.models["mine:latest"] = Model({"template": text, "jinja": by_name.exported}, "one")
    fake.write_tools = lambda messages, tools: served_as(by_name, messages, tool_form.tools(json.dumps(tools), {}))
    one = replace(with_tools, trained=replace(with_tools.trained, template=by_name), request=requesting(text))
    proof = prove(fake, one, version)
    proof.require("")
    assert (proof.served.tools, proof.served.template) == ("11 of 11", "modelfile")
    unordered = replace(one, trained=with_tools.trained)
    assert prove(fake, unordered, version).served.tools != "11 of 11", "trained in another order"


def requesting(template: str) -> CreateRequest:
    return CreateRequest(Path("Modelfile"), said={"template": template})


def test_functions_of_which_the_server_reads_other_tokens_are_caught(fake: FakeOllama, with_tools: Subject) -> None:
    fake.count = lambda prompt: len(with_tools.trained.tokens(prompt)) + ("# Tools" in prompt)
    with pytest.raises(RunError, match=r"functions: the server reads \d+ tokens, training read \d+"):
        prove(fake, with_tools, "0.32.15").require("")


def test_rows_own_form_is_no_failure_where_it_was_asked_for(fake: FakeOllama, with_tools: Subject) -> None:
    own = replace(with_tools, trained=replace(with_tools.trained, tools=tool_form.OWN))
    proof = prove(fake, own, "0.32.15")
    proof.require("")
    assert proof.served.tools == "0 of 11"
    (note,) = (note for note in proof.notes if "TOOL_FORM = own" in note)
    assert note.startswith("functions are served otherwise than trained")


def test_a_server_that_takes_no_functions_is_told_of_in_a_line(fake: FakeOllama, with_tools: Subject) -> None:
    proof = prove(fake, with_tools, "0.24.0")
    proof.require("")
    assert proof.served.tools == "refused"
    assert any("this Ollama refuses requests with them: TEMPLATE knows none" in note for note in proof.notes)
    assert not any("tools" in body for body in fake.bodies), "each would be an error"


def test_of_rows_without_functions_none_are_asked(fake: FakeOllama, with_tools: Subject) -> None:
    plain = replace(with_tools, trained=replace(with_tools.trained, tools=""))
    assert prove(fake, plain, "0.32.15").served.tools == ""
    assert not any("tools" in body for body in fake.bodies)


def test_what_the_server_refuses_to_write_is_a_failure_with_its_words(fake: FakeOllama, with_tools: Subject) -> None:
    fake.breaks = {"functions": "No user query found"}
    with pytest.raises(RunError, match="functions: the server refuses it: .*No user query found"):
        prove(fake, with_tools, "0.32.15").require("")


def test_a_template_that_refuses_calls_without_an_id_is_told_of(fake: FakeOllama, with_tools: Subject) -> None:
    assert not any("without an id" in note for note in prove(fake, with_tools, "0.32.15").notes)
    fake.breaks = {"no id": "Tool call IDs should be alphanumeric strings with length 9!"}
    proof = prove(fake, with_tools, "0.32.15")
    proof.require("")
    (note,) = (note for note in proof.notes if "without an id" in note)
    assert note.endswith("Tool call IDs should be alphanumeric strings with length 9! (400)")
