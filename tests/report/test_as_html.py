"""report.html in a real browser: it shows, in dark and light, without a message on the console or a request to anybody."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest

from tests.support.browser import BROWSER, browse
from tests.support.driven import driven
from tests.support.reports import HOSTILE, evaluation, good, hostile, in_state, step, write_events
from training import report
from training.report import as_html, writing

pytestmark = [
    pytest.mark.tiny,
    pytest.mark.skipif(BROWSER is None, reason="no chromium here (Debian: apt-get install chromium)"),
]
LIGHT, DARK = (255, 255, 255), (18, 22, 28)  # --page in page.css
AWAY = "http://away.invalid/picture.png"


def first_pixel(png: Path) -> tuple[int, ...]:
    """The colour of the top left corner; in the first row's first pixel every PNG filter leaves the bytes as they are."""
    content, data, at = png.read_bytes(), b"", 8
    while at < len(content):
        size = int.from_bytes(content[at : at + 4], "big")
        if content[at + 4 : at + 8] == b"IDAT":
            data += content[at + 8 : at + 8 + size]
        at += size + 12
    return tuple(zlib.decompressobj().decompress(data, 4)[1:4])


def runs(folder: Path) -> dict[str, Path]:
    """report.html of a good run, a diverged one, an interrupted one and one made of hostile text."""
    made = {}
    for name in ("good", "diverged", "interrupted", "hostile"):
        run = folder / name
        run.mkdir()
        last = {"diverged": 31, "interrupted": 23}.get(name, 60)
        losses = [None if name == "diverged" and at > 29 else 3.2 - at / 25 for at in range(1, last + 1)]
        write_events(run, evaluation(0, 3.2), *(step(at, loss) for at, loss in enumerate(losses, 1)))
        whole = good(run)
        state = {"diverged": "failed", "interrupted": "interrupted"}.get(name, "completed")
        report.write(
            run, in_state(hostile(whole) if name == "hostile" else whole, state, error="the loss is not a number")
        )
        made[name] = run / writing.HTML
    return made


@pytest.mark.parametrize("name", ["good", "diverged", "interrupted", "hostile"])
def test_the_page_shows_without_a_console_message_and_asks_nobody_for_anything(tmp_path: Path, name: str) -> None:
    seen = browse(runs(tmp_path)[name], tmp_path)
    assert seen.console == [] and seen.requests == []
    assert "<svg" in seen.dom and "<script" not in seen.dom and "<title>owned" not in seen.dom


@pytest.mark.parametrize(("scheme", "colour"), [(1, LIGHT), (0, DARK)])
def test_the_page_follows_the_readers_light_or_dark_scheme(
    tmp_path: Path, scheme: int, colour: tuple[int, ...]
) -> None:
    picture = tmp_path / "page.png"
    flags = (f"--screenshot={picture}", f"--blink-settings=preferredColorScheme={scheme}", "--window-size=900,1200")
    browse(runs(tmp_path)["good"], tmp_path, *flags)
    assert first_pixel(picture) == colour


def test_a_telephone_shows_every_verdict_without_scrolling_and_breaks_no_word_to_do_so(tmp_path: Path) -> None:
    page_of_run = runs(tmp_path)["good"]
    with driven(tmp_path) as page:
        page.look(360, dark=True, height=760)
        page.open(page_of_run.as_uri())
        assert page.run("document.documentElement.scrollWidth") == 360
        seen = page.run("[...document.querySelectorAll('.verdict')].map(e => e.getBoundingClientRect().right)")
        assert len(seen) > 3 and max(seen) <= 360
        # The checks are read as they stand; only tables of many figures, and of paths, are moved sideways.
        sections = page.run(
            "[...document.querySelectorAll('section')].filter(s => [...s.querySelectorAll(':scope > .wide')]"
            ".some(e => e.scrollWidth > e.clientWidth)).map(s => s.id)"
        )
        assert set(sections) <= {"evaluation", "quantised-files", "settings"}, sections
        assert page.run("document.querySelector('.bar .narrow svg').getBoundingClientRect().height") > 25
        assert page.errors == []


def test_the_watch_would_see_a_request_and_a_message(tmp_path: Path) -> None:
    """The counter-proof: without it, the tests above would also pass with a deaf watch."""
    bad = tmp_path / "bad.html"
    bad.write_text(f"<title>t</title><img src='{AWAY}'><script>console.error('heard')</script>", encoding="utf-8")
    seen = browse(bad, tmp_path)
    assert seen.requests == [AWAY] and any("heard" in line for line in seen.console)


def test_the_policy_stops_even_text_that_would_have_been_left_unescaped(tmp_path: Path) -> None:
    leaking = tmp_path / "leaking.html"
    style = as_html.STYLE.read_text(encoding="utf-8")
    body = f"<img src='{AWAY}'><script>document.title='owned'</script><p style='color:red'>{HOSTILE}</p>"
    leaking.write_text(as_html.head("t", style) + body + "</body></html>", encoding="utf-8")
    seen = browse(leaking, tmp_path)
    assert seen.requests == [] and "<title>owned" not in seen.dom
    assert any("Content Security Policy" in line for line in seen.console)
