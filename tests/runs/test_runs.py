"""Run directories, their states, their logs and events."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from loguru import logger

from tests.support.runs import a_manifest
from training import runs
from training.control import background, commands
from training.errors import MachineError, RunError, UserError
from training.runs import Run, checkpoint, directory
from training.runs.checkpoint import Carried, Manifest
from training.settings import command_line
from training.system import events, files, shell, this_machine
from training.system.events import Events
from training.system.foreign_json import Damaged
from training.system.log import _LockedFile


def test_two_runs_in_the_same_second_get_directories_of_their_own(tmp_path):
    first, second, third = (runs.create(tmp_path) for _ in range(3))
    assert len({first.path, second.path, third.path}) == 3
    assert (tmp_path / "latest").resolve() == third.path


def test_a_finished_run_has_the_names_that_guides_look_for(tmp_path):
    first, second = (runs.create(tmp_path) for _ in range(2))
    for run in (first, second):
        (run.path / "adapter").mkdir()
    (first.path / "merged").mkdir()
    directory.point_results(first.path)
    names = ("lora_adapter", "merged_model", "final_model")
    made = [first.path / name for name in ("adapter", "merged", "merged")]
    assert [(tmp_path / name).resolve() for name in names] == made
    assert runs.find(tmp_path, tmp_path / "merged_model").path == first.path
    assert runs.find(tmp_path, "lora_adapter").path == first.path

    directory.point_results(second.path)  # which kept no merged model
    assert (tmp_path / "lora_adapter").resolve() == second.path / "adapter"
    assert not any((tmp_path / name).is_symlink() for name in names[1:])


def test_a_folder_of_that_name_is_left_alone(tmp_path):
    (tmp_path / "lora_adapter").mkdir()
    run = runs.create(tmp_path)
    (run.path / "adapter").mkdir()
    directory.point_results(run.path)
    assert (tmp_path / "lora_adapter").is_dir() and not (tmp_path / "lora_adapter").is_symlink()


def test_many_runs_started_at_once_all_get_their_own_directory(tmp_path):
    made: list[Path] = []
    threads = [threading.Thread(target=lambda: made.append(runs.create(tmp_path).path)) for _ in range(12)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(set(made)) == 12


def test_history_is_in_the_order_of_the_starts(tmp_path):
    names = [
        "finetune_20260101_000000",
        "finetune_20260101_000000_2",
        "finetune_20260101_000000_10",
        "finetune_20260102_000000",
    ]
    for name in reversed(names):
        (tmp_path / name).mkdir()
        (tmp_path / name / "status.json").write_text("{}", encoding="utf-8")
    (tmp_path / "finetune_no_run").mkdir()
    assert [run.path.name for run in runs.history(tmp_path)] == names


def test_an_output_dir_that_cannot_be_made_is_the_machines_fault(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(MachineError, match="OUTPUT_DIR .* cannot be written: .*--output DIR"):
        runs.create(tmp_path / "file")


@pytest.mark.slow
def test_a_run_is_alive_only_while_the_very_process_that_wrote_it_lives(tmp_path):
    run = runs.create(tmp_path)
    run.update(state="running")
    assert directory.state(run) == "running"
    sleeper = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    run.update(pid=sleeper.pid, pid_started=directory.started(sleeper.pid))
    assert directory.alive(run)
    sleeper.kill()
    sleeper.wait()
    assert directory.state(run) == "killed"
    run.update(pid=os.getpid(), pid_started=1)  # the pid was given out again
    assert directory.state(run) == "killed"


@pytest.mark.parametrize("content", [None, "", "7 (x) S", "7 (x) S " + "x " * 40])
def test_where_proc_tells_nothing_a_run_is_alive_as_long_as_its_pid_is(content, tmp_path, monkeypatch):
    monkeypatch.setattr(directory, "PROCESSES", tmp_path / "proc")
    if content is not None:
        (tmp_path / "proc" / str(os.getpid())).mkdir(parents=True)
        (tmp_path / "proc" / str(os.getpid()) / "stat").write_text(content, encoding="utf-8")
    run = runs.create(tmp_path)
    run.update(state="running")
    assert directory.state(run) == "running"
    for pid in (2**22 + 1, 2**62, 0, None):
        run.update(pid=pid)
        assert directory.state(run) == "killed"


@pytest.mark.parametrize("number", ["x", "", "9999", "-1", str(2**70), "1"])
def test_a_variable_that_names_no_pipe_of_a_waiting_parent_is_left_alone(number, tmp_path, monkeypatch):
    monkeypatch.setenv(background.PARENT, number)
    with (tmp_path / "out").open("w") as file:
        before = os.dup(1)
        try:
            os.dup2(file.fileno(), 1)
            background.tell_parent(None)
            os.fstat(1)
        finally:
            os.dup2(before, 1)
            os.close(before)
    assert (tmp_path / "out").read_text() == ""


def test_a_parent_that_has_ended_before_it_is_told_ends_nothing(monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    monkeypatch.setenv(background.PARENT, str(writing))
    background.tell_parent(None)
    assert background.PARENT not in os.environ


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(UserError, match="is not a run directory: it has no status.json"):
        runs.open_run(tmp_path)
    with pytest.raises(UserError, match="there is no run under"):
        runs.find(tmp_path, None)


def test_a_run_that_another_process_works_on_is_refused_with_the_command_that_tells_more(tmp_path):
    run = runs.create(tmp_path)
    with pytest.raises(UserError, match=r"is being worked on by another process; ./run.sh --status .* tells"):
        directory.lock(runs.open_run(run.path))
    os.close(run.held)
    directory.lock(runs.open_run(run.path))


@pytest.mark.slow
def test_a_run_killed_by_the_kernel_is_reported_as_out_of_memory(tmp_path):
    run = runs.create(tmp_path)
    (run.path / runs.CONFIG).write_text("", encoding="utf-8")
    run.update(state="running", pid_started=1, oom_kills=this_machine.oom_kills())
    assert "its process is gone; " in status(run) and f"/run.sh --resume {run.path}" in status(run)
    if not out_of_memory():
        pytest.skip("limiting memory needs a control group of our own")
    assert f"{run.path.name}: killed, step 0 of 0 (the kernel killed a process because memory ran out" in status(run)


def status(run: Run) -> str:
    """What --status says of a run."""
    said = io.StringIO()
    commands.status(command_line.parse(["--status", str(run.path)]), said)
    return said.getvalue()


def out_of_memory() -> bool:
    """Let the kernel kill a process for want of memory: one that takes more than its control group may have."""
    before = this_machine.oom_kills()
    code = "import os, sys; open(sys.argv[1], 'w').write(str(os.getpid())); bytearray(300_000_000)"
    for root in (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")):  # version 1, version 2
        group = root / f"finetune-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            for name, most in (
                ("memory.limit_in_bytes", "60M"),
                ("memory.memsw.limit_in_bytes", "60M"),
                ("memory.max", "60M"),
                ("memory.swap.max", "0"),
            ):
                if (group / name).exists():
                    (group / name).write_text(most, encoding="ascii")
            subprocess.run([sys.executable, "-c", code, str(group / "cgroup.procs")], capture_output=True)
        except OSError:
            continue
        finally:
            group.rmdir()
        return before is not None and this_machine.oom_kills() > before
    return False


def test_a_status_that_cannot_be_written_stops_nothing(tmp_path):
    run = runs.create(tmp_path / "out")
    (run.path / "status.json").unlink()
    (run.path / "status.json").mkdir()
    run.update(step=3)
    assert run.status["step"] == 3


def test_numbers_that_json_does_not_know_become_null_in_events(tmp_path):
    told = Events(tmp_path / "events.jsonl")
    told.emit("step", loss=float("nan"), nested=[float("inf"), {"x": float("-inf")}])
    (record,) = events.read(tmp_path / "events.jsonl")
    assert record["loss"] is None
    assert record["nested"] == [None, {"x": None}]


def test_a_torn_last_line_is_dropped_when_a_run_goes_on(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"v":1,"event":"step","step":1}\n{"v":1,"eve')
    Events(path).emit("step", step=2)
    assert [record["step"] for record in events.read(path)] == [1, 2]
    assert all(json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())


def test_a_file_that_is_not_finished_does_not_appear(tmp_path):
    with pytest.raises(RuntimeError), files.whole_file(tmp_path / "a") as partial:
        partial.write_text("half", encoding="utf-8")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_folder_replaces_an_older_one_only_when_it_is_whole(tmp_path):
    with files.whole_folder(tmp_path / "a") as partial:
        (partial / "x").write_text("old", encoding="utf-8")
    with pytest.raises(RuntimeError), files.whole_folder(tmp_path / "a") as partial:
        (partial / "x").write_text("new", encoding="utf-8")
        raise RuntimeError
    assert (tmp_path / "a" / "x").read_text(encoding="utf-8") == "old"


FULL = """
import resource, sys
sys.path.insert(0, {root!r})
from pathlib import Path
from training.system import events; from training.system import log
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # bytes: what a full disk does, a write takes what still fits
told, sink = events.Events(Path({path!r}) / "events.jsonl"), log._LockedFile(Path({path!r}) / "finetune.log", rotate=False)
for step in range(30):
    told.emit("step", step=step, filler="x" * 40)
    sink.write("a line of the log " + "x" * 40 + chr(10))
print("went on")
"""


def test_a_folder_that_cannot_take_the_place_of_an_older_one_leaves_it_there(tmp_path, monkeypatch):
    real, folder = Path.replace, tmp_path / "folder"
    with files.whole_folder(folder) as partial:
        (partial / "a").write_text("old", encoding="utf-8")

    def refuse(path: Path, target: Path) -> Path:
        if target == folder and not path.name.endswith(f".old.{os.getpid()}.partial"):
            raise OSError(5, "Input/output error", str(target))
        return real(path, target)

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OSError, match="Input/output error"), files.whole_folder(folder) as partial:
        (partial / "a").write_text("new", encoding="utf-8")
    assert (folder / "a").read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.slow
def test_a_full_disk_leaves_no_half_line_in_events_or_log_and_stops_nothing(tmp_path, root):
    code = FULL.format(root=str(root), path=str(tmp_path))
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.stdout == "went on\n", ended.stderr
    assert ended.stderr.count("the log goes on without it") == 1
    lines = (tmp_path / "events.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    assert len(lines) > 5
    assert [json.loads(line)["step"] for line in lines] == list(range(len(lines)))
    logged = (tmp_path / "finetune.log").read_text(encoding="utf-8").splitlines(keepends=True)
    assert len(logged) > 10
    assert set(logged) == {"a line of the log " + "x" * 40 + "\n"}


WRITER = """
import sys
sys.path.insert(0, {root!r})
from training.system import log
log.ROTATE_AT = 30_000  # bytes: the lines below fill it one and a half times
sink = log._LockedFile(__import__("pathlib").Path({path!r}), rotate=True)
for i in range(300):
    sink.write(f"{{sys.argv[1]}} {{i}} " + "x" * 40 + chr(10))
"""


@pytest.mark.slow
def test_several_processes_lose_no_line_of_the_shared_log_while_it_rotates(tmp_path, root):
    path = tmp_path / "finetune.log"
    code = WRITER.format(root=str(root), path=str(path))
    writers = [subprocess.Popen([sys.executable, "-c", code, str(n)]) for n in range(3)]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    kept = "".join(p.read_text(encoding="utf-8") for p in (path.with_name("finetune.log.1"), path) if p.exists())
    found = [line.split()[:2] for line in kept.splitlines()]
    assert all(len(line.split()) == 3 for line in kept.splitlines())
    for number in "012":
        assert [int(i) for n, i in found if n == number] == list(range(300))


@pytest.mark.slow
def test_a_signal_that_arrives_while_a_line_is_written_to_the_log_still_ends_the_run(root, tmp_path):
    """loguru catches what its sinks raise unless told otherwise: a SIGTERM in that moment was printed and forgotten."""
    code = f"""
import os, pathlib, signal, sys
sys.path.insert(0, {str(root)!r})
from loguru import logger
from training.system import files; from training.system import log
from training.errors import Interrupted
from training.system.signals import Signals
log.SHARED_LOG = pathlib.Path({str(tmp_path / "shared.log")!r})
write = files.append_whole
def struck(*what):
    write(*what)
    signal.raise_signal(signal.SIGTERM)
files.append_whole = struck
log.start(terminal=False)
Signals().install()
try:
    logger.info("a line")
except Interrupted as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "stopped by SIGTERM\n", done.stderr
    assert "a line" in (tmp_path / "shared.log").read_text(encoding="utf-8")


def test_a_log_that_cannot_be_written_stops_nothing(tmp_path, capsys):
    sink = _LockedFile(tmp_path / "missing" / "finetune.log", rotate=False)
    sink.write("one\n")
    sink.write("two\n")
    assert capsys.readouterr().err.count("the log goes on without it") == 1


def test_of_two_checkpoints_a_damaged_newer_one_is_passed_over(tmp_path):
    for step in (2, 4):
        with checkpoint.writing(tmp_path, a_manifest(step)) as partial:
            (partial / "adapter_model.safetensors").write_bytes(b"x" * 100)
    assert checkpoint.newest(tmp_path).step == 4
    (tmp_path / "checkpoint-4" / "adapter_model.safetensors").write_bytes(b"x" * 50)
    assert checkpoint.newest(tmp_path).step == 2
    (tmp_path / "checkpoint-2" / "checkpoint.json").write_text("{", encoding="utf-8")
    assert checkpoint.newest(tmp_path) is None


def test_of_a_damaged_checkpoint_it_is_said_what_is_used_instead(tmp_path, logged):
    for step in (2, 4):
        with checkpoint.writing(tmp_path, a_manifest(step)) as partial:
            (partial / "x").write_bytes(b"x")
        (tmp_path / f"checkpoint-{step}" / "x").unlink()
    assert checkpoint.newest(tmp_path) is None
    assert logged == [
        "checkpoint-4 is damaged (x is missing); the one before it is used",
        "checkpoint-2 is damaged (x is missing); there is none before it: back to the start",
    ]


def test_a_checkpoint_is_hashed_once_however_often_it_is_looked_at_and_again_when_it_has_changed(tmp_path, monkeypatch):
    with checkpoint.writing(tmp_path, a_manifest(2)) as partial:
        (partial / "adapter_model.safetensors").write_bytes(b"x" * 100)
    hashed, real = [], files.sha256
    monkeypatch.setattr(files, "sha256", lambda path: hashed.append(path.name) or real(path))
    assert [checkpoint.newest(tmp_path).step, checkpoint.newest(tmp_path).step] == [2, 2]
    assert hashed == ["adapter_model.safetensors"]
    (tmp_path / "checkpoint-2" / "adapter_model.safetensors").write_bytes(b"y" * 100)
    assert checkpoint.newest(tmp_path) is None


# As it lay on the disk when the manifest was a dict, and must lie there still: runs are resumed by older and newer versions.
ON_DISK = """{
  "v": 1,
  "step": 4,
  "files": {
    "adapter_model.safetensors": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
  },
  "fingerprint": {
    "LoRA.R": 16,
    "base model revision": null
  },
  "micro_batch": [
    4,
    1
  ],
  "carried": {
    "fast_path": "layers",
    "before": 10.75,
    "after": 10.5,
    "evaluated_at": 3,
    "best_loss": 10.5,
    "best_step": 3,
    "worse": 0
  }
}
"""
BEST = Carried(fast_path="layers", before=10.75, after=10.5, evaluated_at=3, best_loss=10.5, best_step=3)


def test_a_manifest_is_on_the_disk_what_it_always_was(tmp_path):
    marks = {"LoRA.R": 16, "base model revision": None}
    with checkpoint.writing(
        tmp_path, Manifest(step=4, files={}, fingerprint=marks, micro_batch=(4, 1), carried=BEST)
    ) as partial:
        (partial / "adapter_model.safetensors").write_bytes(b"abc")
    assert (tmp_path / "checkpoint-4" / "checkpoint.json").read_text(encoding="utf-8") == ON_DISK
    manifest = checkpoint.newest(tmp_path).manifest
    assert (manifest.step, manifest.micro_batch, manifest.fingerprint, manifest.carried) == (4, (4, 1), marks, BEST)


@pytest.mark.parametrize(
    "known",
    [
        {},
        {"fast_path": "none"},
        {"before": 2.5, "after": 2.5, "evaluated_at": 0},
        {
            "before": 2.5,
            "after": 2.0,
            "evaluated_at": 9,
            "best_loss": 1.5,
            "best_step": 6,
            "worse": 1,
            "stopped_early": True,
        },
    ],
)
def test_what_a_checkpoint_carries_is_written_as_far_as_it_is_known(known):
    assert Carried.read(known).as_dict() == known


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ({"carried": {"worse": "2"}}, "worse is no int"),
        ({"carried": 7}, "what it carries is no table"),
        ({"fingerprint": []}, "fingerprint is no table"),
        ({"micro_batch": [4]}, "step or micro_batch is no number"),
        ({"files": {"../a": ""}}, "its files are no files of one folder"),
    ],
)
def test_a_manifest_that_is_none_is_damage(damage, words):
    with pytest.raises(ValueError, match=words):
        Manifest.read({**json.loads(ON_DISK), **damage})


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    for step in (2, 4, 10):
        with checkpoint.writing(tmp_path, a_manifest(step)):
            pass
    checkpoint.rotate(tmp_path, 2, newest=10)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-4"]


def test_a_checkpoint_of_a_later_step_than_the_one_just_written_is_not_kept_in_its_place(tmp_path):
    # resumed from the start because checkpoint-60 was damaged: counted as the newest it would push out every good one
    for step in (60, 20):
        with checkpoint.writing(tmp_path, a_manifest(step)):
            pass
    checkpoint.rotate(tmp_path, 1, newest=20)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-20"]


def test_a_mismatch_names_the_field_the_old_and_the_new_value():
    with pytest.raises(UserError) as caught:
        checkpoint.refuse_mismatch({"LoRA.R": 16, "Training.SEED": 1}, {"LoRA.R": 8, "Training.SEED": 1})
    assert caught.value.problems[0] == "LoRA.R = 16 in the run, 8 now"
    assert "--fresh" in caught.value.problems[1]


def test_a_setting_that_came_after_a_run_was_made_counts_as_its_default():
    """Else every new setting would end the runs of those who take a newer version."""
    checkpoint.refuse_mismatch({"LoRA.R": 16}, {"LoRA.R": 16, "Training.SEED": 3407, "Dataset.TRAIN_ON": "completion"})
    with pytest.raises(UserError, match="Training.SEED = 3407 in the run, 1 now"):
        checkpoint.refuse_mismatch({"LoRA.R": 16}, {"LoRA.R": 16, "Training.SEED": 1})


def test_the_last_word_of_a_run_is_tried_again_where_the_disk_refuses_it_once(tmp_path, monkeypatch):
    run, real, refused = runs.create(tmp_path), files.write_json, []

    def once(path: Path, value: object) -> None:
        if not refused:
            refused.append(path)
            raise OSError(5, "Input/output error", str(path))
        real(path, value)

    monkeypatch.setattr(files, "write_json", once)
    monkeypatch.setattr(directory, "WAITS", (0.0,))
    run.update(state="completed")
    assert refused and runs.open_run(run.path).status["state"] == "completed"


def test_a_run_whose_report_is_there_is_completed_though_status_json_could_not_say_so(tmp_path):
    run = runs.create(tmp_path)
    run.update(state="running", pid=None, stages={"check": {}})
    assert directory.state(run) == "killed"
    (run.path / runs.REPORT).write_text("{}", encoding="utf-8")
    assert directory.state(run) == "completed"


def test_a_run_that_ended_before_its_settings_were_written_says_so_and_leaves_older_ones_to_be_resumed(tmp_path):
    from training.control import resume

    older, newer = runs.create(tmp_path), runs.create(tmp_path)
    (older.path / "config.ini").write_text("", encoding="utf-8")
    for run in (older, newer):
        run.update(state="running", pid=None)
    assert commands.killed_by(newer) == resume.NEVER_BEGAN
    assert "/run.sh --resume" in commands.killed_by(older)
    options = ["--resume", "--output", str(tmp_path)]
    assert resume.to_resume(command_line.parse(options)).path == older.path
    with pytest.raises(UserError, match="ended before it began: it has no config.ini, and nothing was trained"):
        resume.to_resume(command_line.parse(["--resume", str(newer.path), "--output", str(tmp_path)]))
    with pytest.raises(UserError, match="no run .* waits to be resumed"):
        (older.path / "config.ini").unlink()
        resume.to_resume(command_line.parse(options))


def test_a_run_that_was_trained_and_has_lost_its_settings_is_not_said_to_have_never_begun(tmp_path):
    from training.control import resume
    from training.pipeline import failures
    from training.runs import Handover

    older, run = runs.create(tmp_path), runs.create(tmp_path)
    (older.path / "config.ini").write_text("", encoding="utf-8")
    for one in (older, run):
        one.update(state="failed", step=2)
    lost = f"{run.path} has lost its config.ini, without which nothing goes on: put that file back, or start a new run"
    for options in (["--resume"], ["--resume", str(run.path)]):
        with pytest.raises(UserError, match=lost):
            resume.to_resume(command_line.parse([*options, "--output", str(tmp_path)]))
    assert f"{run.path} {commands.killed_by(run)}" == failures.what_is_safe(run) == lost
    (run.path / "adapter").mkdir()
    (run.path / "checkpoints" / "export.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match=lost):
        Handover.of_run(run.path)


def test_a_run_directory_that_cannot_be_filled_is_told_and_not_left(tmp_path, monkeypatch):
    def refuse(path: Path) -> None:
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(files, "private_folder", refuse)
    with pytest.raises(
        MachineError, match="OUTPUT_DIR .* cannot be written: Read-only file system; choose another one"
    ):
        runs.create(tmp_path)
    assert list(tmp_path.glob("finetune_*")) == []


def test_a_plan_that_has_gone_makes_no_failure_of_a_finished_model(tmp_path, logged):
    from training.report import gathering

    run = runs.create(tmp_path)
    gathering.complete(run)
    assert runs.open_run(run.path).status["state"] == "completed"
    assert logged[-1].startswith(f"no report: {run.path}/checkpoints/report.json cannot be read: No such file")


def test_events_that_cannot_be_read_once_stop_nothing_and_lose_nothing(tmp_path, monkeypatch):
    real, path = Path.read_bytes, tmp_path / "events.jsonl"
    path.write_bytes(b'{"v": 1, "event": "step", "step": 1}\n{"torn')

    def refuse(_: Path) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    told = Events(path)
    told.emit("step", step=2)
    monkeypatch.setattr(Path, "read_bytes", real)
    told.emit("step", step=3)
    assert [event["step"] for event in events.read(path)] == [1, 2, 3]


def test_an_event_that_the_disk_does_not_take_is_written_with_the_next(tmp_path, monkeypatch):
    real, path = files.append_whole, tmp_path / "events.jsonl"

    def refuse(*_: object) -> None:
        raise OSError(5, "Input/output error")

    told = Events(path)
    told.emit("step", step=1)
    monkeypatch.setattr(files, "append_whole", refuse)
    told.emit("step", step=2)
    monkeypatch.setattr(files, "append_whole", real)
    told.emit("step", step=3)
    assert [event["step"] for event in events.read(path)] == [1, 2, 3]
    monkeypatch.setattr(events, "MOST_LEFT", 100)
    monkeypatch.setattr(files, "append_whole", refuse)
    for step in range(4, 20):
        told.emit("step", step=step, filler="x" * 40)
    monkeypatch.setattr(files, "append_whole", real)
    told.emit("step", step=20)
    steps = [event["step"] for event in events.read(path)]
    assert steps[-1] == 20 and len(steps) < 8, "what waits has a bound"


@pytest.mark.parametrize("reported", [True, False])
def test_a_run_of_which_the_disk_takes_neither_report_nor_state_is_no_success(reported, tmp_path, monkeypatch):
    from training.report import gathering

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device", str(tmp_path / "x"))

    run = runs.create(tmp_path)
    monkeypatch.setattr(directory, "WAITS", ())
    written = SimpleNamespace(text="done")
    monkeypatch.setattr(gathering.contents, "result", lambda report: written)
    monkeypatch.setattr(gathering, "write", (lambda *_: None) if reported else refuse)
    monkeypatch.setattr(files, "write_json", refuse)
    if reported:
        gathering.complete(run)
        return
    with pytest.raises(RunError, match="neither the report nor status.json could be written") as caught:
        gathering.complete(run)
    assert caught.value.safe.endswith(f"`{shell.lasting('run.sh', '--resume', run.path)}` writes what is missing")


def refuses_to_write(path: Path) -> None:
    raise OSError(5, "Input/output error", str(path))


def refuses_to_read(path: Path) -> None:
    """As of a JSON file that is to be told of."""
    try:
        raise OSError(5, "Input/output error", str(path))
    except OSError as error:
        raise Damaged(f"{path} cannot be read: {error.strerror}") from None


@pytest.mark.parametrize("refuse", [refuses_to_write, refuses_to_read])
@pytest.mark.parametrize("name", ["write", "model_card.write"])
def test_report_and_cards_of_a_finished_run_are_tried_again_where_the_disk_refuses_them_once(
    name, refuse, tmp_path, monkeypatch, logged
):
    from training.report import gathering

    run, refused = runs.create(tmp_path), []

    def once(*_: object) -> None:
        if not refused:
            refused.append(name)
            refuse(tmp_path / "x")

    monkeypatch.setattr(directory, "WAITS", (0.0,))
    monkeypatch.setattr(gathering, "has_plan", lambda run: True)
    monkeypatch.setattr(gathering, "gather", lambda *_, **__: None)
    monkeypatch.setattr(gathering.contents, "result", lambda report: SimpleNamespace(text="done"))
    monkeypatch.setattr(gathering, "write", lambda *_: None)
    monkeypatch.setattr(gathering.model_card, "write", lambda *_: None)
    monkeypatch.setattr(f"training.report.gathering.{name}", once)
    gathering.complete(run)
    assert refused and logged == ["done"]


def test_a_report_that_the_disk_does_not_take_makes_no_failure_of_a_finished_model(tmp_path, monkeypatch):
    from training.report import gathering

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device", str(tmp_path / "report.html"))

    monkeypatch.setattr(gathering, "write", refuse)
    monkeypatch.setattr(directory, "WAITS", ())
    run, said = runs.create(tmp_path), []
    sink = logger.add(said.append, format="{message}")
    gathering.complete(run)
    logger.remove(sink)
    assert runs.open_run(run.path).status["state"] == "completed"
    assert "report.html: the disk is full" in said[0]
    assert f"export_ollama.sh --modelfile-only {run.path}` writes its report" in said[0]
