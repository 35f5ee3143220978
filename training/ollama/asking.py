"""Questions to a model in a live Ollama: how a prompt is written there, how many tokens it has, what the answer is."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from training.errors import RunError
from training.ollama.server import STAGE, Server

# Nothing is drawn by lot, and nothing that was said counts against a token: what llama.cpp does by itself.
GREEDY: Mapping[str, object] = {
    "temperature": 0,
    "top_k": 1,
    "top_p": 1.0,
    "min_p": 0.0,
    "repeat_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "seed": 1,
}
# A server cuts off an answer that says the same token this often, without a last word (llm/server.go, 0.24 and 0.32).
CUT_OFF = 30
BROKE_OFF = "it broke off amid an answer"
# Characters that are repeated, how often they are at least, and for how many characters in all.
LONGEST_LOOP, LOOPS, LEAST_LOOP = 80, 6, 160

Prompt = str | Sequence[Mapping[str, object]]  # plain text, or the messages of a chat
Tools = Sequence[Mapping[str, object]]  # functions that a chat offers


@dataclass(frozen=True)
class Answer:
    """What a server answered: its text, the thoughts that it took out of it, and how it ended.

    `stopped`: by itself. `looped`: it was cut off because it only repeated itself; `late`: because the time was over.
    `tokens`: of the prompt, None where the server does not tell.
    """

    text: str
    thoughts: str = ""
    stopped: bool = True
    looped: bool = False
    late: bool = False
    tokens: int | None = None


def rendered(server: Server, name: str, prompt: Prompt, tools: Tools = (), think: bool | None = None) -> str | None:
    """The prompt as the server writes it; no model runs. None where the server does not know that question."""
    path, body = _request(name, prompt, tools, think)
    # A server that does not know it answers instead: one token will do.
    body |= {"_debug_render_only": True, "stream": False, "options": {"num_predict": 1}}
    told = server.ask("POST", path, body).get("_debug_info")
    text = told.get("rendered_template") if isinstance(told, dict) else None
    return text if isinstance(text, str) else None


def counted(server: Server, name: str, prompt: Prompt, tools: Tools = (), think: bool | None = None) -> int | None:
    """How many tokens the server makes of a prompt; None where it does not tell."""
    path, body = _request(name, prompt, tools, think)
    body |= {"stream": False, "options": {**GREEDY, "num_predict": 1}}
    return _count(server.ask("POST", path, body))


def answer(
    server: Server,
    name: str,
    prompt: Prompt,
    most: int,
    options: Mapping[str, object] = GREEDY,
    seconds: float = math.inf,
) -> Answer:
    """The answer of at most `most` tokens. One that goes round in circles is cut off: it tells nothing more."""
    began = time.monotonic()
    path, body = _request(name, prompt)
    body |= {"options": {**options, "num_predict": most}}
    text, thoughts, last, piece, times = "", "", {}, "", 0
    for event in server.stream(path, body, BROKE_OFF):
        message = event.get("message")
        part: Mapping[str, Any] = message if isinstance(message, dict) else event
        text += str(part.get("content") or part.get("response") or "")
        thoughts += str(part.get("thinking") or "")
        said = str(part.get("content") or part.get("response") or part.get("thinking") or "").strip()
        piece, times = said, times + 1 if said == piece else 1
        if is_loop(text) or is_loop(thoughts):
            return Answer(text, thoughts, stopped=False, looped=True)
        if time.monotonic() - began > seconds:
            return Answer(text, thoughts, stopped=False, late=True)
        last = event
    if not last.get("done") and times >= CUT_OFF:
        return Answer(text, thoughts, stopped=False, looped=True)
    if not last.get("done"):
        raise RunError(STAGE, f"{server.at}: {BROKE_OFF}")
    return Answer(text, thoughts, stopped=last.get("done_reason", "stop") == "stop", tokens=_count(last))


def is_loop(text: str) -> bool:
    """Whether a text ends in the same few words over and over."""
    for period in range(1, LONGEST_LOOP + 1):
        tail = text[-max(LEAST_LOOP, LOOPS * period) :]
        if len(tail) >= max(LEAST_LOOP, LOOPS * period) and tail[period:] == tail[:-period]:
            return True
    return False


def _request(name: str, prompt: Prompt, tools: Tools = (), think: bool | None = None) -> tuple[str, dict[str, object]]:
    more: dict[str, object] = {} if think is None else {"think": think}
    if isinstance(prompt, str):
        return "/api/generate", {"model": name, "prompt": prompt, **more}
    if tools:
        more["tools"] = [dict(one) for one in tools]
    return "/api/chat", {"model": name, "messages": [dict(message) for message in prompt], **more}


def _count(event: Mapping[str, object]) -> int | None:
    count = event.get("prompt_eval_count")
    return count if isinstance(count, int) and count > 0 else None
