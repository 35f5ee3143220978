"""Take a chat template apart: find its pieces with marker texts, and keep them only when they are proved."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from training.ollama.template_parts import (
    Messages,
    NotPieces,
    Pieces,
    Refusal,
    Render,
    common_prefix,
    common_suffix,
    prove,
    turns,
)

if TYPE_CHECKING:
    from jinja2 import Environment
    from jinja2.parser import Parser


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
    except NotPieces as problem:
        return Refusal(str(problem))
    proofs = [prove(render, pieces) for pieces in candidates]
    good = [proof for proof in proofs if isinstance(proof, Pieces)]
    # Several are proved when only the exceptions tell them apart (a continued answer under a folded system message).
    return min(good, key=lambda pieces: len(pieces.exceptions)) if good else proofs[0]


# Marker texts: nothing that a template would change, look for, or contain.
_S, _Q, _A, _R = "Systemmarker", "Questionmarker", "Answermarker", "Returnmarker"


def _split(text: str, *markers: str) -> list[str]:
    """The texts between markers that must each stand in `text` once, in this order."""
    parts = re.split("|".join(map(re.escape, markers)), text)
    if re.findall("|".join(map(re.escape, markers)), text) != list(markers):
        raise NotPieces("the contents do not stand in the text once each, in the order of the turns")
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
    except NotPieces:
        raise
    except Exception as error:
        raise NotPieces(f"the chat template refuses a plain chat: {error}") from error
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
        user_before = common_suffix([to_question, *leads])
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
            raise NotPieces("a system message is not written, yet it changes the text")
        return {"mode": "none", "before": "", "after": ""}
    before, after, _ = _split(one, _S, _Q)
    before = before.removeprefix(bos)
    if two.find(_S) > two.find(_Q):
        return {"mode": "last", "before": before, "after": after}
    question = _split(two, _S, _Q, _A, _R)[3]
    folded = not after.endswith(common_suffix([question, plain.partition(_Q)[0]]) or after)
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


def environment(now: datetime) -> Environment:
    """Jinja as transformers sets it up for chat templates (utils/chat_template_utils.py), at a given time."""
    import jinja2.ext
    import jinja2.nodes
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(jinja2.ext.Extension):
        """{% generation %}...{% endgeneration %}, which marks answers for a loss mask: here its text, nothing more."""

        tags = {"generation"}

        def parse(self, parser: Parser) -> jinja2.nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.Scope(body).set_lineno(line)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(
        value: object,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    jinja = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    jinja.filters["tojson"] = tojson
    jinja.globals.update(raise_exception=raise_exception, strftime_now=now.strftime)
    return jinja
