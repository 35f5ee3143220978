"""The turns of a conversation: what each says, whether it is learned, and in which order they may come."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from training.data import columns, tool_calls
from training.data.record import describe
from training.data.values import NOTHING, Bad, is_blank, sound, sound_inside, written_list
from training.system.wording import shorten


@dataclass(frozen=True)
class Turn:
    """One message: `role` is system, user, assistant or tool.

    trained: an answer that is learned; False leaves it in the context. thoughts: what an answer was thought out with,
    where the row has that in a field of its own. more: what else a chat template is handed of the message, as a JSON
    object (tool_calls, tool_call_id, name); "" for nothing.
    """

    role: str
    content: str
    trained: bool = True
    thoughts: str = ""
    more: str = ""


ROLES = {
    **dict.fromkeys(("user", "human", "用户", "prompter", "customer"), "user"),
    **dict.fromkeys(
        ("assistant", "gpt", "chatgpt", "bot", "model", "ai", "助手", "chatbot", "agent", "function_call", "tool_call"),
        "assistant",
    ),
    **dict.fromkeys(("system", "developer", "系统"), "system"),
    **dict.fromkeys(("tool", "function", "observation", "ipython", "tool_response"), "tool"),
}
PLAIN_ROLES = {"user": "user", "assistant": "assistant", "system": "system", "human": "user", "gpt": "assistant"}
# Fields of a message that say whether it is learned: OpenAI's and Mistral's, Axolotl's, and others'.
LEARNED = ("weight", "train", "loss", "trainable", "training", "learn")
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
# Fields of a message that are read besides its role and what it says.
KNOWN = frozenset((*LEARNED, "tool_calls", "function_call"))
NOT_LEARNED = "with questions that are to be learned: TRAIN_ON = completion learns the answers alone"
MARKED = "with calls of tools marked in the text of an answer, taken as calls"
PARTS = "with texts in parts, joined as they are"


def read(value: object, name: str, said: list[str]) -> list[Turn]:
    """The turns of [{role, content}] or [{from, value}]. `said`: gets what is worth saying of how they were read."""
    if not isinstance(value, list):
        value = written_list(value, name)
    if not isinstance(value, list):
        raise Bad(f"{name} is {describe(value)}, not a list of turns")
    found: list[Turn] = []
    for number, turn in enumerate(value, 1):
        if isinstance(turn, dict) and len(turn) == 2 and (plain := _plain(turn)):
            found.append(plain)
            continue
        made = _turn(turn, f"{name}, turn {number}", said, found)
        if made and made[0].role == "tool" and found and _marks_calls(found[-1]):
            said.append(MARKED)
            found[-1], made = _with_calls(found[-1], made, f"{name}, turn {number - 1}", len(found))
        found += made
    return found


def _marks_calls(turn: Turn) -> bool:
    return turn.role == "assistant" and not turn.more and tool_calls.BEGINS_CALL in turn.content


def with_marked_calls(turns: Sequence[Turn], said: list[str]) -> tuple[Turn, ...]:
    """The turns of a row that offers functions, with the calls that are marked in the text of answers as calls."""
    if not any(_marks_calls(turn) for turn in turns):
        return tuple(turns)
    said.append(MARKED)
    return tuple(
        _with_calls(turn, [], f"turn {number}", number)[0] if _marks_calls(turn) else turn
        for number, turn in enumerate(turns, 1)
    )


def _with_calls(called: Turn, results: list[Turn], where: str, place: int) -> tuple[Turn, list[Turn]]:
    """An answer whose text marks calls, and what came of them, as templates take both: without marks of a model's own."""
    text, calls = tool_calls.marked(called.content, where, place)
    each = [replace(turn, content=result) for turn in results for result in tool_calls.unmarked(turn.content)]
    return (replace(called, content=text, more=_more(tool_calls=calls)) if calls else called), each


def _plain(turn: Mapping[str, object]) -> Turn | None:
    """What most turns are: a role as we write it, and text of which nothing needs a look. None for all others."""
    role, content = turn.get("role"), turn.get("content")
    if role is None:
        role, content = turn.get("from"), turn.get("value")
    known = PLAIN_ROLES.get(role) if isinstance(role, str) else None
    if known is None or not isinstance(content, str) or "\0" in content:
        return None
    if not content.isascii():
        try:
            content.encode("utf-8")
        except UnicodeEncodeError:
            return None
    return Turn(known, content)


# What holds the role of a message, and what it says, the commonest first.
SPEAKERS, WORDS = ("role", "from", "speaker", "author", "sender"), ("content", "value", "text", "message")


def keys_of(turn: Mapping[str, object]) -> tuple[str, str]:
    """The names of the fields that hold the role of a message and what it says; the usual ones where it has none."""
    who = next((name for name in SPEAKERS if name in turn), SPEAKERS[0])
    usual = WORDS[SPEAKERS.index(who)] if who in SPEAKERS[:2] else WORDS[0]
    return who, usual if usual in turn else next((name for name in WORDS if name in turn), usual)


def _role(value: object, where: str) -> str:
    known = ROLES.get(value) if isinstance(value, str) else None
    if known is None:
        role = sound(value, where)
        known = ROLES.get(role.strip().casefold())
        if known is None:
            place = where.rpartition(": ")[0]
            raise Bad(f"{place}: role {shorten(role)!r} is not known; system, user, assistant and tool are")
    return known


EXCHANGES = "with turns of a question and its answer each, taken as two"


def is_exchange(turn: Mapping[str, object]) -> bool:
    """Whether an element of a conversation is a question and its answer, as Firefly and XTuner have them."""
    if not all(isinstance(value, str) for value in turn.values()) or not set(SPEAKERS).isdisjoint(turn):
        return False
    names = [columns.bare(name) for name in turn if name != "system"]
    return len(names) == 2 and names[0] in columns.QUESTIONS and names[1] in columns.ANSWERS


def _exchange(turn: object, where: str, said: list[str]) -> list[Turn]:
    """The turns of a question and its answer in one element, or in a list of both; none for any other element."""
    if isinstance(turn, list) and len(turn) == 2 and all(isinstance(one, str) for one in turn):
        if turn[0].casefold() in ROLES:
            return [Turn(ROLES[turn[0].casefold()], sound(turn[1], where))]
        texts = [("user", turn[0]), ("assistant", turn[1])]
    elif isinstance(turn, dict) and is_exchange(turn):
        asked, answered = (value for name, value in turn.items() if name != "system")
        texts = [("system", turn.get("system", "")), ("user", asked), ("assistant", answered)]
    else:
        return []
    said.append(EXCHANGES)
    return [Turn(role, sound(text, where)) for role, text in texts if role != "system" or not is_blank(str(text))]


def _turn(turn: object, where: str, said: list[str], before: Sequence[Turn]) -> list[Turn]:
    """One message; several where it holds the results of several calls, or a question and its answer."""
    if pair := _exchange(turn, where, said):
        return pair
    if not isinstance(turn, dict):
        raise Bad(f"{where} is {describe(turn)}, not an object with role and content")
    keys = keys_of(turn)
    calls = tool_calls.calls_of(turn, where, len(before))
    for key in keys:
        if key not in turn and not (calls and key == keys[1]):
            raise Bad(f"{where} has no {key} (found: {', '.join(map(shorten, turn)) or 'nothing'})")
    role = _role(turn[keys[0]], f"{where}: {keys[0]}")
    content = turn.get(keys[1])
    if isinstance(turn[keys[0]], str) and turn[keys[0]].casefold() in ("function_call", "tool_call"):
        calls, content = tool_calls.written(content, f"{where}: {keys[1]}", len(before)), ""
    thoughts = thoughts_in(turn, where, content) if role == "assistant" else ""
    if role == "tool" and not isinstance(content, str) and not tool_calls.is_parts(content):
        content = "" if content is None else json.dumps(content, ensure_ascii=False)  # many tools give objects
    if isinstance(content, list):
        parts = tool_calls.parts(content, f"{where}: {keys[1]}", len(before))
        if len(parts.texts) > 1:
            said.append(PARTS)
        calls, content = [*calls, *parts.calls], "".join(parts.texts)
        if thoughts and parts.thoughts and thoughts.strip() != parts.thoughts.strip():
            raise Bad(f"{where} holds thoughts in a field, and others in its parts: leave one")
        thoughts = _outside(thoughts or parts.thoughts, content, where, "a field or part")
        if parts.results:
            results = [Turn("tool", text, more=_more(tool_call_id=number)) for number, text in parts.results]
            return [*results, *([Turn("user", content)] if content.strip() else [])]
    if calls and role != "assistant":
        raise Bad(f"{where} holds tool calls, which only an assistant makes")
    if content is None and calls:
        content = ""
    text = sound(content, f"{where}: {keys[1]}")
    more = _more(tool_calls=calls) if calls else ""
    if role == "tool":
        more = _more(tool_call_id=turn.get("tool_call_id"), name=turn.get("name"))
        return [Turn(role, text, more=more)]
    return [Turn(role, text, _trained(turn, role, where, said), thoughts, more)]


def _more(**fields: object) -> str:
    held = {name: value for name, value in fields.items() if value not in NOTHING}
    sound_inside(held, "tool_calls")
    return json.dumps(held, ensure_ascii=False) if held else ""


def is_thought(value: object) -> bool:
    """Whether the value of one of THOUGHTS is that: some programs have a switch or an object of that name."""
    return isinstance(value, str) and bool(value.strip())


def thoughts_in(fields: Mapping[str, object], where: str, answer: object = "") -> str:
    """What an answer was thought out with, in whichever field the row has it; "" where the answer itself holds it."""
    found = [name for name in THOUGHTS if is_thought(fields.get(name))]
    if not found:
        return ""
    texts = [sound(fields[name], f"{where}: {name}" if where else name) for name in found]
    if len(set(texts)) > 1:
        raise Bad(f"{where + ' ' if where else ''}holds different thoughts in {' and '.join(found)}: leave one")
    return _outside(texts[0], answer, where, found[0])


def _outside(thoughts: str, answer: object, where: str, place: str) -> str:
    """Thoughts beside an answer; "" where the answer itself holds them."""
    if not thoughts or not isinstance(answer, str) or "</think>" not in answer:
        return thoughts
    if thoughts.strip() not in answer:
        raise Bad(f"{where + ' ' if where else ''}holds thoughts in {place}, and others in the answer: leave one")
    return ""


def _trained(turn: Mapping[str, object], role: str, where: str, said: list[str]) -> bool:
    """Whether a message is learned, by what it says of that itself."""
    held = {name: turn[name] for name in LEARNED if turn.get(name) is not None}
    if not held:
        return True
    for name, value in held.items():
        if not isinstance(value, (bool, int, float)) or value not in (0, 1):
            shown = shorten(str(value)) if isinstance(value, (bool, int, float, str)) else describe(value)
            raise Bad(
                f"{where}: {name} = {shown}: a turn is learned whole (1, true) or stays in the context (0, false); "
                "there is no weight between"
            )
    values = {bool(value) for value in held.values()}
    if len(values) > 1:
        raise Bad(f"{where}: {' and '.join(held)} contradict each other")
    if role != "assistant" and values == {True}:
        said.append(NOT_LEARNED)
    return values == {True}


# ---- the order of turns ------------------------------------------------------------------------------------------

GREETED = "that begin with the assistant's turn, which stays in the context and is not learned"
UNANSWERED = "that end without an answer: what comes after the last one is left out"
JOINED = "with neighbouring turns of one speaker, joined into one (JOIN_TURNS = true)"


def checked(turns: list[Turn], join: bool | str, said: list[str]) -> tuple[Turn, ...]:
    """The turns as a model must see them. An empty system text is the same as none."""
    if turns and turns[0].role == "system" and is_blank(turns[0].content):
        turns = turns[1:]
    if not turns or turns[-1].role == "system" and all(turn.role == "system" for turn in turns):
        raise Bad("there are no turns")
    if _is_plain(turns):
        return tuple(turns)
    turns = [turn for turn in turns if turn.role != "system" or not is_blank(turn.content)]
    if join is True:
        turns = _joined(turns, said)
    if turns[-1].role != "assistant":
        turns = _up_to_the_last_answer(turns, said)
    before: Turn | None = None
    for turn in turns:
        if turn.role != "system":
            _check_order(turn, before, join)
            before = turn
        elif join is True:  # what stands between two turns keeps them apart
            before = None
        if is_blank(turn.content) and not turn.more and turn.role != "tool":
            said_by = {"assistant": "the answer", "user": "the user's turn", "system": "a system text"}
            raise Bad(f"{said_by[turn.role]} is empty")
    first = next((at for at, turn in enumerate(turns) if turn.role != "system"), 0)
    if turns[first].role == "assistant":
        if all(turn.role != "user" for turn in turns):
            raise Bad("roles do not alternate: assistant comes first, user was expected")
        while turns[first].role != "user":  # with JOIN_TURNS = false it may be several
            turns = [*turns[:first], replace(turns[first], trained=False), *turns[first + 1 :]]
            first += 1
        said.append(GREETED)
    if not any(turn.trained for turn in turns if turn.role == "assistant"):
        raise Bad("no answer of it is to be learned")
    return tuple(turns)


def _is_plain(turns: Sequence[Turn]) -> bool:
    """Whether they are question and answer by turns, behind one system text at most, with nothing to look into."""
    expected = "user"
    for number, turn in enumerate(turns):
        if turn.role != expected:
            if number or turn.role != "system":
                return False
            continue
        if turn.more or is_blank(turn.content):
            return False
        expected = "user" if expected == "assistant" else "assistant"
    return expected == "user" and turns[-1].trained


def _check_order(turn: Turn, before: Turn | None, join: bool | str) -> None:
    role, last = turn.role, before.role if before else ""
    if role == "tool":
        if last == "tool" or (before and last == "assistant" and before.more):
            return
        raise Bad(f"roles do not alternate: a tool's result comes {f'after {last}' if last else 'first'}, no call does")
    if last == role and join is not False:
        expected = "assistant" if role == "user" else "user"
        raise Bad(
            f"roles do not alternate: {role} comes after {role}, {expected} was expected; "
            "JOIN_TURNS = true makes one turn of them, false keeps them apart"
        )


def _up_to_the_last_answer(turns: list[Turn], said: list[str]) -> list[Turn]:
    last = max((at for at, turn in enumerate(turns) if turn.role == "assistant"), default=-1)
    if last < 0 or all(turn.role in ("system", "assistant") for turn in turns[: last + 1]):
        raise Bad(f"the last turn is the {turns[-1].role}'s: the answer is missing")
    said.append(UNANSWERED)
    return turns[: last + 1]


def _joined(turns: list[Turn], said: list[str]) -> list[Turn]:
    """Neighbouring turns of one speaker as one, with a blank line between them."""
    found: list[Turn] = []
    for turn in turns:
        if not found or found[-1].role != turn.role or turn.role == "tool":
            found.append(turn)
            continue
        last = found[-1]
        if turn.role == "assistant" and last.trained != turn.trained:
            raise Bad(
                "two neighbouring turns of the assistant, of which one is learned and the other is not, are not one"
            )
        if last.more and turn.content.strip():
            raise Bad(
                "an answer that calls tools and the next one, which says something, are not one: what it says would stand "
                "before the calls; JOIN_TURNS = false keeps them apart"
            )
        said.append(JOINED)
        content = "\n\n".join(text for text in (last.content, turn.content) if text.strip())
        thoughts = "\n\n".join(text for text in (last.thoughts, turn.thoughts) if text.strip())
        calls = [call for one in (last, turn) if one.more for call in json.loads(one.more).get("tool_calls", [])]
        found[-1] = Turn(turn.role, content, turn.trained, thoughts, _more(tool_calls=calls) if calls else "")
    return found
