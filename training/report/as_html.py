"""report.html: one file that asks the network for nothing, runs no script, and reads in dark, in light and on paper."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from training.report import charts, contents
from training.report.blocks import Answers, Asked, Bar, Block, Commands, Details, Pictures, Section, Table, Text
from training.report.curves import Chart
from training.report.schema import Report
from training.system import wording
from training.system.privacy import shown

STYLE = Path(__file__).with_name("as_html.css")
MARKS = {
    "passed": "good",
    "yes": "good",
    "better": "good",
    "FAILED": "bad",
    "NO": "bad",
    "worse": "bad",
    "look": "warn",
}
NARROW = 340, 230
TONES = {"completed": "good", "interrupted": "warn", "failed": "bad"}


def html(report: Report) -> str:
    """The whole of report.html."""
    style = STYLE.read_text(encoding="utf-8")
    result, run, sections = contents.result(report), report.run, contents.sections(report)
    tiles = "".join(
        f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for name, value in contents.headline(report)
    )
    when = " to ".join(filter(None, (wording.moment(run.started), wording.moment(run.finished))))
    body = [
        f'<header><h1>{text(report.name)}<span class="state {TONES.get(run.state, "")}">{text(run.state)}</span></h1>',
        f'<p class="result {result.tone}">{sentence(result.text)}</p>',
        f'<p class="soft">{text(contents.trained(report))}</p>',
        f'<dl class="tiles">{tiles}</dl></header>' if tiles else "</header>",
        contents_of(sections),
        "<main>",
    ]
    body += map(section_html, sections)
    body.append(f"</main><footer>Run {text(run.id)}, {text(when)}</footer>")
    return "\n".join([head(report.name, style), *body, "</body></html>"]) + "\n"


def head(title: str, style: str) -> str:
    """The head, with a policy under which even a text that escaped wrongly could neither load nor run anything."""
    digest = base64.b64encode(hashlib.sha256(style.encode("utf-8")).digest()).decode("ascii")
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="referrer" content="no-referrer"><link rel="icon" href="data:,">',
            f"<title>{text(title)}: training report</title>",
            f"<style>{style}</style></head><body>",
        ]
    )


def text(value: str) -> str:
    """Any text as HTML that shows exactly it, inside an element or an attribute."""
    return escape(shown(value), quote=True)


def sentence(value: str) -> str:
    """A sentence whose arrows are arrows, and stay with the figures on both sides of them."""
    return text(value.replace(" -> ", "\u00a0\u2192\u00a0"))


def render(block: Block) -> str:
    """One block as HTML."""
    if isinstance(block, Text):
        return f'<p class="{block.tone}">{text(block.text)}</p>' if block.tone else f"<p>{text(block.text)}</p>"
    if isinstance(block, Commands):
        return f"<pre><code>{text(chr(10).join(block.lines))}</code></pre>"
    if isinstance(block, Pictures):
        small = "".join(figure(chart, 360, 190) for chart in block.charts[1:])
        return figure(block.charts[0]) + (f'<div class="small">{small}</div>' if small else "")
    if isinstance(block, Table):
        return table(block)
    if isinstance(block, Answers):
        return "\n".join(_answers(asked) for asked in block.asked)
    if isinstance(block, Bar):
        drawn = _twice(charts.bar(block.parts), charts.bar(block.parts, NARROW[0]))
        return f'<figure class="bar"><figcaption>{text(block.title)}</figcaption>{drawn}</figure>'
    if isinstance(block, Details):
        inner = "\n".join(render(inside) for inside in block.blocks)
        kind = "" if block.printed else ' class="steps"'
        return f"<details{kind}><summary>{text(block.title)}</summary>\n{inner}\n</details>"
    raise TypeError(f"no HTML for {type(block).__name__}")


def figure(chart: Chart, width: int = 760, height: int = 280) -> str:
    """A chart under its title; the key is left out where the title says it."""
    keys = "".join(
        f'<span class="key {series.kind}">{text(series.name)}</span>'
        for series in chart.series
        if series.name != chart.title.lower()
    )
    if charts.scale(chart.values()).logarithmic:
        keys += '<span class="note">logarithmic</span>'
    drawn = charts.svg(chart, width, height)
    if width > 500:
        drawn = _twice(drawn, charts.svg(chart, *NARROW, spots=False))
    return f"<figure><figcaption>{text(chart.title)}{keys}</figcaption>{drawn}</figure>"


def _twice(broad: str, narrow: str) -> str:
    """A drawing and the one for a telephone: scaled down to that, nobody could read it."""
    return f'<div class="broad">{broad}</div><div class="narrow">{narrow}</div>'


def table(block: Table) -> str:
    """A table without its empty columns. One without headings is a list of facts: the first cell names its row."""
    used = [at for at in range(len(block.headers)) if any(row[at] for row in block.rows)]
    named = any(block.headers[at] for at in used)
    heads = "".join(_cell("th", block.headers[at], "number" if at in block.numbers else "", "col") for at in used)
    rows = []
    for row in block.rows:
        cells = [_cell("td", row[at], _looks(block, row, at), link=at == block.links) for at in used]
        if not named:
            cells[0] = _cell("th", row[used[0]], "", "row")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    top = f"<thead><tr>{heads}</tr></thead>" if named else ""
    return f'<div class="wide"><table>{top}<tbody>{"".join(rows)}</tbody></table></div>'


def _looks(block: Table, row: tuple[str, ...], at: int) -> str:
    if at == block.marks:
        return "verdict " + MARKS.get(row[at], "soft")
    return " ".join(name for name, columns in (("number", block.numbers), ("code", block.code)) if at in columns)


def _cell(tag: str, value: str, looks: str, scope: str = "", link: bool = False) -> str:
    tag = tag if value else "td"  # a heading without words names nothing
    kind = (f' scope="{scope}"' if scope and tag == "th" else "") + (f' class="{looks}"' if looks else "")
    shown = _breakable(text(value), r"\w" if "code" in looks.split() else r"[^\W\d]")
    return f"<{tag}{kind}>{_link(value) if link else shown}</{tag}>"


def _breakable(shown: str, before: str) -> str:
    """A long name that may be broken where its parts end, and so is not broken in the middle of a word. `before`: what a
    part begins with; in a text no digit, which would break a number."""
    return re.sub(rf"([_./,])(?={before})", r"\1<wbr>", shown)


def _answers(asked: Asked) -> str:
    sides = []
    for reply in asked.replies:
        ending = f", {reply.ending}" if reply.ending else ""
        shown = text(reply.text) if reply.text.strip() else '<span class="soft">(an empty answer)</span>'
        if reply.same:
            shown = f'<span class="soft">the same as {text(reply.same)}</span>'
        who = f'<div class="who">{text(reply.who)}{ending}</div>'
        sides.append(f'<div class="{reply.kind}">{who}<div class="answer">{shown}</div></div>')
    wanted = f'<p class="soft">expected: {text(asked.expected)}</p>' if asked.expected else ""
    return f'<h3>{text(asked.question)}</h3>{wanted}<div class="pair">{"".join(sides)}</div>'


def _link(path: str) -> str:
    """A file beside the page, or below it, as a link; whatever is in the name, it leads nowhere else."""
    return f'<a href="./{quote(path)}">{text(path)}</a>'


def contents_of(sections: Sequence[Section]) -> str:
    """A table of contents of the page."""
    links = "".join(f'<a href="#{anchor(section)}">{text(section.title)}</a>' for section in sections)
    return f'<nav aria-label="On this page">{links}</nav>'


def section_html(section: Section) -> str:
    """A section with its heading, which the table of contents leads to."""
    inner = "\n".join(render(block) for block in section.blocks)
    return f'<section id="{anchor(section)}"><h2>{text(section.title)}</h2>\n{inner}\n</section>'


def anchor(section: Section) -> str:
    """The name of a section in an address."""
    return re.sub(r"[^a-z0-9]+", "-", section.title.lower()).strip("-")
