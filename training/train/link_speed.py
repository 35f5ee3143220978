"""How fast the line between the processes is, measured once when they have met, with numbers of the kind that they exchange
in every step: before the training it says what is to come, and after it what came is held against that."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from training.system.wording import size
from training.train import link
from training.train.team import Team

if TYPE_CHECKING:
    import torch

# Numbers of a small exchange and of the largest; it is to take LONGEST seconds at most.
FEW, MANY = 1 << 16, 1 << 22
LONGEST = 1.0
# Each is made so often, or until so many seconds have gone.
TIMES, ENOUGH = 8, 0.5
# Seconds at work before each, as before the exchange of a step: who was at work waits longer for a core that others want, too.
WORK = 0.02


def looked_at(team: Team, numbers: int, device: torch.device, written: float | None) -> tuple[link.Line, str]:
    """The line over which so many numbers go in each step, and what is to be said of it. Every rank calls it. `written`:
    LINK_GBPS, which counts where it is given; measured it is all the same."""
    line = link.Line(bytes=link.in_a_ring(numbers, team.size))
    if team.size == 1:
        return line, ""
    measured = _measured(team, numbers, device)
    line.speed = link.Speed(written or measured.gbps, measured.delay)
    beside = f" (LINK_GBPS = {written:g})" if written else ""
    took = link.short(measured.seconds(line.bytes))
    words = f"{link.speed(measured.gbps)} measured{beside}{measured.way()}; {size(line.bytes)} of gradients a step take {took}"
    return line, f"between the processes: {words}"


def _measured(team: Team, numbers: int, device: torch.device) -> link.Speed:
    """The line by rank 0's clock: the same in all ranks, for all must measure as often."""
    import torch
    import torch.distributed as dist

    matrix = torch.ones(256, 256) if device.type == "cpu" else None

    def took(count: int) -> float:
        flat, end = torch.zeros(count, device=device), time.perf_counter() + WORK
        while matrix is not None and time.perf_counter() < end:
            torch.mm(matrix, matrix)
        # Else it would be counted how much later another one comes.
        team.round(0)
        began = link.moment(device)
        dist.all_reduce(flat)
        ended = link.moment(device)
        return float(team.first(lambda: link.between(began, ended)))

    # The first exchange connects.
    took(1)
    return fitted(took, numbers, team.size)


def fitted(took: Callable[[int], float], numbers: int, processes: int) -> link.Speed:
    """The line by exchanges of next to nothing and of as many of so many numbers as there is time for. `took`: has one made, and
    gives its seconds."""

    def mean(count: int) -> float:
        every = [took(count)]
        while len(every) < TIMES and sum(every) < ENOUGH:
            every.append(took(count))
        return sum(every) / len(every)

    delay, count = mean(1), min(numbers, FEW)
    whole = mean(count)
    # On some lines many numbers take no longer than few: one comes nearer and nearer.
    while (more := min(numbers, MANY, int(count * LONGEST / max(whole, 1e-9)))) > count:
        near = more < 2 * count
        count, whole = more, mean(more)
        if near:
            break
    # Where little is sent it is the delay that was measured twice.
    sending = max(whole - delay, whole / 100, 1e-9)
    return link.Speed(8 * link.in_a_ring(count, processes) / sending / 1e9, max(0.0, whole - sending))
