"""`./run.sh --prove`: a few steps by each engine on the same batches, side by side, before a night is spent on one."""

from training.proving.command import prove

__all__ = ["prove"]
