"""Training in several processes, on this machine and on others."""

from training.distributed.launcher import Crew, started

__all__ = ["Crew", "started"]
