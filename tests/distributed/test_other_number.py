"""A run goes on with another number of processes: the same rows a step, and the losses of an undisturbed run."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support import small
from tests.support.plans import a_base_model
from tests.support.programs import finetune, wait_for_step
from tests.support.ranks import TWO, slowly
from tests.support.runs import losses
from tests.support.settings import a_settings
from tests.support.tiny import write_tiny_config
from training.control import resume
from training.errors import UserError
from training.runs import checkpoint, processes

# Its runs need no real vocabulary.
tiny_model, undisturbed = small.tiny_model, small.undisturbed


def marks(processes_: int, **more: object) -> dict[str, object]:
    return {"Hardware.NUM_PROCESSES": processes_, "Hardware.NUM_MACHINES": 1, "effective batch": 12, **more}


@pytest.mark.parametrize(
    ("micro_batch", "before", "now", "then"),
    [((2, 3), 2, 2, (2, 3)), ((2, 3), 2, 1, (2, 6)), ((2, 3), 2, 4, (1, 3)), ((2, 3), 2, 12, (1, 1)), ((4, 3), 1, 3, (4, 1))],
)  # fmt: skip
def test_the_rows_of_a_step_are_shared_out_among_the_processes_that_there_are_now(micro_batch, before, now, then):
    assert processes.shared_out(micro_batch, marks(before), now) == then


def test_a_checkpoint_that_does_not_say_how_many_rows_a_step_has_keeps_its_own():
    assert processes.shared_out((2, 3), {}, 5) == (2, 3)


def test_another_number_of_processes_is_no_other_run_and_neither_are_its_threads():
    checkpoint.refuse_mismatch(marks(2, **{"Hardware.NUM_THREADS": 1}), marks(1, **{"Hardware.NUM_THREADS": 2}))
    checkpoint.refuse_mismatch({"effective batch": 12}, marks(3))
    with pytest.raises(UserError, match="NUM_THREADS = 1 in the run, 2 now"):
        checkpoint.refuse_mismatch(marks(2, **{"Hardware.NUM_THREADS": 1}), marks(2, **{"Hardware.NUM_THREADS": 2}))
    with pytest.raises(UserError, match="effective batch = 12 in the run, 18 now"):
        checkpoint.refuse_mismatch(marks(2), marks(3) | {"effective batch": 18})


def test_with_dropout_another_number_of_processes_is_refused_with_the_reason():
    with pytest.raises(UserError) as caught:
        checkpoint.refuse_mismatch(marks(2, **{"LoRA.LORA_DROPOUT": 0.1}), marks(1, **{"LoRA.LORA_DROPOUT": 0.1}))
    assert caught.value.problems[0] == (
        "LORA_DROPOUT = 0.1: each of the run's 2 processes drops out values of its own, so another number (1 now) would not "
        "go on as the run began"
    )
    checkpoint.refuse_mismatch(marks(2, **{"LoRA.LORA_DROPOUT": 0.1}), marks(2, **{"LoRA.LORA_DROPOUT": 0.1}))


def test_where_the_shares_of_a_spread_model_are_is_no_other_run_but_whether_it_is_spread_is():
    base = replace(a_base_model(), revision="a" * 40)
    on_cards, beside, whole = (
        checkpoint.fingerprint(a_settings(NUM_PROCESSES="2", SHARDING=how), "d", base, "t")
        for how in ("fsdp", "fsdp-offload", "none")
    )
    checkpoint.refuse_mismatch(on_cards, beside)
    with pytest.raises(UserError, match="SHARDING = 'none' in the run, 'fsdp' now"):
        checkpoint.refuse_mismatch(whole, beside)


def test_a_step_keeps_its_rows_and_the_plan_says_so():
    own = a_settings(NUM_PROCESSES="2", PER_DEVICE_TRAIN_BATCH_SIZE="2", GRADIENT_ACCUMULATION_STEPS="3")
    more = a_settings(NUM_PROCESSES="4", PER_DEVICE_TRAIN_BATCH_SIZE="2", GRADIENT_ACCUMULATION_STEPS="3")
    now = resume.same_step(own, more)
    assert now.rows_a_step == own.rows_a_step == 12
    assert (now.training.per_device_train_batch_size, now.training.gradient_accumulation_steps) == (1, 3)
    reason = "NUM_PROCESSES is 4 in all, and was 2: a step keeps its 12 rows"
    assert ("Training.GRADIENT_ACCUMULATION_STEPS", 3, reason) in now.choices
    assert resume.same_step(own, own) is own


def test_processes_that_cannot_share_a_step_evenly_are_refused_with_the_numbers_that_can():
    own = a_settings(NUM_PROCESSES="2", PER_DEVICE_TRAIN_BATCH_SIZE="2", GRADIENT_ACCUMULATION_STEPS="3")
    with pytest.raises(UserError) as caught:
        resume.same_step(own, a_settings(NUM_PROCESSES="5"))
    assert str(caught.value).endswith(
        "a step of this run has 12 rows, which 5 processes cannot share evenly; 1, 2, 3, 4, 6 or 12 can"
    )


@pytest.mark.tiny
def test_a_run_of_two_processes_goes_on_with_one_and_then_with_four_rows_a_step_as_ever(
    tmp_path, tiny_model, undisturbed
):
    config = write_tiny_config(tmp_path, tiny_model)
    run = stopped(config, 1, *TWO)
    done = max(losses(run))
    # With all that was typed at first, of which the plan has made micro-batches of two rows.
    assert stopped(config, done + 1, "--resume", *TWO, "--set", "Hardware.NUM_PROCESSES=1") == run
    ended = finetune("--config", config, "--resume", "--set", "Hardware.NUM_PROCESSES=4")
    assert ended.code == 0, ended.stderr
    assert "NUM_PROCESSES is 4 in all, and was 2: a step keeps its 4 rows" in ended.stderr
    ours, theirs = losses(run), losses(undisturbed)
    assert ours.keys() == theirs.keys()
    assert [ours[step] for step in theirs] == pytest.approx([theirs[step] for step in theirs], rel=1e-3)


def stopped(config: Path, step: int, *arguments: str) -> Path:
    """The run that was stopped after this step."""
    process = slowly("--config", config, *arguments)
    run = wait_for_step(config.parent / "outputs", step, process)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 143, stderr
    return run
