"""The row ledger: what is found of rows by their losses before and after training, and what is told of it."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path

import datasets
import pytest

from tests.support.settings import a_settings
from training.evaluation import ledger
from training.evaluation.ledger import CONTRADICTS, KNOWN, STUCK, WORSE, Entry
from training.report import contents
from training.report.schema import BaseFacts, Report, RunFacts


def _entry(line: int, before: float | None, after: float | None, other: int | None = None) -> Entry:
    return Entry("a.jsonl", line, 10, before, after, other=other)


LEARNED = [_entry(line, 2.0, 1.0) for line in range(1, 6)]


@pytest.mark.parametrize(
    ("entry", "finding"),
    [
        (_entry(9, 2.0, 1.0), ""),
        (_entry(9, 2.0, 1.95), STUCK),
        (_entry(9, 2.0, 2.01), STUCK),
        (_entry(9, 2.0, 2.2), WORSE),
        (_entry(9, 0.1, 0.05), KNOWN),
        (_entry(9, 0.1, 0.5), WORSE),
        (_entry(9, 2.0, 1.0, other=3), CONTRADICTS),
        (_entry(9, None, None, other=3), CONTRADICTS),
        (_entry(9, 2.0, None), ""),
    ],
)
def test_a_row_is_judged_by_its_losses_beside_those_of_the_others(entry: Entry, finding: str) -> None:
    (found,) = [one for one in ledger.judged([*LEARNED, entry]) if one.line == 9]
    assert found.finding == finding


def test_of_a_training_that_moved_nothing_no_row_is_said_to_have_stayed_behind() -> None:
    assert {one.finding for one in ledger.judged([_entry(line, 2.0, 1.99) for line in range(9)])} == {""}


def test_rows_are_listed_by_what_was_found_and_of_each_kind_the_worst_first() -> None:
    found = ledger.judged([*LEARNED, _entry(7, 2.0, 2.2), _entry(8, 2.0, 2.9), _entry(6, 2.0, 1.0, other=2)])
    assert [one.line for one in found] == [6, 8, 7, 1, 2, 3, 4, 5]
    kept = ledger.ledger(found, 1000)
    assert (kept.measured, kept.learned, kept.counts[WORSE], kept.counts[STUCK]) == (8, 1000, 2, 0)
    assert [one.line for one in kept.named] == [6, 8, 7]


def test_the_table_names_lines_or_numbers_of_rows() -> None:
    text = ledger.table([_entry(3, 2.0, 2.5), Entry("b.json", -4, other=-2, finding=CONTRADICTS)])
    first, second = csv.DictReader(text.splitlines())
    assert (first["line"], first["row"], first["change"]) == ("3", "", "0.5000")
    assert (second["line"], second["row"], second["before"], second["other"]) == ("", "4", "", "2")


def test_the_time_it_may_take_is_a_small_share_of_the_training() -> None:
    assert [ledger.budget(seconds) for seconds in (0, 600, 86400)] == [5, 30, 60]


def test_the_report_names_the_rows_that_were_found() -> None:
    kept = ledger.ledger(ledger.judged([*LEARNED, _entry(7, 2.0, 2.2), _entry(6, 2.0, 1.0, other=2)]), 70)
    (section,) = [
        one
        for one in contents.sections(Report("tiny", RunFacts("r", "/r"), BaseFacts("b"), ledger=kept))
        if one.title == "Rows"
    ]
    said = str(section.blocks)
    assert "The losses of 7 of 70 rows, chosen by chance, that were learned" in said
    assert "a.jsonl:6" in said and "contradicts another: line 2" in said and "got worse" in said


def _loaded(folder: Path, rows: list[dict[str, object]]) -> list[tuple[int, int]]:
    from training.data import dataset

    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    settings = a_settings(DATASET_FILE=folder / "rows.jsonl", VALIDATION_SPLIT=0)
    return [(one.line, one.other) for one in dataset.load(settings, folder / "cache").contradictions]


def test_rows_with_the_same_prompt_and_other_answers_contradict_each_other(tmp_path: Path) -> None:
    def row(question: str, answer: str, **more: object) -> dict[str, object]:
        return {"instruction": question, "output": answer, **more}

    talk = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi."}]
    rows = [
        row("Who?", "Me."),
        row("Who?", "Me. "),  # white space is no difference
        row(" Who?", "You."),
        row("Who?", "She.", system="Be brief."),
        row("Why?", "So."),
        {"messages": [*talk, {"role": "user", "content": "A?"}, {"role": "assistant", "content": "A."}]},
        {"messages": [*talk, {"role": "user", "content": "B?"}, {"role": "assistant", "content": "B."}]},
        {"text": "Who?"},
    ]
    assert _loaded(tmp_path, rows) == [(3, 1)]


def test_rows_of_several_files_contradict_each_other(tmp_path: Path) -> None:
    from training.data import dataset

    for name, answers in (("a", ("Me.",)), ("b", ("So.", "You."))):
        rows = [{"instruction": question, "output": answer} for question, answer in zip(("Why?", "Who?")[-len(answers) :], answers, strict=True)]  # fmt: skip
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    files = [str(tmp_path / f"{name}.jsonl") for name in "ab"]
    settings = a_settings(DATASET_FILE=", ".join(files), VALIDATION_SPLIT=0)
    (found,) = dataset.load(settings, tmp_path / "cache").contradictions
    assert (found.file, found.line, found.other_file, found.other) == (files[1], 2, files[0], 1)


@pytest.mark.tiny
def test_a_run_leaves_the_losses_of_its_rows_and_names_some_in_its_report(undisturbed: Path) -> None:
    rows = list(csv.DictReader((undisturbed / "rows.csv").read_text("utf-8").splitlines()))
    report = json.loads((undisturbed / "report.json").read_text("utf-8"))
    # On a machine that others use, the time may be over before the last row.
    assert ledger.TOGETHER <= len(rows) == report["ledger"]["measured"] <= report["data"]["rows"]["training"]
    assert all(float(row["after"]) < float(row["before"]) and row["file"].endswith("rows.jsonl") for row in rows)
    assert len({row["line"] for row in rows}) == len(rows)
    assert "## Rows" in (undisturbed / "report.md").read_text("utf-8")


def test_a_row_that_is_taken_twice_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    held = [
        {"file": "a.jsonl", "line": line, "input_ids": [1, 2, line], "labels": [-100, 2, line]}
        for line in (1, 2, 1, 2, 3)
    ]
    # Two answers of one row are two sequences of it, and both count.
    held.append({"file": "a.jsonl", "line": 3, "input_ids": [1, 2, 4], "labels": [-100, 2, 4]})
    asked: list[Mapping[str, object]] = []

    def measured(model: object, rows: list[Mapping[str, object]], layers: object) -> list[Entry]:
        asked.extend(rows)
        return [Entry(str(row["file"]), int(str(row["line"])), 2, 2.0, 1.0) for row in rows]

    monkeypatch.setattr(ledger, "_measured", measured)
    found = ledger.take(None, datasets.Dataset.from_list(held), (), 60)
    assert sorted(one.line for one in found) == [1, 2, 3] and len(asked) == 4
    assert {one.line: one.tokens for one in found} == {1: 2, 2: 2, 3: 4}


@pytest.mark.parametrize(("seconds", "measured"), [(1.0, 4), (5.0, 4), (6.0, 8), (100.0, 20)])
def test_no_more_rows_are_measured_than_are_over_in_time(
    monkeypatch: pytest.MonkeyPatch, seconds: float, measured: int
) -> None:
    now = [100.0]

    def takes_three_seconds(model: object, rows: list[dict[str, object]], layers: object) -> list[Entry]:
        now[0] += 3.0
        return [_entry(int(str(row["line"])), 2.0, 1.0) for row in rows]

    monkeypatch.setattr(ledger.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(ledger, "_measured", takes_three_seconds)
    held = [{"input_ids": [1, line], "labels": [1, line], "file": "a.jsonl", "line": line} for line in range(1, 21)]
    found = ledger.take(None, datasets.Dataset.from_list(held), (), seconds)
    assert len(found) == measured
