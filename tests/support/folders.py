"""Folders of models and adapters, and a Hub that has them."""

from __future__ import annotations

import hashlib
import json
import math
import re
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from training.base_model import safetensors_file


def write(file: Path, entries: dict) -> Path:
    """A safetensors file of zeros."""
    size = sum(math.prod(shape) * safetensors_file.SIZES[dtype] for dtype, shape in entries.values())
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(safetensors_file.encode_header(entries, {"format": "pt"}) + bytes(size))
    return file


CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "max_position_embeddings": 512}


def folder(path: Path, config: dict[str, Any] | None = None, **change: Any) -> Path:
    """A model folder with one small tensor; `change` goes into config.json."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps((config or CONFIG) | change))
    (path / "tokenizer.json").write_text("{}")
    content = safetensors_file.encode_header({"a.weight": ("BF16", (3, 5))}, {}) + bytes(30)
    (path / "model.safetensors").write_bytes(content)
    return path


# ---- the Hub, served here --------------------------------------------------------------------------------------------


class Hub:
    """A small Hub on loopback: what huggingface_hub asks of one (model info, files with ETag, ranges). `requests` keeps
    what was asked; `cut` ends the connection of a large file after that many bytes, once."""

    def __init__(self, models: dict[str, dict[str, bytes]], gated: str = "org/gated") -> None:
        self.models, self.gated, self.cut = models, gated, 0
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
        path = to.path.partition("?")[0]
        found = re.match(r"/api/models/([\w.-]+/[\w.-]+)(?:/revision/([^/]+))?(/tree/([^/]+))?", path)
        if found:
            return self.api(to, found[1], found[2] or found[4] or "main", tree=bool(found[3]))
        found = re.match(r"/([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)", path)
        if not found:
            return self.send(to, 404, b"{}")
        return self.file(to, found[1], found[2], found[3], body)

    def api(self, to: BaseHTTPRequestHandler, name: str, revision: str, tree: bool) -> None:
        if self.refused(to, name, revision, info=True):
            return None
        content = self.models[name]
        if tree:
            entries = [{"type": "file", "path": p, "size": len(c), "oid": p} for p, c in content.items()]
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

    def file(self, to: BaseHTTPRequestHandler, name: str, revision: str, path: str, body: bool) -> None:
        if self.refused(to, name, revision, info=False):
            return None
        raw = self.models[name].get(path)
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

    def refused(self, to: BaseHTTPRequestHandler, name: str, revision: str, info: bool) -> bool:
        if name not in self.models:
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
