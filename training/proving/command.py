"""The command: every side in a process of its own, one after the other, and the page of what came of it."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from loguru import logger

from training import settings
from training.errors import FinetuneError, MachineError, RunError, UserError
from training.proving import page, verdict
from training.proving.sides import STEPS, Figures, Here, Side, failure, sides
from training.settings import Settings
from training.settings.command_line import Arguments
from training.system import files, forkserver, log, privacy, temporary

WORKER = Path(__file__).with_name("worker.py")
JSON, PAGE, TEXT = "prove.json", "prove.html", "prove.md"
# Nothing but the steps: no checkpoint, no validation, no samples, no tracker.
ALONE = {
    "Training.MAX_STEPS": str(STEPS), "Training.SAVE_STEPS": "0", "Training.EVAL_STEPS": "0",
    "Training.SAMPLE_STEPS": "0", "Training.EARLY_STOPPING_PATIENCE": "0", "Training.REPORT_TO": "none",
    "Hardware.NUM_PROCESSES": "1", "Hardware.NUM_MACHINES": "1",
}  # fmt: skip


def prove(arguments: Arguments, stdout: IO[str]) -> int:
    """`./run.sh --prove`: the table and the conclusion on stdout, and last the path of the page.

    Raises RunError (exit 1) where what the settings take does something else than transformers' own way, or cannot be
    done while that can.
    """
    given = settings.load(arguments.config, arguments.overrides, check_packages=True)
    began = time.time()
    here = looked(arguments)
    tried = sides(here)
    logger.info("{} steps each, of: {}", STEPS, "; ".join(side.name for side in tried))
    with temporary.folder("prove") as folder:
        figures = {side.name: _measured(arguments, side, folder / str(at)) for at, side in enumerate(tried)}
    found = verdict.judge(here, tried, figures)
    content = page.Content(
        name=given.model.new_model_name, base=given.model.base_model_name, when=began, seconds=time.time() - began,
        here=here, sides=tried, figures=figures, verdict=found,
    )  # fmt: skip
    where = _written(content, given)
    for line in page.lines(content):
        log.say(stdout, line)
    log.say_path(stdout, where)
    if not found.good:
        raise RunError("prove", found.words)
    return 0


def looked(arguments: Arguments) -> Here:
    """What machine and settings come to, asked in another process: one that has looked at a card holds some of it."""
    answer = _asked("look", arguments, ())
    if answer.get("failed"):
        raise _error(answer)
    return Here(**answer)


def _error(answer: dict[str, Any]) -> FinetuneError:
    kinds = {kind.exit_code: kind for kind in (UserError, MachineError)}
    return kinds.get(answer["exit_code"], FinetuneError)(answer["failed"])


def _measured(arguments: Arguments, side: Side, folder: Path) -> Figures:
    """The figures of a side; of one that could not be measured, why. UserError where rows or settings are wrong: all have them."""
    folder.mkdir()
    began = time.monotonic()
    answer = _asked("train", arguments, [*ALONE.items(), *side.overrides.items()], folder)
    if answer.get("exit_code") == UserError.exit_code:
        raise UserError(answer["failed"])
    if answer.get("failed"):
        logger.warning("{}: {}", side.name, answer["failed"])
        return failure(f"could not be tried: {answer['failed']}")
    figures = Figures(**answer)
    logger.info(
        "{}: {:.0f} tokens/s, loss {:.4f} to {:.4f} ({:.0f} s)",
        side.name, figures.tokens_per_second, figures.losses[0], figures.losses[-1], time.monotonic() - began,
    )  # fmt: skip
    return figures


def _asked(command: str, arguments: Arguments, over: Sequence[tuple[str, str]], *rest: Path) -> dict[str, Any]:
    """What the worker answers; its own lines go to the log."""
    own = [[one.section, one.key, one.value, one.source] for one in arguments.overrides]
    own += [[*key.split("."), value, "--prove"] for key, value in over]
    # Not a fork: an engine must be the first to import transformers.
    child = forkserver.popen(WORKER, [command, arguments.config, json.dumps(own), *rest], errors=False, fork=False)
    try:
        lines = child.stdout.read().decode("utf-8", "replace").strip().splitlines()
        code = child.wait()
    finally:
        forkserver.end(child)
    try:
        answer: dict[str, Any] = json.loads(lines[-1])
        return answer
    except (IndexError, ValueError):
        why = f"its process has ended with {code} (too little memory, most likely)"
        return {"failed": why, "exit_code": RunError.exit_code}


def _written(content: page.Content, given: Settings) -> Path:
    """The page's path; beside it the same as JSON and as text, all three free of rows and secrets."""
    stamp = datetime.fromtimestamp(content.when).strftime("prove_%Y%m%d_%H%M%S")
    folder = given.training.output_dir / stamp
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files.write_json(folder / JSON, privacy.hidden({"v": 1, **asdict(content)}))
        files.write_text(folder / TEXT, page.markdown(content))
        files.write_text(folder / PAGE, page.html(content))
    except OSError as error:
        raise MachineError(
            f"OUTPUT_DIR {given.training.output_dir} cannot be written: {error.strerror}; choose another one"
        ) from None
    return folder / PAGE
