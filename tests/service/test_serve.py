"""./run.sh --serve before it serves, and the settings of [Service]."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from training import settings
from training.errors import MachineError, UserError
from training.service import app, guard, server
from training.service.events_stream import lines, place
from training.service.jobs import last_figures
from training.system import foreign_json

TOKEN = "0123456789abcdef0123"


def load(tmp_path: Path, text: str) -> settings.Settings:
    config = tmp_path / "config.ini"
    config.write_text(f"[Service]\n{text}\n")
    (tmp_path / "train_data.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    return settings.load(config)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.0.7", "::", "example.org"])
def test_an_address_that_others_reach_needs_a_token(tmp_path, host):
    with pytest.raises(
        UserError, match=r"config.ini:2: \[Service\] HOST = .*: others can reach this address, and need a token"
    ):
        load(tmp_path, f"HOST = {host}")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.1.2.3"])
def test_this_machines_own_address_needs_none(tmp_path, host):
    assert server.token_of(load(tmp_path, f"HOST = {host}")) is None


def test_a_host_with_a_port_is_refused(tmp_path):
    with pytest.raises(UserError, match="without a port"):
        load(tmp_path, "HOST = 127.0.0.1:8000")


def test_a_root_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        load(tmp_path, "ROOTS = ., elsewhere")


@pytest.mark.parametrize("token", ["short", "", "two words are no token", "密" * 20])
def test_a_token_that_can_be_guessed_or_not_be_sent_is_refused(tmp_path, token):
    (tmp_path / "token").write_text(token)
    with pytest.raises(UserError, match=r"\[Service\] TOKEN_FILE = .*: must hold one word of at least 16"):
        server.token_of(load(tmp_path, "TOKEN_FILE = token"))


@pytest.mark.parametrize("shown", [None, "Bearer", "Bearer w", f"Bearer {TOKEN}", f"Bearer {TOKEN}x", "Basic x", "密"])
@pytest.mark.parametrize("verdict", [True, False])
def test_a_token_is_compared_in_a_time_that_says_nothing_of_it_and_nothing_else_decides(
    tmp_path, monkeypatch, shown, verdict
):
    compared: list[tuple[bytes, bytes]] = []
    monkeypatch.setattr(guard.hmac, "compare_digest", lambda one, other: compared.append((one, other)) or verdict)
    client = TestClient(app.make(load(tmp_path, "PORT = 1"), TOKEN), "http://127.0.0.1")
    headers = {} if shown is None else {"Authorization": shown.encode()}
    status = client.get("/train/history", headers=headers).status_code
    word = (shown or "").partition(" ")[2]
    assert compared == [(word.encode(), TOKEN.encode())]
    assert status == (200 if verdict and (shown or "").startswith("Bearer") else 401)


def test_an_upload_may_be_larger_than_another_body_and_has_a_bound_too(tmp_path, monkeypatch):
    client = TestClient(app.make(load(tmp_path, "PORT = 1"), None), "http://127.0.0.1")
    rows = b'{"prompt": "a", "completion": "b"}\n' * 40_000
    assert len(rows) > guard.MOST_BODY
    assert client.post("/v1/files", files={"file": ("a.jsonl", rows)}).json()["bytes"] == len(rows)
    assert client.post("/train", content=rows, headers={"Content-Type": "application/json"}).status_code == 413
    monkeypatch.setattr(guard, "MOST_UPLOAD", len(rows) - 1)
    assert client.post("/v1/files", files={"file": ("a.jsonl", rows)}).status_code == 413
    # One that does not say how long it is.
    head = b'--X\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'
    pieces = iter([head, rows, rows, b"\r\n--X--\r\n"])
    headers = {"Content-Type": "multipart/form-data; boundary=X"}
    assert client.post("/v1/files", content=pieces, headers=headers).status_code == 413
    assert len(client.get("/v1/files").json()["data"]) == 1


def test_of_two_servers_that_come_to_the_same_port_at_once_one_is_told(monkeypatch):
    class Taken(socket.socket):
        def listen(self, *_: int) -> None:
            raise OSError(98, "Address already in use")

    monkeypatch.setattr(server.socket, "socket", Taken)
    with pytest.raises(MachineError, match="127.0.0.1:0 cannot be listened on: Address already in use; --port names"):
        server.listening("127.0.0.1", 0)


def test_what_is_missing_is_named_with_the_line_that_installs_it(monkeypatch):
    monkeypatch.setattr(server, "PACKAGES", {"fastapi": "fastapi", "not_there_at_all": "not-there"})
    with pytest.raises(MachineError, match=r"not installed \(not-there\): ./setup.sh --service") as error:
        server.check_packages()
    assert error.value.exit_code == 3


def test_a_port_that_is_taken_is_told(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(MachineError, match=f"127.0.0.1:{port} cannot be listened on: .*--port names another port"):
            server.listening("127.0.0.1", port)


def test_a_person_on_ssh_is_told_the_line_to_type(monkeypatch):
    monkeypatch.setenv("SSH_CONNECTION", "10.0.0.1 5000 10.0.0.9 22")
    monkeypatch.setattr(server.getpass, "getuser", lambda: "me")
    assert server.hints("127.0.0.1", 8000) == [
        "serving on http://127.0.0.1:8000; Ctrl-C ends it, and no run",
        "on your own machine: ssh -N -L 8000:127.0.0.1:8000 me@10.0.0.9  then open http://localhost:8000",
    ]
    monkeypatch.delenv("SSH_CONNECTION")
    assert len(server.hints("127.0.0.1", 8000)) == 1


def test_no_record_of_a_run_has_the_settings_of_the_service(tmp_path):
    found = load(tmp_path, "PORT = 9000")
    assert found.service.port == 9000
    assert "9000" not in found.to_ini() and "Service" not in found.as_dict() and found.differences() == []


@pytest.mark.parametrize(
    ("last", "expected"), [(None, 0), ("10", 10), ("11", 0), ("-1", 0), ("x", 0), ("٣", 0), ("9" * 30, 0)]
)
def test_a_listener_goes_on_behind_its_last_event(last, expected):
    assert place(last, 10) == expected


def test_a_line_that_is_being_written_is_left_for_later(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"event":"a"}\nnonsense\n{"event":"b"')
    assert lines(path, 0) == [(14, {"event": "a"}), (23, {})]
    assert lines(path, 23) == []


def test_of_the_many_events_of_a_run_those_alone_are_read_that_say_how_it_is(tmp_path, monkeypatch):
    path, read, parse = tmp_path / "events.jsonl", [], foreign_json.parse
    steps = [f'{{"event":"step","step":{n},"loss":{n}.5,"epoch":0.5}}\n' for n in range(1, 400)]
    path.write_text('{"event":"evaluation","at_step":1,"loss":2.0}\n' + "".join(steps) + "nonsense\n")
    monkeypatch.setattr(foreign_json, "parse", lambda *words: read.append(words) or parse(*words))
    assert last_figures(path) == {"loss": 399.5, "epoch": 0.5, "validation_loss": 2.0}
    assert len(read) == 2
    path.write_text("".join(steps))
    assert last_figures(path) == {"loss": 399.5, "epoch": 0.5}
    assert len(read) == 3
