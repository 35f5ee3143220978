"""Runs that an older version made: they are resumed, exported and told of.

older_runs.tar.xz holds two runs on the tiny model that commit d7d6f5f made, before the modules moved into rooms: one
that SIGTERM ended at step 2 of 6, with its checkpoint, and one that was finished, without its model files.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.support import adopted
from tests.support.paths import ROOT
from tests.support.programs import finetune
from tests.support.runs import losses
from training.report import schema
from training.system.events import read

MADE_IN = "/tmp/oldrun"  # by whoever made them
STOPPED, FINISHED = "finetune_20261130_003429", "finetune_20261130_003520"

pytestmark = pytest.mark.tiny


@pytest.fixture
def older(tiny_config: Path, tiny_model: Path) -> Path:
    """The folder with both runs, as if they had been made beside `tiny_config` on this machine's tiny model."""
    outputs = tiny_config.parent / "outputs"
    with tarfile.open(Path(__file__).with_name("older_runs.tar.xz")) as archive:
        archive.extractall(outputs, filter="data")
    for file in outputs.rglob("*"):
        if file.suffix in (".ini", ".json", ".jsonl"):
            text = file.read_text(encoding="utf-8")
            text = text.replace(f"{MADE_IN}/model", str(tiny_model)).replace(MADE_IN, str(tiny_config.parent))
            file.write_text(text, encoding="utf-8")
    for manifest in outputs.rglob("checkpoint.json"):
        content = json.loads(manifest.read_text(encoding="utf-8"))
        for name in content["files"]:
            content["files"][name] = hashlib.sha256((manifest.parent / name).read_bytes()).hexdigest()
        manifest.write_text(json.dumps(content), encoding="utf-8")
    return outputs


def export(run: Path) -> subprocess.CompletedProcess[str]:
    """The export of a run by its script."""
    command = [sys.executable, str(ROOT / "training" / "export.py"), str(run)]
    return adopted.run(command)


def test_a_stopped_run_of_an_older_version_is_resumed_to_the_losses_of_the_undisturbed_one(older: Path) -> None:
    ended = finetune("--resume", older / STOPPED)
    assert ended.code == 0, ended.stderr
    assert ended.run == older / STOPPED
    events = [json.loads(line) for line in (ended.run / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [event["step"] for event in events if event["event"] == "step"] == [1, 2, 3, 4, 5, 6]
    assert losses(ended.run) == pytest.approx(losses(older / FINISHED), rel=1e-3)
    rates, undisturbed = (
        [e["learning_rate"] for e in read(run / "events.jsonl") if e["event"] == "step"]
        for run in (ended.run, older / FINISHED)
    )
    assert rates == undisturbed and rates[0] == 0, "its learning rate goes on as it began"
    report = json.loads((ended.run / "report.json").read_text(encoding="utf-8"))
    assert ["Training.OPTIM", "adamw_torch", "exact, and on every device"] in report["choices"]
    assert not any(line.startswith("Training.OUTPUT_DIR") for line, *_ in report["differences"])
    assert all(check["passed"] for check in report["checks"])
    assert (ended.run / "tiny.Q4_K_M.gguf").is_file()


def test_a_trained_run_of_an_older_version_is_exported_and_told_of_in_a_report(older: Path) -> None:
    run = older / FINISHED
    before = json.loads((run / "report.json").read_text(encoding="utf-8"))
    (run / "report.json").unlink()
    status = json.loads((run / "status.json").read_text(encoding="utf-8"))
    trained = {name: status["stages"][name] for name in ("train", "evaluate")}
    (run / "status.json").write_text(json.dumps(status | {"state": "interrupted", "stages": trained}), encoding="utf-8")
    ended = export(run)
    assert ended.returncode == 0, ended.stderr
    assert (run / "tiny.Q4_K_M.gguf").is_file() and (run / "report.html").is_file()
    after = json.loads((run / "report.json").read_text(encoding="utf-8"))
    before, after = (schema.plain(schema.build(one)) for one in (before, after))  # with what older reports did not have
    # Measured anew of the quantised file, by sums that newer versions take otherwise.
    quantised = [[score.pop("quantised") for score in one["scores"]] for one in (before, after)]
    assert quantised[1] == pytest.approx(quantised[0], rel=1e-6)
    for part in ("training", "scores", "general", "data"):
        assert after[part] == before[part]
    assert after["checks"] and all(check["passed"] for check in after["checks"])


def test_runs_of_an_older_version_are_listed_compared_and_asked_for_their_status(older: Path) -> None:
    config = older.parent / "config.ini"
    listed = finetune("--config", config, "--history")
    assert listed.code == 0, listed.stderr
    assert "interrupted" in listed.stdout and "completed" in listed.stdout
    compared = finetune("--config", config, "--compare", older / STOPPED, older / FINISHED)
    assert compared.code == 0, compared.stderr
    status = finetune("--config", config, "--json", "--status", older / STOPPED)
    assert json.loads(status.stdout)["state"] == "interrupted"
