"""An adapter and its base become a merged model, and that the GGUF files."""

from training.to_gguf.job import Job

__all__ = ["Job"]
