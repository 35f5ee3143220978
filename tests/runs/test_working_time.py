"""One clock: how long a run has worked, without the hours in which nothing ran."""

from __future__ import annotations

import io
import json
from pathlib import Path

from tests.support.reports import good, in_state
from training.control import commands
from training.report import as_html, as_markdown
from training.runs.working_time import Session, working_time
from training.settings import command_line

HOUR = 3600.0


def event(kind: str, at: float, **more: object) -> dict[str, object]:
    return {"event": kind, "time": at, **more}


# Interrupted after ten minutes, killed after five more, done an hour later: 25 minutes of work.
EVENTS = [
    event("started", 0.0), event("step", 60.0, step=1), event("interrupted", 600.0),
    event("started", 2 * HOUR), event("step", 2 * HOUR + 300, step=9),
    event("started", 4 * HOUR), event("step", 4 * HOUR + 60, step=10), event("done", 4 * HOUR + 600),
]  # fmt: skip


def test_the_hours_in_which_nothing_ran_do_not_count() -> None:
    found = working_time(EVENTS)
    assert found.seconds == 1500
    assert [one.end for one in found.sessions] == ["interrupted", "killed", "done"]
    assert found.words() == "25 min 00 s, in 3 sessions over 4 h 10 min"
    assert found.interruptions() == (
        "interrupted at step 1 (1 h 50 min until it went on), killed at step 9 (1 h 55 min until it went on)"
    )


def test_a_run_without_interruption_is_told_without_sessions() -> None:
    assert working_time(EVENTS[:3]).words() == "10 min 00 s"
    assert working_time([]).sessions == () and working_time([]).seconds == 0


def test_stages_that_were_done_without_events_count_too() -> None:
    told = [*EVENTS[:3], event("stage", 700.0, name="merge"), event("done", 3 * HOUR)]
    assert working_time(told, {"merge": 5.0, "check": 20.0}).seconds == 600 + (3 * HOUR - 700) + 20


def test_a_run_that_is_worked_on_counts_until_now_and_one_that_was_killed_until_its_last_word() -> None:
    assert working_time(EVENTS[:2], now=100.0, state="failed").sessions == (Session(0.0, 100.0, "failed", 1),)
    assert working_time(EVENTS[:2]).seconds == 60


def test_the_report_says_working_time_and_where_it_was_interrupted() -> None:
    worked = working_time(EVENTS)
    made = in_state(good(Path("/r")), "completed", seconds=worked.seconds, sessions=worked.sessions)
    text = as_markdown.markdown(made)
    assert "working time 25 min 00 s, sessions 3 over 4 h 10 min" in text
    assert "killed at step 9 (1 h 55 min until it went on)" in text
    assert "<dt>working time</dt><dd>25 min 00 s</dd>" in as_html.html(made)


def test_history_and_status_say_working_time_and_history_has_a_heading(tmp_path: Path) -> None:
    run = tmp_path / "out" / "finetune_20260101_000000"
    run.mkdir(parents=True)
    (run / "status.json").write_text(json.dumps({"state": "completed", "started": 1.0, "updated": 5 * HOUR}))
    (run / "events.jsonl").write_text("".join(json.dumps(one) + "\n" for one in EVENTS))
    config = tmp_path / "config.ini"
    config.write_text(f"[Training]\nOUTPUT_DIR = {tmp_path}/out\n")
    heading, row = said("--config", config, "--history")
    assert heading.split() == ["run", "state", "started", "worked", "loss", "validation", "model"]
    assert row[heading.index("worked") :].startswith("25:00 in 3 sessions")
    (told,) = json.loads(said("--config", config, "--history", "--json")[0])
    assert (told["seconds"], told["sessions"]) == (1500, 3)
    assert said("--config", config, "--status")[-1] == "working time 25 min 00 s, in 3 sessions over 4 h 10 min"


def said(*words: object) -> list[str]:
    arguments, out = command_line.parse([str(word) for word in words]), io.StringIO()
    commands.COMMANDS[arguments.command](arguments, out)
    return out.getvalue().splitlines()
