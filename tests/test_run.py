"""./run.sh itself: the shipped model with few steps, without a network; and every wrong input, through the front door."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import small
from tests.support.faults import done, kill, marked, result, wait_until
from tests.support.paths import ROOT
from tests.support.programs import Ended, finetune, wait_for_step
from training import llama, runs
from training.runs import directory
from training.to_gguf.job import Job

# Its runs need no real vocabulary.
tiny_model = small.tiny_model
SHIPPED_FILES = {
    "Modelfile", "adapter/README.md", "merged/README.md", "adapter/adapter_config.json", "adapter/adapter_model.safetensors", "config.ini", "events.jsonl",
    "finetune.log", "merged/chat_template.jinja", "merged/config.json", "merged/generation_config.json",
    "merged/model.safetensors", "merged/tokenizer.json", "merged/tokenizer_config.json", "my-assistant.Q4_K_M.gguf",
    "my-assistant.Q8_0.gguf", "report.html", "report.json", "report.md", "rows.csv", "status.json",
}  # fmt: skip
STEPS = ("--set", "Training.MAX_STEPS=20", "--set", "Quantization.QUANTIZATION_METHOD=q4_k_m,q8_0")
OWN_VENV = Path(sys.prefix) == ROOT / ".venv"  # tests/run.sh sees to it
CUT = shutil.which("unshare") and subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode == 0


def run_sh(*arguments: str | Path, cwd: Path, before: tuple[str, ...] = ()) -> Ended:
    """Run ./run.sh from another directory, with no stdin and no terminal."""
    done = subprocess.run(
        [*before, str(ROOT / "run.sh"), *map(str, arguments)],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, encoding="utf-8", cwd=cwd, timeout=1200,
    )  # fmt: skip
    return Ended(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def shipped(tmp_path_factory) -> Ended:
    """The shipped settings and rows with few steps, two quantisations, and the network cut where that is allowed."""
    if not OWN_VENV:
        pytest.skip("run.sh uses .venv: start the tests with tests/run.sh")
    folder = tmp_path_factory.mktemp("von woanders 别处")
    return run_sh("--output", "aus gaben", *STEPS, cwd=folder, before=("unshare", "-rn") if CUT else ())


@pytest.mark.embedded
def test_a_run_prints_one_line_the_absolute_run_directory(shipped):
    assert shipped.code == 0, shipped.stderr
    assert shipped.run.is_absolute()
    assert shipped.run.parent.name == "aus gaben"


@pytest.mark.embedded
def test_a_run_on_the_shipped_model_leaves_exactly_the_files_of_the_contract(shipped):
    found = {path.relative_to(shipped.run).as_posix() for path in shipped.run.rglob("*") if path.is_file()}
    assert {name for name in found if not name.startswith("checkpoints/")} == SHIPPED_FILES


@pytest.mark.embedded
def test_twenty_steps_make_the_validation_loss_fall_by_a_third_and_every_check_passes(shipped):
    report = json.loads((shipped.run / "report.json").read_text(encoding="utf-8"))
    assert report["training"]["after"] < 0.67 * report["training"]["before"]
    assert {check["passed"] for check in report["checks"]} == {True}
    assert {entry["method"] for entry in report["quantised"]} == {"q4_k_m", "q8_0"}


@pytest.mark.embedded
def test_the_evaluation_calls_the_tuned_model_better_beyond_chance_and_measures_the_quantised_one(shipped):
    report = json.loads((shipped.run / "report.json").read_text(encoding="utf-8"))
    scores = {score["name"]: score for score in report["scores"]}
    loss = scores["loss on held-out answers"]
    assert loss["verdict"] == "better" and loss["high"] < 0 and loss["rows"] == 31
    assert abs(loss["before"] - report["training"]["before"]) < 0.05 * loss["before"]  # two ways to the same figure
    assert abs(loss["quantised"] - loss["after"]) < 0.3
    assert scores["chrF"]["after"] > scores["chrF"]["before"] and scores["chrF"]["rows"] == len(report["samples"]) == 8
    assert all(entry["tokens_per_second"] > 0 for entry in report["quantised"])
    assert report["general"][0]["rows"] == 24


@pytest.mark.embedded
def test_the_exported_file_answers_through_llama_cpp_with_the_chat_template_that_was_trained(shipped):
    from training.data import Turn, chat_template

    job = Job.of_run(shipped.run)
    prompt = chat_template.render(
        job.template, chat_template.conversation(job.template, [Turn("user", "Who are you?")]), True
    )
    (answer,) = llama.answer(job.quantised("q4_k_m"), [prompt], 48)
    assert answer.text.strip()


@pytest.mark.embedded
def test_the_modelfile_stops_at_the_end_tokens_and_starts_from_the_file_beside_it(shipped):
    text = (shipped.run / "Modelfile").read_text(encoding="utf-8")
    assert "FROM ./my-assistant.Q4_K_M.gguf" in text
    assert 'PARAMETER stop "<|im_end|>"' in text
    assert "PARAMETER num_ctx " in text


@pytest.mark.embedded
def test_without_ollama_the_export_writes_the_modelfile_and_exits_3_with_the_command_to_type(shipped, tmp_path):
    done = subprocess.run(
        [str(ROOT / "export_ollama.sh"), str(shipped.run)], capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, "PATH": "/usr/bin:/bin"}, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert Path(done.stdout.strip()).read_text(encoding="utf-8").count("FROM ./") == 1
    assert "ollama create my-assistant -f" in done.stderr


@pytest.mark.embedded
def test_a_run_stopped_in_training_and_killed_in_its_export_ends_as_the_undisturbed_one(shipped, tmp_path, request):
    if request.config.getoption("--faults") < 4:
        pytest.skip("three starts of the shipped model: with --faults 4 and more")
    folder = tmp_path / "outputs"
    with (tmp_path / "said").open("w") as said:

        def begun(*arguments: str | Path) -> subprocess.Popen:
            command = [str(ROOT / "run.sh"), *map(str, arguments)]
            streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": said}
            return subprocess.Popen(command, cwd=tmp_path, env=marked(), **streams)

        process = begun("--output", folder, *STEPS)
        run = wait_for_step(folder, 2, process, 600)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 143  # seconds, with the checkpoint on the disk
        process = begun("--resume", run)
        wait_until(lambda: done(run, "merge"), process, 900)
        kill(process, whole=True)
        assert directory.state(runs.open_run(run)) == "killed"
    ended = run_sh("--resume", run, cwd=tmp_path)
    assert ended.code == 0, ended.stderr
    assert result(run) == result(shipped.run)


# ---- wrong input: one clear message, the exit code, no traceback, nothing half-written ------------------------------


def refused(ended: Ended, code: int, message: str) -> None:
    assert ended.code == code, ended.stderr
    assert ended.stdout == ""
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.slow
def test_a_missing_config_is_named(tmp_path):
    refused(finetune("--config", tmp_path / "no.ini"), 2, f"{tmp_path}/no.ini")


@pytest.mark.slow
def test_a_missing_data_file_is_named_with_the_line_that_names_it(tmp_path):
    (tmp_path / "config.ini").write_text("[Dataset]\nDATASET_FILE = rows.jsonl\n", encoding="utf-8")
    refused(finetune("--config", tmp_path / "config.ini"), 2, "config.ini:2: [Dataset] DATASET_FILE = rows.jsonl")
    assert not (tmp_path / "outputs").exists()


@pytest.mark.slow
def test_a_wrong_value_is_named_with_its_line(tmp_path):
    (tmp_path / "config.ini").write_text("[LoRA]\nR = 0\n", encoding="utf-8")
    refused(finetune("--config", tmp_path / "config.ini"), 2, "config.ini:2: [LoRA] R = 0: must be at least 1")


@pytest.mark.tiny
def test_a_bad_row_is_named_and_no_run_is_left_behind(tiny_config):
    with (tiny_config.parent / "rows.jsonl").open("a", encoding="utf-8") as rows:
        rows.write('{"instruction": "x"\n')
    refused(finetune("--config", tiny_config), 2, "rows.jsonl:17: not JSON")
    assert not (tiny_config.parent / "outputs").exists()


@pytest.mark.tiny
def test_a_model_path_that_does_not_exist_is_the_users_mistake(tiny_config):
    refused(finetune("--config", tiny_config, "--model", "./nowhere"), 2, "nowhere")
    assert not (tiny_config.parent / "outputs").exists()


@pytest.mark.tiny
def test_a_model_folder_without_weights_is_refused(tiny_config, tiny_model, tmp_path):
    folder = tmp_path / "no weights"
    shutil.copytree(tiny_model, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    refused(finetune("--config", tiny_config, "--model", folder), 2, "safetensors")
    assert not (tiny_config.parent / "outputs").exists()


@pytest.mark.tiny
def test_a_module_that_the_model_does_not_have_is_named_with_those_it_has(tiny_config):
    ended = finetune("--config", tiny_config, "--set", "LoRA.TARGET_MODULES=q_proj,query")
    refused(
        ended,
        2,
        "has no module query; it has down_proj, embed_tokens, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj",
    )


@pytest.mark.tiny
def test_a_length_beyond_the_models_is_refused_when_it_was_written(tiny_config):
    refused(finetune("--config", tiny_config, "--max-length", "1024"), 2, "--max-length 1024: ")


@pytest.mark.tiny
def test_a_disk_too_small_for_the_whole_route_is_told_before_anything_starts(tiny_config, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        refused(finetune("--config", tiny_config, "--output", disk / "out"), 3, "too little disk space under")
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.tiny
def test_an_output_dir_that_cannot_be_written_is_the_machines_fault(tiny_config, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting needs root")
    try:
        refused(finetune("--config", tiny_config, "--output", disk / "out"), 3, "cannot be written; choose another one")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.tiny
def test_skipped_rows_land_in_the_runs_rejected_file_with_their_lines(tiny_config):
    with (tiny_config.parent / "rows.jsonl").open("a", encoding="utf-8") as rows:
        rows.write('{"instruction": "x", "output": ""}\n')
    ended = finetune("--config", tiny_config, "--set", "Dataset.ON_BAD_ROW=skip")
    assert ended.code == 0, ended.stderr
    (record,) = [json.loads(line) for line in (ended.run / "rejected.jsonl").read_text("utf-8").splitlines()]
    assert record["line"] == 17
