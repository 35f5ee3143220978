"""The JSON of requests: what cannot be read is said in words that help, and costs nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from training import settings
from training.service import app, bodies
from training.settings import names

JSON = {"Content-Type": "application/json"}


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    """A server without its queue: what is asked for waits."""
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    (tmp_path / "config.ini").write_text("[Dataset]\nDATASET_FILE = rows.jsonl\n")
    yield TestClient(app.make(settings.load(tmp_path / "config.ini"), None), "http://127.0.0.1")


def said(client: TestClient, path: str, content: bytes, **headers: str) -> str:
    """The words of an answer that refuses."""
    answer = client.post(path, content=content, headers={**JSON, **headers})
    assert answer.status_code == 422, answer.text
    told = answer.json()
    return told["error"]["message"] if "error" in told else "\n".join(one["msg"] for one in told["detail"])


@pytest.mark.parametrize("path", ["/train", "/generate", "/models/load", "/evaluate", "/v1/fine_tuning/jobs"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"max_steps": 3, "max_steps": 300}', 'the body says "max_steps" twice; give one of the two'),
        (b'{"a": {"b": 1, "c": 2, "b": 3}}', 'the body says "b" twice'),
        (b'{"max_steps": }', "the body is no JSON: Expecting value: line 1 column 15 (char 14)"),
        (b"\0", "the body is no JSON: "),
        (b'{"a":' * 50_000, "the body is nested more than 100 levels deep"),
        (b'{"a":' + b"[" * 200 + b"]" * 200 + b"}", "the body is nested more than 100 levels deep"),
        (b'{"a": ' + b"9" * 5000 + b"}", "the body is no JSON that can be read: a number has too many digits"),
        (b'{"a": "\xff"}', "the body is not UTF-8"),
        (
            b'{"\\ud800": 1}',
            "the body holds half a character (a lone surrogate), which no file can hold (in '\\ud800')",
        ),
        (b'{"a": [{"b": "\\ud800"}]}', "which no file can hold (in 'a')"),
        (b"[]", "the body must be a JSON object"),
        (b"", "the body must be a JSON object"),
    ],
)
def test_a_body_that_cannot_be_read_is_told_with_what_is_wrong_with_it(client, path, content, words) -> None:
    assert words in said(client, path, content)


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/plain", "application/octet-stream"])
@pytest.mark.parametrize("path", ["/train", "/generate"])
def test_json_that_is_not_sent_as_json_is_told_with_the_header_that_is_missing(client, path, kind) -> None:
    # What curl -d sends. It is not taken for JSON: a page of a stranger could send it without asking.
    words = said(client, path, b'{"max_steps": 3}', **{"Content-Type": kind})
    assert words == f"the body is sent as {kind}: send JSON, with the header Content-Type: application/json"


def test_a_missing_field_is_named_in_the_words_too(client) -> None:
    assert said(client, "/v1/fine_tuning/jobs", b"{}") == "model: Field required\ntraining_file: Field required"


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"method": 7}, "method"),
        ({"method": {"type": "supervised", "supervised": 7}}, "supervised"),
        ({"method": {"type": ["supervised"]}}, "type"),
        ({"method": {"type": "supervised", "supervised": {"hyperparameters": [1]}}}, "hyperparameters"),
        ({"method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": 1}}}}, "method"),
        ({"hyperparameters": [1]}, "hyperparameters"),
        ({"hyperparameters": {"n_epochs": {"a": 1}}}, "num_epochs"),
    ],
)
def test_a_job_of_an_odd_shape_is_told_with_its_field(client, given, field) -> None:
    file = client.post("/v1/files", files={"file": ("rows.jsonl", b'{"prompt": "a", "completion": "b"}\n')}).json()[
        "id"
    ]
    answer = client.post("/v1/fine_tuning/jobs", json={"model": "a/b", "training_file": file, **given})
    assert answer.status_code == 422, answer.text
    assert field in [one["field"] for one in answer.json()["error"]["problems"]]
    assert client.get("/v1/fine_tuning/jobs").json()["data"] == []


def test_thousands_of_names_and_very_long_ones_are_not_compared_with_all_there_are(client, monkeypatch) -> None:
    # That took minutes, in which nobody else was answered.
    compared: list[str] = []
    monkeypatch.setattr(names, "_ratio", lambda one, _: compared.append(one) or 0.0)
    long = said(client, "/train", json.dumps({"k" * 100_000: 1, "learning-rat": 1, "m" * 100_000: 1}).encode())
    assert [len(line) < 200 for line in long.splitlines()] == [True, True, True]
    assert compared and max(map(len, compared)) <= 100
    compared.clear()
    many = json.dumps({f"kind_of_{number}": 1 for number in range(30_000)}).encode()
    assert said(client, "/train", many) == "30,000 fields are given; there are fewer than 500"
    assert not compared


def test_what_is_readable_is_read() -> None:
    assert bodies.parse(b'\xef\xbb\xbf{"a": [1, {"b": null}], "c": "\\ud83d\\ude00"}') == {
        "a": [1, {"b": None}],
        "c": "😀",
    }
    assert bodies.parse('{"a": 1}'.encode("utf-16")) == {"a": 1}
