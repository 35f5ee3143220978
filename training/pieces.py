"""A chat template taken apart: the fixed texts around the contents, found by probing and proved on a battery.

Most chat templates are, for plain chats, a concatenation: an optional BOS, an optional default system text, then
prefix + content + suffix for each turn, then a generation prompt. Jinja can do anything else besides, so the pieces
count only when they, joined again, give byte for byte what the chat template gives for every conversation in
`battery()`. Pieces that are proved can be written in another template language (go_template.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

Messages = Sequence[dict[str, str]]
Render = Callable[[list[dict[str, str]], bool], str]  # (messages, add_generation_prompt) -> text

# Where the pieces may differ from the chat template and still be of use. Each is told in the report.
OUTER_SPACE = "outer white space"  # the template trims contents, which a Go template cannot
THINKING = "thinking"  # the template drops <think>...</think> from earlier answers
CONTINUED = "continued answer"  # the chat ends in an answer that the model is to go on with
ANSWER_FIRST = "answer first"  # the chat begins with an answer (Ollama cuts long chats like this)
EMPTY_TURN = "empty turn"  # a question or an answer without any text
EMPTY_SYSTEM = "empty system message"

CUT = "\u2063cut here"  # marks the end of an answer to be continued; starts with no white space, so nothing trims it


@dataclass(frozen=True)
class Pieces:
    """The fixed texts of a chat template. `exceptions` are the kinds of conversation in which they are not equal."""

    bos: str = ""
    default: str = ""  # what comes first when there is no system message: nothing, or a whole default system turn
    system: str = "none"  # "turn", folded into the "first user" or "last user" turn or the "last message", or "none"
    empty_system: str = "written"  # an empty system message: "written" like others, "absent", or "dropped" (no default)
    system_before: str = ""  # folded: stands instead of user_before, and system_after then leads to the question
    system_after: str = ""
    user_before: str = ""
    user_after: str = ""
    answer_before: str = ""
    answer_after: str = ""
    generation: str = ""  # after the last question: where the model begins to write
    continued_before: str = ""  # instead of answer_before, for a last answer that the model goes on with
    exceptions: tuple[str, ...] = ()
    conversations: int = 0  # how many were compared, the exceptions not counted


@dataclass(frozen=True)
class Refusal:
    """Why a chat template cannot be written as pieces."""

    reason: str


class _NotPieces(Exception):
    """The chat template is no concatenation of pieces; the text says where that was seen."""


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
        raise _NotPieces("an answer to be continued does not stand in the text exactly once")
    return text[: text.index(CUT)]


def derive(render: Render, bos: str = "", eos: str = "", jinja: str = "") -> Pieces | Refusal:
    """Take a chat template apart and prove the pieces; a Refusal says which conversation told against them.

    `render(messages, add_generation_prompt)` is the chat template as the training used it; whatever it raises counts as
    "this chat is not allowed". `bos` and `eos` are the texts of those tokens ("" where there is none). `jinja`, the
    template's source, serves to find templates that write today's date: fixed pieces would be wrong tomorrow.
    """
    if "strftime_now" in jinja and _writes_the_date(jinja, bos, eos):
        return Refusal("the chat template writes today's date into the prompt, which fixed pieces cannot")
    try:
        candidates = list(_candidates(render, bos, eos))
    except _NotPieces as problem:
        return Refusal(str(problem))
    proofs = [prove(render, pieces) for pieces in candidates]
    good = [proof for proof in proofs if isinstance(proof, Pieces)]
    # Several are proved when only the exceptions tell them apart (a continued answer under a folded system message).
    return min(good, key=lambda pieces: len(pieces.exceptions)) if good else proofs[0]


def prove(render: Render, pieces: Pieces) -> Pieces | Refusal:
    """Compare pieces and chat template on the battery: the pieces with their exceptions, or where they first differ."""
    exceptions: dict[str, None] = {}
    compared = 0
    for kind, name, messages in battery():
        if pieces.system == "none" and messages[0]["role"] == "system":
            continue
        try:
            wanted = expected(render, messages)
        except _NotPieces as problem:
            wanted = str(problem)  # equal to no prompt
        except Exception:  # whatever a template raises means: this chat is not allowed; then nothing is to be equal
            continue
        if (got := join(pieces, messages)) == wanted:
            compared += 1
        elif kind:
            exceptions[kind] = None
        else:
            return Refusal(f"{name}: {difference(wanted, got)}")
    return replace(pieces, exceptions=tuple(exceptions), conversations=compared)


def difference(wanted: str, got: str) -> str:
    """The first place where two texts differ, with what stands there in each."""
    at = len(common_prefix((wanted, got)))
    return f"at character {at} the chat template has {_glimpse(wanted, at)}, the pieces have {_glimpse(got, at)}"


def common_prefix(texts: Sequence[str]) -> str:
    """The longest text that all of `texts` begin with."""
    low, high = min(texts), max(texts)
    for i, letter in enumerate(low):
        if letter != high[i]:
            return low[:i]
    return low


def _common_suffix(texts: Sequence[str]) -> str:
    return common_prefix([text[::-1] for text in texts])[::-1]


def _glimpse(text: str, at: int) -> str:
    return repr(text[at : at + 30]) if at < len(text) else "nothing more"


# Marker texts: nothing that a template would change, look for, or contain.
_S, _Q, _A, _R = "Systemmarker", "Questionmarker", "Answermarker", "Returnmarker"


def _split(text: str, *markers: str) -> list[str]:
    """The texts between markers that must each stand in `text` once, in this order."""
    parts = re.split("|".join(map(re.escape, markers)), text)
    if re.findall("|".join(map(re.escape, markers)), text) != list(markers):
        raise _NotPieces("the contents do not stand in the text once each, in the order of the turns")
    return parts


def _first_fitting(candidates: Sequence[str], texts: Sequence[str]) -> str:
    """The first candidate that all of `texts` begin with, else what they have in common."""
    for candidate in candidates:
        if all(text.startswith(candidate) for text in texts):
            return candidate
    return common_prefix(texts)


def _candidates(render: Render, bos: str, eos: str) -> Iterator[Pieces]:
    """Probe the chat template with markers: the pieces it seems to be made of, most likely first."""
    try:
        start, ask = _split(render(turns(_Q), True), _Q)
        start_two, to_answer, to_question, _ = _split(render(turns(_Q, _A, _R), True), _Q, _A, _R)
    except _NotPieces:
        raise
    except Exception as error:
        raise _NotPieces(f"the chat template refuses a plain chat: {error}") from error
    closed_question, closed_answer = _tail(render, turns(_Q)), _tail(render, turns(_Q, _A))

    # Where one text ends and the next begins is a matter of looks, as long as they join again: what a finished chat
    # ends in (less an eos that stands only there, as in Phi-3) is the natural cut.
    user_after = _first_fitting([*_endings(closed_question, eos)], [ask, to_answer])
    bare_start = start.removeprefix(bos)
    system = _probe_system(render, bos)
    leads = [bare_start] + ([system["after"]] if system["mode"] == "turn" else [])
    for answer_after in _endings(closed_answer, eos):
        user_before = to_question.removeprefix(answer_after)
        if to_question.startswith(answer_after) and all(lead.endswith(user_before) for lead in leads):
            break
    else:
        user_before = _common_suffix([to_question, *leads])
        answer_after = to_question.removesuffix(user_before)

    pieces = Pieces(
        bos=bos if bos and start.startswith(bos) and start_two.startswith(bos) else "",
        default=bare_start.removesuffix(user_before),
        user_before=user_before,
        user_after=user_after,
        answer_before=to_answer.removeprefix(user_after),
        answer_after=answer_after,
        generation=ask.removeprefix(user_after),
        continued_before=_continued(render, user_after, to_answer.removeprefix(user_after)),
    )
    if system["mode"] == "none":
        yield pieces
        return
    after = system["after"].removesuffix(user_before) if system["mode"] == "turn" else system["after"]
    for mode in {"turn": ["turn"], "first": ["first user"], "last": ["last user", "last message"]}[system["mode"]]:
        for empty in ("written", "absent", "dropped"):
            yield replace(pieces, system=mode, system_before=system["before"], system_after=after, empty_system=empty)


def _tail(render: Render, chat: list[dict[str, str]]) -> str | None:
    """What a finished chat ends in, after its last content; None where the chat template does not allow one."""
    try:
        return render(chat, False).rpartition(chat[-1]["content"])[2]
    except Exception:
        return None


def _endings(tail: str | None, eos: str) -> list[str]:
    if tail is None:
        return []
    return [tail, tail.removesuffix(eos)] if eos else [tail]


def _continued(render: Render, user_after: str, answer_before: str) -> str:
    """What stands before a last answer (Qwen3 puts an empty <think> block there)."""
    try:
        between = _split(render(turns(_Q, _A), False), _Q, _A)[1]
    except Exception:
        return answer_before
    return between.removeprefix(user_after) if between.startswith(user_after) else answer_before


def _probe_system(render: Render, bos: str) -> dict[str, str]:
    """Where a system message goes: {"mode": "turn" | "first" | "last" | "none", "before": ..., "after": ...}.

    A message folded into a question and one with a turn of its own look the same when the chat has one question only.
    With two they differ in what follows the second time; "last" shows itself by the order. The first-question fold is
    told from a turn by its text beginning as a question does.
    """
    try:
        one = render(turns(_Q, system=_S), True)
        two = render(turns(_Q, _A, _R, system=_S), True)
        plain = render(turns(_Q), True)
    except Exception:
        return {"mode": "none", "before": "", "after": ""}
    if _S not in one:
        if one != plain:
            raise _NotPieces("a system message is not written, yet it changes the text")
        return {"mode": "none", "before": "", "after": ""}
    before, after, _ = _split(one, _S, _Q)
    before = before.removeprefix(bos)
    if two.find(_S) > two.find(_Q):
        return {"mode": "last", "before": before, "after": after}
    question = _split(two, _S, _Q, _A, _R)[3]
    folded = not after.endswith(_common_suffix([question, plain.partition(_Q)[0]]) or after)
    return {"mode": "first" if folded else "turn", "before": before, "after": after}


def _writes_the_date(jinja: str, bos: str, eos: str) -> bool:
    """Whether a chat template that can ask for the date renders a plain chat differently on another day."""
    for chat in (turns("x"), turns("x", system="s"), turns("x", "y", "z")):
        texts = set()
        for day in (datetime(2001, 2, 3), datetime(2019, 12, 24)):
            try:
                texts.add(environment(day).from_string(jinja).render(_context(chat, bos, eos)))
            except Exception:  # not allowed: then it writes no date either
                break
        if len(texts) > 1:
            return True
    return False


def _context(chat: Messages, bos: str, eos: str) -> dict[str, Any]:
    tokens = {"bos_token": bos, "eos_token": eos}
    return {"messages": chat, "tools": None, "documents": None, "add_generation_prompt": True, **tokens}


def environment(now: datetime) -> Any:
    """Jinja as transformers sets it up for chat templates (utils/chat_template_utils.py), at a given time."""
    import json

    import jinja2.ext
    import jinja2.nodes
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(jinja2.ext.Extension):
        """{% generation %}...{% endgeneration %}, which marks answers for a loss mask: here its text, nothing more."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.Scope(body).set_lineno(line)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **rest: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **rest)

    jinja = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    jinja.filters["tojson"] = tojson
    jinja.globals.update(raise_exception=raise_exception, strftime_now=now.strftime)
    return jinja
