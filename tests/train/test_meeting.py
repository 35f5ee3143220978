"""Strangers at the place where ranks find each other: on one machine there is no door, on several they know no secret."""

from __future__ import annotations

import os
import re
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.support import adopted, small
from tests.support.paths import ROOT
from tests.support.programs import wait_for_step
from tests.support.ranks import TWO, gone, other_process, program, slowly, started
from tests.support.runs import losses
from tests.support.tiny import write_tiny_config
from training import settings
from training.errors import MachineError, RunError, UserError
from training.settings import contradictions
from training.system import shared_secret
from training.train import meeting, team
from training.train.meeting import Key

# Its runs need no real vocabulary.
tiny_model = small.tiny_model

SECRET = "f5e91a8e2b7d4c60"


# ---- the secret -----------------------------------------------------------------------------------------------------


def test_several_machines_need_a_secret_and_are_told_how_to_make_one(tmp_path, monkeypatch):
    monkeypatch.delenv(shared_secret.SECRET, raising=False)
    config = tmp_path / "config.ini"
    config.write_text("[Hardware]\nNUM_MACHINES = 2\nMAIN_PROCESS_ADDRESS = a\n", encoding="utf-8")
    chosen = settings.load(config, check_files=False)
    ((_, message),) = contradictions.find(chosen, check_packages=True)
    assert message == (
        "config.ini:2: [Hardware] NUM_MACHINES = 2: several machines need a secret that they share: make one with "
        "`python3 -c 'import secrets; print(secrets.token_hex(32))'` and set the environment variable "
        "FINETUNE_MACHINES_SECRET to it on each machine, or to @FILE where a file holds it"
    )
    monkeypatch.setenv(shared_secret.SECRET, SECRET)
    assert contradictions.find(chosen, check_packages=True) == []
    assert SECRET not in chosen.to_ini()


def test_the_secret_may_stand_in_a_file(tmp_path, monkeypatch):
    file = tmp_path / "secret"
    file.write_text(f"{SECRET}\n", encoding="utf-8")
    monkeypatch.setenv(shared_secret.SECRET, f"@{file}")
    assert shared_secret.secret() == SECRET.encode()
    assert SECRET not in repr(Key(shared_secret.secret()))


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ("  ", "several machines need a secret that they share"),
        ("short", "FINETUNE_MACHINES_SECRET has 5 characters, which can be guessed"),
        ("@/nowhere/secret", "@/nowhere/secret: this file cannot be read (No such file or directory)"),
        ("@/", "@/: this file cannot be read (Is a directory)"),
    ],
)
def test_a_secret_that_is_none_is_refused(monkeypatch, told, said):
    monkeypatch.setenv(shared_secret.SECRET, told)
    with pytest.raises(UserError, match=re.escape(said)):
        shared_secret.secret()


def test_a_seal_belongs_to_a_key_a_name_and_a_value():
    sealed = meeting.seal(b"key", "name", b"value")
    assert meeting.opened(b"key", "name", sealed) == b"value"
    assert meeting.opened(b"other", "name", sealed) is None
    assert meeting.opened(b"key", "another name", sealed) is None
    assert meeting.opened(b"key", "name", sealed[:-1] + b"E") is None
    assert meeting.opened(b"key", "name", b"value") is None and meeting.opened(b"key", "name", b"") is None


# ---- one machine ----------------------------------------------------------------------------------------------------


def test_the_ranks_of_one_machine_meet_in_a_folder_of_this_user_alone_that_is_gone_afterwards():
    assert meeting.folder_of("a job") is None
    with meeting.private_folder("a job") as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert meeting.folder_of("a job") == folder and meeting.folder_of("another job") is None
        folder.chmod(0o755)
        assert meeting.folder_of("a job") is None, "others could have been there"
    assert not folder.exists()


def test_a_folder_that_a_killed_process_has_left_is_nobodys_meeting_place(tmp_path, monkeypatch):
    monkeypatch.setattr(meeting.tempfile, "tempdir", str(tmp_path))
    left = tmp_path / "finetune-a job-x.held"
    left.mkdir(mode=0o700)
    (left / "lock").touch()
    assert meeting.folder_of("a job") is None


def test_a_temporary_folder_that_cannot_be_made_is_told(monkeypatch, tmp_path):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(meeting.temporary, "folder", full)
    with pytest.raises(MachineError, match=r"no temporary folder can be made \(No space left on device\); set TMPDIR"):
        meeting.private_folder().__enter__()


def test_a_temporary_folder_without_locks_or_modes_is_told(monkeypatch, tmp_path):
    @contextmanager
    def plain(_what):
        (tmp_path / "plain").mkdir(mode=0o700, exist_ok=True)
        yield tmp_path / "plain"

    def no_locks(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(meeting.temporary, "folder", plain)
    monkeypatch.setattr(meeting.fcntl, "flock", no_locks)
    with pytest.raises(MachineError, match=r"cannot be locked \(Operation not supported\); set TMPDIR"):
        meeting.private_folder().__enter__()
    monkeypatch.setattr(meeting.stat, "S_IMODE", lambda mode: 0o777)
    with pytest.raises(MachineError, match="this file system lets other users in; set TMPDIR"):
        meeting.private_folder().__enter__()


# Which of the ports answers as torch's store does? One of its own does, and others may not answer at all.
ASK = """
import datetime, os, sys, threading
from torch.distributed import TCPStore
own = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
def ask(port):
    TCPStore("127.0.0.1", port, is_master=False, timeout=datetime.timedelta(seconds=2)).set("a", "b")
    print("a store at", "its own" if port == own.port else port, flush=True)
asking = [threading.Thread(target=ask, args=(int(port),), daemon=True) for port in [*sys.argv[1:], own.port]]
for one in asking:
    one.start()
for one in asking:
    one.join(10)
os._exit(0)
"""
# Another user looks for the file.
LOOK = """
import os, sys
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
for mode in ("rb", "r+b", "wb"):
    try:
        open(sys.argv[1], mode)
        print("opened", mode)
    except PermissionError:
        pass
"""


# The second step waits until a file is there.
GATE = """
import time
from pathlib import Path
from training.train import updates
real = updates.begin_step
def begin_step(watch):
    watch.begun = getattr(watch, "begun", 0) + 1
    while watch.begun == 2 and not Path({gate!r}).exists():
        time.sleep(0.05)
    real(watch)
updates.begin_step = begin_step
"""


def ports(pid: int) -> set[int]:
    """Where a process listens."""
    return {one.laddr.port for one in psutil.Process(pid).net_connections("tcp") if one.status == psutil.CONN_LISTEN}


@pytest.mark.tiny
def test_a_stranger_on_this_machine_finds_no_door_and_his_garbage_changes_nothing(tmp_path, tiny_model):
    config = write_tiny_config(tmp_path, tiny_model)
    there = tmp_path / "tmp"
    there.mkdir()
    environment = {**os.environ, "TMPDIR": str(there)}

    gate = tmp_path / "gate"

    def run(output: str) -> tuple[subprocess.Popen, Path]:
        command = program(GATE.format(gate=str(gate)), "--config", config, *TWO, "--output", tmp_path / output)
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = adopted.Popen(command, text=True, env=environment, **pipes)
        return process, wait_for_step(tmp_path / output, 1, process)

    gate.touch()
    quiet, first = run("quiet")
    assert "enough" in quiet.communicate(timeout=300)[1]
    assert list(there.glob("finetune-ranks-*")) == []
    gate.unlink()
    process, second = run("disturbed")
    (folder,) = there.glob("finetune-ranks-*")
    ranks = process.pid, started(second), other_process(second)
    open_ports = set.union(*map(ports, ranks))
    assert open_ports, "gloo listens on the loopback"
    asked = subprocess.run([sys.executable, "-c", ASK, *map(str, open_ports)], capture_output=True, text=True)
    assert asked.stdout == "a store at its own\n", asked.stderr
    if os.getuid() == 0:
        for above in (tmp_path, *tmp_path.parents, there):
            assert above.stat().st_mode & 0o001 or above.chmod(above.stat().st_mode | 0o011) is None
        looked = subprocess.run([sys.executable, "-c", LOOK, str(folder / "store")], capture_output=True, text=True)
        assert (looked.stdout, looked.stderr) == ("", "")
    for port in open_ports:
        for garbage in (b"", b"\0" * 4096, b"\xff" * 4096, b"GET / HTTP/1.1\r\n\r\n", (1).to_bytes(8, "little") * 64):
            with socket.create_connection((team.LOOPBACK, port)) as door:
                door.sendall(garbage)
    gate.touch()
    assert "enough" in process.communicate(timeout=300)[1]
    assert losses(second) == losses(first) and len(losses(second)) == 6


@pytest.mark.tiny
def test_the_meeting_place_goes_when_the_run_is_killed(tmp_path, tiny_model):
    there = tmp_path / "tmp"
    there.mkdir()
    config = write_tiny_config(tmp_path, tiny_model)
    process = slowly("--config", config, *TWO, env={**os.environ, "TMPDIR": str(there)})
    other = other_process(wait_for_step(tmp_path / "outputs", 1, process))
    assert len(list(there.glob("finetune-ranks-*"))) == 1
    process.kill()
    process.communicate(timeout=60)
    assert gone(other) and list(there.glob("finetune-ranks-*")) == []


# ---- several machines -----------------------------------------------------------------------------------------------

# What worked once: join as rank 1, and answer with a pickle that leaves a file.
STRANGER = """
import datetime, os, sys, time
import torch.distributed as dist
port, left, rounds = int(sys.argv[1]), sys.argv[2], 0
class Evil:
    def __reduce__(self):
        return (open, (left, "w"))
while True:
    try:
        store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=datetime.timedelta(seconds=2))
        break
    except dist.DistError:
        time.sleep(0.2)
store.set("machine 1", "2 machines with 1 processes each")
store.set_timeout(datetime.timedelta(seconds=20))
store.wait(["go"])
os.environ["GLOO_SOCKET_IFNAME"] = "lo"
dist.init_process_group("gloo", store=store, rank=1, world_size=2, timeout=datetime.timedelta(seconds=20))
talk = dist.new_group(backend="gloo", timeout=datetime.timedelta(seconds=20))
import torch
size = [torch.zeros(1, dtype=torch.int64)]
told = [None]
dist.broadcast_object_list(told, src=0, group=talk)
dist.gather_object(Evil(), None, dst=0, group=talk)
"""
# Overwrite whatever is in the store, again and again.
OVERWRITE = """
import datetime, sys, time
import torch.distributed as dist
port = int(sys.argv[1])
while True:
    try:
        store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=datetime.timedelta(seconds=2))
        while True:
            for key in store.list_keys():
                if "//" in key:
                    store.set(key, b"\\0" * 32 + bytes(100))
                    print(key, flush=True)
            time.sleep(0.01)
    except dist.DistError:
        time.sleep(0.05)
"""


def free_port() -> int:
    with socket.socket() as free:
        free.bind((team.LOOPBACK, 0))
        return free.getsockname()[1]


def machine(number: int, tmp_path: Path, tiny_model: Path, port: int, secret: str | None = SECRET) -> subprocess.Popen:
    """One of two machines, which ends when it has trained."""
    folder = tmp_path / f"m{number}"
    folder.mkdir()
    config = write_tiny_config(folder, tiny_model)
    one_row = re.sub("BATCH_SIZE = .*", "BATCH_SIZE = 1", config.read_text(encoding="utf-8"))
    where = f"MACHINE_RANK = {number}\nMAIN_PROCESS_ADDRESS = 127.0.0.1:{port}\n"
    here = f"[Hardware]\nNUM_MACHINES = 2\n{where}"
    config.write_text(one_row.replace("[Hardware]\n", here), encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name != shared_secret.SECRET}
    if secret is not None:
        environment[shared_secret.SECRET] = secret
    return slowly("--config", config, env=environment)


@contextmanager
def stranger(code: str, *arguments: object) -> Iterator[subprocess.Popen]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        yield process
    finally:
        process.kill()


@contextmanager
def ending(*processes: subprocess.Popen) -> Iterator[None]:
    """They end with this block, however it ends."""
    try:
        yield
    finally:
        for process in processes:
            process.kill()


@pytest.mark.tiny
def test_a_stranger_who_joins_as_rank_1_with_a_pickle_gets_nowhere(tmp_path, tiny_model):
    port, left = free_port(), tmp_path / "left"
    with stranger(STRANGER, port, left):
        ours = machine(0, tmp_path, tiny_model, port)
        with ending(ours):
            _, said = ours.communicate(timeout=600)
    assert not left.exists()
    assert ours.returncode == 1 and "Traceback" not in said
    assert "training: machine 1 does not prove that it knows the secret of this machine" in said


@pytest.mark.tiny
def test_machines_without_one_secret_end_with_a_clear_word_on_both_sides(tmp_path, tiny_model):
    port = free_port()
    first = machine(0, tmp_path, tiny_model, port)
    second = machine(1, tmp_path, tiny_model, port, secret=SECRET[::-1])
    with ending(first, second):
        (_, said), (_, other) = first.communicate(timeout=600), second.communicate(timeout=600)
    assert (first.returncode, second.returncode) == (1, 1), said + other
    assert "machine 1 does not prove that it knows the secret" in said
    assert "machine 0 does not prove that it knows the secret" in other
    assert SECRET not in said + other and "Traceback" not in said + other
    nothing = machine(2, tmp_path, tiny_model, port, secret=None)
    _, said = nothing.communicate(timeout=300)
    assert nothing.returncode == 2 and "several machines need a secret that they share" in said


@pytest.mark.tiny
def test_whoever_overwrites_what_the_machines_tell_each_other_sends_nobody_elsewhere(tmp_path, tiny_model):
    port = free_port()
    with stranger(OVERWRITE, port) as bad:
        both = [machine(number, tmp_path, tiny_model, port) for number in (0, 1)]
        with ending(*both):
            said = [process.communicate(timeout=600)[1] for process in both]
    overwritten = bad.communicate()[0]
    for process, words in zip(both, said, strict=True):
        assert "Traceback" not in words
        undisturbed = "enough" in words or "the training is done" in words
        assert undisturbed or process.returncode == 1, words
    assert overwritten, "the stranger came too late to be tried"
    assert any("somebody else has written to" in words for words in said) or "enough" in said[0]


@pytest.mark.slow
def test_ranks_that_met_and_do_not_reach_each_other_are_not_waited_for(tmp_path):
    code = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from training.train import team
team.JOINING = 1.0
from tests.support.settings import a_settings
settings = a_settings(DEVICE="cpu", NUM_THREADS="1")
def late():
    print("late", flush=True)
    os._exit(5)
with team.joined(team.Place(0, 0, 2, 2, file=Path({str(tmp_path / "store")!r})), settings, late=late):
    pass
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (5, "late\n"), done.stderr


@pytest.mark.slow
def test_a_value_that_somebody_else_wrote_is_refused_by_torch_itself():
    """A real store of torch's, and a real meeting of ranks over it."""
    code = f"""
import datetime, sys
sys.path.insert(0, {str(ROOT)!r})
import torch.distributed as dist
from training.train import meeting
from training.errors import RunError
plain = dist.HashStore()
store = meeting.sealed(plain, b"key")
dist.init_process_group("gloo", store=store, rank=0, world_size=1)
dist.barrier()
dist.destroy_process_group()
print(len([name for name in ("0//cpu//0/0",) if plain.check([name])]))
class Overwritten(dist.Store):
    def set(self, name, value):
        plain.set(name, b"somewhere else")
    def get(self, name):
        return plain.get(name)
    def wait(self, names, *timeout):
        plain.wait(names, *timeout)
try:
    dist.init_process_group("gloo", store=meeting.sealed(Overwritten(), b"key"), rank=0, world_size=1)
except RunError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == [
        "1",
        "training: where the machines meet, somebody else has written to '0//cpu//0/0'",
    ], done.stderr


def test_the_store_is_refused_where_go_was_said_to_others():
    class Store(dict):
        get = dict.__getitem__

    key, other = Key(b"s" * 16), Key(b"s" * 16)
    go = other.sealed("go", {"nonces": [other.nonce, other.nonce], "wrong": ""})
    with pytest.raises(RunError, match="machine 0 does not prove"):
        meeting.admitted(Store(go=go), key, 1)
