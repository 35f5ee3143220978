"""Ranks and machines in one process, for tests that start none."""

from __future__ import annotations

from pathlib import Path

from tests.support.settings import a_settings
from training.base_model import BaseModel
from training.distributed.launcher import Ranks
from training.train import Order, Place
from training.train.meeting import Key


def an_order(run: Path, rank: int, **more: object) -> Order:
    """The order of one of two ranks, without a model and rows."""
    parts = {"train": None, "validation": None, "longest": 64, "steps": 10, "fingerprint": {"a": 1}, **more}
    base = BaseModel("a model", Path("/a model"), "folder", None, {}, 1000, None)
    return Order(place=Place(rank, rank, 2, 2, 1), settings=a_settings(DEVICE="cpu"), base=base, run=run, **parts)


def some_ranks(folder: Path, **more: object) -> Ranks:
    """Two ranks of one machine, as their launcher sees them."""
    return Ranks(folder=folder, size=2, first=0, here=2, begun=lambda path: None, **more)


class Program:
    """Stands in for a rank's process. `code`: how it has ended."""

    def __init__(self, pid: int = 1, code: int | None = None) -> None:
        self.pid, self.code = pid, code

    def poll(self) -> int | None:
        return self.code


class Store(dict):
    """Stands in for torch's store: two machines in one process."""

    def check(self, names: list[str]) -> bool:
        return all(name in self for name in names)

    def set(self, name: str, value: bytes) -> None:
        self[name] = value

    def get(self, name: str) -> bytes:
        return self[name]


def places(*secrets: bytes, processes: tuple[int, ...] = (1, 1)) -> list[Place]:
    """Two machines with a secret each."""
    both = zip(secrets, processes, strict=True)
    return [Place(n * here, 0, 2 * here, here, 1, key=Key(secret)) for n, (secret, here) in enumerate(both)]
