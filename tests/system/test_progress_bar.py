"""A long piece of work says how far it is: lines in a log, a bar on a terminal, nothing when it is short."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time

import pytest

from training.system import progress_bar
from training.system.wording import clock


def test_a_long_piece_of_work_says_how_far_it_is_and_when_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress_bar.time, "monotonic", lambda: now[0])
    said: list[str] = []
    with progress_bar.gauge("reading a.jsonl", 4_000, said.append) as advance:
        for _ in range(4):
            now[0] += 6
            advance(1_000, 250_000)
    assert said == [
        "reading a.jsonl: 500,000 rows, 50 %, eta 0:12",
        "reading a.jsonl: 1,000,000 rows in 0:24, 41,667 a second",
    ]


def test_short_work_is_not_spoken_of() -> None:
    said: list[str] = []
    with progress_bar.gauge("tokenising", 3, said.append) as advance:
        for _ in range(3):
            advance(1, 1)
    assert said == []


def test_work_that_fails_has_no_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_bar, "EVERY", 0)
    said: list[str] = []
    with pytest.raises(ValueError, match="broken"), progress_bar.gauge("tokenising", 9, said.append) as advance:
        advance(3, 3)
        raise ValueError("broken")
    assert said == ["tokenising: 3 rows, 33 %, eta 0:00"]


def test_a_terminal_gets_a_bar_and_no_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_bar, "SILENT", 0)
    said: list[str] = []
    reader, terminal = os.openpty()
    os.set_blocking(reader, False)
    with os.fdopen(terminal, "w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        with progress_bar.gauge("reading a.jsonl", 200, said.append) as advance:
            time.sleep(0.15)  # tqdm draws ten times a second
            advance(100, 5_000)
        shown = b""
        with contextlib.suppress(BlockingIOError):
            while True:
                shown += os.read(reader, 10_000)
    os.close(reader)
    assert re.search(r"reading a\.jsonl:  50%\|.*\|, 5,000 rows, eta ", shown.decode())
    assert said == []


@pytest.mark.parametrize(("seconds", "shown"), [(0, "0:00"), (99.6, "1:40"), (7384, "2:03:04")])
def test_times_as_people_read_them(seconds: float, shown: str) -> None:
    assert clock(seconds) == shown
