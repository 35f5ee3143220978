"""Two hosts on one machine: network namespaces with a line of their own between them, which can be cut and slowed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from tests.support import far_line

NETWORK = "10.199.57"


def ip(*words: str) -> None:
    """One command of iproute2; CalledProcessError where it is not allowed, or not there."""
    subprocess.run(["ip", *words], check=True, capture_output=True, stdin=subprocess.DEVNULL)


@dataclass(frozen=True)
class Hosts:
    """The names of the two namespaces, and of their ends of the line."""

    names: tuple[str, str]
    ends: tuple[str, str]

    def address(self, host: int) -> str:
        """Its address."""
        return f"{NETWORK}.{host + 1}"

    def on(self, host: int, *command: str) -> list[str]:
        """A command as it is started on a host."""
        return ["ip", "netns", "exec", self.names[host], *command]

    def cut(self) -> None:
        """The line is down: nothing comes through, and nobody is told."""
        ip("-n", self.names[1], "link", "set", self.ends[1], "down")

    def mend(self) -> None:
        """It is up again."""
        ip("-n", self.names[1], "link", "set", self.ends[1], "up")

    def slow(self, rate: str, burst: str = "64k") -> None:
        """No more than this goes through, each way, but for a first burst: "10mbit"."""
        for host in (0, 1):
            subprocess.run(
                self.on(host, "tc", "qdisc", "replace", "dev", self.ends[host], "root", "tbf", "rate", rate)
                + ["burst", burst, "latency", "200ms"],
                check=True,
                capture_output=True,
            )

    def free(self) -> None:
        """All goes through that can."""
        for host in (0, 1):
            subprocess.run(
                self.on(host, "tc", "qdisc", "del", "dev", self.ends[host], "root"), check=True, capture_output=True
            )


@contextmanager
def two(seconds: float = 0.0) -> Iterator[Hosts | str]:
    """Two hosts, and no more of them afterwards; a text with the reason where this machine does not allow any. `seconds`:
    how long each packet is on its way."""
    here = Hosts((f"ft{os.getpid()}a", f"ft{os.getpid()}b"), (f"fa{os.getpid()}", f"fb{os.getpid()}"))
    made, kept = [], ExitStack()
    try:
        try:
            for name in here.names:
                ip("netns", "add", name)
                made.append(name)
            if seconds:
                _far_line(here, seconds, kept)
            else:
                _near_line(here)
            for host in (0, 1):
                ip("-n", here.names[host], "addr", "add", f"{here.address(host)}/24", "dev", here.ends[host])
                for device in ("lo", here.ends[host]):
                    ip("-n", here.names[host], "link", "set", device, "up")
            here.slow("1gbit")
        except (OSError, subprocess.CalledProcessError) as error:
            said = getattr(error, "stderr", b"") or str(error).encode()
            yield said.decode(errors="replace").strip()
            return
        yield here
    finally:
        kept.close()
        for name in made:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def _near_line(here: Hosts) -> None:
    ends = [word for n in (0, 1) for word in ("name", here.ends[n], "netns", here.names[n])]
    ip("link", "add", *ends[:4], "type", "veth", "peer", *ends[4:])


def _far_line(here: Hosts, seconds: float, kept: ExitStack) -> None:
    """A line through a process that holds every packet back."""
    handles = []
    for name, end in zip(here.names, here.ends, strict=True):
        handles.append(far_line.device(end))
        kept.callback(os.close, handles[-1])
        ip("link", "set", end, "netns", name)
    carrying = subprocess.Popen(
        [sys.executable, far_line.__file__, *map(str, handles), str(seconds)],
        pass_fds=handles, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    kept.callback(carrying.wait)
    kept.callback(carrying.kill)
