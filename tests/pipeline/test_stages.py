"""What the stages of a run say."""

from __future__ import annotations

from training.evaluation import Sample
from training.pipeline import stages


def test_an_empty_answer_of_the_base_model_is_told_from_none(logged):
    samples = [Sample("Who?", "Ada", before, "Ada", True) for before in ("", "Eve", None)]
    stages.tell_answers(samples)
    assert [line.splitlines()[1].strip() for line in logged] == ["before:", "before: Eve", "before: not asked"]
