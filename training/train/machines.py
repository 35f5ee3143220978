"""Training on several machines: do they train the same, from the same checkpoint, and is one of them gone?"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from loguru import logger

from training.errors import Lost, RunError
from training.runs import checkpoint
from training.runs.checkpoint import Checkpoint
from training.system import files, wire
from training.train.team import Team

if TYPE_CHECKING:
    from training.train.watch import Watch

# Fields of the fingerprint in which machines may differ.
OWN = {"Hardware.NUM_THREADS"}
# In what gloo and NCCL say when the other side has gone.
CLOSED = ("onnection", "onnect", "ocket")


def refuse_mismatch(watch: Watch) -> None:
    """Raise RunError, on every machine, where one of them would train something else than machine 0."""
    if watch.team.place.machines == 1:
        return
    every = watch.team.gather(watch.fingerprint)
    if problems := watch.team.first(lambda: _differences(every, watch.team.place.local_size)):
        raise RunError("training", f"the machines do not agree: {'; '.join(problems)}")


def _differences(fingerprints: Sequence[object], local_size: int) -> list[str]:
    """How each machine's first rank differs from rank 0."""
    plain = [one for one in fingerprints if isinstance(one, Mapping)]
    if len(plain) < len(fingerprints):
        raise wire.refused("what another process sends are no settings")
    return [
        f"{field} = {plain[0].get(field)!r} on machine 0, {other.get(field)!r} on machine {machine}"
        for machine, other in enumerate(plain[::local_size])
        for field in sorted({*plain[0], *other} - OWN)
        if plain[0].get(field) != other.get(field)
    ]


def fetched(found: Checkpoint, watch: Watch) -> Checkpoint:
    """Machine 0's checkpoint where this machine can read it: the same, or a copy in this machine's own folder."""
    if watch.team.place.machines == 1:
        return found
    place, own = watch.team.place, watch.folder / f"checkpoint-{found.step}"
    for name in [*found.manifest.files, checkpoint.MANIFEST]:
        pieces = _pieces(found.path / name, watch.team)
        if place.machine > 0 and place.local_rank == 0:
            own.mkdir(parents=True, exist_ok=True)
            with files.whole_file(own / name) as partial, partial.open("wb") as file:
                for piece in pieces:
                    file.write(piece)
            # The manifest stands for the others, and for itself nothing does.
            digest = found.manifest.files.get(name)
            if digest is not None and files.sha256(own / name) != digest:
                raise wire.refused(f"{name} of the checkpoint of step {found.step} did not arrive as it was")
        else:
            deque(pieces, maxlen=0)
    watch.team.round(0)  # until all are written
    return found if place.machine == 0 else replace(found, path=own)


def _pieces(path: Path, team: Team) -> Iterator[bytes]:
    """A file of machine 0's, piece by piece, in every rank; all of them must take every piece."""
    with path.open("rb") if team.rank == 0 else nullcontext(BytesIO()) as file:
        while True:
            piece = team.first(lambda: file.read(wire.PIECE))
            if not isinstance(piece, bytes):
                raise wire.refused("what another process sends is no piece of a file")
            if not piece:
                return
            yield piece


def lost(error: Exception, watch: Watch) -> RunError | None:
    """The error for a connection to another process that has closed, if `error` says that."""
    if watch.team.size == 1 or not any(word in str(error) for word in CLOSED):
        return None
    logger.debug("{}", error)
    if watch.team.place.machines == 1:
        words = "another process of this training has ended; what started the processes says how"
        return Lost("training", words, checkpoint.where(watch.folder))
    other = "another machine" if watch.team.place.machine == 0 else "machine 0, or to another one,"
    words = f"a process on {other} has ended, or the connection to it is lost; its log says more"
    return Lost("training", words, checkpoint.where(watch.folder) if watch.team.place.machine == 0 else "")
