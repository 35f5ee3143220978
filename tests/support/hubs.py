"""A Hugging Face Hub and a ModelScope, served on loopback."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

Store = Mapping[str, dict[str, bytes]]


class Hub:
    """A small Hub on loopback: what huggingface_hub asks of one (model info, files with ETag, ranges), of models and of data
    sets. Its answers are made after those that the Hub's own documentation and huggingface_hub describe; the real Hub was
    never asked for them. `requests` keeps what was asked; `cut` ends the connection of a large file after that many bytes,
    once; `instead` is served in place of a file that was listed; `status` of an answer that is a refusal, with its headers."""

    def __init__(
        self,
        models: dict[str, dict[str, bytes]],
        gated: str = "org/gated",
        data: dict[str, dict[str, bytes]] | None = None,
    ) -> None:
        self.models, self.gated, self.cut = models, gated, 0
        self.data = data or {}
        self.instead: dict[str, bytes] = {}
        self.status: tuple[int, dict[str, str]] | None = None
        self.commits = {"main": "a" * 40, "v2": "b" * 40}
        self.requests: list[str] = []
        # What is sent for every request, where a proxy stands between.
        self.page: bytes | None = None
        # What becomes of an answer on its way.
        self.spoil: Callable[[bytes], bytes] = lambda raw: raw
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:  # noqa: N802
                hub.answer(self, body=False)

            def do_GET(self) -> None:  # noqa: N802
                hub.answer(self, body=True)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, to: BaseHTTPRequestHandler, body: bool) -> None:
        self.requests.append(f"{to.command} {to.path} {to.headers.get('Range', '')}".strip())
        if self.page is not None:
            return self.send(to, 200, self.page, body=body)
        if self.status is not None:
            return self.send(to, self.status[0], b"{}", self.status[1], body)
        path = unquote(to.path.partition("?")[0])
        found = re.match(r"/api/(models|datasets)/([\w.-]+/[\w.-]+)(?:/revision/([^/]+))?(/tree/([^/]+))?", path)
        if found:
            store = self.models if found[1] == "models" else self.data
            return self.api(to, store, found[2], found[3] or found[5] or "main", tree=bool(found[4]))
        found = re.match(r"/(datasets/)?([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)", path)
        if not found:
            return self.send(to, 404, b"{}")
        return self.file(to, self.data if found[1] else self.models, found[2], found[3], found[4], body)

    def api(self, to: BaseHTTPRequestHandler, store: Store, name: str, revision: str, tree: bool) -> None:
        if self.refused(to, store, name, revision, info=True):
            return None
        content = store[name]
        if tree:
            entries = [self.entry(path, raw) for path, raw in content.items()]
            return self.send(to, 200, json.dumps(entries).encode())
        siblings = [{"rfilename": path, "size": len(raw)} for path, raw in content.items()]
        info = {
            "id": name,
            "modelId": name,
            "sha": self.commit(revision),
            "siblings": siblings,
            "tags": [],
            "private": False,
        }
        return self.send(to, 200, json.dumps(info).encode())

    def entry(self, path: str, raw: bytes) -> dict[str, Any]:
        """A file in a tree: LFS keeps the large ones, and git has a pointer of them."""
        git = hashlib.sha1(b"blob %d\0" % len(raw) + raw).hexdigest()
        found: dict[str, Any] = {"type": "file", "path": path, "size": len(raw), "oid": git}
        if len(raw) > 1 << 16:
            found["lfs"] = {"oid": hashlib.sha256(raw).hexdigest(), "size": len(raw), "pointerSize": 134}
        return found

    def file(self, to: BaseHTTPRequestHandler, store: Store, name: str, revision: str, path: str, body: bool) -> None:
        if self.refused(to, store, name, revision, info=False):
            return None
        raw = self.instead.get(path, store[name].get(path))
        if raw is None:
            return self.send(to, 404, b"", {"X-Error-Code": "EntryNotFound"})
        tag = {"ETag": f'"{hashlib.sha256(raw).hexdigest()}"', "X-Repo-Commit": self.commit(revision)}
        start = int(to.headers["Range"].removeprefix("bytes=").partition("-")[0]) if to.headers.get("Range") else 0
        if start:
            tag["Content-Range"] = f"bytes {start}-{len(raw) - 1}/{len(raw)}"
        if body and self.cut and len(raw) > self.cut and not start:
            to.send_response(200)
            for key, value in (tag | {"Content-Length": str(len(raw))}).items():
                to.send_header(key, value)
            to.end_headers()
            to.wfile.write(raw[: self.cut])
            to.wfile.flush()
            to.connection.shutdown(socket.SHUT_RDWR)
            return None
        return self.send(to, 206 if start else 200, raw[start:], tag, body)

    def refused(self, to: BaseHTTPRequestHandler, store: Store, name: str, revision: str, info: bool) -> bool:
        if name not in store:
            self.send(to, 401, b'{"error":"Repository not found"}', {"X-Error-Code": "RepoNotFound"})
        elif name == self.gated and not info:
            code = 403 if to.headers.get("Authorization") else 401
            self.send(to, code, b'{"error":"gated"}', {"X-Error-Code": "GatedRepo"})
        elif name == "org/broken":
            self.send(to, 500, b"oops")
        elif revision not in self.commits and revision not in self.commits.values():
            self.send(to, 404, b'{"error":"Invalid rev id"}', {"X-Error-Code": "RevisionNotFound"})
        else:
            return False
        return True

    def commit(self, revision: str) -> str:
        return self.commits.get(revision, revision)

    def send(
        self,
        to: BaseHTTPRequestHandler,
        code: int,
        raw: bytes,
        headers: dict[str, str] | None = None,
        body: bool = True,
    ) -> None:
        raw = self.spoil(raw)
        to.send_response(code)
        for key, value in ({"Content-Length": str(len(raw))} | (headers or {})).items():
            to.send_header(key, value)
        to.end_headers()
        if body and to.command != "HEAD":
            to.wfile.write(raw)


COMMIT, OLDER = "83ee97c66e841048bedc5c02c15ce2f3ed259feb", "f194f50981eaaa6019bbec5049a4c7e1fd294110"
NO_RECORD = 10010205001
LARGE = 1 << 16  # bytes from which on a file is redirected, as LFS has it


class ModelScope:
    """A small ModelScope on loopback. Its answers are made after what its own client's source, and clients of others that
    quote real answers, say of them; the real one was never asked for them.

    `requests` keeps what was asked, with the headers; large files are redirected to another host (`localhost`, where this
    one is 127.0.0.1), `without_ranges` from their beginning whatever was asked. `cut` ends the connection of a large file
    after that many bytes, `cuts` times. `lies`: path -> the SHA-256 that is listed. `instead`: path -> what is served.
    `first` are answers that come before all others, a status and its headers. `silent`: seconds of silence before each.
    """

    def __init__(self, models: Store | None = None, data: Store | None = None) -> None:
        self.stores: dict[str, Store] = {"models": models or {}, "datasets": data or {}}
        self.revisions = {"master", "v1", COMMIT}
        self.requests: list[tuple[str, dict[str, str], dict[str, str]]] = []
        self.lies: dict[str, str] = {}
        self.instead: dict[str, bytes] = {}
        self.first: list[tuple[int, dict[str, str]]] = []
        self.forbidden: set[str] = set()
        self.cut = self.cuts = 0
        self.silent = 0.0
        self.without_ranges = False
        self.newest: dict[str, Any] | None = {"Id": "", "ShortId": COMMIT[:8], "Name": "somebody"}
        self.page: bytes | None = None
        # What becomes of an answer on its way.
        self.spoil: Callable[[bytes], bytes] = lambda raw: raw
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:  # noqa: N802
                hub.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        self.address = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, to: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(to.path)
        query = dict(parse_qsl(parts.query))
        self.requests.append((unquote(parts.path), query, dict(to.headers.items())))
        time.sleep(self.silent)
        if self.first:
            return self.send(to, *self.first.pop(0))
        if self.page is not None:
            return self.send(to, 200, {}, self.page)
        if parts.path.startswith("/lfs/"):
            kind, owner, name, path = unquote(parts.path).removeprefix("/lfs/").split("/", 3)
            return self.content(to, path, self.stores[kind][f"{owner}/{name}"][path])
        found = re.fullmatch(r"/api/v1/(models|datasets)/([\w.-]+/[\w.-]+)/repo(/files|/tree)?", parts.path)
        if not found or found[2] not in self.stores[found[1]]:
            return self.send(to, 404, {}, self.envelope(None, NO_RECORD, "record not found"))
        if found[2] in self.forbidden:
            code = 403 if to.headers.get("Authorization") else 401
            return self.send(to, code, {}, self.envelope(None, code, "no permission"))
        content = self.stores[found[1]][found[2]]
        if found[3]:
            return self.send(to, 200, {}, self.envelope(self.listing(content, query)))
        return self.file(to, f"{found[1]}/{found[2]}", content, query["FilePath"])

    def listing(self, content: dict[str, bytes], query: dict[str, str]) -> dict[str, Any]:
        # An unknown revision is no error there.
        if query.get("Revision", "master") not in self.revisions:
            return {"Files": None, "IsVisual": 0, "LatestCommitter": None}
        entries = [self.entry(path, raw) for path, raw in content.items()]
        if query.get("Recursive") != "True":
            folders = {path.split("/")[0] for path in content if "/" in path}
            entries = [entry for entry in entries if "/" not in entry["Path"]]
            entries += [{"Path": name, "Name": name, "Type": "tree", "Size": 0} for name in sorted(folders)]
        if size := int(query.get("PageSize", "0")):
            begin = (int(query.get("PageNumber", "1")) - 1) * size
            entries = entries[begin : begin + size]
        return {"Files": entries, "IsVisual": 0, "LatestCommitter": self.newest}

    def entry(self, path: str, raw: bytes) -> dict[str, Any]:
        newest = path.endswith((".json", ".jsonl"))
        return {
            "CommitMessage": "upload", "CommittedDate": 1726842501 + newest, "CommitterName": "somebody", "InCheck": False,
            "IsLFS": len(raw) > LARGE, "Mode": "33188", "Name": path.rpartition("/")[2], "Path": path,
            "Revision": COMMIT if newest else OLDER, "Sha256": self.lies.get(path, hashlib.sha256(raw).hexdigest()),
            "Size": len(raw), "Type": "blob",
        }  # fmt: skip

    def file(self, to: BaseHTTPRequestHandler, name: str, content: dict[str, bytes], path: str) -> None:
        if path not in content:
            return self.send(to, 404, {}, self.envelope(None, 10990101007, "file not found"))
        if len(content[path]) > LARGE:
            return self.send(to, 302, {"Location": f"http://localhost:{self.port}/lfs/{name}/{quote(path)}"})
        return self.content(to, path, content[path])

    def content(self, to: BaseHTTPRequestHandler, path: str, raw: bytes) -> None:
        raw = self.instead.get(path, raw)
        asked = to.headers.get("Range", "")
        start = int(asked.removeprefix("bytes=").partition("-")[0]) if asked and not self.without_ranges else 0
        headers = {"Content-Range": f"bytes {start}-{len(raw) - 1}/{len(raw)}"} if start else {}
        if self.cuts and len(raw) - start > self.cut:
            self.cuts -= 1
            self.head(to, 206 if start else 200, headers | {"Content-Length": str(len(raw) - start)})
            to.wfile.write(raw[start : start + self.cut])
            to.wfile.flush()
            to.connection.shutdown(socket.SHUT_RDWR)
            return None
        return self.send(to, 206 if start else 200, headers, raw[start:])

    def envelope(self, data: object, code: int = 200, message: str = "success") -> bytes:
        answer = {"Code": code, "Data": data, "Message": message, "RequestId": "r", "Success": code == 200}
        return json.dumps(answer).encode()

    def head(self, to: BaseHTTPRequestHandler, code: int, headers: Mapping[str, str]) -> None:
        to.send_response(code)
        for key, value in headers.items():
            to.send_header(key, value)
        to.end_headers()

    def send(self, to: BaseHTTPRequestHandler, code: int, headers: Mapping[str, str], raw: bytes = b"") -> None:
        raw = self.spoil(raw)
        self.head(to, code, {"Content-Length": str(len(raw)), **headers})
        to.wfile.write(raw)
