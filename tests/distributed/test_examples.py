"""The files for clusters: what they write is what this program reads."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.support.paths import ROOT
from training.settings.table import TABLE

EXAMPLES = ROOT / "examples"
SECRET = "FINETUNE_MACHINES_SECRET"


def commands(path: Path) -> str:
    """What a file starts."""
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found["run"] if "run" in found else found["spec"]["trainer"]["command"][-1]


@pytest.mark.parametrize("name", ["kubernetes/trainjob.yaml", "skypilot/finetune.yaml"])
def test_a_file_for_a_cluster_sets_settings_that_there_are_on_every_machine(name):
    said = commands(EXAMPLES / name)
    keys = re.findall(r"--set ([\w.]+)=", said)
    assert set(keys) >= {f"Hardware.{key}" for key in ("NUM_PROCESSES", "NUM_MACHINES", "MACHINE_RANK")}
    assert "Hardware.MAIN_PROCESS_ADDRESS" in keys and set(keys) <= set(TABLE)
    assert SECRET in (EXAMPLES / name).read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_commands_of_all_files_are_good_shell(tmp_path):
    for path in (EXAMPLES / "kubernetes" / "trainjob.yaml", EXAMPLES / "skypilot" / "finetune.yaml"):
        (tmp_path / f"{path.stem}.sh").write_text(f"#!/bin/bash\n{commands(path)}\n", encoding="utf-8")
    scripts = [*tmp_path.glob("*.sh"), EXAMPLES / "slurm" / "finetune.sbatch"]
    checked = subprocess.run(
        [ROOT / ".venv" / "bin" / "shellcheck", *scripts], capture_output=True, text=True, timeout=60
    )
    assert checked.returncode == 0, checked.stdout
