"""What is noticed of rows on the way: no error, but seldom meant. Rows that are there twice, garbled text, unused columns."""

from __future__ import annotations

import hashlib
import re
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from training.data import likeness
from training.data.markup import WRITTEN_TURN
from training.data.private import WHAT
from training.data.record import SHOWN, place, places
from training.data.rows import Row
from training.data.turns import Turn
from training.system.wording import shorten

if TYPE_CHECKING:
    import datasets
    import numpy as np
    from numpy.typing import NDArray

MOST_COLUMNS = 20  # unused columns that are told of: a broken file may have a new one in every row
BLANKS = 64  # characters: of a longer answer nobody asks whether blanks are all that it holds
SHORT_ANSWER, LONG_ROW = 2, 100_000  # characters: a row outside of these is worth a look
# UTF-8 that was read as Latin-1 or cp1252 ("Ã©", "â€™", "ä½\xa0"), or what a decoder puts where it gave up.
MOJIBAKE = re.compile("\ufffd|Ã[\u0080-\u00bf]|â€[\u0080-\u00bf™œ\u201c\u201d¦]|[äåæçèé][\u0080-\u00bf]{2}|锟斤拷")
GARBLED = re.compile("[\ufffdÃâäåæçèé锟]")  # what each alternative begins with: it is found many times faster
# Characters as HTML writes them, and a line break as programs write it into a text of one line.
ENTITY = re.compile("&(?:amp|lt|gt|quot|nbsp|apos|#39|#x27|#34);")
UNUSED = "unused "  # begins the kind of a note on a column
READ_AS = "read as "  # begins the kind of a note on how rows were read
PRIVATE = "private "  # begins the kind of a note on private things


@dataclass
class Seen:
    """What is remembered of the rows of one file: 24 bytes a row."""

    prompts: array[int] = field(default_factory=lambda: array("Q"))
    exact: array[int] = field(default_factory=lambda: array("Q"))
    normalised: array[int] = field(default_factory=lambda: array("Q"))
    counts: Counter[str] = field(default_factory=Counter)
    lines: dict[str, list[int]] = field(default_factory=dict)  # the first SHOWN of each kind

    def add(self, later: Seen) -> None:
        """Take in what was seen of the rows that follow."""
        for name in ("prompts", "exact", "normalised"):
            getattr(self, name).extend(getattr(later, name))
        for kind, lines in later.lines.items():
            if kind in self.lines or not kind.startswith((UNUSED, READ_AS)) or self._room():
                self.counts[kind] += later.counts[kind]
                own = self.lines.setdefault(kind, [])
                own += lines[: SHOWN - len(own)]
        self.counts.update({kind: later.counts[kind] for kind in ("turns", "text", "tools")})

    def _room(self) -> bool:
        return sum(kind.startswith((UNUSED, READ_AS)) for kind in self.lines) < MOST_COLUMNS

    def note(self, kind: str, line: int) -> None:
        self.counts[kind] += 1
        lines = self.lines.setdefault(kind, [])
        if len(lines) < SHOWN:
            lines.append(line)


def _number(*parts: str) -> int:
    """64 bits of a hash; Python's own differs from process to process."""
    digest = hashlib.blake2b("\0".join(parts).encode("utf-8"), digest_size=8)
    return int.from_bytes(digest.digest(), "little")


def numbers(row: Row) -> tuple[int, int, int]:
    """Numbers that tell rows apart: by all their text, by all of it with white space made alike, by their prompt.

    The prompt is what the user says before the first answer, with white space made alike; of plain text it is all of it.
    """
    texts = _texts(row)
    roles = [turn.role for turn in row.messages or ()]
    alike = [" ".join(text.split()) for text in texts]
    aside = [*roles, *_aside(row)]
    exact = _number(*texts, *aside)
    normalised = exact if alike == texts else _number(*alike, *aside)
    if row.messages is None:
        return exact, normalised, normalised
    asked = roles.index("user")
    first_answer = roles.index("assistant", asked)  # a greeting may stand in front of both
    return exact, normalised, _number(*(alike[i] for i in range(asked, first_answer) if roles[i] == "user"))


def _texts(row: Row) -> list[str]:
    return [row.text or ""] if row.messages is None else [turn.content for turn in row.messages]


def _aside(row: Row) -> list[str]:
    """What rows may differ in besides: tools, calls, thoughts, what is learned."""
    if not row.has_aside():
        return []
    return [row.tools, *(f"{turn.trained} {turn.thoughts} {turn.more}" for turn in row.messages or ())]


def _is_short(turn: Turn) -> bool:
    return turn.role == "assistant" and not turn.more and len(turn.content.strip()) < SHORT_ANSWER


def remember(row: Row, seen: Seen) -> None:
    texts = _texts(row)
    if row.messages is None:
        seen.counts["text"] += 1
        if WRITTEN_TURN.match(texts[0].lstrip()):
            seen.note("half", row.line)
    else:
        seen.counts["turns"] += 1
        if row.has_aside() and (row.tools or any(turn.more for turn in row.messages)):
            seen.counts["tools"] += 1
        for turn in row.messages:
            if len(turn.content) < BLANKS and _is_short(turn):
                seen.note("short", row.line)
                break
    if sum(map(len, texts)) > LONG_ROW:
        seen.note("long", row.line)
    if any(not text.isascii() and GARBLED.search(text) and MOJIBAKE.search(text) for text in texts):
        seen.note("mojibake", row.line)
    for text in texts:
        if "&" in text and ENTITY.search(text):
            seen.note("entities", row.line)
            break
    if not any("\n" in text for text in texts) and any("\\n" in text for text in texts):
        seen.note("breaks", row.line)
    for name in row.unused:
        seen.note(UNUSED + name, row.line)
    for said in row.read_as:
        seen.note(READ_AS + said, row.line)
    for kind in row.private:
        seen.note(PRIVATE + kind, row.line)
    exact, normalised, prompt = numbers(row)
    seen.exact.append(exact)
    seen.normalised.append(normalised)
    seen.prompts.append(prompt)


def warnings(path: Path, seen: Seen, rows: datasets.Dataset) -> list[str]:
    """What is no error but seldom meant, each with a count and the first lines. `rows`: the rows as a dataset."""
    import numpy as np

    told = []
    exact = _repeated(seen.exact)
    alike = np.setdiff1d(_repeated(seen.normalised), exact)
    for found, what in ((exact, ""), (alike, " but for white space")):
        if len(found):
            lines = rows.select(found[:SHOWN])["line"][:]
            told.append(warning(path, lines, len(found), f"the same as an earlier one{what}"))
    for pairs, what in (
        (likeness.near_duplicates(rows, seen.normalised), "nearly the same as an earlier one"),
        (
            likeness.contradictions(rows, seen.prompts, seen.normalised),
            "with a question that an earlier one answers otherwise",
        ),
    ):
        if pairs:
            lines = rows.select([later for later, _ in pairs[:SHOWN]])["line"][:]
            (first,) = rows.select([pairs[0][1]])["line"][:]
            told.append(warning(path, lines, len(pairs), f"{what} ({place(path, first)})"))
    words = {
        "short": f"with an answer shorter than {SHORT_ANSWER} characters",
        "long": f"longer than {LONG_ROW:,} characters",
        "mojibake": "with garbled text (UTF-8 read as something else, like Ã© for é)",
    }
    words["entities"] = "with characters as HTML writes them (&amp; for &), which are learned so"
    words["breaks"] = "with \\n written out and no line break, which is learned so"
    words["half"] = (
        "with text that begins like a turn (User:, 用户：) and holds no whole exchange, trained as plain text"
        + ("; each line of a TXT file is a sample" if ".txt" in path.suffixes else "")
    )
    unused = {
        kind: f"with {shorten(kind.removeprefix(UNUSED))!r}, which is not used"
        for kind in seen.lines
        if kind.startswith(UNUSED)
    }
    held = {
        f"{PRIVATE}{kind}": f"with {what}, which is learned (ON_PRIVATE = mask writes a mask in its place)"
        for kind, what in WHAT.items()
    }
    for kind, what in (words | held | unused).items():
        if seen.counts[kind]:
            told.append(warning(path, seen.lines[kind], seen.counts[kind], what))
    return told


def read_as(path: Path, seen: Seen) -> list[str]:
    """How rows were read that are not written as training writes them, once for each way."""
    return [
        warning(path, lines, seen.counts[kind], kind.removeprefix(READ_AS))
        for kind, lines in seen.lines.items()
        if kind.startswith(READ_AS)
    ]


def warning(path: Path | str, lines: Sequence[int], count: int, what: str) -> str:
    """`path:4: 7 rows <what>; lines 4, 9, 12, 15, 16 and 2 more`. `lines`: those of the first rows."""
    named = f"; {places(lines, count)}" if count > 1 else ""
    return f"{place(path, lines[0])}: {count_rows(count)} {what}{named}"


def _repeated(numbers: array[int]) -> NDArray[np.int64]:
    """The places (sorted integers) of the numbers that stood earlier already."""
    import numpy as np

    values = np.asarray(numbers)
    return np.setdiff1d(np.arange(len(values)), np.unique(values, return_index=True)[1], assume_unique=True)


def count_rows(count: int) -> str:
    return f"{count:,} row{'s' * (count != 1)}"
