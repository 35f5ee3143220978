"""A chat template becomes the Modelfile that Ollama reads; a live Ollama is sent files and asked."""

from training.ollama.create_request import CreateRequest, of_modelfile
from training.ollama.modelfile import Chat, compose, knows_thoughts, verify, write, writes_functions
from training.ollama.server import Server

__all__ = [
    "Chat",
    "CreateRequest",
    "Server",
    "compose",
    "knows_thoughts",
    "of_modelfile",
    "verify",
    "write",
    "writes_functions",
]
