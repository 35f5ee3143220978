"""What the processes of a training send each other in every step."""

from __future__ import annotations

from training.settings import Settings
from training.system.wording import duration, size

# Bytes of a gradient on its way.
FLOAT = 4
# Links for which the time is said, in Gbit/s: a plain network, a data centre's, a fast one.
LINKS = (1, 10, 100)


def sent(adapter: int, processes: int) -> int:
    """Bytes that each process sends in a step: the adapter's gradients are added up in a ring, so that each passes every
    part on twice but its own share."""
    return 2 * FLOAT * adapter * (processes - 1) // processes


def sent_weights(whole: int, processes: int, micro_batches: int) -> int:
    """The same of a model of `whole` bytes that is spread over the processes: in every micro-batch its layers are put
    together twice, forward and backward, of shares that go round in a ring."""
    return 2 * micro_batches * whole * (processes - 1) // processes


def line(settings: Settings, adapter: int, whole: int) -> str:
    """The same for the plan, with the time that it takes. whole: bytes of the frozen model."""
    each, what = sent(adapter, settings.processes), "the gradients of the adapter"
    if settings.hardware.sharding != "none":
        each += sent_weights(whole, settings.processes, settings.training.gradient_accumulation_steps)
        what = f"the weights twice a micro-batch (SHARDING = fsdp), and {what}"
    times = ", ".join(f"{_words(8 * each / (link * 1e9))} at {link} Gbit/s" for link in LINKS)
    return f"between the processes: each sends {size(each)} a step, {what} ({times})"


def _words(seconds: float) -> str:
    if seconds < 0.001:
        return "under 1 ms"
    if seconds >= 1:
        return duration(seconds)
    return f"{seconds:.2g} s" if seconds >= 0.1 else f"{1000 * seconds:.2g} ms"
