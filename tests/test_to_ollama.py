"""export_ollama.sh through the API: a finished run goes into the stand-in, is proved there, and its report says so."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import small
from tests.support.ollama_server import FakeOllama, Model, running
from tests.support.paths import ROOT
from training import llama
from training.checks.served_prompts import Trained
from training.data import chat_template
from training.to_gguf import reader_metadata
from training.to_gguf.job import Job

# Its runs need no real vocabulary.
tiny_model, undisturbed = small.tiny_model, small.undisturbed

pytestmark = pytest.mark.tiny


@pytest.fixture
def run(undisturbed: Path, tmp_path: Path) -> Path:
    return shutil.copytree(undisturbed, tmp_path / undisturbed.name)


@pytest.fixture
def fake(run: Path, tmp_path: Path) -> Iterator[FakeOllama]:
    """A server that runs the file with llama.cpp, as a real one does."""
    job = Job.of_run(run)
    trained = Trained(template=job.template, tokenizer=reader_metadata.tokenizer(job.merged), num_ctx=job.facts.num_ctx)

    def reply(file: Path | None, prompt: str, most: int) -> tuple[str, str]:
        assert file is not None
        if most > 100:  # the question that is shown; six steps teach no model to end
            return "I am a model.", "stop"
        [answer] = llama.answer(file, [trained.tokens(prompt)], most)
        return answer.text, "stop" if answer.stopped else "length"

    one = FakeOllama(
        write=lambda messages: chat_template.prompt_served(job.template, messages, True),
        count=lambda prompt: len(trained.tokens(prompt)),
        reply=reply,
        folder=tmp_path,
    )
    with running(one) as server:
        yield server


def export(fake: FakeOllama, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OLLAMA_HOST": f"127.0.0.1:{fake.port}", **environment}
    command = ["bash", str(ROOT / "export_ollama.sh"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=300, cwd=ROOT)


def test_a_run_goes_into_ollama_without_its_command_is_proved_and_the_report_says_so(
    fake: FakeOllama, run: Path
) -> None:
    done = export(fake, "--switch", run, "team/mine:v1")
    assert (done.returncode, done.stdout) == (0, "team/mine:v1\n"), done.stderr
    assert "Ollama 0.32.15 serves what was trained, by the Modelfile's TEMPLATE: " in done.stderr
    assert fake.models.keys() == {"team/mine:v1"}
    told = json.loads((run / "report.json").read_text())["ollama"]
    assert (told["server"], told["name"], told["template"]) == ("0.32.15", "team/mine:v1", "modelfile")
    assert told["conversations"] > 30
    assert [told[f"{what}_differently"] for what in ("rendered", "counted", "first_tokens")] == [0, 0, 0]
    assert told["stops"].endswith(" of 3")
    done = export(fake, "--rollback", "team/mine:v1")
    assert (done.returncode, done.stdout) == (2, ""), "the name was new: nothing stood there before the switch"
    assert "has no team/mine-previous:v1" in done.stderr
    fake.models["team/mine-previous:v1"] = Model({}, "old")
    done = export(fake, "--rollback", "team/mine:v1")
    assert (done.returncode, done.stdout) == (0, "team/mine:v1\n"), done.stderr
    assert fake.models["team/mine:v1"].digest == "old"


def test_what_is_served_otherwise_fails_and_the_old_model_stays(fake: FakeOllama, run: Path) -> None:
    fake.models["mine:latest"] = old = Model({}, "old")
    fake.write = lambda messages: "Answer: " + messages[-1]["content"]
    done = export(fake, run, "mine")
    assert (done.returncode, done.stdout) == (1, "")
    assert "does not serve what was trained" in done.stderr
    assert "mine answers in Ollama as before" in done.stderr
    assert fake.models == {"mine:latest": old}
    assert json.loads((run / "report.json").read_text())["ollama"] is None


def test_a_server_that_is_not_there_leaves_it_to_the_command(run: Path, fake: FakeOllama) -> None:
    away = os.environ["PATH"]
    path = ":".join(part for part in away.split(":") if not (Path(part) / "ollama").exists())
    done = export(fake, run, "mine", OLLAMA_HOST="127.0.0.1:9", PATH=path)
    assert (done.returncode, done.stdout) == (3, f"{run}/Modelfile.mine\n")
    assert "no Ollama answers at http://127.0.0.1:9" in done.stderr
    assert "Ollama is not installed here" in done.stderr


def test_a_switch_that_cannot_be_told_leaves_the_old_model_and_ends_with_5(fake: FakeOllama, run: Path) -> None:
    fake.models["mine:latest"] = old = Model({}, "old")
    done = export(fake, "--switch", run, "mine")
    assert (done.returncode, done.stdout) == (5, ""), done.stderr
    assert "mine answers as before, for the new model is not shown to be as good: only 3 held-out" in done.stderr
    assert f"All the same, and the old model is deleted:  ./export_ollama.sh {run} mine\n" in done.stderr
    assert "To keep it for --rollback, first:  ollama cp mine mine-previous\n" in done.stderr
    assert fake.models == {"mine:latest": old}


def test_without_a_real_ollama_its_tests_are_left_out_and_that_is_said() -> None:
    path = ":".join(part for part in os.environ["PATH"].split(":") if not (Path(part) / "ollama").exists())
    command = ["bash", str(ROOT / "tests" / "run.sh"), "--ollama"]
    done = subprocess.run(command, capture_output=True, text=True, env={"PATH": path}, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "left out, for no ollama command is on the PATH and OLLAMA names none" in done.stdout
