"""What a server writes before an answer must be what stood before answers in training.

Ollama before 0.30 writes prompts by TEMPLATE. Later ones, llama-server and others run the chat template in the GGUF, and
hand to it what transformers does not: `enable_thinking`, true unless a request says otherwise, and today's date. Where
the template then writes another prompt than in training, a line in front of the exported text fixes the value that was
trained with. And where every answer of the rows began alike, with an empty thought, TEMPLATE writes that, too: servers
that do not know thoughts would show the marks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from training.data import chat_template, encoding
from training.data.chat_template import SWITCH, ChatTemplate, as_served
from training.data.encoding import NothingToTrain
from training.data.fast_tokenising import Tokenise, tokeniser
from training.data.rows import Row
from training.data.turns import Turn
from training.errors import UserError
from training.ollama.template_parts import difference

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DATES = "date_string", "datetime"
DAY = "01 Feb 2003"  # stands for the day on which a server is asked
ON, OFF = "as usual", "with thinking off"
# Beginnings of answers: a token that would run across the border of TEMPLATE and answer shows itself.
ANSWERS = ("It is 4.", "4", "你好", "- one\n- two", "**Yes**", "`x`", "😀", "a")
THOUGHT = "<think>\nHm.\n</think>\n\n"


@dataclass(frozen=True)
class Trained:
    """A chat up to its last question, and how the answer to it was trained: the `prompt`, which has no loss, and what
    stands `before` the answer's own text, prompt included."""

    chat: tuple[Turn, ...]
    prompt: str
    before: str


def close(
    template: ChatTemplate, tokenizer: PreTrainedTokenizerBase, thoughts: bool
) -> tuple[ChatTemplate, list[str], list[str]]:
    """The template with `served` and `opening` filled in, what to say of it, and what could not be made right.

    thoughts: some of the rows' answers came with thoughts, or THINKING = keep: then the switch must go on to work, and what
    a server writes with thinking off is not held against them.
    """
    thoughts = (thoughts or template.thinking == "keep") and template.thinking != "off"
    trained = list(_trained(template, THOUGHT if thoughts else ""))
    ways = {ON: True} if thoughts else {ON: True, OFF: False}
    tokenise = tokeniser(tokenizer)
    served, said = _fixed(template, trained, ways, tokenise)
    opening = "" if thoughts else _opening(template, tokenizer)
    if opening:
        said.append(f"TEMPLATE goes on with {opening!r} after the generation prompt: so every answer was trained")
    template = replace(template, served=served, opening=opening, thinks=thoughts)
    return template, said, _left(template, trained, ways, tokenise)


def _trained(template: ChatTemplate, thought: str = "", answer: str = ANSWERS[0]) -> Iterator[Trained]:
    """How answers in chats of several kinds are trained; none for a kind that the template refuses."""
    one = Turn("user", "Questionmarker"), Turn("assistant", thought + answer)
    asked = (one, (*one, *one), (Turn("system", "Systemmarker"), *one))
    for turns in asked:
        try:
            last = encoding.plan_row(template, Row(turns, None, "", 0), "last", "completion").pieces[-1]
        except NothingToTrain:
            continue
        shown = encoding.THOUGHT if thought and encoding.THOUGHT in last.answer else answer
        written = last.answer.partition("Hm.")[0] if shown == encoding.THOUGHT else last.answer.rpartition(answer)[0]
        yield Trained(turns[:-1], last.prompt, last.prompt + written)


def _prompts(template: ChatTemplate, jinja: str, turns: Sequence[Turn], ways: Mapping[str, bool]) -> dict[str, str]:
    """What servers write for a chat by the template in the GGUF, by the way of asking."""
    # a template that asks the clock itself writes the day of the request by its own design
    given: Mapping[str, str] = {} if "strftime_now" in jinja else dict.fromkeys(DATES, DAY)
    messages = chat_template.conversation(template, turns)
    found = {}
    for name, on in ways.items():
        try:
            found[name] = as_served(template, messages, jinja, {**given, SWITCH: on})
        except UserError as error:
            found[name] = str(error)
    return found


def _right(trained: Trained, prompt: str, tokenise: Tokenise) -> bool:
    """Whether an answer that follows `prompt` was trained there: what is missing of it is in the loss, and its end is no
    other token than in the row, as a line break may be in tokenizers like GPT-2's."""
    if not (trained.before.startswith(prompt) and prompt.startswith(trained.prompt)):
        return False
    if prompt == trained.prompt:
        return True
    ids, whole = tokenise([prompt, trained.before + ANSWERS[0]])
    return whole[: len(ids)] == ids


def _wrong(
    template: ChatTemplate, jinja: str, trained: Sequence[Trained], ways: Mapping[str, bool], tokenise: Tokenise
) -> dict[str, tuple[Trained, str]]:
    """The ways of asking that give a prompt that was not trained, each with the first instance."""
    found: dict[str, tuple[Trained, str]] = {}
    for one in trained:
        for way, prompt in _prompts(template, jinja, one.chat, ways).items():
            if not _right(one, prompt, tokenise):
                found.setdefault(way, (one, prompt))
    return found


def _fixed(
    template: ChatTemplate, trained: Sequence[Trained], ways: Mapping[str, bool], tokenise: Tokenise
) -> tuple[str, list[str]]:
    """The template's text with lines in front that fix what servers would set otherwise; "" where none is needed."""
    left = len(_wrong(template, template.jinja, trained, ways, tokenise))
    served, told = "", []
    for lines in _lines(template.jinja, OFF in ways) if left else ():
        jinja = "".join(f"{{%- set {name} = {value} %}}" for name, value in lines.items()) + template.jinja
        if (still := len(_wrong(template, jinja, trained, ways, tokenise))) < left:
            left, served = still, jinja
            fixed = " and ".join(f"{name} = {value}" for name, value in lines.items())
            why = "a server would write another prompt than was trained"
            told = [f"the exported chat template begins with a line that sets {fixed}: without it {why}"]
    return served, told


def _lines(jinja: str, switch: bool) -> Iterator[dict[str, str]]:
    """What may be fixed, the least first: the template's own default of a date, then the switch where it may be."""
    dates = {
        name: found[1] for name in DATES if (found := re.search(rf"set {name} = (\"[^\"{{}}]*\"|'[^'{{}}]*')", jinja))
    }
    if dates:
        yield dates
    if SWITCH in jinja and switch:
        for value in ("true", "false", "undefined"):
            yield {SWITCH: value}
            if dates:
                yield {**dates, SWITCH: value}


def _opening(template: ChatTemplate, tokenizer: PreTrainedTokenizerBase) -> str:
    """What stands between the generation prompt and every answer, as far as its tokens are those trained; "" for nothing.

    In tokenizers like GPT-2's a line break at the end of a prompt is another token than before an answer: it is left to
    the model then.
    """
    trained = [(one, answer) for answer in ANSWERS for one in _trained(template, answer=answer)]
    openings = {one.before[len(one.prompt) :] for one, _ in trained}
    whole = openings.pop() if len(openings) == 1 else ""
    tokenise = tokeniser(tokenizer)
    for opening in (whole, whole.rstrip()):
        pairs = (tokenise([one.prompt + opening, one.before + answer]) for one, answer in trained)
        if opening.strip() and all(ids[: len(before)] == before for before, ids in pairs):
            return opening
    return ""


def _left(
    template: ChatTemplate, trained: Sequence[Trained], ways: Mapping[str, bool], tokenise: Tokenise
) -> list[str]:
    """What servers would still write otherwise than trained."""
    told = []
    for way, (one, prompt) in _wrong(template, template.exported, trained, ways, tokenise).items():
        if one.before.startswith(prompt) and prompt.startswith(one.prompt):
            told.append(f"Ollama 0.30 and later, asked {way}, ends a prompt in another token than the rows have there")
            continue
        where = difference(one.before, prompt, ("the rows have", "the server writes"))
        told.append(
            f"Ollama 0.30 and later, asked {way}, writes another prompt than the rows were trained with: {where}"
        )
    return told
