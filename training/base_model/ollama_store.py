"""Models that the Ollama of this machine holds: from a tag such as qwen3:0.6b to the GGUF file behind it."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from training.errors import MachineError, UserError
from training.system import foreign_json, paths
from training.system.foreign_json import COUNT, TEXT, Damaged, Kind

MODEL, ADAPTER, PROJECTOR = (f"application/vnd.ollama.image.{kind}" for kind in ("model", "adapter", "projector"))
PREFIX = "ollama:"
# Of a layer in a manifest; a digest becomes the name of a file.
DIGEST = re.compile(r"sha256:[0-9a-f]+")
LAYER_KINDS = {
    "mediaType": TEXT,
    "digest": Kind("digest", lambda value: isinstance(value, str) and bool(DIGEST.fullmatch(value))),
    "size": COUNT,
}

# family -> (Hub id with {} for the size, sizes as Ollama writes them -> as the Hub does, the size of the bare name)
HUB: dict[str, tuple[str, dict[str, str], str]] = {
    "qwen3": ("Qwen/Qwen3-{}", {s.lower(): s for s in ("0.6B", "1.7B", "4B", "8B", "14B", "32B")}, "8b"),
    "qwen2.5": ("Qwen/Qwen2.5-{}-Instruct", {s.lower(): s for s in ("0.5B", "1.5B", "3B", "7B", "14B", "32B")}, "7b"),
    "llama3.2": ("meta-llama/Llama-3.2-{}-Instruct", {"1b": "1B", "3b": "3B"}, "3b"),
    "llama3.1": ("meta-llama/Llama-3.1-{}-Instruct", {"8b": "8B", "70b": "70B"}, "8b"),
    "llama3": ("meta-llama/Meta-Llama-3-{}-Instruct", {"8b": "8B", "70b": "70B"}, "8b"),
    "gemma3": ("google/gemma-3-{}-it", {"270m": "270m", "1b": "1b", "4b": "4b", "12b": "12b", "27b": "27b"}, "4b"),
    "gemma2": ("google/gemma-2-{}-it", {"2b": "2b", "9b": "9b", "27b": "27b"}, "9b"),
    "phi3": ("microsoft/Phi-3-{}-4k-instruct", {"3.8b": "mini", "mini": "mini", "14b": "medium"}, "mini"),
    "phi4": ("microsoft/phi-4{}", {"14b": ""}, "14b"),
    "mistral": ("mistralai/Mistral-{}-Instruct-v0.3", {"7b": "7B"}, "7b"),
    "smollm2": ("HuggingFaceTB/SmolLM2-{}-Instruct", {"135m": "135M", "360m": "360M", "1.7b": "1.7B"}, "1.7b"),
    "tinyllama": ("TinyLlama/TinyLlama-{}-Chat-v1.0", {"1.1b": "1.1B"}, "1.1b"),
    "deepseek-r1": (
        "deepseek-ai/DeepSeek-R1-Distill-{}",
        {"1.5b": "Qwen-1.5B", "7b": "Qwen-7B", "14b": "Qwen-14B"},
        "7b",
    ),
}


@dataclass(frozen=True)
class Stored:
    """A model in the store: its blob, a GGUF file, and the blob's SHA-256."""

    blob: Path
    sha256: str


def is_tag(name: str) -> bool:
    """Does a model's name look like one of Ollama's? A colon, or no slash: a Hub id is org/name."""
    return ":" in name or "/" not in name


def find(name: str) -> Stored:
    """The model of a tag (`ollama:` in front is allowed). UserError, naming the Hub id if known, when it is not stored."""
    tag = name.removeprefix(PREFIX)
    parts = tag.split("/")
    if not all(part and part not in (".", "..") for part in [*parts, *tag.replace("/", ":").split(":")]):
        raise UserError(f"{name} is no name of an Ollama model")
    parts[-1], _, version = parts[-1].partition(":")
    place = ["registry.ollama.ai", "library"][: max(0, 3 - len(parts))] + parts
    looked = stores()
    for store in looked:
        manifest = store / "manifests" / Path(*place) / (version or "latest")
        try:
            if manifest.is_file():
                return _blob(name, store, manifest)
        except PermissionError as error:
            raise MachineError(
                f"{error.filename} may not be read: copy the model, or give your user the right"
            ) from error
    hub = hub_id(tag)
    instead = f"on the Hub it is {hub}: set BASE_MODEL_NAME = {hub}" if hub else "a Hub id is written org/name"
    bare = ":" not in name  # a word that could be meant for any of the doors
    not_there = f"is no folder here (write ./{name}, or its whole path) and not" if bare else "is not"
    raise UserError(
        f"{name} {not_there} in the Ollama store ({', '.join(map(str, looked)) or 'there is none'}); {instead}"
        + ("" if name.startswith(PREFIX) and not hub else f", or `ollama pull {tag}` first")
    )


def stores() -> list[Path]:
    """Where Ollama keeps models on this machine: OLLAMA_MODELS, the user's, the service's; those that exist."""
    places = [Path("/usr/share/ollama/.ollama/models")]
    for written in (str(Path("~", ".ollama", "models")), os.environ.get("OLLAMA_MODELS")):
        with suppress(UserError):  # a container may know no home folder
            places = [paths.expanded(written), *places] if written else places
    found = []
    for place in places:
        try:
            if place.is_dir():
                found.append(place)
        except PermissionError:  # the service's home is closed to others on some systems
            continue
    return found


def hub_id(tag: str) -> str | None:
    """The Hub id of the original behind a well-known tag, sizes with a suffix (0.6b-q4_K_M) included."""
    family, _, size = tag.lower().rpartition("/")[2].partition(":")
    if family not in HUB:
        return None
    pattern, sizes, usual = HUB[family]
    size = usual if size in ("", "latest") else size.split("-")[0]
    return pattern.format(sizes[size]) if size in sizes else None


def on_the_hub(name: str) -> str | None:
    """The Hub id that a mixture stands for, Qwen/qwen3:0.6b-Instruct: an owner on the Hub before a tag of Ollama."""
    owner, slash, tag = name.partition("/")
    hub = hub_id(tag) if slash and ":" in tag else None
    return hub if hub and hub.partition("/")[0].lower() == owner.lower() else None


def is_stored(name: str) -> bool:
    """Whether the Ollama of this machine has the model of a tag."""
    try:
        find(name)
    except UserError:
        return False
    return True


def _blob(name: str, store: Path, manifest: Path) -> Stored:
    try:
        found = foreign_json.read(manifest, {"layers": foreign_json.OBJECTS}).get("layers", [])
        problems = [problem for layer in found for problem in foreign_json.misfits(layer, LAYER_KINDS)]
    except Damaged as damage:
        found, problems = [], damage.problems
    whole = [layer for layer in found if LAYER_KINDS.keys() <= layer.keys()]
    layers = {} if problems else {layer["mediaType"]: layer for layer in whole}
    if problems or MODEL not in layers:
        why = f" ({problems[0].removeprefix(f'{manifest} ').removeprefix(f'{manifest}: ')})" if problems else ""
        raise UserError(f"{name}: {manifest} is no manifest of a model{why}: `ollama pull` it again")
    if ADAPTER in layers:
        raise UserError(f"{name} is a base model with an adapter beside it; name the base, or a merged model")
    digest = layers[MODEL]["digest"].removeprefix("sha256:")
    blob = store / "blobs" / f"sha256-{digest}"
    if not blob.is_file() or blob.stat().st_size != layers[MODEL]["size"]:
        raise UserError(f"{name}: its weights are not whole ({blob}): `ollama pull` it again")
    return Stored(blob, digest)
