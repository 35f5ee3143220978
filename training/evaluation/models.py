"""Models that can be asked and measured, each in the same way: one run by transformers, one run by llama.cpp."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from training import llama
from training.data import Item
from training.data.encoding import IGNORED
from training.errors import MachineError
from training.evaluation import generate, reference
from training.evaluation.generate import Answer
from training.evaluation.reference import Reference, TooLarge
from training.llama import GREEDY, Process, Sampling

TIMED = 32  # tokens of answers from which a speed is told
ROWS = 16  # rows of logits that are summed up at once


class Speaker(Protocol):
    """A model that can be asked and measured, whichever library runs it."""

    name: str

    def answers(self, items: Sequence[Item]) -> list[Answer]:
        """Greedy answers to the items that have a question."""

    def losses(self, items: Sequence[Item]) -> list[float]:
        """Mean cross-entropy (nats) over each item's answer."""

    def say(self, prompt: Sequence[int], most: int, tell: Callable[[str], None], sampling: Sampling = GREEDY) -> Answer:
        """One answer; `tell` is given each piece of its text as it comes. `stop` ends it early."""

    def stop(self) -> None:
        """End the answer that is being said; may be called in a signal handler."""


@dataclass(kw_only=True)
class Torch:
    """A model run by transformers. `adapter`: False switches a LoRA adapter off while this one speaks."""

    name: str
    reference: Reference
    end_ids: Sequence[int]
    adapter: bool = True
    stopping: bool = False

    def answers(self, items: Sequence[Item]) -> list[Answer]:
        """Greedy answers to the items that have a question, eight at a time."""
        with self._adapter():
            parts = (items[at : at + 8] for at in range(0, len(items), 8))
            model, tokenizer = self.reference.model, self.reference.tokenizer
            return [one for part in parts for one in generate.answers(model, tokenizer, part, self.end_ids)]

    def losses(self, items: Sequence[Item]) -> list[float]:
        """Mean cross-entropy (nats) over each item's answer."""
        with self._adapter():
            return generate.losses(self.reference.model, items)

    def say(self, prompt: Sequence[int], most: int, tell: Callable[[str], None], sampling: Sampling = GREEDY) -> Answer:
        """One answer; `tell` is given each piece of its text as it comes. `stop` ends it early."""
        self.stopping = False
        with self._adapter():
            model, tokenizer = self.reference.model, self.reference.tokenizer
            ended = (tell, lambda: self.stopping)
            return generate.stream(model, tokenizer, prompt, self.end_ids, most, *ended, sampling)

    def stop(self) -> None:
        """End the answer that is being said; may be called in a signal handler."""
        self.stopping = True

    def _adapter(self) -> contextlib.AbstractContextManager[object]:
        return contextlib.nullcontext() if self.adapter else self.reference.without_adapter()


@dataclass(kw_only=True)
class Gguf:
    """A GGUF file run by llama.cpp in a process of its own. `context`: tokens that a talk may have."""

    name: str
    path: Path
    process: Process
    context: int
    seconds: float = field(default=0.0)  # spent in writing `tokens` tokens so far
    tokens: int = 0

    def answers(self, items: Sequence[Item]) -> list[Answer]:
        """Greedy answers to the items that have a question; they end where llama.cpp, and so Ollama, would end them.

        TIMED tokens of the first ones alone, for the speed that somebody who asks has of it; the rest together, and what was
        cut off then once more from its beginning.
        """
        answers: list[Answer] = []
        while len(answers) < len(items) and (room := TIMED - self.tokens) > 0:
            item = items[len(answers)]
            most = min(item.most, room)
            request = {"do": "answer", "prompts": [item.prompt], "max_tokens": most, "stop_ids": None}
            (one,) = self.process.ask({**request, "stream": False})["answers"]
            self.seconds, self.tokens = self.seconds + one["seconds"], self.tokens + len(one["ids"])
            if not one["stopped"] and most < item.most:
                break
            answers.append(_answer(one))
        if rest := items[len(answers) :]:
            request = {"prompts": [item.prompt for item in rest], "max_tokens": [item.most for item in rest]}
            asked = self.process.ask({"do": "answer_together", **request, "stop_ids": None})
            answers += [_answer(one) for one in asked["answers"]]
        return answers

    def losses(self, items: Sequence[Item]) -> list[float]:
        """Mean cross-entropy (nats) over each item's answer."""
        import numpy as np

        first = [next(at for at, label in enumerate(item.labels) if at and label != IGNORED) - 1 for item in items]
        losses = []
        logits = llama.logits_each(self.process, [item.ids for item in items], first)
        for item, start, rows in zip(items, first, logits, strict=True):
            total = 0.0
            wanted = [at for at in range(start + 1, len(item.ids)) if item.labels[at] != IGNORED]
            for begin in range(0, len(wanted), ROWS):
                here = wanted[begin : begin + ROWS]
                found = rows[[at - 1 - start for at in here]]
                top = found.max(axis=-1, keepdims=True)
                # Only the sum is kept in more digits: a loss is one number, and a vocabulary 150,000.
                whole = np.exp(found - top).sum(axis=-1, dtype=np.float64)
                chosen = (found - top)[np.arange(len(here)), [item.labels[at] for at in here]]
                total += float((np.log(whole) - chosen).sum())
            losses.append(total / len(wanted))
        return losses

    def say(self, prompt: Sequence[int], most: int, tell: Callable[[str], None], sampling: Sampling = GREEDY) -> Answer:
        """One answer; `tell` is given each piece of its text as it comes. `stop` ends it early."""
        request: dict[str, object] = {
            "do": "converse",
            "prompt": list(prompt),
            "max_tokens": most,
            "tokens": self.context,
        }
        request["sampling"] = asdict(sampling)
        one = self.process.ask(request, lambda event: tell(event["piece"]))
        return _answer(one)

    def stop(self) -> None:
        """End the answer that is being said; may be called in a signal handler."""
        self.process.stop()

    def prompt_tokens(self, text: str) -> list[int]:
        """The tokens of a rendered text, with all that the file's flags put around it, as Ollama reads it."""
        ids: list[list[int]] = self.process.ask({"do": "read_prompts", "texts": [text]})["ids"]
        return ids[0]

    @property
    def speed(self) -> float | None:
        """Tokens a second of the answers so far."""
        return self.tokens / self.seconds if self.seconds else None


def _answer(words: Mapping[str, Any]) -> Answer:
    return Answer(text=words["text"].strip(), ids=words["ids"], stopped=words["stopped"])


@contextlib.contextmanager
def gguf(name: str, path: Path, context: int = 4096) -> Iterator[Gguf]:
    """Load a GGUF file. RunError where llama.cpp refuses it."""
    with llama.opened(path) as process:
        yield Gguf(name=name, path=path, process=process, context=context)


@contextlib.contextmanager
def torch_pair(
    base: Path, adapter: Path | None, end_ids: Sequence[int], memory: int | None = None
) -> Iterator[tuple[Torch, Torch | None]]:
    """A base model and, with an adapter, the tuned one: the same weights, the adapter switched. MachineError: too large."""
    with reference.opened(base, memory, adapter) as opened:
        if isinstance(opened, TooLarge):
            raise MachineError(f"{base} does not fit into memory: {opened.reason}")
        alone = Torch(name="base", reference=opened, end_ids=end_ids, adapter=adapter is None)
        yield alone, None if adapter is None else replace(alone, name="tuned", adapter=True)
