"""report.md: the report for a person in a hurry, to be read as it is in a terminal or rendered by a Markdown viewer."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence

from training.report import charts, contents
from training.report.blocks import Answers, Asked, Block, Commands, Pictures, Table, Text
from training.report.schema import Report
from training.system import wording
from training.system.privacy import redact, shown
from training.system.wording import columns, fold

TERMINAL = 80  # columns
SAID = ("validation loss", "steps")  # by the sentences above the headline's figures
QUESTIONS = 3  # shown here; all of them stand in report.html
LONGEST_ANSWER = 1200  # characters
WIDEST_PADDING = 48  # columns to which a table's cells are lined up; longer ones stand out


def markdown(report: Report) -> str:
    """The whole of report.md."""
    lines = [f"# {inline(report.name)}", ""]
    lines += [paragraph(contents.result(report).text, "**"), "", paragraph(contents.trained(report)), ""]
    if figures_line := [f"{name} {value}" for name, value in contents.headline(report) if name not in SAID]:
        lines += [paragraph(", ".join(figures_line)), ""]
    for section in contents.sections(report):
        parts = [part for block in section.blocks if (part := render(block))]
        if parts:
            lines += [f"## {section.title}", "", "\n\n".join(parts), ""]
    when = wording.moment(report.run.finished or report.run.started)
    ended = f"Run {report.run.id}, {report.run.state} {when}".rstrip()
    lines.append(paragraph(f"{ended}. Curves and every figure: report.html"))
    return "\n".join(lines) + "\n"


def render(block: Block) -> str:
    """One block as Markdown; folded details are left to report.html."""
    if isinstance(block, Text):
        return ("- " if block.tone == "warn" else "") + paragraph(block.text)
    if isinstance(block, Commands):
        return fence("\n".join(block.lines), "sh")
    if isinstance(block, Pictures):
        return fence(charts.text(block.charts[0]), "text")
    if isinstance(block, Table):
        return table(block)
    if isinstance(block, Answers):
        shown = "\n\n".join(_answers(asked) for asked in block.asked[:QUESTIONS])
        more = len(block.asked) - QUESTIONS
        return shown + (f"\n\n{more} more in report.html" if more > 0 else "")
    return ""


def _answers(asked: Asked) -> str:
    lines = [f"### {inline(beginning(asked.question, 200))}", ""]
    if asked.expected:
        lines += [f"expected: {inline(beginning(asked.expected, 400))}", ""]
    for reply in asked.replies:
        ending = f" ({reply.ending})" if reply.ending else ""
        if reply.same:
            lines += [f"{inline(reply.who)}{ending}: the same as {inline(reply.same)}", ""]
        else:
            lines += [f"{inline(reply.who)}{ending}:", "", fence(wrapped(reply.text), "text"), ""]
    return "\n".join(lines).rstrip()


def beginning(text: str, most: int) -> str:
    """At most `most` characters of the text, saying how many are missing."""
    text = redact(text)
    return text if len(text) <= most else f"{text[:most]}\u2026 ({len(text) - most:,} more characters)"


def wrapped(text: str) -> str:
    """An answer as lines of at most 100 columns, so that a viewer need not scroll sideways."""
    lines: list[str] = []
    for line in beginning(shown(text), LONGEST_ANSWER).split("\n"):
        lines += fold(line) or [""]
    return "\n".join(lines)


def fence(text: str, language: str) -> str:
    """A code block whose fence is longer than any run of backticks in it, so that the text cannot end it."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    ticks = "`" * max(3, longest + 1)
    return f"{ticks}{language}\n{shown(text)}\n{ticks}"


def inline(text: str) -> str:
    """Any text as one line of Markdown that shows exactly it. As few backslashes as will do: terminals show them too."""
    text = " ".join(shown(text).split())
    text = re.sub(r"([\\`*\[\]<|~$])", r"\\\1", text)
    text = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)  # inside a word _ is only itself
    return re.sub(r"&(?=#?\w+;)", r"\\&", text)


def paragraph(text: str, mark: str = "") -> str:
    """`inline` in lines that a terminal need not break inside a word; `mark`: what begins and ends it (`**`).

    What would be a heading, a quote or a list where a line begins is text.
    """
    lines = textwrap.wrap(f"{mark}{inline(text)}{mark}", TERMINAL, break_long_words=False, break_on_hyphens=False)
    return "\n".join(map(_begun, lines))


def _begun(line: str) -> str:
    return re.sub(r"^(?:(?=[#>+=-])|(\d+)(?=[.)]))", lambda match: (match[1] or "") + "\\", line)


def table(block: Table) -> str:
    """A Markdown table, lined up for a terminal too. Columns with nothing in them are left out."""
    used = [at for at in range(len(block.headers)) if any(row[at] for row in block.rows)]
    rows = [[inline(row[at]) for at in used] for row in (block.headers, *block.rows)]
    widths = [max(3, *(min(WIDEST_PADDING, columns(row[at])) for row in rows)) for at in range(len(used))]
    right = [at in block.numbers for at in used]
    lines = [_row(rows[0], widths, right)]
    lines.append(
        "|"
        + "|".join(f" {'-' * (width - 1)}{':' if end else '-'} " for width, end in zip(widths, right, strict=True))
        + "|"
    )
    return "\n".join(lines + [_row(row, widths, right) for row in rows[1:]])


def _row(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    padded = []
    for cell, width, end in zip(cells, widths, right, strict=True):
        space = " " * max(0, width - columns(cell))
        padded.append(space + cell if end else cell + space)
    return "| " + " | ".join(padded) + " |"
