"""From chats to conversations that teach: cut where nothing was said for long, one turn of all that one side says in a row.

What the owner of the chats wrote is the assistant's; what the others wrote is the user's, with their names in front where
several do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from training.chats.messages import Chat, Message
from training.chats.speakers import is_mine, key

GAP_MINUTES = 180
MOST_TURNS = 40
GROUP_BEFORE = 12  # messages of the others that an answer in a group is given with: hundreds may stand before it


@dataclass(frozen=True, kw_only=True)
class Cutting:
    """How chats are cut: after so many minutes of silence, and after so many turns (0: not)."""

    gap_minutes: float = GAP_MINUTES
    most_turns: int = MOST_TURNS


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """One row: the turns as (role, text), the line or number at which it begins, and when."""

    turns: tuple[tuple[str, str], ...]
    line: int
    begun: float | None
    ended: float | None

    def messages(self) -> list[dict[str, str]]:
        """The turns as the rows of training have them."""
        return [{"role": role, "content": text} for role, text in self.turns]


@dataclass(kw_only=True)
class Unused:
    """What a chat holds that becomes no row."""

    unanswered: int = 0
    only_mine: int = 0
    far: int = 0
    after: int = 0
    cut_long: int = 0
    blind: int = 0


@dataclass
class _Turn:
    role: str
    parts: list[str] = field(default_factory=list)
    line: int = 0


def conversations(chat: Chat, owner: frozenset[str], cutting: Cutting, unused: Unused) -> Iterator[Conversation]:
    """The conversations of a chat that hold an answer of its owner's, in order."""
    if any(message.role for message in chat.messages):
        pieces, is_group = [_seen(chat.messages, unused)], False
    else:
        pieces = [list(chat.messages)] if chat.whole else list(_cut(chat.messages, cutting.gap_minutes * 60))
        is_group = len({key(one.who) for one in chat.messages if not is_mine(one, owner)}) > 1
    # Lines of one hand in a chat; paragraphs of an answer.
    between = "\n\n" if any(message.role for message in chat.messages) else "\n"
    for piece in pieces:
        turns = _turns(piece, owner, is_group, unused)
        while turns and turns[-1].role == "user":
            unused.after += len(turns[-1].parts)
            turns.pop()
        if not turns:
            unused.unanswered += 1
            continue
        if all(turn.role == "assistant" for turn in turns):
            unused.only_mine += 1
            continue
        for part in _pieces(turns, cutting.most_turns, unused):
            said = [("system", chat.system)] if chat.system.strip() else []
            said += [(turn.role, between.join(turn.parts)) for turn in part]
            yield Conversation(turns=tuple(said), line=part[0].line, begun=_first(piece), ended=_last(piece))


def _seen(messages: Sequence[Message], unused: Unused) -> list[Message]:
    """The messages to an assistant, but for answers to what cannot be seen here: an image, a file."""
    kept: list[Message] = []
    blind = False
    for message in messages:
        if message.role == "user":
            blind = not message.text.strip()
        if blind:
            unused.blind += message.role == "assistant"
        elif message.text.strip():
            kept.append(message)
    return kept


def _cut(messages: Sequence[Message], gap: float) -> Iterator[list[Message]]:
    """The messages, cut where `gap` seconds lie between two."""
    piece: list[Message] = []
    for message in messages:
        last = piece[-1].time if piece else None
        if last is not None and message.time is not None and message.time - last > gap:
            yield piece
            piece = []
        piece.append(message)
    if piece:
        yield piece


def _turns(messages: Sequence[Message], owner: frozenset[str], is_group: bool, unused: Unused) -> list[_Turn]:
    """Question and answer by turns. In a group, the others' names stand in front of what they say."""
    turns: list[_Turn] = []
    for message in messages:
        role = message.role or ("assistant" if is_mine(message, owner) else "user")
        if not turns or turns[-1].role != role:
            if is_group and role == "assistant":
                _shorten(turns, unused)
            turns.append(_Turn(role, line=message.line))
        name = f"{message.who}: " if is_group and role == "user" else ""
        turns[-1].parts.append(f"{name}{message.text.strip()}")
    return turns


def _shorten(turns: list[_Turn], unused: Unused) -> None:
    """Leave of what the others said before an answer the last of it."""
    if turns and turns[-1].role == "user" and (far := len(turns[-1].parts) - GROUP_BEFORE) > 0:
        unused.far += far
        turns[-1].parts = turns[-1].parts[far:]


def _pieces(turns: list[_Turn], most: int, unused: Unused) -> Iterator[list[_Turn]]:
    """The turns in pieces of `most` at most, each of which ends with an answer."""
    if not most or len(turns) <= most:
        yield turns
        return
    unused.cut_long += 1
    while turns:
        end = min(most, len(turns))
        # Question and answer alternate, so that one of the two last is an answer.
        end -= turns[end - 1].role == "user"
        piece, turns = turns[:end], turns[end:]
        if any(turn.role == "user" for turn in piece):
            yield piece


def _first(messages: Sequence[Message]) -> float | None:
    return next((one.time for one in messages if one.time is not None), None)


def _last(messages: Sequence[Message]) -> float | None:
    return _first(messages[::-1])


def speakers(chats: Sequence[Chat]) -> Counter[str]:
    """How many messages each wrote."""
    return Counter(message.who for chat in chats for message in chat.messages)
