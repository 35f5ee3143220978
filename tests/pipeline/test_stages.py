"""What the stages of a run say."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from training.evaluation import Sample
from training.pipeline import export_stages, stages


def test_an_empty_answer_of_the_base_model_is_told_from_none(logged):
    samples = [Sample("Who?", "Ada", before, "Ada", True) for before in ("", "Eve", None)]
    stages.tell_answers(samples)
    assert [line.splitlines()[1].strip() for line in logged] == ["before:", "before: Eve", "before: not asked"]


@pytest.mark.parametrize("files, merged", [(["a", "b"], True), (["a", "gone"], False), (None, True)])
def test_a_merged_folder_of_which_a_file_has_gone_is_merged_again(files, merged, tmp_path):
    for name in ("a", "b", "README.md"):
        (tmp_path / name).touch()
    records: dict[str, Any] = {"merge": {"seconds": 1.0} | ({"files": files} if files else {})}
    methods = SimpleNamespace(quantization=SimpleNamespace(quantization_method=("q4_k_m",)))
    run = SimpleNamespace(stage=records.get, path=tmp_path)
    job: Any = SimpleNamespace(merged=tmp_path, run=run, settings=methods, quantised=lambda method: tmp_path / method)
    assert export_stages.STAGES["merge"][0](job) == merged
