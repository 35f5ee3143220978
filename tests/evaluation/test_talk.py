"""A talk in a terminal: driven over a pseudo-terminal as a person would, and its parts by themselves."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import adopted
from tests.support.paths import ROOT
from tests.support.programs import finetune
from training import llama
from training.data import ChatTemplate, Turn
from training.errors import UserError
from training.evaluation import Answer, talk
from training.evaluation.talk import Talk
from training.evaluation.target import Target

ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")  # what readline sends to the terminal


class Terminal:
    """A program in a pseudo-terminal of 100 columns: what it shows, and keys for it."""

    def __init__(self, *command: str) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, b"\x1e\x00\x64\x00\x00\x00\x00\x00")  # 30 lines of 100 columns

        # Its own, so that Ctrl-C becomes a signal.
        self.process = adopted.Popen(
            [sys.executable, "-c", adopted.IN_TERMINAL, *command],
            stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            env={**os.environ, "TERM": "xterm", "PYTHONUTF8": "1"},
        )  # fmt: skip
        os.close(slave)
        self.shown = ""

    def until(self, pattern: str, seconds: float = 240, key: str = "") -> str:
        """Wait for a text that fits; gives what was shown up to its end, and begins anew after it.

        `key`: pressed every three seconds meanwhile, where the program may not listen yet.
        """
        end, press = time.monotonic() + seconds, time.monotonic()
        while not (found := re.search(pattern, self.shown, re.DOTALL)):
            assert time.monotonic() < end, f"no {pattern!r} in {self.shown!r}"
            if key and time.monotonic() > press:
                self.type(key)
                press = time.monotonic() + 3
            if select.select([self.master], [], [], 0.2)[0]:
                try:
                    self.shown += ANSI.sub("", os.read(self.master, 65536).decode("utf-8", "replace"))
                except OSError:  # the program has left, and its terminal with it
                    assert re.search(pattern, self.shown, re.DOTALL), f"ended before {pattern!r}: {self.shown!r}"
        text, self.shown = self.shown[: found.end()], self.shown[found.end() :]
        return text

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())


@contextmanager
def terminal(*command: str | Path) -> Iterator[Terminal]:
    made = Terminal(*map(str, command))
    try:
        yield made
    finally:
        made.process.kill()
        made.process.wait()
        os.close(made.master)


@pytest.mark.tiny
def test_a_talk_with_a_runs_gguf_file_answers_compares_and_leaves(undisturbed: Path) -> None:
    with terminal(
        ROOT / "training" / "finetune.py", "--config", undisturbed / "config.ini", "--chat", undisturbed
    ) as one:
        one.until(r"tiny\.Q4_K_M\.gguf: /help lists the commands.*\n> ")
        one.type("What is 3 and 3?\n")
        answer = one.until(r"3 and 3\?\r\n.+\r\n> ")
        assert len(answer.splitlines()) >= 2
        one.type("/system 用中文回答。\n")
        one.until(r"\(system: 用中文回答。\)\r\n> ")
        one.type("/compare What is 4 and 4?\n")
        sides = one.until(r"base +\| tuned\r\n-+ \| -+\r\n.+\r\n> ")
        assert "(loading the base model)" in sides
        one.type("/nonsense\n")
        one.until(r"\(/nonsense is not a command; /help lists them\)\r\n> ")
        one.type("/reset\n")
        one.until(r"forgotten\)\r\n> ")
        one.type("\x04")
        assert one.process.wait(timeout=120) == 0


@pytest.mark.tiny
def test_ctrl_c_stops_an_answer_that_streams_and_the_talk_goes_on(tiny_model: Path) -> None:
    with terminal(ROOT / "training" / "evaluate_model.py", "--interactive", "--base-model", tiny_model) as one:
        one.until(r"base: /help lists the commands.*\n> ")
        one.type("Tell me a long story.\n")
        one.until(r"story\.\r\n.{20}")  # it streams: there is text long before its 400 tokens are there
        one.type("\x03")
        one.until(r"\(stopped\)\r\n> ")
        one.until(r"\(Ctrl-D leaves\)\r\n> ", key="\x03")  # between prompt and reading, readline loses a key
        one.type("/compare x\n")
        one.until(r"\(there is no base model beside this one to compare it with\)\r\n> ")
        one.type("\x04")
        assert one.process.wait(timeout=120) == 0


@pytest.mark.tiny
def test_llama_cpp_stops_in_the_middle_and_goes_on_from_what_it_has_read(undisturbed: Path) -> None:
    prompt = list(range(1000, 1040))
    with llama.opened(undisturbed / "tiny.Q4_K_M.gguf") as process:
        request = {"do": "converse", "prompt": prompt, "max_tokens": 400, "tokens": 512}
        cut = process.ask(request, lambda event: process.stop())
        assert 0 < len(cut["ids"]) < 400 and not cut["stopped"]
        short = {**request, "max_tokens": 8}
        again = process.ask(short)["ids"]
        (fresh,) = llama.answer(undisturbed / "tiny.Q4_K_M.gguf", [prompt], 8)
        assert tuple(again) == fresh.ids  # what is read once is read right


@pytest.mark.tiny
def test_a_run_without_a_gguf_file_is_no_run_to_talk_to(undisturbed: Path, tmp_path: Path) -> None:
    ended = finetune("--config", undisturbed / "config.ini", "--chat", tmp_path)
    assert (ended.code, ended.stdout) == (2, "") and "not a run" in ended.stderr


class Speaker:
    """A stand-in that answers with what it was asked; it only has to be asked, not to be good."""

    name = "stand-in"

    def say(self, prompt, most, tell):
        tell("said")
        return Answer(text="said", ids=[1], stopped=True)

    def stop(self) -> None:
        pass


def made(context: int = 200, base=None) -> Talk:
    template = ChatTemplate("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<a>", "test")
    return Talk(speaker=Speaker(), template=template, tokens=lambda text: list(text), context=context, base=base)


def test_the_prompt_holds_the_system_text_and_the_turns_so_far(capsys: pytest.CaptureFixture[str]) -> None:
    one = made()
    talk.command(one, "/system Be brief.")
    talk.ask(one, "One?")
    ids, dropped = one.prompt("Two?")
    assert "".join(ids) == "<system>Be brief.<user>One?<assistant>said<user>Two?<a>" and dropped == 0
    talk.command(one, "/system")
    talk.command(one, "/reset")
    assert "".join(one.prompt("Two?")[0]) == "<user>Two?<a>"


def test_the_oldest_turns_give_way_when_the_talk_grows_too_long(capsys: pytest.CaptureFixture[str]) -> None:
    one = made(context=120)
    for number in range(6):
        talk.ask(one, f"Question number {number}?")
    assert "no longer fit" in capsys.readouterr().out and len(one.history) < 12
    assert one.history[0].role == "user" and one.history[-2] == Turn("user", "Question number 5?")
    with pytest.raises(UserError, match="the question has 220 tokens, and all of the talk may have 120"):
        one.prompt("x" * 211)


@pytest.mark.parametrize(("line", "said"), [("/compare", "a question must follow"), ("/x y", "/x is not a command")])
def test_a_wrong_command_is_told(line: str, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        talk.command(made(), line)


def test_two_answers_stand_side_by_side_also_in_chinese() -> None:
    lines = talk.beside("我是微调助手，回答关于这个工具的问题。", "short\x1b[31m", 43)
    assert lines[0] == "base                 | tuned"
    assert {len(line.split(" |")[0]) + sum(c > "\u2fff" for c in line.split(" |")[0]) for line in lines} == {20}
    assert "\x1b" not in "".join(lines) and "short\\x1b[31m" in lines[2]


def test_ctrl_c_during_an_answer_reaches_the_speaker_and_nobody_else() -> None:
    before = signal.getsignal(signal.SIGINT)
    with talk.stoppable(Speaker()) as pressed:
        signal.raise_signal(signal.SIGINT)
    assert pressed == [signal.SIGINT] and signal.getsignal(signal.SIGINT) is before


def test_a_talk_needs_a_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="name what is to be asked"):
        Target.named(None, None, tmp_path)
