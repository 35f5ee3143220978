"""What the stages of a run say."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from training.data import Item, held_out
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


def item(tokens: int, most: int = 32, question: str = "Who?") -> Item:
    return Item([1] * tokens, [1] * tokens, question, "Ada", [1], most)


def test_of_long_rows_fewer_are_measured_but_never_too_few_to_tell():
    assert held_out.bounded([item(40)] * 32, 4096, 8) == [item(40)] * 32
    assert len(held_out.bounded([item(165)] * 32, 4096, 8)) == 24
    assert len(held_out.bounded([item(512)] * 32, 512, 8)) == 8
    assert held_out.bounded([], 4096, 8) == []
    spread = held_out.bounded([item(100, question=str(number)) for number in range(30)], 1000, 8)
    assert [one.question for one in spread] == [str(number) for number in range(0, 30, 3)]


@pytest.mark.parametrize(
    ("steps", "device", "measured", "longest"),
    [(10, "cpu", 8, 128), (400, "cpu", 8, 209), (1000, "cpu", 20, 256), (4000, "cpu", 32, 256), (10, "cuda:0", 8, 256)],
)
def test_a_long_training_is_measured_on_more_tokens_and_longer_answers(monkeypatch, steps, device, measured, longest):
    monkeypatch.setattr(stages, "_items", lambda plan, rows, most, longest_answer: [item(512, longest_answer)] * most)
    data = SimpleNamespace(test=None, validation=["a"], train=["a"])
    summary, settings = SimpleNamespace(tokens=1650), SimpleNamespace(rows_a_step=8)
    settings.hardware = SimpleNamespace(device=device)
    tokenised = [0] * (1650 // 26)
    plan: Any = SimpleNamespace(data=data, summary=summary, settings=settings, steps=steps, train=tokenised)
    found = stages.held_out_rows(plan)
    assert (len(found.measured), len(found.asked)) == (measured, 8)
    assert found.asked[0].most == longest


def test_those_are_asked_first_whose_answers_need_not_be_cut_off():
    def long(number: int) -> Item:
        return Item([1], [1], f"long {number}", "Ada", [1], 128, 300)

    def short(number: int) -> Item:
        return Item([1], [1], f"short {number}", "Ada", [1], 128, 60)

    rows = [one(number) for number in range(10) for one in (long, short)]
    assert {item.question for item in held_out.asked(rows, 5)} == {f"short {number}" for number in range(0, 10, 2)}
    few = held_out.asked([long(0), long(1), short(2), long(3), Item([1], [1], "", "", [], 0)], 3)
    assert [item.question for item in few] == ["long 0", "long 1", "short 2"]


def test_the_prompts_that_are_checked_are_those_whose_answers_can_end(monkeypatch):
    def chosen(limits: list[int]) -> list[str]:
        rows = [item(9, most, str(number)) for number, most in enumerate(limits)]
        monkeypatch.setattr(stages, "_items", lambda *_: rows)
        plan: Any = SimpleNamespace(data=SimpleNamespace(train=[]))
        return [prompt.question for prompt in stages.trained_prompts(plan)]

    assert chosen([256, 90, 256, 200, 80, 256, 100]) == ["1", "3", "4", "6"]
    assert chosen([32, 64] * 8) == ["0", "4", "8", "12"], "evenly spread where all are short"
    assert chosen([256] * 8) == ["0", "2", "4", "6"]
    assert chosen([]) == []
