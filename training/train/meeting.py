"""Where the ranks of a training find each other, out of reach of others.

torch's store has no lock: whoever can write to it sends ranks to where he likes. On one machine it is a file in a folder
of this user alone. On several it is machine 0's TCPStore, to which everybody on the network can speak: there, each value
carries a seal that nobody can make who does not know the machines' secret, and each machine proves first that it does.
What torch then sends from address to address is not sealed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import json
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.errors import MachineError, RunError
from training.system import temporary
from training.system.shared_secret import SECRET

if TYPE_CHECKING:
    from torch.distributed import Store

SEAL = hashlib.sha256().digest_size
OTHER_SECRET = (
    f"does not prove that it knows the secret of this machine: {SECRET} must be the same on all, and nobody else may "
    "reach this port"
)


# ---- one machine ----------------------------------------------------------------------------------------------------


@contextmanager
def private_folder(what: str = "ranks") -> Iterator[Path]:
    """A folder through which the ranks of one machine find each other, that nobody but this user can enter."""
    advice = "set TMPDIR to a folder on a local disk that can be written"
    with contextlib.ExitStack() as kept:
        try:
            folder = kept.enter_context(temporary.folder(what))
        except OSError as error:
            raise MachineError(f"no temporary folder can be made ({error.strerror or error}); {advice}") from None
        if stat.S_IMODE(folder.stat().st_mode) & 0o077:
            raise MachineError(f"{folder}: this file system lets other users in; {advice}")
        try:
            with (folder / "lock").open("wb") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            reason = error.strerror or error
            raise MachineError(f"{folder}: a file in it cannot be locked ({reason}); {advice}") from None
        yield folder


def folder_of(what: str) -> Path | None:
    """The folder that another process of this user has made with `private_folder`, and holds; None before it has."""
    for path in Path(tempfile.gettempdir()).glob(f"{temporary.NAME}{what}-*{temporary.END}"):
        with suppress(OSError):
            found = path.lstat()
            own = (
                stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not stat.S_IMODE(found.st_mode) & 0o077
            )
            if own and (path / "lock").exists() and temporary.held(path):
                return path
    return None


# ---- several machines -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Key:
    """What a machine proves itself with: the secret, and a number that it has used for no other training."""

    secret: bytes = field(repr=False)
    nonce: str = field(default_factory=lambda: secrets.token_hex(16))

    def sealed(self, name: str, value: object) -> bytes:
        """A value for the store, under the seal of all machines."""
        return seal(self.secret, name, json.dumps(value).encode())

    def opened(self, name: str, content: bytes) -> dict[str, Any] | None:
        """What one of the machines wrote there; None where it was somebody else."""
        value = opened(self.secret, name, content)
        told: dict[str, Any] | None = None if value is None else json.loads(value)
        return told


def seal(key: bytes, name: str, value: bytes) -> bytes:
    """A value with the seal that it was written under this name by somebody who has the key."""
    return hmac.digest(key, name.encode() + b"\0" + value, "sha256") + value


def opened(key: bytes, name: str, sealed: bytes) -> bytes | None:
    """The value; None where the seal is not its own."""
    value = sealed[SEAL:]
    return value if hmac.compare_digest(seal(key, name, value), sealed) else None


def put(store: Store, name: str, value: bytes) -> None:
    """Write a value to a store."""
    store.set(name, value)  # type: ignore[arg-type]  # torch takes bytes too, and does not say so


def admitted(store: Store, key: Key, machine: int) -> Store:
    """machine 0's store, sealed, once machine 0 has said that all machines are there. Raises RunError where that was said
    to others than us, or where the machines differ."""
    said = store.get("go")
    go = key.opened("go", said)
    if go is None or go["nonces"][machine : machine + 1] != [key.nonce]:
        raise RunError("training", f"machine 0 {OTHER_SECRET}")
    if go["wrong"]:
        raise RunError("training", go["wrong"])
    return sealed(store, hmac.digest(key.secret, b"session\0" + said, "sha256"))


def sealed(store: Store, key: bytes) -> Store:
    """A store whose values nobody can put in place who has not the key."""
    import torch.distributed as dist

    class Sealed(dist.Store):
        def set(self, name: str, value: str | bytes) -> None:
            put(store, name, seal(key, name, value.encode() if isinstance(value, str) else value))

        def get(self, name: str) -> bytes:
            value = opened(key, name, store.get(name))
            if value is None:
                raise RunError("training", f"where the machines meet, somebody else has written to {name!r}")
            return value

        def wait(self, names: list[str], *timeout: timedelta) -> None:
            store.wait(names, *timeout)

        def check(self, names: list[str]) -> bool:
            return store.check(names)

        def add(self, name: str, amount: int) -> int:
            return store.add(name, amount)

        def delete_key(self, name: str) -> bool:
            return store.delete_key(name)

        def clone(self) -> Store:
            return self

    return Sealed()
