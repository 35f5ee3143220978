"""What a report is made of: plain blocks, which as_markdown.py turns into Markdown and as_html.py into HTML."""

from __future__ import annotations

from dataclasses import dataclass

from training.report.curves import Chart
from training.report.schema import Sample


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


@dataclass(frozen=True)
class Pictures:
    """Charts, the first one large."""

    charts: tuple[Chart, ...]


@dataclass(frozen=True)
class Answers:
    """Questions with both answers."""

    samples: tuple[Sample, ...]


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


Block = Text | Commands | Table | Pictures | Answers | Details
