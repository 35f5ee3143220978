"""The process of one model that was loaded: a run's GGUF file by llama.cpp, or base and adapter by transformers.

Requests come on stdin, one JSON object a line, and are answered in turn: pieces of the answer, then its end. `stop` ends
the answer that is being written; a stdin that closes, because the server ended, ends the process.
"""

# ruff: noqa: E402  what stands between the imports must come before some of them

from __future__ import annotations

import contextlib
import json
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

if __name__ == "__main__":  # as a script, this folder stands first on the path and would shadow installed packages
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from training.system import before_torch

before_torch.settle()

from training.data import Turn, chat_template, encoding, fast_tokenising
from training.errors import FinetuneError, UserError
from training.evaluation import models
from training.evaluation.models import Speaker
from training.evaluation.target import Target
from training.llama import Sampling
from training.system import foreign_code, launchers, log

Send = Callable[[Mapping[str, object]], None]


@dataclass(kw_only=True)
class Loaded:
    """A model that answers. `base`: loads the base model, for an answer beside the tuned one's."""

    target: Target
    speaker: Speaker
    tokens: Callable[[str], list[int]]
    base: Callable[[], Speaker]
    speaking: Speaker | None = None

    def stop(self) -> None:
        """End the answer that is being written."""
        if self.speaking is not None:
            self.speaking.stop()

    def answer(self, request: Mapping[str, Any], send: Send) -> None:
        """Answer one request: {messages | prompt, max_tokens, temperature, top_p, seed, base}."""
        ids = self.tokens(self.prompt(request))
        room = self.target.longest - len(ids)
        if not ids or room < 1:
            raise UserError(f"the prompt has {len(ids):,} tokens; it must have from 1 to {self.target.longest - 1:,}")
        most = min(int(request["max_tokens"]), room)
        sampling = Sampling(request["temperature"], request["top_p"], request["seed"])
        self.speaking = self.base() if request["base"] else self.speaker
        try:
            given = self.speaking.say(ids, most, lambda piece: send({"piece": piece}), sampling)
        finally:
            self.speaking = None
        counts = {"prompt_tokens": len(ids), "completion_tokens": len(given.ids)}
        send({"done": True, "text": given.text, "stopped": given.stopped, **counts})

    def prompt(self, request: Mapping[str, Any]) -> str:
        """The rendered text. A prompt without roles is one question, where the model was trained on chats."""
        template, messages = self.target.template, request["messages"]
        if template is None:
            return str(request["prompt"] if messages is None else messages[-1]["content"])
        turns = (
            [Turn("user", request["prompt"])] if messages is None else [Turn(m["role"], m["content"]) for m in messages]
        )
        whole = chat_template.conversation(template, turns)
        return chat_template.render(template, whole, add_generation_prompt=True)


@contextlib.contextmanager
def load(spec: Mapping[str, Any]) -> Iterator[Loaded]:
    """What was asked for: {path, base, adapter, config}; `adapter`: run it by transformers, though there is a GGUF."""
    target = Target.named(spec["path"], spec["base"], Path(spec["config"]))
    if spec["adapter"]:
        target = replace(target, gguf=None)
    with contextlib.ExitStack() as stack:
        pair: list[tuple[Speaker, Speaker]] = []

        def weights() -> tuple[Speaker, Speaker]:
            if not pair:
                if not target.has_base:
                    raise UserError(f"the base model is no longer at {target.base}")
                adapter = None if target.gguf is not None else target.adapter
                base, tuned = stack.enter_context(models.torch_pair(target.base, adapter, target.end_ids))
                pair.append((base, tuned or base))
            return pair[0]

        if target.gguf is not None:
            gguf = stack.enter_context(models.gguf(target.gguf.name, target.gguf, target.longest))
            gguf.prompt_tokens("a")  # llama.cpp has read the file now, or has refused it
            yield Loaded(target=target, speaker=gguf, tokens=gguf.prompt_tokens, base=lambda: weights()[0])
            return
        tuned, tokenizer = weights()[1], target.tokenizer()

        def tokens(text: str) -> list[int]:
            return encoding.with_bos(fast_tokenising.tokeniser(tokenizer)([text])[0], tokenizer)

        yield Loaded(target=target, speaker=tuned, tokens=tokens, base=lambda: weights()[0])


def requests(stop: Callable[[], None]) -> Iterator[dict[str, Any]]:
    """Requests from stdin, read in a thread, so that `stop` is heard amid an answer."""
    lines: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin.buffer:
            request = json.loads(line)
            stop() if request == "stop" else lines.put(request)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    while True:
        yield lines.get()


def serve(spec: Mapping[str, Any], out: IO[str]) -> None:
    """Load, and answer."""

    def send(event: Mapping[str, object]) -> None:
        out.write(json.dumps(event) + "\n")
        out.flush()

    def told(error: Exception) -> dict[str, object]:
        kind = "user" if isinstance(error, UserError) else "machine"
        words = str(error) if isinstance(error, FinetuneError) else f"{type(error).__name__}: {error}"
        return {"error": words, "kind": kind}

    loaded: list[Loaded] = []
    waiting = requests(lambda: loaded[0].stop() if loaded else None)
    try:
        with load(spec) as found:
            loaded.append(found)
            send({"ready": True, "chat": found.target.template is not None, "longest": found.target.longest})
            for request in waiting:
                try:
                    found.answer(request, send)
                except UserError as error:  # such as a template that refuses the roles: the model is as it was
                    send(told(error))
    except Exception as error:  # everything is told to the server, which says it
        send(told(error))


def main(spec: str) -> int:
    """Serve the model that `spec` (JSON) names."""
    foreign_code.trust(False)
    stdout = log.claim_stdout()
    log.start(terminal=False)
    launchers.tell()
    serve(json.loads(spec), stdout)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
