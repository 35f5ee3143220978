"""Is what was made what was trained? Checks of the merged model and of the GGUF files."""

from training.checks.check import Check, Outcome, require

__all__ = ["Check", "Outcome", "require"]
