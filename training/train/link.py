"""The line between the processes of a training: what goes over it, how long that should take, and how long it took."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from training.system.wording import duration

if TYPE_CHECKING:
    import torch

# Bytes of a gradient on its way.
FLOAT = 4
# Seconds from which a line's own delay is said.
NOTICED = 0.001


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """What adding up the gradients took. Shares are of the time of all optimizer steps."""

    seconds: float  # a step
    share: float
    waiting: float  # share in which this process waited for the others to be ready
    reckoned: float  # seconds a step, by what is sent and the line
    gbps: float  # of the line: LINK_GBPS, or as measured when the processes met
    delay: float = 0.0  # seconds that an exchange of next to nothing took then

    def words(self) -> str:
        """The same for a person."""
        return (
            f"{self.share:.0%} of the steps' time to add the gradients up ({short(self.seconds)} a step; reckoned "
            f"{short(self.reckoned)} at {speed(self.gbps)}{Speed(self.gbps, self.delay).way()}), {self.waiting:.0%} to wait "
            "for each other"
        )


@dataclass(frozen=True)
class Speed:
    """How fast a line is. `delay`: seconds that an exchange takes however little is sent: the way, and who must wake up for
    it, as often as the ring has places."""

    gbps: float
    delay: float = 0.0

    def seconds(self, sent: int) -> float:
        """How long an exchange takes in which each process sends so many bytes."""
        return self.delay + seconds(sent, self.gbps)

    def way(self) -> str:
        """The delay, for a person, behind the rest; empty where nobody would notice it."""
        return f", {short(self.delay)} an exchange at least" if self.delay >= NOTICED else ""


@dataclass(kw_only=True)
class Line:
    """The line as one process sees it while it trains. Without other processes nothing is known of it."""

    bytes: int = 0  # that each process sends in a step
    speed: Speed | None = None
    sending: float = 0.0  # seconds
    waiting: float = 0.0
    steps: int = 0

    def exchange(self, stepping: float) -> Exchange | None:
        """What it came to in `stepping` seconds of steps."""
        if self.speed is None or not self.steps or not stepping:
            return None
        return Exchange(
            seconds=round(self.sending / self.steps, 6),
            share=round(self.sending / stepping, 4),
            waiting=round(self.waiting / stepping, 4),
            reckoned=round(self.speed.seconds(self.bytes), 6),
            gbps=round(self.speed.gbps, 4),
            delay=round(self.speed.delay, 6),
        )


def in_a_ring(numbers: int, processes: int) -> int:
    """Bytes that each process sends while so many numbers are added up over all: it passes every part on twice but its own
    share."""
    return 2 * FLOAT * numbers * (processes - 1) // processes


def seconds(sent: int, gbps: float) -> float:
    """How long so many bytes take."""
    return 8 * sent / (gbps * 1e9)


def speed(gbps: float) -> str:
    """Of a line, for a person."""
    return f"{gbps:,.0f} Gbit/s" if gbps >= 10 else f"{gbps:.2g} Gbit/s"


def short(seconds: float) -> str:
    """A time on a line, which may be less than a person would notice."""
    if seconds < 0.001:
        return "under 1 ms"
    if seconds >= 1:
        return duration(seconds)
    return f"{seconds:.2g} s" if seconds >= 0.1 else f"{1000 * seconds:.2g} ms"


def moment(device: torch.device) -> float | torch.Event:
    """A point in the order in which a device does what it is told, which a card comes to later than this program."""
    if device.type == "cpu":
        return time.perf_counter()
    import torch

    event: torch.Event = torch.get_device_module(device).Event(enable_timing=True)
    event.record()
    return event


def between(began: float | torch.Event, ended: float | torch.Event) -> float:
    """Seconds from one moment to another; waits until the second one is there."""
    if isinstance(began, float) or isinstance(ended, float):
        return float(ended) - float(began)  # type: ignore[arg-type]  # both are of one device
    ended.synchronize()
    return began.elapsed_time(ended) / 1000
