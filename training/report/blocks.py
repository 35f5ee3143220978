"""What a report is made of: plain blocks, which as_markdown.py turns into Markdown and as_html.py into HTML."""

from __future__ import annotations

from dataclasses import dataclass

from training.report.curves import Chart


@dataclass(frozen=True)
class Text:
    """A paragraph; `tone` is good, bad, warn or nothing."""

    text: str
    tone: str = ""


@dataclass(frozen=True)
class Commands:
    """Lines to be typed."""

    lines: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """`numbers` are the columns that align right, `code` those in a fixed-width type, `marks` the one that says passed or failed."""

    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: tuple[int, ...] = ()
    code: tuple[int, ...] = ()
    marks: int | None = None
    # The column with paths from the page's own folder, which the page makes links of.
    links: int | None = None


@dataclass(frozen=True)
class Pictures:
    """Charts, the first one large."""

    charts: tuple[Chart, ...]


@dataclass(frozen=True)
class Reply:
    """One answer to a question: whose it is, and what it looks like (base, tuned, quantised, run1 to run6).

    `stopped`: None where it was cut off before that could be told. `same`: another reply says the same, which is told in place
    of its text.
    """

    who: str
    text: str
    kind: str = ""
    stopped: bool | None = True
    same: str = ""

    @property
    def ending(self) -> str:
        """How it ended, where that was not by itself."""
        if self.stopped is None:
            return "cut off where the asking ends"
        return "" if self.stopped else "cut off: it did not stop by itself"


@dataclass(frozen=True)
class Asked:
    """One question with all answers to it."""

    question: str
    expected: str
    replies: tuple[Reply, ...]


@dataclass(frozen=True)
class Answers:
    """Questions with their answers."""

    asked: tuple[Asked, ...]


@dataclass(frozen=True)
class Bar:
    """Parts of a whole, as one bar: names with their figures."""

    title: str
    parts: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Details:
    """Blocks that only who asks wants to see: folded in the page, left out of report.md."""

    title: str
    blocks: tuple[Block, ...]
    printed: bool = True  # on paper, where nothing unfolds


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    title: str
    blocks: tuple[Block, ...]


Block = Text | Commands | Table | Pictures | Answers | Bar | Details
