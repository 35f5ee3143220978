"""GGUF files that others wrote: whatever their header says ends in words, before memory is taken for it."""

from __future__ import annotations

import random
import struct
import tracemalloc
from pathlib import Path

import pytest

from training.errors import UserError
from training.llama import gguf_file


def text(word: str) -> bytes:
    """A text as GGUF has it."""
    return struct.pack("<Q", len(word)) + word.encode()


ARCHITECTURE = text("general.architecture") + struct.pack("<I", 8) + text("llama")
TENSOR = text("a.weight") + struct.pack("<I2QIQ", 2, 4, 2, 0, 0)


def content(*pairs: bytes, tensor: bytes = TENSOR) -> bytes:
    """A file with these pairs beside its architecture, and one tensor."""
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 1 + len(pairs)) + ARCHITECTURE + b"".join(pairs) + tensor
    return head + bytes(-len(head) % 32 + 32)


def pair(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


NESTED = struct.pack("<IQ", 9, 1) * 3 + struct.pack("<IQI", 4, 1, 7)
WRONG = {
    "general.alignment is 0;": content(pair("general.alignment", 4, struct.pack("<I", 0))),
    "general.alignment is '32'": content(pair("general.alignment", 8, text("32"))),
    "general.alignment is True": content(pair("general.alignment", 7, b"\1")),
    "general.architecture is 7;": content(pair("general.architecture", 4, struct.pack("<I", 7))),
    "(general.architecture is missing, which every model has)": b"GGUF" + struct.pack("<IQQ", 3, 0, 0),
    "of another kind (its numbers are those of big-endian machines): get one": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    "of another kind (version 1; 2 and 3 can be read): get one for this": b"GGUF" + struct.pack("<IQQ", 1, 0, 0),
    "has 0 dimensions": content(tensor=text("a.weight") + struct.pack("<IIQ", 0, 0, 0)),
    "has 100,000 dimensions; from 1 to 4": content(
        tensor=text("a.weight") + struct.pack("<I", 100_000) + bytes(800_000) + struct.pack("<IQ", 0, 0)
    ),
    "arrays nested more than 2 deep": content(pair("x", 9, NESTED)),
    "an array of 100 entries": content(pair("x", 9, struct.pack("<IQ", 12, 100))),
}


def test_a_file_of_ours_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(content(pair("x", 9, struct.pack("<IQ2I", 4, 2, 7, 8))))
    found = gguf_file.read(tmp_path / "x.gguf")
    assert found.fields["x"] == [7, 8]
    assert found.tensors["a.weight"].shape == (2, 4)


@pytest.mark.parametrize("said", WRONG)
def test_what_is_wrong_with_a_header_is_told_with_the_file(said: str, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(WRONG[said])
    with pytest.raises(UserError) as caught:
        gguf_file.read(tmp_path / "x.gguf")
    assert said in str(caught.value)
    assert str(tmp_path / "x.gguf") in str(caught.value)


def test_any_damage_to_a_header_ends_in_words_and_takes_no_memory(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    """Bytes changed at random, from a seed; --fuzz N for more."""
    chance, file = random.Random(7), tmp_path / "x.gguf"
    array = pair("x", 9, struct.pack("<IQ", 8, 3) + text("a") * 3)
    whole = content(
        pair("general.alignment", 4, struct.pack("<I", 32)), array, pair("n", 9, struct.pack("<IQI", 4, 1, 7))
    )
    tracemalloc.start()
    for _ in range(4 * pytestconfig.getoption("--fuzz")):
        spoiled = bytearray(whole)
        for _ in range(chance.randint(1, 3)):
            at, size = chance.randrange(4, len(whole) - 40), chance.choice((1, 4, 8))
            spoiled[at : at + size] = chance.choice((bytes(size), b"\xff" * size, chance.randbytes(size)))
        file.write_bytes(spoiled[: chance.choice((len(whole), chance.randrange(len(whole))))])
        try:
            gguf_file.read(file)
        except UserError as error:
            assert str(file) in str(error)
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()
