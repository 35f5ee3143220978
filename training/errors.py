"""The ways in which this program fails or is stopped, each with its exit code. Caught once, at the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path


class FinetuneError(Exception):
    """Base of every error that is told to a person without a traceback.

    problems: all that is wrong, where that was looked for as a whole; safe: what is on the disk, and how to go on; run:
    the folder of the run that ended so, where the caller is told (training/api.py).
    """

    exit_code = 1
    problems: Sequence[str] = ()
    safe: str = ""
    run: Path | None = None

    def parts(self) -> dict[str, object]:
        """What a program is told beside the text."""
        return {}


class UserError(FinetuneError):
    """Settings, arguments or data are wrong (exit 2); nothing was started. Holds every problem that was found."""

    exit_code = 2
    problems: list[str]

    def __init__(self, problems: str | Sequence[str], title: str = "") -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        self.title = title
        super().__init__("\n".join([title, *(f"  {p}" for p in self.problems)] if title else self.problems))

    def parts(self) -> dict[str, object]:
        return {"problems": list(self.problems), "title": self.title}


class MachineError(FinetuneError):
    """The machine is not ready (exit 3): something is missing, too small or out of reach. Says what would help."""

    exit_code = 3


class RunError(FinetuneError):
    """A stage failed while running (exit 1). Says which one, what is safe on disk, and how to go on."""

    exit_code = 1

    def __init__(self, stage: str, message: str, safe: str = "") -> None:
        self.stage = stage
        self.message = message
        self.safe = safe
        super().__init__(f"{stage}: {message}" + (f"\n{safe}" if safe else ""))

    def parts(self) -> dict[str, object]:
        return {"stage": self.stage, "message": self.message, "safe": self.safe}


class NotSwitched(FinetuneError):
    """A new model did not take the place of the one that is used (exit 5): it is worse, or that could not be told."""

    exit_code = 5


class Lost(RunError):
    """Another process of the training has ended before its time: all can go on from the checkpoint."""


class Interrupted(BaseException):
    """Stopped by a signal after a full checkpoint (exit 128 + signal number).

    As KeyboardInterrupt it is no Exception: code of ours or of a library that bears whatever goes wrong must let it
    through.
    """

    exit_code = 130

    def __init__(self, signal_number: int, message: str) -> None:
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number
        super().__init__(message)

    def parts(self) -> dict[str, object]:
        """What a program is told beside the text."""
        return {}


class EndedAtOnce(Interrupted):
    """Ended by a second signal, without a checkpoint (exit 4). Says what was lost."""

    exit_code = 4

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(signal_number, message)
        self.exit_code = EndedAtOnce.exit_code


class Stopped(FinetuneError):
    """A run in another process was stopped by a signal: after a full checkpoint (exit 128 + its number), or at once (4)."""

    exit_code = 130

    def __init__(self, exit_code: int, message: str) -> None:
        self.exit_code = exit_code
        super().__init__(message)


def again(code: int, text: str, parts: Mapping[str, object]) -> FinetuneError:
    """The error that another process told of: its exit code, its text, and its parts."""
    if code == UserError.exit_code:
        problems = parts.get("problems")
        title = str(parts.get("title") or "")
        return UserError([str(problem) for problem in problems] if isinstance(problems, list) else text, title)
    if code == MachineError.exit_code:
        return MachineError(text)
    if code > 128 or code == EndedAtOnce.exit_code:
        return Stopped(code, text)
    if "stage" not in parts:
        error = FinetuneError(text)
        error.exit_code = code
        return error
    return RunError(str(parts["stage"]), str(parts.get("message") or ""), str(parts.get("safe") or ""))
