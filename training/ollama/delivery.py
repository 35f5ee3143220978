"""A model goes into a live Ollama under a name of its own beside the one that is meant, and takes that one's place at once.

Until then what stood under the name goes on to answer, whatever breaks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from loguru import logger

from training.errors import FinetuneError, RunError, UserError
from training.ollama.create_request import CreateRequest
from training.ollama.server import STAGE, Server, beside, full_name
from training.system import files, progress_bar, wording

NEXT, PREVIOUS, REPLACED = "next", "previous", "replaced"
LAST = 20.0  # seconds that taking away what failed may take
Say = Callable[[str], None]


@dataclass(frozen=True)
class Made:
    """A model that stands beside the name it is meant for. `digest`: of what was made."""

    name: str
    meant_for: str
    digest: str | None


@contextmanager
def made(server: Server, request: CreateRequest, name: str, say: Say) -> Iterator[Made]:
    """Send what is not there yet, create it as NAME-next, and take that away in the end, whatever happened.

    UserError where there is a model of a name that is needed then: it may be somebody's own.
    """
    left = "what an export that was killed has left"
    _free(server, name, REPLACED, left)
    ours = _free(server, name, NEXT, left)
    try:
        _create(server, request, ours, say)
        yield Made(ours, name, server.digest(ours))
    finally:
        # One that hangs has taken its time already.
        with suppress(FinetuneError):
            Server(server.at, min(server.patience, LAST)).delete(ours)


def _free(server: Server, name: str, what: str, left: str) -> str:
    """The name of a model beside NAME for our own use. UserError where one is there: we would delete it in the end.

    `left`: what else it may be, beside somebody's own model.
    """
    ours = beside(name, what)
    if full_name(ours) == full_name(name) or server.digest(ours) is not None:
        raise UserError(
            f"{server.at} has a model {ours}, a name that is needed here for a while: it is somebody's own, of an export "
            f"that is at work now, or {left}. Where it may go:  ollama rm {ours}"
        )
    return ours


def _create(server: Server, request: CreateRequest, name: str, say: Say) -> None:
    digests = {path: files.sha256(path) for path in request.files}
    for path, digest in digests.items():
        size = path.stat().st_size
        if server.has_blob(digest):
            say(f"{server.at} has {path.name} already")
            continue
        say(f"sending {path.name}, {wording.size(size)}, to {server.at}")
        with progress_bar.gauge(f"sending {path.name}", size, say, unit="MiB") as advance:
            server.send_blob(path, digest, lambda more: advance(more, round(more / (1 << 20))))
    told: set[str] = set()

    def heard(status: str) -> None:
        if status and status not in told:
            told.add(status)
            say(f"Ollama: {status}")

    server.create(request.body(name, digests), sum(path.stat().st_size for path in request.files), heard)


def put_in_place(server: Server, model: Made, keep: bool = False) -> None:
    """Let the name that was meant stand for the model; `keep` what stood there as NAME-previous.

    RunError when it is not that model any more.
    """
    if model.digest is None:
        raise RunError(STAGE, f"{server.at} does not list {model.name}, which it has just made")
    if server.digest(model.name) != model.digest:
        raise RunError(STAGE, f"somebody else has changed {model.name} meanwhile: is another export at work?")
    if server.digest(model.meant_for) == model.digest:
        # The same export again: what was kept the first time is the way back.
        if keep:
            before = beside(model.meant_for, PREVIOUS)
            left = "is as it was" if server.digest(before) is not None else "is not there: nothing was replaced"
            logger.info("{} is this very model already; {} {}", model.meant_for, before, left)
        return
    replaced = ""
    # Only what is deleted by its name frees the server's disk; what is copied over stays there for ever.
    if keep:
        server.delete(beside(model.meant_for, PREVIOUS))
        server.copy(model.meant_for, beside(model.meant_for, PREVIOUS))
    elif server.digest(model.meant_for) is not None:
        replaced = _free(server, model.meant_for, REPLACED, "what an export that was killed has left")
        server.copy(model.meant_for, replaced)
    server.copy(model.name, model.meant_for)
    if replaced:
        _deleted(server, replaced)
    if server.digest(model.meant_for) != model.digest:
        raise RunError(STAGE, f"{server.at} says that it put {model.meant_for} in place, and it is another model")


def _deleted(server: Server, name: str) -> None:
    """What cannot be deleted is told: the new model has its place all the same."""
    try:
        server.delete(name)
    except FinetuneError as error:
        logger.warning("{} was not deleted ({}); it takes room on the server's disk:  ollama rm {}", name, error, name)


def roll_back(server: Server, name: str) -> None:
    """Let NAME stand for NAME-previous, and NAME-previous for what NAME stood for. UserError where there is none."""
    before = beside(name, PREVIOUS)
    if server.digest(before) is None:
        raise UserError(
            f"{server.at} has no {before}: --switch keeps one when it lets a new model take the place of {name}"
        )
    kept = beside(name, NEXT)
    left = f"what {name} stood for when a --rollback was killed (ollama cp {kept} {before} keeps it)"
    aside = _free(server, name, NEXT, left)
    there = server.digest(name) is not None
    if there:
        server.copy(name, aside)
    server.copy(before, name)
    if there:
        server.copy(aside, before)
        server.delete(aside)
