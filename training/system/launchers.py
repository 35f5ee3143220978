"""Variables of a launcher or a job system (torchrun, mpirun, accelerate launch, Kubernetes' PyTorchJob), left out of account.

They say that a process is one of several, and torch's libraries obey: they wait for others where none are. How many
processes train is said by NUM_PROCESSES and NUM_MACHINES here; this program starts them, and tells each its place.
"""

from __future__ import annotations

import os

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

_left_out: dict[str, str] = {}


def leave_out() -> None:
    """Take them out of the environment of this process and of those that it starts, before a library reads them."""
    for name in [name for name in os.environ if name in NAMES or name.startswith(PREFIXES)]:
        _left_out[name] = os.environ.pop(name)


def tell() -> None:
    """Say once in the log which there were; as a warning where a launcher means to run several of this program."""
    from loguru import logger

    if not _left_out:
        return
    several = any(_left_out.get(name, "1").strip() not in ("", "0", "1") for name in SIZES)
    (logger.warning if several else logger.info)(
        "{}: a launcher's, left out of account; NUM_PROCESSES and NUM_MACHINES say how many processes train, and this "
        "program starts them itself",
        ", ".join(sorted(_left_out)),
    )
    _left_out.clear()
