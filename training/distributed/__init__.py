"""Training in several processes, on this machine and on others."""

from training.distributed.crew import Crew, started

__all__ = ["Crew", "started"]
