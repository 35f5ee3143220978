"""What the processes of one training say to each other: its ranks, over torch.distributed.

Each rank holds the whole model and trains a share of the rows of every optimizer step (data parallelism). The trainer
knows of the ranks from torchrun's environment, and deals the rows out. The gradients are added up here and not by
DistributedDataParallel, which does that only for losses that come out of its own forward pass: the fast path for CPUs
has another. A LoRA adapter is small, so one sum at the end of a step costs next to nothing.

Two things keep the ranks together. What only one of them can know (a signal, a file on the disk) is taken from rank 0.
And trouble of one is told to all before anybody waits for its gradients: see `round`.
"""

from __future__ import annotations

import functools
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from training.settings import Settings
from training.system import launchers, this_machine, wire
from training.train import link, meeting
from training.train.meeting import Key

if TYPE_CHECKING:
    import torch
    from torch.distributed import Store
    from transformers import Trainer

    Batch = dict[str, torch.Tensor]

LOOPBACK = "127.0.0.1"
# A rank may be alone at work for a long time (rank 0 asks sample questions, or writes to a slow disk), and one that dies
# is noticed by other means (distributed/crew.py, and the connection that closes): so long until a rank that does
# neither is given up.
PATIENCE = timedelta(hours=2)
# Seconds in which ranks that are all ready have connected to each other.
JOINING = 300.0
BACKENDS = {"cpu": "gloo", "cuda": "nccl", "xpu": "xccl"}
# Said in a round instead of a value.
NO_MEMORY, NOT_FINITE = -1, -2

# What one rank tells the others.
Told = TypeVar("Told")


@dataclass(frozen=True)
class Place(launchers.OnMachines):
    """Where a process stands among all: its rank, and where the ranks find each other: on one machine through a file, on
    several through machine 0's server, to which they prove themselves with a key."""

    rank: int
    local_rank: int
    size: int
    local_size: int
    port: int = 0
    address: str = LOOPBACK
    file: Path | None = None
    key: Key | None = None

    @property
    def proof(self) -> Key:
        """What it proves itself with to other machines."""
        if self.key is None:
            raise LookupError("the ranks of one machine need no key")
        return self.key

    def environment(self, threads: int) -> dict[str, str]:
        """The variables that torchrun sets (docs.pytorch.org/docs/stable/elastic/run.html, "Environment Variables").

        Without OMP_NUM_THREADS accelerate would choose the number of threads by itself.
        """
        return {
            "RANK": str(self.rank),
            "LOCAL_RANK": str(self.local_rank),
            "WORLD_SIZE": str(self.size),
            "LOCAL_WORLD_SIZE": str(self.local_size),
            "MASTER_ADDR": self.address,
            "MASTER_PORT": str(self.port),
            "OMP_NUM_THREADS": str(threads),
        }


# Of the process that trains by itself.
ALONE = Place(rank=0, local_rank=0, size=1, local_size=1)


class Trouble(Exception):
    """A rank has said in a round that it cannot go on; every rank raises this. `code`: NO_MEMORY or NOT_FINITE."""

    def __init__(self, code: int, rank: int) -> None:
        self.code, self.rank = code, rank
        super().__init__(f"process {rank} has {'run out of memory' if code == NO_MEMORY else 'no finite loss'}")


class Team:
    """The ranks that train together, as one of them sees it. Every method must be called by all of them, in one order."""

    place: Place
    rank: int
    size: int

    def __init__(self, place: Place) -> None:
        import torch.distributed as dist

        self.place, self.rank, self.size = place, place.rank, place.size
        # For small things, never on a card.
        self._talk = dist.new_group(backend="gloo", timeout=PATIENCE)

    def round(self, value: int) -> list[int]:
        """Every rank says a number, and hears those of all, by rank. Raises Trouble where one of them says NO_MEMORY
        or NOT_FINITE: also in a rank that asks for something else at that moment, for it has got further."""
        import torch
        import torch.distributed as dist

        # Also of a bool: all say as many bytes.
        mine = torch.tensor([value], dtype=torch.int64)
        heard = [torch.zeros_like(mine) for _ in range(self.size)]
        dist.all_gather(heard, mine, group=self._talk)
        values = [int(one) for one in heard]
        if min(values) < 0:
            raise Trouble(min(values), values.index(min(values)))
        return values

    def first(self, ask: Callable[[], Told]) -> Told:
        """What `ask` returns in rank 0, where alone it is called: what wire.encode takes."""
        import torch.distributed as dist

        message = wire.encode(ask()) if self.rank == 0 else b""
        told = _tensor(message, wire.length(self.round(len(message))[0]))
        dist.broadcast(told, src=0, group=self._talk)
        answer: Told = wire.decode(_bytes(told))
        return answer

    def gather(self, value: object) -> list[object]:
        """In rank 0 the values of all ranks, each what wire.encode takes; nothing in the others."""
        import torch
        import torch.distributed as dist

        message = wire.encode(value)
        lengths = [wire.length(one) for one in self.round(len(message))]
        mine = _tensor(message, max(lengths))
        heard = [torch.zeros_like(mine) for _ in range(self.size)] if self.rank == 0 else None
        dist.gather(mine, heard, dst=0, group=self._talk)
        if heard is None:
            return []
        return [wire.decode(_bytes(one[:length])) for one, length in zip(heard, lengths, strict=True)]

    def sums(self, values: Sequence[float]) -> list[float]:
        """Each of the values added up over the ranks; the same floats in all of them."""
        import torch
        import torch.distributed as dist

        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total, group=self._talk)
        return [float(one) for one in total]

    def gradients(self, parameters: Iterable[torch.nn.Parameter]) -> torch.Tensor | None:
        """Those of the trained parameters in one row, and behind them of which there are any: what the ranks add up.

        It is put together before they wait for each other, so that nobody comes late to the sum, nor runs out of memory there.
        """
        import torch

        trained = [p for p in parameters if p.requires_grad]
        there = torch.tensor([float(p.grad is not None) for p in trained], device=trained[0].device)
        parts = [p.grad if p.grad is not None else torch.zeros_like(p) for p in trained]
        return torch.cat([*(part.detach().float().flatten() for part in parts), there])

    def mean_gradients(self, parameters: Iterable[torch.nn.Parameter], flat: torch.Tensor | None) -> float:
        """Put the mean over the ranks into the gradient of each trained parameter; the seconds that the sum took. `flat`: what
        `gradients` gave in each of them.

        A rank where one has no gradient (an expert that no token of its rows went to) counts as zero; where none has
        one it stays without, for the optimizer to pass over.
        """
        import torch.distributed as dist

        if flat is None:
            return 0.0
        trained = [p for p in parameters if p.requires_grad]
        began = link.moment(flat.device)
        dist.all_reduce(flat)
        ended = link.moment(flat.device)
        *means, there = flat.split([*(p.numel() for p in trained), len(trained)])
        for parameter, mean, ranks in zip(trained, means, there.tolist(), strict=True):
            if ranks:
                mean = (mean / self.size).view_as(parameter)
                parameter.grad = mean.to(parameter.dtype) if parameter.grad is None else parameter.grad.copy_(mean)
        # A card has done it by now: its flags were read.
        return link.between(began, ended)

    def own(self, inputs: Batch, rows: int, micro: int) -> tuple[Batch, int]:
        """An epoch's last batch of `rows` rows without those that only fill it up, and how many are left; one stays in
        any case."""
        own = own_rows(rows, micro, self.rank, self.size)
        return without_filling(inputs, max(1, own)), own

    def lead(self, trainer: Trainer) -> None:
        """Take from the trainer what it does itself where there are several processes."""
        accelerator = trainer.accelerator
        # No DistributedDataParallel around the model, and no figures of TRL's own that the ranks would have to wait for
        # within a step: one of them may be out of memory by then.
        accelerator.prepare_model = functools.partial(accelerator.prepare_model, evaluation_mode=True)
        accelerator.gather_for_metrics = trainer.gather_function = lambda value, *args, **kwargs: value


class Alone(Team):
    """A team of one: the process that trains by itself. Nothing is started for it, and it waits for nobody."""

    def __init__(self) -> None:
        self.place, self.rank, self.size = ALONE, 0, 1

    def round(self, value: int) -> list[int]:
        if value < 0:
            raise Trouble(value, 0)
        return [int(value)]

    def first(self, ask: Callable[[], Told]) -> Told:
        return ask()

    def gather(self, value: object) -> list[object]:
        return [value]

    def sums(self, values: Sequence[float]) -> list[float]:
        return list(values)

    def gradients(self, parameters: Iterable[torch.nn.Parameter]) -> torch.Tensor | None:
        return None

    def own(self, inputs: Batch, rows: int, micro: int) -> tuple[Batch, int]:
        return inputs, micro

    def lead(self, trainer: Trainer) -> None:
        """The trainer knows how one process trains."""


def _tensor(message: bytes, size: int) -> torch.Tensor:
    """A message as a tensor of `size` bytes; what is left of it is zero."""
    import torch

    return torch.frombuffer(bytearray(message.ljust(size, b"\0")) or bytearray(1), dtype=torch.uint8)[:size]


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.numpy().tobytes()


def own_rows(rows: int, micro: int, rank: int, size: int) -> int:
    """How many rows of a rank's last batch of an epoch are its own; the rest fill it up, from the epoch's beginning.

    accelerate deals the batches of `micro` rows out in turn, and fills up until each rank has equally many of equal size.
    """
    before = (rows - 1) // (micro * size) * micro * size  # in the turns that all ranks have whole
    return min(micro, max(0, rows - before - rank * micro))


def without_filling(inputs: Batch, own: int) -> Batch:
    """A micro-batch with its first `own` rows (at least 1): padded rows, or rows joined in one with position_ids."""
    if "attention_mask" in inputs:
        return {name: value[:own] for name, value in inputs.items()}
    starts = (inputs["position_ids"].flatten() == 0).nonzero().flatten().tolist()
    end = [*starts, inputs["input_ids"].numel()][own]
    return {name: value[:, :end] for name, value in inputs.items()}


def interface(address: str) -> str:
    """The network interface by which this machine reaches an address. Left to itself gloo takes the one that the host's
    name stands for, which on many systems is the loopback."""
    import psutil

    with socket.socket(family(address), socket.SOCK_DGRAM) as way:
        way.connect((address, 9))  # sends nothing
        own = way.getsockname()[0]
    known = psutil.net_if_addrs()
    return next(
        (name for name, all_of in known.items() if any(one.address.partition("%")[0] == own for one in all_of)), "lo"
    )


def family(address: str) -> socket.AddressFamily:
    """IPv4, or IPv6 where the host has no other."""
    families = [one[0] for one in socket.getaddrinfo(address, None)]
    return socket.AF_INET if socket.AF_INET in families else families[0]


def _store(place: Place) -> Store:
    """What tells the ranks each other's addresses."""
    import torch.distributed as dist

    if place.file is not None:
        return dist.FileStore(str(place.file), place.size)
    server = dist.TCPStore(place.address, place.port, is_master=False, timeout=PATIENCE)
    return meeting.admitted(server, place.proof, place.machine)


@contextmanager
def _in_time(late: Callable[[], None] | None) -> Iterator[None]:
    """Call `late` where this block takes longer than JOINING."""
    clock = threading.Timer(JOINING, late or (lambda: None))
    clock.daemon = True
    clock.start()
    try:
        yield
    finally:
        clock.cancel()


@contextmanager
def joined(
    place: Place, settings: Settings, server: Store | None = None, late: Callable[[], None] | None = None
) -> Iterator[Team]:
    """This process as one of the ranks, all of which must get here.

    `server`: the store of several machines, where this process has it already. `late` is called where the others, who are
    ready, do not come within JOINING.
    """
    if place.size == 1:
        yield Alone()
        return
    import torch.distributed as dist
    from accelerate.state import AcceleratorState

    # accelerate's debugging compares shapes in pickles.
    way = {"ACCELERATE_DEBUG_MODE": "false"}
    # On one machine nobody outside is to connect.
    way["GLOO_SOCKET_IFNAME"] = interface(place.address)
    # accelerate would say cpu:0, to which torch.load puts nothing back.
    if settings.hardware.device == "cpu":
        way["ACCELERATE_TORCH_DEVICE"] = "cpu"
    with this_machine.variables({**place.environment(int(settings.hardware.num_threads)), **way}):
        with _in_time(late):
            store = server or _store(place)
            dist.init_process_group(
                BACKENDS[settings.hardware.device.partition(":")[0]],
                store=store, rank=place.rank, world_size=place.size, timeout=PATIENCE,
            )  # fmt: skip
            team = Team(place)
        try:
            yield team
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)
            dist.destroy_process_group()
