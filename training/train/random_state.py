"""Every random state that training draws from: Python's, NumPy's, torch's, and each card's."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from training.system import wire

if TYPE_CHECKING:
    from numpy import uint32
    from numpy.typing import NDArray
    from torch import Tensor

    # The name of the generator, its numbers, where it is in them, and a second normal number that waits.
    NumpyState = tuple[str, NDArray[uint32], int, int, float]

# The first process's, of one or of several.
FIRST = ("rng_state.pth", "rng_state_0.pth")


@dataclass(frozen=True, kw_only=True)
class RandomState:
    """The random states of this process at one moment."""

    python: tuple[int, tuple[int, ...], float | None]
    numpy: NumpyState
    torch: Tensor
    cuda: Sequence[Tensor] | None  # a card each; None without any
    xpu: Sequence[Tensor] | None  # likewise


def take() -> RandomState:
    """The states as they are now."""
    import numpy
    import torch

    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None
    xpu = torch.xpu.get_rng_state_all() if torch.xpu.is_available() else None
    # The legacy form is a tuple; without it there would be a dict.
    of_numpy = cast("NumpyState", numpy.random.get_state(legacy=True))
    return RandomState(python=random.getstate(), numpy=of_numpy, torch=torch.get_rng_state(), cuda=cuda, xpu=xpu)


def put_back(state: RandomState) -> None:
    """Go on from these states."""
    import numpy
    import torch

    random.setstate(state.python)
    numpy.random.set_state(state.numpy)
    torch.set_rng_state(state.torch)
    if state.cuda is not None:
        torch.cuda.set_rng_state_all(state.cuda)
    if state.xpu is not None:
        torch.xpu.set_rng_state_all(state.xpu)


def named(state: RandomState, alone: bool) -> dict[str, object]:
    """A state under the names that transformers' trainer looks for, and "xpu", which it does not keep.

    `alone`: of the only process, for which the trainer looks for one card's state in the place of a list.
    """
    of_cards = {"cuda": state.cuda, "xpu": state.xpu}
    cards = {kind: states[0] if alone and kind == "cuda" else states for kind, states in of_cards.items() if states}
    return {"python": state.python, "numpy": state.numpy, "cpu": state.torch, **cards}


def put_back_xpu(file: Path) -> None:
    """The part of a saved state that transformers' trainer does not read."""
    import torch
    from transformers.trainer_pt_utils import safe_globals

    if not torch.xpu.is_available():
        return
    with safe_globals():
        saved = torch.load(file, weights_only=True)
    if states := saved.get("xpu"):
        torch.xpu.set_rng_state_all(states)


def put_back_of_first(folder: Path) -> None:
    """The first process's state of a checkpoint, without that of its cards: from it the order of the rows is drawn."""
    import numpy
    import torch
    from transformers.trainer_pt_utils import safe_globals

    file = next(file for name in FIRST if (file := folder / name).is_file())
    with safe_globals():
        saved = torch.load(file, weights_only=True)
    random.setstate(saved["python"])
    numpy.random.set_state(saved["numpy"])
    torch.set_rng_state(saved["cpu"])


def told(state: RandomState) -> dict[str, object]:
    """A state as ranks may tell it to each other."""
    name, numbers, *rest = state.numpy
    return {
        "python": state.python,
        "numpy": [name, numbers.tolist(), *rest],
        "torch": state.torch.numpy().tobytes(),
        "cuda": _bytes(state.cuda),
        "xpu": _bytes(state.xpu),
    }


def _bytes(states: Sequence[Tensor] | None) -> list[bytes] | None:
    return None if states is None else [one.numpy().tobytes() for one in states]


def heard(said: object) -> RandomState:
    """What `told` was given. Raises RunError where it is nothing of the kind."""
    import numpy

    try:
        if not isinstance(said, Mapping):
            raise TypeError
        version, numbers, gauss = said["python"]
        name, vector, position, has_gauss, cached = said["numpy"]
        return RandomState(
            python=(version, tuple(numbers), gauss),
            numpy=(name, numpy.array(vector, dtype=numpy.uint32), position, has_gauss, cached),
            torch=_tensor(said["torch"]),
            cuda=_tensors(said["cuda"]),
            xpu=_tensors(said["xpu"]),
        )
    except (KeyError, TypeError, ValueError, OverflowError):
        raise wire.refused("what another process sends is no random state") from None


def _tensor(said: bytes) -> Tensor:
    import torch

    return torch.frombuffer(bytearray(said), dtype=torch.uint8)


def _tensors(said: Sequence[bytes] | None) -> list[Tensor] | None:
    return None if said is None else [_tensor(one) for one in said]
