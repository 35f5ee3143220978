"""Training on several machines: how they find each other, and what a machine does that does not own the run.

Machine 0 owns the run. The others are given the same settings, but for MACHINE_RANK, and their own copy of model and data;
they train, keep nothing, and end with the training.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING

from loguru import logger

from training.errors import Interrupted, Lost, MachineError, RunError
from training.system import launchers
from training.train import Place, meeting, team

if TYPE_CHECKING:
    from torch.distributed import Store

# For one attempt to reach machine 0.
TRY = timedelta(seconds=5)
# Seconds that the other machines have to hear why nothing comes of the training.
HEARD = 5.0


def address(written: str) -> tuple[str, int]:
    """Host and port of MAIN_PROCESS_ADDRESS."""
    host, colon, port = written.rpartition(":") if written.rpartition(":")[2].isdigit() else (written, "", "")
    return host.strip("[]"), int(port) if colon else launchers.PORT


def serve(host: str, port: int, size: int) -> Store:
    """The store through which `size` ranks find each other, for those who reach `host`.

    Raises MachineError where the port is taken.
    """
    try:
        with socket.socket(team.family(host)) as listening:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listening.bind((host, port))
            except OSError as error:
                if error.errno != errno.EADDRNOTAVAIL:
                    raise
                # The address is that of a gateway, which passes on to this machine.
                listening.bind(("", port))
            listening.listen()
            from torch.distributed import TCPStore

            return TCPStore(  # takes the descriptor over, and closes it
                host, port, size, is_master=True, timeout=team.PATIENCE, wait_for_workers=False,
                master_listen_fd=os.dup(listening.fileno()),
            )  # fmt: skip
    except OSError as error:
        raise MachineError(
            f"[Hardware] MAIN_PROCESS_ADDRESS: nobody can be awaited at {host}:{port} here ({error.strerror}); "
            "write this machine's own address and a free port"
        ) from None


def meet(place: Place, server: Store | None, lost: Callable[[], RunError | Interrupted | None]) -> Store:
    """Wait until the processes of every machine are ready to join; gives the store.

    `server`: machine 0's, where this is it. `lost` gives an error where a process of this machine has ended. Raises
    RunError where one does not know the secret, or is not told of equally many processes.
    """
    store = server if server is not None else _reach(place, lost)
    try:
        if place.machine == 0:
            _welcome(place, store, lost)
        else:
            _introduce(place, store, lost)
        return meeting.admitted(store, place.proof, place.machine)
    except RuntimeError as error:
        logger.debug("{}", error)
        raise Lost("training", "machine 0 has ended, or the connection to it is lost; its log says more") from None
    finally:
        with suppress(RuntimeError):
            meeting.put(store, f"machine {place.machine} has heard", b"")


def _welcome(place: Place, store: Store, lost: Callable[[], RunError | Interrupted | None]) -> None:
    """Machine 0: hear every machine, and tell all whether they go together."""
    own = {"nonce": place.proof.nonce, "shape": _shape(place)}
    meeting.put(store, "machine 0", place.proof.sealed("machine 0", own))
    nonces, wrong = [place.proof.nonce], []
    for number in range(1, place.machines):
        name = f"machine {number}"
        _await(store, name, name, lost)
        told = place.proof.opened(name, store.get(name))
        if told is None or told["to"] != place.proof.nonce:
            wrong.append(f"{name} {meeting.OTHER_SECRET}")
        elif told["shape"] != _shape(place):
            same = "NUM_MACHINES and NUM_PROCESSES must be the same on all"
            wrong.append(f"{name} is set to {told['shape']}, machine 0 to {_shape(place)}: {same}")
        nonces.append(told["nonce"] if told else "")
    meeting.put(store, "go", place.proof.sealed("go", {"nonces": nonces, "wrong": "; ".join(wrong)}))
    if wrong:
        _until_heard(place, store)


def _introduce(place: Place, store: Store, lost: Callable[[], RunError | Interrupted | None]) -> None:
    """Another machine: answer machine 0, and wait until it has heard all."""
    name = f"machine {place.machine}"
    _await(store, "machine 0", "machine 0", lost)
    told = place.proof.opened("machine 0", store.get("machine 0"))
    answer = {"nonce": place.proof.nonce, "shape": _shape(place), "to": told and told["nonce"]}
    meeting.put(store, name, place.proof.sealed(name, answer))
    if told is None:
        raise RunError("training", f"machine 0 {meeting.OTHER_SECRET}")
    _await(store, "go", "the other machines", lost)


def _await(store: Store, name: str, whom: str, lost: Callable[[], RunError | Interrupted | None]) -> None:
    if not store.check([name]):
        logger.info("waiting for {}", whom)
    while not store.check([name]):
        _pause(lost)


def _until_heard(place: Place, store: Store) -> None:
    """Let the others hear why nothing comes of it, before the store ends with this process."""
    names = [f"machine {number} has heard" for number in range(1, place.machines)]
    end = time.monotonic() + HEARD
    while not store.check(names) and time.monotonic() < end:
        time.sleep(0.05)


def _shape(place: Place) -> str:
    return f"{place.machines} machines with {place.local_size} processes each"


def _reach(place: Place, lost: Callable[[], RunError | Interrupted | None]) -> Store:
    from torch.distributed import DistError, TCPStore

    waiting = busy = False
    while True:
        try:
            # A store that finds nobody writes pages about it.
            socket.create_connection((place.address, place.port), TRY.total_seconds()).close()
            store = TCPStore(place.address, place.port, is_master=False, timeout=TRY)
        except (OSError, DistError):
            if not waiting:
                logger.info("waiting for machine 0 at {}:{}", place.address, place.port)
            waiting = True
            _pause(lost)
        else:
            store.set_timeout(team.PATIENCE)
            # Of a training that all have begun: one that is ending, where machines are started again.
            if not store.check(["go"]):
                return store
            if not busy:
                logger.info("machine 0 at {}:{} is in a training; waiting for its end", place.address, place.port)
            busy = True
            _pause(lost)


def _pause(lost: Callable[[], RunError | Interrupted | None]) -> None:
    time.sleep(0.2)
    if error := lost():
        raise error
