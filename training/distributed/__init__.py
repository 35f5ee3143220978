"""Training in several processes, on this machine and on others."""

from training.distributed.crew import Crew, not_needed, started

__all__ = ["Crew", "not_needed", "started"]
