"""The files for clusters: what they write is what this program reads."""

from __future__ import annotations

import copy
import functools
import json
import operator
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import jsonschema
import pytest
import yaml

from tests.support.paths import ROOT
from training.runs import Run
from training.settings.table import TABLE

EXAMPLES = ROOT / "examples"
SECRET = "FINETUNE_MACHINES_SECRET"


def commands(path: Path) -> str:
    """What a file starts."""
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found["run"] if "run" in found else found["spec"]["trainer"]["command"][-1]


@pytest.mark.parametrize("name", ["kubernetes/trainjob.yaml", "skypilot/finetune.yaml"])
def test_a_file_for_a_cluster_sets_settings_that_there_are_on_every_machine(name):
    said = commands(EXAMPLES / name)
    keys = re.findall(r"--set ([\w.]+)=", said)
    assert set(keys) >= {f"Hardware.{key}" for key in ("NUM_PROCESSES", "NUM_MACHINES", "MACHINE_RANK")}
    assert "Hardware.MAIN_PROCESS_ADDRESS" in keys and set(keys) <= set(TABLE)
    assert SECRET in (EXAMPLES / name).read_text(encoding="utf-8")


def check(name: str, found: Mapping[str, object]) -> None:
    """Hold a file for a cluster against the schemas that its program has published."""
    path = Path(__file__).parent / f"{Path(name).parent.name}.json"
    schemas = json.loads(path.read_text(encoding="utf-8"))
    for part, schema in schemas.items():
        # SkyPilot holds the resources against a schema of their own.
        if part != "source":
            jsonschema.validate(found.get("resources", {}) if part == "resources" else found, schema)


def ways(value: object, above: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The way to every key of a file, but for those whose names its writer is free to choose."""
    if isinstance(value, list):
        for number, item in enumerate(value):
            yield from ways(item, (*above, number))
    elif isinstance(value, dict) and above[-1:] not in (("limits",), ("secrets",)):
        for key, item in value.items():
            yield (*above, key)
            yield from ways(item, (*above, key))


@pytest.mark.parametrize("name", ["kubernetes/trainjob.yaml", "skypilot/finetune.yaml"])
def test_a_file_for_a_cluster_is_what_its_published_schema_allows_and_no_key_of_it_may_be_misspelt(name):
    found = yaml.safe_load((EXAMPLES / name).read_text(encoding="utf-8"))
    check(name, found)
    for *above, key in ways(found):
        wrong = copy.deepcopy(found)
        place = functools.reduce(operator.getitem, above, wrong)
        place[f"{key}x"] = place.pop(key)
        with pytest.raises(jsonschema.ValidationError):
            check(name, wrong)


@pytest.mark.parametrize(
    ("above", "wrong"),
    [
        (["spec", "trainer", "numNodes"], "two"),
        (["spec", "trainer", "resourcesPerNode", "limits", "nvidia.com/gpu"], "eight"),
        (["spec", "trainer", "env", 0, "valueFrom", "secretKeyRef", "key"], 1),
        (["spec", "runtimePatches", 0, "manager"], ""),
        (["spec", "runtimeRef", "name"], None),
        (["metadata", "name"], "Finetune"),
        (["apiVersion"], "kubeflow.org/v1"),
    ],
)
def test_a_value_that_a_trainjob_cannot_have_is_found(above, wrong):
    found = yaml.safe_load((EXAMPLES / "kubernetes" / "trainjob.yaml").read_text(encoding="utf-8"))
    functools.reduce(operator.getitem, above[:-1], found)[above[-1]] = wrong
    with pytest.raises(jsonschema.ValidationError) as refused:
        check("kubernetes/trainjob.yaml", found)
    assert list(refused.value.absolute_path) == above


@pytest.mark.slow
def test_the_commands_of_all_files_are_good_shell(tmp_path):
    for path in (EXAMPLES / "kubernetes" / "trainjob.yaml", EXAMPLES / "skypilot" / "finetune.yaml"):
        (tmp_path / f"{path.stem}.sh").write_text(f"#!/bin/bash\n{commands(path)}\n", encoding="utf-8")
    scripts = [*tmp_path.glob("*.sh"), EXAMPLES / "slurm" / "finetune.sbatch"]
    checked = subprocess.run(
        [ROOT / ".venv" / "bin" / "shellcheck", *scripts], capture_output=True, text=True, timeout=60
    )
    assert checked.returncode == 0, checked.stdout


def a_run(outputs: Path, trained: bool = False) -> None:
    """A run of a job with a checkpoint, and perhaps with its training done."""
    path = outputs / "finetune_1"
    (path / "checkpoints" / "checkpoint-5").mkdir(parents=True, exist_ok=True)
    Run(path).update(state="interrupted", stages={"train": {"steps": 5}} if trained else {})


def started(command: list[str], tmp_path: Path, **variables: str) -> list[str]:
    """The words of what a script starts, which a program prints that stands in for it."""
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, cwd=tmp_path, env={**os.environ, **variables}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.slow
def test_a_job_of_slurm_has_an_output_of_its_own_and_goes_on_with_its_own_run_alone(tmp_path):
    (tmp_path / "srun").write_text('#!/bin/sh\necho "$@"\n', encoding="utf-8")
    (tmp_path / "srun").chmod(0o700)
    output = tmp_path / "outputs" / "slurm-7"
    job = {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1"}
    job |= {"PATH": f"{tmp_path}:{os.environ['PATH']}", "FINETUNE_SECRET_FILE": str(tmp_path / "secret")}
    script = ["bash", str(EXAMPLES / "slurm" / "finetune.sbatch"), "my.ini"]
    rest = ["--config", "my.ini", "--output", str(output)]
    begin = ["--kill-on-bad-exit=1", "--wait=0"]
    a_run(tmp_path / "outputs" / "slurm-6")
    assert started(script, tmp_path, **job) == [*begin, "./run.sh", *rest], "another job's run is none of its own"
    a_run(output)
    assert started(script, tmp_path, **job) == [*begin, "./run.sh", "--resume", *rest]
    a_run(output, trained=True)
    one = ["--nodes=1", "--ntasks=1", "--ntasks-per-node=1"]
    assert started(script, tmp_path, **job) == [*begin, *one, "./run.sh", "--resume", *rest]


def ended_badly(tmp_path: Path, restarts: str = "0") -> list[str]:
    """The words of what a job of Slurm has its controller do when its tasks have ended with an error."""
    for name, text in (("srun", "exit 1"), ("scontrol", 'echo "$@"')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
        (tmp_path / name).chmod(0o700)
    job = {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": restarts}
    job |= {"PATH": f"{tmp_path}:{os.environ['PATH']}", "FINETUNE_SECRET_FILE": str(tmp_path / "secret")}
    script = ["bash", str(EXAMPLES / "slurm" / "finetune.sbatch"), "my.ini"]
    done = subprocess.run(script, capture_output=True, text=True, timeout=60, cwd=tmp_path, env={**os.environ, **job})
    assert done.returncode == 1, done.stderr
    assert ("the job waits in the queue again" in done.stderr) == bool(done.stdout)
    return done.stdout.split()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("status", "restarts", "again"),
    [
        ({"lost": True}, "0", True),
        ({"lost": True}, "3", False),
        ({"lost": None}, "0", False),
        ({}, "0", False),
        # Of a first process that was killed: it could write nothing more.
        ({"state": "running"}, "0", True),
        ({"state": "running"}, "3", False),
        ({"state": "queued"}, "0", True),
        ({"state": "completed"}, "0", False),
    ],
)
def test_a_job_of_slurm_that_lost_a_process_waits_again_three_times_and_one_that_failed_by_itself_does_not(
    tmp_path, status, restarts, again
):
    output = tmp_path / "outputs" / "slurm-7"
    a_run(output)
    Run(output / "finetune_1").update(**{"state": "failed", **status})
    assert ended_badly(tmp_path, restarts) == (["requeue", "7"] if again else [])


@pytest.mark.slow
def test_of_several_runs_of_a_job_of_slurm_the_newest_says_whether_a_process_was_lost(tmp_path):
    output = tmp_path / "outputs" / "slurm-7"
    for number, state in enumerate(("running", "failed"), start=1):
        # Killed before its first checkpoint, and begun anew.
        (output / f"finetune_{number}").mkdir(parents=True)
        Run(output / f"finetune_{number}").update(state=state)
        os.utime(output / f"finetune_{number}" / "status.json", (number, number))
    assert ended_badly(tmp_path) == []
    os.utime(output / "finetune_1" / "status.json", (3, 3))
    assert ended_badly(tmp_path) == ["requeue", "7"]
    # The link to the newest one is the same run once more.
    (output / "latest").symlink_to("finetune_2")
    assert ended_badly(tmp_path) == ["requeue", "7"]


@pytest.mark.slow
def test_pods_that_are_started_again_go_on_and_those_that_helped_end_where_the_training_is_done(tmp_path):
    text = commands(EXAMPLES / "kubernetes" / "trainjob.yaml")
    text = text.replace("/data", str(tmp_path)).replace("exec /finetune/run.sh", "echo")
    both = [{"PET_NNODES": "2", "PET_NODE_RANK": rank, "PET_MASTER_ADDR": "a"} for rank in "01"]
    again = lambda: [started(["bash", "-c", text], tmp_path, **pod)[:1] for pod in both]  # noqa: E731
    assert again() == [["--config"], ["--config"]]
    a_run(tmp_path / "outputs")
    assert again() == [["--resume"], ["--resume"]]
    a_run(tmp_path / "outputs", trained=True)
    assert again() == [["--resume"], []]
