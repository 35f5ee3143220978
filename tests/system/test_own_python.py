"""`python training/finetune.py` with a Python that has no packages: the one of .venv goes on, or it is said what would do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

pytestmark = pytest.mark.slow
# Without the packages of its site, whichever Python that is.
BARE = (sys.executable, "-S", "-I")


def ended(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=60, env={**os.environ, **environment}
    )


@pytest.mark.skipif(not (ROOT / ".venv").exists(), reason="tests/run.sh makes it")
@pytest.mark.parametrize(
    ("script", "argv", "said"),
    [
        ("finetune", ("--lr", "1"), "--lr is not a flag; write --learning-rate"),
        ("train_lora", ("--lr", "1"), "--lr is not a flag; write --learning-rate"),
        ("evaluate_model", ("--lora-model", "/nowhere"), "--lora-model /nowhere: no such file or folder"),
        ("prepare_data", ("--input", "/none"), "the following arguments are required"),
        ("convert_to_gguf", (), "the following arguments are required: --model-path"),
    ],
)
def test_a_python_without_packages_hands_over_to_the_one_that_has_them(script, argv, said):
    done = ended(*BARE, ROOT / "training" / f"{script}.py", *argv)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert said in done.stderr


def test_where_nothing_is_set_up_it_says_what_to_run(tmp_path):
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from training.system import own_python, paths; from pathlib import Path"
    done = ended(*BARE, "-c", f"{code}; paths.ROOT = Path({str(tmp_path)!r}); own_python.use()")
    assert done.returncode == 3
    assert done.stderr == f"error: {sys.executable} has no package loguru: run {tmp_path}/setup.sh first\n"
