"""A chat template becomes the Modelfile that Ollama reads."""

from training.ollama.modelfile import Chat, compose, verify, write

__all__ = ["Chat", "compose", "verify", "write"]
