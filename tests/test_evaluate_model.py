"""evaluate_model.py and the evaluation in a run: what is measured, what the CSV file holds, and who is called worse."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.programs import Ended, finetune
from tests.support.settings import a_settings
from training import evaluate_model, runs
from training.data import Item, held_out
from training.data.encoding import IGNORED
from training.errors import UserError
from training.evaluation import LOSS, Answer, scoring
from training.evaluation.target import Target

FORMULAS = ('=HYPERLINK("http://x")', "+1", "-2 degrees", "@SUM(A1)", "\tx")


def item(question: str = "q?", expected: str = "yes") -> Item:
    prompt = [1] if question else []
    return Item(ids=[1, 2, 3], labels=[IGNORED, 2, 3], question=question, expected=expected, prompt=prompt, most=32)


def spoken(*texts: str) -> evaluate_model.Spoken:
    answers = [Answer(text=text, ids=[5], stopped=True) for text in texts]
    marks = [scoring.marks(text, "yes", True) for text in texts]
    return evaluate_model.Spoken(losses=[1.5] * len(texts), answers=answers, marks=marks)


def program(*arguments: str | Path) -> Ended:
    return finetune(*arguments, script="evaluate_model.py", timeout=900)


@pytest.mark.parametrize("text", FORMULAS)
def test_no_cell_is_a_formula(text: str) -> None:
    made = {"base": spoken(text), "tuned": spoken('是\n"yes"')}
    rows = list(csv.reader(io.StringIO(evaluate_model.csv_text([item(text, text)], made, bom=False), newline="")))
    assert not any(cell.startswith(evaluate_model.FORMULA) for row in rows for cell in row)
    found = dict(zip(*rows, strict=True))
    assert found["base_answer"] == found["question"] == "'" + text and found["tuned_answer"] == '是\n"yes"'


def test_each_row_has_both_answers_their_scores_and_an_empty_rating() -> None:
    made = {"base": spoken("no"), "tuned": spoken("yes"), "quantised": spoken("yes")}
    header, row = csv.reader(io.StringIO(evaluate_model.csv_text([item()], made, bom=False), newline=""))
    found = dict(zip(header, row, strict=True))
    assert (found["base_exact"], found["tuned_exact"], found["quantised_exact"], found["rating"]) == ("0", "1", "1", "")
    assert found["tuned_loss"] == "1.5" and header[-1] == "rating"


def test_an_answer_too_short_to_tell_whether_it_stops_has_an_empty_cell() -> None:
    marks = [scoring.marks("and so on", "yes", None)]
    made = {"tuned": replace(spoken("and so on"), marks=marks)}
    header, row = csv.reader(io.StringIO(evaluate_model.csv_text([item()], made, bom=False), newline=""))
    found = dict(zip(header, row, strict=True))
    assert (found["tuned_stopped"], found["tuned_exact"]) == ("", "0")


def test_a_model_of_plain_text_is_not_measured_on_conversations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"instruction": "q?", "output": "yes"}\n', encoding="utf-8")
    plain = Target(base=tmp_path, template=None, end_ids=[], longest=64, settings=a_settings(tmp_path))
    monkeypatch.setattr(Target, "named", lambda *_: plain)
    monkeypatch.setattr(evaluate_model, "CACHE", tmp_path / "cache")
    arguments = evaluate_model.parser().parse_args(["--lora-model", "run", "--test-data", str(rows)])
    with pytest.raises(
        UserError, match="was trained on plain text, and these rows are conversations: .*--test-data FILE"
    ):
        evaluate_model.evaluate(arguments, io.StringIO())


def test_a_plain_text_row_has_a_loss_and_no_answer_and_moves_none_of_the_others() -> None:
    made = {"base": replace(spoken("yes"), losses=[1.0, 2.0])}
    rows = list(csv.DictReader(io.StringIO(evaluate_model.csv_text([item(""), item()], made, False), newline="")))
    assert [(row["base_answer"], row["base_loss"]) for row in rows] == [("", "1"), ("yes", "2")]


def test_a_byte_order_mark_is_written_when_it_is_asked_for() -> None:
    texts = [evaluate_model.csv_text([item()], {"base": spoken("a")}, bom) for bom in (True, False)]
    assert texts[0] == "\ufeff" + texts[1]


def test_rows_are_spread_evenly_and_never_more_than_there_are() -> None:
    assert held_out.spread(10, 3) == [0, 3, 6]
    assert held_out.spread(2, 16) == [0, 1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "name what is to be asked"),
        (("--lora-model", "nowhere"), "--lora-model nowhere: no such file or folder"),
        (("--lora-model", str(ROOT / "tests")), "is neither a run's folder, nor an adapter, nor a .gguf file"),
        (("--lora-model", "x", "--output", "no/such/folder/x.csv"), "--output no/such/folder/x.csv: there is no folder"),
        (("--max-rows", "0"), "0: a whole number, at least 1"),
    ],
)  # fmt: skip
@pytest.mark.tiny
def test_what_is_wrong_with_the_arguments_is_said_with_exit_2(arguments: tuple[str, ...], said: str) -> None:
    done = program(*arguments)
    assert done.code == 2 and done.stdout == "" and said in done.stderr and "Traceback" not in done.stderr


@pytest.mark.tiny
def test_a_run_is_measured_against_its_base_and_its_quantised_file(undisturbed: Path, tmp_path: Path) -> None:
    rows = undisturbed.parents[1] / "rows.jsonl"
    done = program("--lora-model", undisturbed, "--test-data", rows, "--output", tmp_path / "out.csv", "--bom")
    assert done.code == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split()[:3] == ["base", "tuned", "quantised"]
    assert lines[1].startswith(LOSS) and lines[1].endswith("better") and lines[-1].startswith(f"better by {LOSS}")
    text = (tmp_path / "out.csv").read_text(encoding="utf-8-sig")
    found = list(csv.DictReader(io.StringIO(text, newline="")))
    assert len(found) == 16 and {"base_answer", "tuned_answer", "quantised_answer", "rating"} <= found[0].keys()
    assert all(float(row["tuned_loss"]) < float(row["base_loss"]) for row in found)
    assert all(abs(float(row["quantised_loss"]) - float(row["tuned_loss"])) < 0.5 for row in found)


@pytest.mark.embedded
def test_the_shipped_run_with_a_learning_rate_a_hundred_times_too_high_is_called_worse(tmp_path: Path) -> None:
    """On the real model: a random one has nothing to lose, and any training makes it better."""
    flags = {"MAX_STEPS": "4", "WARMUP_STEPS": "0", "EVAL_STEPS": "0", "FAIL_IF_WORSE": "true", "LEARNING_RATE": "0.2"}
    settings = [word for key, value in flags.items() for word in ("--set", f"Training.{key}={value}")]
    ended = finetune("--output", tmp_path / "out", *settings)
    assert ended.code == 1
    assert "evaluate: the tuned model is worse than the base: validation loss" in ended.stderr, ended.stderr
    (loss,) = (s for s in runs.open_run(ended.run).stage("evaluate")["scores"] if s["name"] == LOSS)
    assert loss["verdict"] == "worse" and loss["rows"] == 31
    assert "worse than the base" in (ended.run / "report.md").read_text(encoding="utf-8")


@pytest.mark.tiny
def test_losses_of_rows_taken_together_are_those_of_each_alone(tiny_model: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from training import evaluation

    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    made = [
        Item(
            ids=[*range(5, 5 + n)],
            labels=[IGNORED] * 3 + [*range(8, 5 + n)],
            question="",
            expected="",
            prompt=[],
            most=0,
        )
        for n in (9, 30, 4)
    ]
    together = evaluation.losses(model, made)
    assert together == pytest.approx([evaluation.losses(model, [one])[0] for one in made], abs=1e-4)


@pytest.mark.tiny
def test_answers_asked_together_are_those_of_each_question_alone(tiny_model: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from training import evaluation
    from training.evaluation import generate

    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    made = [
        Item(ids=[], labels=[], question="q", expected="", prompt=tokenizer(text)["input_ids"], most=most)
        for text, most in (("Hello", 6), ("What is this?", 9))
    ]
    together = evaluation.answers(model, tokenizer, made, [2])
    assert [one.ids for one in together] == [generate.answer(model, tokenizer, i.prompt, [2], i.most).ids for i in made]
    ends = [together[1].ids[4]]  # a token that comes up: the answer ends there, the other one goes on
    assert evaluation.answers(model, tokenizer, made, ends)[1] == generate.answer(
        model, tokenizer, made[1].prompt, ends, 9
    )
