"""What an export holds, whichever program wrote it: chats, their messages, and what of them was left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from training.system.wording import counted

# What is counted and not taken over, in the words of `Left.said`.
MEDIA, SYSTEM, DELETED, FORWARDED, BOTS = "media", "system lines", "deleted messages", "forwarded messages", "of bots"
HIDDEN, TOOLS, THOUGHTS = "hidden messages", "uses of tools", "thoughts"


@dataclass(frozen=True, kw_only=True)
class Message:
    """One message: who wrote it, by the name that is shown and by `other` names that also mean them.

    time: seconds, by whichever clock the export has; None where it has none. line: where it stands: a line of a text, the
    number of a message otherwise. mine: whether the export itself says that its owner wrote it; None where it does not.
    role: of an export that says who is the assistant, "user" or "assistant"; "" of all others.
    """

    who: str
    text: str
    time: float | None
    line: int
    mine: bool | None = None
    role: str = ""
    other: tuple[str, ...] = ()

    def names(self) -> tuple[str, ...]:
        """All by which its writer is known."""
        return (self.who, *self.other)


@dataclass(kw_only=True)
class Chat:
    """One chat (a channel, a thread, a conversation with an assistant), its messages in order.

    whole: it is one conversation, however long it paused. partner: who its owner talks to, where the export says that.
    """

    name: str
    messages: list[Message]
    whole: bool = False
    partner: str = ""
    system: str = ""


@dataclass(kw_only=True)
class Left:
    """What was met in an export and is no message of its rows, and what was worth a note."""

    counts: Counter[str] = field(default_factory=Counter)
    edited: int = 0
    notes: list[str] = field(default_factory=list)

    def said(self) -> str:
        """`media 61, system lines 4`; "" for nothing."""
        return ", ".join(f"{what} {count:,}" for what, count in self.counts.most_common() if count)


def in_order(messages: Sequence[Message], name: str, left: Left) -> list[Message]:
    """The messages by their times; where those of some are not known, in the order of the file, with a note of it."""
    known = [message.time for message in messages if message.time is not None]
    if len(known) == len(messages):
        return sorted(messages, key=lambda message: message.time or 0.0)
    first = next(message.line for message in messages if message.time is None)
    left.notes.append(
        f"{name}: {counted(len(messages) - len(known), 'message')} with a time that cannot be read (line {first} first): "
        "its messages stay in the order of the file, and a pause before such a one ends no conversation"
    )
    return list(messages)
