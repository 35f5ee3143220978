"""The tensors of a model folder, read from its safetensors shards a block of rows at a time, without mapping them.

A file is eight bytes with the length of a JSON header (little endian), the header (name -> dtype, shape, offsets),
then the data (https://github.com/huggingface/safetensors, "Format"). It is read with plain reads because the pages of
a mapped file count as memory of the process: a merge would look as large as its shards, and a container's limit on
memory would take it at its word.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.errors import RunError
from training.system import foreign_json
from training.system.foreign_json import Damaged

if TYPE_CHECKING:
    import torch

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER = "adapter_"  # how the files of an adapter of PEFT's begin
MOST_HEADER = 100_000_000  # bytes, as the library itself has it
SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
MOST_DIMENSIONS = 64  # as torch has it
FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # what can be merged: safetensors' name -> torch's


@dataclass(frozen=True)
class Tensor:
    """One tensor as it lies in a file: `start` and `size` are bytes, `start` counted from the file's first byte."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int

    @property
    def rows(self) -> int:
        """How many rows the tensor has when every dimension but the last is flattened (a vector is one row)."""
        return math.prod(self.shape[:-1])

    @property
    def width(self) -> int:
        """The length of the last dimension."""
        return self.shape[-1] if self.shape else 1


def source(folder: Path) -> Path | None:
    """The file or the index that transformers loads a folder by, by its own rule; None where it would find nothing.

    Its rule: model.safetensors, else what model.safetensors.index.json names. Whatever lies beside them (the shards of an
    earlier download, another precision, Mistral's own copy) is not what is trained, so it is not merged or converted either.
    """
    return next((folder / name for name in (WHOLE, INDEX) if (folder / name).is_file()), None)


def shards(folder: Path, stage: str = "merge") -> list[Path]:
    """The safetensors files that transformers takes of a model folder. RunError where it finds none, or not all."""
    found = source(folder)
    if found is None:
        raise RunError(stage, _nothing(folder))
    if found.name == WHOLE:
        return [found]
    try:
        names = sorted(set(foreign_json.read(found)["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, Damaged) as error:
        raise RunError(stage, f"{found} is not a safetensors index ({error}); download the model again") from None
    missing = [name for name in names if Path(name).name != name or not (folder / name).is_file()]
    if missing:
        raise RunError(stage, f"{folder} lacks {', '.join(missing)}, which its index names; download it again")
    return [folder / name for name in names]


def _nothing(folder: Path) -> str:
    """Why a folder has no weights that transformers would find, and what would do."""
    for name in (WHOLE, INDEX):
        if (folder / name).is_symlink():
            target = (folder / name).readlink()
            return f"{folder}: {name} is a link to {target}, which is not there; download the model again"
    named = (file for file in folder.glob("*.safetensors") if file.is_file())
    found = sorted(file.name for file in named if not file.name.startswith("."))
    if not found:
        return f"{folder} holds no safetensors weights"
    if all(name.startswith(ADAPTER) for name in found):
        return f"{folder}: its only weights are a LoRA adapter's ({found[0]}); name the model that it belongs to"
    if any(re.search(r"-\d+-of-\d+\.safetensors$", name) for name in found):
        return f"{folder} holds {found[0]} without {INDEX}, by which the parts are found; download the model again"
    return f"{folder} holds no {WHOLE}, the only name that weights are found by; rename the right one of {', '.join(found)}"


def header(file: Path, stage: str = "merge") -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of one file, in the order of their data, and its metadata. RunError when the file is damaged."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        try:
            if length > min(size, MOST_HEADER):
                raise ValueError(f"its header claims {length:,} bytes, the file has {size:,}")
            entries = foreign_json.parse(stream.read(length), "its header")
            metadata = entries.pop("__metadata__", {})
            tensors = [_tensor(file, name, 8 + length, entry) for name, entry in entries.items()]
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, Damaged) as error:
            raise RunError(stage, f"{file} is not a whole safetensors file: {error}") from None
    for tensor in tensors:
        if tensor.start + tensor.size > size:
            raise RunError(stage, f"{file} is cut short: {tensor.name} ends beyond its {size:,} bytes")
    return {tensor.name: tensor for tensor in sorted(tensors, key=lambda tensor: tensor.start)}, metadata


def _tensor(file: Path, name: str, origin: int, entry: dict[str, Any]) -> Tensor:
    begin, end = entry["data_offsets"]
    dtype, shape = entry["dtype"], tuple(entry["shape"])
    numbers = (begin, end, *shape)
    if (
        not all(foreign_json.is_whole(number) and number >= 0 for number in numbers)
        or begin > end
        or len(shape) > MOST_DIMENSIONS
    ):
        raise ValueError(f"{name} has no place or no shape: {foreign_json.shown(entry)}")
    if dtype in SIZES and math.prod(shape) * SIZES[dtype] != end - begin:
        raise ValueError(f"{name} has {end - begin:,} bytes, which is not {dtype} {list(shape)}")
    return Tensor(name, file, dtype, shape, origin + begin, end - begin)


def tensors(folder: Path, stage: str = "merge") -> dict[str, Tensor]:
    """Every tensor of a model folder by name. RunError when a name is in two shards."""
    found: dict[str, Tensor] = {}
    for shard in shards(folder, stage):
        for name, tensor in header(shard, stage)[0].items():
            if name in found:
                raise RunError(stage, f"{folder}: {name} is in {found[name].file.name} and in {shard.name}")
            found[name] = tensor
    return found


def encode_header(entries: dict[str, tuple[str, tuple[int, ...]]], metadata: dict[str, str]) -> bytes:
    """The start of a safetensors file whose data follows in the order of `entries` (name -> dtype and shape)."""
    described: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    offset = 0
    for name, (dtype, shape) in entries.items():
        end = offset + math.prod(shape) * SIZES[dtype]
        described[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(described, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)  # the data starts at a multiple of eight, as the format asks
    return len(text).to_bytes(8, "little") + text


def read_rows(tensor: Tensor, start: int = 0, stop: int | None = None) -> torch.Tensor:
    """Rows `start` to `stop` of a float tensor as a writable torch tensor [rows, width] in the file's own dtype."""
    import torch

    stop = tensor.rows if stop is None else stop
    row = tensor.width * SIZES[tensor.dtype]
    data = bytearray((stop - start) * row)
    with tensor.file.open("rb", buffering=0) as stream:
        stream.seek(tensor.start + start * row)
        view = memoryview(data)
        while view:
            count = stream.readinto(view)
            if not count:
                raise RunError("merge", f"{tensor.file} ended while {tensor.name} was read")
            view = view[count:]
    if not data:
        return torch.empty(stop - start, tensor.width, dtype=getattr(torch, FLOATS[tensor.dtype]))
    return torch.frombuffer(data, dtype=getattr(torch, FLOATS[tensor.dtype])).view(stop - start, tensor.width)
