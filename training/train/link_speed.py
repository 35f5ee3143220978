"""How fast the line between the processes is, measured once when they have met, with numbers of the kind that they exchange
in every step: before the training it says what is to come, and after it what came is held against that."""

from __future__ import annotations

from typing import TYPE_CHECKING

from training.system.wording import size
from training.train import link
from training.train.team import Team

if TYPE_CHECKING:
    import torch

# Numbers of the first measurement, and of a second where that was done within QUICK seconds; never more than there are.
FEW, MANY = 1 << 14, 1 << 22
QUICK = 0.1


def looked_at(team: Team, numbers: int, device: torch.device, written: float | None) -> tuple[link.Line, str]:
    """The line over which so many numbers go in each step, and what is to be said of it. Every rank calls it. `written`:
    LINK_GBPS, which counts where it is given; measured it is all the same."""
    line = link.Line(bytes=link.in_a_ring(numbers, team.size))
    if team.size == 1:
        return line, ""
    measured = _measured(team, numbers, device)
    line.gbps = written or measured
    beside = f" (LINK_GBPS = {written:g})" if written else ""
    took = link.short(link.seconds(line.bytes, measured))
    return line, (
        f"between the processes: {link.speed(measured)} measured{beside}; {size(line.bytes)} of gradients a step take {took}"
    )


def _measured(team: Team, numbers: int, device: torch.device) -> float:
    """Gbit/s, by rank 0's clock: the same in all ranks, for all must measure as often."""
    import torch
    import torch.distributed as dist

    def took(count: int) -> float:
        flat = torch.zeros(count, device=device)
        # Else it would be counted how much later another one comes.
        team.round(0)
        began = link.moment(device)
        dist.all_reduce(flat)
        ended = link.moment(device)
        return float(team.first(lambda: link.between(began, ended)))

    # The first exchange connects.
    took(1)
    count = min(numbers, FEW)
    best = took(count)
    if best < QUICK and numbers > count:
        count = min(numbers, MANY)
        best = min(took(count), took(count))
    return 8 * link.in_a_ring(count, team.size) / max(best, 1e-9) / 1e9
