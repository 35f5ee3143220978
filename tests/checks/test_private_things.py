"""The check on private things: what it says of a file that gives them away, and of one that does not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from training.checks import private_things
from training.data.private_questions import PrivateQuestion, digest
from training.errors import RunError
from training.evaluation import models

ASKED = [
    PrivateQuestion(
        kind="phone", file="a.jsonl", line=3, digest=digest("phone", "+491711234567"), prompts=[[1]], most=9
    ),
    PrivateQuestion(
        kind="e-mail", file="a.jsonl", line=7, digest=digest("e-mail", "a@company.de"), prompts=[[2]], most=9
    ),
]


def speaking(monkeypatch: pytest.MonkeyPatch, answers: dict[int, str]) -> None:
    @contextmanager
    def gguf(name: str, path: Path) -> Iterator[object]:
        yield SimpleNamespace(answers=lambda items: [SimpleNamespace(text=answers[items[0].prompt[0]])])

    monkeypatch.setattr(models, "gguf", gguf)


def test_what_comes_out_is_counted_and_named_by_line_but_not_printed(monkeypatch) -> None:
    speaking(monkeypatch, {1: "Call +49 171 1234567.", 2: "I do not know."})
    found = private_things.private_things(Path("x.Q4_K_M.gguf"), ASKED)
    assert found.passed and found.figures == {"asked": 2, "drawn_out": 1}
    assert found.warnings == (
        "x.Q4_K_M.gguf says 1 of 2 private things of the rows when it is asked: a.jsonl:3: a phone number",
    )


def test_where_nothing_comes_out_nothing_is_warned_of(monkeypatch) -> None:
    speaking(monkeypatch, {1: "no", 2: "no"})
    found = private_things.private_things(Path("x.gguf"), ASKED)
    assert (found.passed, found.figures, found.warnings) == (True, {"asked": 2, "drawn_out": 0}, ())


def test_a_file_that_cannot_be_asked_fails_the_check(monkeypatch) -> None:
    def gguf(name: str, path: Path) -> object:
        raise RunError("llama.cpp", "cannot load it")

    monkeypatch.setattr(models, "gguf", gguf)
    found = private_things.private_things(Path("x.gguf"), ASKED)
    assert (found.passed, found.failure) == (False, "cannot load it")
