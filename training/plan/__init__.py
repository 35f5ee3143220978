"""Everything short of training: does it fit, how long will it take, what was chosen and why."""

from training.plan.oddities import odd
from training.plan.plan import Plan, lines, prepare

__all__ = ["Plan", "lines", "odd", "prepare"]
