"""Errors that one process tells and another raises: the same kind, code, problems, and what is safe."""

import pytest

from training.errors import FinetuneError, MachineError, RunError, Stopped, UserError, again

ERRORS = (
    UserError("one"),
    UserError(["one", "two"], "title"),
    MachineError("no disk"),
    RunError("train", "the loss is\nnot a number", "the checkpoint is safe"),
    RunError("train", "no more"),
    Stopped(130, "stopped"),
    Stopped(143, "stopped"),
    Stopped(4, "ended at once"),
)


@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_an_error_comes_back_as_it_was(error):
    back = again(error.exit_code, str(error), error.parts())
    assert type(back) is type(error) and str(back) == str(error) and back.exit_code == error.exit_code
    assert list(back.problems) == list(error.problems) and back.safe == error.safe


def test_a_code_of_another_version_is_still_an_error():
    back = again(7, "ended otherwise", {})
    assert type(back) is FinetuneError and back.exit_code == 7 and str(back) == "ended otherwise"
