"""report.html: one file that asks the network for nothing, runs no script, and reads in dark, in light and on paper."""

from __future__ import annotations

import base64
import hashlib
from html import escape
from pathlib import Path

from training.report import charts, contents
from training.report.blocks import Answers, Block, Commands, Details, Pictures, Table, Text
from training.report.curves import Chart
from training.report.schema import Report, Sample
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
TONES = {"completed": "good", "interrupted": "warn", "failed": "bad"}


def html(report: Report) -> str:
    """The whole of report.html."""
    style = STYLE.read_text(encoding="utf-8")
    result, run = contents.result(report), report.run
    tiles = "".join(
        f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for name, value in contents.headline(report)
    )
    when = " to ".join(filter(None, (wording.moment(run.started), wording.moment(run.finished))))
    body = [
        f'<header><h1>{text(report.name)}<span class="state {TONES.get(run.state, "")}">{text(run.state)}</span></h1>',
        f'<p class="result {result.tone}">{text(result.text)}</p>',
        f'<p class="soft">{text(contents.trained(report))}</p>',
        f'<dl class="tiles">{tiles}</dl></header>' if tiles else "</header>",
        "<main>",
    ]
    for section in contents.sections(report):
        inner = "\n".join(render(block) for block in section.blocks)
        body.append(f"<section><h2>{text(section.title)}</h2>\n{inner}\n</section>")
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
        return "\n".join(_answers(sample) for sample in block.samples)
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
    large = ' class="large"' if width > 500 else ""
    return (
        f"<figure{large}><figcaption>{text(chart.title)}{keys}</figcaption>{charts.svg(chart, width, height)}</figure>"
    )


def table(block: Table) -> str:
    """A table without its empty columns. One without headings is a list of facts: the first cell names its row."""
    used = [at for at in range(len(block.headers)) if any(row[at] for row in block.rows)]
    named = any(block.headers[at] for at in used)
    heads = "".join(_cell("th", block.headers[at], "number" if at in block.numbers else "", "col") for at in used)
    rows = []
    for row in block.rows:
        cells = [_cell("td", row[at], _looks(block, row, at)) for at in used]
        if not named:
            cells[0] = _cell("th", row[used[0]], "", "row")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    top = f"<thead><tr>{heads}</tr></thead>" if named else ""
    return f'<div class="wide"><table>{top}<tbody>{"".join(rows)}</tbody></table></div>'


def _looks(block: Table, row: tuple[str, ...], at: int) -> str:
    if at == block.marks:
        return "verdict " + MARKS.get(row[at], "soft")
    return " ".join(name for name, columns in (("number", block.numbers), ("code", block.code)) if at in columns)


def _cell(tag: str, value: str, looks: str, scope: str = "") -> str:
    tag = tag if value else "td"  # a heading without words names nothing
    kind = (f' scope="{scope}"' if scope and tag == "th" else "") + (f' class="{looks}"' if looks else "")
    return f"<{tag}{kind}>{text(value)}</{tag}>"


def _answers(sample: Sample) -> str:
    sides = []
    for who, answer, kind in (("before", sample.before, "base"), ("after", sample.after, "tuned")):
        if answer is None:
            continue
        ending = ", cut off: it did not stop by itself" if kind == "tuned" and sample.stopped is False else ""
        shown = text(answer) if answer.strip() else '<span class="soft">(an empty answer)</span>'
        sides.append(f'<div class="{kind}"><div class="who">{who}{ending}</div><div class="answer">{shown}</div></div>')
    wanted = f'<p class="soft">expected: {text(sample.expected)}</p>' if sample.expected else ""
    return f'<h3>{text(sample.question)}</h3>{wanted}<div class="pair">{"".join(sides)}</div>'
