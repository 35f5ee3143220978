"""ModelScope's HTTP API: answers of bounded size in bounded time, downloads that go on, and what its refusals mean.

The token goes to ModelScope alone: httpx takes it off where a download is redirected to another host.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from training.errors import MachineError
from training.hubs import network
from training.hubs.wanted import Unreachable, Wanted
from training.system import foreign_json
from training.system.progress_bar import gauge

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")
HOME = "https://www.modelscope.cn"
CONNECT, READ = 10.0, 30.0  # seconds
LONGEST_ANSWER = 60.0  # seconds for all of an answer that is no file
MOST_ANSWER = 64 << 20  # bytes of one
ATTEMPTS = 4  # that bring nothing
PAUSE = 1.0  # seconds after the first of them
PATIENCE = 60  # seconds: what Retry-After may ask for
UNKNOWN = 10010205001  # the code of ModelScope's own: no such record


def endpoint() -> str:
    """ModelScope's address without a name or password that may stand in it. Unreachable where it is none."""
    return network.address(_written(), "MODELSCOPE_ENDPOINT").rstrip("/")


def _written() -> str:
    """The address as it is set: with a scheme, which MODELSCOPE_DOMAIN, the older name of the variable, has not."""
    if named := os.environ.get("MODELSCOPE_ENDPOINT", "").strip():
        return named.rstrip("/")
    domain = os.environ.get("MODELSCOPE_DOMAIN", "").strip()
    return (domain if "://" in domain else f"https://{domain}").rstrip("/") if domain else HOME


def asked(wanted: Wanted, what: str, query: Mapping[str, str], say: Callable[[str], None]) -> object:
    """`Data` of the answer to a question about a model or a data set."""
    end = time.monotonic() + LONGEST_ANSWER

    def read(response: httpx.Response) -> bytes:
        raw = bytearray()
        for block in response.iter_bytes():
            raw += block
            if len(raw) > MOST_ANSWER:
                raise strange(wanted)
            if time.monotonic() > end:
                raise unreachable(wanted)
        return bytes(raw)

    raw = _patient(wanted, what, query, dict, read, say)
    try:
        answer = json.loads(raw)
    except (ValueError, RecursionError):
        raise strange(wanted) from None
    if not isinstance(answer, dict) or not foreign_json.shallow(answer):
        raise strange(wanted)
    code = answer.get("Code", 200)
    if answer.get("Success") is False or code not in (200, "200"):
        raise _refused(wanted, code)
    return answer.get("Data")


def download(
    wanted: Wanted, query: Mapping[str, str], size: int | None, partial: Path, say: Callable[[str], None]
) -> None:
    """Bring a file to its end, from what is there of it on. Of a file of unknown size nothing that is there is trusted."""
    if size is None or _there(partial) > size:
        partial.unlink(missing_ok=True)
    with gauge(f"getting {Path(query['FilePath']).name}", size or 0, say, "blocks") as advance:
        advance(_there(partial), 0)
        if _there(partial) == size:
            return

        def write(response: httpx.Response) -> None:
            # Whoever does not know ranges sends all of it again.
            begin = _begin(response) if response.status_code == 206 else 0
            if begin not in (0, _there(partial)):
                raise strange(wanted)
            with partial.open("ab" if begin else "wb") as file:
                for block in response.iter_bytes():
                    if size is not None and file.tell() + len(block) > size:
                        raise strange(wanted)
                    file.write(block)
                    advance(len(block), 1)

        def rest() -> dict[str, str]:
            plain = {"Accept-Encoding": "identity"}
            return plain | ({"Range": f"bytes={there}-"} if (there := _there(partial)) else {})

        _patient(wanted, "repo", query, rest, write, say)


def _there(partial: Path) -> int:
    return partial.stat().st_size if partial.exists() else 0


def _begin(response: httpx.Response) -> int:
    """Where the part begins that is sent; -1 where that is not told."""
    found = re.match(r"bytes (\d{1,18})-", response.headers.get("Content-Range", ""))
    return int(found[1]) if found else -1


def _patient(
    wanted: Wanted,
    what: str,
    query: Mapping[str, str],
    headers: Callable[[], dict[str, str]],
    read: Callable[[httpx.Response], T],
    say: Callable[[str], None],
) -> T:
    """What `read` makes of the answer. Asks again where the line breaks, and after the time that it is asked to wait."""
    import httpx

    failures = waited = 0
    while True:
        before = headers()
        try:
            with _sent(wanted, what, query, before) as response:
                code = response.status_code
                if code < 400:
                    return read(response)
                wait = _wait(wanted, response)
                if waited + wait > PATIENCE:
                    raise Unreachable(f"{_fails(wanted, code)}: try again in {wait} s")
                if code not in (429, 503) and code < 500:
                    raise _refused(wanted, code, query.get("FilePath"))
        except httpx.HTTPError:
            code = wait = 0
        # What has come since then is no failure.
        failures = 1 if headers() != before else failures + 1
        if failures >= ATTEMPTS:
            raise Unreachable(f"{_fails(wanted, code)}: try again later") if code else unreachable(wanted)
        if wait:
            say(f"ModelScope ({endpoint()}) asks to wait {wait} s")
        waited += wait
        time.sleep(wait or PAUSE * 2 ** (failures - 1))


def _wait(wanted: Wanted, response: httpx.Response) -> int:
    """Seconds that an answer asks to wait."""
    after = response.headers.get("Retry-After", "").strip()
    return int(after) if response.status_code in (429, 503) and after.isdecimal() and len(after) < 9 else 0


@contextlib.contextmanager
def _sent(wanted: Wanted, what: str, query: Mapping[str, str], headers: Mapping[str, str]) -> Iterator[httpx.Response]:
    import httpx

    endpoint()
    token = os.environ.get("MODELSCOPE_API_TOKEN", "").strip()
    # Its older addresses know the cookie, its newer ones the other.
    secret = {"Authorization": f"Bearer {token}", "Cookie": f"m_session_id={token}"} if token else {}
    address = f"{_written()}/api/v1/{wanted.kind}/{wanted.name}/{what}"
    try:
        timeout = httpx.Timeout(READ, connect=CONNECT)
        with (
            httpx.Client(timeout=timeout, follow_redirects=True) as client,
            client.stream("GET", address, params=dict(query), headers={**headers, **secret}) as response,
        ):
            yield response
    # The address of a proxy, or a token that is no word.
    except (httpx.InvalidURL, ValueError, ImportError) as error:
        raise network.of_the_proxy(error) or strange(wanted) from None


def _refused(wanted: Wanted, code: object, file: str | None = None) -> MachineError:
    """A status of HTTP, or a code of ModelScope's own, that means no."""
    name, has_token = wanted.name, bool(os.environ.get("MODELSCOPE_API_TOKEN", "").strip())
    if code in (401, 403, "401", "403"):
        return MachineError(
            f"ModelScope ({endpoint()}) refuses {name} (HTTP {code}): ask for access at {endpoint()}/{wanted.kind}/{name} "
            "with your account, then set MODELSCOPE_API_TOKEN to a token of it "
            f"(now {'set, but not enough' if has_token else 'not set'})"
        )
    if code in (404, "404", UNKNOWN, str(UNKNOWN)):
        if file:
            return MachineError(f"{name}: {file} was listed by ModelScope ({endpoint()}) and is gone: run again")
        private = "may lack the right to read it" if has_token else "is needed for a private one"
        return MachineError(
            f"ModelScope ({endpoint()}) knows no {wanted.noun} {name}: check the spelling; MODELSCOPE_API_TOKEN {private}"
        )
    return Unreachable(f"{_fails(wanted, code)}: try again later")


def _fails(wanted: Wanted, code: object) -> str:
    return f"ModelScope ({endpoint()}) fails on {wanted.name}{wanted.at} (HTTP {foreign_json.shown(code)})"


def strange(wanted: Wanted) -> Unreachable:
    """What to say of an answer that is not ModelScope's."""
    return Unreachable(
        f"ModelScope ({endpoint()}) answers with something else than its API: a proxy or a login page? Check the network, "
        f"the proxy and MODELSCOPE_ENDPOINT, or {wanted.instead}"
    )


def unreachable(wanted: Wanted) -> Unreachable:
    """What to say where nothing answers, or nothing comes any more."""
    return Unreachable(
        f"ModelScope ({endpoint()}) cannot be reached for {wanted.name}: check the network or proxy, or {wanted.instead}; "
        f"run again, a cut download goes on where it stopped. {wanted.elsewhere('ms')}"
    )
