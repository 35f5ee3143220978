"""What a live Ollama does with a model, as it is kept."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Served:
    """What a live Ollama does with a model, as report.json keeps it under `ollama`.

    template: which of two the server uses: `modelfile` or `gguf`; `renderer`: its own for the architecture; `other`.
    Counts of what is not as trained are None where the server does not tell. stops: "2 of 3" answers that end by
    themselves. tools: "11 of 11" conversations with functions that are written as trained; "refused" where the server
    takes none with this model; "" where none were trained.
    """

    server: str  # its version
    name: str
    template: str
    conversations: int
    rendered_differently: int | None = None
    counted_differently: int | None = None
    first_tokens_differently: int | None = None
    near_ties: int = 0
    stops: str = ""
    tools: str = ""
