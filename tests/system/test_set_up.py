"""training/system/: what setup.sh leaves to Python. No program is started and nothing is installed here."""

from __future__ import annotations

import io
import os
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from training.errors import MachineError
from training.system import (
    browser,
    installed_parts,
    llama_cpp_build,
    paths,
    serving_python,
    set_up,
    shell,
    torch_builds,
    venv_pip,
)

SYSTEM = ROOT / "training" / "system"


def test_no_file_of_the_room_has_the_name_of_a_module_that_its_scripts_import():
    """A script's own folder stands first on the path: a file of such a name would be taken for the module."""
    names = {path.stem for path in SYSTEM.glob("*.py")}
    assert len(names) > 5
    assert not names & {*sys.stdlib_module_names, "pip", "packaging", "torch"}


# ---- the Python ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "bits", "missing", "problem"),
    [
        ((3, 10), 64, [], ""),
        ((3, 13), 64, [], ""),
        ((3, 9), 64, [], "is Python 3.9; 3.10 to 3.13 serve"),
        ((3, 14), 64, [], "is Python 3.14; 3.10 to 3.13 serve"),
        ((2, 7), 64, ["lzma"], "is Python 2.7; 3.10 to 3.13 serve"),
        ((3, 12), 32, [], "is a 32-bit Python; PyTorch needs 64 bits"),
        ((3, 12), 64, ["ssl", "lzma"], "was built without ssl, lzma"),
    ],
)
def test_a_python_that_does_not_serve_is_told_why(version, bits, missing, problem):
    assert serving_python.problem(version, bits, missing) == problem


def test_the_python_that_runs_the_tests_serves():
    assert serving_python.missing_parts() == []


def test_the_file_that_any_python_must_read_has_nothing_that_is_newer_than_python_2():
    text = (SYSTEM / "serving_python.py").read_text(encoding="utf-8")
    assert text.isascii()
    code = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    assert "annotations" not in text and "->" not in code and 'f"' not in code and ":=" not in code


# ---- PyTorch's builds ------------------------------------------------------------------------------------------------


def smi(driver: str, cuda: str) -> str:
    """What nvidia-smi prints in its third line."""
    return f"| NVIDIA-SMI {driver}    Driver Version: {driver}    CUDA Version: {cuda}     |\n"


@pytest.mark.parametrize(
    ("driver", "cuda", "url"),
    [
        ("580.65.06", "13.0", ""),
        ("590.1", "13.2", ""),
        ("560.35.03", "12.6", "https://example.org/whl/cu126/"),
        ("550.1", "12.4", "https://example.org/whl/cu126"),
        ("560.35.03", "12.6", "file:///mirror"),
    ],
)
def test_an_older_driver_serves_newer_builds_of_one_major_version_of_cuda(driver, cuda, url):
    assert torch_builds.card_problem("nvidia", {"TORCH_INDEX_URL": url}, smi(driver, cuda)) == ""


def test_a_driver_of_an_older_major_version_is_named_with_both_ways_out():
    problem = torch_builds.card_problem("nvidia", {}, smi("560.35.03", "12.6"))
    assert problem == (
        "the driver (560.35.03) serves CUDA 12.6, PyTorch is built for CUDA 13.0: install driver 580 or newer, or take a "
        f"build for this one: TORCH_INDEX_URL=https://download.pytorch.org/whl/cu126 {shell.command('setup.sh')}"
    )
    for url in ("https://example.org/whl/cu126", "https://example.org/whl/cu126/"):
        problem = torch_builds.card_problem("nvidia", {"TORCH_INDEX_URL": url}, smi("520.61.05", "11.8"))
        assert "serves CUDA 11.8, PyTorch is built for CUDA 12.6" in problem


def test_newer_drivers_write_the_cuda_version_in_another_way():
    said = "| NVIDIA-SMI 999   Driver Version: 575.1   CUDA UMD Version: 12.9 |"
    assert "(575.1) serves CUDA 12.9" in torch_builds.card_problem("nvidia", {}, said)


def test_nothing_is_said_where_nvidia_smi_tells_no_version():
    assert torch_builds.card_problem("nvidia", {}, "NVIDIA-SMI has failed") == ""


def test_an_amd_card_gets_the_builds_for_the_rocm_that_is_installed(tmp_path):
    environ = {"ROCM_PATH": str(tmp_path)}
    problem = torch_builds.card_problem("amd", environ)
    assert problem.startswith(f"an AMD card is here, and which ROCm is not known (no {tmp_path}/.info/version)")
    assert problem.endswith(f"TORCH_INDEX_URL=https://download.pytorch.org/whl/rocm7.0 {shell.command('setup.sh')}")
    (tmp_path / ".info").mkdir()
    (tmp_path / ".info" / "version").write_text("7.1.1-38\n")
    assert torch_builds.index("gpu", "amd", environ) == "https://download.pytorch.org/whl/rocm7.1"
    assert torch_builds.card_problem("amd", environ) == ""


@pytest.mark.parametrize(
    ("variant", "card", "url", "end"),
    [
        ("cpu", "", "", "/whl/cpu"),
        ("gpu", "intel", "", "/whl/xpu"),
        ("gpu", "nvidia", "", ""),
        ("gpu", "", "", ""),
        ("cpu", "nvidia", "file:///mirror", "file:///mirror"),
    ],
)
def test_the_index_is_the_callers_or_that_of_the_card(variant, card, url, end):
    index = torch_builds.index(variant, card, {"TORCH_INDEX_URL": url})
    assert index.endswith(end) and bool(index) == bool(end)


def test_a_folder_answers_where_it_is_there(tmp_path):
    assert torch_builds.answers(f"file://{tmp_path}")
    assert torch_builds.answers(str(tmp_path))
    assert not torch_builds.answers(f"file://{tmp_path}/none")


# ---- what is installed -----------------------------------------------------------------------------------------------


def test_of_the_pins_comments_and_options_are_left_out(tmp_path):
    for name in ("common", "cpu", "llama", "no-deps", "gpu", "gpu-no-deps"):
        (tmp_path / f"{name}.txt").write_text(f"# {name}\n-r common.txt\n\n{name}==1.0  # why\n")
    assert installed_parts.pins(tmp_path, "cpu") == ["common==1.0", "cpu==1.0", "llama==1.0", "no-deps==1.0"]
    assert installed_parts.pins(tmp_path, "gpu")[1:] == ["gpu==1.0", "llama==1.0", "no-deps==1.0", "gpu-no-deps==1.0"]


def test_a_package_of_another_release_and_one_that_is_missing_are_named():
    lines = ["pytest==0.1", "no-such-package-here==1.0", 'also-not==1.0 ; python_version < "3"', "packaging>1"]
    first, second = installed_parts.other_releases(lines)
    assert first == f"pytest==0.1 is wanted, found: {pytest.__version__}"
    assert second == "no-such-package-here==1.0 is wanted, found: none"


def test_a_module_that_does_not_import_is_named_with_its_reason(tmp_path, monkeypatch):
    (tmp_path / "broken_one.py").write_text("raise OSError('libfoo.so: not found')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert installed_parts.broken(["json", "broken_one"]) == ["broken_one: OSError: libfoo.so: not found"]


def test_a_converter_that_is_missing_is_named_and_one_that_is_there_is_not_started_in_a_quick_look(tmp_path):
    assert installed_parts.converter_problems(tmp_path, run=False) == [f"{tmp_path}/convert_hf_to_gguf.py is not there"]
    (tmp_path / "convert_hf_to_gguf.py").write_text("raise SystemExit('not to be started')\n")
    assert installed_parts.converter_problems(tmp_path, run=False) == []


@pytest.mark.slow
def test_a_converter_that_does_not_run_is_named_with_its_last_words(tmp_path):
    (tmp_path / "convert_hf_to_gguf.py").write_text("import sys; sys.exit('no gguf here')\n")
    assert installed_parts.converter_problems(tmp_path, run=True) == [
        "convert_hf_to_gguf.py does not run: no gguf here"
    ]


# ---- llama.cpp -------------------------------------------------------------------------------------------------------


def archive(folder: Path, *names: str) -> Path:
    """A source archive with these files of llama.cpp."""
    path = folder / "llama_cpp_python-1.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name in names:
            member = tarfile.TarInfo(f"llama_cpp_python-1/vendor/llama.cpp/{name}")
            member.size = len(name)
            tar.addfile(member, io.BytesIO(name.encode()))
    return path


CONVERTER = ("convert_hf_to_gguf.py", "conversion/__init__.py", "gguf-py/gguf/constants.py", "LICENSE")


def test_of_the_source_archive_the_converter_is_unpacked_and_nothing_else(tmp_path):
    source = archive(tmp_path, *CONVERTER, "src/llama.cpp", "models/ggml-vocab-x.gguf.inp", "gguf-py/../../evil.py")
    folder = tmp_path / "llama.cpp"
    folder.mkdir()
    (folder / "of_the_former_release.py").touch()
    llama_cpp_build.unpack_converter(source, folder)
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found == set(CONVERTER)
    assert (folder / "LICENSE").read_text() == "LICENSE"
    assert not (tmp_path / "evil.py").exists() and not (tmp_path / "llama.cpp.partial").exists()


@pytest.mark.parametrize("damage", ["cut", "no archive", "without the converter", "missing"])
def test_an_archive_that_is_damaged_is_named_and_the_former_converter_stays(tmp_path, damage):
    source = archive(tmp_path, *(CONVERTER[1:] if damage == "without the converter" else CONVERTER))
    if damage == "cut":
        source.write_bytes(source.read_bytes()[:60])
    elif damage == "no archive":
        source.write_text("<html>")
    elif damage == "missing":
        source.unlink()
    folder = tmp_path / "llama.cpp"
    folder.mkdir()
    with pytest.raises(MachineError) as told:
        llama_cpp_build.unpack_converter(source, folder)
    assert str(told.value) == (
        f"the converter could not be unpacked from {source} "
        f"(is it damaged? remove it and run {shell.command('setup.sh')} again)"
    )
    assert folder.is_dir() and not (tmp_path / "llama.cpp.partial").exists()


def test_the_pinned_release_of_llama_cpp_is_read_from_the_requirements():
    pinned = llama_cpp_build.pinned_version(ROOT / "requirements")
    assert f"llama-cpp-python=={pinned}" in (ROOT / "requirements" / "llama.txt").read_text()


def test_what_killed_set_ups_left_is_removed_after_a_day(tmp_path):
    for name, age in (("build.old", 90_000), ("download.old", 90_000), ("build.now", 60), ("llama-old", 90_000)):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (0, (tmp_path / name).stat().st_mtime - age))
    llama_cpp_build.remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"build.now", "llama-old"}


def test_a_cache_that_cannot_be_written_to_gives_way_to_the_venv(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    wheels = tmp_path / "file" / "finetune-to-ollama" / "wheels" / "llama-1"
    venv = tmp_path / ".venv"
    assert llama_cpp_build.writable(wheels, venv) == venv / "cache" / "finetune-to-ollama" / "wheels" / "llama-1"
    assert capsys.readouterr().err == (
        f"setup: {wheels.parent} cannot be written to: what is built is kept in .venv only\n"
    )
    ours = tmp_path / "cache" / "wheels" / "llama-1"
    assert llama_cpp_build.writable(ours, venv) == ours and ours.parent.is_dir()


class Builder:
    """Stands in for pip: fetches and builds empty files, or fails at what `fails` names."""

    def __init__(self, fails: str = "nothing") -> None:
        self.fails = fails
        self.called: list[str] = []
        self.environ: dict[str, str] = {}

    def run(self, command: str, *arguments: object, environ: dict[str, str] | None = None) -> bool:
        """One command of pip."""
        self.called.append(command)
        self.environ.update(environ or {})
        name = {"download": "llama_cpp_python-1.tar.gz", "wheel": "llama_cpp_python-1-py3.whl"}[command]
        option = {"download": "--dest", "wheel": "--wheel-dir"}[command]
        Path(str(arguments[arguments.index(option) + 1]), name).write_text("something")
        return command != self.fails


def build_of(folder: Path, pip: Builder) -> llama_cpp_build.Build:
    """Release 1, kept below this folder."""
    (folder / "wheels").mkdir()
    return llama_cpp_build.Build("1", "-DGGML_NATIVE=OFF", folder / "wheels" / "llama-1", pip)  # type: ignore[arg-type]


def test_what_is_fetched_and_built_is_kept_for_the_next_set_up(tmp_path):
    build = build_of(tmp_path, Builder())
    assert build.kept() is None
    source = build.source_archive()
    wheel = build.make(source)
    assert build.pip.called == ["download", "wheel"]
    native, faster = shlex.split(build.pip.environ["CMAKE_ARGS"])
    assert native == "-DGGML_NATIVE=OFF"
    name, _, file = faster.partition("=")
    assert name == "-DCMAKE_PROJECT_llama_cpp_INCLUDE" and Path(file).is_file()
    assert build.source_archive() == source and build.kept() == wheel
    assert build.pip.called == ["download", "wheel"], "both are there already"
    assert {path.name for path in (tmp_path / "wheels").iterdir()} == {source.name, "llama-1"}


def test_an_empty_wheel_is_no_build(tmp_path):
    build = build_of(tmp_path, Builder())
    build.wheels.mkdir()
    (build.wheels / "llama_cpp_python-1-py3.whl").touch()
    assert build.kept() is None


@pytest.mark.parametrize(
    ("fails", "told"),
    [
        ("download", "could not fetch the source archive of llama-cpp-python 1: pip's reason is above"),
        ("wheel", "llama.cpp could not be built; the compiler's reason is above"),
    ],
)
def test_where_llama_cpp_cannot_be_fetched_or_built_that_is_told(tmp_path, fails, told):
    build = build_of(tmp_path, Builder(fails))
    with pytest.raises(MachineError) as refused:
        build.make(build.source_archive())
    assert str(refused.value) == told
    assert build.kept() is None


@pytest.mark.parametrize(("second", "code"), [(True, 0), (False, 3)])
def test_a_kept_build_that_does_not_run_here_is_built_again(tmp_path, monkeypatch, capsys, second, code):
    tried = [False, second]
    monkeypatch.setattr(llama_cpp_build, "Pip", lambda _: Builder())
    monkeypatch.setattr(llama_cpp_build.Build, "install", lambda self, wheel: tried.pop(0))
    monkeypatch.setattr(llama_cpp_build, "unpack_converter", lambda *_: None)
    wheels = tmp_path / "wheels" / "llama-1"
    wheels.mkdir(parents=True)
    (wheels / "llama_cpp_python-0-old.whl").write_text("for another C library")
    try:
        llama_cpp_build.install(ROOT / "requirements", "-DX", wheels, tmp_path / ".venv")
    except MachineError as error:
        assert (str(error), code) == ("llama.cpp was built and does not run (above)", 3)
    else:
        assert code == 0
    assert [path.name for path in wheels.iterdir()] == ["llama_cpp_python-1-py3.whl"]
    assert "setup: the kept build of llama.cpp does not run here (above)\n" in capsys.readouterr().err


# ---- the order of a set-up -------------------------------------------------------------------------------------------


class Machine:
    """Stands in for every program that a set-up starts: keeps what was called, and lets what `fails` matches fail."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.called: list[str] = []
        self.fails = "nothing"

    def call(self, *command: object, **_: object) -> int:
        """One program."""
        line = " ".join(str(part).replace(f"{self.root}/", "") for part in command)
        self.called.append(line)
        if "-m venv" in line:
            python = self.root / ".venv" / "bin" / "python"
            python.parent.mkdir(parents=True, exist_ok=True)
            python.write_text("")
            python.chmod(0o755)
        return int(self.fails in line)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A folder with the requirements and nothing set up."""
    machine = Machine(tmp_path)
    (tmp_path / "requirements").symlink_to(ROOT / "requirements")
    for module in (set_up, venv_pip):
        monkeypatch.setattr(module, "call", machine.call)
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.setattr(torch_builds, "answers", lambda url: True)
    monkeypatch.setattr(llama_cpp_build, "install", lambda *_: machine.called.append("llama.cpp"))
    monkeypatch.setattr(browser, "provide", lambda *_: machine.called.append("browser"))
    monkeypatch.delenv("TORCH_INDEX_URL", raising=False)
    return machine


def begin(*further: str, variant: str = "cpu", stamp: str = "variant cpu\nrequirements 1 2") -> int:
    """What setup.sh would call."""
    fixed = ("--python", "python3", "--llama-flags=-DX", "--wheels", "/nowhere", "--started", "0")
    return set_up.main([*fixed, "--variant", variant, "--stamp", stamp, *further])


def installs(machine: Machine) -> list[str]:
    """The end of each pip install: what was installed, or from which file."""
    return [line.split()[-1] for line in machine.called if " -m pip install " in line]


def test_a_set_up_for_the_cpu_installs_in_this_order_and_stamps_at_the_end(machine, capsys):
    assert begin() == 0
    assert machine.called[0] == "python3 -m venv --clear .venv"
    assert installs(machine) == [
        "https://download.pytorch.org/whl/cpu", "requirements/cpu.txt", "requirements/no-deps.txt"
    ]  # fmt: skip
    assert machine.called[-2] == "llama.cpp" and " full " in machine.called[-1]
    assert (machine.root / ".venv" / ".ready").read_text() == "variant cpu\nrequirements 1 2\n"
    said = capsys.readouterr().err.splitlines()
    assert said[0].endswith(f"packages for the CPU, into {machine.root}/.venv")
    assert said[-1].startswith("setup: ready in ")


def test_a_card_gets_its_own_builds_everywhere_and_unsloth(machine):
    assert begin("--card", "intel", variant="gpu", stamp="variant gpu") == 0
    index = "--extra-index-url https://download.pytorch.org/whl/xpu"
    assert [index in line for line in machine.called if "-m pip install" in line] == [True, True, False, False]
    assert "requirements/gpu-no-deps.txt" in installs(machine)


def test_a_finished_set_up_is_looked_at_and_left_alone(machine):
    begin()
    machine.called.clear()
    assert begin() == 0
    assert len(machine.called) == 1 and " quick " in machine.called[0]


def test_a_broken_part_makes_venv_anew(machine, capsys):
    begin()
    machine.called.clear()
    machine.fails = " quick "
    assert begin() == 0
    assert "setup: something is broken in .venv (above)\n" in capsys.readouterr().err
    assert any("-m venv --clear" in line for line in machine.called) and installs(machine)


def test_new_requirements_are_installed_in_place_and_another_variant_is_made_anew(machine):
    begin()
    machine.called.clear()
    begin(stamp="variant cpu\nrequirements 3 4")
    assert installs(machine) and not any("-m venv" in line for line in machine.called)
    machine.called.clear()
    begin(variant="gpu", stamp="variant gpu")
    assert any("-m venv" in line for line in machine.called)


def test_a_finished_set_up_that_is_brought_up_to_date_is_unfinished_until_the_end(machine):
    begin()
    (machine.root / ".venv" / "setup.log").touch()
    machine.fails = "requirements/no-deps.txt"
    assert begin(stamp="variant cpu\nrequirements 3 4") == 3
    assert not (machine.root / ".venv" / ".ready").exists()


@pytest.mark.parametrize(
    ("fails", "told"),
    [
        ("-m venv", "could not make a virtual environment in "),
        ("requirements/cpu.txt", "could not install: transformers, trl, peft and the rest. pip's reason is above."),
        (" full ", "the set-up does not work (above). Remove "),
    ],
)
def test_what_fails_is_told_with_exit_3_and_leaves_no_stamp(machine, capsys, fails, told):
    machine.root.joinpath(".venv").mkdir()
    machine.root.joinpath(".venv", "setup.log").touch()
    machine.fails = fails
    assert begin() == 3
    assert told in capsys.readouterr().err
    assert not (machine.root / ".venv" / ".ready").exists()


def test_without_an_answer_the_cpu_takes_the_configured_index_and_a_card_stops(machine, monkeypatch, capsys):
    monkeypatch.setattr(torch_builds, "answers", lambda url: False)
    assert begin() == 0
    assert "/whl/cpu does not answer: taking PyTorch from the configured index" in capsys.readouterr().err
    assert not any("extra-index" in line for line in machine.called)
    assert begin("--card", "intel", variant="gpu", stamp="variant gpu") == 3
    assert "/whl/xpu does not answer, and pip's own index has PyTorch for CUDA 13 only" in capsys.readouterr().err


def test_what_the_tests_need_is_installed_once_and_the_browser_is_looked_for_each_time(machine):
    begin("--tests", "5 6")
    assert (machine.root / ".venv" / ".ready-tests").read_text() == "5 6\n"
    assert machine.called[-1] == "browser" and installs(machine)[-1] == "requirements/test.txt"
    machine.called.clear()
    begin("--tests", "5 6")
    assert not installs(machine) and machine.called[-1] == "browser"
    begin("--tests", "7 8")
    assert installs(machine) == ["requirements/test.txt"]


def test_what_the_service_needs_is_installed_once_and_only_where_it_is_asked_for(machine):
    begin()
    assert "requirements/service.txt" not in installs(machine)
    begin("--service", "5 6")
    assert (machine.root / ".venv" / ".ready-service").read_text() == "5 6\n"
    assert installs(machine)[-1] == "requirements/service.txt"
    machine.called.clear()
    begin("--service", "5 6")
    assert not installs(machine)
    begin("--service", "7 8")
    assert installs(machine) == ["requirements/service.txt"]


def test_a_card_that_pytorch_does_not_see_is_told_and_the_set_up_ends_well(machine, capsys):
    machine.fails = "torch.cuda.is_available"
    assert begin("--card", "nvidia", variant="gpu", stamp="variant gpu") == 0
    assert "setup: a card (nvidia) is here but PyTorch does not see it" in capsys.readouterr().err


# ---- pip -------------------------------------------------------------------------------------------------------------


def test_where_nobody_watches_the_end_of_pips_log_is_shown_on_failure(tmp_path, monkeypatch, capsys):
    def failing(*_: object, out: io.BufferedWriter, **__: object) -> int:
        out.write("".join(f"line {number} {'x' * 400}\n" for number in range(40)).encode())
        out.flush()
        return 1

    monkeypatch.setattr(venv_pip, "call", failing)
    monkeypatch.setattr(os, "isatty", lambda number: False)
    with pytest.raises(MachineError, match="could not install: a thing"):
        venv_pip.Pip(tmp_path).install("a thing", "thing==1")
    first, *lines = capsys.readouterr().err.splitlines()
    assert first == "setup: a thing"
    assert len(lines) == 25 and lines[0].startswith("  line 15 x") and {len(line) for line in lines} == {302}


@pytest.mark.slow
def test_a_program_that_cannot_be_started_counts_as_failed(capsys, tmp_path):
    assert venv_pip.call(tmp_path / "none", out=subprocess.DEVNULL) == 127
    assert "No such file" in capsys.readouterr().err
