"""What ended a run, as it is told: the stage, the file, what is safe on the disk, and how to go on."""

from __future__ import annotations

from loguru import logger

from training import runs
from training.errors import FinetuneError, Interrupted, Lost, MachineError, RunError, UserError
from training.runs import Run, checkpoint, directory
from training.system import io_errors, log, shell, signals
from training.system.signals import behind


def told(error: Exception | Interrupted, run: Run | None) -> FinetuneError | Interrupted:
    """What ended a run, as it is told: a signal where one is behind it, whatever has become of that on its way."""
    if signal := behind(error):
        return signal
    if isinstance(error, Interrupted):
        return error
    if isinstance(error, FinetuneError):
        return in_full(error, run)
    return (not_written if io_errors.is_one(error) else unexpected)(error, run)


def stopped(error: Interrupted, run: Run | None) -> Interrupted:
    """A signal that ended a run. Where nobody said more than that it came: with what is safe, and how to go on."""
    if run is None or str(error) != signals.words(error.signal_number):
        return error
    return Interrupted(error.signal_number, f"{error}; {what_is_safe(run)}")


def unexpected(error: Exception, run: Run | None) -> RunError:
    """Our own mistake, or a library's: the traceback belongs into the log, not on the screen."""
    logger.opt(exception=error).debug("unexpected")
    safe = checkpoint.where(run.path / runs.CHECKPOINTS) if run else ""
    words = f"{type(error).__name__}: {error}; the traceback is in {log.SHARED_LOG}"
    return RunError("unexpected", words, safe)


def not_written(error: BaseException, run: Run | None) -> FinetuneError:
    """A file that could not be written or read: the stage, the file, what is safe and how to go on."""
    logger.opt(exception=error).debug("not written")
    return of_drive(io_errors.told(error, run.path if run else None), run)


def of_drive(words: str, run: Run | None) -> FinetuneError:
    """What a drive does, in words, with what is safe."""
    if run is None:
        return MachineError(f"{words}; nothing was begun")
    last = "report" if run.stage("check") else "start"
    return RunError(run.status.get("stage") or last, words, what_is_safe(run))


def in_full(error: FinetuneError, run: Run | None) -> FinetuneError:
    """An error with all that belongs to it: that of a drive is nobody's mistake, and of a run it is told what is safe."""
    words = io_errors.instead(error.message if isinstance(error, RunError) else str(error), error)
    if isinstance(error, UserError) and io_errors.behind(error):
        return of_drive(words, run)
    if isinstance(error, RunError) and type(error) in (RunError, Lost):
        return type(error)(error.stage, words, error.safe or (what_is_safe(run) if run else ""))
    return error


def what_is_safe(run: Run) -> str:
    """What a run that ends has on the disk, and how it goes on."""
    try:
        return _looked_at(run)
    except OSError:  # the drive that failed before
        return (
            f"what is safe there cannot be read now; `{shell.lasting('run.sh', '--resume', run.path)}` goes on from it"
        )


def _looked_at(run: Run) -> str:
    if directory.lost_settings(run):
        return f"{run.path} {directory.LOST_SETTINGS}"
    if not directory.begun(run):
        return "nothing was trained yet; start a new run"
    if run.stage("train") is not None:
        return checkpoint.adapter_is(run.path)
    if checkpoint.newest(run.path / runs.CHECKPOINTS) is None:
        return f"nothing was trained yet; `{shell.lasting('run.sh', '--resume', run.path)}` begins again"
    return checkpoint.where(run.path / runs.CHECKPOINTS)
