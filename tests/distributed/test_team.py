"""Training in several processes: what the ranks are told, what is refused, and real runs of two of them on the CPU."""

from __future__ import annotations

import json
import os
import pickle
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given as for_all
from hypothesis import strategies as st

from tests.support import adopted, small
from tests.support.crews import Program, Store, an_order, places, some_ranks
from tests.support.faults import FAULTY, NO_EXPORT
from tests.support.paths import ROOT
from tests.support.programs import finetune, start, wait_for_step
from tests.support.ranks import SLOW, TWO, gone, in_rank, other_process, program, slowly, started
from tests.support.runs import files_of, losses
from tests.support.session import once
from tests.support.tiny import write_tiny_config
from training import settings
from training.distributed import Crew, crew, launcher, notes, rendezvous
from training.errors import Interrupted, MachineError, RunError, UserError
from training.plan import choices, memory, memory_fit
from training.runs import Run
from training.settings import Settings
from training.system import events, this_machine
from training.system.this_machine import Gpu, Machine
from training.train import Place, Watch, machines, meeting, team
from training.train.ranks import Ranks
from training.train.team import Alone

# Its runs need no real vocabulary.
tiny_model, undisturbed = small.tiny_model, small.undisturbed

CPU = Machine("3.11", "Linux", "a CPU", 8, "amx_bf16", 16 * 10**9, 12 * 10**9, (), None, {})
CARD = Gpu("a card", 24 * 10**9, (8, 9), 23 * 10**9)


def given(tmp_path: Path, text: str) -> Settings:
    """Settings of a file with this text."""
    (tmp_path / "config.ini").write_text(text, encoding="utf-8")
    return settings.load(tmp_path / "config.ini", check_files=False)


# ---- without torch ------------------------------------------------------------------------------------------------


def test_a_rank_has_the_environment_that_torchrun_gives():
    place = Place(rank=3, local_rank=1, size=4, local_size=2, port=29500, address="10.0.0.5")
    assert place.environment(threads=8) == {
        "RANK": "3",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "4",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "10.0.0.5",
        "MASTER_PORT": "29500",
        "OMP_NUM_THREADS": "8",
    }


def test_the_environment_is_put_back_after_the_training(monkeypatch):
    monkeypatch.setenv("RANK", "7")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(KeyError), this_machine.variables({"RANK": "0", "WORLD_SIZE": "2"}):
        assert (os.environ["RANK"], os.environ["WORLD_SIZE"]) == ("0", "2")
        raise KeyError
    assert os.environ["RANK"] == "7" and "WORLD_SIZE" not in os.environ


@for_all(st.integers(1, 60), st.integers(1, 5), st.integers(1, 5))
def test_of_an_epochs_last_batches_each_row_belongs_to_one_rank_and_filling_to_none(rows, micro, size):
    turns = -(-rows // (micro * size))  # batches of each rank, the last one filled up
    last = [
        list(range(start, start + micro)) for start in range((turns - 1) * micro * size, turns * micro * size, micro)
    ]
    own = [team.own_rows(rows, micro, rank, size) for rank in range(size)]
    assert own == [sum(row < rows for row in batch) for batch in last]


def test_each_process_has_a_card_of_those_that_the_caller_shows(monkeypatch):
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ZE_AFFINITY_MASK"):
        monkeypatch.setenv(name, "")  # so that monkeypatch puts it back
        monkeypatch.delenv(name)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-5")
    this_machine.show_one_card("cuda")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2"
    assert this_machine.card(1)["CUDA_VISIBLE_DEVICES"] == "GPU-5"


def test_more_processes_than_cards_are_refused_with_how_many_there_are(tmp_path, monkeypatch):
    chosen = given(tmp_path, "[Hardware]\nDEVICE = cuda\nNUM_PROCESSES = 4\n")
    monkeypatch.setattr(this_machine, "cards", lambda kind: 2)
    with pytest.raises(MachineError) as refused:
        choices.check_cards(chosen)
    assert str(refused.value).endswith("each process needs a card of its own, and 2 can be seen here; set it to 2")
    monkeypatch.setattr(this_machine, "cards", lambda kind: 4)
    choices.check_cards(chosen)


def test_more_processes_than_rows_are_refused(tmp_path):
    chosen = given(tmp_path, "[Hardware]\nDEVICE = cpu\nNUM_PROCESSES = 4\n")
    with pytest.raises(UserError, match="there are 3 training rows only, for 4 processes; set it to 3 at most"):
        choices.check_rows(3, chosen)
    choices.check_rows(4, chosen)


def test_auto_takes_transformers_for_several_processes_and_says_how_unsloth_is_had(tmp_path):
    text = "[Hardware]\nNUM_PROCESSES = 2\nDEVICE = cuda\n"
    chosen = choices.engine(given(tmp_path, text), "cuda")
    reason = "2 processes: Unsloth in several was tried on a CPU alone; ENGINE = unsloth takes it"
    assert chosen == ("transformers", reason)
    assert given(tmp_path, text + "ENGINE = unsloth\n").hardware.engine == "unsloth"


def test_the_rows_that_fill_a_last_batch_up_are_cut_off_whatever_the_engine_has_put_in_the_trainers_place():
    class Theirs:
        """A trainer that Unsloth has patched on a card."""

        def get_batch_samples(self, *_: object) -> None:
            raise AssertionError("it would not ask for the count by way of ours")

        def _get_num_items_in_batch(self, samples: list[object], device: str) -> int:
            return len(samples)

    trainer = object.__new__(type("Trainer", (Ranks, Theirs), {}))
    trainer.watch = Watch(folder=Path(), fingerprint={}, keep=1)
    trainer.watch.team.size = 2
    trainer.accelerator = SimpleNamespace(gradient_state=SimpleNamespace(end_of_dataloader=True))
    trainer.args, trainer.train_dataset = SimpleNamespace(train_batch_size=1), range(3)
    trainer._own = lambda inputs, rows, micro: f"{inputs} without filling"
    batches = iter(["one", "two", "three"])
    assert trainer.get_batch_samples(batches, 2, "cpu") == (["one", "two without filling"], 2)
    assert list(batches) == ["three"]


def test_the_cores_are_shared_out_among_the_processes(tmp_path):
    chosen = choices.decide(given(tmp_path, "[Hardware]\nNUM_PROCESSES = 3\nDEVICE = cpu\n"), CPU)
    assert chosen.hardware.num_threads == 2
    assert chosen.origin("Hardware.NUM_THREADS") == "automatic: 8 physical cores for 3 processes"


def test_a_step_has_the_rows_of_all_processes(tmp_path):
    text = "[Training]\nPER_DEVICE_TRAIN_BATCH_SIZE = 2\nGRADIENT_ACCUMULATION_STEPS = 4\nMAX_STEPS = 0\n[Hardware]\nNUM_PROCESSES = {}\n"
    chosen = given(tmp_path, text.format(3))
    assert chosen.rows_a_step == 24
    assert chosen.steps_per_epoch(49) == 3
    assert chosen.steps_per_epoch(48) == 2
    assert given(tmp_path, text.format(1)).steps_per_epoch(49) == 7


def test_on_a_cpu_each_process_has_the_whole_model_and_one_process_is_advised_where_memory_is_short(tmp_path):
    text = "[Training]\nGRADIENT_CHECKPOINTING = true\n[Hardware]\nDEVICE = cpu\nNUM_PROCESSES = {}\n"
    shape = memory.shape({"hidden_size": 1024, "num_hidden_layers": 28, "vocab_size": 32000}, 600_000_000)
    one, three = (memory.estimate(choices.decide(given(tmp_path, text.format(n)), CPU), shape, 512) for n in (1, 3))
    assert three["weights"] == 3 * one["weights"] and three["activations"] == 3 * one["activations"]
    chosen = choices.decide(given(tmp_path, text.format(3)), CPU)
    advice = memory_fit.lower(chosen, shape, 512, int(1.5 * sum(one.values())))
    assert advice.startswith("set NUM_PROCESSES = 1 with GRADIENT_ACCUMULATION_STEPS = 12")


def test_an_order_arrives_whole_in_another_rank_and_is_waited_for(tmp_path):
    assert notes.order(tmp_path) is None
    order = an_order(Path("/a run"), 0, train=list(range(300_000)))
    notes.give(tmp_path, order)
    other = notes.order(tmp_path).at(1, 1)
    assert other == replace(order, place=other.place) and other.place == Place(1, 1, 2, 2, 1)
    assert (tmp_path / "order").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (-signal.SIGKILL, "process 1 of 2 (NUM_PROCESSES) was killed by SIGKILL"),
        (1, "process 1 of 2 (NUM_PROCESSES) ended with exit code 1; its last words:\n  b\n  c\n  d"),
    ],
)
def test_a_process_that_ended_is_named_with_how_and_its_last_words(code, said, tmp_path, monkeypatch):
    log = tmp_path / "run_x" / "attempt_0" / "1" / "stderr.log"
    log.parent.mkdir(parents=True)
    log.write_text("a\nb\n\nc\nd\n", encoding="utf-8")
    ranks = some_ranks(tmp_path)
    assert ranks.look({0: Program(), 1: Program()}) and notes.lost(tmp_path) is None
    monkeypatch.setattr(launcher, "GRACE", 0.0)
    assert not ranks.look({0: Program(), 1: Program(code=code)}), "rank 0 has had its time"
    assert notes.lost(tmp_path) == notes.Lost(1, code, said)


def test_another_rank_that_fails_when_the_training_is_over_ends_nothing(tmp_path):
    notes.over(tmp_path)
    ranks = some_ranks(tmp_path)
    assert ranks.look({0: Program(), 1: Program(code=1)})
    assert notes.lost(tmp_path) is None
    assert not ranks.look({0: Program(code=0), 1: Program(code=1)})


@pytest.mark.parametrize(
    ("code", "broken", "asked", "again"),
    [
        (-9, False, False, True),
        (1, True, False, True),
        (1, False, False, False),
        (143, False, True, False),
        (0, False, False, False),
    ],
)
def test_only_a_death_is_a_reason_to_start_again(tmp_path, code, broken, asked, again):
    ranks = some_ranks(tmp_path, passed=asked)
    if broken:
        notes.broken(tmp_path)
    notes.begin(tmp_path, Path("/a run"))
    ranks.look({0: Program(code=code), 1: Program()})
    assert ranks.can_go_on == again
    ranks.begin_again(1, 3)
    assert ranks.codes == {} and not notes.is_broken(tmp_path) and notes.run(tmp_path) == Path("/a run")


def test_a_signal_goes_to_the_first_rank_once_though_a_service_manager_sends_it_to_every_process(tmp_path, monkeypatch):
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(launcher.os, "kill", lambda pid, number: sent.append((pid, number)))
    monkeypatch.setattr(launcher, "HEARD", 0.0)
    alone, together = some_ranks(tmp_path / "a"), some_ranks(tmp_path / "b")
    for ranks in (alone, together):
        ranks.folder.mkdir()
        ranks.hear(signal.SIGTERM, None)
        ranks.hear(signal.SIGTERM, None)
    notes.stopping(together.folder)
    programs = {0: Program(pid=7), 1: Program(pid=8)}
    assert alone.look(programs) and sent == [(7, signal.SIGTERM)]
    assert alone.look(programs) and sent == [(7, signal.SIGTERM)] * 2, "the second one ends at once"
    sent.clear()
    assert together.look(programs) and sent == []
    assert together.look(programs) and sent == [(7, signal.SIGTERM)]


def test_a_signal_that_has_just_come_waits_until_the_first_rank_may_have_it(tmp_path, monkeypatch):
    sent: list[int] = []
    monkeypatch.setattr(launcher.os, "kill", lambda pid, number: sent.append(number))
    ranks = some_ranks(tmp_path)
    ranks.hear(signal.SIGINT, None)
    assert ranks.look({0: Program()}) and sent == []
    ranks.asked[0] = (signal.SIGUSR1, ranks.asked[0][1])
    assert ranks.look({0: Program()}) and sent == [signal.SIGUSR1]


def test_a_rank_0_that_hangs_when_another_rank_has_died_is_ended(monkeypatch, tmp_path):
    errors: queue.Queue[RunError | Interrupted] = queue.Queue()

    def a_crew(name: str) -> Crew:
        (tmp_path / name).mkdir()
        return Crew(an_order(tmp_path, 0), tmp_path / name, None, Run(tmp_path), errors.put)

    noticed = a_crew("noticed")
    notes.lose(noticed.folder, 1, 2, -signal.SIGKILL, "")
    assert "was killed by SIGKILL" in str(noticed.lost(within=60))
    noticed.end()
    assert errors.empty() and notes.is_over(noticed.folder)
    monkeypatch.setattr(crew, "STUCK", 0.05)
    hanging = a_crew("hanging")
    notes.lose(hanging.folder, 1, 2, -signal.SIGKILL, "")
    words = "training: process 1 of 2 (NUM_PROCESSES) was killed by SIGKILL\nno checkpoint was written yet"
    assert str(errors.get(timeout=60)).startswith(words)
    hanging.late()
    assert "the processes have met, and do not reach each other within 300 s" in str(errors.get(timeout=60))
    hanging.end()


def test_another_rank_that_was_stopped_by_a_signal_stops_all_as_one(tmp_path):
    ours = Crew(an_order(tmp_path, 0), tmp_path, None, Run(tmp_path), lambda error: None)
    notes.lose(tmp_path, 1, 2, 143, "")
    stopped = ours.lost(within=60)
    assert isinstance(stopped, Interrupted) and stopped.exit_code == 143 and str(stopped) == "stopped by SIGTERM"
    ours.end()


@pytest.mark.parametrize(
    ("written", "host", "port"),
    [
        ("10.0.0.5:29501", "10.0.0.5", 29501),
        ("node-0", "node-0", 29500),
        ("[::1]:80", "::1", 80),
        ("[::1]", "::1", 29500),
    ],
)
def test_the_port_of_machine_0_is_torchruns_where_none_is_written(written, host, port):
    assert rendezvous.address(written) == (host, port)


def test_a_port_that_is_taken_on_machine_0_is_told():
    with socket.socket() as taken:
        taken.bind((team.LOOPBACK, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(MachineError, match=f"MAIN_PROCESS_ADDRESS: nobody can be awaited at 127.0.0.1:{port} here"):
            rendezvous.serve(team.LOOPBACK, port, 2)


def test_the_ranks_of_one_machine_talk_over_the_loopback():
    assert team.interface(team.LOOPBACK) == "lo"


def test_machines_that_would_train_something_else_are_named_with_the_field():
    marks = {"data SHA-256": "a", "LoRA.R": 8, "Hardware.NUM_THREADS": 2}
    other = {"data SHA-256": "b", "LoRA.R": 8, "Hardware.NUM_THREADS": 4}
    with pytest.raises(RunError) as refused:
        machines.refuse_mismatch(heard_from(marks, marks, other, other, local_size=2))
    assert refused.value.message == "the machines do not agree: data SHA-256 = 'a' on machine 0, 'b' on machine 1"
    machines.refuse_mismatch(heard_from(marks, {**marks, "Hardware.NUM_THREADS": 9}, local_size=1))
    with pytest.raises(RunError, match="what another process sends are no settings"):
        machines.refuse_mismatch(heard_from(marks, "marks", local_size=1))


def heard_from(*fingerprints: object, local_size: int) -> Watch:
    """What rank 0 knows when it has heard these fingerprints."""

    class Heard(Alone):
        place = Place(0, 0, len(fingerprints), local_size)

        def __init__(self) -> None:
            """Nothing is started."""

        def gather(self, value: object) -> list[object]:
            return list(fingerprints)

    return Watch(folder=Path("checkpoints"), fingerprint={}, keep=1, team=Heard())


def test_one_process_is_a_team_of_one_that_says_and_hears_itself():
    alone = Alone()
    assert (alone.rank, alone.size, alone.place.machines) == (0, 1, 1)
    assert (alone.round(7), alone.round(True), alone.first(lambda: "a"), alone.gather({1: 2})) == (
        [7], [1], "a", [{1: 2}],
    )  # fmt: skip
    assert alone.sums([0.5, 3]) == [0.5, 3]
    rows = {"input_ids": object()}
    assert alone.own(rows, rows=5, micro=4) == (rows, 4)
    with pytest.raises(team.Trouble, match="process 0 has no finite loss"):
        alone.round(team.NOT_FINITE)
    with team.joined(team.ALONE, settings.load(ROOT / "config.ini")) as joined:
        assert isinstance(joined, Alone)


def met(store: Store, *two: Place) -> list[Exception | None]:
    """How the meeting of two machines ended for each."""
    ends: list[Exception | None] = [None, None]

    def meet(place: Place) -> None:
        try:
            rendezvous.meet(place, store, lambda: None)
        except RunError as error:
            ends[place.machine] = error

    threads = [threading.Thread(target=meet, args=(place,)) for place in two]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ends


@pytest.fixture
def quick_store(monkeypatch) -> Store:
    monkeypatch.setattr(rendezvous, "HEARD", 0.0)
    monkeypatch.setattr(meeting, "sealed", lambda store, key: (store, key))
    return Store()


def test_machines_with_one_secret_meet_and_have_one_key(quick_store):
    two = places(b"s" * 16, b"s" * 16)
    assert met(quick_store, *two) == [None, None]
    keys = {meeting.admitted(quick_store, place.key, place.machine)[1] for place in two}
    assert len(keys) == 1


def test_machines_with_other_numbers_of_processes_are_refused_on_all(quick_store):
    message = "machine 1 is set to 2 machines with 1 processes each, machine 0 to 2 machines with 2 processes each: "
    message += "NUM_MACHINES and NUM_PROCESSES must be the same on all"
    first, second = places(b"s" * 16, b"s" * 16, processes=(2, 1))
    ends = met(quick_store, first, second)
    assert [str(end) for end in ends] == [f"training: {message}"] * 2


def test_a_machine_with_another_secret_is_refused_on_both_sides(quick_store):
    ends = met(quick_store, *places(b"s" * 16, b"t" * 16))
    words = "does not prove that it knows the secret of this machine: FINETUNE_MACHINES_SECRET must be the same on all"
    assert f"machine 1 {words}" in str(ends[0]) and f"machine 0 {words}" in str(ends[1])


@pytest.mark.parametrize("said", [b"", b"2 machines with 1 processes each", pickle.dumps({"a": 1}), b"\0" * 100])
def test_a_stranger_in_the_place_of_a_machine_is_refused(quick_store, said):
    dict.__setitem__(quick_store, "machine 1", said)
    with pytest.raises(RunError, match="machine 1 does not prove that it knows the secret"):
        rendezvous.meet(places(b"s" * 16, b"s" * 16)[0], quick_store, lambda: None)


def test_what_was_heard_of_another_meeting_is_of_no_use_in_this_one(quick_store, monkeypatch):
    """A stranger has written down what two machines said to each other, and says it again."""
    assert met(quick_store, *places(b"s" * 16, b"s" * 16)) == [None, None]
    old = dict(quick_store)
    first, second = places(b"s" * 16, b"s" * 16)
    with pytest.raises(RunError, match="machine 1 does not prove that it knows the secret"):
        rendezvous.meet(first, Store({"machine 1": old["machine 1"]}), lambda: None)
    with pytest.raises(RunError, match="machine 0 does not prove that it knows the secret"):
        rendezvous.meet(second, Store(old), lambda: None)


def test_a_process_that_ends_while_machines_wait_for_each_other_ends_the_waiting(quick_store):
    error = RunError("training", "process 1 is gone")
    for place in places(b"s" * 16, b"s" * 16, processes=(2, 2)):
        with pytest.raises(RunError, match="process 1 is gone"):
            rendezvous.meet(place, Store(), lambda: error)


@pytest.mark.parametrize(("rank", "other"), [(0, "another machine"), (1, "machine 0, or to another one,")])
def test_a_connection_that_closes_is_told_from_other_errors(rank, other, tmp_path):
    class OfTwo(Alone):
        place, size = Place(rank, 0, 2, 1, 1), 2

        def __init__(self) -> None:
            """Nothing is started."""

    watch = Watch(folder=tmp_path, fingerprint={}, keep=1, team=OfTwo())
    found = machines.lost(RuntimeError("Connection closed by peer [10.0.0.6]:1"), watch)
    assert f"a process on {other} has ended, or the connection to it is lost; its log says more" in str(found)
    assert machines.lost(RuntimeError("mat1 and mat2 shapes cannot be multiplied"), watch) is None
    watch.team.place = Place(rank, rank, 2, 2)
    found = machines.lost(RuntimeError("Connection closed by peer [127.0.0.1]:1"), watch)
    assert "another process of this training has ended; what started the processes says how" in str(found)
    watch.team.size = 1
    assert machines.lost(RuntimeError("Connection closed by peer"), watch) is None


def ended(fault: str, *arguments: str | Path) -> subprocess.CompletedProcess:
    """How a run with something changed in it ended."""
    return adopted.run(program(fault, *arguments))


def trained(config: Path, *arguments: str, fault: str = "") -> tuple[Path, str]:
    """The directory of a run that ended when it was trained, and what it said."""
    done = ended(fault, "--config", config, *TWO, *arguments)
    assert done.returncode == 1 and "enough" in done.stderr, done.stderr
    return Path(done.stdout.strip()), done.stderr


def validation(run: Path) -> list[tuple[int, float]]:
    """The validation losses of a run, by step."""
    return [(e["at_step"], e["loss"]) for e in events.read(run / "events.jsonl") if e["event"] == "evaluation"]


@pytest.mark.tiny
def test_two_processes_train_the_same_rows_in_each_step_and_have_the_losses_of_one(tmp_path, tiny_model, undisturbed):
    run, said = trained(write_tiny_config(tmp_path, tiny_model))
    assert "6 steps of 4 rows in 2 processes" in said
    ours, theirs = losses(run), losses(undisturbed)
    assert ours.keys() == theirs.keys() and len(ours) == 6
    assert [ours[step] for step in ours] == pytest.approx([theirs[step] for step in ours], rel=1e-3)
    # Both have told what the line between them took.
    between = json.loads((run / "status.json").read_text(encoding="utf-8"))["stages"]["train"]["exchange"]
    assert 0 < between["share"] < 1 and 0 < between["waiting"] < 1 and between["gbps"] > 0
    assert between["seconds"] > 0 and between["reckoned"] > 0
    assert "between the processes: " in (run / "finetune.log").read_text(encoding="utf-8")
    assert [step for step, _ in validation(run)] == [step for step, _ in validation(undisturbed)]
    assert [loss for _, loss in validation(run)] == pytest.approx(
        [loss for _, loss in validation(undisturbed)], rel=1e-3
    )


# A rank that unpickles anything while it is joined to the others ends with an error.
NO_PICKLES = """
import contextlib
from training.train import team
real_joined = team.joined
@contextlib.contextmanager
def joined(*arguments):
    import pickle
    import torch.distributed.distributed_c10d as c10d
    def refuse(*_, **__):
        raise AssertionError("a rank unpickles")
    with real_joined(*arguments) as found:
        before = pickle.loads, pickle.load, pickle.Unpickler, c10d._unpickler, c10d._tensor_to_object
        pickle.loads = pickle.load = pickle.Unpickler = c10d._unpickler = c10d._tensor_to_object = refuse
        yield found
        pickle.loads, pickle.load, pickle.Unpickler, c10d._unpickler, c10d._tensor_to_object = before
team.joined = joined
"""
# SIGTERM comes in the fourth step.
FOURTH = """
import os, signal
from training.train import updates
real_step = updates.begin_step
def begin_step(watch):
    real_step(watch)
    watch.begun = getattr(watch, "begun", 0) + 1
    if watch.begun == 4:
        os.kill(os.getpid(), signal.SIGTERM)
updates.begin_step = begin_step
"""


@pytest.mark.tiny
def test_no_rank_unpickles_what_came_through_a_socket(tmp_path, tiny_model, monkeypatch):
    """Through training, validation, checkpoints and a resume; also where accelerate is told to compare shapes in pickles."""
    monkeypatch.setenv("ACCELERATE_DEBUG_MODE", "1")
    config, fault = write_tiny_config(tmp_path, tiny_model), NO_PICKLES
    monkeypatch.setenv("TORCH_DISTRIBUTED_DEBUG", "DETAIL")
    stopped = ended(in_rank(0, FOURTH) + fault, "--config", config, *TWO)
    assert stopped.returncode == 143, stopped.stderr
    resumed = ended(fault, "--config", config, "--resume")
    assert resumed.returncode == 1 and "enough" in resumed.stderr, resumed.stderr
    run = Path(resumed.stdout.strip())
    assert "going on from the checkpoint of step" in resumed.stderr and sorted(losses(run)) == [1, 2, 3, 4, 5, 6]
    assert [step for step, _ in validation(run)] == [0, 3, 6]


@pytest.mark.tiny
def test_rows_that_only_fill_a_batch_up_are_cut_off_whether_padded_or_joined():
    import torch

    ids = torch.tensor([[1, 2, 3], [4, 5, 0], [6, 0, 0]])
    padded = {"input_ids": ids, "labels": ids, "attention_mask": (ids > 0).long()}
    assert {name: value.tolist() for name, value in team.without_filling(padded, 2).items()} == {
        name: value[:2].tolist() for name, value in padded.items()
    }
    joined = {"input_ids": torch.tensor([[1, 2, 3, 4, 5, 6]]), "position_ids": torch.tensor([[0, 1, 2, 0, 1, 0]])}
    assert team.without_filling(joined, 2)["input_ids"].tolist() == [[1, 2, 3, 4, 5]]
    assert team.without_filling(joined, 3)["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0]]


# One of the two finds no memory for more than so many rows.
SCARCE = """
real = fast_loss.loss
def scarce(causal_lm, inputs, *others):
    if len(inputs["input_ids"]) > 1:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
    return real(causal_lm, inputs, *others)
fast_loss.loss = scarce
"""


@pytest.mark.tiny
def test_memory_that_one_process_lacks_halves_the_batch_of_all(tmp_path, tiny_model, undisturbed):
    run, said = trained(write_tiny_config(tmp_path, tiny_model), fault=in_rank(1, SCARCE))
    assert "out of memory: PER_DEVICE_TRAIN_BATCH_SIZE is now 1, GRADIENT_ACCUMULATION_STEPS 2; going on from" in said
    ours, theirs = losses(run), losses(undisturbed)
    assert [ours[step] for step in theirs] == pytest.approx([theirs[step] for step in theirs], rel=1e-3)


# With dropout, so that each rank's own random state counts.
EIGHT = ("--set=LoRA.LORA_DROPOUT=0.1", "--set=LoRA.BIAS=lora_only", "--set=Training.MAX_STEPS=8")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_model) -> Path:
    """A run of two processes that nobody disturbed, of so many steps."""
    make = lambda folder: str(trained(write_tiny_config(folder, tiny_model), *EIGHT)[0])  # noqa: E731
    return Path(once(tmp_path_factory, "eight_steps_of_two", make)[1])


@pytest.mark.tiny
def test_two_processes_killed_and_stopped_in_turn_end_as_undisturbed_ones(tmp_path, tiny_model, whole):
    config = write_tiny_config(tmp_path, tiny_model)
    process = slowly("--config", config, *TWO, *EIGHT)
    run = wait_for_step(tmp_path / "outputs", 3, process)
    os.kill(other_process(run), signal.SIGKILL)  # a rank that is gone ends the run, at once and resumable
    began = time.monotonic()
    stdout, stderr = process.communicate(timeout=120)
    assert time.monotonic() - began < 30
    assert (process.returncode, stdout.strip()) == (1, str(run))
    assert "process 1 of 2 (NUM_PROCESSES) was killed by SIGKILL\nthe checkpoint of step" in stderr
    assert "Traceback" not in stderr

    process = slowly("--config", config, "--resume", start_new_session=True)
    wait_for_step(tmp_path / "outputs", 5, process)
    other = other_process(run)
    os.killpg(process.pid, signal.SIGTERM)  # as a terminal or a service manager does: to every process of the group
    os.kill(other, signal.SIGTERM)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 143, stderr
    status = json.loads((run / "status.json").read_text(encoding="utf-8"))
    assert status["state"] == "interrupted" and status["step"] < 8
    assert gone(other)
    states = sorted(path.name for path in run.glob(f"checkpoints/checkpoint-{status['step']}/rng_state*"))
    assert states == ["rng_state_0.pth", "rng_state_1.pth"]

    process = start("--config", config, "--resume")
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    assert losses(run) == losses(whole)
    # With trained biases the base model is not to be had by switching the adapter off: no row is measured before and after.
    assert files_of(run) == small.RUN_FILES - {"rows.csv"}


@pytest.mark.tiny
def test_whichever_process_is_stopped_or_killed_the_run_ends_in_time_and_goes_on_with_the_losses_of_an_undisturbed_one(
    tmp_path, tiny_model, whole
):
    config = write_tiny_config(tmp_path, tiny_model)

    def hurt(step: int, how: Callable[[Path, int], None], *arguments: str) -> tuple[int, str, dict[str, object]]:
        process = slowly("--config", config, *(arguments or ("--resume",)))
        run = wait_for_step(tmp_path / "outputs", step, process)
        ranks = started(run), other_process(run)
        how(run, process.pid)
        began = time.monotonic()
        stdout, stderr = process.communicate(timeout=120)
        assert all(map(gone, ranks)) and time.monotonic() - began < 60
        assert "Traceback" not in stderr
        status = json.loads((run / "status.json").read_text(encoding="utf-8"))
        assert (stdout.strip() == str(run)) and status["step"] < 8, stderr
        return process.returncode, stderr, status

    code, stderr, status = hurt(2, lambda run, _: os.kill(other_process(run), signal.SIGTERM), *TWO, *EIGHT)
    assert (code, status["state"]) == (143, "interrupted"), stderr
    code, stderr, status = hurt(status["step"] + 1, lambda run, _: os.kill(started(run), signal.SIGKILL))
    assert (code, status["state"]) == (1, "failed"), stderr
    assert "training: process 0 of 2 (NUM_PROCESSES) was killed by SIGKILL\nthe checkpoint of step" in stderr
    assert status["lost"] is True, "the training can go on: nothing of its own has ended it"
    code, stderr, status = hurt(status["step"] + 1, lambda _, launcher: os.kill(launcher, signal.SIGKILL))
    assert (code, status["state"]) == (-signal.SIGKILL, "interrupted"), stderr
    done = ended("", "--config", config, "--resume")
    assert "enough" in done.stderr, done.stderr
    assert losses(Path(done.stdout.strip())) == losses(whole)


# Rank 1 ends badly once it has trained, while rank 0 is at its evaluation, and does not wait long for such an end.
BAD_END = """
import time
from training.distributed import crew, worker
crew.STUCK, crew.LISTENING = 0.5, 0.1
real = worker.work
def work(*given):
    real(*given)
    os._exit(3)
worker.work = work
def evaluate(*given):
    time.sleep(4)
    raise errors.RunError("evaluate", "enough")
pipeline.evaluate_stage = evaluate
"""


@pytest.mark.tiny
def test_a_process_that_ends_badly_when_all_have_trained_does_not_end_the_evaluation(tmp_path, tiny_model):
    config = write_tiny_config(tmp_path, tiny_model)
    command = [sys.executable, "-c", FAULTY.format(root=str(ROOT), fault=BAD_END), "--config", config, *TWO]
    done = adopted.run(command, timeout=120)
    assert done.returncode == 1 and "error: evaluate: enough" in done.stderr and "process 1" not in done.stderr, (
        done.stderr
    )


@pytest.mark.tiny
def test_with_max_restarts_a_run_goes_on_by_itself_when_a_process_dies(tmp_path, tiny_model, whole):
    config = write_tiny_config(tmp_path, tiny_model)
    process = slowly("--config", config, *TWO, *EIGHT, "--set=Hardware.MAX_RESTARTS=2")
    run = wait_for_step(tmp_path / "outputs", 3, process)  # the checkpoint of step 2 is there
    os.kill(other_process(run), signal.SIGKILL)
    wait_for_step(tmp_path / "outputs", 5, process)
    os.kill(started(run), signal.SIGKILL)
    stdout, stderr = process.communicate(timeout=300)
    assert stdout == f"{run}\n" and "enough" in stderr and "Traceback" not in stderr, stderr
    assert "process 1 of 2 (NUM_PROCESSES) was killed by SIGKILL" in stderr
    assert "process 0 of 2 (NUM_PROCESSES) was killed by SIGKILL" in stderr
    assert re.findall(r"starting the processes again, from the checkpoint \((\d) of 2\)", stderr) == ["1", "2"]
    assert [e["event"] for e in events.read(run / "events.jsonl") if e["event"] in ("failed", "done")] == ["failed"]
    assert losses(run) == losses(whole)


@pytest.mark.tiny
def test_a_detached_run_of_several_processes_tells_its_directory_and_is_stopped_by_that(tmp_path, tiny_model):
    config = write_tiny_config(tmp_path, tiny_model)
    run = finetune("--config", config, *TWO, "--max-steps", "5000", "--detach").run
    end = time.monotonic() + 60
    while max(losses(run), default=0) < 2:
        assert time.monotonic() < end, (run / "finetune.log").read_text(encoding="utf-8")
        time.sleep(0.1)
    ranks = started(run), other_process(run)
    stopped = finetune("--stop", run, "--config", config)
    assert stopped.code == 0 and all(map(gone, ranks)), stopped.stderr
    status = json.loads((run / "status.json").read_text(encoding="utf-8"))
    assert (status["state"], status["error"].splitlines()[0][:15]) == ("interrupted", "stopped at step")


@pytest.mark.tiny
def test_started_by_torchrun_each_process_takes_its_place(tmp_path, tiny_model, undisturbed):
    script = tmp_path / "finetune.py"
    script.write_text(FAULTY.format(root=str(ROOT), fault=NO_EXPORT), encoding="utf-8")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    config = write_tiny_config(tmp_path, tiny_model)
    arguments = ["--config", str(config), "--set=Hardware.NUM_THREADS=1", "--batch-size=1"]
    done = subprocess.run([*torchrun, *arguments], capture_output=True, text=True, timeout=600)
    assert "enough" in done.stderr and "6 steps of 4 rows in 2 processes" in done.stderr, done.stderr
    assert done.stderr.count("started by torchrun: it takes its place among them") == 1, "one log"
    ours, theirs = losses(Path(done.stdout.strip())), losses(undisturbed)
    assert [ours[step] for step in theirs] == pytest.approx([theirs[step] for step in theirs], rel=1e-3)


# The other rank is ready, and never comes.
NEVER = """
import time
from training.train import team
def joined(*_):
    time.sleep(3600)
team.joined = joined
"""
# And this one's trainer waits inside torch before the first step.
BUILT = """
import datetime
import torch.distributed as dist
from training.train import loop
def build(*_):
    logger.info("building")
    store = dist.HashStore()
    store.set_timeout(datetime.timedelta(hours=1))
    store.get("a key that never comes")
from loguru import logger
loop.build = build
"""
# A line that the run says when it has loaded its model.
SAYS = """
from loguru import logger
from training.distributed import crew
real_wait = crew.Crew.wait
def wait(self):
    real_wait(self)
    logger.info("all are ready")
crew.Crew.wait = wait
"""


@pytest.mark.tiny
@pytest.mark.parametrize(
    ("several", "number", "line"),
    [
        (True, signal.SIGTERM, "all are ready"),
        (True, signal.SIGINT, "all are ready"),
        (False, signal.SIGTERM, "building"),
    ],
)
def test_a_signal_before_the_first_step_ends_a_run_that_waits_inside_a_library(
    tmp_path, tiny_model, several, number, line
):
    fault = SAYS + in_rank(1, NEVER) if several else BUILT
    command = program(fault, "--config", write_tiny_config(tmp_path, tiny_model), *(TWO if several else ()))
    process = adopted.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert any(line in said for said in process.stderr), "it ended before"
    time.sleep(1)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=120)
    run = Path(stdout.strip())
    assert process.returncode == 128 + number, stderr
    status = json.loads((run / "status.json").read_text(encoding="utf-8"))
    assert status["state"] == "interrupted" and status["error"].startswith(
        f"stopped by {number.name}; nothing was trained yet"
    )
    if several:
        assert gone(other_process(run))


@pytest.mark.tiny
def test_two_machines_stop_together_and_go_on_from_the_checkpoint_of_machine_0_also_after_a_death(
    tmp_path, tiny_model, undisturbed, monkeypatch
):
    monkeypatch.setenv("FINETUNE_MACHINES_SECRET", "f5e91a8e2b7d4c60")
    config = write_tiny_config(tmp_path, tiny_model)
    with socket.socket() as free:
        free.bind((team.LOOPBACK, 0))
        port = free.getsockname()[1]
    one_row = re.sub("BATCH_SIZE = .*", "BATCH_SIZE = 1", config.read_text(encoding="utf-8"))
    hardware = "[Hardware]\nNUM_MACHINES = 2\nMAX_RESTARTS = 1\n"
    config.write_text(one_row.replace("[Hardware]\n", hardware), encoding="utf-8")
    flags = ("--config", config, "--set", f"Hardware.MAIN_PROCESS_ADDRESS=127.0.0.1:{port}")

    def both(*more: str) -> list[subprocess.Popen]:
        """Each machine with an OUTPUT_DIR of its own; machine 0 ends when it has trained."""
        own = (("--output", tmp_path / f"m{n}", "--set", f"Hardware.MACHINE_RANK={n}") for n in (0, 1))
        return [slowly(*flags, *more, *output_and_rank) for output_and_rank in own]

    machine_0, machine_1 = both()
    run = wait_for_step(tmp_path / "m0", 2, machine_0)
    machine_1.send_signal(signal.SIGTERM)  # from any of them
    (stdout, stderr), (nothing, said) = machine_0.communicate(timeout=120), machine_1.communicate(timeout=120)
    assert (machine_0.returncode, stdout.strip()) == (143, str(run)), stderr
    assert (machine_1.returncode, nothing) == (143, ""), said
    assert "stopped; the checkpoint is on machine 0" in said

    machine_0, machine_1 = both("--resume")
    end = time.monotonic() + 120
    while "going on from the checkpoint" not in (run / "finetune.log").read_text(encoding="utf-8"):
        assert time.monotonic() < end and machine_0.poll() is None
        time.sleep(0.05)
    os.kill(adopted.children(machine_1.pid)[0], signal.SIGKILL)  # a death is no end: all start again
    (_, stderr), (_, said) = machine_0.communicate(timeout=120), machine_1.communicate(timeout=120)
    assert (machine_0.returncode, machine_1.returncode) == (1, 0), stderr + said
    assert "enough" in stderr and "the training is done; machine 0 has the adapter" in said
    again = "starting the processes again, from the checkpoint (1 of 1)"
    assert again in stderr and again in said and "a process on another machine has ended" in stderr
    assert not (tmp_path / "m1").exists()
    ours, theirs = losses(run), losses(undisturbed)
    assert [ours[step] for step in theirs] == pytest.approx([theirs[step] for step in theirs], rel=1e-3)


def two_machines(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str | Path]]:
    """What each of two "machines" on this one is started with, for a training that nobody waits for the end of."""
    monkeypatch.setenv("FINETUNE_MACHINES_SECRET", "f5e91a8e2b7d4c60")
    config = write_tiny_config(tmp_path, tiny_model)
    with socket.socket() as free:
        free.bind((team.LOOPBACK, 0))
        port = free.getsockname()[1]
    common = ("--config", config, "--batch-size", "1", "--max-steps", "500", "--set=Hardware.NUM_MACHINES=2")
    where = ("--set=Hardware.NUM_THREADS=1", f"--set=Hardware.MAIN_PROCESS_ADDRESS=127.0.0.1:{port}")
    return [[*common, *where, "--output", tmp_path / f"m{n}", f"--set=Hardware.MACHINE_RANK={n}"] for n in (0, 1)]


@pytest.mark.tiny
def test_where_what_started_the_processes_of_one_machine_is_killed_all_end_in_time_and_the_checkpoint_is_safe(
    tmp_path, tiny_model, monkeypatch
):
    agents = [slowly(*flags) for flags in two_machines(tmp_path, tiny_model, monkeypatch)]
    run = wait_for_step(tmp_path / "m0", 2, agents[0])
    ranks = [adopted.children(agent.pid)[0] for agent in agents]
    began = time.monotonic()
    agents[1].kill()
    _, said = agents[0].communicate(timeout=120)
    agents[1].communicate(timeout=120)
    assert all(map(gone, ranks)) and time.monotonic() - began < 60
    assert (agents[0].returncode, agents[1].returncode) == (143, -signal.SIGKILL), said
    status = json.loads((run / "status.json").read_text(encoding="utf-8"))
    assert status["state"] == "interrupted" and status["error"].startswith("stopped at step"), said
    assert (run / "checkpoints" / f"checkpoint-{status['step']}" / "checkpoint.json").is_file()
    assert "Traceback" not in said


# Machines that are silent for so long are given up.
IMPATIENT = """
from training.distributed import heartbeat
heartbeat.BEAT, heartbeat.SILENCE, heartbeat.NOTICING = 0.2, 4.0, 0.5
"""


@pytest.mark.tiny
@pytest.mark.parametrize("frozen", [0, 1])
def test_a_machine_that_falls_silent_without_closing_a_connection_is_given_up(
    tmp_path, tiny_model, monkeypatch, frozen
):
    both = [
        adopted.Popen(
            program(IMPATIENT + SLOW, *flags),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for flags in two_machines(tmp_path, tiny_model, monkeypatch)
    ]  # fmt: skip
    run = wait_for_step(tmp_path / "m0", 3, both[0])  # the checkpoint of step 2 is there
    ranks = [adopted.children(one.pid)[0] for one in both]
    os.kill(ranks[frozen], signal.SIGSTOP)
    try:
        began = time.monotonic()
        _, said = both[1 - frozen].communicate(timeout=120)
        assert time.monotonic() - began < 30
        assert both[1 - frozen].returncode == 1, said
        assert f"training: machine {frozen} has not been heard of for 4 s: it is gone, or the line to it is cut" in said
        if frozen == 1:
            assert "the checkpoint of step" in said
            assert json.loads((run / "status.json").read_text(encoding="utf-8"))["state"] == "failed"
    finally:
        os.kill(ranks[frozen], signal.SIGKILL)
        both[frozen].communicate(timeout=60)
