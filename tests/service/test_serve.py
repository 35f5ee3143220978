"""./run.sh --serve before it serves, and the settings of [Service]."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from training import settings
from training.errors import MachineError, UserError
from training.service import server
from training.service.events_stream import lines, place


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
