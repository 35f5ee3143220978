"""Get a model from the Hugging Face Hub, or a mirror of it (HF_ENDPOINT): only the files that training needs.

huggingface_hub does the work; what its errors mean is told in hubs/hugging_face.py. What makes a model's files fit to train
on is the same for ModelScope (modelscope.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.base_model import model_folder, model_json
from training.errors import MachineError, UserError
from training.hubs import Unreachable, Wanted, hugging_face
from training.hubs import listing as listings
from training.hubs.hugging_face import explained
from training.hubs.wanted import enough_disk, megabytes
from training.system import privacy

FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "tokenizer*", "merges.txt", "vocab.txt"]
NOT = ["*/*", "consolidated*"]  # other formats of the same weights stand in folders; Mistral's own beside the others
CODE = ["*.py"]  # fetched where it may run, and never else, whatever it is called


@dataclass(frozen=True)
class Remote:
    """A model on the Hub before its download. `size` in bytes; None where the Hub does not say, as `parameters`."""

    commit: str | None
    config: dict[str, Any]
    size: int | None
    parameters: int | None


def look(name: str, revision: str | None, trust_remote_code: bool) -> Remote:
    """What the Hub says about a model; downloads config.json only. UserError when it is no model to train here."""
    from huggingface_hub import HfApi, hf_hub_download

    hugging_face.endpoint()
    with explained(Wanted(name, revision)):
        info = HfApi().model_info(name, revision=revision, files_metadata=True)
        sizes = {file.rfilename: file.size for file in info.siblings or ()}
        fits = isinstance(info.sha, str) and all(
            isinstance(file, str) and (size is None or (isinstance(size, int) and size >= 0))
            for file, size in sizes.items()
        )
        parameters = info.safetensors.total if info.safetensors else None
    if not fits or not (parameters is None or isinstance(parameters, int)):
        raise hugging_face.strange(Wanted(name))
    if acting := [file for file in sizes if privacy.visible(file) != file]:  # a progress bar would print it
        raise UserError(f"{name} has a file whose name holds control characters: {privacy.shown(acting[0])}")
    names = wanted(name, sizes, trust_remote_code)
    with explained(Wanted(name, revision)):
        config = config_of(name, Path(hf_hub_download(name, "config.json", revision=info.sha)), trust_remote_code)
    return Remote(info.sha, config, total(sizes[file] for file in names), parameters)


def wanted(name: str, sizes: Mapping[str, int | None], trust_remote_code: bool) -> list[str]:
    """The files that training needs of all that a model has. UserError where they are no model to train."""
    from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]  # it is public, and not listed

    allowed, ignored = _patterns(trust_remote_code)
    found = list(filter_repo_objects(sizes, allow_patterns=allowed, ignore_patterns=ignored))
    if "config.json" not in sizes or not any(file.endswith(".safetensors") for file in found):
        raise UserError(f"{name}{_hint(sizes)}")
    return found


def config_of(name: str, file: Path, trust_remote_code: bool) -> dict[str, Any]:
    """A model's config.json, which was downloaded before all else. UserError where it is none of a model to train."""
    config = model_json.parse(file.read_bytes(), f"{name}: config.json")
    if problems := model_folder.config_problems(config, trust_remote_code):
        raise UserError([f"{name}: {problem}" for problem in problems])
    return config


def total(sizes: Iterable[int | None]) -> int | None:
    """All of them together; None where one is not known."""
    every = list(sizes)
    known = [size for size in every if size is not None]
    return sum(known) if len(known) == len(every) else None


def download(
    name: str, revision: str | None, trust_remote_code: bool, say: Callable[[str], None]
) -> tuple[Path, str | None]:
    """The model's folder in the local cache, and its commit. From the cache alone with HF_HUB_OFFLINE.

    Raises MachineError (exit 3) when the Hub cannot be reached or refuses, UserError when it is no model to train.
    """
    from huggingface_hub import constants, snapshot_download

    allowed, ignored = _patterns(trust_remote_code)
    if cached := here(name, revision, trust_remote_code):
        return cached, cached.name
    if constants.is_offline_mode():
        with explained(Wanted(name, revision)):
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=allowed, ignore_patterns=ignored))
        return folder, folder.name
    try:
        remote = look(name, revision, trust_remote_code)
    except MachineError as error:
        # A model that was downloaded before serves without the network, said aloud; a refusal is not overruled.
        if not isinstance(error, Unreachable) or not (cached := _cached(name, revision, allowed, ignored)):
            raise
        say(f"{error}; using the copy downloaded before")
        return cached, cached.name
    enough_disk(name, remote.size, Path(constants.HF_HUB_CACHE), "HF_HOME")
    say(f"{name}: getting {megabytes(remote.size)} from {hugging_face.endpoint()} (what is there already is kept)")
    with explained(Wanted(name, revision)):
        # By its name and not by the commit just seen: only so the cache remembers the name for a run without network.
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=allowed, ignore_patterns=ignored))
    return folder, folder.name


def here(name: str, revision: str | None, trust_remote_code: bool) -> Path | None:
    """The folder of a commit that was downloaded whole. Nobody needs to be asked for it: it does not change, and may be gone there."""
    if not listings.SHA1.fullmatch(revision or ""):
        return None
    return _cached(name, revision, *_patterns(trust_remote_code))


def plan(
    name: str, revision: str | None, trust_remote_code: bool, say: Callable[[str], None]
) -> tuple[Remote, Path] | None:
    """What a plan needs of a model that is not here yet, and the folder with all of it that was downloaded: not the weights.

    None when the model is here.

    Raises as `download`, also where the disk would not hold the weights.
    """
    from huggingface_hub import constants, snapshot_download

    allowed, ignored = _patterns(trust_remote_code)
    if constants.is_offline_mode() or _cached(name, revision, allowed, ignored):
        return None
    remote = look(name, revision, trust_remote_code)
    enough_disk(name, remote.size, Path(constants.HF_HUB_CACHE), "HF_HOME")
    say(
        f"{name} is not here yet: a run gets {megabytes(remote.size)} from {hugging_face.endpoint()} first, this check does not"
    )
    with explained(Wanted(name, revision)):
        small = [pattern for pattern in allowed if "safetensors" not in pattern]
        folder = snapshot_download(name, revision=revision, allow_patterns=small, ignore_patterns=ignored)
    return remote, Path(folder)


def _patterns(trust_remote_code: bool) -> tuple[list[str], list[str]]:
    """Which files of a model are fetched, and which of those are not."""
    return ([*FILES, *CODE], NOT) if trust_remote_code else (FILES, [*NOT, *CODE])


def _cached(name: str, revision: str | None, allowed: list[str], ignored: list[str]) -> Path | None:
    from huggingface_hub import errors, snapshot_download

    try:
        found = snapshot_download(
            name, revision=revision, allow_patterns=allowed, ignore_patterns=ignored, local_files_only=True
        )
        model_folder.check(Path(found))  # a cut download leaves a folder too
    except (errors.LocalEntryNotFoundError, UserError):
        return None
    return Path(found)


def _hint(sizes: Mapping[str, int | None]) -> str:
    if "adapter_config.json" in sizes:
        return " is a LoRA adapter, no model: name the model it belongs to, or a merged one"
    if any(file.endswith(".gguf") for file in sizes):
        return " holds GGUF files: download one and name it, or name the original model"
    if any(file.endswith(".bin") for file in sizes):
        return " holds pickled weights only (.bin), which can run code when read; safetensors are wanted"
    return " is no model folder: it lacks config.json or safetensors"
