"""Run llama.cpp on a GGUF file: its tokens, its logits, its answers. Always in a process of its own.

llama.cpp answers a broken model or tokenizer with abort() or a segmentation fault; here that ends a worker process, and
becomes a RunError that names what llama.cpp printed last. The worker is worker.py, run as a script. Requests go to
its stdin, one JSON object a line; results come back the same way, logits as raw float32 after a line that gives their
shape, so that neither side ever holds more than a block of them. A worker whose stdin closes (its parent died) ends.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from training.errors import MachineError, RunError
from training.llama.protocol import STOP
from training.system import shell

if TYPE_CHECKING:
    import numpy as np

STAGE = "llama.cpp"
WORKER = Path(__file__).with_name("worker.py")
# Within `kept`: the workers that wait for the next request.
_kept: dict[Path, Process] | None = None


@dataclass(frozen=True)
class Answer:
    """What a model wrote after a prompt. `ids` has no end token; `stopped`: it ended by itself, not by max_tokens.

    `seconds` is the time of writing, without that of reading the prompt.
    """

    text: str
    ids: tuple[int, ...]
    stopped: bool
    seconds: float = field(default=0.0, compare=False)


def tokenise(gguf: Path | Process, texts: Sequence[str], special: bool = True) -> list[list[int]]:
    """The tokens of each text, no BOS or EOS added; `special`: the texts of special tokens become these tokens.

    Loads the vocabulary only, so a file without weights will do. A Process may be given instead of its file.
    """
    with _asking(gguf, vocab_only=True) as ask:
        ids: list[list[int]] = ask({"do": "tokenise", "texts": list(texts), "special": special})["ids"]
    return ids


def read_prompts(gguf: Path | Process, texts: Sequence[str]) -> list[list[int]]:
    """The tokens that llama-server and Ollama make of rendered prompts: with all that the file's flags put around them.

    As they do, a BOS (EOS) that the text has already is left out of it where the flag adds one.
    """
    with _asking(gguf, vocab_only=True) as ask:
        ids: list[list[int]] = ask({"do": "read_prompts", "texts": list(texts)})["ids"]
    return ids


def metadata(gguf: Path | Process) -> dict[str, Any]:
    """The file's key-value pairs as llama.cpp prints them (arrays shortened), and what it makes of the vocabulary.

    The latter under "vocab": tokens (how many), bos, eos, eot, pad (-1: none), add_bos, add_eos, end (the ids that end an
    answer), and attributes, id -> flags of llama.h's `llama_token_attr` for every token that is not a plain one.
    """
    with _asking(gguf, vocab_only=True) as ask:
        pairs: dict[str, Any] = ask({"do": "metadata"})["metadata"]
    vocab = pairs["vocab"]
    vocab["attributes"] = {int(token): flags for token, flags in vocab["attributes"].items()}
    return pairs


def logits(
    gguf: Path | Process, sequences: Sequence[Sequence[int]], first: Sequence[int] | None = None
) -> list[np.ndarray]:
    """For each sequence a float32 array [tokens - first, vocabulary]: row i is the prediction of token first + i + 1.

    `first` (default 0) skips the leading positions of each sequence. Everything is held in memory: tokens x vocabulary
    x 4 bytes; use `logits_each` for more than a few hundred tokens.
    """
    return list(logits_each(gguf, sequences, first))


def logits_each(
    gguf: Path | Process, sequences: Sequence[Sequence[int]], first: Sequence[int] | None = None
) -> Iterator[np.ndarray]:
    """Like `logits`, one sequence after the other: memory for one only, and the worker does not run ahead.

    A Process may be given instead of its file; it answers nothing else until the last sequence has come.
    """
    import numpy as np

    parts: list[np.ndarray] = []
    for block, last in _blocks(gguf, sequences, first):
        parts.append(block)
        if last:
            yield np.concatenate(parts) if len(parts) > 1 else parts[0]
            parts = []


def log_softmax(rows: np.ndarray) -> np.ndarray:
    """Log-probabilities of rows of logits, in float64 (sums over 150k entries lose digits in float32)."""
    import numpy as np

    shifted: np.ndarray = rows.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


def kl_divergence(reference: np.ndarray, other: np.ndarray) -> np.ndarray:
    """KL(reference || other) in nats, row by row, of log-probabilities as log_softmax gives them."""
    import numpy as np

    found: np.ndarray = (np.exp(reference) * (reference - other)).sum(axis=-1)
    return found


def answer(
    gguf: Path | Process,
    prompts: Sequence[str | Sequence[int]],
    max_tokens: int,
    stop_ids: Sequence[int] | None = None,
    on_text: Callable[[int, str], None] | None = None,
) -> list[Answer]:
    """The greedy continuation of each prompt: rendered text (special tokens recognised, no BOS added) or token ids.

    It ends before a token of `stop_ids`, by default those llama.cpp itself takes for the end of an answer.
    `on_text(number of the prompt, piece)` is told each piece as it comes. Token ids without it are answered together. A
    Process may be given instead of its file.
    """
    with _asking(gguf) as ask:
        if on_text is None and not any(isinstance(prompt, str) for prompt in prompts):
            limits = [max_tokens] * len(prompts)
            together = {"do": "answer_together", "prompts": list(prompts), "max_tokens": limits, "stop_ids": stop_ids}
            return [_answer(one) for one in ask(together)["answers"]]
        request = {"do": "answer", "prompts": list(prompts), "max_tokens": max_tokens, "stop_ids": stop_ids}
        on_event = (lambda event: on_text(event["prompt"], event["piece"])) if on_text else None
        answers = ask(request | {"stream": on_text is not None}, on_event)["answers"]
    return [_answer(one) for one in answers]


def _answer(words: Mapping[str, Any]) -> Answer:
    return Answer(words["text"], tuple(words["ids"]), words["stopped"], words["seconds"])


@contextmanager
def opened(gguf: Path, adapter: Path | None = None, vocab_only: bool = False) -> Iterator[Process]:
    """A worker for a talk of many requests, which can be told to stop an answer. `adapter`: a GGUF file that goes onto it."""
    if adapter is None:
        with _process(gguf, vocab_only) as process:
            yield process
        return
    with closing(Process(gguf, vocab_only=False, adapter=adapter)) as process:
        yield process


@contextmanager
def kept() -> Iterator[None]:
    """Within it a file is loaded once, however often it is asked; all of them are freed at its end.

    For whole models that do not change meanwhile. An idle worker holds 60 MB, and pages of its file that the kernel may
    take back.
    """
    global _kept
    if _kept is not None:
        yield
        return
    _kept = {}
    try:
        yield
    finally:
        idle, _kept = _kept, None
        for process in idle.values():
            process.close()


@contextmanager
def _process(gguf: Path, vocab_only: bool) -> Iterator[Process]:
    """A worker for the file: within `kept` an idle one, if there is one. One that was left amid an answer is not used again."""
    idle, path, whole = _kept, Path(gguf), False
    process = (idle or {}).pop(path, None) or Process(path, vocab_only and idle is None)
    try:
        yield process
        whole = True
    finally:
        if whole and idle is not None and idle is _kept and path not in idle:
            idle[path] = process
        else:
            process.close()


@contextmanager
def worker(gguf: Path, vocab_only: bool = False) -> Iterator[Callable[..., dict[str, Any]]]:
    """Load a GGUF file in a process of its own; gives ask(request, on_event=None) -> result. Ends it afterwards.

    Several requests to one worker load the model once (a chat). Raises RunError when llama.cpp refuses or dies, and
    MachineError when llama-cpp-python is not there.
    """
    with _process(gguf, vocab_only) as process:
        yield process.ask


@contextmanager
def _asking(gguf: Path | Process, vocab_only: bool = False) -> Iterator[Callable[..., dict[str, Any]]]:
    """`worker` of a file, or the process that is open already."""
    if isinstance(gguf, Process):
        yield gguf.ask
        return
    with worker(gguf, vocab_only) as ask:
        yield ask


def _blocks(
    gguf: Path | Process, sequences: Sequence[Sequence[int]], first: Sequence[int] | None
) -> Iterator[tuple[np.ndarray, bool]]:
    """Blocks of logits of at most BLOCK rows, in order, each with whether it is its sequence's last."""
    import numpy as np

    request = {"do": "logits", "sequences": [list(s) for s in sequences], "first": list(first or [0] * len(sequences))}
    with nullcontext(gguf) if isinstance(gguf, Process) else _process(gguf, vocab_only=False) as process:
        process.send(request)
        while "shape" in (event := process.receive()):
            rows, width = event["shape"]
            yield np.frombuffer(process.read(rows * width * 4), dtype=np.float32).reshape(rows, width), event["last"]


class _Piped(subprocess.Popen[bytes]):
    """A process whose three streams are pipes."""

    stdin: IO[bytes]
    stdout: IO[bytes]
    stderr: IO[bytes]


class Process:
    """One worker process and the pipes to it; see `worker` and `opened`."""

    def __init__(self, gguf: Path, vocab_only: bool, adapter: Path | None = None) -> None:
        self.gguf = Path(gguf)
        # The end of what llama.cpp prints, for the error message.
        self.printed: deque[str] = deque(maxlen=40)
        # A session of its own: Ctrl-C on the terminal is the parent's to handle. PYTHONPATH and the like stay as they are.
        self.process = _Piped(
            [
                sys.executable,
                str(WORKER),
                str(self.gguf),
                "vocab" if vocab_only else "model",
                *([str(adapter)] if adapter else []),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self.listener = threading.Thread(target=self._listen, daemon=True)
        self.listener.start()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the worker."""
        self.process.kill()
        self.process.wait()
        self.listener.join()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            with suppress(BrokenPipeError):  # unsent bytes for a worker that is gone
                pipe.close()

    def ask(
        self, request: Mapping[str, object], on_event: Callable[[dict[str, Any]], None] | None = None
    ) -> dict[str, Any]:
        """Send one request; the events before its result go to `on_event`."""
        self.send(request)
        while "piece" in (event := self.receive()):
            if on_event:
                on_event(event)
        return event

    def send(self, request: Mapping[str, object]) -> None:
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise self._died() from None

    def stop(self) -> None:
        """End the answer that is being written; it comes back as far as it got. May be called in a signal handler."""
        with suppress(BrokenPipeError):
            # Past the buffer: requests are flushed whole.
            os.write(self.process.stdin.fileno(), STOP)

    def receive(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line.endswith(b"\n"):
            raise self._died()
        event: dict[str, Any] = json.loads(line)
        if "missing" in event:
            raise MachineError(f"llama-cpp-python cannot be used ({event['missing']}): run {shell.command('setup.sh')}")
        if "error" in event:
            # It ends now. Its last words come through another pipe, and maybe later.
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(10)
                self.listener.join()
            raise RunError(STAGE, f"{self.gguf}: {event['error']}{self._last_words()}")
        return event

    def read(self, size: int) -> bytes:
        content = self.process.stdout.read(size)
        if len(content) < size:
            raise self._died()
        return content

    def _listen(self) -> None:
        for line in self.process.stderr:
            if text := line.decode("utf-8", "replace").strip(" .\r\n"):
                self.printed.append(text)

    def _died(self) -> RunError:
        code = self.process.wait()
        self.listener.join()
        how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
        return RunError(STAGE, f"{self.gguf}: llama.cpp {how}{self._last_words()}")

    def _last_words(self) -> str:
        # Frames of a backtrace and gdb's remarks follow the message of an abort; the message is what helps.
        words = [
            line for line in self.printed if not line.startswith(("#", "[New LWP", "[Thread", "warning:", "ptrace:"))
        ]
        return f"; it printed last: {' | '.join(words[-3:])}" if words else "; it printed nothing"
