"""What was found in an export, for its owner to look at before anything is written."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import lru_cache
from pathlib import Path

from training.chats.conversations import Conversation, Cutting, Unused, speakers
from training.chats.messages import Chat, Left
from training.chats.speakers import is_mine
from training.system.wording import counted, shorten

SHOWN = 6  # people, and languages
# The first word of a character's Unicode name -> the writing that it is of.
WRITINGS = {
    "LATIN": "Latin letters",
    "CJK": "Chinese characters",
    "HIRAGANA": "Japanese",
    "KATAKANA": "Japanese",
    "HANGUL": "Korean",
    "CYRILLIC": "Cyrillic",
    "ARABIC": "Arabic",
    "HEBREW": "Hebrew",
    "GREEK": "Greek",
    "DEVANAGARI": "Devanagari",
    "THAI": "Thai",
}
# The commonest words of the languages in Latin letters, those that are no word of another of them.
COMMON = {
    "English": "the and you that is was for with have this not what are it's i'm",
    "German": "und nicht ich ist das der auch mit ein wir noch aber habe für schon",
    "Spanish": "que el los pero por una está con para muy qué hay eso bien",
    "French": "les je est pas vous des c'est une pour dans mais avec j'ai oui",
    "Portuguese": "não você uma com para isso mas eu está muito são vai já",
    "Italian": "che di non sono è per ma una del anche come ho questo della",
    "Dutch": "het een niet ik dat van maar voor ook zijn nog wel naar heb",
    "Polish": "nie się jest na że to co ale jak tak czy mam już",
    "Turkish": "bir ve bu çok için ama ben mi da ne var yok evet",
    "Indonesian": "yang dan di itu tidak ini aku ada saya kamu sudah bisa",
}
WORDS: dict[str, str] = {}
for _language, _words in COMMON.items():
    for _word in _words.split():
        # A word of two languages tells neither.
        WORDS[_word] = "" if _word in WORDS else _language


@dataclass(kw_only=True)
class Picture:
    """What an export holds, and what becomes of it."""

    path: Path
    program: str
    chats: Sequence[Chat]
    owner: frozenset[str]
    left: Left
    cutting: Cutting
    unused: Unused = field(default_factory=Unused)
    conversations: int = 0
    turns: int = 0
    answers: int = 0
    longest: Conversation | None = None
    letters: Counter[str] = field(default_factory=Counter)
    words: Counter[str] = field(default_factory=Counter)
    first: float | None = None
    last: float | None = None

    def add(self, found: Conversation) -> None:
        """Take a conversation into the picture."""
        self.conversations += 1
        self.turns += len(found.turns)
        self.answers += sum(role == "assistant" for role, _ in found.turns)
        if self.longest is None or len(found.turns) > len(self.longest.turns):
            self.longest = found
        for _, text in found.turns:
            self.letters.update(filter(None, map(_writing, text)))
            self.words.update(filter(None, (WORDS.get(word.strip('.,!?…:;()"')) for word in text.casefold().split())))
        times = [time for time in (found.begun, found.ended) if time is not None]
        self.first = min([*times, *([self.first] if self.first is not None else [])], default=None)
        self.last = max([*times, *([self.last] if self.last is not None else [])], default=None)

    def lines(self) -> Iterator[str]:
        """What to tell."""
        yield f"{self.path}: read as an export of {self.program}: {counted(len(self.chats), 'chat')}{self._people()}"
        days = list(dict.fromkeys(_day(time) for time in (self.first, self.last) if time is not None))
        span = f", {' to '.join(days)}" if days else ""
        yield (
            f"  {counted(self.conversations, 'conversation')}, {counted(self.turns, 'turn')}, "
            f"{counted(self.answers, 'answer')} to be learned{span}"
        )
        if self.longest:
            size = sum(len(text) for _, text in self.longest.turns)
            yield f"  longest: {counted(len(self.longest.turns), 'turn')}, {size:,} characters; written in: {self._languages()}"
        if left := list(self._left()):
            yield f"  left out: {'; '.join(left)}"
        if self.unused.cut_long:
            long = counted(self.unused.cut_long, "conversation")
            yield f"  {long} longer than {self.cutting.most_turns} turns: cut behind an answer (--most-turns)"
        if self.left.edited:
            yield f"  {counted(self.left.edited, 'message')} edited: as they were in the end"
        yield from (f"  {note}" for note in self.left.notes)

    def _people(self) -> str:
        everybody = [(who, count) for who, count in speakers(self.chats).most_common()]
        if any(message.role for chat in self.chats for message in chat.messages):
            return ""
        mine = {one.who for chat in self.chats for one in chat.messages if is_mine(one, self.owner)}
        named = [f"{shorten(who)}{' (you)' if who in mine else ''} {count:,}" for who, count in everybody[:SHOWN]]
        more = f" and {len(everybody) - SHOWN:,} more" if len(everybody) > SHOWN else ""
        return f"; messages: {', '.join(named)}{more}"

    def _left(self) -> Iterator[str]:
        if said := self.left.said():
            yield said
        unused = self.unused
        for count, noun, what in (
            (unused.unanswered, "conversation", "without an answer"),
            (unused.only_mine, "conversation", "in which nobody else writes"),
            (unused.after, "message", "behind the last answer"),
            (unused.far, "message", "of a group far before the answer"),
            (unused.blind, "answer", "to what is not in the export (an image, a file)"),
        ):
            if count:
                yield f"{counted(count, noun)} {what}"

    def _languages(self) -> str:
        total = self.letters.total()
        if not total:
            return "no letters"
        told = []
        for writing, count in self.letters.most_common(SHOWN):
            share = count / total
            if share < 0.01:
                continue
            name = writing
            if writing == "Latin letters" and self.words.total() >= 10:
                name = " and ".join(word for word, hits in self.words.most_common(2) if hits >= self.words.total() / 4)
            told.append(f"{name or writing} {share:.0%}")
        return ", ".join(told)


@lru_cache(maxsize=1 << 14)
def _writing(character: str) -> str:
    if not character.isalpha():
        return ""
    return WRITINGS.get(unicodedata.name(character, "").partition(" ")[0], "other letters")


def _day(time: float) -> str:
    return datetime.fromtimestamp(time, timezone.utc).strftime("%Y-%m-%d")
