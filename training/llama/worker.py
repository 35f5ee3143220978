"""The process in which llama.cpp runs: process.py starts it as a script, and tells what is asked for."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # run as a script, training/ stands first on the path and would shadow installed packages
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from training.llama.protocol import STOP


def _serve(gguf: str, vocab_only: bool, adapter: str = "") -> None:
    """Answer requests from stdin until it closes."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints on stdout must not get between the results

    def send(event: Mapping[str, object], content: bytes = b"") -> None:
        out.write(json.dumps(event).encode() + b"\n" + content)
        out.flush()

    stop = threading.Event()
    requests = _requests(stop)
    try:
        from training.llama.model import Model
    except (ImportError, OSError, RuntimeError) as error:
        # A library that is not there or does not load.
        return send({"missing": str(error)})
    try:
        model = Model(gguf, vocab_only, stop, adapter)
        for request in requests:
            send(getattr(model, request.pop("do"))(send=send, **request))
    except Exception as error:  # everything is told to the parent, which knows what to say
        send({"error": str(error) or type(error).__name__})


def _requests(stop: threading.Event) -> Iterator[dict[str, Any]]:
    """Requests from stdin. Read in a thread that ends the process with the parent, even amid a long computation.

    The one request that does not wait for its turn: STOP ends the answer that is being written.
    """
    import queue

    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin.buffer:
            stop.set() if line == STOP else lines.put(line)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    while True:
        yield json.loads(lines.get())


if __name__ == "__main__":
    _serve(sys.argv[1], sys.argv[2] == "vocab", *sys.argv[3:4])
