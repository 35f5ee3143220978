"""What training/api.py hands to Python programs and notebooks: settings by name, a run in a process of its own, answers."""

from training.library.config import FineTuningConfig
from training.library.result import FineTuningRun

__all__ = ["FineTuningConfig", "FineTuningRun"]
