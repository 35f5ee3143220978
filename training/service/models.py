"""The models that are loaded: each a process of its own (model_worker.py), which answers one request after the other."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loguru import logger
from starlette.exceptions import HTTPException

from training import runs
from training.errors import MachineError, UserError
from training.runs import Run, directory
from training.service.asked import Problem, Refused
from training.service.jobs import ID, Jobs, NotFound
from training.service.places import Places
from training.system import privacy

MOST_LOADED = 4
MOST_WAITING = 16  # requests to one model, the one that it answers included
LOADING = 600.0  # seconds
SILENT = 300.0  # seconds between two pieces, or before the first
HUB = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9][A-Za-z0-9_.-]{0,95}")
WORKER = Path(__file__).with_name("model_worker.py")


@dataclass
class Model:
    """One model that is loaded. `path`: the run, the adapter or the file; `run`: the id of its run, where it is one's."""

    name: str
    path: str
    run: str | None
    process: asyncio.subprocess.Process
    created: float = field(default_factory=time.time)
    waiting: int = 0
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def receive(self, seconds: float) -> dict[str, Any]:
        """The next line of its process. MachineError where none comes."""
        assert self.process.stdout is not None
        try:
            line = await asyncio.wait_for(self.process.stdout.readline(), seconds)
        except (asyncio.TimeoutError, TimeoutError):
            raise MachineError(f"{self.name} has not answered for {seconds:.0f} s") from None
        if not line.endswith(b"\n"):
            raise MachineError(f"the process of {self.name} has ended; load it again")
        event: dict[str, Any] = json.loads(line)
        if "error" in event:
            raise (UserError if event["kind"] == "user" else MachineError)(event["error"])
        return event

    def send(self, request: object) -> None:
        """Hand it a request, or "stop"."""
        assert self.process.stdin is not None
        with suppress(ConnectionError, RuntimeError):
            self.process.stdin.write(json.dumps(request).encode() + b"\n")

    @property
    def alive(self) -> bool:
        """Whether its process is there."""
        return self.process.returncode is None


class Models:
    """All models that are loaded, by name."""

    def __init__(self, jobs: Jobs, places: Places) -> None:
        self.jobs, self.places = jobs, places
        self.loaded: dict[str, Model] = {}
        self._loading = asyncio.Lock()
        self._stopping: set[asyncio.Task[None]] = set()

    async def load(self, name: str, path: str, adapter: str | None) -> Model:
        """Load a run, an adapter's folder or a GGUF file under a name; `adapter`: of the base model at `path`."""
        if self._loading.locked():
            raise HTTPException(429, "a model is being loaded; try again when it is")
        async with self._loading:
            await self.unload(name, missing_ok=True)
            for other in [model.name for model in self.loaded.values() if not model.alive]:
                await self.unload(other)
            if len(self.loaded) >= MOST_LOADED:
                raise HTTPException(429, f"{MOST_LOADED} models are loaded; unload one first")
            spec, run = await asyncio.to_thread(self._spec, path, adapter)
            model = Model(name, str(spec["path"] or spec["base"]), run, await _started(spec))
            try:
                await model.receive(LOADING)
            except BaseException:
                await _end(model)
                raise
            self.loaded[name] = model
            logger.info("model {}: loaded from {}", name, model.path)
            return model

    async def unload(self, name: str, missing_ok: bool = False) -> None:
        """Free a model. NotFound where none of this name is loaded."""
        model = self.loaded.pop(name, None)
        if model is not None:
            await _end(model)
        elif not missing_ok:
            raise NotFound(f"no model {name[:80]!r} is loaded")

    async def close(self) -> None:
        """Free them all."""
        for name in list(self.loaded):
            await self.unload(name)

    async def get(self, name: str) -> Model:
        """The model of this name: one that is loaded, or else a finished run by its id or model name, which is loaded now."""
        model = self.loaded.get(name)
        if model is not None and model.alive:
            return model
        run = await asyncio.to_thread(self.run_of, name)
        if run is None:
            raise NotFound(
                f"there is no model {name[:80]!r}; POST /models/load loads one, and a finished run's id names one"
            )
        model = self.loaded.get(run.path.name)
        if model is not None and model.alive:
            return model
        if len(self.loaded) >= MOST_LOADED:
            idle = [one for one in self.loaded.values() if not one.waiting]
            if idle and not self._loading.locked():
                await self.unload(min(idle, key=lambda one: one.created).name)
        return await self.load(run.path.name, run.path.name, None)

    def run_of(self, name: str) -> Run | None:
        """The finished run of this id, or the newest of this model name."""
        for run in reversed(self.jobs.every()):
            if name in (run.path.name, run.status.get("model")) and directory.state(run) == "completed":
                return run
        return None

    async def answers(self, model: Model, request: Mapping[str, object]) -> AsyncGenerator[dict[str, Any], None]:
        """Pieces of an answer, and its end; 429 where too many wait. One that nobody waits for any more is stopped."""
        if model.waiting >= MOST_WAITING:
            raise HTTPException(429, f"{model.name} has {MOST_WAITING} requests before this one; try again")
        model.waiting += 1
        done, turn = True, False
        try:
            turn = await model.turn.acquire()
            model.send(request)
            done = False
            while not done:
                event = await model.receive(SILENT)
                done = "done" in event
                yield event
        except UserError:
            done = True
            raise
        except MachineError:  # what may still come of it would be taken for the next answer
            done = True
            await _end(model)
            raise
        finally:
            model.waiting -= 1
            if done and turn:
                model.turn.release()
            elif turn:
                # In a task of its own: the one that was waiting here is being cancelled.
                self._stopping.add(task := asyncio.create_task(_stop(model)))
                task.add_done_callback(self._stopping.discard)

    def _spec(self, path: str, adapter: str | None) -> tuple[dict[str, object], str | None]:
        """What the worker is told, and the id of the run. A run may be named by its id; Refused where a path leads outside."""
        told: dict[str, object] = {"path": None, "base": None, "adapter": False, "config": str(self.jobs.own.config)}
        if adapter is not None:
            folder = self._inside("lora_adapter", adapter)
            return {**told, "path": str(folder), "base": self._base(path), "adapter": True}, None
        if ID.fullmatch(path):
            return {**told, "path": str(self.jobs.find(path).path)}, path
        if HUB.fullmatch(path) and not (self.places.folder / path).exists():
            return {**told, "base": path}, None
        found = self._inside("model_path", path)
        is_run = (found / runs.STATUS).is_file()
        if is_run or found.suffix == ".gguf" or (found / "adapter_config.json").is_file():
            return {**told, "path": str(found)}, found.name if is_run else None
        return {**told, "base": str(found)}, None

    def _base(self, path: str) -> str:
        """A base model: a folder, or a name that is none, such as a Hub id."""
        is_name = HUB.fullmatch(path) and not (self.places.folder / path).exists()
        return path if is_name else str(self._inside("model_path", path))

    def _inside(self, field: str, path: str) -> Path:
        """What a request names, which must be there. Refused where it is not, or lies outside of the roots."""
        try:
            found = self.places.inside(path)
            if not found.exists():
                raise ValueError("there is no such run, file or folder")
        except (ValueError, OSError) as error:
            raise Refused([Problem(field, f"{field}: {error}")]) from None
        return found


async def _started(spec: Mapping[str, object]) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        str(WORKER),
        json.dumps(spec),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
        limit=1 << 24,
    )


async def _stop(model: Model) -> None:
    """Have it end its answer, and read what is left of it: then the next one has its turn. A process that does not is ended."""
    model.send("stop")
    try:
        while "done" not in await model.receive(30):
            pass
    except UserError:
        pass
    except MachineError:
        await _end(model)
    finally:
        model.turn.release()


async def _end(model: Model) -> None:
    with suppress(ProcessLookupError):
        model.process.kill()
    await model.process.wait()


def shown(model: Model) -> dict[str, Any]:
    """What is told of a model that is loaded."""
    return {
        "model_name": model.name,
        "model_path": privacy.shown(model.path),
        "task_id": model.run,
        "created": model.created,
        "waiting": model.waiting,
    }
