"""Runs killed outright at random moments, memory that runs out, numbers that are none: nothing is lost.

The campaign kills runs at seeded moments of training, merge, conversion and quantisation, each run up to four times;
`--faults N` says how many kills there are, and a table of what was tried and lost stands at the end of pytest's output.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support import small
from tests.support.faults import (
    FAULT,
    NO_EXPORT,
    SEED,
    STOPPED,
    done,
    faulty,
    kill,
    mark_of,
    marked,
    members,
    only_run,
    result,
    wait_until,
)
from tests.support.paths import ROOT
from tests.support.programs import finetune, start
from tests.support.runs import files_of, losses
from tests.support.session import once
from tests.support.tiny import write_tiny_config
from training import runs
from training.errors import RunError
from training.fast_cpu import fast_loss
from training.runs import checkpoint, directory
from training.runs.checkpoint import Carried
from training.system import events, shell
from training.train import Watch, hooks, trouble
from training.train.trouble import OutOfMemory

# For runs that need no real vocabulary. Those that are killed at random are to be long.
small_model, small_config, unhurt = small.tiny_model, small.tiny_config, small.undisturbed
WEIGHTS = "adapter/adapter_model.safetensors"
STAGES = ("train", "merge", "convert", "quantise")  # those in which runs are killed
BEFORE = {"merge": "evaluate", "convert": "merge", "quantise": "convert"}
ORDER = ("train", "evaluate", "merge", "convert", "quantise", "modelfile", "check")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, small_model) -> tuple[Path, Path]:
    """The settings of a run and its directory, killed when it was trained and asked, and before it was exported."""

    def make(folder: Path) -> str:
        config = write_tiny_config(folder, small_model)
        process = start("--config", config, forked=False, env=marked())
        wait_until(lambda: list(config.parent.glob("outputs/finetune_*/status.json")), process)
        (run,) = config.parent.glob("outputs/finetune_*")
        wait_until(lambda: done(run, "evaluate"), process)
        kill(process, whole=True)
        assert directory.state(runs.open_run(run)) == "killed"
        return str(run)

    folder, run = once(tmp_path_factory, "trained", make)
    return folder / "config.ini", Path(run)


def copy(trained: tuple[Path, Path], folder: Path) -> tuple[Path, Path]:
    """Settings and directory of a run of its own that stands where `trained` stands."""
    shutil.copytree(trained[0].parent, folder, symlinks=True)
    return folder / trained[0].name, folder / trained[1].relative_to(trained[0].parent)


def again(config: Path, run: Path, alone: bool) -> subprocess.Popen:
    """Go on with a run: with --resume, or with its export alone (what export_ollama.sh starts)."""
    if not alone:
        return start("--config", config, "--resume", run, forked=False, env=marked())
    command = [sys.executable, str(ROOT / "training" / "export.py"), str(run)]
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=marked()
    )


def differences(run: Path, whole: Path) -> list[str]:
    """What a run's end lacks of an undisturbed one's."""
    if files_of(run) != files_of(whole):
        return [f"files {sorted(files_of(run) ^ files_of(whole))}"]
    left = sorted(path.name for path in run.rglob("*.partial"))
    ours, theirs = result(run), result(whole)
    return [f"{key}: {ours[key]} is not {theirs[key]}" for key in theirs if ours[key] != theirs[key]] + left


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """As many kills as --faults says, at most one in each stage of one and the same run."""
    if "kills" in metafunc.fixturenames:
        faults, most = metafunc.config.getoption("--faults"), len(STAGES)
        parts = [range(at, min(at + most, faults)) for at in range(0, faults, most)]
        metafunc.parametrize("kills", parts, ids=lambda part: f"kills {part.start + 1} to {part.stop}")


@pytest.mark.tiny
def test_a_run_killed_at_random_moments_of_its_stages_ends_as_an_undisturbed_one(
    kills,
    tiny_config,
    undisturbed,
    record_property,
):
    draw = random.Random(f"{SEED} {kills.start}")
    seconds = json.loads((undisturbed / "report.json").read_text(encoding="utf-8"))["run"]["stages"]
    tried, problems, run = [], [], None
    for stage in sorted(draw.sample(STAGES, len(kills)), key=STAGES.index):
        moment, whole, alone = draw.random(), draw.random() < 0.5, draw.random() < 0.5
        if run is None:
            process = start("--config", tiny_config, forked=False, env=marked())
            wait_until(lambda: list(tiny_config.parent.glob("outputs/finetune_*/status.json")), process)
            (run,) = tiny_config.parent.glob("outputs/finetune_*")
        else:
            process = again(tiny_config, run, alone and done(run, "evaluate"))
            working = process.pid
            wait_until(lambda: runs.open_run(run).status["pid"] == working, process)  # noqa: B023 - called at once
        wait_until(lambda: stage == "train" or done(run, BEFORE[stage]), process)  # noqa: B023
        time.sleep(moment * seconds[stage])
        kill(process, whole)
        hit = next((name for name in ORDER if not done(run, name)), "report")
        tried.append(f"kill -9 of {'all processes' if whole else 'the main process'} in {hit}")
        if directory.state(runs.open_run(run)) != "killed":
            problems.append(f"{tried[-1]}: not told apart from a run that is alive")
    ended = finetune("--config", tiny_config, "--resume", run)
    problems += differences(run, undisturbed) if ended.code == 0 else [ended.stderr]
    for what in tried:
        record_property(FAULT, (what, not problems))
    assert problems == [], tried


@pytest.mark.tiny
def test_a_run_stopped_in_its_export_is_offered_again_and_export_ollama_finishes_it_with_a_report(
    trained,
    unhurt,
    tmp_path,
):
    config, run = copy(trained, tmp_path / "own")
    process = start("--config", config, "--resume", run, forked=False, env=marked())
    wait_until(lambda: runs.open_run(run).status["pid"] == process.pid and done(run, "merge"), process)
    mark = mark_of(process)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (143, f"{run}\n"), err
    # Said once, by the run, with how to go on; its export, which it stopped, says nothing of that.
    assert "warning: stopped by SIGTERM; the adapter is safe in" in err and "error: " not in err
    assert directory.state(runs.open_run(run)) == "interrupted"
    end = time.monotonic() + 20
    while members(mark) and time.monotonic() < end:
        time.sleep(0.1)
    assert members(mark) == []  # what it had started has ended with it
    (config.parent / "empty.jsonl").write_text("", encoding="utf-8")
    offered = finetune("--config", config, "--data", config.parent / "empty.jsonl")
    assert (
        f"the last run, {run.name}, stopped at step 6 of 6; `{shell.command('run.sh', '--resume', run)}` goes on with it"
        in offered.stderr
    )
    exported = subprocess.run(
        [str(ROOT / "export_ollama.sh"), "--modelfile-only", str(run)],
        stdin=subprocess.DEVNULL, capture_output=True, text=True,
    )  # fmt: skip
    assert exported.returncode == 0, exported.stderr
    assert json.loads((run / "status.json").read_text(encoding="utf-8"))["state"] == "completed"
    assert result(run) == result(unhurt)
    assert [event["event"] for event in events.read(run / "events.jsonl")][-1] == "done"


# A loss that finds no memory for more than so many rows at a time, as torch's allocator on a CPU says it.
SCARCE = """
real = fast_loss.loss
def scarce(causal_lm, inputs, *others):
    if len(inputs["input_ids"]) > {rows}:
        raise RuntimeError(NO_MEMORY)
    return real(causal_lm, inputs, *others)
fast_loss.loss = scarce
"""


@pytest.mark.tiny
def test_a_run_that_was_killed_before_it_was_measured_is_measured_as_if_it_had_not_been(trained, unhurt, tmp_path):
    config, run = copy(trained, tmp_path / "own")
    opened = runs.open_run(run)
    opened.update(stages={"train": opened.status["stages"]["train"]})
    resumed = finetune("--config", config, "--resume", run)
    assert resumed.code == 0, resumed.stderr
    assert differences(run, unhurt) == []


@pytest.mark.tiny
def test_an_adapter_whose_files_are_lost_is_made_again_from_the_checkpoint(trained, unhurt, tmp_path):
    config, run = copy(trained, tmp_path / "own")
    (run / "adapter" / "adapter_model.safetensors").unlink()
    alone = finetune(run, script="export.py")
    resume = shell.lasting("run.sh", "--resume", run)
    lost = f"{run}/adapter has lost its files; `{resume}` makes them again from the checkpoint of step 6"
    assert alone.code == 1 and lost in alone.stderr and "is safe" not in alone.stderr
    resumed = finetune("--config", config, "--resume", run)
    assert resumed.code == 0 and lost in resumed.stderr, resumed.stderr
    assert differences(run, unhurt) == []


# The optimizer finds no memory once, in its update number `number`, after it has changed a weight; the run ends when it is trained.
UPDATE = """
import torch
real, calls = torch.optim.AdamW.step, []
def step(self, closure=None):
    calls.append(1)
    if len(calls) == {number}:
        self.param_groups[0]["params"][0].data += 1
        raise RuntimeError(NO_MEMORY)
    return real(self, closure)
torch.optim.AdamW.step = step
"""

# A weight of the adapter becomes NaN in step 5.
POISON = """
from training.train import updates
real = updates.begin_step
def begin_step(watch):
    real(watch)
    watch.steps = getattr(watch, "steps", 0) + 1
    if watch.steps == 5:
        next(p for p in MODEL[0].parameters() if p.requires_grad).data[0, 0] = float("nan")
updates.begin_step = begin_step
MODEL, load = [], finetune.engine.load
def loaded(*arguments, **options):
    found = load(*arguments, **options)
    MODEL.append(found.model)
    return found
finetune.engine.load = loaded
"""


@pytest.mark.tiny
def test_out_of_memory_halves_the_batch_doubles_the_accumulation_and_goes_on(small_config):
    ended = faulty(SCARCE.format(rows=2), "--config", small_config)
    assert ended.returncode == 0, ended.stderr
    assert (
        "out of memory: PER_DEVICE_TRAIN_BATCH_SIZE is now 2, GRADIENT_ACCUMULATION_STEPS 2; going on from step 0"
        in ended.stderr
    )
    assert ended.stderr.count("out of memory:") == 1
    run = runs.open_run(only_run(small_config))
    assert (run.stage("train")["micro_batch"], run.stage("train")["accumulation"]) == (2, 2)
    assert len(losses(run.path)) == 6


@pytest.mark.tiny
def test_out_of_memory_with_one_row_says_what_to_lower(small_config):
    ended = faulty(SCARCE.format(rows=0), "--config", small_config)
    assert ended.returncode == 1
    assert "out of memory at a batch of one row" in ended.stderr
    assert "lower MAX_SEQ_LENGTH or R, or set GRADIENT_CHECKPOINTING = true" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.tiny
@pytest.mark.parametrize(("number", "step"), [(1, 0), (4, 2)], ids=["the first update", "a later one"])
def test_out_of_memory_in_the_optimizer_takes_its_torn_update_back(number, step, small_config, unhurt):
    ended = faulty(UPDATE.format(number=number) + NO_EXPORT, "--config", small_config)
    assert "evaluate: enough" in ended.stderr
    assert f"GRADIENT_ACCUMULATION_STEPS 2; going on from step {step}" in ended.stderr
    found, whole = losses(only_run(small_config)), losses(unhurt)
    assert list(found) == list(whole)
    assert [found[s] for s in whole] == pytest.approx([whole[s] for s in whole], rel=1e-3)  # rows are grouped otherwise


@pytest.mark.tiny
def test_out_of_memory_in_the_optimizer_without_a_checkpoint_says_what_to_lower(small_config):
    ended = faulty(UPDATE.format(number=2), "--config", small_config, "--set", "Training.SAVE_STEPS=0")
    assert ended.returncode == 1
    assert "training: out of memory while the optimizer updated the weights" in ended.stderr
    assert "lower MAX_SEQ_LENGTH or R, or set GRADIENT_CHECKPOINTING = true" in ended.stderr


@pytest.mark.tiny
def test_a_weight_that_becomes_nan_stops_the_run_with_its_step_and_the_last_good_checkpoint(small_config):
    ended = faulty(POISON, "--config", small_config)
    run = only_run(small_config)
    assert (ended.returncode, ended.stdout) == (1, f"{run}\n"), ended.stderr
    assert "training: the loss of step 5 is not a finite number; lower LEARNING_RATE" in ended.stderr
    assert f"the checkpoint of step 4 is safe in {run}/checkpoints/checkpoint-4" in ended.stderr
    assert checkpoint.newest(run / "checkpoints").step == 4
    assert "the loss of step 5" in (run / "finetune.log").read_text(encoding="utf-8")
    assert [event["event"] for event in events.read(run / "events.jsonl")][-1] == "failed"


class Bare:
    """What stands for TRL's trainer: it gives a gradient norm, and knows its step and its precision."""

    def __init__(self, fp16: bool) -> None:
        self.args, self.state = SimpleNamespace(fp16=fp16), SimpleNamespace(global_step=5)

    def _get_grad_norm(self, model: object, grad_norm: float) -> float:
        return grad_norm


@pytest.mark.tiny
@pytest.mark.parametrize("norm", [float("nan"), float("inf")])
def test_a_gradient_that_is_no_number_stops_the_run_but_for_fp16_whose_scaler_expects_it(norm, tmp_path):
    hooked = hooks.hooked(Bare, Watch(folder=tmp_path, fingerprint={}, keep=1))
    with pytest.raises(RunError, match="training: the gradient of step 6 is not a finite number; lower LEARNING_RATE"):
        hooked(fp16=False)._get_grad_norm(None, norm)
    assert hooked(fp16=True)._get_grad_norm(None, float("inf")) == float("inf")
    assert hooked(fp16=False)._get_grad_norm(None, 0.5) == 0.5


@pytest.mark.tiny
def test_a_flag_that_trl_puts_beside_the_rows_of_an_evaluation_is_not_taken_for_one_of_their_tensors(
    tmp_path, monkeypatch
):
    import torch

    class Trainer:
        accelerator = SimpleNamespace(unwrap_model=lambda model: model)

    taken = []
    monkeypatch.setattr(fast_loss, "loss", lambda model, inputs, *others: taken.append(inputs))
    proved = Carried(fast_path="head")
    one = hooks.hooked(Trainer, Watch(folder=tmp_path, fingerprint={}, keep=1, carried=proved, fast=True))()
    rows = {"input_ids": torch.ones(1, 2, dtype=torch.long)}
    one.compute_loss(SimpleNamespace(get_base_model=lambda: None), {**rows, "_prediction_loss_only": True})
    assert taken == [rows]


@pytest.mark.tiny
def test_the_words_of_a_gpu_and_of_a_cpu_that_have_no_memory_are_known_and_others_are_not():
    import torch

    gpu = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
    cpu = RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory")
    for error in (gpu, cpu, MemoryError()):
        with pytest.raises(OutOfMemory), trouble.memory_watched():
            raise error
    with pytest.raises(RuntimeError, match="size mismatch"), trouble.memory_watched():
        raise RuntimeError("size mismatch")


@pytest.mark.tiny
def test_a_run_with_dropout_stopped_within_the_first_step_of_an_epoch_goes_on_bit_for_bit(small_config):
    options = ("LoRA.LORA_DROPOUT=0.3", "Hardware.FAST_CPU=false", "Training.GRADIENT_ACCUMULATION_STEPS=4",
               "Training.PER_DEVICE_TRAIN_BATCH_SIZE=1", "Training.MAX_STEPS=7")  # fmt: skip
    arguments = ["--config", small_config, *(word for option in options for word in ("--set", option)), "--output"]
    whole, stopped = small_config.parent / "whole", small_config.parent / "stopped"
    ended = faulty(NO_EXPORT, *arguments, whole)
    assert "evaluate: enough" in ended.stderr
    # 13 rows a micro-batch each, 4 of them a step: the 15th is the second one of the second epoch. Stopped there, and
    # when it goes on, in that very step again.
    for at, resume in ((15, ()), (2, ("--resume",))):
        ended = faulty(STOPPED.format(at=at), *arguments, stopped, *resume)
        assert (ended.returncode, "stopped at step 4 of 7" in ended.stderr) == (143, True), ended.stderr
    ended = faulty(NO_EXPORT, *arguments, stopped, "--resume")
    assert "evaluate: enough" in ended.stderr
    (first,), (second,) = whole.glob("finetune_*"), stopped.glob("finetune_*")
    assert losses(first) == losses(second)
    assert (first / WEIGHTS).read_bytes() == (second / WEIGHTS).read_bytes()
