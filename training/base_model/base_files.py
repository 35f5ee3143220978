"""The base model's files as they were when a run began, so that a folder that changed meanwhile is noticed.

A model of the Hub has a commit; a folder has nothing but its content, and a run goes on days later, or is merged then.
Settings and tokenizers are hashed whole, and so are small weights. Of larger weights the header is, with every name,
shape and place, and the beginning, the middle and the end of each tensor: 16 GB would take a minute of every start.
So a copy is the same model, whatever its times say; a training, a merge or another precision changes what is looked at;
single numbers edited between these places do not.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from training.base_model import safetensors_file
from training.system import files

if TYPE_CHECKING:
    from training.base_model.sources import BaseModel

# What the rows are made with, how the model is laid out, and how it ends its answers; code that comes with it.
READ = (
    *("config.json", "generation_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("tokenizer*", "chat_template*", "vocab.*", "merges.txt", "*.model", "*.tiktoken", "*.py"),
)
HASHED_WHOLE = 64 << 20  # bytes of a file of weights
BLOCK = 4096  # bytes that are read at each of a tensor's three places


def of(base: BaseModel) -> dict[str, str]:
    """File -> digest of a base model that has no commit of the Hub; nothing of one that has."""
    return {} if base.revision else digests(base.path, base.kind)


def digests(folder: Path, kind: str) -> dict[str, str]:
    """File -> digest. Of a folder that was unpacked from a file (`kind`) only the weights: the rest is our own work."""
    shards = safetensors_file.shards(folder, "model")
    found = {shard.name: _digest(shard) for shard in shards}
    if kind == "folder":
        read = {file for pattern in READ for file in folder.glob(pattern) if file.is_file()}
        found |= {file.name: _digest(file) for file in read}
    return dict(sorted(found.items()))


def changed(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The files that are others than before, are gone, or have come."""
    return sorted(name for name in {*before, *now} if before.get(name) != now.get(name))


def _digest(file: Path) -> str:
    """Reckoned once as long as nobody writes to the file: a run asks several times."""
    found = file.stat()
    return _reckoned(file, found.st_ino, found.st_size, found.st_mtime_ns)


@functools.cache
def _reckoned(file: Path, _inode: int, size: int, _modified: int) -> str:
    if size <= HASHED_WHOLE or file.suffix != ".safetensors":
        return files.sha256(file)
    tensors = safetensors_file.header(file, "model")[0].values()
    digest = hashlib.sha256(str(size).encode())
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        digest.update(stream.read(length))
        for tensor in tensors:
            for place in (0, tensor.size // 2, max(0, tensor.size - BLOCK)):
                stream.seek(tensor.start + place)
                digest.update(stream.read(min(BLOCK, tensor.size - place)))
    return f"parts:{digest.hexdigest()}"
