"""A chat as WhatsApp exports it: a text with a date and a name in front of each message, as the phone's locale writes them.

There is no published format. A message begins with its head; any other line goes on with the message before it, and a line
that a message holds may look like a head itself. So a head must be written as those of this file are, and in its time.
"""

from __future__ import annotations

import bisect
import re
from collections import Counter
from dataclasses import dataclass

from training.chats import dates
from training.chats import messages as kinds
from training.chats import whatsapp_words as words
from training.chats.dates import MARKS, Stamp
from training.chats.messages import Chat, Left, Message
from training.chats.opening import Member
from training.errors import UserError
from training.system.wording import counted

_LEAD = rf"[{MARKS}\s]*"
# [04.03.24, 14:05:09] Ann: ...   and   3/4/24, 2:05 PM - Ann: ...   and, of old iPhones,   13.06.18 21.25.15: Ann: ...
HEADS = {
    "brackets": re.compile(rf"{_LEAD}\[{dates.STAMP}\] ?(?P<rest>.*)"),
    "dash": re.compile(rf"{_LEAD}{dates.STAMP} [-–] (?P<rest>.*)"),
    "colon": re.compile(rf"{_LEAD}{dates.STAMP}: (?P<rest>.*)"),
}
NAME = re.compile(r"(?P<who>[^:\n]{1,100}?)[ \u00a0]?:(?: |$)(?P<text>.*)", re.DOTALL)
QUOTES = re.compile('["“”„«»「」]')
LATE = 86400  # seconds by which a message may stand behind a later one: some arrive late
# A log of a program begins its lines so, too.
LOG = re.compile(r"\[?\d{4}-\d\d-\d\d[T ]\d")
CERTAIN = 2  # heads, with that in the first line, that make a text a chat of WhatsApp
AS_TAG = 3  # times that the same <...> alone is a message before it is taken for WhatsApp's own


@dataclass(frozen=True)
class _Head:
    """The head of a message, on the line of that index, and what follows it there."""

    index: int
    at: Stamp
    rest: str
    written: tuple[str, ...]


def read(member: Member, left: Left, order: str | None = None, encoding: str = "auto") -> list[Chat]:
    """The one chat of an export. `order`: of day, month and year, where the file is not to say it.

    UserError where there is no chat in it, or where its dates can be read in two ways.
    """
    lines = member.text(encoding).replace("\r\n", "\n").split("\n")
    heads = _heads(lines)
    if not heads:
        raise UserError(
            f"{member.place()}: no line begins as WhatsApp writes a message (3/4/24, 14:05 - Ann: Hello, or "
            "[04.03.24, 14:05:09] Ann: Hello)"
        )
    stamps, place = [head.at for head in heads], f"{member.place()}:{heads[0].index + 1}"
    chosen = order or dates.order_of(stamps, place)
    if chosen is None:
        raise UserError(f"{place}: its dates are days of no calendar that is known here; is it a chat of WhatsApp?")
    times = dates.moments(stamps, chosen, member.place(), given=order is not None)
    kept = _in_their_time(times)
    if quoted := len(heads) - len(kept):
        own = set(kept)
        first = next(head.index for at, head in enumerate(heads) if at not in own) + 1
        left.notes.append(
            f"{counted(quoted, 'line')} like the head of a message, but out of time (line {first} first): a part of the "
            "message before"
        )
    bodies = _bodies(lines, [heads[at] for at in kept])
    said = (match["text"].strip() for _, body in bodies if (match := NAME.match(body)))
    tags = Counter(text for text in said if text.startswith("<") and text.endswith(">"))
    found = []
    for at, (head, body) in zip(kept, bodies, strict=True):
        if message := _message(head, body, times[at], tags, left):
            found.append(message)
    return [Chat(name=_name(member), messages=found)]


def is_certain(head: str) -> bool:
    """Whether a text that begins like this is a chat of WhatsApp and no list of samples."""
    lines = [line for line in head.replace("\r\n", "\n").split("\n")[:200] if re.sub(rf"[{MARKS}\s]", "", line)]
    found = _heads(lines)
    if len(found) < CERTAIN or found[0].index or LOG.match(lines[0]):
        return False
    return any(NAME.match(one.rest) for one in found)


def _heads(lines: list[str]) -> list[_Head]:
    """The lines that begin a message, all written in the way that most of them are."""
    found: list[_Head] = []
    for index, line in enumerate(lines):
        # Quick: few lines are without a digit near their beginning.
        if not any(character.isdigit() for character in line[:12]):
            continue
        for style, pattern in HEADS.items():
            match = pattern.match(line)
            if match and (at := dates.stamp(match)):
                written = (style, re.sub(r"[^./年-]", "", match["between"]), match["colon"], str(bool(match["second"])))
                found.append(_Head(index, at, match["rest"], written))
                break
    if not found:
        return []
    # The first is no quotation. On some phones a setting was changed on the way, so that a second way is as frequent.
    ways = Counter(one.written for one in found)
    most = ways.most_common(1)[0][1]
    own = {found[0].written, *(way for way, count in ways.items() if count > max(20, most / 4))}
    return [one for one in found if one.written in own]


def _in_their_time(times: list[float | None]) -> list[int]:
    """Which heads stand in the order of time, by their numbers: the longest row of them that does, and what is but late.

    The others are of a chat that was pasted into a message.
    """
    # The least last time of a row of each length, and where it ends; each with the one before it.
    ends: list[float] = []
    at_end: list[int] = []
    before: dict[int, int] = {}
    # The first head is no quotation, unless all that follows contradicts it.
    known = [time for time in times if time is not None]
    least = known[0] if known and sum(time >= known[0] for time in known) > len(known) / 2 else float("-inf")
    for number, time in enumerate(times):
        if time is None or time < least:
            continue
        place = bisect.bisect_right(ends, time)
        if place:
            before[number] = at_end[place - 1]
        ends[place : place + 1] = [time]
        at_end[place : place + 1] = [number]
    row: set[int] = set()
    last = at_end[-1] if at_end else None
    while last is not None:
        row.add(last)
        last = before.get(last)
    # One that is out of it, but near the next one in it before or behind, came late.
    near = [_nearest(times, row, way) for way in (range(len(times)), range(len(times) - 1, -1, -1))]
    kept = []
    for number, time in enumerate(times):
        beside = [there[number] for there in near]
        if number in row or time is not None and any(one is not None and abs(time - one) <= LATE for one in beside):
            kept.append(number)
    return kept


def _nearest(times: list[float | None], row: set[int], way: range) -> dict[int, float | None]:
    """For each number the time of the last one in the row that comes before it on the way."""
    found: dict[int, float | None] = {}
    last: float | None = None
    for number in way:
        found[number] = last
        last = times[number] if number in row else last
    return found


def _bodies(lines: list[str], heads: list[_Head]) -> list[tuple[_Head, str]]:
    """Each head with all that is said behind it, also on the lines below."""
    ends = [head.index for head in heads[1:]] + [len(lines)]
    found = []
    for head, end in zip(heads, ends, strict=True):
        below = "\n".join(lines[head.index + 1 : end]).rstrip("\n\r ")
        found.append((head, f"{head.rest}\n{below}" if below else head.rest))
    return found


def _message(head: _Head, body: str, time: float | None, tags: Counter[str], left: Left) -> Message | None:
    """A message with what its writer wrote; None where nothing of it is a person's."""
    match = NAME.match(body)
    who = _bare(match["who"]) if match else ""
    if not match or not who or QUOTES.search(who) or words.EVENT.search(who) or words.OWN.match(body):
        left.counts[kinds.SYSTEM] += 1
        return None
    text, what = _text(match["text"], tags, left)
    if what:
        left.counts[what] += 1
        return None
    return Message(who=who, text=text, time=time, line=head.index + 1)


def _bare(name: str) -> str:
    """A name without marks of direction, and without the ~ that stands before one who is no contact."""
    bare = re.sub(rf"[{MARKS}]", "", name).replace("\u202f", " ").replace("\u00a0", " ").strip()
    return bare.removeprefix("~").strip() if bare.startswith("~") else bare


def _text(body: str, tags: Counter[str], left: Left) -> tuple[str, str]:
    """What was written, or why nothing was: one of the kinds that are counted."""
    marked = body.startswith("\u200e")
    body, edited = _without_edited(body)
    bare = body.strip("\u200e\u200f \n")
    first, _, below = bare.partition("\n")
    if words.is_one_of(words.DELETED, bare) or words.DELETED_BY.fullmatch(bare):
        return "", kinds.DELETED
    if words.ATTACHED_ON_IPHONE.search(body):
        bare = words.ATTACHED_ON_IPHONE.sub("", body).strip("\u200e\u200f \n")
        return (bare, "") if bare else ("", kinds.MEDIA)
    is_tag = first.startswith("<") and first.endswith(">")
    if (
        words.ATTACHED.fullmatch(first)
        or is_tag
        and (
            words.is_one_of(words.OMITTED, first.strip("<>"))
            or tags[bare] >= AS_TAG
            and ":" not in first
            and not _is_markup(first)
        )
    ):
        # Below it stands what was written to it, or the name of a file.
        below = below.strip()
        return ("", kinds.MEDIA) if not below or re.fullmatch(r"[^\n]{1,200}\.\w{2,5}", below) else (below, "")
    if not bare or bare == "null" or any(one.match(bare) for one in (words.LOCATION, words.POLL)):
        return "", kinds.MEDIA
    if words.OMITTED_ON_IPHONE.fullmatch(first):
        return "", kinds.MEDIA
    if marked or words.CALL.fullmatch(bare) or words.EVENT.search(first) and words.NOTICE.match(first):
        return "", kinds.SYSTEM
    left.edited += edited
    return bare, ""


def _without_edited(body: str) -> tuple[str, bool]:
    """A message without the remark that it was edited: what stands there is what was meant in the end."""
    cut = body.rfind("<")
    if cut > 0 and body.rstrip().endswith(">") and words.is_one_of(words.EDITED, body[cut:].strip().strip("<>")):
        return body[:cut].rstrip("\u200e \u00a0\n"), True
    return body, False


def _is_markup(text: str) -> bool:
    return re.fullmatch(r"</?[a-zA-Z][\w-]*(?: [^<>]*)?/?>", text) is not None and " " not in text


def _name(member: Member) -> str:
    stem = member.name.rsplit("/", 1)[-1].removesuffix(".txt")
    if stem == "_chat":
        stem = member.source.path.stem
    return re.sub(r"(?i)^whatsapp[ -]chat(?: with| mit| -)? ?", "", stem).strip() or stem
