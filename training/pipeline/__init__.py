"""The stages of a run, one after the other: train, evaluate, judge, export."""

from training.pipeline.stages import evaluate_stage, export_stage, judge, trained

__all__ = ["evaluate_stage", "export_stage", "judge", "trained"]
