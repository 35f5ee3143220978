"""Chat templates that others wrote: what they do is their refusal, and takes bounded time and memory."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from training.data import ChatTemplate, Row, Turn, chat_template, encoding, template_trial
from training.data.encoding import NothingToTrain
from training.errors import UserError

HELLO = [Turn("user", "Hello")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("jinja", "words"),
    [
        ("{{ 1 / 0 }}", "the chat template refuses: ZeroDivisionError: division by zero"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "the chat template refuses: RecursionError: "),
        ("{{ 'a'.encode('zzz') }}", "the chat template refuses: LookupError: unknown encoding: zzz"),
        ("{{ raise_exception('\\x1b]0;x\\x07') }}", r"the chat template refuses: \x1b]0;x\x07"),
        ("{{ '\\ud800' }}", "the chat template writes a NUL character or half a character, which no tokenizer takes"),
        ("{{ '\\0' }}", "the chat template writes a NUL character or half a character, which no tokenizer takes"),
        (
            "{% for i in range(6000) %}{{ 'a' * 1000 }}{% endfor %}",
            "the chat template refuses: ValueError: it writes more than 4,000,020 characters",
        ),
    ],
)
def test_whatever_a_template_does_is_its_refusal_in_words_that_a_terminal_may_see(jinja: str, words: str) -> None:
    with pytest.raises(UserError) as refused:
        chat_template.render(ChatTemplate(jinja=jinja, source=""), HELLO)
    assert str(refused.value).startswith(words)


@pytest.mark.slow
def test_work_without_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_trial, "SECONDS", 1)
    with pytest.raises(UserError, match="^the model's own: the chat template is not rendered within 1 seconds; "):
        template_trial.check("the model's own", _endless)


def _endless() -> None:
    while True:
        sum(range(1000))


@pytest.fixture
def _linux() -> Iterator[None]:
    if sys.platform != "linux":
        pytest.skip("processes are not made by copying here")
    yield


@pytest.mark.slow
@pytest.mark.usefixtures("_linux")
def test_work_that_takes_too_much_memory_is_refused_and_other_work_is_not() -> None:
    with pytest.raises(UserError, match="^the model's own: a short chat takes more than 1 GB of memory"):
        template_trial.check("the model's own", lambda: bytearray(2 << 30))
    template_trial.check("the model's own", lambda: None)
    template_trial.check("the model's own", lambda: 1 / 0)  # told when it is rendered here


OPENS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}<think>\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
CLOSES = OPENS.replace("assistant\n<think>\n{% endif %}", "assistant\n<think>\n</think>\n\n{% endif %}")


def _answer(jinja: str, answer: str) -> str:
    template = ChatTemplate(
        jinja=jinja, source="", turn_end="<|im_end|>", tail="<|im_end|>\n", opens_think=jinja == OPENS
    )
    row = Row((*HELLO, Turn("assistant", answer)), None, "a.jsonl", 1)
    (piece,) = encoding.plan_row(template, row, "all", "completion").pieces
    return piece.prompt.rpartition("assistant\n")[2] + piece.answer


@pytest.mark.slow
@pytest.mark.parametrize("start", ["", "<think>\n"])
def test_thoughts_are_closed_once_in_what_is_trained(start: str) -> None:
    thought = start + "Adding gives 0.\n</think>\n\nIt is 0."
    assert _answer(OPENS, thought) == "<think>\nAdding gives 0.\n</think>\n\nIt is 0.<|im_end|>"
    assert _answer(OPENS, "It is 0.") == "<think>\n</think>\n\nIt is 0.<|im_end|>"
    assert _answer(CLOSES, thought) == "<think>\n</think>\n\nIt is 0.<|im_end|>"


@pytest.mark.slow
def test_an_answer_that_closes_its_thoughts_twice_itself_is_refused() -> None:
    with pytest.raises(
        NothingToTrain, match="^the answer closes its thoughts twice: </think> stands in it more than once"
    ):
        _answer(OPENS, "one</think>two</think>three")
