"""The whole road on a tiny model: settings in, a GGUF that llama.cpp answers from out; and every way that ends early."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support import adopted, small
from tests.support.faults import FAULTY
from tests.support.paths import ROOT
from tests.support.programs import finetune, start, wait_for_step
from tests.support.ranks import SLOW, slowly
from tests.support.runs import RUN_FILES, files_of, losses
from training import llama, runs
from training.runs import checkpoint
from training.system import events, shell

# The runs need no real vocabulary; the one that is looked at has it.
tiny_model, whole = small.tiny_model, small.undisturbed


@pytest.mark.tiny
def test_a_run_leaves_exactly_the_files_of_the_contract(undisturbed):
    assert files_of(undisturbed) == RUN_FILES


@pytest.mark.tiny
def test_the_link_latest_names_the_newest_run(undisturbed):
    assert (undisturbed.parent / "latest").resolve() == undisturbed


@pytest.mark.tiny
def test_the_quantised_file_answers_through_llama_cpp(undisturbed):
    (answer,) = llama.answer(
        undisturbed / "tiny.Q4_K_M.gguf", ["<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n"], 4
    )
    assert answer.ids


@pytest.mark.tiny
def test_the_layers_that_a_training_on_a_cpu_has_proved_answer_for_its_evaluation(undisturbed):
    asked = len(json.loads((undisturbed / "report.json").read_text(encoding="utf-8"))["samples"])
    said = f"{asked} questions are answered by the hand-written layers for CPUs"
    assert said in (undisturbed / "finetune.log").read_text(encoding="utf-8")


@pytest.mark.tiny
def test_the_report_says_that_every_check_passed(undisturbed):
    report = json.loads((undisturbed / "report.json").read_text(encoding="utf-8"))
    assert {check["name"]: check["passed"] for check in report["checks"]} == {
        "merged tensors": True, "merged logits": True, "GGUF tokenizer": True, "GGUF as read": True, "f16 GGUF": True, "answers": True,
        "quantised tiny.Q4_K_M.gguf": True, "modelfile": True,
    }  # fmt: skip


@pytest.mark.tiny
def test_the_tokenizer_is_checked_on_chats_as_they_are_rendered_too(undisturbed):
    from transformers import AutoTokenizer

    from training.llama import hard_texts

    report = json.loads((undisturbed / "report.json").read_text(encoding="utf-8"))
    compared = next(check for check in report["checks"] if check["name"] == "GGUF tokenizer")["figures"]["texts"]
    specials = AutoTokenizer.from_pretrained(undisturbed / "merged").all_special_tokens
    assert compared == len(hard_texts.HARD) + len(specials) + 4


@pytest.mark.tiny
def test_the_report_has_a_validation_loss_from_before_and_from_after_the_last_step(undisturbed):
    report = json.loads((undisturbed / "report.json").read_text(encoding="utf-8"))
    assert [e["step"] for e in report["training"]["evaluations"]] == [0, 3, 6]
    assert report["training"]["before"] > report["training"]["after"] > 0


@pytest.mark.tiny
def test_the_report_compares_base_tuned_and_quantised_model_and_claims_nothing_from_three_rows(undisturbed):
    report = json.loads((undisturbed / "report.json").read_text(encoding="utf-8"))
    scores = {score["name"]: score for score in report["scores"]}
    loss = scores["loss on held-out answers"]
    assert loss["rows"] == 3 and loss["verdict"] == "cannot tell from 3 rows"
    assert loss["after"] == pytest.approx(report["training"]["after"], rel=0.02)  # two ways to the same figure
    assert loss["before"] == pytest.approx(report["training"]["before"], rel=0.02)
    assert loss["quantised"] == pytest.approx(loss["after"], rel=0.05)
    assert {"perplexity", "exact match", "chrF", "ROUGE-L", "stops by itself", "repetition"} < scores.keys()
    assert [(score["rows"], bool(score["verdict"])) for score in report["general"]] == [(24, True)]
    assert report["quantised"][0]["tokens_per_second"] > 0
    assert (report["data"]["chinese"], report["data"]["distinct"]) == (0, 1)
    assert "## Checklist" in (undisturbed / "report.md").read_text(encoding="utf-8")


@pytest.mark.tiny
def test_every_event_line_is_a_json_object_and_the_last_one_says_done(undisturbed):
    lines = (undisturbed / "events.jsonl").read_text(encoding="utf-8").splitlines()
    told = [json.loads(line) for line in lines]
    assert all(one["v"] == 1 and one["time"] > 0 for one in told)
    assert [one["event"] for one in told][:4] == ["started", "environment", "dataset", "model"]
    assert told[-1]["event"] == "done"


@pytest.mark.tiny
def test_the_runs_own_config_starts_an_equal_run(whole, tmp_path):
    ended = finetune("--config", whole / "config.ini", "--output", tmp_path / "again")
    assert ended.code == 0, ended.stderr
    assert losses(ended.run) == losses(whole)
    weights = "adapter/adapter_model.safetensors"
    assert (ended.run / weights).read_bytes() == (whole / weights).read_bytes()


@pytest.mark.tiny
def test_check_prints_a_plan_and_writes_nothing_under_output_dir(tiny_config):
    ended = finetune("--config", tiny_config, "--check", tiny_config.parent / "rows.jsonl")
    assert ended.code == 0, ended.stderr
    assert "6 steps of 4 rows (MAX_STEPS)" in ended.stdout
    assert re.search(r"^time: about .* of training, .* a step \(measured just now", ended.stdout, re.MULTILINE)
    assert re.search(r"^memory: about .* free$", ended.stdout, re.MULTILINE)
    again = shell.command("run.sh", tiny_config.parent / "rows.jsonl", "--config", tiny_config)
    assert ended.stdout.splitlines()[-1] == f"ready: {again} starts it"
    assert not (tiny_config.parent / "outputs").exists()


@pytest.mark.tiny
def test_sigterm_ends_a_run_with_a_checkpoint_and_resume_gives_what_an_undisturbed_run_gives(tiny_config, whole):
    process = slowly("--config", tiny_config)
    run = wait_for_step(tiny_config.parent / "outputs", 1, process)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert out == f"{run}\n"
    assert runs.open_run(run).status["state"] == "interrupted"
    assert f"/run.sh --resume {run}" in err
    ended = finetune("--config", tiny_config, "--resume")
    assert ended.code == 0, ended.stderr
    assert ended.run == run
    assert losses(run) == losses(whole)
    weights = "adapter/adapter_model.safetensors"
    assert (run / weights).read_bytes() == (whole / weights).read_bytes()
    assert files_of(run) == small.RUN_FILES


@pytest.mark.tiny
def test_ctrl_c_ends_a_run_with_130_and_its_last_event_says_interrupted(tiny_config):
    process = slowly("--config", tiny_config, "--events")
    run = wait_for_step(tiny_config.parent / "outputs", 1, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert json.loads(out.splitlines()[-1])["event"] == "interrupted"
    assert list((run / "checkpoints").glob("checkpoint-*/checkpoint.json"))


@pytest.mark.tiny
def test_a_second_ctrl_c_ends_a_run_at_once_and_leaves_the_last_checkpoint_good(tiny_config):
    process = slowly("--config", tiny_config)
    run = wait_for_step(tiny_config.parent / "outputs", 3, process)  # the checkpoint of step 2 is there
    process.send_signal(signal.SIGINT)
    time.sleep(0.1)  # two signals that wait at once are one
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=300)
    assert process.returncode in (4, 130)  # 130: within that time it had saved
    assert checkpoint.newest(run / "checkpoints").step >= 2


@pytest.mark.tiny
def test_sigusr1_writes_a_checkpoint_and_the_run_goes_on(tiny_config):
    process = slowly("--config", tiny_config, "--set", "Training.SAVE_STEPS=6")
    run = wait_for_step(tiny_config.parent / "outputs", 1, process)
    process.send_signal(signal.SIGUSR1)
    wait_for_step(tiny_config.parent / "outputs", 5, process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    saved = [e["at_step"] for e in events.read(run / "events.jsonl") if e["event"] == "checkpoint"]
    assert saved[0] in (2, 3, 4)


class Terminal:
    """A terminal of its own for a program's stdin and stderr, with somebody who reads what is written, until it closes."""

    def __init__(self) -> None:
        self.master, self.slave = pty.openpty()
        self.said, self.open = b"", True
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        while self.open:
            if select.select([self.master], [], [], 0.05)[0]:
                self.said += os.read(self.master, 1 << 16)

    def until(self, text: bytes, seconds: float = 60) -> None:
        """Wait until the program has written a text."""
        end = time.monotonic() + seconds
        while text not in self.said:
            assert time.monotonic() < end, self.said
            time.sleep(0.02)

    def close(self) -> None:
        """From now on every write of the program is an error (EIO)."""
        self.open = False
        self.reader.join()
        os.close(self.master)


@pytest.mark.tiny
def test_a_terminal_that_closes_does_not_end_a_run_and_with_events_the_last_line_of_stdout_says_done(
    tiny_config, tmp_path
):
    terminal = Terminal()
    slow = tmp_path / "finetune.py"
    slow.write_text(FAULTY.format(root=str(ROOT), fault=SLOW), encoding="utf-8")
    program = [adopted.IN_TERMINAL, slow, "--config", tiny_config, "--events"]
    # It is the controlling terminal, so that closing it is a SIGHUP.
    process = adopted.Popen(
        [sys.executable, "-c", *program],
        stdin=terminal.slave, stdout=subprocess.PIPE, stderr=terminal.slave, text=True, start_new_session=True,
    )  # fmt: skip
    os.close(terminal.slave)
    run = wait_for_step(tiny_config.parent / "outputs", 1, process)
    terminal.until(b"step 1/6")  # its line comes after its event
    terminal.close()
    out, _ = process.communicate(timeout=180)
    assert process.returncode == 0, (run / "finetune.log").read_text(encoding="utf-8")
    told = [json.loads(line) for line in out.splitlines()]
    assert (told[-1]["event"], told[-1]["run"]) == ("done", str(run))
    assert [one["step"] for one in told if one["event"] == "step"] == [1, 2, 3, 4, 5, 6]


@pytest.mark.tiny
def test_a_run_killed_outright_is_told_apart_and_goes_on_from_the_checkpoint_that_is_whole(tiny_config, whole):
    process = slowly("--config", tiny_config)
    run = wait_for_step(tiny_config.parent / "outputs", 5, process)
    process.kill()
    process.communicate(timeout=60)
    status = finetune("--config", tiny_config, "--status", "--json")
    assert json.loads(status.stdout)["state"] == "killed"
    newest = max((run / "checkpoints").glob("checkpoint-?"))
    os.truncate(newest / "optimizer.pt", 100)
    ended = finetune("--config", tiny_config, "--resume", run)
    assert ended.code == 0, ended.stderr
    assert (
        f"{newest.name} is damaged (optimizer.pt has changed or is cut short); the one before it is used"
        in ended.stderr
    )
    assert losses(run) == losses(whole)


@pytest.mark.tiny
def test_a_run_is_not_resumed_with_other_data(tiny_config):
    process = slowly("--config", tiny_config)
    run = wait_for_step(tiny_config.parent / "outputs", 2, process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    rows = tiny_config.parent / "rows.jsonl"
    rows.write_text(rows.read_text(encoding="utf-8").replace("It is 2.", "It is 3."), encoding="utf-8")
    ended = finetune("--config", tiny_config, "--resume", run)
    assert (ended.code, ended.stdout) == (2, "")
    assert "this run cannot be resumed" in ended.stderr
    assert runs.open_run(run).status["state"] == "interrupted"
    assert "data SHA-256 = " in ended.stderr


@pytest.mark.tiny
def test_a_flag_beside_resume_must_agree_with_the_run(tiny_config):
    process = slowly("--config", tiny_config)
    run = wait_for_step(tiny_config.parent / "outputs", 1, process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    ended = finetune("--config", tiny_config, "--resume", run, "--lora-r", "8")
    assert (ended.code, ended.stdout) == (2, "")
    assert "--lora-r: LoRA.R is 16 in the run, not 8" in ended.stderr


@pytest.mark.tiny
def test_a_poisoned_weight_is_found_before_the_first_step(tiny_config, tiny_model, tmp_path):
    from safetensors.torch import load_file, save_file

    poisoned = tmp_path / "poisoned"
    shutil.copytree(tiny_model, poisoned)
    tensors = load_file(poisoned / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(tensors, poisoned / "model.safetensors", metadata={"format": "pt"})
    ended = finetune("--config", tiny_config, "--model", poisoned)
    assert ended.code == 1
    assert "training: the base model's loss is not a finite number: its weights are damaged" in ended.stderr
    assert "Traceback" not in ended.stderr


# Between the evaluation and the merge there is time for a hand on the disk.
PAUSE = """
import time
real = pipeline.evaluate_stage
def evaluate_stage(*given):
    real(*given)
    time.sleep(0.5)
pipeline.evaluate_stage = evaluate_stage
"""


@pytest.mark.tiny
def test_a_disk_that_fills_ends_the_run_and_resume_finishes_it_after_making_room(tiny_config, whole, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1000m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        process = slowly("--config", tiny_config, "--output", disk / "out")
        run = wait_for_step(disk / "out", 3, process)  # a checkpoint is there; the next comes with step 4
        err = filled(disk, process, f"{run}\n")
        room = r"checkpoint: the disk is full: a checkpoint under .* needs about [\d,]+ bytes, [\d,]+ are free"
        assert re.search(room, err), err
        assert "/run.sh --resume" in err
        command = [sys.executable, "-c", FAULTY.format(root=str(ROOT), fault=PAUSE), "--config", tiny_config]
        process = adopted.Popen(
            [*command, "--resume", run, "--events"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        while runs.open_run(run).stage("evaluate") is None and process.poll() is None:
            time.sleep(0.02)
        err = filled(disk, process, None)
        room = r"merge: .* needs [\d,]+ bytes \([\d.]+ GB\); (the disk is full|0.0 GB are free)"
        assert re.search(room, err), err
        assert (
            f"the adapter is safe in {run}/adapter; `{shell.lasting('run.sh', '--resume', run)}` does the rest" in err
        )
        ended = finetune("--config", tiny_config, "--resume", run)
        assert ended.code == 0, ended.stderr
        assert losses(run) == losses(whole)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def filled(disk: Path, process: subprocess.Popen, said: str | None) -> str:
    """Fill a small disk under a run, which must end with exit 1, and make room again; gives what it said to people.

    `said`: its stdout; None where that is events, of which the last one must have the message too.
    """
    process.send_signal(signal.SIGSTOP)  # its steps are quicker than a disk is filled
    with (disk / "ballast").open("wb") as ballast, suppress(OSError):
        while True:
            ballast.write(b"\0" * (1 << 20))
            ballast.flush()
    process.send_signal(signal.SIGCONT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1, err
    last = {} if said else json.loads(out.splitlines()[-1])
    assert out == said or (last["event"] == "failed" and last["error"] in err)
    assert "Traceback" not in err
    (disk / "ballast").unlink()
    return err


@pytest.mark.tiny
def test_early_stopping_keeps_the_best_adapter_says_so_and_tensorboard_has_the_curve(tiny_config):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options = (
        "EARLY_STOPPING_PATIENCE=2", "EVAL_STEPS=1", "MAX_STEPS=40", "LEARNING_RATE=0.05", "WARMUP_STEPS=0",
        "SAVE_STEPS=1", "SAVE_TOTAL_LIMIT=0", "REPORT_TO=tensorboard",
    )  # fmt: skip
    ended = finetune("--config", tiny_config, *(word for one in options for word in ("--set", f"Training.{one}")))
    assert ended.code == 0, ended.stderr
    report = json.loads((ended.run / "report.json").read_text(encoding="utf-8"))["training"]
    validation = {one["step"]: one["loss"] for one in report["evaluations"] if one["step"]}
    best = min(validation, key=validation.get)
    assert report["steps"] == max(validation) == best + 2 < 40
    assert (report["stopped_early"], report["best_step"], report["best"]) == (True, best, validation[best])
    assert report["after"] == report["best"]
    weights = "adapter_model.safetensors"
    kept, then, last = (
        (ended.run / folder / weights).read_bytes()
        for folder in ("adapter", f"checkpoints/checkpoint-{best}", f"checkpoints/checkpoint-{best + 2}")
    )
    assert kept == then != last
    words = f"Stopped early after step {best + 2} of 40: validation loss fell no further. The adapter of step {best},"
    assert words in " ".join((ended.run / "report.md").read_text(encoding="utf-8").split())
    (file,) = (ended.run / "tensorboard").iterdir()
    curve = EventAccumulator(str(file)).Reload()
    found = {scalar.step: scalar.value for scalar in curve.Scalars("train/loss")}
    assert found == pytest.approx(losses(ended.run), rel=1e-6)
    assert {s.step: s.value for s in curve.Scalars("eval/loss") if s.step} == pytest.approx(validation, rel=1e-6)


@pytest.mark.tiny
def test_two_detached_runs_at_once_into_one_folder_go_on_without_their_parents_and_do_not_disturb_each_other(
    tiny_config, whole
):
    both = [start("--config", tiny_config, "--detach") for _ in range(2)]
    said = [process.communicate(timeout=300) for process in both]
    outs = [Path(out.strip()) for out, _ in said]
    for run, (_, err) in zip(outs, said, strict=True):
        assert f"{shell.command('run.sh', '--stop', run)} ends it" in err
    assert [process.returncode for process in both] == [0, 0]
    assert outs[0] != outs[1]
    for run in outs:
        followed = finetune("--config", tiny_config, "--follow", run)
        assert followed.code == 0
        assert "step 6/6" in followed.stdout
        assert runs.open_run(run).status["state"] == "completed"
        assert losses(run) == losses(whole)
    history = json.loads(finetune("--config", tiny_config, "--history", "--json").stdout)
    assert [(row["run"], row["state"]) for row in history] == [(run.name, "completed") for run in sorted(outs)]


@pytest.mark.tiny
def test_a_detached_run_that_cannot_start_says_why_with_its_exit_code(tiny_config):
    ended = finetune("--config", tiny_config, "--detach", "--model", "./nowhere")
    assert (ended.code, ended.stdout) == (2, "")
    assert "nowhere" in ended.stderr


@pytest.mark.tiny
def test_stop_ends_a_running_run_after_a_checkpoint(tiny_config):
    process = slowly("--config", tiny_config, "--set", "Training.MAX_STEPS=500", "--set", "Training.SAVE_STEPS=400")
    run = wait_for_step(tiny_config.parent / "outputs", 1, process)
    stopped = finetune("--config", tiny_config, "--stop")
    process.communicate(timeout=60)
    assert stopped.code == 0, stopped.stderr
    assert stopped.stdout == f"{run.name}: interrupted\n"
    assert checkpoint.newest(run / "checkpoints") is not None
