"""What ranks tell each other comes back as it was; a pickle, and whatever else is no message, is refused."""

from __future__ import annotations

import contextlib
import json
import pickle
import random
import struct

import pytest
from hypothesis import given as for_all
from hypothesis import strategies as st

from training.errors import RunError
from training.runs import checkpoint
from training.runs.checkpoint import Checkpoint, Manifest
from training.system import wire

PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
VALUES = st.recursive(PLAIN, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=12)


@for_all(VALUES)
def test_what_is_told_comes_back_as_it_was(value):
    assert wire.decode(wire.encode(value)) == value


@for_all(st.binary())
def test_bytes_that_are_no_message_are_refused_and_nothing_else_happens(data):
    try:
        wire.decode(data)
    except RunError as error:
        assert "a stranger is connected to this training" in str(error)


def message(text: str, behind: bytes = b"") -> bytes:
    return struct.pack("!Q", len(text.encode())) + text.encode() + behind


class Evil:
    """A pickle of it leaves a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_pickle_is_not_run(tmp_path):
    content = pickle.dumps(Evil(tmp_path / "left"))
    for told in (content, struct.pack("!Q", len(content)) + content, wire.encode(content)):
        with contextlib.suppress(RunError):
            assert wire.decode(told) == content
    assert not (tmp_path / "left").exists()
    pickle.loads(content)
    assert (tmp_path / "left").exists(), "this test cannot fail"


@pytest.mark.parametrize(
    "told",
    [
        b"",
        struct.pack("!Q", 1 << 63) + b"1",
        message("[" * 100_000),
        message("1" * 10_000),
        message("1", b"more"),
        message(json.dumps({wire.BYTES: 4}), b"abc"),
        message(json.dumps({wire.BYTES: -1}), b"abc"),
        message(json.dumps({wire.BYTES: 1.0}), b"a"),
        message(json.dumps({wire.BYTES: True}), b"a"),
        message(json.dumps([{wire.BYTES: 2}, {wire.BYTES: 2}]), b"abc"),
        struct.pack("!Q", 1) + b"\xff",
    ],
)
def test_a_message_that_says_what_is_not_so_is_refused(told):
    with pytest.raises(RunError, match="what another process says is no message of this program"):
        wire.decode(told)


@pytest.mark.parametrize("said", [-5, wire.MOST + 1, 1 << 62])
def test_an_absurd_length_is_not_waited_for(said):
    with pytest.raises(RunError, match=f"another process announces a message of {said:,} bytes"):
        wire.length(said)
    assert wire.length(wire.MOST) == wire.MOST


def test_what_is_no_plain_value_is_not_told():
    with pytest.raises(TypeError, match="Evil is not told to other ranks"):
        wire.encode({"a": [Evil("x")]})


MANIFEST = {
    "v": 1, "step": 4, "files": {"a.safetensors": "ab"}, "fingerprint": {"LoRA.R": 8}, "micro_batch": [1, 2], "carried": {},
}  # fmt: skip


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    found = Checkpoint(tmp_path / "checkpoint-4", Manifest.read(MANIFEST))
    assert (found.step, found.manifest.as_dict()) == (4, MANIFEST)
    assert checkpoint.heard(wire.decode(wire.encode(checkpoint.told(found)))) == found
    assert checkpoint.heard(checkpoint.told(None)) is None


@pytest.mark.parametrize(
    "said",
    [
        7,
        ["/run"],
        ["/run", []],
        [7, MANIFEST],
        *(["/run", {name: value for name, value in MANIFEST.items() if name != left}] for left in list(MANIFEST)[1:]),
        ["/run", {**MANIFEST, "files": {"../../.bashrc": "ab"}}],
        ["/run", {**MANIFEST, "files": {"/etc/passwd": "ab"}}],
        ["/run", {**MANIFEST, "files": {"..": "ab"}}],
        ["/run", {**MANIFEST, "step": "../x"}],
        ["/run", {**MANIFEST, "micro_batch": [1, "2"]}],
        ["/run", {**MANIFEST, "carried": {"best_step": "../x"}}],
    ],
)
def test_what_is_no_checkpoint_is_refused_above_all_names_that_lead_elsewhere(said):
    with pytest.raises(RunError, match="what another process sends is no checkpoint"):
        checkpoint.heard(said)


@pytest.mark.tiny
def test_a_random_state_that_was_told_goes_on_as_the_one_it_was_made_from():
    import numpy
    import torch

    from training.train import random_state

    def draw() -> list[float]:
        return [random.random(), random.gauss(0, 1), numpy.random.randn(), float(torch.rand(()))]

    before = random_state.take()
    try:
        draw()  # a gauss that waits for its second number is part of the state
        state = random_state.take()
        heard = random_state.heard(wire.decode(wire.encode(random_state.told(state))))
        expected = draw()
        random_state.put_back(heard)
        assert draw() == expected
        assert heard.python == state.python and heard.numpy[1].dtype == state.numpy[1].dtype
    finally:
        random_state.put_back(before)
    for wrong in (
        None,
        7,
        {},
        {**random_state.told(state), "numpy": 3},
        {"python": [1, [2], None], "numpy": []},
    ):
        with pytest.raises(RunError, match="what another process sends is no random state"):
            random_state.heard(wrong)
