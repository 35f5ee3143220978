"""What a run says of rows in forms of their own: before training, once for each file, or with exit code 2."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.programs import finetune

pytestmark = pytest.mark.tiny


def test_columns_of_the_usual_names_are_told_of_once(tiny_config: Path, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("Id,Question,Answer\n" + "".join(f"{i},What is {i}?,It is {i}.\n" for i in range(16)), "utf-8")
    ended = finetune("--config", tiny_config, "--data", table, "--check")
    assert ended.code == 0, ended.stderr
    assert ended.stderr.count("16 rows of the columns Question, Answer, taken as instruction, output") == 1
    other = finetune(
        "--config", tiny_config, "--data", table, "--columns", "instruction: Frage, output: Answer", "--check"
    )
    assert other.code == 2
    assert (
        "COLUMNS names 'Frage', which is not there (fields found: Id, Question, Answer); 16 such rows" in other.stderr
    )
