"""A bar for a run, made from its events: in a notebook, on a terminal; elsewhere none."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from typing import Any, Protocol

# What begins when a stage is done.
NEXT = {
    "train": "evaluate", "evaluate": "merge", "merge": "convert", "convert": "quantise", "quantise": "modelfile",
    "modelfile": "check", "check": "report",
}  # fmt: skip


class Bar(Protocol):
    """Is told what happens."""

    def take(self, event: Mapping[str, Any]) -> None:
        """One event of the run."""

    def say(self, text: str) -> None:
        """A line beside the bar."""

    def close(self) -> None:
        """Nothing more comes."""


class Nothing:
    """No bar."""

    def take(self, event: Mapping[str, Any]) -> None:
        """One event of the run."""

    def say(self, text: str) -> None:
        """A line beside the bar."""

    def close(self) -> None:
        """Nothing more comes."""


class Shown:
    """A bar of steps with the losses, and then the stage that the run is in. `tqdm`: the class that draws it."""

    def __init__(self, tqdm: Any) -> None:
        self._tqdm, self._bar, self._figures = tqdm, tqdm(total=None, desc="preparing", unit="step"), {}

    _figures: dict[str, str]

    def take(self, event: Mapping[str, Any]) -> None:
        """One event of the run."""
        bar, kind = self._bar, event.get("event")
        if kind == "started":
            bar.reset(total=event.get("total"))
            bar.set_description("train")
        elif kind == "step":
            self._figure("loss", event.get("loss"))
            bar.update(int(event["step"]) - bar.n)
        elif kind == "evaluation":
            self._figure("validation", event.get("loss"))
        elif kind == "stage":
            bar.set_description(NEXT.get(str(event.get("name")), "report"))
        elif kind == "warning":
            self.say(str(event.get("message")))
        elif kind == "done":
            bar.set_description("done")

    def _figure(self, name: str, value: object) -> None:
        self._figures[name] = f"{value:.4f}" if isinstance(value, (int, float)) else "?"
        self._bar.set_postfix(self._figures, refresh=False)

    def say(self, text: str) -> None:
        """A line beside the bar."""
        self._tqdm.write(text, file=sys.stderr)

    def close(self) -> None:
        """Nothing more comes."""
        self._bar.close()


def made(progress: bool | None) -> Bar:
    """A bar where somebody sees it: in a notebook or on a terminal. True: in any case, False: never."""
    seen = "ipykernel" in sys.modules or (sys.stderr is not None and sys.stderr.isatty())
    if progress is False or (progress is None and not seen):
        return Nothing()
    try:
        with warnings.catch_warnings():
            # It says so where a notebook has no widgets, and draws with text then.
            warnings.simplefilter("ignore")
            from tqdm.auto import tqdm
    except ImportError:
        return Nothing()
    return Shown(tqdm)
