"""llama.cpp in a process of its own, and the GGUF files that it reads."""

from training.llama.gguf_file import GGUF
from training.llama.process import (
    Answer,
    Process,
    answer,
    kept,
    kl_divergence,
    log_softmax,
    logits,
    logits_each,
    metadata,
    opened,
    tokenise,
    worker,
)
from training.llama.sampling import GREEDY, Sampling

__all__ = [
    "GREEDY",
    "Sampling",
    "Answer",
    "GGUF",
    "Process",
    "answer",
    "kept",
    "kl_divergence",
    "log_softmax",
    "logits",
    "logits_each",
    "metadata",
    "opened",
    "tokenise",
    "worker",
]
