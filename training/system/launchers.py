"""What a launcher or a job system says of this process in its environment.

torchrun (with it `accelerate launch`) and srun start this program several times, and give each of them its place: that is
kept here, for the training to take (`seat`). The variables themselves are taken out of the environment, for torch's
libraries would obey them in every program: they wait for others where none are. So are those of others (mpirun,
Kubernetes' PyTorchJob), who give no place: how many processes train is then said by NUM_PROCESSES and NUM_MACHINES.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

# What torchrun sets, and what accelerate and transformers read of it and of MPI's.
NAMES = frozenset(
    ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK")
    + ("GROUP_WORLD_SIZE", "ROLE_RANK", "ROLE_WORLD_SIZE", "ROLE_NAME", "MPI_LOCALRANKID", "MPI_LOCALNRANKS")
    + ("FORK_LAUNCHED",)
)
# accelerate's choose devices, precision, sharding and pickles between processes, past the settings.
PREFIXES = (
    "TORCHELASTIC_", "PMI_", "OMPI_COMM_WORLD_", "MV2_COMM_WORLD_", "ACCELERATE_", "FSDP_", "PARALLELISM_CONFIG_", "MEGATRON_LM_",
)  # fmt: skip
SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
# Names the folder in which this program's own launcher and its ranks leave each other word (distributed/launcher.py).
FOLDER = "FINETUNE_RANKS"
PORT = 29500  # torchrun's


class OnMachines:
    """Where a process stands: its rank of `size`, of which each machine has `local_size`."""

    rank: int
    size: int
    local_size: int

    @property
    def machine(self) -> int:
        """The number of its machine; machine 0 owns the run."""
        return self.rank // self.local_size

    @property
    def machines(self) -> int:
        """How many machines there are."""
        return self.size // self.local_size


@dataclass(frozen=True, kw_only=True)
class Seat(OnMachines):
    """The place of this process among those that a launcher has started."""

    rank: int
    local_rank: int
    size: int
    local_size: int
    by: str
    # Rank 0's machine, as host:port; a store of the launcher's own is `served` there.
    address: str
    served: bool
    # Tells this start from every other on this machine.
    job: str
    restart: int = 0
    # How often it starts them again at most.
    restarts: int = 0
    # Of this program's own launcher.
    folder: Path | None = None


_left_out: dict[str, str] = {}
_seat: Seat | None = None


def leave_out() -> None:
    """Take them out of the environment of this process and of those that it starts, before a library reads them."""
    global _seat
    for name in [name for name in os.environ if name in NAMES or name.startswith(PREFIXES)]:
        _left_out[name] = os.environ.pop(name)
    _seat = _seat or found({**os.environ, **_left_out})
    os.environ.pop(FOLDER, None)


def seat() -> Seat | None:
    """The place that a launcher has given this process; None where it is the only one."""
    return _seat


def found(variables: Mapping[str, str]) -> Seat | None:
    """The place that these variables give; None where they say nothing of several processes, or nothing whole."""
    try:
        here = _of_torchrun(variables) if "TORCHELASTIC_RUN_ID" in variables else _of_srun(variables)
    except (KeyError, ValueError):
        return None
    whole = here.size > 1 and here.size % here.local_size == 0 and here.local_rank == here.rank % here.local_size
    return here if whole else None


def _of_torchrun(variables: Mapping[str, str]) -> Seat:
    """docs.pytorch.org/docs/stable/elastic/run.html, "Environment Variables"."""
    folder = variables.get(FOLDER)
    restart = int(variables.get("TORCHELASTIC_RESTART_COUNT", "0"))
    port, run = variables["MASTER_PORT"], re.sub(r"\W", "", variables["TORCHELASTIC_RUN_ID"])
    return Seat(
        rank=int(variables["RANK"]),
        local_rank=int(variables["LOCAL_RANK"]),
        size=int(variables["WORLD_SIZE"]),
        local_size=int(variables["LOCAL_WORLD_SIZE"]),
        by="torchrun",
        address=f"{variables['MASTER_ADDR']}:{port}",
        served=variables.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        job=f"torchrun-{port}-{run}-{restart}",
        restart=restart,
        restarts=int(variables.get("TORCHELASTIC_MAX_RESTARTS", "0")),
        folder=Path(folder) if folder else None,
    )


def _of_srun(variables: Mapping[str, str]) -> Seat:
    """slurm.schedmd.com/srun.html, "OUTPUT ENVIRONMENT VARIABLES". Those of a step: a batch script, which starts this
    program once, has variables of the job only."""
    (each,) = {int(one) for one in re.findall(r"(\d+)(?:\(x\d+\))?(?:,|$)", variables["SLURM_STEP_TASKS_PER_NODE"])}
    first = hosts(variables["SLURM_STEP_NODELIST"])
    job = "-".join(
        variables.get(name, "0") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT", "SLURM_NODEID")
    )
    return Seat(
        rank=int(variables["SLURM_PROCID"]),
        local_rank=int(variables["SLURM_LOCALID"]),
        size=int(variables["SLURM_STEP_NUM_TASKS"]),
        local_size=each,
        by="srun",
        # Two jobs may have the same first machine.
        address=f"{first}:{PORT + 1 + int(variables.get('SLURM_JOB_ID', '0')) % 1000}",
        served=False,
        job=f"srun-{job}",
    )


def hosts(listed: str) -> str:
    """The first host of Slurm's list: node7, node[03-05,9], a1-b[2,4]-c."""
    first = re.fullmatch(r"([^,\[]+)(?:\[(\w+)[^\]]*\]([^,\[]*))?.*", listed)
    if first is None:
        raise ValueError(listed)
    return "".join(part or "" for part in first.groups())


def tell() -> None:
    """Say once in the log which there were; as a warning where a launcher means to run several of this program."""
    from loguru import logger

    names = ", ".join(sorted(_left_out))
    several = any(_left_out.get(name, "1").strip() not in ("", "0", "1") for name in SIZES)
    _left_out.clear()
    if (here := seat()) is not None:
        if here.folder is None and here.rank == 0:
            logger.info("process {} of {}, started by {}: it takes its place among them", here.rank, here.size, here.by)
        return
    if not names:
        return
    (logger.warning if several else logger.info)(
        "{}: a launcher's, left out of account; NUM_PROCESSES and NUM_MACHINES say how many processes train, and this "
        "program starts them itself",
        names,
    )
