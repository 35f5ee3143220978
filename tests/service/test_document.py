"""The served OpenAPI document against the server, by schemathesis: whatever is sent, no 500, and no status that it does not name."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.service import Served, served
from training.runs import queued

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server whose runs all end at once: their base model is a folder that holds none."""
    folder = tmp_path_factory.mktemp("document")
    (folder / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    (folder / "model").mkdir()
    config = folder / "config.ini"
    config.write_text("[Model]\nBASE_MODEL_NAME = model\n[Dataset]\nDATASET_FILE = rows.jsonl\n")
    with served(config) as found:
        yield found


def campaign(server: Served, folder: Path) -> str:
    """What schemathesis says of the server."""
    done = subprocess.run(
        [
            Path(sys.executable).with_name("schemathesis"), "run", f"{server.address}/openapi.json",
            "--checks", "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance",
            # Each of these starts a program: they are asked below.
            "--exclude-path-regex", "^/train$|^/evaluate$|^/models/load$", "--max-examples", "15",
            "--generation-deterministic", "--suppress-health-check", "all", "--no-color",
        ],
        cwd=folder, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return done.stdout


def test_no_request_of_schemathesis_is_answered_by_500_or_an_undocumented_status(
    server: Served, tmp_path: Path
) -> None:
    assert re.search(r"Tested: 2[0-9]", campaign(server, tmp_path))


def test_nor_is_one_about_runs_and_files_that_are_there(server: Served, tmp_path: Path) -> None:
    run = queued.put(server.folder / "outputs", "[Model]\nNEW_MODEL_NAME = mine\n", model="mine")
    run.update(state="completed", started=1.0, pid=1, pid_started=1, step=1, total=1, progress=100.0)
    (run.path / "events.jsonl").write_text(
        '{"v":1,"event":"step","time":1.0,"step":1,"total":1,"loss":2.0}\nnonsense\n'
    )
    file = server.client.post(
        "/v1/files", files={"file": ("rows.jsonl", b"{}\n")}, data={"purpose": "fine-tune"}
    ).json()
    known = {"task_id": run.path.name, "job_id": run.path.name, "file_id": file["id"], "model": run.path.name}
    lines = [f'"path.{name}" = "{value}"' for name, value in known.items()]
    (tmp_path / "schemathesis.toml").write_text("[parameters]\n" + "\n".join(lines) + "\n")
    said = campaign(server, tmp_path)
    # Those that are still not found: an evaluation, models to ask, and the file once it was removed.
    missing = re.search(r"(\d+) operations repeatedly returned 404", said)
    assert missing is None or int(missing[1]) < 10, said[-3000:]


def test_requests_that_start_something_are_no_500_either(server: Served) -> None:
    odd = [None, [], {}, "x", 1, {"a": None}, {"learning_rate": [1]}, {"": ""}, {"\u0000": "\u0000"}, {"seed": 10**400}]
    odd += [{name: value} for name in ("dataset_path", "output_dir", "base_model", "system_prompt", "chat_template") for value in (
        "\u0000", "\ud800", "/" * 5000, "a" * 5000, "~", "~root", "..", ".", "", None, 1, True, [], ["a", "b"], {"a": 1}, "\n",
    )]  # fmt: skip
    for path in ("/train", "/models/load", "/evaluate", "/generate", "/v1/fine_tuning/jobs", "/v1/chat/completions"):
        for body in odd:
            answer = post(server, path, body)
            assert answer.status_code in (200, 400, 404, 409, 422, 429), (path, body, answer.text)


def post(server: Served, path: str, body: object) -> httpx.Response:
    content = json.dumps(body).encode()
    return server.client.post(path, content=content, headers={"Content-Type": "application/json"})
