"""The pieces of a chat template around the thoughts of answers, with thinking on and off, and the proof that they are all.

A client hands thoughts back beside an answer. Templates of the Qwen3 kind write those of the answers that follow the last
question (calls, then), and drop earlier ones. A request without `think` is one with thinking on, wherever Ollama knows that
TEMPLATE has thoughts: it finds the marks around .Thinking (thinking/template.go, since 0.9), and takes what stands between
them out of an answer. The line break before the end mark stays with the thoughts then, so TEMPLATE takes it away again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from training.ollama import template_parts, template_probe, tool_parts
from training.ollama.template_parts import (
    ANSWER_FIRST,
    CONTINUED,
    CUT,
    OUTER_SPACE,
    NotPieces,
    Pieces,
    Refusal,
    difference,
)
from training.ollama.tool_parts import Functions, Message, ToolPieces, call, result, said

# (messages, functions that are offered, add_generation_prompt, think) -> text; thoughts stand in the field "thinking"
RenderThoughts = Callable[[Sequence[Message], Functions, bool, bool], str]

ALWAYS, AFTER_QUESTION, NEVER = "always", "after the last question", "never"
MARKS = "<think>", "</think>"  # by which a template is known to think


@dataclass(frozen=True)
class ThoughtPieces:
    """The fixed texts around thoughts. `shown`: of which answers they are written; `hidden` stands in place of others.

    `off`: the pieces of a chat with thinking off. `exceptions`, each `of_thoughts`, and `conversations` as in Pieces.
    """

    before: str
    after: str
    shown: str
    hidden: str
    off: Pieces
    exceptions: tuple[str, ...] = ()
    conversations: int = 0


def thought(text: str, answer: Message) -> Message:
    """An answer with the thoughts that led to it."""
    return {**answer, "thinking": text}


def of_thoughts(kind: str) -> str:
    """The name of a kind of exception where thoughts make it one."""
    return f"{kind} (thoughts)"


Chat = tuple[str, str, Sequence[Message], Functions]


def battery(with_functions: bool) -> Iterator[Chat]:
    """Conversations to compare on: kind of exception or "", name, messages, functions that are offered."""
    asked, again, system = (
        said("user", "How far is 台北?"),
        said("user", "And back?"),
        said("system", "Be brief: {{ x }}."),
    )
    yes, long = thought("Hm.", said("assistant", "Far.")), "One: {{ .x }} <b>\n\n  two\t你好 `c`\n- three"
    for first in ((), (system,)):
        yield "", "an answer with thoughts", (*first, asked, yes, again), ()
        yield "", "two answers with thoughts", (*first, asked, yes, again, thought(long, yes), asked), ()
        yield "", "one with thoughts, one without", (*first, asked, yes, again, said("assistant", "x"), asked), ()
        yield CONTINUED, "thoughts, an answer to continue", (*first, asked, yes), ()
        yield CONTINUED, "thoughts alone, to continue", (*first, asked, thought(long, said("assistant", ""))), ()
        yield OUTER_SPACE, "thoughts between line breaks", (*first, asked, thought("\n\nHm.\n", yes), again), ()
        if with_functions:
            yield ANSWER_FIRST, "a call first", (*first, thought("Hm.", call(("now", {}))), result("12", "now")), ()
            yield from _with_calls((*first, asked), again, long)


def _with_calls(asked: Sequence[Message], again: Message, long: str) -> Iterator[Chat]:
    one, two = call(("weather", {"town": "台北"})), call(("now", {}), ("now", {}), text="Let me see.")
    sun, answer = result("sun"), thought("It shines.", said("assistant", "Sun."))
    twice = result("12", "now"), result("12", "now", 1)
    for offered in (tool_parts.OFFERED, ()):
        yield "", "a call with thoughts", (*asked, thought("Hm.", one), sun), offered
        yield "", "calls with thoughts and words", (*asked, thought(long, two), *twice), offered
        yield "", "two calls, one with thoughts", (*asked, thought(long, one), sun, two, *twice), offered
        yield "", "two calls, both with thoughts", (*asked, thought("a", one), sun, thought("b", two), *twice), offered
        yield "", "a call before the last question", (*asked, thought("Hm.", one), sun, answer, again), offered
        late = (*asked, thought("Hm.", one), sun, answer, again, thought("Again.", one), sun)
        yield "", "calls before and after the last question", late, offered
        yield OUTER_SPACE, "a call, its thoughts between line breaks", (*asked, thought("\nHm.\n\n", one), sun), offered
        yield CONTINUED, "a call, then an answer to continue", (*asked, thought("Hm.", one), sun, answer), offered


def join(
    pieces: Pieces, tools: ToolPieces | None, thoughts: ThoughtPieces, messages: Sequence[Message], offered: Functions
) -> str:
    """The prompt put together from the pieces, as TEMPLATE writes it. `pieces`: `thoughts.off` with thinking off."""
    last = len(messages) - 1
    query = max((i for i, message in enumerate(messages) if message["role"] == "user"), default=last)
    written = [_written(thoughts, message, i > query) for i, message in enumerate(messages)]
    if messages[last]["role"] == "assistant" and messages[last].get("thinking") and thoughts.shown != NEVER:
        pieces = replace(pieces, continued_before=pieces.answer_before)
    if tools is not None:
        return tool_parts.join(pieces, tools, written, offered)
    plain = [{"role": str(one["role"]), "content": f"{one.get('before', '')}{one['content']}"} for one in written]
    return template_parts.join(pieces, plain)


def _written(thoughts: ThoughtPieces, message: Message, after_question: bool) -> Message:
    """A message with the text that stands before its content."""
    text = str(message.get("thinking", ""))
    if not text:
        return message
    shown = thoughts.shown == ALWAYS or (thoughts.shown == AFTER_QUESTION and after_question)
    inside = text.strip("\n")
    return {**message, "before": f"{thoughts.before}{inside}{thoughts.after}" if shown else thoughts.hidden}


def derive(
    render: RenderThoughts, pieces: Pieces, tools: ToolPieces | None, eos: str = "", jinja: str = ""
) -> ThoughtPieces | Refusal:
    """Find the pieces with marker texts, and keep them only when they are proved.

    `pieces`, `tools`: those of chats without thoughts, with thinking on; None where TEMPLATE is to write no functions.
    """
    try:
        off = template_probe.derive(lambda messages, ask: render(messages, (), ask, False), pieces.bos, eos, jinja)
        if isinstance(off, Refusal):
            raise NotPieces(f"with thinking off: {off.reason}")
        found = _probe(render, pieces, off, tools)
    except NotPieces as problem:
        return Refusal(str(problem))
    except Exception as error:  # whatever a template raises means: this chat is not allowed
        return Refusal(f"the chat template refuses a chat with thoughts: {error}")
    if tools is not None and (reason := _other_functions(render, off, tools)):
        return Refusal(f"with thinking off: {reason}")
    return _prove(render, pieces, tools, found)


def _other_functions(render: RenderThoughts, off: Pieces, tools: ToolPieces) -> str:
    """Why functions are not written with thinking off as they are with thinking on; "" where they are."""
    found = tool_parts.derive(lambda messages, offered, ask: render(messages, offered, ask, False), off)
    if isinstance(found, Refusal):
        return found.reason
    return "" if found == tools else "functions are written otherwise"


_Q, _A, _T, _R = "Questionmarker", "Answermarker", "Thoughtmarker", "Returnmarker"


def _probe(render: RenderThoughts, pieces: Pieces, off: Pieces, tools: ToolPieces | None) -> ThoughtPieces:
    if (off.bos, off.system, off.empty_system) != (pieces.bos, pieces.system, pieces.empty_system):
        raise NotPieces("with thinking off a chat is put together in another way")
    question, answer = said("user", _Q), thought(_T, said("assistant", _A))
    start = pieces.user_after + pieces.answer_before
    earlier = render([question, answer, said("user", _R)], (), True, True)
    if _T in earlier:
        return ThoughtPieces(*_around(earlier, start, _A), shown=ALWAYS, hidden="", off=off)
    hidden = _between(earlier, _Q, _A).removeprefix(start)
    if tools is not None:
        later = render([question, thought(_T, call((_A, {}))), result(_R)], (tool_parts.OFFERED[1],), True, True)
        said_first = tools.calls.first
    else:
        later, said_first = render([question, answer], (), False, True), ""
    if _T not in later:
        return ThoughtPieces(*MARKS, shown=NEVER, hidden=hidden, off=off)
    before, after = _around(later, start, said_first + _A)
    return ThoughtPieces(before, after, shown=AFTER_QUESTION, hidden=hidden, off=off)


def _around(text: str, start: str, answer: str) -> tuple[str, str]:
    """The fixed texts before and after the thoughts of an answer."""
    before, after = _between(text, _Q, _T), _between(text, _T, answer)
    if not before.startswith(start):
        raise NotPieces("the turn of an answer with thoughts begins otherwise than that of others")
    before = before.removeprefix(start)
    if (before.strip(), after.strip()) != MARKS:
        raise NotPieces("there are other marks around thoughts than a model writes")
    return before, after


def _between(text: str, first: str, second: str) -> str:
    if text.count(first) != 1 or text.count(second) != 1 or text.index(first) > text.index(second):
        raise NotPieces("a question, thoughts and an answer do not stand in the text once each, in their order")
    return text[text.index(first) + len(first) : text.index(second)]


def _prove(
    render: RenderThoughts, pieces: Pieces, tools: ToolPieces | None, found: ThoughtPieces
) -> ThoughtPieces | Refusal:
    exceptions: dict[str, None] = {}
    compared = 0
    for think in (True, False):
        for kind, name, messages, offered in battery(tools is not None):
            if pieces.system == "none" and messages[0]["role"] == "system":
                continue
            try:
                wanted = expected(render, messages, offered, think)
            except NotPieces as problem:
                wanted = str(problem)  # equal to no prompt
            except Exception as error:
                return Refusal(f"{name}: the chat template refuses it: {error}")
            got = join(pieces if think else found.off, tools, found, messages, offered)
            if got == wanted:
                compared += 1
            elif kind:
                exceptions[of_thoughts(kind)] = None
            else:
                way = "" if think else ", with thinking off"
                return Refusal(f"{name}{way}: {difference(wanted, got)}")
    return replace(found, exceptions=tuple(exceptions), conversations=compared)


def expected(render: RenderThoughts, messages: Sequence[Message], offered: Functions, think: bool) -> str:
    """What the chat template itself gives as the prompt for `messages` (an answer that is last is left open)."""
    last = messages[-1]
    if last["role"] != "assistant":
        return render(messages, offered, True, think)
    text = render([*messages[:-1], {**last, "content": f"{last['content']}{CUT}"}], offered, False, think)
    if text.count(CUT) != 1:
        raise NotPieces("an answer to be continued does not stand in the text exactly once")
    return text[: text.index(CUT)]
