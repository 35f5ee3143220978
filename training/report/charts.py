"""Charts drawn twice: as inline SVG for report.html, and in plain ASCII for report.md and a terminal.

Our own hundred lines instead of matplotlib: its import takes a second, its SVG carries fonts or outlines of its own
and knows one colour scheme, while this follows the reader's dark or light page and names every point to a screen reader.
ASCII, because box-drawing characters are two columns wide in terminals set up for Chinese.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from statistics import median

from training.report.curves import Chart, Point, Series
from training.system import privacy, wording

PARTS = 6  # the style sheet has part1 to part6
LEFT, RIGHT, TOP, BOTTOM = 58, 26, 12, 34  # margins of a chart, in its own units


@dataclass(frozen=True)
class Scale:
    """The value axis: from `low` to `high`, linear or logarithmic, with the places of its marks."""

    low: float
    high: float
    logarithmic: bool
    ticks: tuple[float, ...]

    def share(self, value: float) -> float:
        """Where `value` lies between low (0) and high (1)."""
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = math.log10(low), math.log10(high), math.log10(max(value, low))
        return min(1.0, max(0.0, (value - low) / (high - low)))


def scale(values: Sequence[float], marks: int = 5) -> Scale:
    """A scale that holds every value. Logarithmic when a few values dwarf the rest, as in a run that diverged."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if low > 0 and high > 20 * median(values):
        low = max(low, high * 1e-9)  # a single zero-like value must not squeeze all the others together
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        return Scale(10.0 ** powers[0], 10.0 ** powers[-1], True, tuple(10.0**power for power in powers))
    if high - low < max(1e-12, 1e-9 * abs(high)):  # a constant
        low, high = (0.0, high * 2) if high > 1e-12 else (low - 1, high + 1)
    if 0 < low < 0.5 * high:
        low = 0.0
    step = nice((high - low) / marks)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(round(at * step, 12 - math.floor(math.log10(step))) for at in range(first, last + 1))
    return Scale(ticks[0], ticks[-1], False, ticks)


def nice(width: float) -> float:
    """The next of 1, 2, 5, 10 times a power of ten that is not below `width`."""
    power = 10.0 ** math.floor(math.log10(width))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= width * (1 - 1e-9))


def label(value: float) -> str:
    """A mark on an axis, as short as it can be said."""
    if value and (abs(value) < 1e-3 or abs(value) >= 1e5):
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:,.10g}"


def steps_axis(last: int, marks: int = 6) -> list[int]:
    """Round step numbers from 0 to `last`, never a fraction of a step."""
    step = max(1, round(nice(max(1, last) / marks)))
    return list(range(0, last + 1, step))


def _safe(text: str) -> str:
    """Any text as XML shows it, inside an element or an attribute."""
    return escape(privacy.shown(text), quote=True)


def describe(chart: Chart) -> str:
    """The chart in a sentence, for who cannot see it."""
    parts = []
    for series in (series for series in chart.series if series.kind != "faint"):
        seen = [(x, y) for x, y in series.points if y is not None]
        if seen:
            (first, start), (final, end) = seen[0], seen[-1]
            low = min(seen, key=lambda point: point[1])
            form = chart.format
            parts.append(
                f"{series.name} from {start:{form}} at step {first} to {end:{form}} at step {final},"
                f" lowest {low[1]:{form}} at step {low[0]}"
            )
    if broken := chart.broken():
        parts.append(f"not a finite number at step {broken[0]}" + (" and later" if len(broken) > 1 else ""))
    return f"{chart.title} by step: {'; '.join(parts)}."


def svg(chart: Chart, width: int = 760, height: int = 280, spots: bool = True) -> str:
    """The chart as an <svg> element without colours: report.html's style sheet gives them to its classes.

    `spots`: values show under a pointer, of which a telephone has none.
    """
    axis = scale(chart.values(), 5 if height > 240 else 3)
    inner, depth, last = width - LEFT - RIGHT, height - TOP - BOTTOM, max(1, chart.last)

    def across(step: float) -> float:
        return round(LEFT + inner * step / last, 1)

    def down(value: float) -> float:
        return round(TOP + depth * (1 - axis.share(value)), 1)

    marks = [
        f'<line class="grid" x1="{LEFT}" x2="{width - RIGHT}" y1="{down(tick)}" y2="{down(tick)}"/>'
        f'<text class="mark end" x="{LEFT - 8}" y="{down(tick) + 4}">{label(tick)}</text>'
        for tick in axis.ticks
    ]
    for step in steps_axis(last, 8 if width > 500 else 4):
        marks.append(f'<text class="mark middle" x="{across(step)}" y="{height - BOTTOM + 17}">{step:,}</text>')
    marks.append(f'<text class="mark middle" x="{LEFT + inner / 2}" y="{height - 3}">step</text>')
    body = "".join(_drawn(series, across, down, chart.format, spots) for series in chart.series)
    reached = max((x for series in chart.series for x, _ in series.points), default=0)
    edge = ""
    if broken := chart.broken():
        edge = _edge(across(broken[0]), height, f"not a number from step {broken[0]:,}", "broken", width)
    elif reached < chart.last:
        edge = _edge(across(reached), height, f"ended at {reached:,} of {chart.last:,}", "stop", width)
    said = _safe(describe(chart))
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{said}">{"".join(marks)}{edge}{body}</svg>'


def _edge(x: float, height: int, text: str, kind: str, width: int) -> str:
    """A dashed line where the curve ends before its time; a large chart has room for the words as well."""
    side, place = ("end", x - 6) if x > 0.7 * width else ("start", x + 6)
    words = f'<text class="mark {side}" x="{place}" y="{TOP + 16}">{_safe(text)}</text>' if width > 500 else ""
    return f'<line class="{kind}" x1="{x}" x2="{x}" y1="{TOP}" y2="{height - BOTTOM}"/>{words}'


def _drawn(
    series: Series, across: Callable[[float], float], down: Callable[[float], float], form: str, spots: bool
) -> str:
    """One series: its line, broken where a value is missing, and a spot with a title at every point."""
    lines = []
    for piece in pieces(series.points):
        points = " ".join(f"{across(x)},{down(y)}" for x, y in piece)
        lines.append(f'<polyline class="line {series.kind}" points="{points}"/>')
    seen = [(x, y) for x, y in series.points if y is not None]
    shown = series.kind == "dots" or len(seen) == 1  # a line of one point would not be seen
    for x, y in seen if series.kind != "faint" and (spots or shown) else []:
        kind, size = ("dot", 4) if shown else ("spot", 7)
        kind = (
            f"{kind} {series.kind}" if series.kind.startswith("run") else kind
        )  # of several runs, each has its colour
        title = _safe(f"step {x:,}: {series.name} {y:{form}}")
        lines.append(
            f'<circle class="{kind}" cx="{across(x)}" cy="{down(y)}" r="{size}"><title>{title}</title></circle>'
        )
    return "".join(lines)


def pieces(points: Sequence[Point]) -> list[list[tuple[float, float]]]:
    """The stretches of finite values."""
    found: list[list[tuple[float, float]]] = [[]]
    for x, y in points:
        if y is None:
            found.append([])
        else:
            found[-1].append((x, y))
    return [piece for piece in found if piece]


def bar(parts: Sequence[tuple[str, float]], width: int = 760, height: int = 34) -> str:
    """Parts of a whole as one bar, each with its name and figure under the pointer; names where there is room."""
    whole = sum(size for _, size in parts) or 1.0
    drawn, at = [], 0.0
    for number, (name, size) in enumerate(parts):
        wide = width * size / whole
        said = f"{name}: {wording.duration(size)}, {100 * size / whole:.0f} %"
        drawn.append(
            f'<rect class="part part{number % PARTS + 1}" x="{at:.1f}" y="0" width="{wide:.1f}" height="{height}">'
            f"<title>{_safe(said)}</title></rect>"
        )
        if wide > 9 * len(name):
            drawn.append(f'<text class="on" x="{at + 6:.1f}" y="{height / 2 + 4}">{_safe(name)}</text>')
        at += wide
    told = _safe("; ".join(f"{name} {wording.duration(size)}" for name, size in parts))
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{told}">{"".join(drawn)}</svg>'


def text(chart: Chart, width: int = 64, height: int = 13) -> str:
    """The chart in ASCII: * the line, o the dots, ! a value that was not a number. Lines are at most width + 9 wide."""
    axis = scale(chart.values(), 4)
    grid = [[" "] * width for _ in range(height)]
    last = max(1, chart.last)

    def row(value: float) -> int:
        return round((height - 1) * (1 - axis.share(value)))

    legend = []
    drawn = [series for series in chart.series if series.kind != "faint"]
    for series in drawn:
        sign = "o" if series.kind == "dots" else "*"
        legend.append(f"{sign} {series.name}")
        before: int | None = None
        for column, value in columns(series.points, width, last):
            if value is None:
                grid[0][column], before = "!", None
                continue
            here = row(value)
            if sign == "*" and before is not None:  # join steep stretches, so that a fall reads as one line
                for between in range(min(before, here) + 1, max(before, here)):
                    grid[between][column] = ":"
            grid[here][column], before = sign, here
    if chart.broken():
        legend.append("! not a number")
    marks = {row(tick): label(tick) for tick in axis.ticks}
    lines = [f"{chart.title.lower()}   {'   '.join(legend)}{'   (logarithmic)' if axis.logarithmic else ''}"]
    lines += [f"{marks.get(at, ''):>6} |{''.join(cells).rstrip()}" for at, cells in enumerate(grid)]
    foot = [" "] * (width + 4)
    for step in steps_axis(last):
        said = f"{step}"
        place = round((width - 1) * step / last)
        foot[place : place + len(said)] = said
    return "\n".join([*lines, f"{'':>6} +{'-' * width}", f"{'step':>6}  {''.join(foot).rstrip()}"])


def columns(points: Sequence[Point], width: int, last: int) -> list[tuple[int, float | None]]:
    """The mean value of each column that has points; None for one in which nothing but bad values fell."""
    bins: dict[int, list[float | None]] = {}
    for x, y in points:
        bins.setdefault(round((width - 1) * x / last), []).append(y)
    means = []
    for column in sorted(bins):
        good = [y for y in bins[column] if y is not None]
        means.append((column, sum(good) / len(good) if good else None))
    return means
