"""Files of rows become conversations, and these the ids and labels that are trained on."""

from training.data.chat_template import ChatTemplate
from training.data.dataset import Data
from training.data.held_out import Item
from training.data.record import BadRow, Record
from training.data.rows import Row
from training.data.turns import Turn

__all__ = ["BadRow", "ChatTemplate", "Data", "Item", "Record", "Row", "Turn"]
