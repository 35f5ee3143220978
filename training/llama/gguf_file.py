"""Read a GGUF file: its key-value pairs at once, its tensors as views of the file.

The reader of the package `gguf` builds numpy objects for every string and takes 2.5 s for a vocabulary of 49k tokens,
10 s for 152k (this one 0.1 s and 0.2 s), and it trusts the lengths it reads. The formats of the tensors are the
package's. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.errors import UserError

if TYPE_CHECKING:
    import numpy as np

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_LENGTH = struct.Struct("<Q")
_MOST_DIMENSIONS, _DEEPEST = 4, 2  # what ggml knows; an array of arrays is not written by anybody
_MOST = 1 << 28  # entries of an array, pairs of a file: beyond that a length is damage, not data


@dataclass(frozen=True)
class Tensor:
    """One tensor: its place in the file. `shape` in numpy's order (rows first), `kind` a ggml type number."""

    name: str
    shape: tuple[int, ...]
    kind: int
    start: int
    size: int  # bytes

    @property
    def kind_name(self) -> str:
        from gguf import GGMLQuantizationType

        name: str = GGMLQuantizationType(self.kind).name
        return name


@dataclass(frozen=True)
class GGUF:
    """A file's pairs (arrays as lists) and tensors by name, in the order of the file."""

    path: Path
    fields: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def architecture(self) -> str:
        name: str = self.fields["general.architecture"]
        return name

    def of_architecture(self, key: str, default: object = None) -> Any:
        """The value of `<architecture>.<key>`."""
        return self.fields.get(f"{self.architecture}.{key}", default)

    def values(self, tensor: Tensor, first: int = 0, rows: int | None = None) -> np.ndarray:
        """The tensor in float32, or `rows` of its rows from `first` on. UserError for a type the package cannot read."""
        import numpy as np
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize, quant_shape_to_byte_shape

        shape = quant_shape_to_byte_shape(tensor.shape, GGMLQuantizationType(tensor.kind))
        raw = np.memmap(self.path, np.uint8, "r", tensor.start, shape)
        try:
            return np.array(dequantize(raw[first : None if rows is None else first + rows], tensor.kind), np.float32)
        except NotImplementedError as error:
            raise UserError(f"{tensor.name} is of the type {tensor.kind_name}, which cannot be read") from error


class _OfAnotherKind(ValueError):
    """A file that is whole, for all that is known: to get it again would not help."""


def read(path: Path) -> GGUF:
    """Read everything but the weights. Raises UserError, naming the file, when it is no whole GGUF file."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _parse(path, content)
    except _OfAnotherKind as error:
        raise UserError(f"{path}: a GGUF file of another kind ({error}): get one for this machine") from error
    except (ValueError, struct.error, UnicodeDecodeError, KeyError) as error:
        raise UserError(f"{path}: not a whole GGUF file ({error}): get it again") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error


def _parse(path: Path, content: mmap.mmap) -> GGUF:
    cursor = _Cursor(content)
    if content[:4] != b"GGUF":
        raise ValueError(f"it begins with {content[:4]!r} instead of b'GGUF'")
    cursor.at = 4
    version = cursor.scalar("I")
    if version not in (2, 3):
        turned = int.from_bytes(version.to_bytes(4, "little"), "big") in (2, 3)
        what = "its numbers are those of big-endian machines" if turned else f"version {version}; 2 and 3 can be read"
        raise _OfAnotherKind(what)
    tensor_count, pair_count = cursor.count(), cursor.count()
    fields = {}
    for _ in range(pair_count):
        key = cursor.text()
        fields[key] = cursor.value(cursor.scalar("I"))
    if "general.architecture" not in fields:
        raise ValueError("general.architecture is missing, which every model has")
    if not isinstance(fields["general.architecture"], str):
        raise ValueError(f"general.architecture is {fields['general.architecture']!r:.40}; a text is wanted")
    places = []
    for _ in range(tensor_count):
        name = cursor.text()
        dimensions = cursor.scalar("I")
        if not 1 <= dimensions <= _MOST_DIMENSIONS:
            raise ValueError(f"{name} has {dimensions:,} dimensions; from 1 to {_MOST_DIMENSIONS} can be read")
        shape = tuple(cursor.scalar("Q") for _ in range(dimensions))
        places.append((name, shape[::-1], cursor.scalar("I"), cursor.scalar("Q")))
    alignment = fields.get("general.alignment", 32)
    if not isinstance(alignment, int) or isinstance(alignment, bool) or not 1 <= alignment <= len(content):
        raise ValueError(f"general.alignment is {alignment!r:.40}; a whole number from 1 on is wanted")
    start = -(-cursor.at // alignment) * alignment
    tensors = {place[0]: _tensor(*place, start, len(content)) for place in places}
    return GGUF(path, fields, tensors)


def _tensor(name: str, shape: tuple[int, ...], kind: int, offset: int, start: int, end: int) -> Tensor:
    from gguf.constants import GGML_QUANT_SIZES

    if kind not in GGML_QUANT_SIZES:
        raise ValueError(f"{name} is of the unknown type {kind}")
    block, size = GGML_QUANT_SIZES[kind]
    count = 1
    for n in shape:
        count *= n
    if shape and shape[-1] % block:
        raise ValueError(f"{name} has rows of {shape[-1]}, no multiple of {block}")
    size = count // block * size
    if start + offset + size > end:
        raise ValueError(f"{name} ends at byte {start + offset + size}, the file at {end}")
    return Tensor(name, shape, kind, start + offset, size)


class _Cursor:
    """A place in the file, moved by reading."""

    def __init__(self, content: mmap.mmap) -> None:
        self.content = content
        self.at = 0

    def scalar(self, letter: str) -> Any:
        (value,) = struct.unpack_from("<" + letter, self.content, self.at)
        self.at += struct.calcsize("<" + letter)
        return value

    def count(self) -> int:
        count: int = self.scalar("Q")
        if count > min(_MOST, len(self.content)):
            raise ValueError(f"a length of {count} at byte {self.at - 8}")
        return count

    def text(self) -> str:
        (text,) = self.texts(1)
        return text

    def texts(self, count: int) -> list[str]:
        """One after the other, in one loop: a vocabulary with its merges is hundreds of thousands of them."""
        content, at, most, found = self.content, self.at, min(_MOST, len(self.content)), []
        for _ in range(count):
            (length,) = _LENGTH.unpack_from(content, at)
            if length > most:
                raise ValueError(f"a length of {length} at byte {at}")
            begin, at = at + _LENGTH.size, at + _LENGTH.size + length
            raw = content[begin:at]
            if len(raw) < length:
                raise ValueError("it ends within a text")
            found.append(raw.decode("utf-8"))
        self.at = at
        return found

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            inner, count = self.scalar("I"), self.count()
            if depth == _DEEPEST:
                raise ValueError(f"arrays nested more than {_DEEPEST} deep at byte {self.at}")
            # Before anything is made: each entry takes at least so many bytes of the file.
            least = {_STRING: 8, _ARRAY: 12}.get(inner) or struct.calcsize(_letter(inner))
            if count * least > len(self.content) - self.at:
                raise ValueError(
                    f"an array of {count:,} entries at byte {self.at}, where the file does not hold as many"
                )
            if inner == _STRING:
                return self.texts(count)
            if inner == _ARRAY:
                return [self.value(inner, depth + 1) for _ in range(count)]
            layout = f"<{count}{_letter(inner)}"
            values = struct.unpack_from(layout, self.content, self.at)
            self.at += struct.calcsize(layout)
            return list(values)
        return self.scalar(_letter(kind))


def _letter(kind: int) -> str:
    if kind not in _SCALARS:
        raise ValueError(f"a value of the unknown type {kind}")
    return _SCALARS[kind]
