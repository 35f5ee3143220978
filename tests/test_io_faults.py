"""Reads and writes that fail, or in which a process dies, over all that a run does: nothing is lost, all is told.

`--io-faults N` says how many there are; `--io-faults each` takes every operation on every file once, with one answer of a
disk (an hour or two); `--io-faults all` takes every answer to each. A table of what was tried and lost stands at the end
of pytest's output. The shim is tests/support/io_faults.c, which says what it cannot see.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import io_faults
from tests.support.faults import FAULT, SEED, result
from tests.support.io_faults import Fault, Shim
from tests.support.paths import ROOT
from tests.support.programs import Ended, forked
from tests.support.session import once
from tests.support.tiny import write_tiny_config
from training import runs
from training.runs import checkpoint, directory
from training.system import forkserver, paths

PARTS = 100  # the tests into which "each" and "all" are cut
FINETUNE, EXPORT = ROOT / "training" / "finetune.py", ROOT / "training" / "export.py"
SCENES = ("train", "export")
# How to go on, as it is told: one of these.
TOLD = ("--resume", "./run.sh starts", "as safe as it was", "start a new run")


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shim]:
    """The shim in a fork server of this worker."""
    with pytest.MonkeyPatch.context() as patch:
        made = io_faults.started(tmp_path_factory.mktemp("shim"), patch)
    if made is None:
        pytest.skip("no C compiler")
    # A core for each worker: what would be shared with others waits for them, and takes three times as long.
    os.sched_setaffinity(made.server.process.pid, {core_of_worker()})
    yield made
    made.server.process.stdin.close()
    made.server.process.wait()
    made.server.requests.close()


def core_of_worker() -> int:
    """One of the cores that we may use."""
    cores = sorted(os.sched_getaffinity(0))
    return cores[int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % len(cores)]


@pytest.fixture
def hurt(shim: Shim, monkeypatch: pytest.MonkeyPatch) -> Shim:
    """The shim, in whose fork server programs are started."""
    monkeypatch.setattr(forkserver, "server", shim.server)
    return shim


def looked_at(folder: Path, model: Path) -> dict[str, Path]:
    """Where operations are looked at: settings, rows and runs, the base model, and what all runs share."""
    return {"runs": folder, "model": model, "rows": paths.CACHE / "rows"}


@dataclass(frozen=True)
class Undisturbed:
    """A run in which nothing failed, a copy of it as it was when it was trained, and what each scene did to files."""

    run: Path
    trained: Path
    seen: dict[str, dict[tuple[str, str], int]]


@pytest.fixture
def whole(tmp_path_factory: pytest.TempPathFactory, smallest_model: Path, hurt: Shim) -> Undisturbed:
    """Made by the first worker that asks."""
    folder, run = once(tmp_path_factory, "io-operations", lambda folder: undisturbed(folder, smallest_model, hurt))
    return as_seen(folder, Path(run), smallest_model)


def undisturbed(folder: Path, model: Path, shim: Shim) -> str:
    """Run training and export into a folder with nothing hurt, and log their operations; gives the run."""
    config = write_tiny_config(folder, model)
    shim.arm(looked_at(folder, model), log=folder / "train.log")
    ended = forked(FINETUNE, "--config", config)
    shim.disarm()
    assert ended.code == 0, ended.stderr
    copy_unexported(ended.run, folder / "trained")
    again = folder / "again" / "outputs" / ended.run.name
    shutil.copytree(folder / "trained", again)
    shim.arm(looked_at(folder / "again", model), log=folder / "export.log")
    exported = forked(EXPORT, again)
    shim.disarm()
    assert exported.code == 0, exported.stderr
    return str(ended.run)


def as_seen(folder: Path, run: Path, model: Path) -> Undisturbed:
    """What `undisturbed` has left in a folder."""
    seen = {
        "train": io_faults.operations(folder / "train.log", looked_at(folder, model)),
        "export": io_faults.operations(folder / "export.log", looked_at(folder / "again", model)),
    }
    return Undisturbed(run, folder / "trained", seen)


def copy_unexported(run: Path, copy: Path) -> None:
    """Copy a finished run as it was when it was trained and asked."""
    shutil.copytree(run, copy)
    shutil.rmtree(copy / runs.MERGED)
    for file in (*copy.glob("*.gguf"), *copy.glob("report.*"), copy / "Modelfile"):
        file.unlink()
    opened = runs.open_run(copy)
    stages = {name: opened.status["stages"][name] for name in ("train", "evaluate")}
    opened.update(state="interrupted", stages=stages, checks=[], quantised=[], check_warnings=[])


@dataclass
class Attempt:
    """One hurt run: the settings beside which it lies, how it ended, and all that is wrong with it."""

    scene: str
    fault: Fault
    config: Path
    whole: Undisturbed

    def __post_init__(self) -> None:
        self.outputs = self.config.parent / "outputs"
        self.problems: list[str] = []
        self.lost = self.came = False
        if self.scene == "export":
            shutil.copytree(self.whole.trained, self.outputs / self.whole.run.name)

    def start(self) -> Ended:
        """Start what is hurt, or what goes on after it."""
        if self.scene == "export":
            return forked(EXPORT, self.outputs / self.whole.run.name)
        return forked(FINETUNE, "--config", self.config)

    def run(self, shim: Shim, model: Path) -> None:
        """Hurt it, look at it, go on with it, and compare what comes of that with the undisturbed run."""
        shim.arm(looked_at(self.config.parent, model), self.fault)
        ended = self.start()
        self.came = shim.disarm()
        made = sorted(self.outputs.glob("finetune_*"))
        self.judge(ended, made[-1] if made else None)
        self.put_back(made)
        begun = [run for run in made if directory.begun(runs.Run(run))]
        trained = any(checkpoint.newest(run / runs.CHECKPOINTS) for run in begun)
        again, last = ended, made[-1] if made else None
        # A process may be killed when all is done but its last words.
        done = last is not None and (last / runs.REPORT).is_file() and self.fault.kills
        if ended.code != 0 and not done:
            # Whatever is wanted next: the same once more, or to go on.
            resume = () if self.scene == "export" or not begun else ("--resume",)
            again = forked(FINETUNE, "--config", self.config, *resume) if self.scene == "train" else self.start()
            if self.scene == "export" and "has lost its files" in again.stderr:
                # An export has nothing to make an adapter of; the run has its checkpoints.
                again = forked(FINETUNE, "--config", self.config, "--resume", self.outputs / self.whole.run.name)
            last = max(self.outputs.glob("finetune_*"), default=None)
        if (again.code != 0 and not done) or last is None:
            self.lost = trained
            self.problems += ["not resumed", last_words(again)]
            return
        if (last / runs.REPORT).is_file():
            ours, theirs = result(last), result(self.whole.run)
            different = [key for key in theirs if ours[key] != theirs[key]]
            self.lost = bool(different)
            self.problems += [f"{key}: {ours[key]} is not {theirs[key]}" for key in different]
        elif "no report" not in again.stderr:
            self.problems.append("no report, and not a word of it")

    def put_back(self, made: list[Path]) -> None:
        """Settings that have vanished come from a backup, as the user is told."""
        for run in made:
            if (run / runs.STATUS).is_file() and directory.lost_settings(runs.open_run(run)):
                ours = (self.whole.run / runs.CONFIG).read_text(encoding="utf-8")
                ours = ours.replace(str(self.whole.run.parents[1]), str(self.config.parent))
                (run / runs.CONFIG).write_text(ours, encoding="utf-8")

    def judge(self, ended: Ended, run: Path | None) -> None:
        """Note what a hurt run should not have said, or left."""
        found, ours = self.problems, ended.stderr
        if re.search(r"unexpected|Traceback|\w+Error: ", ours):
            found.append("unexpected")
        if ended.code < 0 and not self.fault.kills:
            found.append(f"killed by {-ended.code}")
        if ended.code in (2, 3) and self.scene == "train":
            if run is not None:
                found.append(f"code {ended.code}, and there is a run")
            return
        if ended.code > 0 and not any(words in ours for words in TOLD):
            found.append("how to go on is not told")
        if run is None or not (run / runs.STATUS).is_file():
            if ended.code == 0:
                found.append("code 0, and no run")
            return
        opened = runs.open_run(run)
        state, stored = directory.state(opened), opened.status["state"]
        done = ended.code == 0 or (ended.code == -9 and (run / runs.REPORT).is_file())
        # That a file of the user's is missing is told as such.
        codes = (0, 1, 3, -9, 2) if directory.LOST_SETTINGS in ours else (0, 1, 3, -9)
        if ended.code not in codes or done != (state == "completed"):
            found.append(f"code {ended.code}, state {state}")
        # Where nothing at all can be written any more the last word cannot be, either.
        if ended.code >= 0 and not self.fault.ever and stored in ("running", "queued"):
            found.append(f"code {ended.code}, and status.json says {stored}")
        if found:
            found.append(last_words(ended))


def last_words(ended: Ended) -> str:
    """What a program said from its first warning on."""
    found = re.search(r"^(warning|error|Traceback).*", ended.stderr, re.DOTALL | re.MULTILINE)
    return found[0] if found else ended.stderr[-2000:]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """As many faults as --io-faults says."""
    if "part" in metafunc.fixturenames:
        wanted = metafunc.config.getoption("--io-faults")
        metafunc.parametrize("part", range(PARTS if wanted in ("each", "all") else int(wanted)))


def chosen(part: int, wanted: str, seen: dict[str, dict[tuple[str, str], int]]) -> list[tuple[str, Fault]]:
    """The faults of one test, each with its scene: one of a sample, or a part of each or all."""
    if wanted == "each":
        return io_faults.each(seen, SEED)[part::PARTS]
    if wanted == "all":
        return [(scene, fault) for scene in SCENES for fault in io_faults.every(seen[scene], SEED)][part::PARTS]
    scene = SCENES[part % len(SCENES)]
    every = io_faults.every(seen[scene], SEED)
    return [(scene, every[part // len(SCENES) % len(every)])]


def test_each_takes_every_operation_on_every_file_once_and_every_answer_in_turn():
    names = [name for name, answers in io_faults.ANSWERS.items() for _ in answers]
    train = {(name, f"runs/outputs/{number}.partial"): number for number, name in enumerate(names, start=1)}
    export = dict.fromkeys(list(train)[::2], 1) | {("read", "runs/outputs/new"): 1}
    drawn = io_faults.each({"train": train, "export": export}, SEED)
    assert sorted((fault.name, fault.path) for _, fault in drawn) == sorted({*train, *export})
    for name, answers in io_faults.ANSWERS.items():
        assert {fault.how for _, fault in drawn if fault.name == name} == set(answers)
    seen = {"train": train, "export": export}
    assert all(1 <= fault.at <= seen[scene][fault.name, fault.path] for scene, fault in drawn)
    assert drawn == io_faults.each({"train": train, "export": export}, SEED)


@pytest.mark.tiny
def test_a_run_in_which_a_read_or_write_fails_tells_it_and_goes_on_to_the_same_end(
    part, whole, hurt, smallest_model, tmp_path, request, record_property
):
    problems = []
    for number, (scene, fault) in enumerate(chosen(part, request.config.getoption("--io-faults"), whole.seen)):
        folder = tmp_path / str(number)
        folder.mkdir()
        attempt = Attempt(scene, fault, write_tiny_config(folder, smallest_model), whole)
        attempt.run(hurt, smallest_model)
        shutil.rmtree(folder)
        said = "unexpected" if "unexpected" in attempt.problems else "told" if attempt.came else "did not come"
        record_property(FAULT, (f"{scene}: {fault.kind} ({said})", not attempt.lost))
        if attempt.problems:
            problems += [f"{scene}: {fault}", *attempt.problems]
    assert problems == [], "\n".join(problems)
