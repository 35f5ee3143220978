"""What a command asks for where a training has several processes: to start them, or to be one of them."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from training.control import resume
from training.distributed import notes
from training.errors import FinetuneError
from training.settings import Override, load
from training.settings.command_line import Arguments
from training.settings.table import Hardware
from training.system.launchers import Seat


def to_launch(arguments: Arguments) -> Hardware | None:
    """What says how many processes are to be started, where it is more than this one. Settings with mistakes are told by
    whoever goes on."""
    try:
        old = resume.to_resume(arguments)
        if old is not None and old.stage("train") is not None:
            return None
        settings = resume.settings_of(old, arguments) if old else load(arguments.config, arguments.overrides)
    except (FinetuneError, OSError):
        return None
    return settings.hardware if settings.processes > 1 else None


def seated(seat: Seat, arguments: Arguments) -> Arguments:
    """What the command line asks for in a process that a launcher has started: that says how many there are."""
    if seat.folder is not None:
        return arguments
    says = {"NUM_PROCESSES": seat.local_size, "NUM_MACHINES": seat.machines, "MACHINE_RANK": seat.machine}
    own = None
    with suppress(FinetuneError):
        own = load(arguments.config, arguments.overrides, check_files=False).hardware.main_process_address
    # Where the launcher serves a store, nobody else does; else an address that was written is the better one.
    address = {} if own and not seat.served else {"MAIN_PROCESS_ADDRESS": seat.address}
    told = [Override("Hardware", key, str(value), seat.by) for key, value in {**says, **address}.items()]
    return replace(arguments, overrides=(*arguments.overrides, *told))


def again(seat: Seat, arguments: Arguments) -> Arguments:
    """What is to be done where all processes were started again: the run that they had begun goes on."""
    path = notes.run(seat.folder) if seat.folder is not None and seat.restart else None
    if path is None:
        return arguments
    # It has the rest of what was typed, and has chosen since.
    address = tuple(one for one in arguments.overrides if f"{one.section}.{one.key}" == resume.ADDRESS)
    return replace(arguments, command="resume", runs=(path,), overrides=address)
