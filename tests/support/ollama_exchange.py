"""One conversation with an Ollama server, and what of its answers the package relies on: status, words, names of fields.

Recorded of real servers in tests/ollama/answers/; the stand-in (ollama_server.py) gives the same, and each real server that
a test starts. To record another one:  python -m tests.support.ollama_exchange HOST:PORT FILE.gguf > answers/VERSION.json
"""

from __future__ import annotations

import http.client
import json
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from training.system import files

NAME = "exchanged"
TEMPLATE = "{{ range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n"
CHAT = {"model": NAME, "messages": [{"role": "user", "content": "Hi"}]}
TOOLS = [{"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}]
ONE = {"options": {"num_predict": 1, "temperature": 0}}


def exchange(host: str, port: int, gguf: Path) -> dict[str, Any]:
    """Send a file, create a model, ask it, copy and delete it; nothing is left there."""
    digest = files.sha256(gguf)
    blob, wrong = f"/api/blobs/sha256:{digest}", f"/api/blobs/sha256:{'0' * 64}"
    body = {"files": {gguf.name: f"sha256:{digest}"}, "template": TEMPLATE, "parameters": {"stop": ["<|im_end|>"]}}
    content = gguf.read_bytes()
    steps: list[tuple[str, str, str, object]] = [
        ("version", "GET", "/api/version", None),
        ("a file that is not there", "HEAD", blob, None),
        ("a file of another digest", "POST", wrong, b"other"),
        ("a file", "POST", blob, content),
        ("a file that is there", "HEAD", blob, None),
        ("create", "POST", "/api/create", {"model": NAME, **body}),
        ("create of no file", "POST", "/api/create", {"model": NAME, "files": {"x.gguf": f"sha256:{'0' * 64}"}}),
        ("create of no name", "POST", "/api/create", {"model": "a b", **body}),
        ("show", "POST", "/api/show", {"model": NAME}),
        ("show of no model", "POST", "/api/show", {"model": "nothing"}),
        ("chat, rendered", "POST", "/api/chat", {**CHAT, **ONE, "stream": False, "_debug_render_only": True}),
        ("text, rendered", "POST", "/api/generate", {"model": NAME, "prompt": "Hi", **ONE, "stream": False, "_debug_render_only": True}),
        ("chat", "POST", "/api/chat", {**CHAT, **ONE, "stream": False}),
        ("text", "POST", "/api/generate", {"model": NAME, "prompt": "Hi", **ONE, "stream": False}),
        ("chat in parts", "POST", "/api/chat", {**CHAT, **ONE}),
        ("chat with functions", "POST", "/api/chat", {**CHAT, **ONE, "tools": TOOLS, "stream": False, "_debug_render_only": True}),
        ("chat of no model", "POST", "/api/chat", {**CHAT, "model": "nothing"}),
        ("copy", "POST", "/api/copy", {"source": NAME, "destination": f"{NAME}-copy"}),
        ("copy of no model", "POST", "/api/copy", {"source": "nothing", "destination": "else"}),
        ("tags", "GET", "/api/tags", None),
        ("delete", "DELETE", "/api/delete", {"model": NAME}),
        ("delete the copy", "DELETE", "/api/delete", {"model": f"{NAME}-copy"}),
        ("delete of no model", "DELETE", "/api/delete", {"model": NAME}),
    ]  # fmt: skip
    return {what: _asked(host, port, method, path, sent) for what, method, path, sent in steps}


def _asked(host: str, port: int, method: str, path: str, sent: object) -> dict[str, Any]:
    line = http.client.HTTPConnection(host, port, timeout=120)
    # A server that knows its answer may give it before it has read all.
    with suppress(BrokenPipeError, ConnectionResetError):
        line.request(method, path, sent if sent is None or isinstance(sent, bytes) else json.dumps(sent))
    answer = line.getresponse()
    content = answer.read().decode()
    line.close()
    events = [json.loads(part) for part in content.splitlines() if part.strip()]
    found: dict[str, Any] = {"status": answer.status}
    for event in events:
        if "error" in event:
            found["error"] = _plain(event["error"])
        elif "status" in event:
            found.setdefault("says", []).append(_plain(event["status"]))
        elif path == "/api/tags":
            names = sorted(one["name"] for one in event["models"] if one["name"].startswith(NAME))
            digests = {one["digest"] for one in event["models"] if one["name"].startswith(NAME)}
            found |= {"names": names, "digests": len(digests)}
        else:
            found |= {"fields": sorted(_fields(event)), "parts": len(events) > 1}
            for key in ("version", "template", "done_reason", "prompt_eval_count", "capabilities", "_debug_info"):
                if key in event:
                    found[key] = event[key]
    if "says" in found:
        found["says"] = [word for i, word in enumerate(found["says"]) if word not in found["says"][:i]]
    return found


# What servers tell besides, some and some not.
_BESIDES = re.compile(r"(model_info|tensors|details|license|projector_info|system|requires|remote_.*|context)\b")


def _fields(event: dict[str, Any]) -> list[str]:
    names = [key for key in event if not _BESIDES.match(key) and not key.endswith("_duration")]
    message = event.get("message")
    return names + [f"message.{key}" for key in (message if isinstance(message, dict) else ())]


def _plain(text: str) -> str:
    text = re.sub(r"sha256[:-][0-9a-f]{64}", "sha256:DIGEST", text)
    return re.sub(r"(?:/[\w.-]+)+/(?=blobs|manifests)", "MODELS/", text)


if __name__ == "__main__":
    host, _, port = sys.argv[1].partition(":")
    print(json.dumps(exchange(host, int(port), Path(sys.argv[2])), indent=1, ensure_ascii=False))
