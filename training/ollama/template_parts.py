"""The pieces of a chat template: fixed texts around the contents, and the proof that they are the whole of it.

Most chat templates are, for plain chats, a concatenation: an optional BOS, an optional default system text, then
prefix + content + suffix for each turn, then a generation prompt. Jinja can do anything else besides, so the pieces
count only when they, joined again, give byte for byte what the chat template gives for every conversation in
`battery()`. template_probe.py finds them; go_template.py writes them for Ollama.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

Messages = Sequence[dict[str, str]]
Render = Callable[[list[dict[str, str]], bool], str]  # (messages, add_generation_prompt) -> text

# Where the pieces may differ from the chat template and still be of use. Each is told in the report.
OUTER_SPACE = "outer white space"  # the template trims contents, which a Go template cannot
THINKING = "thinking"  # the template drops <think>...</think> from earlier answers
CONTINUED = "continued answer"  # the chat ends in an answer that the model is to go on with
ANSWER_FIRST = "answer first"  # the chat begins with an answer (Ollama cuts long chats like this)
EMPTY_TURN = "empty turn"  # a question or an answer without any text
EMPTY_SYSTEM = "empty system message"

# Marks the end of an answer to be continued; starts with no white space, so nothing trims it.
CUT = "\u2063cut here"


@dataclass(frozen=True)
class Pieces:
    """The fixed texts of a chat template. `exceptions` are the kinds of conversation in which they are not equal."""

    bos: str = ""
    # What comes first when there is no system message: nothing, or a whole default system turn.
    default: str = ""
    # Where a system message stands: in a "turn" of its own, folded into the "first user" or "last user" turn or the "last message", or "none".
    system: str = "none"
    # An empty system message: "written" like others, "absent", or "dropped" (no default).
    empty_system: str = "written"
    # Of a folded one: it takes the place of user_before, and system_after leads to the question.
    system_before: str = ""
    system_after: str = ""
    user_before: str = ""
    user_after: str = ""
    answer_before: str = ""
    answer_after: str = ""
    generation: str = ""  # after the last question: where the model begins to write
    # In place of answer_before, where the last answer is one that the model goes on with.
    continued_before: str = ""
    exceptions: tuple[str, ...] = ()
    conversations: int = 0  # how many were compared, the exceptions not counted


@dataclass(frozen=True)
class Refusal:
    """Why a chat template cannot be written as pieces."""

    reason: str


class NotPieces(Exception):
    """The chat template does not concatenate its pieces; the message says where that was seen."""


def turns(*contents: str, system: str | None = None, first: str = "user") -> list[dict[str, str]]:
    """A chat of alternating turns beginning with `first`, after an optional system message."""
    roles = ("user", "assistant") if first == "user" else ("assistant", "user")
    chat = [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]
    return chat if system is None else [{"role": "system", "content": system}, *chat]


TEXTS = (
    "How far is the moon?",
    'He said "it\'s fine", `code`, \'\'\'quoted\'\'\', """three"""\nand went',
    "{{ .Content }} }} {% if x %} {# no #} {{- range -}} ${x} %s %d",
    "one\n\n  two\t\tthree  \n\n\nfour\r\nfive",
    "Zażółć 你好\u3000世界 👩\u200d💻 ع e\u0301 \u00a0 \u200b.",
    "<|im_end|> <s>[INST] <|eot_id|> <end_of_turn> </s> <bos>",
    "back\\slash \\n \\u0041 C:\\new & <b>bold</b> &amp;",
    "x",
)


def battery() -> Iterator[tuple[str, str, list[dict[str, str]]]]:
    """Conversations to compare on: (kind of exception or "", name, messages). Those with a last answer are continued."""
    last = TEXTS[-1]
    for number, text in enumerate(TEXTS):
        other = TEXTS[(number + 3) % len(TEXTS)]
        yield "", f"one question ({number})", turns(text)
        yield "", f"two questions ({number})", turns(text, other, last)
        yield "", f"a system message ({number})", turns(other, system=text)
        yield "", f"a system message, two questions ({number})", turns(last, text, other, system=other)
        yield CONTINUED, f"an answer to continue ({number})", turns(other, text)
        yield CONTINUED, f"a system message, an answer to continue ({number})", turns(text, other, system=text)
    yield "", "five questions", turns(*TEXTS, "y")
    yield "", "a system message, five questions", turns(*TEXTS, "y", system="Be brief.")
    yield "", "the same text in every turn", turns("x", "x", "x", "x", "x", system="x")
    yield EMPTY_SYSTEM, "an empty system message", turns("x", system="")
    yield EMPTY_SYSTEM, "an empty system message, two questions", turns("x", "y", "z", system="")
    yield CONTINUED, "the third answer to continue", turns("x", "y", "z", "a", "b", "c", system="s")
    for text in ("  x", "x  ", "\n\nx", "x\n\n", "\t x \u3000\n"):
        yield OUTER_SPACE, f"a question {text!r}", turns(text)
        yield OUTER_SPACE, f"an answer {text!r}", turns("x", text, "y")
        yield OUTER_SPACE, f"a system message {text!r}", turns("x", system=text)
    yield OUTER_SPACE, "a system message of white space", turns("x", system=" \n")
    yield THINKING, "an answer with its thinking", turns("x", "<think>\nHm.\n</think>\n\nyes", "y")
    yield EMPTY_TURN, "an empty question", turns("")
    yield EMPTY_TURN, "an empty answer", turns("x", "", "y")
    yield EMPTY_TURN, "an empty question under a system message", turns("", system="s")
    yield ANSWER_FIRST, "an answer first", turns("x", "y", first="assistant")
    yield ANSWER_FIRST, "a system message, then an answer", turns("x", "y", first="assistant", system="s")


def join(pieces: Pieces, messages: Messages) -> str:
    """The prompt for `messages`, put together from the pieces: what go_template.py's TEMPLATE writes, after a BOS.

    After a question comes the generation prompt; an answer that is last is left open, so that the model goes on with it.
    """
    questions = [i for i, message in enumerate(messages) if message["role"] == "user"]
    last = len(messages) - 1
    fold_at = {"last user": questions[-1] if questions else -1, "last message": last}.get(pieces.system)
    held: str | None = None  # a system message that waits for the question it is folded into
    out = [pieces.bos]
    for i, message in enumerate(messages):
        role, content = message["role"], message["content"]
        written = role == "system" and (content != "" or pieces.empty_system == "written")
        if i == 0 and (role != "system" or (not written and pieces.empty_system == "absent")):
            out.append(pieces.default)
        if role == "system":
            if written and pieces.system == "turn":
                out += [pieces.system_before, content, pieces.system_after]
            elif written:
                held = content
        elif role == "user":
            if held is not None and pieces.system != "none" and (fold_at is None or i == fold_at):
                out += [pieces.system_before, held, pieces.system_after]
                held = None
            else:
                out.append(pieces.user_before)
            out += [content, pieces.user_after]
        elif role == "assistant":
            out += (
                [pieces.continued_before, content]
                if i == last
                else [pieces.answer_before, content, pieces.answer_after]
            )
        if i == last and role != "assistant":
            out.append(pieces.generation)
    return "".join(out)


def expected(render: Render, messages: Messages) -> str:
    """What the chat template itself gives as the prompt for `messages` (an answer that is last is left open)."""
    chat = [dict(message) for message in messages]
    if chat[-1]["role"] != "assistant":
        return render(chat, True)
    chat[-1]["content"] += CUT
    text = render(chat, False)
    if text.count(CUT) != 1:
        raise NotPieces("an answer to be continued does not stand in the text exactly once")
    return text[: text.index(CUT)]


def prove(render: Render, pieces: Pieces) -> Pieces | Refusal:
    """Compare pieces and chat template on the battery: the pieces with their exceptions, or where they first differ."""
    exceptions: dict[str, None] = {}
    compared = 0
    for kind, name, messages in battery():
        if pieces.system == "none" and messages[0]["role"] == "system":
            continue
        try:
            wanted = expected(render, messages)
        except NotPieces as problem:
            wanted = str(problem)  # equal to no prompt
        except Exception:
            # Whatever a template raises means: this chat is not allowed; then nothing is to be equal.
            continue
        if (got := join(pieces, messages)) == wanted:
            compared += 1
        elif kind:
            exceptions[kind] = None
        else:
            return Refusal(f"{name}: {difference(wanted, got)}")
    return replace(pieces, exceptions=tuple(exceptions), conversations=compared)


def difference(wanted: str, got: str, names: tuple[str, str] = ("the chat template has", "the pieces have")) -> str:
    """The first place where two texts differ, with what stands there in each."""
    at = len(common_prefix((wanted, got)))
    return f"at character {at} {names[0]} {_glimpse(wanted, at)}, {names[1]} {_glimpse(got, at)}"


def common_prefix(texts: Sequence[str]) -> str:
    """The longest text that all of `texts` begin with."""
    low, high = min(texts), max(texts)
    for i, letter in enumerate(low):
        if letter != high[i]:
            return low[:i]
    return low


def common_suffix(texts: Sequence[str]) -> str:
    return common_prefix([text[::-1] for text in texts])[::-1]


def _glimpse(text: str, at: int) -> str:
    return repr(text[at : at + 30]) if at < len(text) else "nothing more"
