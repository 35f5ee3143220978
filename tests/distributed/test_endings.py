"""Ranks that nobody needs, that come back late or not at all, and how a launcher's end and signals are told apart."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from tests.support.crews import Program, Store, an_order, places, some_ranks
from training import finetune
from training.control import background
from training.distributed import Crew, crew, launcher, notes, rendezvous, worker
from training.errors import RunError
from training.runs import Run
from training.system import launchers, parent_watch
from training.system.launchers import Seat
from training.system.signals import Signals
from training.train import meeting


def a_seat(rank: int, local_size: int = 2, folder: Path | None = None) -> Seat:
    """A place among two processes, by srun where no folder of this program's own launcher is given."""
    where = {"rank": rank, "local_rank": rank % local_size, "size": 2, "local_size": local_size}
    return Seat(**where, by="srun", address="a:1", served=False, job="a job", folder=folder)


def trained(path: Path) -> Run:
    """A run whose training is done."""
    run = Run(path)
    run.status["stages"] = {"train": {}}
    return run


def test_ranks_of_a_run_that_is_trained_already_end_and_are_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(meeting.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(launchers, "_seat", a_seat(0))
    monkeypatch.setattr(Signals, "install", lambda self: None)
    ends: list[int] = []
    other = threading.Thread(target=lambda: ends.append(worker.main(a_seat(1))), daemon=True)
    with crew.not_needed(trained(tmp_path)):
        # It is still loading its libraries when all is done.
        threading.Timer(0.3, other.start).start()
    assert meeting.folder_of("a job") is None
    other.join(10)
    assert ends == [0]


def test_a_rank_that_never_comes_is_waited_for_in_bounds_and_one_that_trains_finds_no_end(tmp_path, monkeypatch):
    monkeypatch.setattr(meeting.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(launchers, "_seat", a_seat(0))
    monkeypatch.setattr(crew, "LEAVING", 0.1)
    with crew.not_needed(trained(tmp_path)):
        assert notes.is_over(meeting.folder_of("a job"))
    with crew.not_needed(Run(tmp_path)):
        assert meeting.folder_of("a job") is None


def test_of_a_run_that_is_trained_already_it_is_said_that_other_machines_are_not_needed(tmp_path, monkeypatch, logged):
    monkeypatch.setattr(meeting.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(launchers, "_seat", a_seat(0, local_size=1))
    with crew.not_needed(trained(tmp_path)):
        pass
    assert "the run is trained already: the other machines are not needed, and may be ended" in logged


def test_after_a_restart_a_machine_that_does_not_come_back_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(crew, "BACK", 0.0)
    monkeypatch.setattr(rendezvous, "HEARD", 0.0)
    order = an_order(tmp_path, 0)
    first, _ = places(b"s" * 16, b"s" * 16)
    object.__setattr__(order, "place", first)
    again = Crew(order, tmp_path, Store(), Run(tmp_path), lambda error: None, again=True)
    with pytest.raises(RunError) as ended:
        again.wait()
    again.end()
    words = "the processes were started again, and a machine has not come back within 0 minutes"
    assert str(ended.value).startswith(f"training: {words}\nno checkpoint was written yet")
    once = Crew(order, tmp_path, Store(), Run(tmp_path), lambda error: None)
    assert once._lost_or_away() is None, "a first start has no such bound"
    once.end()


def test_another_rank_joins_only_when_the_first_of_its_machine_has_met_the_others(tmp_path):
    order = an_order(tmp_path, 1)
    object.__setattr__(order, "place", places(b"s" * 16, b"s" * 16, processes=(2, 2))[0])
    waiting = threading.Thread(target=worker._until_met, args=(order, tmp_path), daemon=True)
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()
    notes.met(tmp_path)
    waiting.join(10)
    assert not waiting.is_alive()
    notes.begin_again(tmp_path)
    notes.over(tmp_path)
    with pytest.raises(RunError, match="the first process of this machine has ended; its log says more"):
        worker._until_met(order, tmp_path)


def test_a_rank_that_fails_under_a_job_system_tells_the_first_one(tmp_path, monkeypatch):
    def fails(*_: object) -> None:
        raise RuntimeError("no room on the card")

    monkeypatch.setattr(worker, "work", fails)
    with pytest.raises(RuntimeError):
        worker.told(an_order(tmp_path, 1), tmp_path, Signals())
    lost = notes.lost(tmp_path)
    assert lost is not None and lost.rank == 1
    said = "process 1 of 2 (NUM_PROCESSES) ended with exit code 1; its last words:\n  no room on the card"
    assert lost.words == said


def test_detach_is_refused_in_a_process_that_a_launcher_has_started(monkeypatch, logged, capfd):
    monkeypatch.setattr(launchers, "_seat", a_seat(0))
    monkeypatch.setattr(finetune.log, "claim_stdout", lambda: None)
    monkeypatch.setattr(finetune.log, "start", lambda: None)
    monkeypatch.setattr(background.subprocess, "Popen", lambda *_, **__: pytest.fail("N runs"))
    assert finetune.main(["--detach"]) == 2
    assert (
        "--detach: this program was started by srun, and each of its processes would start a run of its own"
        in logged[-1]
    )


def test_a_launcher_that_was_gone_before_its_rank_looked_is_noticed(tmp_path, monkeypatch):
    asked: list[int] = []
    heard = threading.Event()

    def kill(_pid: int, number: int) -> None:
        asked.append(number)
        heard.set()
        # The thread is to wait here, and not to end this process.
        threading.Event().wait()

    monkeypatch.setattr(parent_watch.os, "kill", kill)
    monkeypatch.setattr(parent_watch.atexit, "register", lambda *_, **__: None)
    notes.launch(tmp_path)
    assert notes.launcher(tmp_path) == os.getpid()
    # This process's parent is another: the launcher that has left its number is gone.
    parent_watch.stop_with_launcher(tmp_path, notes.launcher(tmp_path))
    assert heard.wait(10) and asked == [signal.SIGTERM]
    assert notes.launcher(tmp_path / "removed") == -1
    notes.begin_again(tmp_path)
    assert notes.launcher(tmp_path) == os.getpid(), "it stays the same when all are started again"


def test_a_second_stop_ends_at_once_where_the_first_came_to_the_first_rank_by_another_way(tmp_path, monkeypatch):
    sent: list[int] = []
    monkeypatch.setattr(launcher.os, "kill", lambda pid, number: sent.append(number))
    monkeypatch.setattr(launcher, "HEARD", 0.0)
    notes.stopping(tmp_path)
    earlier = time.time() - 60
    os.utime(tmp_path / notes.STOPPING, (earlier, earlier))
    ranks = some_ranks(tmp_path)
    ranks.hear(signal.SIGINT, None)
    assert ranks.look({0: Program(pid=7)}) and sent == [signal.SIGINT]
