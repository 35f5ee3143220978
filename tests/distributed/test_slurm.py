"""A real cluster of two nodes on this machine, by Slurm's own programs, that runs examples/slurm/finetune.sbatch."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
import pytest

from tests.support.paths import ROOT
from tests.support.programs import wait_for_step
from tests.support.ranks import started
from tests.support.runs import losses
from tests.support.tiny import write_tiny_config

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "munged")
MISSING = [name for name in PROGRAMS if shutil.which(name) is None]
pytestmark = [
    pytest.mark.tiny,
    pytest.mark.skipif(bool(MISSING), reason=f"no Slurm here: {', '.join(MISSING)}"),
    pytest.mark.skipif(os.getuid() != 0, reason="Slurm's programs start as root only"),
]
CONF = """
ClusterName=two
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
KillWait=60
SlurmdTimeout=10
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs={cores}
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs={cores}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class Cluster:
    """Two nodes; each command is asked of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}

    def ask(self, *command: str | Path, **more: str) -> str:
        done = subprocess.run(
            [*map(str, command)], env={**self.environment, **more}, capture_output=True, text=True, timeout=60, cwd=ROOT
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def job(self, number: str) -> dict[str, str]:
        """What Slurm says of a job."""
        return dict(re.findall(r"(\w+)=(\S+)", self.ask("scontrol", "show", "job", number)))

    def hasten(self, job: str) -> None:
        """A job that waits is to begin now, where it has not by itself since somebody looked."""
        command = ["scontrol", "update", f"JobId={job}", "StartTime=now"]
        subprocess.run(command, env=self.environment, capture_output=True, timeout=60)

    def lose_second_node(self, job: str) -> None:
        """Node 2 is gone, with all that was at work there for a job."""
        os.kill(int((self.folder / "slurmd.n2.pid").read_text(encoding="utf-8")), signal.SIGKILL)
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                own = process.environ()
                ours = own.get("SLURM_CONF") == self.environment["SLURM_CONF"] and own.get("SLURM_JOB_ID") == job
                if ours and own.get("SLURM_NODEID") == "1" and "SLURM_PROCID" in own:
                    for above in process.parents():
                        if above.name() == "slurmstepd":
                            above.kill()
                    process.kill()


def free_ports(count: int) -> list[int]:
    with ExitStack() as kept:
        open_ones = [kept.enter_context(socket.socket()) for _ in range(count)]
        for one in open_ones:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in open_ones]


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    # The socket's path must be short.
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    found = Cluster(folder)
    cores = len(os.sched_getaffinity(0))
    text = CONF.format(folder=folder, host=socket.gethostname(), ports=free_ports(3), cores=cores)
    (folder / "slurm.conf").write_text(text, encoding="utf-8")
    for name in ("state", "spool.n1", "spool.n2"):
        (folder / name).mkdir()
    (folder / "key").write_bytes(os.urandom(128))
    (folder / "key").chmod(0o600)
    own = {name: f"--{name}={folder}/{name}" for name in ("key-file", "socket", "pid-file", "log-file", "seed-file")}
    own |= {"key-file": f"--key-file={folder}/key", "socket": f"--socket={folder}/munge"}
    try:
        found.ask("munged", "--force", *own.values())
        found.ask("slurmctld")
        for node in ("n1", "n2"):
            found.ask("slurmd", "-N", node)
        end = time.monotonic() + 60
        while found.ask("sinfo", "-h", "-t", "idle", "-o", "%D").strip() != "2":
            assert time.monotonic() < end, (folder / "slurmctld.log").read_text(encoding="utf-8")
            time.sleep(0.2)
        yield found
    finally:
        for name in ("slurmd.n1.pid", "slurmd.n2.pid", "slurmctld.pid", "pid-file"):
            with suppress(OSError, ValueError):
                os.kill(int((folder / name).read_text(encoding="utf-8")), signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


def test_a_job_on_two_nodes_that_is_preempted_and_loses_a_node_and_its_first_process_waits_again_each_time_and_goes_on_to_its_end(
    cluster, tmp_path, tiny_model
):
    config = write_tiny_config(tmp_path, tiny_model)
    (port,) = free_ports(1)
    text = (
        config.read_text(encoding="utf-8")
        .replace("BATCH_SIZE = 2", "BATCH_SIZE = 1")
        .replace("STEPS = 6", "STEPS = 200")
    )
    here = f"[Hardware]\nMAIN_PROCESS_ADDRESS = 127.0.0.1:{port}\n"
    config.write_text(text.replace("[Hardware]\n", here), encoding="utf-8")
    out = tmp_path / "job.out"
    told = cluster.ask(
        "sbatch", "--ntasks-per-node=1", "--gpus-per-node=0", "--cpus-per-task=1", f"--output={out}",
        "examples/slurm/finetune.sbatch", config,
        FINETUNE_SECRET_FILE=str(tmp_path / "secret"), FINETUNE_OUTPUT=str(tmp_path / "outputs"),
    )  # fmt: skip
    number = told.split()[-1]

    class Job:
        """Stands in for a process: it lives as long as Slurm says so."""

        def poll(self) -> int | None:
            return None if cluster.job(number)["JobState"] in ("PENDING", "RUNNING") else 1

        def communicate(self) -> tuple[str, str]:
            return "", out.read_text(encoding="utf-8")

    run = wait_for_step(tmp_path / "outputs", 2, Job())
    hurts = [
        # As the kernel does where memory runs out: it can write nothing more.
        lambda: os.kill(started(run), signal.SIGKILL),
        lambda: cluster.ask("scancel", "--signal=TERM", number),
        lambda: cluster.lose_second_node(number),
    ]
    end, stopped, before, away = time.monotonic() + 500, 0, -1, False
    while (job := cluster.job(number))["JobState"] not in ("COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL"):
        restarts = int(job["Restarts"])
        if hurts and restarts > before and job["JobState"] == "RUNNING" and max(losses(run)) > stopped + 2:
            hurts.pop(0)()
            before, stopped, away = restarts, max(losses(run)), not hurts
        elif away and restarts > before:
            cluster.ask("slurmd", "-N", "n2")
            away = False
        if job["JobState"] == "PENDING" and restarts:
            # Slurm lets a job that it has put back wait for two minutes; within a second its nodes would still refuse it.
            time.sleep(3)
            cluster.hasten(number)
        assert time.monotonic() < end, out.read_text(encoding="utf-8")
        time.sleep(1)
    said = out.read_text(encoding="utf-8")
    controller = (cluster.folder / "slurmctld.log").read_text(encoding="utf-8")
    assert job["JobState"] == "COMPLETED" and not hurts and not away, f"{job}\n{said}\n{controller}"
    # Of what Slurm sends to one start the next may get something, where it comes so soon: then there is one more.
    assert int(job["Restarts"]) >= 3 and said.count("the job waits in the queue again") >= 2, said
    assert "started by srun: it takes its place among them" in said and "in 2 processes" in said, said
    assert "going on from the checkpoint of step" in said and "machine 0 has the adapter" in said, said
    assert (tmp_path / "secret").stat().st_mode & 0o077 == 0
    assert (run / "report.json").is_file()
    assert sorted(losses(run)) == list(range(1, 201))
