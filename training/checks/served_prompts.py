"""Does a live Ollama write the prompts that were trained, and make the same tokens of them?"""

from __future__ import annotations

import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from typing import TYPE_CHECKING

from training.data import ChatTemplate, Row, Turn, chat_template, encoding
from training.data.encoding import NothingToTrain
from training.data.fast_tokenising import tokeniser
from training.errors import UserError
from training.ollama import Server, asking
from training.ollama.asking import Prompt
from training.ollama.template_parts import TEXTS, battery, difference

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ANSWER, THOUGHT = "It is 4.", "<think>\nHm.\n</think>\n\n"
COUNTED = 8  # prompts; each is read by the model, which takes its time on a CPU
SPARE = 64  # tokens of num_ctx that are left for an answer: a chat that fills it is cut by the server


@dataclass(frozen=True, kw_only=True)
class Trained:
    """How prompts were trained. `template` None: plain text. `thoughts`: some of the rows' answers came with thoughts.
    `tools`: the form of the rows' functions and calls (TOOL_FORM), "" where none of them had any."""

    template: ChatTemplate | None
    tokenizer: PreTrainedTokenizerBase
    num_ctx: int
    thoughts: bool = False
    tools: str = ""

    def tokens(self, text: str) -> list[int]:
        """The tokens of a prompt, BOS once where it belongs."""
        return encoding.with_bos(tokeniser(self.tokenizer)([text])[0], self.tokenizer)

    def prompts(self, prompt: Prompt) -> list[str]:
        """The texts of which each is right before an answer to `prompt`, the trained one first: it may be followed by
        what began every answer."""
        if self.template is None or isinstance(prompt, str):
            return [str(prompt)]
        return self.written([Turn(str(one["role"]), str(one["content"])) for one in prompt])

    def written(self, turns: Sequence[Turn], tools: str = "") -> list[str]:
        """The same for a chat in which functions are offered. UserError where the template does not take it."""
        assert self.template is not None
        every = (text for template in _days(self.template) for text in self._of(template, tuple(turns), tools))
        return list(dict.fromkeys(every))

    def _of(self, template: ChatTemplate, turns: tuple[Turn, ...], tools: str) -> Iterator[str]:
        bare = chat_template.render(template, chat_template.conversation(template, turns), True, tools)
        yield bare
        yield bare + template.opening
        for thought in ("", THOUGHT) if self.thoughts else ("",):
            row = Row((*turns, Turn("assistant", thought + ANSWER)), None, "", 0, tools)
            try:
                piece = encoding.plan_row(template, row, "last", "completion").pieces[-1]
            except NothingToTrain:
                continue
            yield piece.prompt
            written = piece.answer.partition("Hm.")[0] if thought else piece.answer.rpartition(ANSWER)[0]
            yield piece.prompt + written
            yield piece.prompt + written.rstrip()

    def difference(self, prompt: Prompt, served: str) -> str:
        """Where a served prompt differs from all that would be right; "" where it is one of them."""
        return self.differs(self.prompts(prompt), served)

    def differs(self, right: Sequence[str], served: str) -> str:
        """The same of prompts that would be `right`."""
        bos = self.template.bos if self.template else ""
        if served.removeprefix(bos) in [text.removeprefix(bos) for text in right]:
            return ""
        return difference(right[0].removeprefix(bos), served.removeprefix(bos), ("training has", "the server writes"))

    def differs_in_white_space(self, prompt: Prompt, served: str) -> bool:
        """Whether a served prompt is one that would be right but for white space."""
        bos = self.template.bos if self.template else ""
        return _dense(served.removeprefix(bos)) in [_dense(text.removeprefix(bos)) for text in self.prompts(prompt)]


@dataclass
class Prompts:
    """What was found. `rendered_differently` None: this server does not tell how it writes a prompt. `excused`: kinds of
    chat that TEMPLATE is known to write otherwise, and does."""

    conversations: int = 0
    rendered_differently: int | None = 0
    counted: int = 0
    counted_differently: int = 0
    excused: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def compare(server: Server, name: str, trained: Trained, exceptions: Sequence[str]) -> Prompts:
    """Hold the server's prompts against the trained ones. exceptions: kinds of chat that may differ (TEMPLATE's own)."""
    found = Prompts()
    chats = list(_chats(trained))
    counted = _spread([chat for chat in chats if not chat[0]], COUNTED)
    for kind, what, prompt in chats:
        served = asking.rendered(server, name, prompt) if found.rendered_differently is not None else None
        if served is None:
            found.rendered_differently = None
        else:
            _rendered(found, trained, (kind, what, prompt), served, exceptions)
        if any(prompt is one[2] for one in counted):
            _counted(found, server, name, trained, (what, prompt, served))
    if trained.template is not None and found.rendered_differently is not None:
        # What `ollama run NAME "a question"` asks for.
        alone: Prompt = [{"role": "user", "content": TEXTS[0]}]
        served = asking.rendered(server, name, TEXTS[0])
        _rendered(found, trained, ("", "a question by itself", alone), served or "", ())
        chats.append(("", "a question by itself", alone))
    found.conversations = len(chats) if found.rendered_differently is not None else len(counted)
    return found


def _rendered(
    found: Prompts, trained: Trained, chat: tuple[str, str, Prompt], served: str, exceptions: Sequence[str]
) -> None:
    kind, what, prompt = chat
    if not trained.difference(prompt, served):
        return
    if kind in exceptions or (_wide(prompt) and trained.differs_in_white_space(prompt, served)):
        found.excused.append(kind)
        return
    hold(found, trained, what, trained.prompts(prompt), served)


def hold(found: Prompts, trained: Trained, what: str, right: Sequence[str], served: str) -> None:
    """Hold a served prompt against those that would be right."""
    if differs := trained.differs(right, served):
        found.rendered_differently = (found.rendered_differently or 0) + 1
        found.failures.append(f"{what}: {differs}")


def _dense(text: str) -> str:
    return "".join(text.split())


def _wide(prompt: Prompt) -> bool:
    """Whether a content has white space at its ends that is not ASCII, such as U+3000: Jinja's trim takes it away, that of
    llama.cpp (Ollama 0.32.15) leaves it there."""
    if isinstance(prompt, str):
        return False
    texts = [str(one["content"]) for one in prompt]
    return any(text.strip() != text.strip(string.whitespace) for text in texts)


def _counted(found: Prompts, server: Server, name: str, trained: Trained, chat: tuple[str, Prompt, str | None]) -> None:
    what, prompt, served = chat
    # Of a prompt that is known only that one counts; else any that would be right.
    right = {len(trained.tokens(text)) for text in ([served] if served is not None else trained.prompts(prompt))}
    count(found, what, asking.counted(server, name, prompt), right)


def count(found: Prompts, what: str, tokens: int | None, right: set[int]) -> None:
    """Hold a server's count of a prompt's tokens against those that would be right. None: it does not tell."""
    if tokens is None:
        return
    found.counted += 1
    if tokens not in right:
        found.counted_differently += 1
        found.failures.append(f"{what}: the server reads {tokens} tokens, training read {min(right)}")


def _chats(trained: Trained) -> Iterator[tuple[str, str, Prompt]]:
    """Chats that end in a question and that the template takes: (kind of exception or "", name, messages)."""
    if trained.template is None:
        yield from (("", f"a text ({number})", text) for number, text in enumerate(TEXTS))
        return
    for kind, name, messages in battery():
        if messages[-1]["role"] != "user" or (messages[0]["role"] == "system" and not trained.template.takes_system):
            continue
        try:
            text = trained.prompts(messages)[0]
        except UserError:
            continue
        if len(trained.tokens(text)) <= trained.num_ctx - SPARE:
            yield kind, name, messages


def _spread(chats: list[tuple[str, str, Prompt]], most: int) -> list[tuple[str, str, Prompt]]:
    return [chats[i * len(chats) // most] for i in range(most)] if len(chats) > most else chats


def _days(template: ChatTemplate) -> list[ChatTemplate]:
    """The template on the day of the run; one that asks the clock itself, today, wherever on earth the server is."""
    if "strftime_now" not in template.exported or template.today is None:
        return [template]
    today = date.today()
    return [template, *(replace(template, today=today + timedelta(days=more)) for more in (0, -1, 1))]
