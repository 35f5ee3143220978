"""What a file that torch.save wrote names to be called when it is read, without reading it.

Training reads such files with weights_only=True, which calls nothing but what puts tensors together. So code in one
never runs; but a checkpoint that holds some can be taken up by nobody, and must not be called safe.
"""

from __future__ import annotations

import pickletools
import zipfile
from pathlib import Path

ENDS = (".pt", ".pth", ".bin")
# Where the things come from that put tensors, NumPy's arrays and tables together again.
PARTS = ("torch", "numpy", "collections", "_codecs")
LARGEST = 256 << 20  # bytes of the pickle, which holds no tensor's numbers


def prove(file: Path) -> None:
    """Raise ValueError, with what it is, where a file holds something else than tensors and plain values."""
    try:
        for operation, argument, _ in pickletools.genops(_pickle_in(file)):
            if operation.name in ("STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"):
                raise _Code(f"{file.name} holds code")
            if operation.name == "GLOBAL" and str(argument).partition(" ")[0].partition(".")[0] not in PARTS:
                raise _Code(f"{file.name} holds code ({str(argument).replace(' ', '.')})")
    except _Code:
        raise
    except (ValueError, zipfile.BadZipFile, NotImplementedError, RuntimeError):
        raise ValueError(f"{file.name} is not what torch writes") from None


class _Code(ValueError):
    """A name of something that would be called."""


def _pickle_in(file: Path) -> bytes:
    with zipfile.ZipFile(file) as archive:
        names = [name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl"]
        if len(names) != 1 or archive.getinfo(names[0]).file_size > LARGEST:
            raise zipfile.BadZipFile
        return archive.read(names[0])
