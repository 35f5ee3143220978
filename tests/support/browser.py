"""A browser that looks at a page."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


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
