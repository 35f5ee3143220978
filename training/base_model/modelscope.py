"""Get a model from ModelScope (ms:owner/name), as hub.py does from the Hugging Face Hub: the same files, the same checks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from training.base_model import hub, model_folder
from training.base_model.hub import Remote
from training.errors import UserError
from training.hubs import Listing, Unreachable, Wanted, modelscope
from training.hubs.modelscope_http import endpoint
from training.hubs.wanted import enough_disk, megabytes

CONFIG = "config.json"


def look(name: str, revision: str | None, trust_remote_code: bool) -> Remote:
    """What ModelScope says about a model; downloads config.json only. UserError when it is no model to train here."""
    wanted = Wanted(name, revision)
    return _looked(wanted, trust_remote_code, lambda text: None)[0]


def download(name: str, revision: str | None, trust_remote_code: bool, say: Callable[[str], None]) -> tuple[Path, str]:
    """The model's folder in the local cache, and its commit. From the cache alone with HF_HUB_OFFLINE.

    Raises MachineError (exit 3) when ModelScope cannot be reached or refuses, UserError when it is no model to train.
    """
    wanted = Wanted(name, revision)
    if not modelscope.is_offline():
        try:
            _, listed, names = _looked(wanted, trust_remote_code, say)
        except Unreachable as error:
            # A model that was downloaded before serves without the network, said aloud; a refusal is not overruled.
            if not (cached := _cached(wanted, trust_remote_code)):
                raise
            say(f"{error}; using the copy downloaded before")
            return cached
    else:
        listed = modelscope.listing(wanted, say)
        names = _names(wanted, listed, trust_remote_code)
    modelscope.fetch(wanted, listed, names, say)
    return modelscope.folder_of(wanted, listed), listed.commit


def plan(
    name: str, revision: str | None, trust_remote_code: bool, say: Callable[[str], None]
) -> tuple[Remote, Path] | None:
    """As hub.plan: what a plan needs of a model that is not here yet, and the folder with all of it but its weights."""
    wanted = Wanted(name, revision)
    if modelscope.is_offline() or _cached(wanted, trust_remote_code):
        return None
    remote, listed, names = _looked(wanted, trust_remote_code, say)
    enough_disk(name, remote.size, modelscope.cache(), "MODELSCOPE_CACHE")
    say(f"{name} is not here yet: a run gets {megabytes(remote.size)} from {endpoint()} first, this check does not")
    modelscope.fetch(wanted, listed, [file for file in names if "safetensors" not in file], say)
    return remote, modelscope.folder_of(wanted, listed)


def _looked(wanted: Wanted, trust_remote_code: bool, say: Callable[[str], None]) -> tuple[Remote, Listing, list[str]]:
    """What is there, all that stands in it, and which of those files training needs."""
    listed = modelscope.listing(wanted, say)
    names = _names(wanted, listed, trust_remote_code)
    config = hub.config_of(
        wanted.name, modelscope.fetch(wanted, listed, [CONFIG], lambda text: None)[0], trust_remote_code
    )
    size = hub.total(listed.files[name].size for name in names)
    return Remote(listed.commit, config, size, None), listed, names


def _names(wanted: Wanted, listed: Listing, trust_remote_code: bool) -> list[str]:
    return hub.wanted(wanted.name, {name: file.size for name, file in listed.files.items()}, trust_remote_code)


def _cached(wanted: Wanted, trust_remote_code: bool) -> tuple[Path, str] | None:
    """The folder of the newest revision that is known, where all of it is here."""
    listed = modelscope.known(wanted)
    if listed is None:
        return None
    try:
        folder = modelscope.here(wanted, listed, _names(wanted, listed, trust_remote_code))
        if folder is not None:
            model_folder.check(folder, trust_remote_code)
    except UserError:
        return None
    return None if folder is None else (folder, listed.commit)
