"""Replay rows: how many, which of them, and what the shipped questions are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rapidfuzz.distance import Indel

from tests.support.settings import a_settings
from training.data import dataset, parallel_reading, replay
from training.data.held_out import GENERAL
from training.data.reading import PLAIN
from training.errors import UserError

ALIKE = 0.8


def test_the_share_is_that_of_all_rows_that_are_trained_on():
    assert replay.wanted(900, 0.1) == 100
    assert replay.wanted(150, 0.2) == 38
    assert replay.wanted(10, 0.5) == 10
    assert replay.wanted(3, 0.01) == 1, "who asks for some gets one"
    assert replay.wanted(900, 0) == 0


@given(st.integers(1, 50), st.integers(1, 300), st.integers(0, 9))
def test_each_row_is_taken_equally_often_but_for_one_and_the_seed_chooses(count: int, most: int, seed: int):
    numbers = replay.taken(count, most, seed).tolist()
    times = [numbers.count(number) for number in range(count)]
    assert len(numbers) == most and max(times) - min(times) <= 1
    assert numbers == replay.taken(count, most, seed).tolist()


def test_the_seed_decides_in_which_order_the_base_model_is_asked():
    assert replay.prompts(1) != replay.prompts(2)
    assert sorted(replay.prompts(1)) == sorted(replay.prompts(2))


def test_the_shipped_questions_are_some_hundred_in_two_languages_and_none_is_there_twice():
    every = replay.prompts(0)
    chinese = [one for one in every if any("\u4e00" <= sign <= "\u9fff" for sign in one)]
    assert len(every) >= 300 and 0.3 < len(chinese) / len(every) < 0.6
    assert len({" ".join(one.lower().split()) for one in every}) == len(every)
    assert all(one == one.strip() and 0 < len(one) <= 200 for one in every)


def test_the_shipped_questions_are_none_of_those_that_forgetting_is_measured_with():
    measured = [json.loads(line)["instruction"] for line in GENERAL.read_text(encoding="utf-8").splitlines()]
    assert len(measured) > 20
    alike = [
        (ours, theirs)
        for ours in replay.prompts(0)
        for theirs in measured
        if Indel.normalized_similarity(ours.lower(), theirs.lower()) >= ALIKE
    ]
    assert not alike


def test_the_kept_answers_are_rows_that_any_run_can_read(tmp_path: Path):
    path = tmp_path / replay.FILE
    exchanges = [('Hello?\n"you"', "<think>\nhm\n</think>\n\nYes.\u2028"), ("你好", "你好！\\n")]
    replay.write(path, exchanges)
    (part,) = parallel_reading.parts(path, PLAIN)
    rows = [parallel_reading.row_of(record) for record in part.batch.to_pylist()]
    assert not part.bad
    assert [tuple(turn.content for turn in row.messages) for row in rows] == exchanges


# ---- rows of a file ----------------------------------------------------------------------------------------------


def written(path: Path, rows: list[tuple[str, str]]) -> Path:
    lines = (json.dumps({"instruction": ask, "output": say}) + "\n" for ask, say in rows)
    path.write_text("".join(lines), encoding="utf-8")
    return path


OWN = [(f"Ahoy number {number}?", f"Arrr {number} it be.") for number in range(36)]
OTHER = [(f"What is {number} squared?", f"It is {number * number}.") for number in range(3)]


def loaded(folder: Path, own: list[tuple[str, str]], other: list[tuple[str, str]], **values: object) -> dataset.Data:
    files = {"DATASET_FILE": written(folder / "own.jsonl", own), "REPLAY_FILE": written(folder / "other.jsonl", other)}
    return dataset.load(a_settings(folder, **{**files, "REPLAY_SHARE": 0.1, **values}), folder / "cache")


def test_rows_of_a_replay_file_are_beside_the_users_own_of_which_alone_the_split_is_made(tmp_path: Path):
    data = loaded(tmp_path, OWN, OTHER, VALIDATION_SPLIT=0.25, REPLAY_SHARE=0.25)
    assert (data.counts.train, data.counts.validation, data.counts.replay) == (27, 9, 9)
    other = str(tmp_path / "other.jsonl")
    assert set(data.replay["file"]) == {other} and len(data.replay) == 9
    assert sorted(data.replay["line"]) == [1, 1, 1, 2, 2, 2, 3, 3, 3], "three rows, each three times"
    for part in (data.train, data.validation):
        assert other not in part["file"]
    assert data.counts.rows == 36 and data.used == {str(tmp_path / "own.jsonl"): 27}
    assert data.sha256[other]


def test_without_a_share_a_replay_file_is_not_read(tmp_path: Path):
    data = loaded(tmp_path, OWN, [("broken", "")], REPLAY_SHARE=0)
    assert data.replay is None and data.counts.replay == 0 and len(data.sha256) == 1


@pytest.mark.parametrize("look", [dataset.refuse_early, lambda settings: dataset.load(settings, Path("cache"))])
def test_a_bad_row_of_a_replay_file_is_named_by_file_and_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, look):
    monkeypatch.chdir(tmp_path)
    files = {"DATASET_FILE": written(tmp_path / "own.jsonl", OWN)}
    files["REPLAY_FILE"] = written(tmp_path / "other.jsonl", [*OTHER, ("And this?", "")])
    with pytest.raises(UserError, match=r"other\.jsonl:4: .*empty"):
        look(a_settings(tmp_path, **files, REPLAY_SHARE=0.1))


def test_a_replay_row_that_answers_a_question_of_the_users_otherwise_is_no_fault_of_his_rows(tmp_path: Path):
    data = loaded(tmp_path, OWN, [(OWN[0][0], "Good day."), *OTHER])
    assert not data.contradictions
    assert not any("answers otherwise" in line for line in data.warnings)


def test_a_validation_row_with_a_question_of_the_replay_file_is_warned_of(tmp_path: Path):
    held = written(tmp_path / "held.jsonl", [OTHER[0], ("New?", "Yes.")])
    data = loaded(tmp_path, OWN, OTHER, VALIDATION_FILE=held)
    assert f"{held}: 1 row with a prompt that is trained on too: the validation loss will flatter" in data.warnings
