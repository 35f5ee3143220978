"""Thoughts in a TEMPLATE, with thinking on and off: the pieces found and proved, and what Go makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.jinja_files import BOS, EOS, LLAMA_CPP, TRL
from training.ollama import (
    Chat,
    compose,
    go_template,
    modelfile,
    template_parts,
    template_probe,
    thought_parts,
    tool_parts,
    verify,
    writes_functions,
)
from training.ollama.template_parts import OUTER_SPACE, Pieces, Refusal
from training.ollama.thought_parts import AFTER_QUESTION, ALWAYS, NEVER, RenderThoughts, ThoughtPieces, thought
from training.ollama.tool_parts import Functions, Message, ToolPieces, call, result, said

QWEN3 = LLAMA_CPP / "Qwen-Qwen3-0.6B.jinja"


def renderer(jinja: str) -> RenderThoughts:
    """The chat template as it is trained: thoughts stand in the text of an answer, between their marks."""
    template = template_probe.environment(datetime(2026, 3, 1)).from_string(jinja)
    context = {"documents": None, "bos_token": BOS, "eos_token": EOS}

    def render(messages: Sequence[Message], offered: Functions, ask: bool, think: bool) -> str:
        more = {} if think else {"enable_thinking": False}
        chat = [trained(message) for message in messages]
        return template.render(messages=chat, tools=list(offered) or None, add_generation_prompt=ask, **context, **more)

    return render


def trained(message: Message) -> Message:
    kept = {name: value for name, value in message.items() if name != "thinking"}
    marked = f"<think>\n{message.get('thinking')}\n</think>\n\n{message['content']}"
    return {**kept, "content": marked} if message.get("thinking") else message


def chat_of(jinja: str, functions: bool = True) -> Chat:
    render = renderer(jinja)
    return Chat(
        lambda messages, ask: render(messages, (), ask, True),
        jinja,
        BOS,
        EOS,
        with_functions=(lambda messages, offered, ask: render(messages, offered, ask, True)) if functions else None,
        with_thoughts=render,
    )


def taken_apart(jinja: str, functions: bool = True) -> tuple[Pieces, ToolPieces | None, ThoughtPieces | Refusal]:
    chat = chat_of(jinja, functions)
    pieces = template_probe.derive(chat.render, BOS, EOS, jinja)
    assert isinstance(pieces, Pieces), pieces
    tools = tool_parts.derive(chat.with_functions, pieces) if chat.with_functions else None
    assert not isinstance(tools, Refusal), tools
    return pieces, tools, thought_parts.derive(renderer(jinja), pieces, tools, EOS, jinja)


def proved(jinja: str, functions: bool = True) -> tuple[Pieces, ToolPieces | None, ThoughtPieces]:
    pieces, tools, thoughts = taken_apart(jinja, functions)
    assert isinstance(thoughts, ThoughtPieces), thoughts
    return pieces, tools, thoughts


OF_THOUGHTS = thought_parts.of_thoughts(OUTER_SPACE)

# Template -> where it is, whether functions are written, which thoughts are, and in what the pieces may differ from it.
PROVED = {
    "Qwen3": (QWEN3, True, AFTER_QUESTION, []),
    "Qwen3 of TRL": (TRL / "qwen3.jinja", True, AFTER_QUESTION, []),
    "Qwen3 without functions": (QWEN3, False, AFTER_QUESTION, []),
    "Qwen3-Thinking": (QWEN3, True, AFTER_QUESTION, []),
    "SmolLM3": (LLAMA_CPP / "HuggingFaceTB-SmolLM3-3B.jinja", False, ALWAYS, [OF_THOUGHTS]),
    "DeepSeek-R1": (TRL / "deepseek_r1_distill.jinja", False, NEVER, []),
}


def source(name: str) -> str:
    jinja = PROVED[name][0].read_text(encoding="utf-8")
    if name == "Qwen3-Thinking":  # 2507: there is no switch, and every prompt opens a thought
        before, _, _ = jinja.rpartition("{%- if add_generation_prompt %}")
        jinja = before + "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n<think>\\n' }}{%- endif %}"
    return jinja


@pytest.mark.tiny
@pytest.mark.parametrize("name", PROVED)
@pytest.mark.parametrize("think", [True, False], ids=["think", "no think"])
def test_go_writes_chats_with_thoughts_as_the_chat_template_does(ollama, name: str, think: bool) -> None:
    _, functions, shown, exceptions = PROVED[name]
    pieces, tools, thoughts = proved(source(name), functions)
    assert (thoughts.shown, list(thoughts.exceptions)) == (shown, exceptions)
    template, render = go_template.go_template(pieces, True, tools, thoughts), renderer(source(name))
    chats = [(thought_parts.of_thoughts(kind), *rest) for kind, *rest in thought_parts.battery(functions)]
    chats += [("", what, messages, offered) for what, messages, offered in tool_parts.battery() if functions]
    chats += [(kind, what, messages, ()) for kind, what, messages in template_parts.battery()]
    excused = {*exceptions, *pieces.exceptions}
    for kind, what, messages, offered in chats:
        got = ollama(template=template, messages=list(messages), tools=list(offered) or None, think=think)["text"]
        if kind not in excused:
            assert got == thought_parts.expected(render, messages, offered, think), what
    assert thoughts.conversations == (92 if functions else 24) - 4 * len(exceptions)


@pytest.mark.tiny
@pytest.mark.parametrize("name", PROVED)
def test_a_request_that_says_nothing_of_thinking_is_one_with_thinking_on(ollama, name: str) -> None:
    """Ollama sets `think` where it finds the marks; a server that finds none leaves it, and hands on what it got."""
    pieces, tools, thoughts = proved(source(name), PROVED[name][1])
    template = go_template.go_template(pieces, True, tools, thoughts)
    chat = [said("user", "x")]
    assert ollama(template=template, messages=chat) == ollama(template=template, messages=chat, think=True)


@pytest.mark.tiny
@pytest.mark.parametrize("name", PROVED)
def test_ollama_finds_the_marks_of_thoughts_and_calls(ollama, name: str) -> None:
    """By which it takes them out of an answer: thinking/template.go and tools/template.go."""
    pieces, tools, thoughts = proved(source(name), PROVED[name][1])
    found = ollama(template=go_template.go_template(pieces, True, tools, thoughts), messages=[said("user", "x")])
    assert (found["thoughts"], found["answer"]) == ("<think>", "</think>")
    assert found["call"] == ("<tool_call>" if tools else "{")
    without = ollama(template=go_template.go_template(pieces, True, tools), messages=[said("user", "x")])
    assert (without["thoughts"], without["answer"]) == ("", "")


@pytest.mark.tiny
def test_thoughts_that_come_back_as_the_server_gave_them_are_written_as_they_were_trained(ollama) -> None:
    """What stands between the marks but for the white space in front: the line break before the end mark stays."""
    template = go_template.go_template(*template_of(QWEN3.read_text(encoding="utf-8")))
    for thoughts in ("Hm.", "Hm.\n", "\n\nHm.\n\n", "  one\n\n  two \n", "你好 😀\n", "x", "\nx"):
        chat = [said("user", "?"), thought(thoughts, call(("now", {}))), result("12")]
        assert (
            f"<think>\n{thoughts.strip(chr(10))}\n</think>\n\n<tool_call>\n"
            in ollama(template=template, messages=chat, think=True)["text"]
        )
    chat = [said("user", "?"), thought("\n\n", call(("now", {}))), result("12")]
    assert "<think>\n\n</think>\n\n<tool_call>" in ollama(template=template, messages=chat, think=True)["text"]


def template_of(jinja: str) -> tuple[Pieces, bool, ToolPieces | None, ThoughtPieces]:
    pieces, tools, thoughts = proved(jinja)
    return pieces, True, tools, thoughts


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).map(str.strip).filter(bool)


@pytest.mark.slow
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_pieces_write_any_chat_with_thoughts_and_calls_as_the_chat_template_does(data: st.DataObject) -> None:
    """The battery is finite; here come chats that are not in it."""
    chat: list[Message] = [said("system", data.draw(texts))] if data.draw(st.booleans()) else []
    for _ in range(data.draw(st.integers(1, 3))):
        chat.append(said("user", data.draw(texts)))
        for _ in range(data.draw(st.integers(0, 2))):
            called = call(("weather", {"town": data.draw(texts)}), text=data.draw(st.just("") | texts))
            chat += [
                thought(data.draw(texts), called) if data.draw(st.booleans()) else called,
                result(data.draw(texts)),
            ]
        chat.append(thought(data.draw(st.just("") | texts), said("assistant", data.draw(texts))))
    chat.pop()  # up to where the model is asked
    think, offered = data.draw(st.booleans()), data.draw(st.sampled_from([(), tool_parts.OFFERED]))
    pieces, tools, thoughts = kept()
    got = thought_parts.join(pieces if think else thoughts.off, tools, thoughts, chat, offered)
    if not any(mark in str(one) for one in chat for mark in ("think>", "tool_response>")):
        assert got == thought_parts.expected(renderer(source("Qwen3")), chat, offered, think)


_kept: list[tuple[Pieces, ToolPieces | None, ThoughtPieces]] = []


def kept() -> tuple[Pieces, ToolPieces | None, ThoughtPieces]:
    if not _kept:
        _kept.append(proved(source("Qwen3")))
    return _kept[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "instead"),
    [
        ("loop.index0 > ns.last_query_index", "loop.index0 > ns.last_query_index and loop.index0 < 5"),
        ("'\\n</think>\\n\\n' + content", "'\\n</thoughts>\\n\\n' + content"),
        ("reasoning_content.strip('\\n')", "reasoning_content | upper"),
        ("'\\n</think>\\n\\n' + content", "'\\n</think>\\n\\n' + ('.' if loop.index0 > 3 else '') + content"),
        (
            "{{- '<think>\\n\\n</think>\\n\\n' }}",
            "{{- '<think></think>' + (tools | length | string if tools else '') }}",
        ),
    ],
)
def test_a_template_that_does_more_than_its_pieces_fails_the_proof(what: str, instead: str) -> None:
    jinja = QWEN3.read_text(encoding="utf-8")
    assert what in jinja
    assert isinstance(taken_apart(jinja.replace(what, instead))[2], Refusal)


@pytest.mark.slow
def test_the_modelfile_says_that_thoughts_were_proved_and_its_check_holds_them(tmp_path: Path) -> None:
    chat = chat_of(QWEN3.read_text(encoding="utf-8"))
    path = tmp_path / "Modelfile"
    text = compose("m.gguf", chat, stops=["<|im_end|>"], num_ctx=512)
    assert "# With thoughts, thinking on and off, it is equal in 92 conversations.\n" in text
    assert "later use the chat template in the GGUF" not in text
    path.write_text(text, encoding="utf-8")
    assert verify(path, chat, ["<|im_end|>"]).passed
    path.write_text(text.replace("gt $i $query", "ge $i $query"), encoding="utf-8")
    assert "TEMPLATE is not the chat template" in verify(path, chat, ["<|im_end|>"]).note


@pytest.mark.slow
def test_thoughts_that_cannot_be_written_are_said_in_a_line(tmp_path: Path) -> None:
    jinja = QWEN3.read_text(encoding="utf-8").replace("reasoning_content.strip('\\n')", "reasoning_content | upper")
    text = compose("m.gguf", chat_of(jinja), stops=["<|im_end|>"], num_ctx=512)
    (line,) = (line for line in text.splitlines() if "TEMPLATE cannot write them" in line)
    assert line.startswith("# Thoughts are for Ollama 0.30.0 and later")
    assert ".Thinking" not in text


@pytest.mark.slow
def test_functions_are_written_for_all_servers_only_where_thoughts_can_be_written_too() -> None:
    """Else later servers pass TEMPLATE over, and the order of parameters is not the one that was trained."""
    jinja = source("Qwen3")
    assert writes_functions(chat_of(jinja))
    assert not writes_functions(replace(chat_of(jinja), with_thoughts=None))
    assert not writes_functions(chat_of(jinja.replace("reasoning_content.strip('\\n')", "reasoning_content | upper")))
    assert modelfile.prefers_jinja(jinja, with_functions=True) and modelfile.prefers_jinja(jinja, with_thoughts=True)
    assert not modelfile.prefers_jinja(jinja, with_functions=True, with_thoughts=True)


@pytest.mark.slow
def test_a_prompt_that_asks_for_no_thoughts_is_told_to_keep_to_a_format_with_think_off_only() -> None:
    """Ollama awaits thoughts first, where TEMPLATE has marks for them, and takes every answer as it comes otherwise."""
    chat = chat_of(source("Qwen3"))
    closed = "<think>\n\n</think>\n\n"

    def thoughtless(messages: Sequence[Message], offered: Functions, ask: bool, think: bool) -> str:
        return chat.with_thoughts(messages, offered, ask, True) + (closed if ask else "")

    without = replace(
        chat,
        render=lambda messages, ask: thoughtless(messages, (), ask, True),
        with_functions=lambda messages, offered, ask: thoughtless(messages, offered, ask, True),
        with_thoughts=thoughtless,
    )
    line = "# It asks for no thoughts, which Ollama awaits: a request with format needs think = false.\n"
    assert line in (text := compose("m.gguf", without, stops=["<|im_end|>"], num_ctx=512))
    assert "$off" not in text and ".Thinking" in text
    assert line not in compose("m.gguf", chat, stops=["<|im_end|>"], num_ctx=512)
