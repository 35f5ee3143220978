"""What an export holds, whichever program wrote it: chats, their messages, and what of them was left out."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

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
