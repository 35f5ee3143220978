"""What a Modelfile says, as the API wants to hear it (since Ollama 0.5.5): /api/create takes no Modelfile."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from training.errors import UserError
from training.ollama.modelfile_syntax import read
from training.system import shell

_PLAIN = ("template", "system", "renderer", "parser", "requires")
_NUMBER = re.compile(r"[-+]?\d+")


@dataclass(frozen=True)
class CreateRequest:
    """`files`: those to be sent first, beside the Modelfile, each once. `base`: the model in Ollama that it begins from."""

    modelfile: Path
    base: str = ""
    gguf: Path | None = None
    adapter: Path | None = None
    said: dict[str, object] = field(default_factory=dict)

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(path for path in (self.gguf, self.adapter) if path is not None)

    @property
    def template(self) -> str | None:
        """TEMPLATE, or None where it is left out."""
        text = self.said.get("template")
        return text if isinstance(text, str) else None

    @property
    def renderer(self) -> str:
        return str(self.said.get("renderer") or "")

    @property
    def stops(self) -> list[str]:
        """The texts of PARAMETER stop."""
        parameters = self.said.get("parameters")
        stops = parameters.get("stop") if isinstance(parameters, dict) else None
        return list(stops) if isinstance(stops, list) else []

    def body(self, name: str, digests: dict[Path, str]) -> dict[str, object]:
        """The request that makes the model `name`, when the files are there under their SHA-256."""
        found: dict[str, object] = {"model": name, **self.said}
        if self.base:
            found["from"] = self.base
        for key, path in (("files", self.gguf), ("adapters", self.adapter)):
            if path is not None:
                found[key] = {path.name: f"sha256:{digests[path]}"}
        return found


def of_modelfile(modelfile: Path) -> CreateRequest:
    """Take a Modelfile apart. UserError where it names what is not beside it, or says nothing of a model."""
    said: dict[str, object] = {}
    parameters: dict[str, object] = {}
    base, gguf, adapter = "", None, None
    for command, value in read(modelfile):
        if command == "from":
            base, gguf = ("", _file(modelfile, value)) if _is_file(value) else (value, None)
        elif command == "adapter":
            adapter = _file(modelfile, value)
        elif command in _PLAIN:
            said[command] = value
        elif command == "license":
            said["license"] = [*_list(said.get("license")), value]
        elif command == "message":
            role, _, content = value.partition(": ")
            said["messages"] = [*_list(said.get("messages")), {"role": role, "content": content}]
        elif command == "draft":
            raise UserError(
                f"{modelfile}: DRAFT {value} is not sent through the API; take it out, or:  "
                + shell.words("ollama", "create", "NAME", "-f", modelfile)
            )
        elif command == "stop":
            parameters["stop"] = [*_list(parameters.get("stop")), value]
        else:
            parameters[command] = _typed(value)
    if parameters:
        said["parameters"] = parameters
    if not base and gguf is None:
        raise UserError(f"{modelfile}: it has no FROM")
    return CreateRequest(modelfile, base, gguf, adapter, said)


def _is_file(value: str) -> bool:
    return value.startswith(("./", "/", "../")) or value.lower().endswith(".gguf")


def _file(modelfile: Path, value: str) -> Path:
    path = modelfile.parent / value
    if not path.is_file():
        raise UserError(f"{modelfile}: there is no file {value} beside it")
    return path


def _list(value: object) -> list[object]:
    return list(value) if isinstance(value, list) else []


def _typed(value: str) -> object:
    """A parameter as JSON has it; Ollama's reader knows whole numbers, others, true and false."""
    if _NUMBER.fullmatch(value):
        return int(value)
    if value in ("true", "false"):
        return value == "true"
    try:
        return float(value)
    except ValueError:
        return value
