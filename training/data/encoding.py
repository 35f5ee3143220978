"""From conversations to tokens: what the model reads, and which of it is trained."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

from training.base_model import BaseModel
from training.base_model.generation import generation_eos
from training.data import tool_room
from training.data.chat_template import ChatTemplate, adds_bos, conversation, render
from training.data.fast_tokenising import Tokenise, tokeniser
from training.data.rows import Row
from training.data.turns import THOUGHTS, Turn
from training.errors import RunError, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100  # the label that PyTorch's cross entropy leaves out
THOUGHT = "</think>"  # ends the thoughts that an answer came with
THINK_END = f"\n{THOUGHT}\n\n"
CLOSED_THOUGHTS = ("</think>", "</think>\n", "</think>\n\n", "<channel|>")  # DeepSeek, QwQ; Gemma 4


class NothingToTrain(UserError):
    """This row has no answer token within the length, or cannot be rendered. The text is the reason alone."""


@dataclass(frozen=True)
class Encoded:
    """One training sequence: `labels` equal `input_ids` where the loss is taken, IGNORED elsewhere.

    `cut`: the end did not fit. `prompt_length`: tokens before the first trained one.
    """

    input_ids: list[int]
    labels: list[int]
    cut: bool

    @property
    def prompt_length(self) -> int:
        return next((i for i, label in enumerate(self.labels) if label != IGNORED), len(self.labels))

    @property
    def answer_length(self) -> int:
        return len(self.labels) - self.labels.count(IGNORED)  # at C speed: a million rows are counted


@dataclass(frozen=True)
class Piece:
    """A prompt as inference writes it, and the answer that is trained after it, up to its end."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class Plan:
    """What is to be tokenised for one row: pieces in order; `joined`: each piece's text begins the next one's prompt.

    `thought`: an answer came with thoughts.
    """

    pieces: tuple[Piece, ...]
    joined: bool
    text: str | None = None
    thought: bool = False

    def texts(self) -> list[str]:
        if self.text is not None:
            return [self.text]
        return [text for piece in self.pieces for text in (piece.prompt, piece.prompt + piece.answer)]


def encode(
    template: ChatTemplate,
    tokenizer: PreTrainedTokenizerBase,
    row: Row,
    max_length: int,
    train_turns: str = "all",
    train_on: str = "completion",
) -> list[Encoded]:
    """The training sequences of one row, each at most `max_length` tokens.

    One, as a rule. One for every answer where the template writes earlier turns differently from the last (Qwen3 drops
    their <think> block), or where tokens would run across the border of prompt and answer: so the tokens of each prompt
    are exactly those that inference makes of it.
    Raises NothingToTrain (a UserError) when no answer token is left, or the template refuses the row.
    """
    plan = plan_row(template, row, train_turns, train_on)
    tokenise = tokeniser(tokenizer)
    return assemble(template, tokenizer, plan, tokenise(plan.texts()), tokenise, max_length, train_on)


def prompt_ids(
    template: ChatTemplate, tokenizer: PreTrainedTokenizerBase, messages: Sequence[Turn], tools: str = ""
) -> list[int]:
    """The tokens of the prompt for an answer to `messages`, SYSTEM_PROMPT put in front; the same that training uses."""
    messages = [in_room(template, turn) for turn in messages]
    text = render(template, conversation(template, messages), True, tools)
    return with_bos(tokeniser(tokenizer)([text])[0], tokenizer)


def with_bos(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """BOS exactly once, where the model has one: as the template wrote it, else as llama.cpp will add it."""
    bos = _bos(tokenizer)
    if bos is not None and adds_bos_cached(tokenizer) and ids[:1] != [bos]:
        return [bos, *ids]
    return ids


@lru_cache(maxsize=8)  # transformers looks it up anew each time: with many rows that is some seconds
def _bos(tokenizer: PreTrainedTokenizerBase) -> int | None:
    number: int | None = tokenizer.bos_token_id
    return number


@lru_cache(maxsize=8)  # it is asked of every row, and answered by tokenising a text
def adds_bos_cached(tokenizer: PreTrainedTokenizerBase) -> bool:
    return adds_bos(tokenizer)


def plan_row(template: ChatTemplate, row: Row, train_turns: str, train_on: str) -> Plan:
    """Render the row: every prompt that an answer is trained after, and that answer. Raises NothingToTrain."""
    if row.messages is None:
        return Plan((), True, row.text)
    try:
        messages = conversation(template, [in_room(template, turn) for turn in row.messages])
        pieces, thought = _pieces(template, messages, row.tools, train_turns, train_on)
    except UserError as error:
        raise NothingToTrain(str(error)) from None
    joined = not template.eos_follows and all(
        later.prompt.startswith(piece.prompt + piece.answer) for piece, later in zip(pieces, pieces[1:], strict=False)
    )
    return Plan(pieces, joined or len(pieces) == 1, thought=thought)


def _pieces(
    template: ChatTemplate, messages: Sequence[Turn], tools: str, train_turns: str, train_on: str
) -> tuple[tuple[Piece, ...], bool]:
    """Each answer that is learned, with its prompt; and whether one came with thoughts. UserError where it cannot be."""
    if messages[0].role == "system" and not template.takes_system:
        raise UserError("the row has a system message, and the chat template takes none")
    answers = [i for i, turn in enumerate(messages) if turn.role == "assistant"]
    if train_on == "all" and not all(turn.trained for turn in messages):
        raise UserError("TRAIN_ON = all learns every text, and some turns of the row are not to be learned")
    if train_turns == "last" or train_on == "all":
        answers = answers[-1:]
    answers = [i for i in answers if messages[i].trained]
    if not answers:
        raise UserError("its last answer is not to be learned, and TRAIN_TURNS = last learns no other")
    if tools or any(turn.more for turn in messages):
        tool_room.check(template, messages, tools)
    pieces = tuple(_piece(template, messages[: i + 1], tools) for i in answers)
    _check_systems(messages[: answers[-1] + 1], pieces[-1])
    thoughts = [piece for i, piece in zip(answers, pieces, strict=True) if _has_thoughts(messages[i])]
    if not all(THOUGHT in piece.answer or _is_written(piece, messages) for piece in thoughts):
        raise UserError(
            f"the answer has thoughts, and the chat template leaves no room for them behind its prompt: {NO_ROOM}"
        )
    return pieces, bool(thoughts)


NO_ROOM = "THINKING = off leaves them out, and another template (CHAT_TEMPLATE) would take them"
THINK_BLOCK = re.compile(r"\s*(?:<think>)?(.*?)</think>\s*", re.DOTALL)
EMPTY_THOUGHT = re.compile(r"\s*(?:<think>)?\s*</think>\s*")


def in_room(template: ChatTemplate, turn: Turn) -> Turn:
    """A turn with its thoughts where the template reads them. UserError where it reads none.

    With THINKING = off without them.
    """
    if turn.role != "assistant" or (not turn.thoughts and (template.thinking != "off" or THOUGHT not in turn.content)):
        return turn
    if template.thinking == "off":
        # Text about the mark is none: the block begins the answer, but for its opening where the prompt writes that.
        begins = template.opens_think or turn.content.lstrip().startswith("<think>")
        found = THINK_BLOCK.match(turn.content) if begins else None
        return replace(turn, thoughts="", content=turn.content[found.end() :] if found else turn.content)
    if THOUGHT in template.jinja and THOUGHT not in turn.content:
        # Templates that write this block take it apart from the content themselves, and each answer's as it is asked for.
        return replace(turn, thoughts="", content=f"<think>\n{turn.thoughts.strip()}\n{THOUGHT}\n\n{turn.content}")
    if any(name in template.jinja for name in THOUGHTS):
        return turn
    raise UserError(
        f"the answer has thoughts in a field of their own, and the chat template has no place for thoughts: {NO_ROOM}"
    )


def _has_thoughts(turn: Turn) -> bool:
    return bool(turn.thoughts) or THOUGHT in turn.content


def _is_written(piece: Piece, messages: Sequence[Turn]) -> bool:
    """Whether an answer holds the thoughts of its message in other marks than <think>."""
    return any(turn.thoughts and turn.thoughts.strip() in piece.answer for turn in messages)


def _check_systems(messages: Sequence[Turn], last: Piece) -> None:
    """A system text that is not the first message: some templates leave it out without a word."""
    for number, turn in enumerate(messages):
        if turn.role == "system" and number and turn.content.strip() not in last.prompt:
            raise UserError("the chat template leaves out a system text that is not the first message of the row")


def _piece(template: ChatTemplate, messages: Sequence[Turn], tools: str) -> Piece:
    """The prompt for the last of `messages`, which is an answer, and the text of that answer up to its turn end."""
    piece = _as_written(template, messages, tools)
    if template.thinking == "keep" and not _has_thoughts(messages[-1]):
        opened = piece.prompt.rstrip().endswith("<think>")
        block = EMPTY_THOUGHT.match(piece.answer)
        if block and ("<think>" in block[0]) != opened:
            # The empty thought stays in the context: the model is not taught to think nothing.
            return Piece(piece.prompt + block[0], piece.answer[block.end() :])
    return piece


def _as_written(template: ChatTemplate, messages: Sequence[Turn], tools: str) -> Piece:
    """Prompt and answer as the template writes them."""
    prompt = render(template, messages[:-1], True, tools)
    whole = render(template, messages, False, tools)
    if not whole.endswith(template.tail):
        raise UserError("the chat template does not end this answer as it ends others")
    end = len(whole) - len(template.tail)
    content = messages[-1].content
    said = content.rpartition(THOUGHT)[2].strip()
    if template.opens_think and whole[len(prompt) : end].count(THOUGHT) != 1:
        # Not closed; or closed by the template, and again by the row's own thoughts.
        answer = _thought(content)
        if answer.count(THOUGHT) > 1:
            raise UserError(f"the answer closes its thoughts twice: {THOUGHT} stands in it more than once")
        return Piece(prompt, answer + template.turn_end)
    if prompt.endswith(CLOSED_THOUGHTS) and THOUGHT in content and whole[:end].rstrip().endswith(said):
        return Piece(
            prompt, said + template.turn_end
        )  # the prompt has closed the thoughts: there is no room for others
    if whole.startswith(prompt) and end >= len(prompt):
        return Piece(prompt, whole[len(prompt) : end] + template.turn_end)
    if prompt.endswith(CLOSED_THOUGHTS) and whole[:end].rstrip().endswith(said):
        return Piece(prompt, said + template.turn_end)  # inference puts an empty thought in front, training data do not
    raise UserError("the chat template's prompt for an answer is not how the answer's turn begins")


def _thought(content: str) -> str:
    """What follows a prompt that ends in "<think>\n": the row's own thoughts, or none, so that the block is closed."""
    if "</think>" in content:
        return content.lstrip().removeprefix("<think>").lstrip("\n")
    return THINK_END + content


def assemble(
    template: ChatTemplate,
    tokenizer: PreTrainedTokenizerBase,
    plan: Plan,
    ids: list[list[int]],
    tokenise: Tokenise,
    max_length: int,
    train_on: str,
) -> list[Encoded]:
    """Sequences from the tokens of `plan.texts()`. Raises NothingToTrain when no answer token fits into `max_length`."""
    ids = [with_bos(sequence, tokenizer) for sequence in ids]
    if plan.text is not None:
        whole = [_whole_text(ids[0], tokenizer)]
    else:
        whole = _chat(template, tokenizer, plan, ids, tokenise)
    _one_bos(whole, tokenizer)
    if train_on == "all":
        whole = [(sequence, [(int(_starts_with_bos(sequence, tokenizer)), len(sequence))]) for sequence, _ in whole]
    result = [encoded for encoded in (_fitted(*one, max_length) for one in whole) if encoded.answer_length]
    if not result:
        shortest = min(spans[0][0] for _, spans in whole)
        raise NothingToTrain(
            f"the prompt has {shortest:,} tokens and MAX_SEQ_LENGTH is {max_length:,}: no token of the answer is left"
        )
    return result


_Spans = list[tuple[int, int]]  # [start, end) of what is trained


def _whole_text(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], _Spans]:
    ids = [*ids, *_eos(tokenizer)] if ids[-1:] != _eos(tokenizer) else ids
    return ids, [(int(_starts_with_bos(ids, tokenizer)), len(ids))]


@lru_cache(maxsize=8)
def _eos(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []


def _chat(
    template: ChatTemplate, tokenizer: PreTrainedTokenizerBase, plan: Plan, ids: list[list[int]], tokenise: Tokenise
) -> list[tuple[list[int], _Spans]]:
    prompts, wholes = ids[0::2], ids[1::2]
    last = wholes[-1]
    clean = all(whole[: len(prompt)] == prompt for prompt, whole in zip(prompts, wholes, strict=True))
    if plan.joined and clean and all(last[: len(each)] == each for each in (*prompts, *wholes)):
        sequences = [(last, [(len(prompt), len(whole)) for prompt, whole in zip(prompts, wholes, strict=True)])]
    else:
        sequences = []
        for piece, prompt, whole in zip(plan.pieces, prompts, wholes, strict=True):
            # a token runs across the border: inference will never see it, so the answer is tokenised by itself
            runs_across = whole[: len(prompt)] != prompt
            answer = _alone(piece.answer, tokenise) if runs_across else whole[len(prompt) :]
            sequences.append(([*prompt, *answer], [(len(prompt), len(prompt) + len(answer))]))
    if template.eos_follows:
        eos = _eos(tokenizer)
        sequences = [
            ([*sequence, *eos], [*spans[:-1], (spans[-1][0], spans[-1][1] + len(eos))]) for sequence, spans in sequences
        ]
    _ends_are_trained(template, tokenizer, sequences)
    return sequences


def _alone(answer: str, tokenise: Tokenise) -> list[int]:
    """The tokens of an answer as they follow a prompt: without the space that SentencePiece puts in front of a text."""
    for anchor in ("\n", ".", "a"):
        before, both = tokenise([anchor, anchor + answer])
        if both[: len(before)] == before:
            return both[len(before) :]
    return tokenise([answer])[0]


def _fitted(ids: list[int], spans: _Spans, max_length: int) -> Encoded:
    """Cut to `max_length`: an answer that is cut gets no end token, for it does not end there."""
    labels = [IGNORED] * len(ids)
    for start, end in spans:
        labels[start:end] = ids[start:end]
    return Encoded(ids[:max_length], labels[:max_length], len(ids) > max_length)


def _starts_with_bos(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> bool:
    return ids[:1] == [_bos(tokenizer)]


def _one_bos(sequences: list[tuple[list[int], _Spans]], tokenizer: PreTrainedTokenizerBase) -> None:
    """BOS twice in front, the classic of fine-tuning, or not at all where the model wants it: neither goes through."""
    for ids, _ in sequences:
        if _starts_with_bos(ids, tokenizer) and ids[1:2] == ids[:1]:
            raise NothingToTrain("BOS stands twice in front of the row")
        if adds_bos_cached(tokenizer) and not _starts_with_bos(ids, tokenizer):
            raise RunError("tokenise", "BOS is missing in front of a row")


def _ends_are_trained(
    template: ChatTemplate, tokenizer: PreTrainedTokenizerBase, sequences: list[tuple[list[int], _Spans]]
) -> None:
    """Every answer must end in a trained end token; a model trained without one never stops."""
    ends = set(_eos(tokenizer)) if template.eos_follows else _end_ids(tokenizer, template.turn_end)
    for ids, spans in sequences:
        for start, end in spans:
            if end <= start or ids[end - 1] not in ends:
                raise RunError("tokenise", f"an answer does not end in the turn-end token {template.turn_end!r}")


@lru_cache(maxsize=8)
def _end_ids(tokenizer: PreTrainedTokenizerBase, turn_end: str) -> frozenset[int]:
    added = tokenizer.added_tokens_decoder.items()
    return frozenset(number for number, token in added if turn_end.endswith(str(token)))


def end_ids(template: ChatTemplate, tokenizer: PreTrainedTokenizerBase, base: BaseModel) -> list[int]:
    """The ids of all tokens that end an answer: the template's turn end, eos, and those of generation_config.json."""
    vocabulary = tokenizer.get_vocab()
    texts = [*template.end_tokens, tokenizer.eos_token or ""]
    known = [vocabulary[text] for text in texts if text in vocabulary]
    return list(dict.fromkeys([*known, *generation_eos(base)]))
