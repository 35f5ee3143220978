"""Rows that are nearly the same, and questions with two answers: which are told, and which are not."""

from __future__ import annotations

import random
from pathlib import Path

import datasets
import numpy as np
import pytest

from training.data import Row, Turn, likeness, oddities, parallel_reading
from training.data.oddities import Seen
from training.system import pool

WORDS = [
    "the",
    "boat",
    "sails",
    "at",
    "dawn",
    "with",
    "a",
    "crew",
    "of",
    "seven",
    "men",
    "and",
    "one",
    "cat",
    "from",
    "the",
    "harbour",
    "over",
    "a",
    "quiet",
    "sea",
    "to",
    "far",
    "islands",
]


def dataset(*rows: tuple[str, ...] | str) -> tuple[datasets.Dataset, Seen]:
    """Rows of turns (a system text in front where their number is odd) or of plain text, as `load` has them."""
    made, seen = [], Seen()
    for number, said in enumerate(rows, 1):
        if isinstance(said, str):
            made.append(Row(None, said, "a.jsonl", number))
        else:
            roles = ["system"] * (len(said) % 2) + ["user", "assistant"] * (len(said) // 2)
            turns = tuple(Turn(role, text) for role, text in zip(roles, said, strict=True))
            made.append(Row(turns, None, "a.jsonl", number))
        oddities.remember(made[-1], seen)
    return datasets.Dataset(datasets.table.InMemoryTable.from_batches([parallel_reading._batch(made)])), seen


def near(*rows: tuple[str, ...] | str) -> list[tuple[int, int]]:
    found, seen = dataset(*rows)
    return likeness.near_duplicates(found, seen.normalised)


LONG = " ".join(WORDS)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (LONG, LONG.replace("seven", "eight")),
        (LONG, LONG.upper()),
        (LONG, LONG + "!"),
        ("我们明天早上七点从港口出发，带着七个人和一只猫，越过平静的海面去远方的岛屿，希望天气一直很好，大家都平安。" * 2,
         "我们明天早上八点从港口出发，带着七个人和一只猫，越过平静的海面去远方的岛屿，希望天气一直很好，大家都平安。" * 2),
    ],
)  # fmt: skip
def test_rows_that_differ_in_little_are_nearly_the_same(one: str, other: str) -> None:
    assert near(("What now?", one), ("Else?", "short"), ("What now?", other)) == [(2, 0)]


def test_rows_that_differ_in_much_and_short_ones_are_not() -> None:
    mixed = random.Random(3).sample(WORDS, len(WORDS))
    assert near(LONG, " ".join(mixed), "the boat sails", "the boat sails!") == []


def test_the_same_answer_to_another_question_is_no_double() -> None:
    assert near(("Where does the boat go?", LONG), ("Where is the boat going?", LONG)) == []


def test_equal_rows_but_for_white_space_are_told_elsewhere() -> None:
    assert near(LONG, LONG.replace(" ", "  ")) == []


def test_likeness_is_that_of_the_runs_within_what_64_hashes_can_tell() -> None:
    spread = random.Random(5)
    for _ in range(20):
        words = [spread.choice(WORDS) + str(spread.randrange(99)) for _ in range(80)]
        others = [word if spread.random() < 0.95 else "x" + word for word in words]
        one, other = " ".join(words), " ".join(others)
        runs = [{text[at : at + likeness.RUN] for at in range(len(text) - likeness.RUN + 1)} for text in (one, other)]
        sketches = np.full((2, likeness.HASHES), likeness.EMPTY, dtype=np.uint32)
        likeness.sketch(one, sketches[0])
        likeness.sketch(other, sketches[1])
        truth = len(runs[0] & runs[1]) / len(runs[0] | runs[1])
        assert abs((sketches[0] == sketches[1]).mean() - truth) < 0.25  # four standard deviations


@pytest.mark.slow
def test_many_rows_are_compared_by_several_processes_as_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = random.Random(7)
    texts = [" ".join(alone.sample(WORDS * 3, 30)) for _ in range(40)]
    rows = [*(("Where?", text) for text in texts), *texts[:9], ("Where?", texts[11] + "!"), texts[3] + "!", ("a", "b")]
    found = near(*rows)
    assert [later for later, _ in found] == [49, 50]
    monkeypatch.setattr(likeness, "MANY_ROWS", 2)
    monkeypatch.setattr(likeness, "BATCH", 7)
    monkeypatch.setattr(pool, "cores", lambda: 2)
    assert near(*rows) == found


def contradicting(*rows: tuple[str, ...] | str) -> list[tuple[int, int]]:
    found, seen = dataset(*rows)
    return likeness.contradictions(found, seen.prompts, seen.normalised)


def test_a_question_with_two_answers_is_told_with_the_first_of_them() -> None:
    assert contradicting(("Who?", "Ann"), ("Where?", "Here"), ("Who? ", "Ben"), ("Who?", "Ann")) == [(2, 0)]


def test_it_is_no_contradiction_under_another_system_text_or_further_on() -> None:
    assert contradicting(("You are Ann.", "Who?", "Ann"), ("You are Ben.", "Who?", "Ben"), ("Who?", "I")) == []
    assert contradicting(("Who?", "Ann", "And?", "a"), ("Who?", "Ann", "And?", "b")) == []
    assert contradicting("one text", "another text") == []


def test_both_are_warned_of_by_file_and_line() -> None:
    found, seen = dataset(("Who?", LONG), ("Who?", LONG + "!"), ("Hm?", "ok ok"))
    assert oddities.warnings(Path("a.jsonl"), seen, found) == [
        "a.jsonl:2: 1 row nearly the same as an earlier one (a.jsonl:1)",
        "a.jsonl:2: 1 row with a question that an earlier one answers otherwise (a.jsonl:1)",
    ]


def test_an_answer_that_is_not_learned_and_one_with_other_tools_contradict_nothing() -> None:
    def row(line: int, answer: str, tools: str = "", trained: bool = True) -> Row:
        return Row((Turn("user", "Who?"), Turn("assistant", answer, trained)), None, "a.jsonl", line, tools)

    seen = Seen()
    made = [row(1, "Ann"), row(2, "Ben", trained=False), row(3, "Ben", tools="[]"), row(4, "Cid")]
    for one in made:
        oddities.remember(one, seen)
    rows = datasets.Dataset(datasets.table.InMemoryTable.from_batches([parallel_reading._batch(made)]))
    assert likeness.contradictions(rows, seen.prompts, seen.normalised) == [(3, 0)]
