"""Model and rows become an adapter, with TRL's trainer, in one process or in several."""

from training.train.engine import Loaded
from training.train.loop import Result
from training.train.order import Order
from training.train.state import Session
from training.train.team import Place, Team
from training.train.watch import Watch

__all__ = ["Loaded", "Order", "Place", "Result", "Session", "Team", "Watch"]
