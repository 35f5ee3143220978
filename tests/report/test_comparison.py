"""Reports beside each other, and the checklist: from records alone, without a model."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from tests.support.browser import BROWSER, browse
from tests.support.reports import HOSTILE, good, hostile, in_state
from training import report, runs
from training.errors import UserError
from training.evaluation import EXACT, GENERAL_LOSS, LOSS, Score
from training.report import Report, as_html, checklist, comparison, contents, differing, rivals
from training.report.schema import BaseFacts, Evaluation, Sample, Step
from training.runs import Run
from training.settings import command_line


def run(name: str, **changes: object) -> Report:
    """A good run under another name; `changes` are those of its settings."""
    made = good(Path("/runs") / name)
    settings = {"LoRA": {"R": 8}, "Training": {"LEARNING_RATE": 2e-4, "OUTPUT_DIR": f"/{name}"}}
    for key, value in changes.items():
        settings["LoRA" if key == "R" else "Training"][key] = value
    given = {f"{section}.{key}": value for section, keys in settings.items() for key, value in keys.items()}
    differences = tuple((key, given[key], None, "config.ini:9") for key in ("LoRA.R", "Training.LEARNING_RATE"))
    steps = tuple(Step(at, 3 - at / 30) for at in range(1, 61))
    training = dataclasses.replace(made.training, losses=steps, evaluations=(Evaluation(0, 3.0),))
    return dataclasses.replace(
        made,
        run=dataclasses.replace(made.run, id=f"finetune_{name}"),
        settings=settings,
        differences=differences,
        training=training,
    )


def measured(name: str, each: tuple[float, ...], **changes: object) -> Report:
    """A run with the loss of each held-out row."""
    score = Score(LOSS, 3.0, sum(each) / len(each), None, -2.1, -1.9, len(each), "better", each)
    return dataclasses.replace(run(name, **changes), scores=(score,))


def judged(verdict: str, after: float | None = 1.0) -> Report:
    """A good run whose loss on held-out answers has this verdict."""
    return dataclasses.replace(good(Path("/r")), scores=(Score(LOSS, 3.0, after, None, -2.1, -1.9, 24, verdict),))


def ticks(made: Report) -> dict[str, bool | None]:
    return {point.text: point.done for point in checklist.points(made)}


def test_only_what_differs_is_listed_and_it_comes_first() -> None:
    sections = comparison.sections([run("a"), run("b", R=32), run("c", R=32, LEARNING_RATE=1e-3)])
    table = sections[0].blocks[0]
    assert table.headers == ("", "A", "B", "C")
    assert table.rows == (("LoRA.R", "8", "32", "32"), ("Training.LEARNING_RATE", "0.0002", "0.0002", "0.001"))
    assert [section.title for section in sections][:3] == ["What differs", "Results", "Losses"]


def test_runs_with_the_same_settings_are_said_to_have_them() -> None:
    assert "Nothing" in comparison.sections([run("a"), run("b")])[0].blocks[0].text


def test_other_rows_and_another_base_model_are_differences() -> None:
    other = run("b")
    file = dataclasses.replace(other.data.files[0], sha256="cd" * 32)
    other = dataclasses.replace(
        other, base=BaseFacts("Qwen/Qwen3-0.6B"), data=dataclasses.replace(other.data, files=(file,))
    )
    named = [row[0] for row in comparison.sections([run("a"), other])[0].blocks[0].rows]
    assert named == ["base model", "training rows"]


def test_the_page_has_a_curve_for_each_run_and_the_answers_to_shared_questions() -> None:
    text = comparison.html([run("a"), run("b", R=32)])
    assert (
        text.count('class="line run1"') == text.count('class="line run2"') == 4
    )  # validation and training, twice: for a telephone too
    assert "Answers to the same questions" in text and "Who are you?" in text and "<script" not in text


def test_columns_are_called_by_what_tells_the_runs_apart() -> None:
    a, b = run("a"), run("b", R=32)
    assert differing.names([a, b]) == ["A: R 8", "B: R 32"]
    assert differing.names([a, dataclasses.replace(b, name="other")]) == ["my-assistant", "other"]
    assert differing.names([a, a]) == ["A", "B"]


def test_defaults_that_were_fitted_to_each_run_are_no_differences() -> None:
    made = []
    for name, fitted in (("a", 18), ("b", 20)):
        one = run(name)
        choices = (
            (*one.choices, ("Training.EVAL_STEPS", 18, "the run has 18 steps only")) if fitted == 18 else one.choices
        )
        training = {**one.settings["Training"], "EVAL_STEPS": fitted}
        made.append(dataclasses.replace(one, settings={**one.settings, "Training": training}, choices=choices))
    text, folded = comparison.sections(made)[0].blocks
    assert text.text.startswith("Nothing that somebody set")
    assert folded.title == "Fitted to each run automatically" and folded.blocks[0].rows == (
        ("Training.EVAL_STEPS", "18", "20"),
    )


def test_the_page_says_first_which_run_is_better_and_by_how_much() -> None:
    a, b = measured("a", (1.0,) * 12), measured("b", (0.8, 0.7) * 6, R=32)
    found = rivals.better([a, b], ["A", "B"])
    said = "B is better than A: loss on held-out answers 0.750 against 1.000 on the same 12 rows (difference -0.275 to -0.225, 95 %)."
    assert re.sub(r"-0\.2\d\d", "-0.2", found.text) == re.sub(r"-0\.2\d\d", "-0.2", said) and found.tone == "good"
    assert as_html.text(found.text) in comparison.html([a, b]).partition("<main>")[0].replace("B: R 32", "B").replace(
        "A: R 8", "A"
    )


def test_a_difference_that_may_be_chance_decides_nothing() -> None:
    found = rivals.better([measured("a", (1.0, 0.9) * 6), measured("b", (0.9, 0.99) * 6)], ["A", "B"])
    assert found.tone == "warn" and found.text.startswith("Cannot tell which is better, B or A: ")
    few = rivals.better([measured("a", (1.0,) * 5), measured("b", (0.5,) * 5)], ["A", "B"])
    assert few.text.endswith("on the same 5 rows, fewer than 6 rows.")


def test_what_speaks_for_the_other_run_stands_in_the_same_sentence() -> None:
    a, b = measured("a", (1.0,) * 12), measured("b", (0.5,) * 12)
    a = dataclasses.replace(a, scores=(*a.scores, Score(EXACT, 0.0, 1.0, rows=8)))
    b = dataclasses.replace(b, scores=(*b.scores, Score(EXACT, 0.0, 0.25, rows=8)))
    found = rivals.better([a, b], ["A", "B"])
    assert found.tone == "warn" and found.text.endswith(", but A gives 8 of 8 answers as expected, B 2 of 8.")


def test_runs_that_were_measured_on_other_rows_or_tokens_are_not_ranked_by_loss() -> None:
    a, b = measured("a", (1.0,) * 12), measured("b", (0.5,) * 12)
    other = dataclasses.replace(b, seed=7)
    assert "measured on different rows" in rivals.better([a, other], ["A", "B"]).text
    other = dataclasses.replace(b, base=BaseFacts("Qwen/Qwen3-0.6B"))
    assert "other tokens" in rivals.better([a, other], ["A", "B"]).text


def test_another_seed_changes_nothing_of_validation_rows_in_a_file_of_their_own() -> None:
    made = []
    for name, each, seed in (("a", (1.0,) * 12, 1), ("b", (0.5,) * 12, 2)):
        one = measured(name, each)
        settings = {**one.settings, "Dataset": {"VALIDATION_FILE": "/held.jsonl", "TEST_SPLIT": 0}}
        made.append(dataclasses.replace(one, seed=seed, settings=settings))
    assert rivals.better(made, ["A", "B"]).text.startswith("B is better than A: ")


def test_a_run_that_is_not_done_is_left_out_of_the_judgement_and_named() -> None:
    a, b, c = (
        measured("a", (1.0,) * 12),
        measured("b", (0.5,) * 12),
        in_state(measured("c", (0.1,) * 12), "interrupted"),
    )
    assert rivals.better([a, b, c], ["A", "B", "C"]).text.endswith("Left out: C (interrupted).")


def test_reports_of_older_versions_are_compared_without_a_claim_about_chance() -> None:
    found = rivals.better([run("a"), judged("better", 0.5)], ["A", "B"])
    assert found.tone == "warn"
    older = [dataclasses.replace(measured(name, each), scores=(Score(LOSS, 3.0, each[0], rows=9, verdict="better"),))
             for name, each in (("a", (1.0,)), ("b", (0.5,)))]  # fmt: skip
    assert "by how much chance alone could make them differ was not kept" in rivals.better(older, ["A", "B"]).text


def test_the_terminal_gets_the_same_as_text() -> None:
    text = comparison.text([measured("a", (1.0,) * 12), measured("b", (0.5,) * 12, R=32)])
    assert text.startswith("B: R 32 is better than A: R 8: ")
    assert "What differs" in text and "| LoRA.R" in text and "<" not in text and "svg" not in text


def test_the_same_answer_of_two_runs_is_shown_once() -> None:
    page = comparison.html([run("a"), run("b", R=32)])
    assert "the same as A: R 8" in page


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
    path, told = comparison.compare(made, tmp_path)
    assert told.startswith("Which is better cannot be told: that takes two finished runs with a measured loss.")
    text = path.read_text(encoding="utf-8")
    text = text.replace("<wbr>", "")
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


def test_whether_answers_end_is_ticked_by_those_that_tell_it() -> None:
    def point(*stopped: bool | None) -> tuple[bool | None, str]:
        samples = tuple(Sample("q", "a", "b", one) for one in stopped)
        (found,) = (p for p in checklist.points(good(Path("/r"), samples=samples)) if "end by themselves" in p.text)
        return found.done, found.why

    assert point(True, None, True) == (True, "2 of 2")
    assert point(True, None, False) == (False, "1 of 2")
    assert point(None, None) == (None, "all of them were cut off where the asking ends")


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
    seen = browse(comparison.compare(made, tmp_path)[0], tmp_path)
    assert seen.console == [] and seen.requests == [] and "<svg" in seen.dom
