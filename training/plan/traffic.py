"""What the processes of a training send each other in every step, how long that takes, and whether more of them pay."""

from __future__ import annotations

from training.settings import Settings
from training.system.wording import size
from training.train import link

# Links for which the time is said where none is given, in Gbit/s: a plain network, a data centre's, a fast one.
LINKS = (1, 10, 100)
# Below this part of what so many machines could give at most it is said what would help.
WORTH = 0.7


def sent(adapter: int, processes: int) -> int:
    """Bytes that each process sends in a step: the adapter's gradients are added up in a ring, so that each passes every
    part on twice but its own share."""
    return link.in_a_ring(adapter, processes)


def sent_weights(whole: int, processes: int, micro_batches: int) -> int:
    """The same of a model of `whole` bytes that is spread over the processes: in every micro-batch its layers are put
    together twice, forward and backward, of shares that go round in a ring."""
    return 2 * micro_batches * whole * (processes - 1) // processes


def a_step(settings: Settings, adapter: int, whole: int) -> int:
    """Bytes that each process sends in a step. whole: bytes of the frozen model."""
    each = sent(adapter, settings.processes)
    if settings.hardware.sharding != "none":
        each += sent_weights(whole, settings.processes, settings.training.gradient_accumulation_steps)
    return each


def seconds(settings: Settings, adapter: int, whole: int) -> float | None:
    """How long that takes at LINK_GBPS; None where nothing is written there."""
    gbps = settings.hardware.link_gbps
    return None if isinstance(gbps, str) else link.seconds(a_step(settings, adapter, whole), gbps)


def line(settings: Settings, adapter: int, whole: int) -> str:
    """What is sent, for the plan, with the time that it takes; of one process what two cards would have to send, where it is
    known what would lie between them."""
    gbps, spread = settings.hardware.link_gbps, settings.hardware.sharding != "none"
    if settings.processes == 1:
        if isinstance(gbps, str) or settings.hardware.device == "cpu":
            return ""
        took = link.seconds(sent(adapter, 2), gbps)
        return (
            f"two cards would take {link.short(took)} a step for the gradients at {gbps:g} Gbit/s{_pays_from(took, 2)}"
        )
    each = a_step(settings, adapter, whole)
    weights = f"the weights twice a micro-batch (SHARDING = {settings.hardware.sharding}), and " if spread else ""
    what = f"{weights}the gradients of the adapter"
    said = f"between the processes: each sends {size(each)} a step, {what}"
    if isinstance(gbps, str):
        times = (f"{link.short(link.seconds(each, known))} at {known} Gbit/s" for known in LINKS)
        return f"{said} ({', '.join(times)})"
    took = link.seconds(each, gbps)
    # On a CPU the time is measured, and what more machines give is said beside it.
    pays = "" if spread or settings.hardware.device == "cpu" else _pays_from(took, settings.processes)
    return f"{said} ({link.short(took)} at {gbps:g} Gbit/s){pays}"


def _pays_from(took: float, cards: int) -> str:
    """From which time of one card on several are faster: one takes R for the rows of a step, N take R / N and what they send.
    R is not known before a run."""
    return (
        f"; faster than one card where that takes more than {link.short(took * cards / (cards - 1))} for the same rows"
    )


def machines_line(settings: Settings, adapter: int, computing: float) -> str:
    """Whether more machines are faster, for the plan of a CPU, where a step's computing is measured: `computing` seconds in
    each process. Empty where no line is known. The rows of a step are the same with any number."""
    hardware, gbps = settings.hardware, settings.hardware.link_gbps
    if isinstance(gbps, str) or hardware.sharding != "none":
        return ""
    now, each = hardware.num_machines, hardware.num_processes

    def step(machines: int) -> float:
        """Seconds of the same step with so many machines."""
        return computing * now / machines + link.seconds(sent(adapter, machines * each), gbps)

    others = (2, 4) if now == 1 else (now, 2 * now)
    # With more the rows of a step could not be shared out.
    faster = {number: step(1) / step(number) for number in others if settings.rows_a_step % (number * each) == 0}
    if not faster:
        return ""
    times = (f"{number} {'are' if number == now else 'would be'} {x:.2g} times as fast" for number, x in faster.items())
    advice = ""
    if any(x < WORTH * number for number, x in faster.items()):
        advice = "; with more rows a step (GRADIENT_ACCUMULATION_STEPS) they are faster: the gradients go once a step"
    return f"machines: {', '.join(times)} as one, with the same rows a step at {gbps:g} Gbit/s{advice}"
