"""Who may ask the real server, how much, and how slowly."""

from __future__ import annotations

import contextlib
import http.client
import select
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from tests.support.paths import ROOT
from tests.support.service import Served, put_run, served, until
from training.service import connections, guard

pytestmark = pytest.mark.slow
TOKEN = "0123456789abcdef0123"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server on this machine's own address."""
    folder = tmp_path_factory.mktemp("served")
    with served(write(folder, "")) as found:
        yield found


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server that others reach, and that wants a token."""
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "token").write_text(TOKEN + "\n")
    with served(write(folder, "[Service]\nHOST = 0.0.0.0\nTOKEN_FILE = token\n")) as found:
        yield found


# A server that waits for its clients a tenth as long.
IMPATIENT = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from training.service import connections, guard, server
connections.HEAD /= 10
guard.BODY_SECONDS /= 10
raise SystemExit(server.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server on this machine's own address that does not wait long."""
    with served(write(tmp_path_factory.mktemp("impatient"), ""), program=("-c", IMPATIENT)) as found:
        yield found


def write(folder: Path, more: str) -> Path:
    """Settings with rows beside them."""
    (folder / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    (folder / "config.ini").write_text(f"[Dataset]\nDATASET_FILE = rows.jsonl\n{more}")
    return folder / "config.ini"


def raw(port: int, data: bytes, seconds: float = 30) -> bytes:
    """What a connection answers to these bytes until it ends."""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as client:
        client.sendall(data)
        return everything(client)


def everything(client: socket.socket) -> bytes:
    found = b""
    try:
        while part := client.recv(65536):
            found += part
    except ConnectionResetError:
        pass
    return found


def test_the_process_of_the_server_has_neither_torch_nor_llama_in_it(server):
    maps = Path(f"/proc/{server.process.pid}/maps").read_text()
    assert "torch" not in maps and "llama" not in maps and "numpy" not in maps
    assert psutil.Process(server.process.pid).memory_info().rss < 150 << 20


def test_it_listens_on_this_machine_alone_unless_told_otherwise(server):
    assert server.address.startswith("http://127.0.0.1:")
    others = [a.address for found in psutil.net_if_addrs().values() for a in found if a.family == socket.AF_INET]
    for address in others:
        if not address.startswith("127."):
            with pytest.raises(OSError):
                socket.create_connection((address, server.port), timeout=2)


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "10.0.0.1", "user@127.0.0.1", ""]
    + ["[", "[::1", "[x]", "127.0.0.1:x", "127.0.0.1#evil", "127.0.0.1?evil", "127.0.0.1/evil", "localhost%00"],
)
def test_a_forged_host_is_refused(server, host):
    assert server.get("/train/history", headers={"Host": host}).status_code in (400, 421)


def test_two_hosts_are_refused(server):
    answer = raw(server.port, b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.example\r\n\r\n")
    assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 421"))


@pytest.mark.parametrize("host", ["localhost:9000", "127.0.0.1", "[::1]:8000"])
def test_a_tunnel_may_call_it_by_any_port(server, host):
    assert server.get("/healthz", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://127.0.0.1:1", "https://localhost", "file://"]
)
def test_another_page_starts_no_training(server, origin):
    answer = server.post("/train", {}, headers={"Origin": origin})
    assert answer.status_code == 403 and "Origin" in answer.json()["detail"]
    assert server.get("/train/history").json() == {"tasks": []}


def test_a_request_that_a_browser_calls_cross_site_is_refused(server):
    assert server.get("/train/history", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403


def test_its_own_page_may_ask(server):
    headers = {"Origin": server.address, "Sec-Fetch-Site": "same-origin"}
    assert server.get("/healthz", headers=headers).status_code == 200


@pytest.mark.parametrize("shown", [None, "Bearer wrong", f"Basic {TOKEN}", TOKEN, "Bearer", f"Bearer {TOKEN}x"])
def test_without_its_token_nothing_is_told(guarded, shown):
    answer = guarded.get("/train/history", headers={"Authorization": shown} if shown else {})
    assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"


def test_with_its_token_it_answers(guarded):
    assert guarded.get("/train/history", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200


def test_a_strangers_name_is_no_host_of_a_server_that_others_reach(guarded):
    headers = {"Authorization": f"Bearer {TOKEN}"}
    assert guarded.get("/train/history", headers={**headers, "Host": "evil.example"}).status_code == 421
    assert guarded.get("/train/history", headers={**headers, "Host": "10.1.2.3:8000"}).status_code == 200


def test_the_token_is_in_no_answer_and_in_no_log(guarded):
    headers = {"Authorization": f"Bearer {TOKEN}"}
    answer = guarded.post("/train", {"dataset_path": "token"}, headers=headers)
    assert answer.status_code == 422 and TOKEN not in answer.text
    assert TOKEN not in guarded.get("/train/settings", headers=headers).text


def test_a_body_of_ten_gigabytes_is_refused_before_it_comes(server):
    head = b"POST /train HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 10000000000\r\n\r\n"
    began = time.monotonic()
    assert raw(server.port, head).startswith(b"HTTP/1.1 413")
    assert time.monotonic() - began < 10


def test_a_body_that_does_not_say_its_length_is_cut_off(server):
    def endless() -> Iterator[bytes]:
        for _ in range(10_000):
            yield b" " * 65536

    before = psutil.Process(server.process.pid).memory_info().rss
    try:
        answer = httpx.post(f"{server.address}/train", content=endless(), headers={"Content-Type": "application/json"})
        assert answer.status_code == 413
    except httpx.TransportError:  # the connection was closed while it was still sending
        pass
    assert psutil.Process(server.process.pid).memory_info().rss < before + (64 << 20)
    assert server.get("/healthz").status_code == 200


def test_a_connection_that_says_nothing_is_closed(impatient):
    assert raw(impatient.port, b"") == b""


def test_a_head_that_comes_a_byte_at_a_time_is_cut_off(impatient):
    with socket.create_connection(("127.0.0.1", impatient.port), timeout=30) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n")
        began = time.monotonic()
        with pytest.raises(OSError):
            while time.monotonic() - began < 40:
                client.sendall(b"x-a: b\r\n")
                time.sleep(0.05)
        assert time.monotonic() - began < 25


def test_a_body_that_comes_a_byte_at_a_time_is_cut_off(impatient):
    with socket.create_connection(("127.0.0.1", impatient.port), timeout=60) as client:
        client.sendall(
            b"POST /train HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
        )
        began = time.monotonic()
        with contextlib.suppress(OSError):
            while time.monotonic() - began < 60 and not select.select([client], [], [], 0.1)[0]:
                client.sendall(b" ")
        assert everything(client).startswith(b"HTTP/1.1 408")
        assert time.monotonic() - began < 50


def test_the_page_says_how_long_a_client_may_take():
    for end, said in (
        (".md", "{:.0f} seconds for a head, {:.0f} for a body"),
        (".zh-CN.md", "请求头 {:.0f} 秒，请求体 {:.0f} 秒"),
    ):
        page = (ROOT / "docs" / f"service{end}").read_text(encoding="utf-8")
        assert said.format(connections.HEAD, guard.BODY_SECONDS) in page


def test_a_head_without_an_end_is_refused(server):
    assert raw(server.port, b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nx: " + b"a" * 100_000).startswith(b"HTTP/1.1 400")


def test_more_connections_than_there_is_room_for_are_refused_and_the_server_goes_on(server):
    held = []
    try:
        for _ in range(300):
            held.append(socket.create_connection(("127.0.0.1", server.port), timeout=30))
        last = everything(held[-1])
        assert last.startswith(b"HTTP/1.1 429") or last == b""
    finally:
        for client in held:
            client.close()
    until(lambda: answers(server), 30)


def answers(server: Served) -> bool:
    try:
        return httpx.get(f"{server.address}/healthz", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def test_a_hundred_requests_at_once_are_answered_or_told_to_come_again(server):
    def ask(number: int) -> int:
        path = ("/train/history", "/train/settings", "/train/status/finetune_20200101_000000", "/openapi.json")[
            number % 4
        ]
        return httpx.get(f"{server.address}{path}", timeout=120).status_code

    with ThreadPoolExecutor(100) as pool:
        found = list(pool.map(ask, range(100)))
    assert len(found) == 100 and set(found) <= {200, 404, 429}


def test_its_memory_is_flat_over_ten_thousand_requests(server):
    process = psutil.Process(server.process.pid)
    run = put_run(server.folder / "outputs")

    line = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)

    def ask(times: int) -> None:
        for _ in range(times):
            line.request("GET", f"/train/status/{run.name}")
            answer = line.getresponse()
            assert answer.status == 200 and answer.read()

    try:
        ask(500)
        before = process.memory_info().rss
        ask(10_000)
        assert process.memory_info().rss < before + (8 << 20)
    finally:
        line.close()
        shutil.rmtree(run)


def test_a_missing_run_is_not_found_whatever_it_is_called(server):
    for name in ("finetune_20200101_000000", "..%2f..%2fetc", "x", "%00", "latest", "a" * 3000):
        answer = server.get(f"/train/status/{name}")
        assert answer.status_code == 404 and "detail" in answer.json()


def test_what_is_no_json_is_told_and_no_traceback_is(server):
    for body in (b"{", b"[" * 100_000, b"\xff", b"1", b'{"learning_rate": NaN}', b"9" * 10_000):
        answer = server.client.post("/train", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code in (400, 422), (body[:20], answer.text)
        assert "Traceback" not in answer.text


def test_every_problem_of_a_training_comes_with_its_field(server):
    answer = server.post("/train", {"learning_rat": 1, "lora_r": 0, "dataset_path": "../x"})
    assert answer.status_code == 422
    assert {one["field"] for one in answer.json()["detail"]} == {"learning_rat", "lora_r", "dataset_path"}


def test_a_wrong_setting_ends_the_command_with_2_and_a_taken_port_with_3(server, tmp_path):
    def ended(*more: str) -> int:
        script = Path(__file__).parents[2] / "training" / "finetune.py"
        command = [sys.executable, str(script), "--serve", "--config", str(write(tmp_path, "")), *more]
        return subprocess.run(command, capture_output=True, timeout=120).returncode

    assert ended("--port", "70000") == 2
    assert ended("--port", str(server.port)) == 3
