"""Who of those that write in a chat its owner is: the one whose messages are learned."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache

from training.chats.messages import Chat, Message
from training.errors import UserError
from training.system.wording import counted, listed, shorten

SHOWN = 12
# The number of a phone, by which one is shown who is no contact.
NUMBER, NO_DIGIT = re.compile(r"\+[\d .()/\u2010-\u2015-]{7,}"), r"\D"


@lru_cache(maxsize=1 << 14)
def key(name: str) -> str:
    """A name as it is compared: without case, an @ in front and signs that nobody sees, with plain blanks; a number's digits.

    Who types a name has its accents as one sign, or as two, and an emoji with or without what says that it is coloured.
    """
    plain = "".join(sign for sign in unicodedata.normalize("NFC", name) if not _is_unseen(sign))
    plain = " ".join(plain.split()).removeprefix("@").casefold()
    return f"+{re.sub(NO_DIGIT, '', plain)}" if NUMBER.fullmatch(plain) else plain


def _is_unseen(sign: str) -> bool:
    return sign in "\ufe0e\ufe0f" or unicodedata.category(sign) == "Cf"


def owner_of(chats: Sequence[Chat], my_names: Sequence[str], place: str) -> frozenset[str]:
    """The names, as `key` has them, of the owner of these chats; none where each message says whose it is.

    UserError naming those who write in them where nothing tells.
    """
    everybody = Counter(message.who for chat in chats for message in chat.messages)
    if my_names:
        wanted = {key(name) for name in my_names}
        known = {key(name) for message in _all(chats) for name in message.names()}
        if missing := sorted(name for name in my_names if key(name) not in known):
            raise UserError(
                f"--my-name {missing[0]}: nobody of that name writes in {place}{_meant(missing[0], everybody)}"
            )
        return frozenset(wanted)
    if all(message.mine is not None for message in _all(chats)):
        return frozenset()
    found = set()
    for chat in chats:
        others = {message.who for message in chat.messages if key(message.who) == key(chat.partner)}
        mine = {message.who for message in chat.messages} - others
        if not others or len(mine) != 1:
            break
        found |= mine
    else:
        if len(found) == 1:
            return frozenset(map(key, found))
    raise UserError(f"{place}: --my-name says whose answers are to be learned: {_people(everybody)}")


def is_mine(message: Message, owner: frozenset[str]) -> bool:
    """Whether the owner wrote a message."""
    if owner:
        return any(key(name) in owner for name in message.names())
    return bool(message.mine)


def _all(chats: Iterable[Chat]) -> Iterable[Message]:
    return (message for chat in chats for message in chat.messages)


def _people(everybody: Counter[str]) -> str:
    named = [f"{shorten(who)} ({counted(count, 'message')})" for who, count in everybody.most_common(SHOWN)]
    left = len(everybody) - len(named)
    return listed(named).replace(" and ", " or ") + (f" or one of {left:,} others" if left > 0 else "")


def _meant(name: str, everybody: Counter[str]) -> str:
    near = difflib.get_close_matches(key(name), list(map(key, everybody)), n=1, cutoff=0.6)
    meant = next((who for who in everybody if near and key(who) == near[0]), None)
    return f"; did you mean {shorten(meant)}?" if meant else f"; there write {_people(everybody)}"
