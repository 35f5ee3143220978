"""Proves a merged model tensor by tensor: merged = base + scaled update, and nothing else has changed.

It reads the files that were written and computes in float64 by another order of products, so that a mistake of the
merge cannot hide itself; the safetensors library must see the same tensors in them. No model is built, and memory does
not grow with it (so the data are not read through the library: the pages of its mapped files count as memory).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from training.base_model import safetensors_file
from training.base_model.lora_adapter import Change
from training.base_model.safetensors_file import Tensor
from training.errors import RunError
from training.to_gguf import merging
from training.to_gguf.merging import Output

if TYPE_CHECKING:
    import torch

ROWS = 1 << 18  # elements compared at a time: 4 MB in float64, and a dozen temporaries of that size
# Significant bits; exponent of the smallest step.
DIGITS = {"BF16": (8, -133), "F16": (11, -24), "F32": (24, -149)}
# Rounding to nearest is never off by more than half a step; the rest is for this module's own float64 sums.
MOST_ULP = 0.501


@dataclass(frozen=True, kw_only=True)
class Proof:
    """The figures of a merge that holds.

    max_ulp: the largest distance between merged and base + update, in steps (units in the last place) of the merged
    dtype, less what float32 sums may lose: 0.5 where every value is the nearest one. relative_update: norm of the change
    over norm of the base, over all targeted tensors. rounding_loss: norm of what rounding moved, over the norm of the
    update (noise, most of which averages out: 0.3 is usual for bfloat16 after a short run). untrained: targeted tensors
    whose update is exactly 0 (with DoRA: but for what a float32 magnitude's own rounding makes of it); lost: whose update
    rounds away whole.
    """

    tensors: int
    targeted: int
    changed: int
    untrained: int
    lost: int
    max_ulp: float
    relative_update: float
    rounding_loss: float
    elements_changed: float


def verify(base: Path, adapter: Path, merged: Path) -> Proof:
    """Prove that the folder `merged` holds base + adapter. Raises RunError naming the first tensor that is wrong.

    Every tensor that the adapter does not touch must be the base's bit for bit (rounded once where a float32 base was
    written as bfloat16); every other one must be base + update within half a step of its dtype. An adapter that changes
    nothing fails too: it was not trained, or its updates are all too small for 16 bits.
    """
    planned = merging.plan(base, adapter)
    written = safetensors_file.tensors(merged, "check of the merge")
    outputs = planned.outputs
    _same_names(set(outputs), set(written), merged)
    _library_agrees(written)
    sums = {"base": 0.0, "change": 0.0, "update": 0.0, "lost": 0.0, "elements": 0, "changed": 0}
    worst, untrained, lost, changed = 0.0, 0, 0, 0
    for name, output in outputs.items():
        found = written[name]
        if found.shape != output.source.shape or found.dtype != output.dtype:
            raise _broken(
                f"{name} is {found.dtype} {list(found.shape)}, expected {output.dtype} {list(output.source.shape)}"
            )
        if not output.changes:
            _untouched(output, found)
            continue
        ulp, sizes = _compare(output, found)
        worst = max(worst, ulp)
        untrained += sizes["update"] == 0
        lost += sizes["update"] > 0 and sizes["change"] == 0
        changed += sizes["change"] > 0
        for key, value in sizes.items():
            sums[key] += value
    targeted = sum(bool(output.changes) for output in outputs.values())
    if not changed:
        raise _nothing(targeted, lost)
    return Proof(
        tensors=len(outputs),
        targeted=targeted,
        changed=changed,
        untrained=untrained,
        lost=lost,
        max_ulp=round(worst, 6),
        relative_update=math.sqrt(sums["change"] / sums["base"]) if sums["base"] else math.inf,
        rounding_loss=math.sqrt(sums["lost"] / sums["update"]) if sums["update"] else 0.0,
        elements_changed=sums["changed"] / sums["elements"],
    )


def _same_names(expected: set[str], found: set[str], merged: Path) -> None:
    missing, extra = sorted(expected - found), sorted(found - expected)
    if missing:
        raise _broken(f"{merged} lacks {len(missing)} tensors of the base, the first of them {missing[0]}")
    if extra:
        raise _broken(f"{merged} holds {len(extra)} tensors that the base has not, the first of them {extra[0]}")


def _library_agrees(written: dict[str, Tensor]) -> None:
    """RunError unless the safetensors library, which also checks the layout, finds the same tensors in the files."""
    from safetensors import SafetensorError, safe_open

    for path in sorted({tensor.file for tensor in written.values()}):
        ours = {name: tensor.shape for name, tensor in written.items() if tensor.file == path}
        try:
            with safe_open(path, "pt") as file:
                theirs = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise _broken(f"{path} cannot be read by safetensors: {error}") from None
        if ours != theirs:
            raise _broken(f"{path} holds other tensors for safetensors than for this check")


def _nothing(targeted: int, lost: int) -> RunError:
    if lost:
        why = f"its updates of all {lost} trained tensors are smaller than a 16-bit step: train longer or raise LEARNING_RATE"
    else:
        why = f"the updates of all {targeted} targeted tensors are exactly 0: it was not trained"
    return _broken(f"the adapter changes nothing: {why}")


def _broken(message: str) -> RunError:
    return RunError("check of the merge", message)


def _untouched(output: Output, found: Tensor) -> None:
    """RunError unless a tensor without a change is the base's, bit for bit (or rounded once from float32)."""
    if output.source.dtype == found.dtype:
        same = _same_bytes(output.source, found)
    else:
        same = all(old.to(new.dtype).equal(new) for _, old, new in _blocks(output, found))
    if not same:
        raise _broken(f"{output.name} is not targeted by the adapter, but differs from the base")


def _same_bytes(ours: Tensor, theirs: Tensor) -> bool:
    with ours.file.open("rb") as one, theirs.file.open("rb") as other:
        one.seek(ours.start)
        other.seek(theirs.start)
        for done in range(0, ours.size, 1 << 22):
            size = min(1 << 22, ours.size - done)
            if one.read(size) != other.read(size):
                return False
    return ours.size == theirs.size


def _compare(output: Output, written: Tensor) -> tuple[float, dict[str, float]]:
    """The error of a targeted tensor in ulp, and its squared norms. RunError when it is beyond rounding."""
    import torch

    worst = 0.0
    sums = dict.fromkeys(("base", "change", "update", "lost", "elements", "changed"), 0.0)
    updates = [_Update(change) for change in output.changes]
    for first, old, new in _blocks(output, written):
        start, found = old.double(), new.double()
        exact = start.clone()
        for update in updates:
            update.apply(exact, first)
        lost = found - exact
        if not torch.isfinite(lost).all():
            raise _broken(f"{output.name} holds values that are not finite")
        worst = max(worst, 0.5 if lost.any() else 0.0)
        # Only what is not the nearest number needs a closer look: a few in a million, where float32 sums tipped it.
        row, column = (exact.to(new.dtype) != new).nonzero(as_tuple=True)
        if len(row):
            slack = sum(update.slack(row + first, column, start[row, column]) for update in updates)
            steps = (lost[row, column].abs() - slack).clamp_min(0) / _step(exact[row, column], output.dtype)
            worst = max(worst, float(steps.max()))
        if worst > MOST_ULP:
            raise _broken(
                f"{output.name} is not base + update: off by {worst:.3g} steps of {output.dtype}, rounding explains 0.5"
            )
        rounded = start.to(new.dtype)  # the base as 16 bits hold it: what "changed" is measured against
        sums["changed"] += int((new != rounded).sum())
        sums["elements"] += found.numel()
        for key, value in (("base", start), ("change", found - rounded), ("update", exact - start), ("lost", lost)):
            sums[key] += float(torch.linalg.vector_norm(value)) ** 2
    if all(update.untrained() for update in updates):  # the magnitude's rounding, 1e-7 of the base, is no update
        sums.update(dict.fromkeys(("change", "update", "lost", "changed"), 0.0))
    return worst, sums


@lru_cache(maxsize=6)  # the experts of a layer share their factors
def _double(part: Tensor) -> torch.Tensor:
    from safetensors import safe_open

    with safe_open(part.file, "pt") as file:
        tensor: torch.Tensor = file.get_tensor(part.name)
    return tensor.double()


class _Update:
    """One change in float64, added to blocks of rows. Factors are read once: they are small beside their tensor."""

    def __init__(self, change: Change) -> None:
        self.change = change
        parts = {"b": change.b, "a": change.a, "magnitude": change.magnitude}
        self.parts = {key: _double(part) for key, part in parts.items() if part is not None}
        # DoRA's factor of each row.
        self.ratios = self.parts["magnitude"].clone() if change.magnitude else None

    def apply(self, exact: torch.Tensor, first: int) -> None:
        """Add this change to `exact`, whose first row is the target's row `first`."""
        change = self.change
        low, high = max(first, change.start), min(first + len(exact), change.stop)
        if low >= high:
            return
        rows, own = slice(low - first, high - first), slice(low - change.start, high - change.start)
        if change.kind == "replaced":
            exact[rows] = self.parts["b"].reshape(-1, exact.shape[1])[own]
            return
        left, right = self._factors(own)
        exact[rows] += (right @ (left * self._scaling())).T
        if self.ratios is not None:
            ratio = self.parts["magnitude"][own] / exact[rows].square().sum(dim=1).sqrt()
            exact[rows] *= ratio[:, None]
            self.ratios[own] = ratio

    def untrained(self) -> bool:
        """Whether this change is as PEFT makes it before training: a factor 0, and DoRA's magnitude the base's norm.

        To be asked after `apply` has seen all rows. The magnitude is a sum over the row in float32, as in `slack`.
        """
        change = self.change
        if change.kind == "replaced":
            return False
        left, right = self._factors(slice(0, change.stop - change.start))
        if left.any() and right.any():
            return False
        rounding = (math.sqrt(len(right)) + 2) * 2.0**-24
        return self.ratios is None or bool(((self.ratios - 1).abs() <= rounding).all())

    def slack(self, row: torch.Tensor, column: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
        """How far float32 sums may be off at these places of the target, where the base is `start`.

        A sum of n products is off by at most n + 1 roundings of its absolute size (2**-24 each); DoRA's norm is a sum
        over the row, whose rounding grows with the root of its length.
        """
        import torch

        change = self.change
        inside = (row >= change.start) & (row < change.stop) & (change.kind != "replaced")
        own = (row - change.start).where(inside, torch.zeros_like(row))
        if change.kind == "replaced":
            return torch.zeros_like(start)
        left, right = self._factors(slice(0, change.stop - change.start))
        size = start.abs() + abs(self._scaling()) * (left[:, own].abs() * right[column].T.abs()).sum(dim=0)
        roundings = float(change.rank + 2)
        if self.ratios is not None:
            size = size * self.ratios[own].abs()
            roundings += math.sqrt(len(right))
        return torch.where(inside, size * roundings * 2.0**-24, 0.0)

    def _scaling(self) -> float:
        return self.change.alpha / (math.sqrt(self.change.rank) if self.change.rslora else self.change.rank)

    def _factors(self, own: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """(left, right) with update = (right @ left) transposed: left [rank, rows], right [width, rank]."""
        change, a, b = self.change, self.parts["a"], self.parts["b"]
        if change.kind == "embedding":
            return a[:, own], b
        index, count = change.expert
        a = a[index * change.rank : (index + 1) * change.rank]
        rows = slice(change.first_row + own.start, change.first_row + own.stop)
        return b[rows].reshape(own.stop - own.start, change.rank, count)[:, :, index].T, a.T


def _blocks(output: Output, written: Tensor) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """A tensor in blocks of about ROWS elements: (number of the first row, rows of the base, rows of the merged)."""
    source = output.source
    step = max(1, ROWS // max(1, source.width))
    for low in range(0, source.rows, step):
        high = min(low + step, source.rows)
        yield low, safetensors_file.read_rows(source, low, high), safetensors_file.read_rows(written, low, high)


def _step(values: torch.Tensor, dtype: str) -> torch.Tensor:
    """The distance of neighbouring numbers of `dtype` at each value (frexp: value = mantissa in [0.5, 1) * 2**exponent)."""
    import torch

    digits, smallest = DIGITS[dtype]
    exponent = torch.frexp(values).exponent - digits
    # frexp(0) says 0: a step of 2**-8.
    exponent = exponent.where(values != 0, torch.full_like(exponent, smallest))
    return torch.ldexp(torch.ones_like(values), exponent.clamp_min(smallest))
