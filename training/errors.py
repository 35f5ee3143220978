"""The ways in which this program fails or is stopped, each with its exit code. Caught once, at the command line."""

from __future__ import annotations

from collections.abc import Sequence


class FinetuneError(Exception):
    """Base of every error that is told to a person without a traceback."""

    exit_code = 1


class UserError(FinetuneError):
    """Settings, arguments or data are wrong (exit 2); nothing was started. Holds every problem that was found."""

    exit_code = 2

    def __init__(self, problems: str | Sequence[str], title: str = "") -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        self.title = title
        super().__init__("\n".join([title, *(f"  {p}" for p in self.problems)] if title else self.problems))


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


class EndedAtOnce(Interrupted):
    """Ended by a second signal, without a checkpoint (exit 4). Says what was lost."""

    exit_code = 4

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(signal_number, message)
        self.exit_code = EndedAtOnce.exit_code
