"""Models over HTTP: a finished run answers by its own GGUF file, in the guides' shape and in OpenAI's."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import psutil
import pytest

from tests.support import small
from tests.support.runs import losses
from tests.support.service import Served, served, until
from tests.support.session import once
from tests.support.tiny import write_tiny_config

# Its runs need no real vocabulary.
tiny_model = small.tiny_model

pytestmark = pytest.mark.tiny
QUESTION = "What is 4 and 4?"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Served]:
    """A server with the tiny model, and rows to upload."""
    folder, _ = once(tmp_path_factory, "served_models", lambda folder: str(write_tiny_config(folder, tiny_model)))
    with served(folder / "config.ini", forked=True) as found:
        yield found


@pytest.fixture(scope="module")
def client(server: Served) -> openai.OpenAI:
    """OpenAI's own client, told another address and nothing else."""
    return openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0, timeout=300)


@pytest.fixture(scope="module")
def job(server: Served, client: openai.OpenAI, tiny_model: Path) -> str:
    """A job that was uploaded, started and followed to its end by that client."""
    with (server.folder / "rows.jsonl").open("rb") as rows:
        file = client.files.create(file=rows, purpose="fine-tune")
    assert client.files.retrieve(file.id).filename == "rows.jsonl"
    assert client.files.content(file.id).read() == (server.folder / "rows.jsonl").read_bytes()
    started = client.fine_tuning.jobs.create(
        model=str(server.folder / "model"),
        training_file=file.id,
        suffix="served",
        seed=7,
        metadata={"who": "me"},
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3, "batch_size": 4}}},
    )
    assert (started.status, started.training_file, started.metadata) == ("queued", file.id, {"who": "me"})
    ended = until(lambda: finished(client, started.id), 400)
    assert ended.status == "succeeded", ended
    return started.id


def finished(client: openai.OpenAI, name: str):
    found = client.fine_tuning.jobs.retrieve(name)
    return found if found.status in ("succeeded", "failed", "cancelled") else None


@pytest.fixture(scope="module", autouse=True)
def model_inside(server: Served, tiny_model: Path) -> None:
    """The tiny model inside of the roots."""
    import shutil

    if not (server.folder / "model").exists():
        shutil.copytree(tiny_model, server.folder / "model")


def test_openais_own_client_trains_and_sees_what_came_of_it(server, client, job):
    ended = client.fine_tuning.jobs.retrieve(job)
    assert ended.fine_tuned_model == job and ended.hyperparameters.n_epochs == 3 and ended.seed == 7
    assert job in [one.id for one in client.fine_tuning.jobs.list(limit=1)]
    every = list(client.fine_tuning.jobs.list_events(job, limit=3))
    steps = [event.data["step"] for event in every if event.type == "metrics" and "train_loss" in event.data]
    run = server.folder / "outputs" / job
    assert steps[::-1] == list(losses(run)) and every[0].message == "The job has successfully completed"
    checkpoints = client.fine_tuning.jobs.checkpoints.list(job).data
    assert checkpoints and checkpoints[0].step_number == max(one.step_number for one in checkpoints)
    assert job in [model.id for model in client.models.list()]
    assert client.models.retrieve(job).owned_by == "local"
    assert (
        "BATCH_SIZE = 4" in (run / "config.ini").read_text()
        and "NEW_MODEL_NAME = served" in (run / "config.ini").read_text()
    )


def test_openais_own_client_chats_with_the_result_whole_and_by_stream(client, job):
    asked = {"model": job, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 12}
    whole = client.chat.completions.create(**asked)
    text = whole.choices[0].message.content
    assert whole.usage.completion_tokens <= 12 and whole.usage.prompt_tokens > 5
    assert whole.choices[0].finish_reason in ("stop", "length")
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices).strip() == text
    assert chunks[-1].usage == whole.usage
    parts = [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}]
    assert client.chat.completions.create(**{**asked, "messages": parts}).choices[0].message.content == text
    assert client.chat.completions.create(**{**asked, "model": "served"}).choices[0].message.content == text


def test_chance_follows_temperature_and_seed(client, job):
    def answer(**more: object) -> str:
        asked = {"model": job, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 20}
        return client.chat.completions.create(**asked, **more).choices[0].message.content

    assert answer(temperature=2, seed=1) == answer(temperature=2, seed=1)
    assert len({answer(temperature=2, seed=seed) for seed in range(3)}) > 1
    assert answer(temperature=2, top_p=1e-9, seed=1) == answer()


def test_what_openais_client_gets_wrong_is_told_with_its_field(server, client, job):
    with pytest.raises(openai.UnprocessableEntityError) as error:
        client.fine_tuning.jobs.create(model="embedded/nonsense", training_file="file-x", suffix="a b")
    told = error.value.body
    assert [one["field"] for one in told["problems"]] == ["training_file", "suffix", "base_model_name"] or {
        one["field"] for one in told["problems"]
    } == {"training_file", "suffix", "model"}
    with pytest.raises(openai.NotFoundError):
        client.fine_tuning.jobs.retrieve("ftjob-none")
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="none", messages=[{"role": "user", "content": "a"}])
    with pytest.raises(openai.UnprocessableEntityError):
        client.chat.completions.create(model=job, messages=[{"role": "user", "content": "a"}], n=2)
    with pytest.raises(openai.UnprocessableEntityError, match="must end in one of"):
        client.files.create(file=("rows.exe", b"x"), purpose="fine-tune")
    with pytest.raises(openai.ConflictError):
        client.fine_tuning.jobs.cancel(job)


def test_an_uploaded_file_is_removed_and_none_outside_is_reached(server, client):
    file = client.files.create(file=("../../../a.jsonl", b'{"prompt": "a", "completion": "b"}\n'), purpose="fine-tune")
    kept = server.folder / "outputs" / "files" / f"{file.id}.jsonl"
    assert file.filename == "a.jsonl" and kept.stat().st_mode & 0o777 == 0o600
    assert client.files.delete(file.id).deleted and not kept.exists()
    for name in ("file-" + "0" * 24, "x", "a..b"):
        with pytest.raises(openai.NotFoundError):
            client.files.retrieve(name)


def test_a_run_is_loaded_asked_and_freed(server, job):
    loaded = server.post("/models/load", {"model_name": "mine", "model_path": f"outputs/{job}"}, timeout=300)
    assert loaded.status_code == 200, loaded.text
    worker = [
        child for child in psutil.Process(server.process.pid).children() if "model_worker" in " ".join(child.cmdline())
    ]
    asked = {"model_name": "mine", "prompt": QUESTION, "max_tokens": 10}
    answer = server.post("/generate", asked).json()
    assert set(answer) == {"text", "model_name", "stopped", "prompt_tokens", "completion_tokens"}
    with server.client.stream("POST", "/generate", json={**asked, "stream": True}) as stream:
        lines = [line for line in stream.iter_lines() if line]
    pieces = [json.loads(lines[at + 1][6:])["text"] for at in range(0, len(lines), 2) if lines[at] == "event: piece"]
    assert "".join(pieces).strip() == answer["text"] and lines[-2] == "event: done"
    base = server.post("/generate", {**asked, "base": True}, timeout=300)
    assert base.status_code == 200 and base.json()["text"] != answer["text"]
    assert "mine" in [model["model_name"] for model in server.get("/models").json()["models"]]
    assert "mine" not in [
        one["model_name"] for one in server.post("/models/unload", {"model_name": "mine"}).json()["models"]
    ]
    assert server.post("/models/unload", {"model_name": "mine"}).status_code == 404
    assert worker and until(lambda: not any(process.is_running() for process in worker[-1:]))


def test_base_and_adapter_answer_as_the_gguf_of_the_same_run_does(server, job):
    asked = {"prompt": QUESTION, "max_tokens": 10}
    body = {"model_name": "pair", "model_path": "model", "lora_adapter": f"outputs/{job}/adapter"}
    assert server.post("/models/load", body, timeout=300).status_code == 200
    pair = server.post("/generate", {**asked, "model_name": "pair"}, timeout=300).json()
    gguf = server.post("/generate", {**asked, "model_name": job}, timeout=300).json()
    assert pair["prompt_tokens"] == gguf["prompt_tokens"] and pair["text"]
    server.post("/models/unload", {"model_name": "pair"})


@pytest.mark.parametrize("path", ["../elsewhere", "/etc", "outputs/none/x", "link", "link/passwd"])
def test_what_is_not_there_or_outside_is_not_loaded(server, path):
    link = server.folder / "link"
    if not link.is_symlink():
        link.symlink_to("/etc")
    answer = server.post("/models/load", {"model_name": "x", "model_path": path}, timeout=300)
    assert answer.status_code == 422 and answer.json()["detail"][0]["field"] == "model_path"


def test_a_model_that_dies_is_told_and_loaded_again(server, job):
    server.post("/models/load", {"model_name": "dies", "model_path": job}, timeout=300)
    (worker,) = [p for p in psutil.Process(server.process.pid).children() if "model_worker" in " ".join(p.cmdline())][
        -1:
    ]
    worker.kill()
    asked = {"model_name": "dies", "prompt": QUESTION, "max_tokens": 4}
    assert until(lambda: (answer := server.post("/generate", asked)).status_code in (404, 503) and answer)
    assert server.post("/models/load", {"model_name": "dies", "model_path": job}, timeout=300).status_code == 200
    assert server.post("/generate", asked).status_code == 200


def test_a_hundred_requests_at_once_are_answered_to_their_end_or_told_to_come_again(server, job):
    """Questions, whole and by stream, the state of a run, and its events: none is lost, and none breaks off."""
    asked = {"model_name": job, "prompt": QUESTION, "max_tokens": 4}
    server.post("/generate", asked, timeout=300)
    requests = (
        ("POST", "/generate", asked, '"stopped":'),
        ("POST", "/generate", {**asked, "stream": True}, "event: done"),
        ("GET", f"/train/status/{job}", None, '"status":"completed"'),
        ("GET", f"/train/events/{job}", None, "event: status"),
    )

    def ask(number: int) -> tuple[str, int, bool]:
        method, path, body, end = requests[number % len(requests)]
        with httpx.Client(timeout=300) as client:
            answer = client.request(method, f"{server.address}{path}", json=body)
            return path, answer.status_code, end in answer.text

    with ThreadPoolExecutor(100) as pool:
        found = list(pool.map(ask, range(100)))
    assert len(found) == 100 and {status for _, status, _ in found} <= {200, 429}
    assert all(whole == (status == 200) for _, status, whole in found), found
    assert {path for path, status, _ in found if status == 200} == {path for _, path, _, _ in requests}
    assert server.get("/healthz").status_code == 200


def test_an_answer_that_nobody_waits_for_is_stopped(server, job):
    asked = {"model_name": job, "prompt": QUESTION, "max_tokens": 400, "stream": True, "temperature": 2, "seed": 3}
    with server.client.stream("POST", "/generate", json=asked) as stream:
        next(stream.iter_lines())
    began = time.monotonic()
    assert server.post("/generate", {"model_name": job, "prompt": QUESTION, "max_tokens": 1}).status_code == 200
    assert time.monotonic() - began < 30


def test_a_run_is_measured_against_its_base(server, job):
    answer = server.post("/evaluate", {"model": job, "max_rows": 2})
    assert answer.status_code == 200, answer.text
    name = answer.json()["evaluation_id"]
    assert server.post("/evaluate", {"model": job}).status_code == 429
    ended = until(
        lambda: (found := server.get(f"/evaluate/{name}").json())["status"] in ("completed", "failed") and found, 300
    )
    assert ended["status"] == "completed", ended
    assert ended["rows"] == 2 and ended["conclusion"] and Path(ended["answers"]).is_file()
    assert {"before", "after", "quantised"} <= set(ended["scores"][0])
    assert server.get("/evaluate/evaluation_20200101_000000_00000000").status_code == 404
    until(lambda: server.post("/evaluate", {"model": job, "test_data": "/etc/passwd"}).status_code == 422)
