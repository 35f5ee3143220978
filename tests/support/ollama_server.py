"""A stand-in for an Ollama server, in a thread: it speaks the part of the API that the package uses.

Made from what the servers 0.24.0 and 0.32.15 answered (tests/ollama/answers/) and from their source: status codes, words,
fields, which of two templates is in use. It writes prompts with the functions that a test gives it, and breaks as it is
told to.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from training.ollama import modelfile
from training.ollama.address import Address
from training.ollama.server import Server

REPEATS = 31  # of one token: there a server cuts an answer off, without a last word (llm/server.go)
HOST, NAMESPACE = "registry.ollama.ai", "library"


def chatml(messages: list[dict[str, str]]) -> str:
    turns = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
    return f"{turns}<|im_start|>assistant\n"


@dataclass
class Model:
    """What a name stands for."""

    body: dict[str, Any]
    digest: str


@dataclass
class FakeOllama:
    """How the server is, and what it was told. `write`: a chat's prompt, `write_tools`: with functions, `write_thoughts`: with
    both, as `think` has it; `count`: the tokens of a prompt; `reply`: (the model's file, prompt, most tokens) -> text and
    how it ended. `breaks`: "what" -> what goes wrong there.
    """

    version: str = "0.32.15"
    write: Callable[[list[dict[str, str]]], str] = chatml
    write_tools: Callable[[list[dict[str, Any]], list[dict[str, Any]]], str] | None = None
    write_thoughts: Callable[[list[dict[str, Any]], list[dict[str, Any]], bool], str] | None = None
    count: Callable[[str], int] = lambda prompt: 10
    reply: Callable[[Path | None, str, int], tuple[str, str]] = lambda file, prompt, most: ("An answer.", "stop")
    info: dict[str, Any] = field(default_factory=dict)  # metadata of the file, as `show` tells it
    thinks: bool = False  # answers are shown as thoughts
    folder: Path | None = None
    breaks: dict[str, str] = field(default_factory=dict)
    models: dict[str, Model] = field(default_factory=dict)
    layers: set[str] = field(default_factory=set)  # on its disk, of the models that were copied: a digest each
    blobs: dict[str, bytes | Path] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    port: int = 0

    def server(self, patience: float = 60.0) -> Server:
        return Server(Address(port=self.port), patience)

    @property
    def renders(self) -> bool:
        """Since 0.11 or so a server tells how it writes a prompt."""
        return self._numbers() >= [0, 12]

    @property
    def native(self) -> bool:
        return self._numbers() >= [0, 30] or self._numbers() == [0, 0]

    def named(self, name: str) -> str:
        """A name as the server lists it, in the letters of those that are there (getExistingName, DisplayShortest)."""
        parts = _parts_of(name)
        for there in self.models:
            parts = [
                one if one.lower() == part.lower() else part for one, part in zip(_parts_of(there), parts, strict=True)
            ]
        host, namespace, model, tag = parts
        front = ""
        if host.lower() != HOST:
            front = f"{host}/{namespace}/"
        elif namespace.lower() != NAMESPACE:
            front = f"{namespace}/"
        return f"{front}{model}:{tag}"

    def _numbers(self) -> list[int]:
        return [int(number) for number in re.findall(r"\d+", self.version)[:2]]

    def template(self, model: Model) -> str:
        """The template in use: the GGUF's where that can do more (server/images.go), as `show` tells it."""
        own = model.body.get("template")
        jinja = str(model.body.get("jinja", ""))
        knows = (".ToolCalls" in own, ".Thinking" in own) if own else (False, False)
        if self.native and jinja and (own is None or modelfile.prefers_jinja(jinja, *knows)):
            return jinja
        return "{{ .Prompt }}" if own is None else str(own)

    def capabilities(self, model: Model) -> list[str]:
        """What a model can do, found by words in the template in use (Capabilities)."""
        template = self.template(model)
        if template == model.body.get("jinja"):
            tools = ["tools"] if "tools" in template or "tool_call" in template else []
            thinks = ["thinking"] if "<think>" in template and "</think>" in template else []
            return [*tools, *thinks, "completion"]
        named = {"tools": ".Tools", "thinking": ".Thinking"}
        return ["completion", *(able for able, field in named.items() if field in template)]


def _parts_of(name: str) -> list[str]:
    """Host, namespace, model and tag (types/model/name.go)."""
    front, _, last = name.rpartition("/")
    host, _, namespace = front.rpartition("/")
    model, _, tag = last.partition(":")
    return [host or HOST, namespace or NAMESPACE, model, tag or "latest"]


@contextmanager
def running(fake: FakeOllama) -> Iterator[FakeOllama]:
    """The server on a free port, until the end."""
    http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"fake": fake}))
    http.daemon_threads = True
    http.handle_error = lambda *_: None  # a client that leaves off amid an answer
    fake.port = http.server_address[1]
    threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield fake
    finally:
        http.shutdown()
        http.server_close()


class _Handler(BaseHTTPRequestHandler):
    fake: FakeOllama
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    # ---- answers -------------------------------------------------------------------------------------------------

    def _send(self, status: int, value: object = None) -> None:
        content = b"" if value is None else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _parts(self, events: list[dict[str, Any]]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/x-ndjson")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for event in events:
            if event.get("die"):
                return self._die()
            content = json.dumps(event).encode() + b"\n"
            self.wfile.write(b"%x\r\n%s\r\n" % (len(content), content))
        self.wfile.write(b"0\r\n\r\n")
        return None

    def _die(self) -> None:
        """As a server that is killed: the line is gone."""
        self.close_connection = True
        self.wfile.flush()
        self.connection.shutdown(2)

    def _broken(self, what: str) -> bool:
        how = self.fake.breaks.get(what)
        if how == "hang":
            time.sleep(3)
        elif how == "die":
            self._die()
        elif how:
            self.close_connection = True
            self._send(500, {"error": how})
        return bool(how)

    # ---- requests ------------------------------------------------------------------------------------------------

    def _body(self) -> dict[str, Any]:
        body: dict[str, Any] = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        self.fake.bodies.append(body)
        return body

    def _model(self, name: str, quoted: str = "'{}'") -> Model | None:
        model = self.fake.models.get(self.fake.named(name))
        if model is None:
            shown = self.fake.named(name) if self.fake.native and self.path == "/api/show" else name
            self._send(404, {"error": f"model {quoted.format(shown)} not found"})
        return model

    def do_HEAD(self) -> None:
        self.fake.calls.append(f"HEAD {self.path.rpartition('/')[0]}")
        self._send(200 if self.path.rpartition(":")[2] in self.fake.blobs else 404)

    def do_GET(self) -> None:
        self.fake.calls.append(f"GET {self.path}")
        if self._broken(self.path):
            return None
        if self.path.endswith("/api/version"):
            return self._send(200, {"version": self.fake.version})
        self._send(200, {"models": [{"name": name, "digest": m.digest} for name, m in self.fake.models.items()]})
        return None

    def do_DELETE(self) -> None:
        name = self._body()["model"]
        self.fake.calls.append(f"DELETE {name}")
        if self._broken("delete"):
            return
        if self._model(name):
            gone = self.fake.models.pop(self.fake.named(name)).digest
            # What no other name needs (Layer.Remove). CopyModel removes nothing.
            if gone not in [model.digest for model in self.fake.models.values()]:
                self.fake.layers.discard(gone)
            self._send(200)

    def do_POST(self) -> None:
        if "/api/blobs/" in self.path:
            return self._blob(self.path.rpartition(":")[2])
        body = self._body()
        what = self.path.rpartition("/")[2]
        self.fake.calls.append(f"{what} {body.get('model') or body.get('source')}")
        if what == "create":
            return self._create(body)
        if self._broken(what):
            return None
        if what == "copy":
            if model := self._model(body["source"], '"{}"'):
                self.fake.layers |= {one.digest for one in self.fake.models.values()}
                self.fake.models[self.fake.named(body["destination"])] = model
                if self._broken("copied"):
                    return None
                self._send(200)
            return None
        if model := self._model(body["model"]):
            self._show(body["model"], model) if what == "show" else self._say(body, model)
        return None

    def _blob(self, digest: str) -> None:
        self.fake.calls.append("POST blob")
        if "blob" in self.fake.breaks:
            self.rfile.read(1000)
            self._broken("blob")
            return None
        content = self.rfile.read(int(self.headers["Content-Length"]))
        got = hashlib.sha256(content).hexdigest()
        if got != digest:
            return self._send(400, {"error": f'digest mismatch, expected "sha256:{digest}", got "sha256:{got}"'})
        self.fake.blobs[digest] = content
        if self.fake.folder:
            (self.fake.folder / f"sha256-{digest}").write_bytes(content)
        self._send(201)
        return None

    def _create(self, body: dict[str, Any]) -> None:
        if " " in body["model"]:
            return self._send(400, {"error": "invalid model name"})
        if self.fake.breaks.get("create") == "hang":
            time.sleep(3)
            return None
        files = [digest.removeprefix("sha256:") for digest in body.get("files", {}).values()]
        events: list[dict[str, Any]] = [{"status": "parsing GGUF"}]
        missing = [digest for digest in files if digest not in self.fake.blobs]
        if missing:
            words = f"open /models/blobs/sha256-{missing[0]}: no such file or directory"
            return self._parts([*events, {"error": words}])
        if how := self.fake.breaks.get("create"):
            return self._parts([*events, {"die": True} if how == "die" else {"error": how}])
        layer = f"sha256:{hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()}"
        said = "verifying conversion" if self.fake.native else f"using existing layer {layer}"
        last = [f"creating new layer {layer}", "writing manifest", "success"]
        events += [{"status": words} for words in (said, *last)]
        plain = {key: value for key, value in body.items() if key not in ("model", "stream")}
        digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
        self.fake.models[self.fake.named(body["model"])] = Model(
            {**plain, "jinja": self.fake.breaks.get("jinja", "")}, digest
        )
        self._parts(events)
        return None

    def _show(self, name: str, model: Model) -> None:
        template = self.fake.breaks.get("template") or self.fake.template(model)
        file = self.fake.breaks.get("file", "/models/blob")
        lines = f'# Modelfile generated by "ollama show"\n# FROM {name}\n\nFROM {file}\n'
        if renderer := model.body.get("renderer") or self.fake.breaks.get("renderer"):
            lines += f"RENDERER {renderer}\n"
        told = {
            "modelfile": lines,
            "parameters": "",
            "template": template,
            "capabilities": self.fake.capabilities(model),
        }
        self._send(200, {**told, "model_info": self.fake.info, "modified_at": "2026-01-01T00:00:00Z"})

    def _refusal(self, body: dict[str, Any]) -> str:
        """What a chat template says of functions or calls that it does not take."""
        calls = [call for message in body.get("messages", ()) for call in message.get("tool_calls", ())]
        if body.get("tools") and "functions" in self.fake.breaks:
            return self.fake.breaks["functions"]
        return self.fake.breaks.get("no id", "") if any("id" not in call for call in calls) else ""

    def _say(self, body: dict[str, Any], model: Model) -> None:
        chat, tools = "messages" in body, body.get("tools") or []
        if tools and "tools" not in self.fake.capabilities(model):
            name = "/".join(_parts_of(body["model"])[:3]) + f":{_parts_of(body['model'])[3]}"
            return self._send(400, {"error": f"{name} does not support tools"})
        if refusal := self._refusal(body):
            return self._send(400, {"error": refusal})
        asked = body["messages"] if chat else [{"role": "user", "content": body["prompt"]}]
        with_calls = tools or any("tool_calls" in message for message in asked)
        write = self.fake.write_tools if with_calls and self.fake.write_tools else lambda said, _: self.fake.write(said)
        prompt = write(asked, tools)
        if self.fake.write_thoughts and any("thinking" in message for message in asked):
            prompt = self.fake.write_thoughts(asked, tools, body.get("think") is not False)
        if model.body.get("template") == "{{ .Prompt }}":
            prompt = body["prompt"]
        empty = {"message": {"role": "assistant", "content": ""}} if chat else {"response": ""}
        first = {"model": body["model"], "created_at": "2026-01-01T00:00:00Z", **empty, "done": False}
        if body.get("_debug_render_only") and self.fake.renders:
            return self._send(200, {**first, "_debug_info": {"rendered_template": prompt}})
        files = [digest.removeprefix("sha256:") for digest in model.body.get("files", {}).values()]
        file = self.fake.folder / f"sha256-{files[0]}" if self.fake.folder and files else None
        most = body.get("options", {}).get("num_predict", 1000)
        text, reason = self.fake.reply(file, prompt, most)
        if most == 1:
            text, reason = text[:1], "length"
        told = {"done": True, "done_reason": reason, "eval_count": 1, "prompt_eval_count": self.fake.count(prompt)}
        if body.get("stream") is False:
            whole = {"message": {"role": "assistant", "content": text}} if chat else {"response": text}
            return self._send(200, {**first, **whole, **told})
        pieces = re.findall(r"\S+\s*|\s+", text) or [""]
        spoken = [{"message": {"role": "assistant", "content": p}} if chat else {"response": p} for p in pieces]
        if self.fake.thinks:
            spoken = [{"message": {"role": "assistant", "content": "", "thinking": p}} for p in pieces]
        events = [{**first, **piece} for piece in spoken]
        if len(pieces) > REPEATS and len({piece.strip() for piece in pieces[:REPEATS]}) == 1:
            return self._parts(events[:REPEATS])
        if self.fake.breaks.get("answer") == "die":
            return self._parts([events[0], {"die": True}])
        self._parts([*events, {**first, **told}])
        return None
