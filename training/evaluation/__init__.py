"""Base and tuned model side by side: their losses, their answers, how far apart they are."""

from training.evaluation.generate import Answer, answers, losses
from training.evaluation.ledger import Entry, Ledger
from training.evaluation.measure import (
    GENERAL_LOSS,
    LOSS,
    PERPLEXITY,
    Evaluated,
    Sample,
    evaluate,
    loss_scores,
    marks,
    stopped,
)
from training.evaluation.scoring import EXACT, STOPS, Score

__all__ = [
    "Answer",
    "EXACT",
    "Entry",
    "Evaluated",
    "GENERAL_LOSS",
    "LOSS",
    "Ledger",
    "PERPLEXITY",
    "STOPS",
    "Sample",
    "Score",
    "answers",
    "evaluate",
    "loss_scores",
    "losses",
    "marks",
    "stopped",
]
