"""Every random state that training draws from: Python's, NumPy's, torch's, and each GPU's."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from training.system import wire

if TYPE_CHECKING:
    from numpy import uint32
    from numpy.typing import NDArray
    from torch import Tensor

    # The name of the generator, its numbers, where it is in them, and a second normal number that waits.
    NumpyState = tuple[str, NDArray[uint32], int, int, float]


@dataclass(frozen=True, kw_only=True)
class RandomState:
    """The random states of this process at one moment."""

    python: tuple[int, tuple[int, ...], float | None]
    numpy: NumpyState
    torch: Tensor
    cuda: Sequence[Tensor] | None  # a card each; None without any


def take() -> RandomState:
    """The states as they are now."""
    import numpy
    import torch

    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None
    # The legacy form is a tuple; without it there would be a dict.
    of_numpy = cast("NumpyState", numpy.random.get_state(legacy=True))
    return RandomState(python=random.getstate(), numpy=of_numpy, torch=torch.get_rng_state(), cuda=cuda)


def put_back(state: RandomState) -> None:
    """Go on from these states."""
    import numpy
    import torch

    random.setstate(state.python)
    numpy.random.set_state(state.numpy)
    torch.set_rng_state(state.torch)
    if state.cuda is not None:
        torch.cuda.set_rng_state_all(state.cuda)


def told(state: RandomState) -> dict[str, object]:
    """A state as ranks may tell it to each other."""
    name, numbers, *rest = state.numpy
    return {
        "python": state.python,
        "numpy": [name, numbers.tolist(), *rest],
        "torch": state.torch.numpy().tobytes(),
        "cuda": None if state.cuda is None else [one.numpy().tobytes() for one in state.cuda],
    }


def heard(said: object) -> RandomState:
    """What `told` was given. Raises RunError where it is nothing of the kind."""
    import numpy
    import torch

    try:
        if not isinstance(said, Mapping):
            raise TypeError
        version, numbers, gauss = said["python"]
        name, vector, position, has_gauss, cached = said["numpy"]
        cuda = said["cuda"]
        return RandomState(
            python=(version, tuple(numbers), gauss),
            numpy=(name, numpy.array(vector, dtype=numpy.uint32), position, has_gauss, cached),
            torch=torch.frombuffer(bytearray(said["torch"]), dtype=torch.uint8),
            cuda=None if cuda is None else [torch.frombuffer(bytearray(one), dtype=torch.uint8) for one in cuda],
        )
    except (KeyError, TypeError, ValueError, OverflowError):
        raise wire.refused("what another process sends is no random state") from None
