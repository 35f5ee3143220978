"""Does the Python that runs this file serve the project? Prints why not, in one line; nothing when it does.

Any Python may be asked, also one of ten years ago: this is written in what all of them can read.
"""
# ruff: noqa: UP031  an old Python knows no f-strings

import struct
import sys

# What a Python may have been built without. The packages need them, and nothing can install them later.
PARTS = ("ctypes", "ssl", "zlib", "bz2", "lzma")


def problem(version, bits, missing):
    # type: (tuple[int, int], int, list[str]) -> str
    """Why a Python of this (major, minor) version, with pointers of `bits` and without the parts `missing`, does not serve."""
    if not (3, 10) <= version <= (3, 13):
        return "is Python %d.%d; 3.10 to 3.13 serve" % version
    if bits != 64:
        return "is a 32-bit Python; PyTorch needs 64 bits"
    if missing:
        return "was built without %s" % ", ".join(missing)
    return ""


def missing_parts():
    # type: () -> list[str]
    """The parts that this Python was built without."""
    missing = []
    for name in PARTS:
        try:
            __import__(name)
        except ImportError:
            missing.append(name)
    return missing


if __name__ == "__main__":
    sys.stdout.write(problem(sys.version_info[:2], 8 * struct.calcsize("P"), missing_parts()))
