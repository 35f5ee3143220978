"""Talk to a model in a terminal: ./run.sh --chat [RUN], and evaluate_model.py --interactive. Plain lines, so that SSH will do."""

from __future__ import annotations

import contextlib
import io
import itertools
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from training.data import ChatTemplate, Turn, chat_template, encoding, fast_tokenising
from training.errors import MachineError, UserError
from training.evaluation import models
from training.evaluation.generate import Answer
from training.evaluation.models import Speaker, Torch
from training.evaluation.target import Target
from training.system import privacy, wording
from training.system.wording import fold

PROMPT = "> "
MOST = 1024  # tokens of an answer
HELP = """/reset           forget the conversation
/system TEXT     a system text from here on; without TEXT, none
/compare TEXT    base and tuned model answer TEXT side by side; the conversation does not grow by it
/help            this list
Ctrl-C stops an answer; Ctrl-D leaves. The likeliest token is taken each time: the same question, the same answer."""


@dataclass(kw_only=True)
class Talk:
    """One conversation. `tokens`: a rendered text's ids. `base`: loads the base model for /compare when it is first used."""

    speaker: Speaker
    template: ChatTemplate | None  # None: plain text, without roles and history
    tokens: Callable[[str], list[int]]
    context: int
    base: Callable[[], Speaker] | None
    system: str | None = None
    history: list[Turn] = field(default_factory=list)

    def prompt(self, question: str) -> tuple[list[int], int]:
        """The tokens before the answer to a question, and how many of the oldest turns no longer fit."""
        if self.template is None:
            return self.tokens(question)[-(self.context - 32) :], 0
        dropped = 0
        while True:
            turns = [*self.history[dropped:], Turn("user", question)]
            turns = [Turn("system", self.system), *turns] if self.system else turns
            text = chat_template.render(
                self.template, chat_template.conversation(self.template, turns), add_generation_prompt=True
            )
            ids = self.tokens(text)
            if len(ids) + min(MOST, self.context // 4) <= self.context:
                return ids, dropped
            if dropped >= len(self.history):
                raise UserError(f"the question has {len(ids):,} tokens, and all of the talk may have {self.context:,}")
            dropped += 2


@contextlib.contextmanager
def stoppable(speaker: Speaker) -> Iterator[list[int]]:
    """Ctrl-C ends the answer and nothing else; gives a list that is not empty once that has happened."""
    pressed: list[int] = []

    def stop(number: int, frame: object) -> None:
        pressed.append(number)
        speaker.stop()

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


def show(text: str) -> None:
    """Print a piece of an answer at once, without what would act on the terminal."""
    sys.stdout.write(privacy.visible(text))
    sys.stdout.flush()


def ask(talk: Talk, question: str) -> None:
    """Answer a question in the conversation, piece by piece."""
    ids, dropped = talk.prompt(question)
    if dropped:
        del talk.history[:dropped]
        print("(the oldest turns no longer fit and are left out)")
    with stoppable(talk.speaker) as pressed:
        answer = talk.speaker.say(ids, min(MOST, talk.context - len(ids)), show)
    print("" if answer.stopped else f"\n({'stopped' if pressed else 'cut off: it did not end by itself'})")
    if talk.template is not None and answer.text:
        talk.history += [Turn("user", question), Turn("assistant", answer.text)]


def compare(talk: Talk, question: str) -> None:
    """Base and tuned model answer side by side, in the conversation as it stands."""
    if talk.base is None:
        raise UserError("there is no base model beside this one to compare it with")
    base = talk.base()
    ids, _ = talk.prompt(question)
    answers: list[Answer] = []
    for speaker in (base, talk.speaker):
        with stoppable(speaker):
            answers.append(speaker.say(ids, min(MOST, talk.context - len(ids)), lambda piece: None))
    for line in beside(answers[0].text, answers[1].text, shutil.get_terminal_size().columns):
        print(line)


def beside(left: str, right: str, width: int) -> list[str]:
    """Two answers in columns of a terminal `width` columns wide; Chinese characters take two each."""
    half = max(16, (width - 3) // 2)
    columns = []
    for title, text in (("base", left), ("tuned", right)):
        lines = [part for line in privacy.visible(text).split("\n") for part in fold(line, half) or [""]]
        columns.append([title, "-" * half, *lines])
    pairs = itertools.zip_longest(*columns, fillvalue="")
    return [f"{one}{' ' * (half - wording.columns(one))} | {other}".rstrip() for one, other in pairs]


def command(talk: Talk, line: str) -> None:
    """Obey a line that begins with a slash. UserError where it is no command."""
    word, _, rest = line.partition(" ")
    rest = rest.strip()
    if word == "/reset":
        talk.history.clear()
        print("(the conversation is forgotten)")
    elif word == "/system":
        if rest and (talk.template is None or not talk.template.takes_system):
            raise UserError("this model takes no system text")
        talk.system = rest or None
        print(f"(system: {rest})" if rest else "(no system text)")
    elif word == "/compare" and rest:
        compare(talk, rest)
    elif word == "/compare":
        raise UserError("/compare TEXT: a question must follow")
    elif word == "/help":
        print(HELP)
    else:
        raise UserError(f"{word} is not a command; /help lists them")


def loop(talk: Talk) -> None:
    """Read and answer until Ctrl-D. What is wrong with a line is said, and the talk goes on."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - input() takes it for editing and for the lines before
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    # A shell that starts a program in the background has it ignore Ctrl-C, and Python leaves it at that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    print(f"{talk.speaker.name}: /help lists the commands, Ctrl-D leaves")
    while True:
        try:
            line = input(PROMPT).strip()
            if line.startswith("/"):
                command(talk, line)
            elif line:
                ask(talk, line)
        except (UserError, MachineError) as error:  # such as a base model that does not fit beside this one
            print(privacy.shown(f"({error})"))
        except KeyboardInterrupt:
            print("\n(Ctrl-D leaves)")
        except EOFError:
            print()
            return


def with_gguf(target: Target) -> None:
    """Talk to a run's GGUF file; its base model is loaded when it is first compared with."""
    if target.gguf is None:
        raise UserError("the run has no GGUF file yet")
    with contextlib.ExitStack() as stack, models.gguf(target.gguf.name, target.gguf, target.longest) as speaker:
        loaded: list[Torch] = []

        def base() -> Torch:
            if not loaded:
                print("(loading the base model)")
                loaded.append(stack.enter_context(models.torch_pair(_base(target), None, target.end_ids))[0])
            return loaded[0]

        loop(
            Talk(
                speaker=speaker,
                template=target.template,
                tokens=speaker.prompt_tokens,
                context=target.longest,
                base=base,
            )
        )


def with_weights(target: Target) -> None:
    """Talk to a base model and its adapter as transformers runs them, or to a GGUF file where there is no adapter."""
    if target.gguf is not None and target.adapter is None:
        with_gguf(target)
        return
    tokenizer = target.tokenizer()

    def tokens(text: str) -> list[int]:
        return encoding.with_bos(fast_tokenising.tokeniser(tokenizer)([text])[0], tokenizer)

    with models.torch_pair(_base(target), target.adapter, target.end_ids) as (base, tuned):
        loop(
            Talk(
                speaker=tuned or base,
                template=target.template,
                tokens=tokens,
                context=target.longest,
                base=(lambda: base) if tuned else None,
            )
        )


def _base(target: Target) -> Path:
    if not target.has_base:
        raise UserError(f"the base model is no longer at {target.base}")
    return target.base
