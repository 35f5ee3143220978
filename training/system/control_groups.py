"""What Linux's control groups leave this process of the machine: in a container, a Slurm job, a systemd slice.

A process is in one group, which lies within others, and each may have a limit. In a container the root of what is mounted
is usually its own group; a Slurm job's is some folders down. Both of the kernel's forms are read, v2 and v1.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

MOUNTED = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")
# A limit that is none, as v1 writes it: the largest number of pages.
NONE = 1 << 60


def memory() -> tuple[int, int] | None:
    """Bytes of the tightest limit, and the fewest that any limit leaves free; None where there is no limit.

    What files were read or written counts as used in a group, though the kernel gives it up when asked: it is taken off.
    """
    found = [*_memory("", "memory.max", "memory.current", "inactive_file")]
    found += _memory("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    if not found:
        return None
    return min(limit for limit, _ in found), max(0, min(limit - used for limit, used in found))


def _memory(controller: str, limit: str, used: str, given_up: str) -> Iterator[tuple[int, int]]:
    for group in _groups(controller):
        most, taken = _number(group / limit), _number(group / used)
        if most is not None and most < NONE and taken is not None:
            yield most, max(0, taken - _statistics(group / "memory.stat").get(given_up, 0))


def processors() -> float | None:
    """How many processors' time the tightest limit leaves (docker run --cpus); None where there is no limit."""
    found = []
    for group in _groups(""):
        quota, _, period = _text(group / "cpu.max").partition(" ")
        if quota.isdigit() and period.isdigit():
            found.append(int(quota) / int(period))
    for group in _groups("cpu"):
        time, a_period = _number(group / "cpu.cfs_quota_us"), _number(group / "cpu.cfs_period_us")
        if time and a_period:
            found.append(time / a_period)
    return min(found, default=None)


def _groups(controller: str) -> Iterator[Path]:
    """The folders of the groups that this process is in, the innermost first. controller: v1's; "" for v2."""
    root = MOUNTED / controller
    parts = next((path for names, path in _own() if controller in names.split(",")), "/").strip("/").split("/")
    # Where the container sees itself from outside, what it has is at the root.
    inner = [] if ".." in parts else [part for part in parts if part]
    for depth in range(len(inner), -1, -1):
        yield root.joinpath(*inner[:depth])


def _own() -> Iterator[tuple[str, str]]:
    """Controllers and path of each hierarchy; those of v2 are empty."""
    for line in _text(OWN).splitlines():
        _, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        yield names, path


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _number(file: Path) -> int | None:
    """None where it is not there, or no number from 0 on ("max", "-1")."""
    text = _text(file)
    return int(text) if text.isdecimal() and text.isascii() else None


def _statistics(file: Path) -> dict[str, int]:
    pairs = (line.partition(" ") for line in _text(file).splitlines())
    return {name: int(value) for name, _, value in pairs if value.isdecimal() and value.isascii()}
