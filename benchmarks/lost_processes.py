"""What becomes of a training in two processes that is hurt?  python benchmarks/lost_processes.py [--only PATTERN] [--times 1]

On one machine, and as two hosts (network namespaces) with a line of their own: every process in turn is killed by SIGKILL or
stopped by SIGTERM in the middle of the training, the line is cut, or becomes slow. The agent is what `./run.sh` starts, and starts
the ranks; the owner is rank 0, which owns the run's directory. Measured are the seconds until all processes are gone; then
`--resume` goes on to the end, and the losses of all steps are held against those of a run that nobody disturbed. On a tiny random
model with slow steps. `--only` takes what fits this pattern, as "two hosts, SIGTERM". Linux only; two hosts need root.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import psutil

from tests.support import hosts
from tests.support.hosts import Hosts
from tests.support.paths import ROOT
from tests.support.programs import wait_for_step
from tests.support.ranks import SLOW, other_process, program, started
from tests.support.runs import losses
from tests.support.tiny import write_tiny_config, write_tiny_model
from training import runs

SHIPPED = ROOT / "models" / "SmolLM2-135M-Instruct"
SECRET = "FINETUNE_MACHINES_SECRET"
STEPS, AT = 10, 4
# Of a line that becomes slow: the adapter's gradients take half a second a step.
SLOWLY = "2mbit"


@dataclass
class Training:
    """A training in two processes, each of which its agent has started: one agent, or one on each host."""

    folder: Path
    both: Hosts | None
    agents: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def run(self) -> Path:
        """Its directory."""
        (found,) = (self.folder / "m0").glob("finetune_*")
        return found

    def start(self, config: Path, *more: str) -> None:
        """Start all that is to be started by hand."""
        own = ("--config", config, "--set=Hardware.NUM_THREADS=1", *more)
        if self.both is None:
            fresh = () if more else ("--set=Hardware.NUM_PROCESSES=2",)
            self.agents = [_begun(program(SLOW, *own, *fresh, "--output", self.folder / "m0"))]
            return
        meet = f"--set=Hardware.MAIN_PROCESS_ADDRESS={self.both.address(0)}:29500"
        two = (*own, "--set=Hardware.NUM_MACHINES=2", meet)
        ranks = [(n, f"--set=Hardware.MACHINE_RANK={n}", "--output", self.folder / f"m{n}") for n in (0, 1)]
        self.agents = [_begun(self.both.on(n, *program(SLOW, *two, *where))) for n, *where in ranks]

    def rank(self, number: int) -> int:
        """The process of a rank."""
        if number == 0:
            return started(self.run)
        if self.both is None:
            return other_process(self.run)
        # Its agent has started it, and what else it needs has started itself.
        return psutil.Process(self.agents[1].pid).children()[0].pid

    def wait(self) -> tuple[list[int], list[str]]:
        """Until it has ended: the exit codes, and what was said."""
        said = [one.communicate(timeout=300)[1] for one in self.agents]
        return [one.returncode for one in self.agents], said


def _begun(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, SECRET: "of this benchmark alone"},
    )  # fmt: skip


Hurt = Callable[[Training], None]


def to_rank(number: int, how: signal.Signals) -> Hurt:
    """A signal to a rank."""
    return lambda training: os.kill(training.rank(number), how)


def to_agent(number: int) -> Hurt:
    """SIGKILL to what has started the ranks of a machine."""
    return lambda training: training.agents[number].kill()


def line(what: Callable[[Hosts], None]) -> Hurt:
    """Something that is done to the line between the hosts."""
    return lambda training: what(training.both) if training.both else None


ONE: dict[str, Hurt] = {
    "kill -9 of the owner, rank 0": to_rank(0, signal.SIGKILL),
    "kill -9 of rank 1": to_rank(1, signal.SIGKILL),
    "kill -9 of the agent": to_agent(0),
    "SIGTERM to rank 0": to_rank(0, signal.SIGTERM),
    "SIGTERM to rank 1": to_rank(1, signal.SIGTERM),
}
TWO: dict[str, Hurt] = {
    "kill -9 of the owner, rank 0": to_rank(0, signal.SIGKILL),
    "kill -9 of rank 1": to_rank(1, signal.SIGKILL),
    "kill -9 of the agent of machine 0": to_agent(0),
    "kill -9 of the agent of machine 1": to_agent(1),
    "SIGTERM to rank 0": to_rank(0, signal.SIGTERM),
    "SIGTERM to rank 1": to_rank(1, signal.SIGTERM),
    "the line cut": line(Hosts.cut),
    f"the line slowed to {SLOWLY[:-4]} Mbit/s": line(lambda both: both.slow(SLOWLY)),
}


def living(folder: Path) -> list[int]:
    """The processes whose command names a folder."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any(str(folder) in word for word in process.info["cmdline"] or ()):
            found.append(process.pid)
    return found


def apart(ours: dict[int, float], theirs: dict[int, float]) -> str:
    """How far the losses of a run are from those of another, for a person."""
    if ours.keys() != theirs.keys():
        return f"steps {sorted(ours)} of {sorted(theirs)}"
    worst = max(abs(ours[step] - theirs[step]) / theirs[step] for step in theirs)
    return "bit-equal" if worst == 0 else f"{worst:.1e} apart"


def tried(both: Hosts | None, model: Path, hurt: Hurt | None) -> tuple[dict[int, float], str]:
    """One training that is hurt, and goes on: its losses, and the rest of its line in the table."""
    with tempfile.TemporaryDirectory(prefix="hurt-") as where:
        folder = Path(where)
        config = write_tiny_config(folder, model)
        text = config.read_text(encoding="utf-8").replace("BATCH_SIZE = 2", "BATCH_SIZE = 1")
        config.write_text(text.replace("MAX_STEPS = 6", f"MAX_STEPS = {STEPS}"), encoding="utf-8")
        training = Training(folder, both)
        training.start(config)
        if hurt is None:
            training.wait()
            return losses(training.run), ""
        wait_for_step(folder / "m0", AT, training.agents[0])
        hurt(training)
        began = time.monotonic()
        codes, said = training.wait()
        while living(folder):
            time.sleep(0.05)
        took = time.monotonic() - began
        done = runs.open_run(training.run).status
        # How to go on has the paths of this try.
        error = re.sub(r" is safe in .*", " is safe", str(done.get("error") or "").partition("\n")[0])
        words = "it goes on to its end" if "enough" in said[0] else f"{done['state']}: {error}"
        if both is not None:
            both.mend()
            both.slow("1gbit")
        if "enough" not in said[0]:
            training.start(config, "--resume")
            _, said = training.wait()
        if "enough" not in said[0]:
            raise SystemExit("\n".join(said))
        return losses(training.run), f"{took:.1f} | {', '.join(map(str, codes))} | {words}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="what fits this pattern: two hosts, SIGTERM")
    parser.add_argument("--times", type=int, default=1, help="how often each is tried")
    options = parser.parse_args()
    print(
        "| where | what is done after step 4 of 10 | seconds to the end of all | exit codes | message | losses after resume |"
    )
    print("|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as model:
        write_tiny_model(Path(model), SHIPPED)
        # Two hosts with a process each train what two processes of one machine do.
        theirs, _ = tried(None, Path(model), None)
        for where, cases in (("one machine", ONE), ("two hosts", TWO)):
            with ExitStack() as kept:
                wanted = [name for name in cases if re.search(options.only, f"{where}, {name}")]
                both = kept.enter_context(hosts.two()) if wanted and cases is TWO else None
                if isinstance(both, str):
                    print(f"| {where} | left out: no network namespaces here ({both}); they need root |")
                    continue
                for name in wanted * options.times:
                    ours, told = tried(both, Path(model), cases[name])
                    print(f"| {where} | {name} | {told} | {apart(ours, theirs)} |", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
