"""Choices for described machines: no card is at hand, so the machine is a record and the choice a plain function."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest

from training import settings
from training.errors import MachineError
from training.plan import choices
from training.system import control_groups, this_machine
from training.system.this_machine import Gpu, Machine


def machine(*gpus: Gpu, backend: str | None = None, unit: str | None = "amx_bf16", **versions: str) -> Machine:
    return Machine("3.11", "Linux", "a CPU", 8, unit, 64 * 10**9, 60 * 10**9, gpus, backend, versions)


def loaded(tmp_path, text: str = "[Hardware]\n"):
    (tmp_path / "config.ini").write_text(text, encoding="utf-8")
    return settings.load(tmp_path / "config.ini", check_files=False)


T4 = Gpu("Tesla T4", 16 * 10**9, (7, 5))
A100 = Gpu("A100", 40 * 10**9, (8, 0))
RTX4090 = Gpu("RTX 4090", 24 * 10**9, (8, 9))
H100 = Gpu("H100", 80 * 10**9, (9, 0))


@pytest.mark.parametrize(
    ("card", "dtype", "reason"),
    [
        (T4, "fp16", "compute capability 7.5: no bf16 hardware before 8.0"),
        (A100, "bf16", "compute capability 8.0"),
        (RTX4090, "bf16", "compute capability 8.9"),
        (H100, "bf16", "compute capability 9.0"),
    ],
)
def test_precision_follows_the_compute_capability(tmp_path, card, dtype, reason):
    assert choices.precision(loaded(tmp_path), machine(card, backend="cuda"), "cuda") == (dtype, reason)


def test_of_unequal_cards_the_oldest_decides_the_precision(tmp_path):
    assert choices.precision(loaded(tmp_path), machine(H100, T4, backend="cuda"), "cuda").value == "fp16"


@pytest.mark.parametrize(("unit", "dtype"), [("amx_bf16", "bf16"), ("avx512_bf16", "bf16"), (None, "fp32")])
def test_a_cpu_trains_in_bf16_only_where_it_multiplies_bf16(tmp_path, unit, dtype):
    assert choices.precision(loaded(tmp_path), machine(unit=unit), "cpu").value == dtype


def test_precision_is_what_the_settings_say_when_the_automatic_is_off(tmp_path):
    chosen = loaded(tmp_path, "[Hardware]\nAUTO_FP16_BF16 = false\nPRECISION = fp32\n")
    assert choices.precision(chosen, machine(), "cpu") == ("fp32", "PRECISION")


def test_a_gpu_is_trained_on_with_unsloth_and_says_so_when_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(this_machine, "versions", lambda: {})
    with pytest.raises(
        MachineError, match=r"needs Unsloth on this machine.*ENGINE=unsloth \./setup\.sh.*ENGINE = transformers"
    ):
        choices.engine(loaded(tmp_path), "cuda")
    monkeypatch.setattr(this_machine, "versions", lambda: {"unsloth": "2026.10.9"})
    assert choices.engine(loaded(tmp_path), "cuda").value == "unsloth"


def test_a_cpu_is_trained_on_with_transformers(tmp_path):
    assert choices.engine(loaded(tmp_path), "cpu") == ("transformers", "training on the CPU")


def test_a_device_that_is_not_there_is_the_machines_fault_and_names_the_way_out(tmp_path):
    chosen = loaded(tmp_path, "[Hardware]\nDEVICE = cuda\n")
    with pytest.raises(MachineError, match=r"DEVICE = cuda: torch finds no such device here.*DEVICE = auto"):
        choices.device(chosen, machine())


def test_every_automatic_choice_is_filled_in_with_its_reason(tmp_path):
    decided = choices.decide(loaded(tmp_path), machine())
    chosen = {name: (value, reason) for name, value, reason in decided.choices}
    assert chosen["Hardware.DEVICE"] == ("cpu", "no CUDA, ROCm or XPU device")
    assert chosen["Hardware.ENGINE"] == ("transformers", "training on the CPU")
    assert chosen["Hardware.PRECISION"] == ("bf16", "the CPU has amx_bf16")
    assert chosen["Quantization.LOAD_IN_4BIT"] == (False, "no CUDA device")
    assert chosen["Training.OPTIM"][0] == "adamw_torch"


def test_too_little_disk_is_told_with_what_is_needed_for_what(tmp_path):
    with pytest.raises(MachineError, match=r"too little disk space .* needed for the run; make room"):
        choices.check_disk(tmp_path / "not" / "there", 1 << 60, "the run")


def test_an_output_dir_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "outputs").write_text("", encoding="utf-8")
    with pytest.raises(MachineError, match=r"is a file, not a folder; choose another one"):
        choices.check_writable(tmp_path / "outputs" / "deeper")


@pytest.mark.slow
def test_a_read_only_output_dir_is_refused(tmp_path):
    folder = tmp_path / "mounted"
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", str(folder)], capture_output=True
    ).returncode:
        pytest.skip("mounting needs root")
    try:
        with pytest.raises(MachineError, match="cannot be written; choose another one"):
            choices.check_writable(folder / "outputs")
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize(
    ("within", "names", "given_up"),
    [
        ("", ("memory.max", "memory.current"), "inactive_file"),
        ("memory", ("memory.limit_in_bytes", "memory.usage_in_bytes"), "total_inactive_file"),
    ],
)
def test_a_containers_limit_counts_and_files_that_were_read_are_no_use_of_memory(
    within, names, given_up, tmp_path, monkeypatch
):
    group = tmp_path / within
    group.mkdir(exist_ok=True)
    monkeypatch.setattr(control_groups, "MOUNTED", tmp_path)
    unlimited = this_machine.memory()
    for name, content in zip(
        (*names, "memory.stat"), ("4000000", "3000000", f"anon 7\n{given_up} 2000000\n"), strict=True
    ):
        (group / name).write_text(content)
    assert this_machine.memory() == (4_000_000, 3_000_000)
    (group / "memory.stat").unlink()
    assert this_machine.memory() == (4_000_000, 1_000_000)
    (group / names[0]).write_text("max" if not within else str(1 << 62))
    assert this_machine.memory()[0] == unlimited[0] > 4_000_000


def grouped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str, files: Mapping[str, str]) -> None:
    """A process that is in a control group, and what its groups hold."""
    monkeypatch.setattr(control_groups, "MOUNTED", tmp_path / "mounted")
    monkeypatch.setattr(control_groups, "OWN", tmp_path / "own")
    (tmp_path / "own").write_text(own)
    for name, content in files.items():
        file = tmp_path / "mounted" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)


@pytest.mark.parametrize(
    ("own", "within", "limit", "used"),
    [
        ("0::/slurm/job_7/step_0/task_0\n", "slurm/job_7", "memory.max", "memory.current"),
        ("0::/user.slice/run.service\n", "user.slice/run.service", "memory.max", "memory.current"),
        (
            "5:cpu,cpuacct:/other\n4:memory:/slurm/uid_0/job_7/step_0\n0::/\n",
            "memory/slurm/uid_0/job_7",
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
        ),
    ],
)
def test_the_limit_of_any_group_around_a_process_counts(tmp_path, monkeypatch, own, within, limit, used):
    files = {f"{within}/{limit}": "4000000", f"{within}/{used}": "1000000", f"{within}/../{limit}": "max"}
    grouped(tmp_path, monkeypatch, own, files)
    assert this_machine.memory() == (4_000_000, 3_000_000)


def test_of_several_limits_the_tightest_counts_and_the_least_that_one_leaves(tmp_path, monkeypatch):
    inner = {"a/b/memory.max": "4000000", "a/b/memory.current": "1000000"}
    outer = {"a/memory.max": "6000000", "a/memory.current": "5000000"}
    grouped(tmp_path, monkeypatch, "0::/a/b\n", inner | outer)
    assert this_machine.memory() == (4_000_000, 1_000_000)


@pytest.mark.parametrize("own", ["0::/../../elsewhere\n", "0::/not/mounted/here\n", "", "nonsense"])
def test_a_container_that_sees_its_group_from_outside_has_the_limit_at_the_root(tmp_path, monkeypatch, own):
    grouped(tmp_path, monkeypatch, own, {"memory.max": "4000000", "memory.current": "1000000"})
    assert this_machine.memory() == (4_000_000, 3_000_000)


@pytest.mark.parametrize(
    ("own", "files", "left"),
    [
        ("0::/a/b\n", {"a/cpu.max": "250000 100000", "a/b/cpu.max": "max 100000"}, 2.5),
        ("3:cpu,cpuacct:/a\n", {"cpu/a/cpu.cfs_quota_us": "150000", "cpu/a/cpu.cfs_period_us": "100000"}, 1.5),
        ("3:cpu,cpuacct:/a\n", {"cpu/a/cpu.cfs_quota_us": "-1", "cpu/a/cpu.cfs_period_us": "100000"}, None),
        ("0::/\n", {}, None),
    ],
)
def test_a_limit_of_processor_time_is_so_many_processors(tmp_path, monkeypatch, own, files, left):
    grouped(tmp_path, monkeypatch, own, files)
    assert control_groups.processors() == left


def test_a_container_with_the_time_of_two_processors_has_two_cores_however_many_the_machine_has(monkeypatch):
    monkeypatch.setattr(this_machine, "processors", lambda: set(range(64)))
    many = SimpleNamespace(cpu_count=lambda logical: 32)
    for share, cores in ((2.0, 2), (1.5, 2), (0.5, 1), (None, 32), (48.0, 32)):
        monkeypatch.setattr(control_groups, "processors", lambda share=share: share)
        assert this_machine._physical_cores(many) == cores
