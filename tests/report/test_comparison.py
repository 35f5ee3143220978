"""Reports beside each other, and the checklist: from records alone, without a model."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests.support.browser import BROWSER, browse
from tests.support.reports import HOSTILE, good, hostile, in_state
from training import report, runs
from training.errors import UserError
from training.evaluation import GENERAL_LOSS, LOSS, Score
from training.report import Report, as_html, checklist, comparison, contents
from training.report.schema import BaseFacts, Evaluation, Step
from training.runs import Run
from training.settings import command_line


def run(name: str, **changes: object) -> Report:
    """A good run under another name; `changes` are those of its settings."""
    made = good(Path("/runs") / name)
    settings = {"LoRA": {"R": 8}, "Training": {"LEARNING_RATE": 2e-4, "OUTPUT_DIR": f"/{name}"}}
    for key, value in changes.items():
        settings["LoRA" if key == "R" else "Training"][key] = value
    steps = tuple(Step(at, 3 - at / 30) for at in range(1, 61))
    training = dataclasses.replace(made.training, losses=steps, evaluations=(Evaluation(0, 3.0),))
    return dataclasses.replace(
        made, run=dataclasses.replace(made.run, id=f"finetune_{name}"), settings=settings, training=training
    )


def judged(verdict: str, after: float | None = 1.0) -> Report:
    """A good run whose loss on held-out answers has this verdict."""
    return dataclasses.replace(good(Path("/r")), scores=(Score(LOSS, 3.0, after, None, -2.1, -1.9, 24, verdict),))


def ticks(made: Report) -> dict[str, bool | None]:
    return {point.text: point.done for point in checklist.points(made)}


def test_only_what_differs_is_listed_and_it_comes_first() -> None:
    sections = comparison.sections([run("a"), run("b", R=32), run("c", R=32, LEARNING_RATE=1e-3)])
    table = sections[0].blocks[0]
    assert table.headers == ("", "a", "b", "c")
    assert table.rows == (("LoRA.R", "8", "32", "32"), ("Training.LEARNING_RATE", "0.0002", "0.0002", "0.001"))
    assert [section.title for section in sections][:3] == ["What differs in their settings", "Results", "Losses"]


def test_runs_with_the_same_settings_are_said_to_have_them() -> None:
    assert "Nothing" in comparison.sections([run("a"), run("b")])[0].blocks[0].text


def test_other_rows_and_another_base_model_are_differences() -> None:
    other = run("b")
    file = dataclasses.replace(other.data.files[0], sha256="cd" * 32)
    other = dataclasses.replace(
        other, base=BaseFacts("Qwen/Qwen3-0.6B"), data=dataclasses.replace(other.data, files=(file,))
    )
    named = [row[0] for row in comparison.sections([run("a"), other])[0].blocks[0].rows]
    assert named == ["base model", "training rows, SHA-256"]


def test_the_page_has_a_curve_for_each_run_and_the_answers_to_shared_questions() -> None:
    text = comparison.html([run("a"), run("b", R=32)])
    assert text.count('class="line run1"') == text.count('class="line run2"') == 2  # validation and training
    assert "Answers to the same questions" in text and "Who are you?" in text and "<script" not in text


def test_hostile_text_adds_nothing_to_the_page_of_several_runs() -> None:
    text = comparison.html([hostile(run("a")), run("b")])
    assert HOSTILE[:8] not in text and "<img" not in text


def test_a_run_that_is_not_done_is_compared_by_its_settings_and_curves(tmp_path: Path) -> None:
    made = []
    for name, rank in (("a", 8), ("b", 32)):
        folder = tmp_path / f"finetune_{name}"
        folder.mkdir()
        (folder / runs.CONFIG).write_text(f"[LoRA]\nR = {rank}\n", encoding="utf-8")
        (folder / runs.EVENTS).write_text('{"event": "step", "step": 1, "total": 9, "loss": 2.5}\n', encoding="utf-8")
        made.append(Run(folder, {"state": "interrupted"}))
    path = comparison.compare(made, tmp_path)
    text = path.read_text(encoding="utf-8")
    assert path == tmp_path / "compare.html" and "interrupted" in text and "1 of 9" in text and "LoRA.R" in text
    with pytest.raises(UserError, match="a run is named twice"):
        comparison.compare([made[0], made[0]], tmp_path)


def test_compare_takes_two_runs_or_more() -> None:
    given = command_line.parse(["--compare", "one", "two", "three", "--config", "x.ini"])
    assert given.command == "compare" and [path.name for path in given.runs] == ["one", "two", "three"]
    with pytest.raises(UserError, match="--compare needs two runs or more"):
        command_line.parse(["--compare", "one"])
    assert command_line.parse(["--chat", "one"]).run == Path("one")


@pytest.mark.parametrize(
    ("verdict", "tone", "said"),
    [
        ("better", "good", "Better: validation loss 3.180 -> 1.010"),
        ("worse", "bad", "Worse: loss on held-out answers 3.000 -> 1.000"),
        ("cannot tell from 24 rows", "warn", "Cannot tell from 24 rows whether it is better"),
    ],
)
def test_the_first_sentence_claims_no_more_than_the_evaluation(verdict: str, tone: str, said: str) -> None:
    result = contents.result(judged(verdict))
    assert result.tone == tone and result.text.startswith(said)


def test_a_loss_that_is_no_number_is_told_as_worse() -> None:
    assert contents.result(judged("worse", None)).text.startswith("Worse: loss on held-out answers 3.000 -> -")


def test_the_checklist_is_ticked_from_facts_and_open_where_a_person_must_look() -> None:
    cost = (Score(GENERAL_LOSS, 2.0, 2.4, None, 0.1, 0.6, 24, "worse"),)
    done = ticks(dataclasses.replace(judged("better"), general=cost))
    assert done["better than the base, beyond chance"] and done["its answers end by themselves"]
    assert done["no worse at general questions, beyond chance"] is False
    assert done["every check of the exported files passed"] is False  # one of them was not made
    assert done["it answers in Ollama"] is None
    assert list(done.values()).count(None) >= 4
    assert ticks(judged("cannot tell from 24 rows"))["better than the base, beyond chance"] is False


def test_a_run_that_is_not_done_has_no_checklist() -> None:
    assert checklist.points(in_state(judged("better"), "interrupted")) == ()


def test_the_checklist_ends_the_report() -> None:
    assert contents.sections(judged("better"))[-1].title == "Checklist"
    assert "verdict good" in as_html.html(judged("better")) and ">look<" in as_html.html(judged("better"))


@pytest.mark.tiny
@pytest.mark.skipif(BROWSER is None, reason="no chromium here (Debian: apt-get install chromium)")
def test_the_page_of_several_runs_shows_in_a_browser_and_asks_nobody(tmp_path: Path) -> None:
    made = []
    for name in ("a", "b"):
        folder = tmp_path / f"finetune_{name}"
        folder.mkdir()
        report.write(folder, run(name, R=8 if name == "a" else 32))
        made.append(Run(folder, {}))
    seen = browse(comparison.compare(made, tmp_path), tmp_path)
    assert seen.console == [] and seen.requests == [] and "<svg" in seen.dom
