"""report.html in a real browser: it shows, in dark and light, without a message on the console or a request to anybody."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import zlib
from dataclasses import dataclass
from pathlib import Path

import pytest
from test_report import HOSTILE, evaluation, good, hostile, in_state, step, write_events
from training import report
from training.report import as_html, writing

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.tiny,
    pytest.mark.skipif(BROWSER is None, reason="no chromium here (Debian: apt-get install chromium)"),
]
LIGHT, DARK = (255, 255, 255), (18, 22, 28)  # --page in page.css
AWAY = "http://away.invalid/picture.png"


@dataclass(frozen=True)
class Seen:
    """What came of looking at a page: its elements, the console's messages, the addresses it asked for."""

    dom: str
    console: list[str]
    requests: list[str]


def browse(target: Path, folder: Path, *flags: str) -> Seen:
    """Open a file in headless Chromium, whose network ends at a port where nobody listens."""
    assert BROWSER
    log = folder / "network.json"
    done = subprocess.run(
        [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--disable-dev-shm-usage", f"--user-data-dir={folder / 'profile'}", "--proxy-server=http://127.0.0.1:9",
            f"--log-net-log={log}", "--enable-logging=stderr", "--v=0", "--dump-dom", *flags, target.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, env={**os.environ, "HOME": str(folder)}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return Seen(done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line], requests(log))


def requests(log: Path) -> list[str]:
    """The addresses that a page asked for. Chromium asks for some of its own; those are initiated by `not an origin`."""
    found = json.loads(log.read_text(encoding="utf-8"))
    start = found["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    started = [event["params"] for event in found["events"] if event["type"] == start and "params" in event]
    return [item["url"] for item in started if "url" in item and item["initiator"] != "not an origin"]


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
