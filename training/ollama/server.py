"""A client of a live Ollama, on this machine or another: send a file, create, ask, copy, delete.

Everything goes over its HTTP API, so no `ollama` command and no common disk is needed. A server that is not there is a
MachineError, whatever else goes wrong a RunError with the server's own words. Nothing here waits for ever: a server
that hangs is given up after `patience` seconds without a byte.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from training.errors import MachineError, RunError
from training.ollama import address
from training.ollama.address import Address
from training.system import privacy

STAGE = "ollama"
CONNECTS = 10.0  # seconds
PATIENCE = 300.0  # seconds without a byte; a first answer loads the model
SLOWEST = 5_000_000  # bytes a second that a server is expected to take in, check and copy at the least
BLOCK = 1 << 20
MOST_BYTES = 64 << 20  # of an answer that is read whole
MOST_WORDS = 400  # characters of the server's own words that are told

Sent = Callable[[int], None]  # hears of bytes that were sent


class NoServer(MachineError):
    """No server answers."""


class Refused(RunError):
    """The server has answered, and does not do it."""

    def __init__(self, code: int, words: str) -> None:
        self.code = code
        super().__init__(STAGE, words)


class Server:
    """One Ollama server. `patience`: seconds without a byte after which it is given up."""

    def __init__(self, at: Address | None = None, patience: float = PATIENCE) -> None:
        self.at = at or address.from_environment()
        self.patience = patience

    def version(self) -> str:
        """The server's version as it says it. MachineError where none answers."""
        return str(self.ask("GET", "/api/version", patience=min(self.patience, CONNECTS * 3)).get("version", ""))

    def show(self, name: str) -> dict[str, Any] | None:
        """What the server tells of a model; None where it has none of that name."""
        try:
            return self.ask("POST", "/api/show", {"model": name})
        except Refused as refused:
            if refused.code == 404:
                return None
            raise

    def digest(self, name: str) -> str | None:
        """The digest of what a name stands for now; None for nothing. The same content has the same one."""
        models = self.ask("GET", "/api/tags").get("models") or []
        found = {
            full_name(str(one.get("name"))): str(one.get("digest") or "") for one in models if isinstance(one, dict)
        }
        return found.get(full_name(name))

    def has_blob(self, sha256: str) -> bool:
        """Whether a file is there already, so that it need not be sent."""
        try:
            self._whole("HEAD", f"/api/blobs/sha256:{sha256}", None, self.patience)
        except Refused as refused:
            if refused.code == 404:
                return False
            raise
        return True

    def send_blob(self, path: Path, sha256: str, sent: Sent) -> None:
        """Send a file in one request. What was sent of one that breaks off is lost."""
        size = path.stat().st_size
        done = 0

        def blocks() -> Iterator[bytes]:
            nonlocal done
            with path.open("rb") as file:
                while block := file.read(BLOCK):
                    yield block
                    done += len(block)
                    sent(len(block))

        headers = {"Content-Length": str(size), "Content-Type": "application/octet-stream"}
        with closing(self._connected()) as line:
            self._patient(line, self.patience + size / SLOWEST)
            try:
                line.request("POST", self._path(f"/api/blobs/sha256:{sha256}"), blocks(), headers)
            except (OSError, http.client.HTTPException) as error:
                return self._refused_early(line, path, done, size, error)
            with self._told(f"it took in {path.name}, and broke off"):
                self._read(line.getresponse())
        return None

    def create(self, body: Mapping[str, object], size: int, heard: Callable[[str], None]) -> None:
        """Make a model of what was sent. `size`: bytes of it; the server copies and checks them without a word."""
        words = "it broke off while it created the model"
        last = ""
        for event in self.stream("/api/create", {**body, "stream": True}, words, self.patience + 2 * size / SLOWEST):
            last = str(event.get("status") or "")
            heard(last)
        if last != "success":
            raise RunError(STAGE, f"{self.at}: {words} (its last word was {last!r})")

    def copy(self, source: str, destination: str) -> None:
        """Let `destination` stand for what `source` stands for. One that was there before is replaced at once."""
        self.ask("POST", "/api/copy", {"source": source, "destination": destination})

    def delete(self, name: str) -> None:
        """Remove a name, and what no other name needs. A name that is not there is no failure."""
        try:
            self.ask("DELETE", "/api/delete", {"model": name})
        except Refused as refused:
            if refused.code != 404:
                raise

    def ask(
        self, method: str, path: str, body: Mapping[str, object] | None = None, patience: float | None = None
    ) -> dict[str, Any]:
        """One request and its whole answer, an object ({} for an empty one)."""
        content = self._whole(method, path, body, patience or self.patience)
        return self._parsed(content) if content.strip() else {}

    def stream(
        self, path: str, body: Mapping[str, object], broke_off: str, patience: float | None = None
    ) -> Iterator[dict[str, Any]]:
        """The events of a request, one after the other as they come; leaving off in between ends it at the server, too."""
        with closing(self._connected()) as line, self._told(broke_off):
            self._patient(line, patience or self.patience)
            answer = self._answer(line, "POST", path, body)
            if answer.status >= 400:
                self._read(answer)
            while content := answer.readline(MOST_BYTES):
                event = self._parsed(content)
                if "error" in event:
                    raise Refused(500, f"{self.at}: {_words(event['error'])}")
                yield event

    # ---- one request ---------------------------------------------------------------------------------------------

    def _whole(self, method: str, path: str, body: Mapping[str, object] | None, patience: float) -> bytes:
        with closing(self._connected()) as line, self._told(f"it broke off while it was asked for {path}"):
            self._patient(line, patience)
            return self._read(self._answer(line, method, path, body))

    def _connected(self) -> http.client.HTTPConnection:
        kinds: dict[str, type[http.client.HTTPConnection]] = {
            "http": http.client.HTTPConnection,
            "https": http.client.HTTPSConnection,
        }
        if self.at.scheme not in kinds:
            raise MachineError(f"{address.VARIABLE} names {self.at}: the scheme is http or https")
        try:
            line = kinds[self.at.scheme](self.at.host, self.at.port, timeout=CONNECTS)
            line.connect()
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise NoServer(f"no Ollama answers at {self.at} ({_reason(error)})") from None
        return line

    @staticmethod
    def _patient(line: http.client.HTTPConnection, patience: float) -> None:
        line.sock.settimeout(patience)

    def _path(self, path: str) -> str:
        return quote(self.at.path, safe="/%") + path

    def _answer(
        self, line: http.client.HTTPConnection, method: str, path: str, body: Mapping[str, object] | None
    ) -> http.client.HTTPResponse:
        content = None if body is None else json.dumps(body).encode()
        line.request(method, self._path(path), content, {"Content-Type": "application/json"} if content else {})
        return line.getresponse()

    def _read(self, answer: http.client.HTTPResponse) -> bytes:
        """The body of an answer; Refused, with the server's words, for one that says no."""
        content = answer.read(MOST_BYTES)
        if answer.status >= 400:
            said: object = ""
            with suppress(ValueError):
                said = json.loads(content).get("error") if content.strip().startswith(b"{") else content.decode()
            raise Refused(answer.status, f"{self.at}: {_words(said or answer.reason)} ({answer.status})")
        if answer.status >= 300:
            raise RunError(
                STAGE, f"{self.at} sends us elsewhere ({answer.status}): name that place in {address.VARIABLE}"
            )
        return content

    def _parsed(self, content: bytes) -> dict[str, Any]:
        try:
            value = json.loads(content)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise RunError(
                STAGE,
                f"what answers at {self.at} is no Ollama: it says {_words(content[:80].decode('utf-8', 'replace'))!r}",
            )
        return value

    def _refused_early(
        self, line: http.client.HTTPConnection, path: Path, done: int, size: int, error: Exception
    ) -> None:
        """A server that closes the line amid a file has mostly said why, just before: also that it has the file by now."""
        if isinstance(error, OSError) and error.filename:
            raise error  # our own file cannot be read
        with suppress(OSError, http.client.HTTPException, AttributeError):
            # A request that was not sent to its end has no state in which http.client would read the answer.
            answer = http.client.HTTPResponse(line.sock)
            answer.begin()
            self._read(answer)
            return
        told = f"the line broke after {done:,} of {size:,} bytes of {path.name} ({_reason(error)})"
        raise RunError(
            STAGE, f"{self.at}: {told}: is the server still running, and is there room on its disk?"
        ) from None

    @contextmanager
    def _told(self, broke_off: str) -> Iterator[None]:
        try:
            yield
        except (OSError, http.client.HTTPException) as error:
            raise RunError(STAGE, f"{self.at}: {broke_off} ({_reason(error)})") from None


def full_name(name: str) -> str:
    """What all spellings of a name have in common, for the server takes them for one: small letters, the tag that is
    meant where none is written, without the host and namespace that are meant then (server/routes.go, getExistingName).
    """
    found = name.lower().removeprefix("registry.ollama.ai/")
    if found.count("/") == 1:
        found = found.removeprefix("library/")
    return found if ":" in found.rpartition("/")[2] else f"{found}:latest"


def beside(name: str, what: str) -> str:
    """The name of another model beside `name`: "team/my" and "next" -> "team/my-next". Not longer than names may be."""
    front, slash, last = name.rpartition("/")
    model, colon, tag = last.partition(":")
    return f"{front}{slash}{model[: 79 - len(what)]}-{what}{colon}{tag}"


def _words(value: object) -> str:
    return privacy.visible(" ".join(str(value).split())[:MOST_WORDS])


def _reason(error: Exception) -> str:
    if isinstance(error, (TimeoutError, socket.timeout)):
        return "nothing came in time"
    if isinstance(error, ssl.SSLError):
        return f"TLS: {error.reason or error}"
    if isinstance(error, http.client.HTTPException):
        return f"no whole answer: {type(error).__name__}"
    return str(getattr(error, "strerror", None) or error) or type(error).__name__
