"""What is wrong with the arguments of any program is told in one plain form, on stderr, with exit code 2."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.paths import ROOT

PROGRAMS = [
    "training/finetune.py", "training/prepare_data.py", "training/create_sample_data.py", "training/evaluate_model.py",
    "training/convert_to_gguf.py", "training/export.py", "export_ollama.sh",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS)
def test_wrong_arguments_are_told_in_the_same_plain_form(program):
    command = [sys.executable, ROOT / program] if program.endswith(".py") else [ROOT / program]
    done = subprocess.run(
        [*command, "--nonsense", "x", "y", "z"], stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=ROOT
    )
    first, *problems, last = done.stderr.splitlines()
    assert (done.returncode, done.stdout, first) == (2, "", "wrong arguments")
    assert last.startswith("  ") and last.endswith(" --help lists all arguments")
    assert problems and all(line.startswith("  ") for line in problems)
