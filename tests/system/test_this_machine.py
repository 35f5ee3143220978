"""Choices for described machines: no card is at hand, so the machine is a record and the choice a plain function."""

from __future__ import annotations

import subprocess

import pytest

from training import settings
from training.errors import MachineError
from training.plan import choices
from training.system import this_machine
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
    monkeypatch.setattr(this_machine, "CGROUP", tmp_path)
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
