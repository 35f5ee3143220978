"""One side of a proof in a process of its own, for an engine patches its process: a few steps, and the figures as JSON.

worker.py look CONFIG OVERRIDES           worker.py train CONFIG OVERRIDES FOLDER
"""

# ruff: noqa: E402  what stands between the imports must come before some of them

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

if __name__ == "__main__":  # as a script, this folder stands first on the path and would shadow installed packages
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from training.system import before_torch

before_torch.settle()

from training import base_model, settings
from training.distributed import crew
from training.errors import FinetuneError, UserError
from training.fast_cpu import policy
from training.pipeline import stages
from training.plan import choices, prepare
from training.proving.sides import Figures, Here
from training.runs import Run
from training.settings import Override, Settings
from training.system import events, foreign_code, forkserver, last_net, log, this_machine
from training.system.events import Events
from training.system.parent_watch import end_with_parent
from training.system.signals import Signals
from training.train import Session, callback, engine, loop, state, team


@dataclass(kw_only=True)
class Counting(Session):
    """A session that keeps how many tokens each step had, by which two sides are known to see the same batches."""

    by_step: list[int] = field(default_factory=list)

    def advance_bar(self) -> None:
        self.by_step.append(self.watch.tokens)
        super().advance_bar()


def look(given: Settings) -> Here:
    """Where these settings train on this machine, and with what. UserError where no two sides give the same numbers."""
    if given.hardware.fast_cpu == policy.INT8:
        raise UserError(
            f"{given.place('Hardware.FAST_CPU')}: --prove compares ways that give the same numbers, and weights in 8 bits "
            "give others; write auto"
        )
    this_machine.show_one_card(given.hardware.device)
    machine = this_machine.inspect()
    given = choices.decide(given, machine)
    return Here(
        device=given.hardware.device.partition(":")[0],
        engine=given.hardware.engine,
        fast=bool(policy.wanted(given).value),
        unsloth="unsloth" in this_machine.versions(),
        parameters=base_model.peek(given.model).parameters,
        machine=machine.lines(),
    )


def train(given: Settings, folder: Path) -> Figures:
    """The steps that these settings ask for, in `folder`, which holds nothing that anybody needs."""
    forkserver.start()
    plan = prepare(given)
    # What checking the rows took is no part of the training's peak.
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    began = time.perf_counter()
    loaded = engine.load(plan.base, plan.settings, plan.longest, plan.tokenizer)
    load_peak = callback.peak_memory()
    order = replace(crew.order_of(plan, stages.marks(plan), folder), validation=None)
    session = Counting(
        settings=plan.settings,
        run=Run(folder),
        events=Events(folder / "events.jsonl"),
        signals=Signals(),
        watch=state.watch(order, team.Alone()),
        tokenizer=loaded.tokenizer,
        total=plan.steps,
        validates=False,
    )
    loop.follow(loaded, order, session)
    steps = [event for event in events.read(folder / "events.jsonl") if event["event"] == "step"]
    speeds = [event["tokens_per_second"] for event in steps]
    return Figures(
        losses=[event["loss"] for event in steps],
        norms=[event["gradient_norm"] for event in steps],
        tokens=session.by_step,
        tokens_per_second=round(statistics.median(speeds[1:] or speeds), 1),
        peak=callback.peak_memory(),
        load_peak=load_peak,
        planned=sum(plan.memory.values()),
        seconds=round(time.perf_counter() - began, 1),
        precision=plan.settings.hardware.precision,
        four_bit=plan.settings.quantization.load_in_4bit,
        fast_path=session.watch.carried.fast_path,
    )


def main(argv: Sequence[str]) -> int:
    """The script. The last line of stdout is the answer, or {"failed": why, "exit_code": n}."""
    command, config, overrides, *rest = argv
    foreign_code.trust(False)
    stdout = log.claim_stdout()
    # For the caller to read; on a terminal a bar goes on.
    log.start(terminal=False)
    end_with_parent()
    try:
        given = settings.load(Path(config), [Override(*one) for one in json.loads(overrides)], check_packages=True)
        answer: Here | Figures = look(given) if command == "look" else train(given, Path(rest[0]))
    except Exception as error:
        told = error if isinstance(error, FinetuneError) else last_net.caught(error)
        log.say_json(stdout, {"failed": str(told), "exit_code": told.exit_code})
        return 0
    log.say_json(stdout, asdict(answer))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
