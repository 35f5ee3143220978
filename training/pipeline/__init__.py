"""The stages of a run, one after the other: the base model's answers, train, evaluate, judge, export."""

from training.pipeline.replay_rows import base_model_answers
from training.pipeline.stages import evaluate_stage, export_stage, judge, trained

__all__ = ["base_model_answers", "evaluate_stage", "export_stage", "judge", "trained"]
