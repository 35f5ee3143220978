"""Functions, calls and results in a TEMPLATE: the pieces found and proved, and what Go makes of them."""

from __future__ import annotations

from datetime import datetime

import pytest

from tests.support.jinja_files import BOS, EOS, LLAMA_CPP, TRL
from training.ollama import Chat, compose, go_template, modelfile, template_probe, tool_parts, verify, writes_functions
from training.ollama.template_parts import Pieces, Refusal
from training.ollama.tool_parts import Functions, Message, RenderTools, ToolPieces, call, said

PROVED = "Qwen-Qwen2.5-7B-Instruct", "Qwen-Qwen3-0.6B", "Qwen-QwQ-32B", "ibm-granite-granite-4.0", "qwen3_instruct_2507"


def jinja_of(name: str) -> str:
    folder = TRL if name.startswith("qwen3") else LLAMA_CPP
    return (folder / f"{name}.jinja").read_text(encoding="utf-8")


def renderer(jinja: str) -> RenderTools:
    template = template_probe.environment(datetime(2026, 3, 1)).from_string(jinja)
    context = {"documents": None, "bos_token": BOS, "eos_token": EOS}

    def render(messages: list[Message], offered: Functions, ask: bool) -> str:
        return template.render(messages=messages, tools=list(offered) or None, add_generation_prompt=ask, **context)

    return render


def taken_apart(jinja: str) -> Pieces:
    found = template_probe.derive(chat_of(jinja).render, BOS, EOS, jinja)
    assert isinstance(found, Pieces), found
    return found


def taken_apart_with_tools(jinja: str) -> tuple[Pieces, ToolPieces]:
    pieces = taken_apart(jinja)
    found = tool_parts.derive(renderer(jinja), pieces)
    assert isinstance(found, ToolPieces), found
    return pieces, found


def chat_of(jinja: str) -> Chat:
    render = renderer(jinja)
    return Chat(lambda messages, ask: render(messages, (), ask), jinja, BOS, EOS, with_functions=render)


def refused(jinja: str) -> str:
    found = tool_parts.derive(renderer(jinja), taken_apart(jinja))
    assert isinstance(found, Refusal), found
    return found.reason


@pytest.mark.tiny
@pytest.mark.parametrize("name", PROVED)
def test_go_writes_functions_calls_and_results_as_the_chat_template_does(ollama, name: str) -> None:
    pieces, tools = taken_apart_with_tools(jinja_of(name))
    template, render = go_template.go_template(pieces, True, tools), renderer(jinja_of(name))
    for what, messages, offered in tool_parts.battery():
        got = ollama(template=template, messages=list(messages), tools=list(offered) or None)["text"]
        assert got == render(messages, offered, True), what
    assert tools.conversations == 56


@pytest.mark.tiny
def test_go_gets_parameters_and_arguments_in_the_order_of_their_names(ollama) -> None:
    """Whatever a client sends; and what Go writes as an escape is written as Jinja writes it."""
    pieces, tools = taken_apart_with_tools(jinja_of(PROVED[0]))
    backwards = tool_parts.function(
        "f", "<&>", b={"type": "string"}, a={"description": "\u2028\u2029 \\ :,", "type": "x"}
    )
    asked, called = (
        tool_parts.said("user", "?"),
        tool_parts.call(("f", {"b": "\\u003c", "a": ["<\x01>", {"d": 1, "c": "\u2028"}]})),
    )
    chat = [asked, called, tool_parts.result("{}")]
    got = ollama(template=go_template.go_template(pieces, True, tools), messages=chat, tools=[backwards])["text"]
    # Of the fields of a parameter the order is fixed; within a value Go sorts all names.
    assert '"properties": {"a": {"type": "x", "description": "\u2028\u2029 \\\\ :,"}, "b": {"type": "string"}}' in got
    assert '"description": "<&>"' in got
    assert '"arguments": {"a": ["<\\u0001>", {"c": "\u2028", "d": 1}], "b": "\\\\u003c"}}' in got


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("meta-llama-Llama-3.1-8B-Instruct", "not written as JSON in one line"),
        ("mistralai-Mistral-Nemo-Instruct-2407", "system messages have no turn of their own"),
        ("Qwen3.5-4B", "not written as JSON in one line"),
    ],
)
def test_a_template_that_writes_functions_otherwise_is_refused_with_the_reason(name: str, reason: str) -> None:
    assert reason in refused(jinja_of(name))


@pytest.mark.parametrize(
    ("what", "instead"),
    [
        ("{{- tool | tojson }}", "{{- tool | tojson(sort_keys=true) }}"),
        ("tool_call.arguments | tojson", "tool_call.arguments | tojson | replace('1', 'one')"),
        ("'\\n</tool_response>'", "'\\n</tool_response>' + ('.' if loop.index0 > 4 else '')"),
    ],
)
def test_a_template_that_does_more_than_its_pieces_fails_the_proof(what: str, instead: str) -> None:
    jinja = jinja_of(PROVED[0])
    assert what in jinja
    refused(jinja.replace(what, instead))


@pytest.mark.slow
def test_a_server_that_would_use_the_ggufs_template_all_the_same_is_given_no_functions_in_this_one() -> None:
    """One that knows thinking, too: the order would not be the one that was trained."""
    assert writes_functions(chat_of(jinja_of("Qwen-Qwen2.5-7B-Instruct")))
    assert not writes_functions(chat_of(jinja_of("Qwen-Qwen3-0.6B")))
    assert not modelfile.prefers_jinja(jinja_of("Qwen-Qwen2.5-7B-Instruct"), with_functions=True)


@pytest.mark.slow
def test_the_modelfile_says_that_functions_were_proved_and_its_check_holds_them(tmp_path) -> None:
    chat = chat_of(jinja_of(PROVED[0]))
    path = tmp_path / "Modelfile"
    path.write_text(compose("m.gguf", chat, stops=["<|im_end|>"], num_ctx=512), encoding="utf-8")
    text = path.read_text(encoding="utf-8")
    assert "# With functions it is equal in 56 conversations.\n" in text
    assert "later use the chat template in the GGUF" not in text
    assert verify(path, chat, ["<|im_end|>"]).passed
    path.write_text(text.replace("</tools>\n\nFor", "</tools>\nFor"), encoding="utf-8")
    assert "TEMPLATE is not the chat template" in verify(path, chat, ["<|im_end|>"]).note


@pytest.mark.tiny
def test_words_before_a_call_are_written_with_one_line_break_whatever_a_server_left_them_with(ollama) -> None:
    """A streamed answer keeps the one that stands before the call with the words."""
    pieces, tools = taken_apart_with_tools(jinja_of(PROVED[0]))
    template = go_template.go_template(pieces, True, tools)
    for words in ("Let me see.", "Let me see.\n", "Let me see.\n\n"):
        chat = [said("user", "?"), call(("now", {}), text=words), tool_parts.result("12")]
        assert "assistant\nLet me see.\n<tool_call>" in ollama(template=template, messages=chat)["text"]
    plain = [said("user", "?"), said("assistant", "x\n"), said("user", "?")]
    assert "assistant\nx\n<|im_end|>" in ollama(template=template, messages=plain)["text"]


@pytest.mark.tiny
def test_ollama_finds_a_call_in_an_answer_by_the_first_text_after_tool_calls(ollama) -> None:
    """tools/template.go, findToolCallNode and findTextNode: the mark is what stands there up to a brace."""
    pieces, tools = taken_apart_with_tools(jinja_of(PROVED[0]))
    template = go_template.go_template(pieces, False, tools)
    first = template.partition("{{- if .ToolCalls }}")[2].partition("{{- if $n }}")[2]
    assert first.startswith("\n<tool_call>\n")
    assert ollama(template=template, messages=[said("user", "x")])["call"] == "<tool_call>"
    # goTemplateHasToolRoundTrip, by which 0.32 knows that TEMPLATE can do as much as the chat template
    assert all(word in template for word in ("range .Tools", ".ToolCalls", 'eq .Role "tool"'))
