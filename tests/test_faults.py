"""Runs killed outright at random moments, and memory that runs out: nothing is lost. `--faults N` raises the number."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time

import pytest
from conftest import ROOT, finetune
from test_finetune import RUN_FILES, files_of, losses, start

from training import runs

WEIGHTS = "adapter/adapter_model.safetensors"

# The program with a loss that finds no memory for more than two rows at a time, as torch's allocator on a CPU says it.
# A fake allocator: a real one that fails takes the whole machine with it.
SCARCE = """
import sys
sys.path.insert(0, {root!r})
from training import fast_cpu, finetune
real = fast_cpu.loss
def scarce(causal_lm, inputs, num_items):
    if len(inputs["input_ids"]) > {rows}:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory")
    return real(causal_lm, inputs, num_items)
fast_cpu.loss = scarce
raise SystemExit(finetune.main(sys.argv[1:]))
"""


def scarce(rows: int, *arguments) -> subprocess.CompletedProcess:
    code = SCARCE.format(root=str(ROOT), rows=rows)
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.tiny
def test_a_run_killed_at_random_moments_ends_as_an_undisturbed_one(tiny_config, undisturbed, request):
    seed, lost = 7, []
    moments = random.Random(seed)
    whole = json.loads((undisturbed / "report.json").read_text(encoding="utf-8"))["run"]
    length = whole["finished"] - whole["started"]
    for number in range(request.config.getoption("--faults")):
        folder = tiny_config.parent / f"killed {number}"
        process = start("--config", tiny_config, "--output", folder, start_new_session=True)
        run = None
        while run is None and process.poll() is None:
            run = next(iter(folder.glob("finetune_*")), None)
            time.sleep(0.02)
        moment = moments.uniform(0, length)
        time.sleep(moment)
        subprocess.run(["pkill", "-KILL", "-s", str(process.pid)], check=False)
        process.communicate(timeout=60)
        if runs.state(runs.open_run(run)) != "completed":
            ended = finetune("--config", tiny_config, "--resume", run)
            if ended.code != 0:
                lost.append((moment, ended.stderr))
                continue
        same = (
            losses(run) == losses(undisturbed) and (run / WEIGHTS).read_bytes() == (undisturbed / WEIGHTS).read_bytes()
        )
        if not same or files_of(run) != RUN_FILES:
            lost.append((moment, sorted(files_of(run) ^ RUN_FILES)))
    assert lost == []


@pytest.mark.tiny
def test_out_of_memory_halves_the_batch_doubles_the_accumulation_and_goes_on(tiny_config):
    done = scarce(2, "--config", tiny_config)
    assert done.returncode == 0, done.stderr
    assert (
        "out of memory: PER_DEVICE_TRAIN_BATCH_SIZE is now 2, GRADIENT_ACCUMULATION_STEPS 2; going on from step 0"
        in done.stderr
    )
    assert done.stderr.count("out of memory:") == 1
    run = runs.open_run(next((tiny_config.parent / "outputs").glob("finetune_*")))
    assert (run.stage("train")["micro_batch"], run.stage("train")["accumulation"]) == (2, 2)
    assert len(losses(run.path)) == 6


@pytest.mark.tiny
def test_out_of_memory_with_one_row_says_what_to_lower(tiny_config):
    done = scarce(0, "--config", tiny_config)
    assert done.returncode == 1
    assert "out of memory at a batch of one row" in done.stderr
    assert "lower MAX_SEQ_LENGTH or R, or set GRADIENT_CHECKPOINTING = true" in done.stderr
    assert "Traceback" not in done.stderr
