"""What a proof says: the same blocks as a page, as text, and on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from training.proving.sides import STEPS, Figures, Here, Side
from training.proving.verdict import Verdict
from training.report import as_html, as_markdown
from training.report.blocks import Section, Table, Text
from training.system import wording
from training.system.wording import gigabytes


@dataclass(frozen=True, kw_only=True)
class Content:
    """All that is known of a proof; prove.json holds it as it is."""

    name: str  # NEW_MODEL_NAME
    base: str
    when: float  # seconds since 1970
    seconds: float
    here: Here
    sides: Sequence[Side]
    figures: Mapping[str, Figures]
    verdict: Verdict


def sections(content: Content) -> list[Section]:
    """The page without its head."""
    measured = [side for side in content.sides if not content.figures[side.name].failed]
    found = [
        Section("Side by side", (_overview(content), *_reasons(content))),
        Section("Loss of each step", (_by_step(measured, content, "losses"),)),
        Section("Norm of the gradients", (_by_step(measured, content, "norms"),)),
        Section("Machine", tuple(Text(line) for line in content.here.machine)),
    ]
    return found if measured else [found[0], found[3]]


def _overview(content: Content) -> Table:
    rows = []
    for side in content.sides:
        figures, name = content.figures[side.name], side.name
        agrees = "yes" if name in content.verdict.agreeing else "NO"
        if figures.failed:
            rows.append((name, "not tried", "", "", "", "", ""))
            continue
        first, last = (f"{figures.losses[at]:.4f}" for at in (0, -1))
        speed = wording.count(round(figures.tokens_per_second))
        memory = f"{gigabytes(figures.peak)} of {gigabytes(figures.planned)}"
        rows.append(
            (name, agrees, speed, first, last, memory, figures.precision + (", 4 bit" if figures.four_bit else ""))
        )
    headers = ("", "agrees", "tokens/s", "first loss", "last loss", "peak of planned memory", "precision")
    return Table(headers, tuple(rows), numbers=(2, 3, 4, 5), marks=1)


def _reasons(content: Content) -> list[Text]:
    return [Text(f"{name}: {why}", "warn") for name, why in content.verdict.different.items()]


def _by_step(measured: Sequence[Side], content: Content, what: str) -> Table:
    values = [getattr(content.figures[side.name], what) for side in measured]
    steps = max((len(one) for one in values), default=0)
    rows = [
        (str(step + 1), *(f"{one[step]:.4f}" if step < len(one) else "" for one in values)) for step in range(steps)
    ]
    return Table(("step", *(side.name for side in measured)), tuple(rows), numbers=tuple(range(len(measured) + 1)))


def _lead(content: Content) -> str:
    return (
        f"{content.base}: {STEPS} steps on the same batches by each engine, {wording.moment(content.when)}, "
        f"in {wording.duration(content.seconds)}. The first side is what the others are held against."
    )


def lines(content: Content) -> list[str]:
    """For the terminal: the table, what differs, and the conclusion."""
    told = as_markdown.table(_overview(content)).splitlines()
    return [*told, *(block.text for block in _reasons(content)), content.verdict.words]


def markdown(content: Content) -> str:
    """The whole of prove.md."""
    out = [f"# Proof: {as_markdown.inline(content.name)}", "", f"**{as_markdown.inline(content.verdict.words)}**", ""]
    out += [as_markdown.paragraph(_lead(content)), ""]
    for section in sections(content):
        out += [f"## {section.title}", "", "\n\n".join(as_markdown.render(block) for block in section.blocks), ""]
    return "\n".join(out)


def html(content: Content) -> str:
    """The whole of prove.html: one file, no script, no network."""
    style, tone = as_html.STYLE.read_text(encoding="utf-8"), "good" if content.verdict.good else "bad"
    body = [
        f"<header><h1>{as_html.text(content.name)}</h1>",
        f'<p class="result {tone}">{as_html.text(content.verdict.words)}</p>',
        f'<p class="soft">{as_html.text(_lead(content))}</p></header><main>',
    ]
    body += [as_html.section_html(one) for one in sections(content)]
    return "\n".join([as_html.head(content.name, style), *body, "</main></body></html>"]) + "\n"
