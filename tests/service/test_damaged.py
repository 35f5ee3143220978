"""Files under OUTPUT_DIR that somebody has spoiled or put there, and disks that take nothing: told, and nothing else suffers."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from tests.support.service import put_run
from training import runs, settings
from training.runs import Run, directory, queued
from training.service import app, jobs
from training.service.core import Core
from training.service.events_stream import lines
from training.service.scheduler import Scheduler, _Started
from training.settings import Settings
from training.system import files

SECRET = "root of all keys"
EVALUATION = "evaluation_20260101_000000_00000000"
FILE = "file-" + "0" * 24


@pytest.fixture
def own(tmp_path: Path) -> Settings:
    """The settings of a server, with a secret beside its folder."""
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    home = tmp_path / "home"
    home.mkdir()
    (home / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    (home / "config.ini").write_text("[Dataset]\nDATASET_FILE = rows.jsonl\n")
    return settings.load(home / "config.ini")


@pytest.fixture
def client(own: Settings) -> Iterator[TestClient]:
    """A server without its queue: what is asked for waits."""
    yield TestClient(app.make(own, None), "http://127.0.0.1", raise_server_exceptions=False)


@pytest.fixture
def run(own: Settings) -> Path:
    """A run that is done."""
    return put_run(own.training.output_dir)


def status(run: Path, **changes: object) -> None:
    found = json.loads((run / "status.json").read_text(encoding="utf-8"))
    (run / "status.json").write_text(json.dumps({**found, **changes}), encoding="utf-8")


def told(client: TestClient, run: Path) -> list[str]:
    """What is told of a run by every route that reads its files; never 500."""
    name = run.name
    found = []
    for path in (f"/train/{what}/{name}" for what in ("status", "log", "report", "events")):
        found.append(client.get(path))
    found.append(client.get("/train/history"))
    found += [client.get(f"/v1/fine_tuning/jobs{rest}") for rest in ("", f"/{name}", f"/{name}/events")]
    found.append(client.get(f"/v1/fine_tuning/jobs/{name}/checkpoints"))
    assert {answer.status_code for answer in found} <= {200, 404, 422}, [a.text for a in found]
    return [answer.text for answer in found]


@pytest.mark.parametrize("name", ["events.jsonl", "finetune.log", "report.html", "status.json"])
def test_a_pipe_in_the_place_of_a_file_holds_nobody_up(client, run, name) -> None:
    (run / name).unlink(missing_ok=True)
    os.mkfifo(run / name)
    # Whoever opens it would wait for ever: then it is opened from here too, and its content gives that away.
    opened = threading.Event()

    def write() -> None:
        with (run / name).open("w"):
            opened.set()

    threading.Thread(target=write, daemon=True).start()
    told(client, run)
    assert not opened.is_set()
    with (run / name).open("rb"):
        assert opened.wait(60)


@pytest.mark.parametrize("name", ["events.jsonl", "finetune.log", "report.html"])
def test_a_link_out_of_the_roots_is_not_read(client, run, own, name) -> None:
    secret = own.config.parent.parent / "secret"
    secret.write_text(json.dumps({"event": "warning", "message": SECRET}) + "\n")
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(secret)
    answers = [client.get(f"/train/{what}/{run.name}").text for what in ("log", "report", "events")]
    answers.append(client.get(f"/v1/fine_tuning/jobs/{run.name}/events").text)
    assert not any(SECRET in answer for answer in answers)


@pytest.mark.parametrize("name", ["events.jsonl", "finetune.log", "report.html"])
@pytest.mark.parametrize("kind", ["folder", "circle", "bytes"])
def test_what_is_no_text_file_is_told_as_none(client, run, name, kind) -> None:
    (run / name).unlink(missing_ok=True)
    if kind == "folder":
        (run / name).mkdir()
    elif kind == "circle":
        (run / name).symlink_to(run / name)
    else:
        (run / name).write_bytes(b"\xff\x00\n" * 100)
    told(client, run)


@pytest.mark.parametrize(
    "changes",
    [
        {"asked": {"hyperparameters": 7}},
        {"asked": {"hyperparameters": [1], "model": [1], "training_file": 7, "validation_file": {}}},
        {"asked": {"metadata": "\ud800"}},
        {"model": "\ud800"},
        {"error": "\ud800", "state": "failed"},
        {"progress": 1e300},
        {"started": 0, "queued": 1.5},
    ],
)
def test_odd_fields_of_a_run_break_no_list(client, run, changes) -> None:
    status(run, **changes)
    told(client, run)


@pytest.mark.parametrize(
    "line",
    ["[" * 3000, '{"event": "x", "a": ' + "[" * 600 + "]" * 600 + "}", '{"event": "\\ud800"}', '{"event": 7}']
    + ['{"event": "step", "step": 1, "loss": 1' + "0" * 400 + "}", '{"event": "step", "step": [1], "loss": "x"}'],
)
def test_an_event_that_cannot_be_read_is_left_out_and_the_next_one_comes(client, run, line) -> None:
    (run / "events.jsonl").write_text(line + '\n{"event": "warning", "message": "the next"}\n', encoding="utf-8")
    assert all("the next" in answer for answer in (told(client, run)[3], told(client, run)[7]))
    assert [event.get("message") for _, event in lines(run / "events.jsonl", 0)][-1] == "the next"


@pytest.mark.parametrize(
    "found",
    [
        {}, {"state": "done"}, {"state": "running"}, {"state": "running", "pid": 10**20, "pid_started": 1},
        {"state": "completed", "scores": 7}, {"state": "completed", "scores": [7]}, {"state": "queued", "created": "x"},
        {"state": "completed", "rows": "x"}, {"state": "completed", "error": 7}, {"state": "completed", "created": [1]},
        {"state": "completed", "conclusion": "\ud800"}, {"state": "queued", "created": 1e300}, [],
    ],
)  # fmt: skip
def test_the_state_of_an_evaluation_is_read_as_foreign(client, own, found) -> None:
    folder = own.training.output_dir / "evaluations" / EVALUATION
    folder.mkdir(parents=True)
    (folder / "evaluation.json").write_text(json.dumps(found), encoding="utf-8")
    answer = client.get(f"/evaluate/{EVALUATION}")
    assert answer.status_code in (200, 422), answer.text
    assert answer.status_code == 422 or answer.json()["status"] == "failed"


@pytest.mark.parametrize("note", [{"suffix": ".csv", "filename": "\ud800"}, {"suffix": ".csv", "created_at": None}, []])
def test_the_note_of_an_uploaded_file_is_read_as_foreign(client, own, note) -> None:
    folder = own.training.output_dir / "files"
    folder.mkdir(parents=True)
    (folder / f"{FILE}.note").write_text(json.dumps(note), encoding="utf-8")
    (folder / f"{FILE}.csv").write_text("a,b\n")
    assert client.get("/v1/files").json()["data"] == []
    assert {client.get(f"/v1/files/{FILE}{rest}").status_code for rest in ("", "/content")} == {422}


@pytest.mark.parametrize("kind", ["gone", "link", "folder"])
def test_the_content_of_an_uploaded_file_is_that_file_or_not_found(client, own, kind) -> None:
    file = client.post("/v1/files", files={"file": ("rows.csv", b"a,b\n")}).json()
    path = Path(file["path"])
    path.unlink()
    if kind == "link":
        path.symlink_to(own.config.parent.parent / "secret")
    elif kind == "folder":
        path.mkdir()
    answer = client.get(f"/v1/files/{file['id']}/content")
    assert answer.status_code == 404 and "is there no more" in answer.json()["error"]["message"]
    asked = client.post("/v1/fine_tuning/jobs", json={"model": "a/b", "training_file": file["id"]})
    assert asked.status_code == 422 and "is there no more" in asked.json()["error"]["message"]


def test_a_run_whose_directory_was_removed_is_not_found_and_the_others_are(client, run, own) -> None:
    other = own.training.output_dir / "finetune_20260101_000000"
    shutil.copytree(run, other)
    shutil.rmtree(run)
    assert client.get(f"/train/status/{run.name}").status_code == 404
    assert [task["task_id"] for task in client.get("/train/history").json()["tasks"]] == [other.name]


@pytest.mark.parametrize(
    ("number", "status", "words"),
    [
        (errno.ENOSPC, 507, "the disk is full"),
        (errno.EDQUOT, 507, "your quota is used up: make room first"),
        (errno.EROFS, 503, "it can only be read: a drive that fails is made so by the system"),
        (errno.EIO, 503, "the drive, or the network that it hangs on, fails"),
        (errno.EACCES, 503, "give yourself the right to it"),
    ],
)
@pytest.mark.parametrize("file", ["config.ini", "status.json"])
def test_a_disk_that_does_not_take_a_run_is_told_and_nothing_waits_or_counts(
    client, own, run, monkeypatch, number, status, words, file
) -> None:
    whole, refuses = files.write_text, [False]

    def refused(path: Path, text: str, shared: bool = False) -> None:
        if path.name == file and refuses[0] and (file == "config.ini" or '"queued":' in text):
            raise OSError(number, os.strerror(number), str(path))
        whole(path, text, shared)

    monkeypatch.setattr(files, "write_text", refused)
    refuses[0] = True
    answer = client.post("/train", json={})
    if file == "config.ini":
        assert answer.status_code == status and words in answer.json()["detail"], answer.text
    else:
        assert answer.status_code == 503 and "the run was not queued" in answer.json()["detail"]
    refuses[0] = False
    assert list(own.training.output_dir.glob("finetune_*")) == [run]
    assert (own.training.output_dir / "latest").readlink() == Path(run.name)
    assert Core.of(own).jobs.at_work() == []
    assert client.post("/train", json={}).json()["status"] == "queued"


def test_an_upload_that_the_disk_does_not_take_is_told(client, own) -> None:
    own.training.output_dir.write_text("a file in the place of the folder")
    answer = client.post("/v1/files", files={"file": ("rows.csv", b"a,b\n")})
    assert answer.status_code == 503 and "Not a directory" in answer.json()["error"]["message"]


def waits(own: Settings) -> tuple[jobs.Jobs, Run]:
    found = Core.of(own).jobs
    return found, queued.put(own.training.output_dir, "[Model]\n")


def test_a_stop_while_the_queue_starts_the_run_finds_its_process(own, monkeypatch) -> None:
    found, run = waits(own)
    killed: list[int] = []
    monkeypatch.setattr(jobs.os, "kill", lambda pid, _: killed.append(pid))
    directory.lock(run)

    def begin() -> None:
        time.sleep(0.3)
        run.update(pid=os.getpid(), pid_started=directory.started(os.getpid()))
        directory.unlock(run)

    starting = threading.Thread(target=begin)
    starting.start()
    found.stop(run.path.name)
    starting.join()
    assert killed == [os.getpid()]


def test_a_run_that_is_being_started_for_ever_is_told_as_such(own, monkeypatch) -> None:
    found, run = waits(own)
    monkeypatch.setattr(jobs, "ENDING", 0.1)
    directory.lock(run)
    with pytest.raises(jobs.WrongState, match="is being started; try again"):
        found.stop(run.path.name)
    directory.unlock(run)


@pytest.mark.parametrize(
    ("code", "state", "words"), [(-15, "interrupted", "stopped before it began"), (3, "failed", "ended with code 3")]
)
def test_a_stop_that_comes_before_the_program_can_take_heed_is_a_stop(own, code, state, words, tmp_path) -> None:
    found, run = waits(own)
    run.update(pid=7, pid_started=7)
    process = type("Ended", (), {"pid": 7, "returncode": code})()
    with (tmp_path / "said").open("w+b") as said:
        Scheduler(found, 1)._ended(_Started(run, process, said))
    now = runs.open_run(run.path)
    assert now.status["state"] == state and words in now.status["error"]
