"""Files in a model folder that are not the model, though a library would take them: named once, and kept from it.

A merged model saved where its adapter lay, the shards of an earlier download, an index of other files, macOS's litter:
transformers puts an adapter that it finds over the model, Unsloth refuses the two together, and llama.cpp's converter
takes every file whose name begins with "model", or another index than transformers. What is trained, merged and
converted is what `weights.shards` names, and nothing else.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from training.base_model import safetensors_file
from training.errors import RunError
from training.system import temporary

SAFE, PICKLED = ".safetensors", (".bin", ".pt", ".pth")


def adapter(folder: Path) -> list[str]:
    """The files of an adapter that lies in a model's folder."""
    return sorted(
        file.name for file in folder.glob(f"{safetensors_file.ADAPTER}*") if file.suffix in (".json", *PICKLED, SAFE)
    )


def others(folder: Path) -> list[str]:
    """Weights, and indexes of weights, that transformers does not take. RunError where the folder has no weights."""
    taken = {safetensors_file.source(folder), *safetensors_file.shards(folder)}
    found = [*folder.glob(f"*{SAFE}"), *folder.glob(f"*{SAFE}.index.json")]
    return sorted(
        file.name for file in found if file not in taken and not file.name.startswith(safetensors_file.ADAPTER)
    )


def words(folder: Path) -> list[str]:
    """What is left out of a model folder and why, a line for each kind; nothing where every file is the model's."""
    told = []
    if names := adapter(folder):
        told.append(
            f"{folder}: left out: {', '.join(names)}, an adapter that lies beside the model. The model is taken without it; "
            "if it is not merged yet, merge it first"
        )
    try:
        names = others(folder)
    except RunError:  # told where the weights are looked at
        return told
    taken = safetensors_file.source(folder)
    if names and taken is not None:
        told.append(f"{folder}: left out: {', '.join(names)}; the weights are those of {taken.name}")
    return told


@contextmanager
def kept_out(folder: Path) -> Iterator[Path]:
    """The folder as a library may see it: itself, or, with leftovers in it, a folder of links to all of its other files.

    The links are gone after the block. A RunError where the folder has no weights.
    """
    unwanted = {*adapter(folder), *others(folder)}
    if not unwanted:
        yield folder
        return
    with linked(folder, unwanted) as seen:
        yield seen


@contextmanager
def linked(folder: Path, without: Collection[str]) -> Iterator[Path]:
    """A folder of links to all that lies in a model folder but for the names `without`; gone after the block."""
    with temporary.folder("base") as room:
        # Of the same name: the converter writes the folder's into the file.
        seen = room / folder.name
        seen.mkdir()
        for entry in folder.iterdir():
            if entry.name not in without:
                (seen / entry.name).symlink_to(entry.resolve())
        yield seen
