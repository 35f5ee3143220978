"""What a launcher or a job system says of processes: torchrun and srun give a place, the rest is left out of account, and said."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from tests.support import adopted, small
from tests.support.faults import FAULTY, NO_EXPORT
from tests.support.paths import ROOT
from tests.support.programs import finetune
from tests.support.tiny import write_tiny_config
from training.system import launchers, log

# Its runs need no real vocabulary.
tiny_model = small.tiny_model

# As they stand in a pod of Kubernetes' PyTorchJob with one worker, under torchrun, accelerate launch and mpirun.
JOB = {"WORLD_SIZE": "1", "RANK": "0", "MASTER_ADDR": "job-master-0", "MASTER_PORT": "23456"}
TORCHRUN = {
    "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0", "ROLE_RANK": "1",
    "ROLE_NAME": "default", "MASTER_ADDR": "10.255.255.1", "MASTER_PORT": "29500", "TORCHELASTIC_RUN_ID": "none",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
}  # fmt: skip
# Of a training without torchrun, in which each process is told of the others by hand.
BY_HAND = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "10.255.255.1", "MASTER_PORT": "29500"}
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
# As they stand in a batch script, which is one process.
SLURM = {"SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_JOB_ID": "7"}
SRUN = {
    **SLURM, "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NODEID": "1", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)", "SLURM_STEP_NODELIST": "node[03-04]",
}  # fmt: skip
KEPT = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "NCCL_DEBUG": "WARN", **SLURM}


@pytest.fixture
def logged(monkeypatch):
    """The lines that are logged, as (level, message)."""
    lines: list[tuple[str, str]] = []
    logger = log.logger
    number = logger.add(lambda line: lines.append((line.record["level"].name, line.record["message"])))
    monkeypatch.setattr(launchers, "_left_out", {})
    monkeypatch.setattr(launchers, "_seat", None)
    yield lines
    logger.remove(number)


@pytest.mark.parametrize("given", [JOB, BY_HAND, ACCELERATE, MPI])
def test_they_are_taken_out_of_the_environment_and_nothing_else_is(monkeypatch, logged, given):
    for name, value in {**given, **KEPT}.items():
        monkeypatch.setenv(name, value)
    before = set(os.environ)
    launchers.leave_out()
    assert before - set(os.environ) == set(given)
    assert launchers.seat() is None
    launchers.tell()
    launchers.tell()
    several = "WARNING" if given in (BY_HAND, MPI) else "INFO"
    words = "a launcher's, left out of account; NUM_PROCESSES and NUM_MACHINES say how many processes train, and this program"
    assert logged == [(several, f"{', '.join(sorted(given))}: {words} starts them itself")]


@pytest.mark.parametrize(
    ("given", "place", "address"),
    [
        (TORCHRUN, (1, 1, 2, 2, 0, 1), "10.255.255.1:29500"),
        (TORCHRUN | ACCELERATE | SRUN, (1, 1, 2, 2, 0, 1), "10.255.255.1:29500"),
        (SRUN, (3, 1, 4, 2, 1, 2), "node03:29508"),
    ],
)
def test_torchrun_accelerate_and_srun_give_a_place_that_is_taken_and_said_once(
    monkeypatch, logged, given, place, address
):
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    launchers.leave_out()
    launchers.leave_out()
    seat = launchers.seat()
    assert (seat.rank, seat.local_rank, seat.size, seat.local_size, seat.machine, seat.machines) == place
    assert seat.address == address and seat.folder is None
    assert not [name for name in TORCHRUN if name in os.environ], "torch's libraries would obey them everywhere"
    launchers.tell()
    assert logged == [], "the first one says it"
    monkeypatch.setattr(launchers, "_seat", replace(seat, rank=0))
    launchers.tell()
    assert logged == [("INFO", f"process 0 of {seat.size}, started by {seat.by}: it takes its place among them")]


@pytest.mark.parametrize(
    "given",
    [
        {},
        SLURM,
        {**TORCHRUN, "WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"},
        {**TORCHRUN, "RANK": "one"},
        {**TORCHRUN, "WORLD_SIZE": "3"},
        {**SRUN, "SLURM_STEP_TASKS_PER_NODE": "2,1"},
        {**SRUN, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},
    ],
)
def test_what_gives_no_whole_place_gives_none(given):
    assert launchers.found(given) is None


@pytest.mark.parametrize(
    ("listed", "first"),
    [("node7", "node7"), ("a,b", "a"), ("node[03-05,9],x", "node03"), ("a1-b[2,4]-c", "a1-b2-c"), ("gpu-1", "gpu-1")],
)
def test_the_first_machine_of_slurms_list_is_read(listed, first):
    assert launchers.hosts(listed) == first


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
@pytest.mark.parametrize(("given", "several"), [(JOB, False), (BY_HAND | ACCELERATE | MPI | SLURM, True)])
def test_a_run_trains_as_without_them(tmp_path, tiny_model, given, several):
    config = write_tiny_config(tmp_path, tiny_model)
    code = FAULTY.format(root=str(ROOT), fault=NO_EXPORT)
    done = adopted.run([sys.executable, "-c", code, "--config", str(config)], env=os.environ | given)
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
