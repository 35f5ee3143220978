"""What a launcher or a job system says of processes is left out of account by every program here, and said once."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.support.faults import FAULTY, NO_EXPORT
from tests.support.paths import ROOT
from tests.support.programs import finetune
from tests.support.tiny import write_tiny_config
from training.system import launchers, log

# As they stand in a pod of Kubernetes' PyTorchJob with one worker, under torchrun, accelerate launch and mpirun.
JOB = {"WORLD_SIZE": "1", "RANK": "0", "MASTER_ADDR": "job-master-0", "MASTER_PORT": "23456"}
TORCHRUN = {
    "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0", "ROLE_RANK": "1",
    "ROLE_NAME": "default", "MASTER_ADDR": "10.255.255.1", "MASTER_PORT": "29500", "TORCHELASTIC_RUN_ID": "none",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
}  # fmt: skip
ACCELERATE = {
    "ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "ACCELERATE_MIXED_PRECISION": "fp8",
    "ACCELERATE_TORCH_DEVICE": "meta", "PARALLELISM_CONFIG_TP_SIZE": "8", "ACCELERATE_USE_PARALLELISM_CONFIG": "true",
}  # fmt: skip
MPI = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "2",
    "PMI_SIZE": "4",
    "PMI_RANK": "2",
    "MPI_LOCALNRANKS": "4",
}
SLURM = {"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_JOB_ID": "7"}
KEPT = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "NCCL_DEBUG": "WARN", **SLURM}


@pytest.fixture
def logged(monkeypatch):
    """The lines that are logged, as (level, message)."""
    lines: list[tuple[str, str]] = []
    logger = log.logger
    number = logger.add(lambda line: lines.append((line.record["level"].name, line.record["message"])))
    monkeypatch.setattr(launchers, "_left_out", {})
    yield lines
    logger.remove(number)


@pytest.mark.parametrize("given", [JOB, TORCHRUN, ACCELERATE, MPI])
def test_they_are_taken_out_of_the_environment_and_nothing_else_is(monkeypatch, logged, given):
    for name, value in {**given, **KEPT}.items():
        monkeypatch.setenv(name, value)
    before = set(os.environ)
    launchers.leave_out()
    assert before - set(os.environ) == set(given)
    launchers.tell()
    launchers.tell()
    several = "WARNING" if given in (TORCHRUN, MPI) else "INFO"
    words = "a launcher's, left out of account; NUM_PROCESSES and NUM_MACHINES say how many processes train, and this program"
    assert logged == [(several, f"{', '.join(sorted(given))}: {words} starts them itself")]


def test_without_them_nothing_is_said(monkeypatch, logged):
    for name in [name for name in os.environ if name in launchers.NAMES or name.startswith(launchers.PREFIXES)]:
        monkeypatch.delenv(name)
    launchers.leave_out()
    launchers.tell()
    assert logged == []


@pytest.mark.slow
@pytest.mark.parametrize("program", ["finetune", "evaluate_model", "export", "convert_to_gguf"])
def test_every_program_that_loads_the_libraries_leaves_them_out(program, tmp_path):
    code = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
sys.stderr = sys.stdout = open({str(tmp_path / "said")!r}, "w")
from training import {program}
try:
    {program}.main(sys.argv[1:])
except SystemExit:
    pass
open({str(tmp_path / "left")!r}, "w").write(" ".join(name for name in {sorted(TORCHRUN)!r} if name in os.environ))
"""
    arguments = {
        "finetune": ["--check", "--config", "nothing.ini"],
        "evaluate_model": ["--lora-model", str(tmp_path)],
        "export": [str(tmp_path)],
        "convert_to_gguf": ["--model-path", str(tmp_path)],
    }
    subprocess.run(
        [sys.executable, "-c", code, *arguments[program]], env=os.environ | TORCHRUN, capture_output=True, timeout=120
    )
    assert (tmp_path / "left").read_text(encoding="utf-8") == ""


@pytest.mark.tiny
@pytest.mark.parametrize(("given", "several"), [(JOB, False), (TORCHRUN | ACCELERATE | MPI | SLURM, True)])
def test_a_run_trains_as_without_them(tmp_path, tiny_model, given, several):
    config = write_tiny_config(tmp_path, tiny_model)
    code = FAULTY.format(root=str(ROOT), fault=NO_EXPORT)
    done = subprocess.run(
        [sys.executable, "-c", code, "--config", str(config)],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, env=os.environ | given, timeout=600,
    )  # fmt: skip
    assert "enough" in done.stderr, done.stderr
    assert "step 6/6" in done.stderr
    told = [line for line in done.stderr.splitlines() if "left out of account" in line]
    assert len(told) == 1 and told[0].startswith("warning: ") == several
    status = json.loads((next((tmp_path / "outputs").glob("finetune_*")) / "status.json").read_text(encoding="utf-8"))
    assert status["step"] == 6


@pytest.mark.tiny
def test_check_leaves_them_out_too(tmp_path, tiny_model):
    ended = finetune("--config", write_tiny_config(tmp_path, tiny_model), "--check", **JOB)
    assert ended.code == 0 and ended.stderr.count("left out of account") == 1, ended.stderr
