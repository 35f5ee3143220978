"""What errors and figures are called in messages."""

from __future__ import annotations

from training.system.wording import first_line


def test_of_an_error_the_first_line_is_told_and_its_kind_where_it_says_nothing() -> None:
    assert first_line(ValueError("\n  one\ntwo")) == "one"
    assert first_line(KeyError()) == "KeyError"
    assert first_line(RuntimeError(" \n"), "no reason given") == "no reason given"
