"""setup.sh and run.sh: what they refuse, what they pass on, and what they leave alone. The set-up itself is run by tests/run.sh.

What setup.sh hands to training/system/ has its quick tests in test_set_up.py.
"""

import contextlib
import fcntl
import os
import re
import shlex
import shutil
import socket
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata

import pytest
from packaging.requirements import Requirement

from tests.support.paths import ROOT
from training.system import browser, torch_builds

pytestmark = pytest.mark.slow
REQUIREMENTS = ROOT / "requirements"
SETUP = (ROOT / "setup.sh").read_text(encoding="utf-8")


def script(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/bash\n" + text)
    path.chmod(0o755)
    return path


@pytest.fixture
def place(tmp_path):
    """The scripts and the settings' part of the package, copied to a folder with spaces and Chinese characters."""
    root = tmp_path / "a folder 训练"
    root.mkdir()
    for name in ("setup.sh", "run.sh", "config.ini", "train_data.jsonl", "validation_data.jsonl"):
        shutil.copy(ROOT / name, root)
    shutil.copytree(REQUIREMENTS, root / "requirements")
    shutil.copytree(ROOT / "training", root / "training", ignore=shutil.ignore_patterns("__pycache__", "*.log*"))
    return root


@pytest.fixture
def call(place, tmp_path):
    """Run one of the scripts with nothing of this machine's caches, and with stand-ins first on the PATH."""

    def call(name, *arguments, cwd=None, **environment):
        env = {"PATH": f"{tmp_path / 'programs'}:{os.environ['PATH']}", "HOME": str(tmp_path / "home"), **environment}
        env.setdefault("PYTHON", sys.executable)
        return subprocess.run(
            ["bash", str(place / name), *map(str, arguments)],
            capture_output=True,
            text=True,
            env=env,
            cwd=cwd,
            timeout=60,
        )

    return call


def make_ready(place, variant="cpu"):
    """A .venv that a finished set-up could have left; its python is a stand-in that tells how it was called."""
    python = script(place / ".venv" / "bin" / "python", 'printf "%s\\n" "$$" "${PYTHONPATH-none}" "$@"\n')
    function = re.search(r"^stamp\(\) \{.*?^\}", SETUP, re.DOTALL | re.MULTILINE)[0]
    flags = re.search(r"^llama_flags=.*$", SETUP, re.MULTILINE)[0]
    code = f'requirements=$1\n{flags}\n{function}\nstamp "$2"'
    said = subprocess.run(
        ["bash", "-c", code, "-", str(place / "requirements"), variant], capture_output=True, text=True, check=True
    )
    (place / ".venv" / ".ready").write_text(said.stdout)
    return python


# ---- setup.sh ------------------------------------------------------------------------------------------------------


def test_everything_that_is_missing_is_named_at_once_with_the_lines_that_help(call, place):
    old = script(place / "old-python", 'echo "is Python 3.8; 3.10 to 3.13 serve"\n')  # a stand-in for an old Python
    done = call("setup.sh", PYTHON=str(old), CC="no-such-cc", CXX="no-such-cxx")
    assert (done.returncode, done.stdout) == (3, "")
    for part in (
        "no Python 3.10 to 3.13",
        "is Python 3.8",
        "no C compiler (no-such-cc)",
        "no C++17 compiler (no-such-cxx)",
    ):
        assert part in done.stderr
    assert "sudo apt-get install -y python3 python3-venv build-essential\n" in done.stderr
    assert "sudo dnf install -y python3.12 gcc make gcc-c++\n" in done.stderr
    assert not (place / ".venv").exists()


def test_a_python_without_venv_and_a_disk_without_room_are_named(call, place):
    limited = script(  # a stand-in for Debian's Python without python3-venv, on a disk with 100 MiB
        place / "limited",
        f'case "$*" in *ensurepip*) exit 1 ;; *disk_usage*) echo 100; exit ;; esac\nexec "{sys.executable}" "$@"\n',
    )
    done = call("setup.sh", PYTHON=str(limited))
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert done.returncode == 3
    assert "has no venv module (ensurepip)" in done.stderr
    assert f"apt-get install -y python{version}-venv" in done.stderr
    assert "too little disk" in done.stderr and "100 MiB are free" in done.stderr
    assert not (place / ".venv").exists()


def test_a_compiler_that_does_not_compile_is_no_compiler(call, place):
    broken = script(place / "broken-cxx", "exit 1\n")
    done = call("setup.sh", CXX=str(broken))
    assert done.returncode == 3
    assert f"no C++17 compiler ({broken})" in done.stderr


def test_a_python_that_was_asked_for_is_the_one_or_none(call):
    assert call("setup.sh", "--python").stdout == f"{sys.executable}\n"
    done = call("setup.sh", "--python", PYTHON="/no/such/python")
    assert (done.returncode, done.stdout) == (3, "")


def test_unknown_arguments_are_refused_and_help_is_on_stdout(call):
    done = call("setup.sh", "--nonsense")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--nonsense" in done.stderr
    done = call("setup.sh", "--help")
    assert done.returncode == 0 and "TORCH_INDEX_URL" in done.stdout


def test_ready_means_finished_for_these_very_requirements(call, place):
    assert call("setup.sh", "--ready").returncode == 3
    make_ready(place)
    assert call("setup.sh", "--ready", ENGINE="transformers").returncode == 0
    assert call("setup.sh", "--ready", ENGINE="unsloth").returncode == 3, "the GPU packages are not there"
    for name in ("test.txt", "service.txt"):
        with (place / "requirements" / name).open("a") as file:
            file.write("# more\n")
    assert call("setup.sh", "--ready", ENGINE="transformers").returncode == 0, "what they need is none of a run's"
    with (place / "requirements" / "common.txt").open("a") as file:
        file.write("# more\n")
    assert call("setup.sh", "--ready", ENGINE="transformers").returncode == 3


def test_a_set_up_that_was_killed_is_not_ready(call, place):
    make_ready(place)
    (place / ".venv" / ".ready").unlink()
    assert call("setup.sh", "--ready").returncode == 3


def test_a_gpu_asks_for_the_gpu_packages(call, place, tmp_path):
    make_ready(place)
    script(tmp_path / "programs" / "nvidia-smi", "exit 9\n")  # there, but no driver
    assert call("setup.sh", "--ready").returncode == 0
    script(tmp_path / "programs" / "nvidia-smi", 'echo "GPU 0: a stand-in"\n')
    assert call("setup.sh", "--ready").returncode == 3
    make_ready(place, "gpu")
    assert call("setup.sh", "--ready").returncode == 0


# Stand-ins for the drivers' tools: what each prints on a machine with such a card.
NVIDIA_SMI = """case "$*" in -L) echo "GPU 0: Tesla T4 (UUID: GPU-1)"; exit ;; esac
echo "| NVIDIA-SMI 560.35.03    Driver Version: {driver}    CUDA Version: {cuda}     |"
"""
ROCMINFO = 'echo "  Name:                    gfx942"\n'
XPU_SMI = 'echo "| 0  | Device Name: Intel(R) Data Center GPU Max 1100 |"\n'


def test_a_driver_that_is_too_old_for_the_wheels_cuda_is_named_with_both_ways_out(call, place, tmp_path):
    script(tmp_path / "programs" / "nvidia-smi", NVIDIA_SMI.format(driver="560.35.03", cuda="12.6"))
    done = call("setup.sh")
    assert (done.returncode, done.stdout) == (3, "")
    assert (
        "the driver (560.35.03) serves CUDA 12.6, PyTorch is built for CUDA 13.0: install driver 580 or newer, or take a "
        f"build for this one: TORCH_INDEX_URL=https://download.pytorch.org/whl/cu126 {shlex.quote(str(place / 'setup.sh'))}\n"
    ) in done.stderr
    assert not (place / ".venv").exists(), "nothing was downloaded"


def function_of_setup(call, place, name, **environment):
    """What one of setup.sh's functions prints, in a copy that stops before anything is done."""
    text = (place / "setup.sh").read_text()
    (place / "setup.sh").write_text(text.replace("with_tests=false\n", f"{name} >&3\nexit 0\n", 1))
    try:
        return call("setup.sh", **environment).stdout.strip()
    finally:
        (place / "setup.sh").write_text(text)


def test_cards_of_amd_and_intel_are_found_by_their_tools_and_want_the_packages_for_a_gpu(call, place, tmp_path):
    make_ready(place)
    programs = tmp_path / "programs"
    assert function_of_setup(call, place, "gpu_kind") == ""
    script(programs / "rocminfo", ROCMINFO)
    assert function_of_setup(call, place, "gpu_kind") == "amd"
    assert call("setup.sh", "--ready").returncode == 3, "the packages for a GPU are wanted"
    (programs / "rocminfo").unlink()
    script(programs / "xpu-smi", XPU_SMI)
    assert function_of_setup(call, place, "gpu_kind") == "intel"
    assert call("setup.sh", "--ready").returncode == 3


def test_an_amd_card_without_a_known_rocm_is_named_before_anything_is_installed(call, place, tmp_path):
    script(tmp_path / "programs" / "rocminfo", ROCMINFO)
    done = call("setup.sh", ROCM_PATH=str(tmp_path / "none"))
    assert (done.returncode, done.stdout) == (3, "")
    assert "  an AMD card is here, and which ROCm is not known" in done.stderr
    assert not (place / ".venv").exists()


def test_two_set_ups_do_not_work_at_once(place, tmp_path):
    make_ready(place)
    with (place / "setup.sh").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        env = {**os.environ, "PYTHON": sys.executable, "ENGINE": "transformers"}
        command = ["bash", str(place / "setup.sh")]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        assert process.stderr.readline() == "setup: another set-up is at work in this folder; waiting for it\n"
        time.sleep(0.3)
        assert process.poll() is None
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, ""), err
    assert "setup: ready in" in err


def test_an_index_that_refuses_is_passed_over(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert not torch_builds.answers(f"http://127.0.0.1:{port}/whl")


def test_an_index_is_asked_for_torch():
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:
        answered = pool.submit(torch_builds.answers, f"http://127.0.0.1:{server.getsockname()[1]}/whl/")
        connection, _ = server.accept()
        with connection:
            asked = connection.recv(1000)
            connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
    assert answered.result() is True
    assert asked.startswith(b"GET /whl/torch/ HTTP/1.1\r\n")


@pytest.mark.tiny
def test_an_index_that_never_answers_is_given_up():
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert not torch_builds.answers(f"http://127.0.0.1:{server.getsockname()[1]}/whl")


@pytest.mark.tiny
@pytest.mark.skipif(
    not (ROOT / ".venv" / ".ready").is_file(), reason="this clone is not set up; tests/run.sh does that"
)
def test_a_second_set_up_takes_seconds_and_changes_nothing():
    before = {path.name: path.stat().st_mtime_ns for path in (ROOT / ".venv").iterdir()}
    started = time.monotonic()
    done = subprocess.run(["bash", str(ROOT / "setup.sh")], capture_output=True, text=True, check=True)
    assert time.monotonic() - started < 60
    assert done.stdout == ""
    assert re.fullmatch(r"setup: ready in \d+ s\n", done.stderr)
    assert {path.name: path.stat().st_mtime_ns for path in (ROOT / ".venv").iterdir()} == before


# ---- requirements/ -------------------------------------------------------------------------------------------------


def lines(name):
    return [line for line in (REQUIREMENTS / name).read_text().splitlines() if line and not line.startswith(("#", "-"))]


def test_what_a_package_of_the_tests_brings_along_is_held_to_the_release_that_the_program_has():
    """Else `setup.sh --tests` puts another one in its place, and the next set-up finds .venv broken."""

    def name(requirement: str) -> str:
        return re.split(r"[^\w.-]", requirement.strip(), maxsplit=1)[0].lower().replace("_", "-")

    ours, held = ({name(line) for line in lines(file)} for file in ("common.txt", "constraints.txt"))
    found, left = set(), {name(line) for file in ("test.txt", "service.txt") for line in lines(file)}
    while left:
        found |= left
        brought = set()
        for package in left:
            with contextlib.suppress(metadata.PackageNotFoundError):
                brought |= {name(one) for one in metadata.requires(package) or () if "extra ==" not in one}
        left = brought - found
    assert "charset-normalizer" in found & ours
    assert found & ours - held == set()


def test_no_package_of_the_set_for_cards_is_built_for_another_cuda_than_torch():
    """PyPI's xformers links libcudart.so.12 and cannot be loaded beside a torch for CUDA 13."""
    named = {Requirement(line.partition("#")[0]).name for line in lines("gpu.txt")}
    assert "torch" in named and "xformers" not in named


@pytest.mark.parametrize("name", sorted(path.name for path in REQUIREMENTS.glob("*.txt")))
def test_every_package_is_pinned_to_one_release_for_each_python(name):
    for python in ("3.10", "3.11", "3.12", "3.13"):
        seen = set()
        for line in lines(name):
            wanted = Requirement(line.partition("#")[0].strip())
            if wanted.marker and not wanted.marker.evaluate({"python_version": python, "platform_machine": "x86_64"}):
                continue
            assert re.fullmatch(r"==[^*,]+", str(wanted.specifier)), line
            assert wanted.name not in seen, line
            seen.add(wanted.name)


def test_cpu_and_gpu_are_the_same_set():
    torch = [line.split()[0] for name in ("cpu.txt", "gpu.txt") for line in lines(name) if line.startswith("torch==")]
    assert torch[0] == torch[1]
    assert all("-r common.txt" in (REQUIREMENTS / name).read_text() for name in ("cpu.txt", "gpu.txt"))


def installed(folder, monkeypatch, capsys, root=True, **programs):
    """The browser is provided, with nothing on the PATH but coreutils and these stand-ins; what it said and called."""
    bin_ = folder / "bin"
    bin_.mkdir()
    for name, text in programs.items():
        script(bin_ / name.replace("_", "-"), text)
    monkeypatch.setenv("PATH", str(bin_))
    browser.provide(folder / "setup.log", root)
    calls = folder / "calls"
    return capsys.readouterr().err, calls.read_text() if calls.exists() else ""


def test_the_browser_for_the_tests_is_installed_by_root_on_debian(tmp_path, monkeypatch, capsys):
    apt = f'echo "$DEBIAN_FRONTEND $@" >>"{tmp_path}/calls"\n'
    said, calls = installed(tmp_path, monkeypatch, capsys, apt_get=apt)
    assert calls == (
        "noninteractive update\nnoninteractive install -y --no-install-recommends chromium fonts-noto-cjk\n"
    )
    assert said == "setup: chromium fonts-noto-cjk, for the tests of the report in a browser\n"


def test_a_browser_that_is_there_is_left_alone(tmp_path, monkeypatch, capsys):
    programs = {"chromium": "", "fc_list": "echo font\n"}
    apt = f'touch "{tmp_path}/calls"\n'
    assert installed(tmp_path, monkeypatch, capsys, apt_get=apt, **programs) == ("", "")


@pytest.mark.parametrize(
    ("programs", "root", "why"),
    [
        ({}, True, "no apt-get here"),
        ({"apt_get": ""}, False, "that takes root: sudo apt-get install -y chromium fonts-noto-cjk"),
        ({"apt_get": "echo E: no network; exit 100\n"}, True, "could not install chromium fonts-noto-cjk: E: no network"),
    ],
)  # fmt: skip
def test_where_no_browser_can_be_installed_the_reason_is_said_and_the_set_up_goes_on(
    tmp_path, monkeypatch, capsys, programs, root, why
):
    said, _ = installed(tmp_path, monkeypatch, capsys, root, **programs)
    assert why in said and "are skipped" in said


# ---- run.sh --------------------------------------------------------------------------------------------------------


def test_run_becomes_the_venvs_python_with_the_arguments_as_they_are(place, tmp_path):
    make_ready(place)
    link = tmp_path / "link to run"
    link.symlink_to(os.path.relpath(place / "run.sh", tmp_path))
    env = {**os.environ, "PYTHONPATH": "/elsewhere", "ENGINE": "transformers"}
    arguments = ["my data.jsonl", "输出", "--set", "Model.SYSTEM_PROMPT=$(id) 'x'"]
    process = subprocess.Popen([str(link), *arguments], cwd=tmp_path, stdout=subprocess.PIPE, text=True, env=env)
    pid, path, *called = process.communicate()[0].splitlines()
    assert int(pid) == process.pid, "exec, so that signals arrive"
    assert path == "none"
    assert called == [str(place / "training" / "finetune.py"), *arguments]


def test_a_wrong_setting_is_told_before_a_long_set_up(call, place):
    done = call("run.sh", "--set", "LoRA.R=x")
    assert (done.returncode, done.stdout) == (2, "")
    assert "LoRA.R" in done.stderr and "setup:" not in done.stderr
    assert not (place / ".venv").exists()
    assert not list(place.rglob("__pycache__")), "nothing is left behind"


def test_help_needs_no_set_up(call, place):
    done = call("run.sh", "--help")
    assert done.returncode == 0
    assert "run.sh" in done.stdout
    assert not (place / ".venv").exists()


def test_where_the_set_up_fails_nothing_is_on_stdout_and_the_code_is_3(call):
    done = call("run.sh", CXX="no-such-cxx")
    assert (done.returncode, done.stdout) == (3, "")
    assert "no C++17 compiler (no-such-cxx)" in done.stderr
    done = call("run.sh", PYTHON="/no/such/python", CXX="no-such-cxx")
    assert (done.returncode, done.stdout) == (3, "")
    assert "/no/such/python" in done.stderr and "no-such-cxx" in done.stderr


def test_closed_streams_do_not_hinder(place):
    make_ready(place)
    script(place / ".venv" / "bin" / "python", ": 7<&0 || exit 40; : 7>&1 || exit 41; : 7>&2 || exit 42\n")
    env = {**os.environ, "ENGINE": "transformers"}
    subprocess.run(["bash", "-c", f'bash "{place}/run.sh" <&- >&- 2>&-'], check=True, env=env)
    env = {key: value for key, value in env.items() if key != "HOME"}
    subprocess.run(["bash", str(place / "run.sh")], check=True, env=env)


@pytest.mark.parametrize("name", ["setup.sh", "run.sh", "export_ollama.sh", "tests/run.sh", ".ci/run"])
def test_scripts_can_be_executed_and_never_change_the_directory(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert (ROOT / name).stat().st_mode & stat.S_IXUSR
    assert "set -euo pipefail" in text
    assert not re.search(r"(?m)^\s*(cd|pushd|eval|source|\.) ", text)
    assert "<<" not in text, "a program in a here-document is neither linted nor tested"
