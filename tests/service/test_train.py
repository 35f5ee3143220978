"""Runs over HTTP: they are ordinary runs, and outlive the server."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.support import small
from tests.support.programs import finetune
from tests.support.service import Served, served
from training import runs
from training.runs import directory, queued
from training.system import events

pytestmark = pytest.mark.tiny
# Its runs need no real vocabulary.
tiny_model = small.tiny_model


def test_a_run_over_http_is_a_run_like_any_other(tiny_config, tmp_path):
    with served(tiny_config, forked=True) as server:
        started = server.post(
            "/train", {"dataset_path": "rows.jsonl", "dataset_format": "jsonl", "max_steps": 4}
        ).json()
        task = started["task_id"]
        other = server.post("/train", {"max_steps": 3, "output_dir": "elsewhere", "base_model": "embedded/nonsense"})
        assert other.status_code == 422 and other.json()["detail"][0]["field"] == "base_model"
        told = list(listened(server, task))
        status = server.wait(task, "completed", "failed")
        assert status["status"] == "completed", status
        assert (status["progress"], status["step"], status["total_steps"], status["error"]) == (100.0, 4, 4, None)
        assert status["loss"] > 0 and status["validation_loss"] > 0 and status["has_report"]
        assert server.get("/train/history").json()["tasks"] == [status]
        assert server.get(f"/train/report/{task}").headers["content-security-policy"].startswith("sandbox")
        assert "step 4/4" in server.get(f"/train/log/{task}").text
        for route in ("stop", "resume"):
            answer = server.post(f"/train/{route}/{task}")
            assert answer.status_code == 409 and "completed" in answer.json()["detail"]
        assert [name for _, name, _ in told if name != "status"] == [
            event["event"] for event in events.read(Path(status["output_dir"]) / "events.jsonl")
        ]
        assert told[-1][2]["status"] == "completed"
        broken = told[3][0]
        again = list(listened(server, task, broken))
        assert [one[0] for one in again if one[0]] == [one[0] for one in told if one[0] and int(one[0]) > int(broken)]
        assert server.get(f"/train/events/{task}", headers={"Last-Event-ID": told[-2][0]}).status_code == 204
    run = tiny_config.parent / "outputs" / task
    assert finetune("--status", run, "--config", tiny_config).stdout.startswith(f"{task}: completed, step 4 of 4")


def listened(server: Served, task: str, last: str | None = None):
    """The events of a run until the server ends the answer: (id, name, data)."""
    headers = {"Last-Event-ID": last} if last else {}
    with server.client.stream("GET", f"/train/events/{task}", headers=headers, timeout=300) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        found: dict[str, str] = {}
        for line in answer.iter_lines():
            if not line and "data" in found:
                yield found.get("id"), found["event"], json.loads(found["data"])
                found = {}
            elif line:
                name, _, value = line.partition(": ")
                found[name] = value


def test_a_server_that_is_killed_amid_two_runs_takes_none_with_it_and_the_next_one_knows_both(tiny_config):
    tiny_config.write_text(tiny_config.read_text() + "[Service]\nRUNS_AT_A_TIME = 2\n")
    with served(tiny_config, forked=True) as server:
        tasks = [server.post("/train", {"max_steps": 40, "eval_steps": 0}).json()["task_id"] for _ in range(2)]
        third = server.post("/train", {"max_steps": 3, "output_dir": "elsewhere", "new_model_name": "tiny"}).json()[
            "task_id"
        ]
        for task in tasks:
            server.wait(task, "running")
        assert server.status(third)["status"] == "queued"
        server.kill()
    with served(tiny_config, forked=True) as server:
        assert {one["task_id"] for one in server.get("/train/history").json()["tasks"]} == {*tasks, third}
        for task in (*tasks, third):
            assert server.wait(task, "completed", "failed", "killed", "interrupted")["status"] == "completed"
        assert (tiny_config.parent / "elsewhere" / third / "report.json").is_file()


def test_a_run_is_stopped_and_goes_on_and_one_that_waits_leaves_the_queue(tiny_config):
    with served(tiny_config, forked=True) as server:
        task = server.post("/train", {"max_steps": 60, "save_steps": 50, "eval_steps": 0}).json()["task_id"]
        waits = server.post("/train", {"max_steps": 3}).json()["task_id"]
        with server.held(task):
            assert server.status(waits)["status"] == "queued"
            assert server.post(f"/train/stop/{waits}").json()["status"] == "interrupted"
            # Asked twice, in OpenAI's way and in the guides', it still writes its checkpoint.
            assert server.post(f"/v1/fine_tuning/jobs/{task}/cancel").json()["status"] in ("running", "cancelled")
            server.post(f"/train/stop/{task}")
        stopped = server.wait(task, "interrupted", "failed", "killed", "completed")
        assert stopped["status"] == "interrupted"
        assert server.get(f"/v1/fine_tuning/jobs/{task}").json()["status"] == "cancelled"
        run = tiny_config.parent / "outputs" / task
        assert list((run / "checkpoints").glob("checkpoint-*"))
        assert server.post(f"/train/resume/{task}").json()["status"] == "queued"
        assert server.post(f"/train/resume/{waits}").json()["status"] == "queued"
        assert server.wait(task, "completed", "failed")["status"] == "completed"
        assert server.wait(waits, "completed", "failed")["step"] == 3
        steps = [event["step"] for event in events.read(run / "events.jsonl") if event["event"] == "step"]
        assert steps == list(range(1, 61))


def test_rows_that_are_wrong_are_told_by_the_check_and_fail_the_run_with_the_same_words(tiny_config):
    (tiny_config.parent / "bad.jsonl").write_text('{"instruction": "a", "output": "b"}\n{"instruction": "a"}\n')
    with served(tiny_config, forked=True) as server:
        ready = server.post("/train?check=true", {"max_steps": 3}, timeout=300)
        assert ready.status_code == 200 and ready.json()["task_id"] is None
        assert any(line.startswith("rows: ") for line in ready.json()["plan"])
        assert not any("config.ini:" in line for line in ready.json()["plan"])
        checked = server.post("/train?check=true", {"dataset_path": "bad.jsonl"}, timeout=300)
        assert checked.status_code == 422
        words = [one["msg"] for one in checked.json()["detail"]]
        assert any("bad.jsonl:2" in word for word in words), words
        task = server.post("/train", {"dataset_path": "bad.jsonl"}).json()["task_id"]
        failed = server.wait(task, "failed", "completed", "killed")
        assert failed["status"] == "failed" and "bad.jsonl:2" in failed["error"]
        assert len(server.get("/train/history").json()["tasks"]) == 1


def test_a_run_that_was_queued_is_started_by_hand_too_and_by_nobody_twice(tiny_config):
    config = tiny_config.read_text().replace("rows.jsonl", str(tiny_config.parent / "rows.jsonl"))
    run = queued.put(
        tiny_config.parent / "outputs",
        config.replace("MAX_STEPS = 6", "MAX_STEPS = 3"),
    )
    assert directory.state(runs.open_run(run.path)) == "queued"
    held = runs.open_run(run.path)
    directory.lock(held)
    refused = finetune("--resume", run.path, "--config", tiny_config)
    assert refused.code == 2 and "is being worked on by another process" in refused.stderr
    assert directory.state(runs.open_run(run.path)) == "queued"
    directory.unlock(held)
    ended = finetune("--resume", run.path, "--config", tiny_config)
    assert ended.code == 0 and ended.run == run.path


def test_listeners_and_questions_at_once_are_answered_or_told_to_come_again(tiny_config):
    with served(tiny_config, forked=True) as server:
        task = server.post("/train", {"max_steps": 3}).json()["task_id"]

        def ask(number: int) -> int:
            path = ("/train/status/", "/train/events/")[number % 2] + task
            with httpx.Client(timeout=300) as client:
                return client.get(f"{server.address}{path}").status_code

        with ThreadPoolExecutor(100) as pool:
            found = list(pool.map(ask, range(100)))
        assert len(found) == 100 and set(found) <= {200, 429}
        assert server.wait(task, "completed", "failed")["status"] == "completed"
