"""A run that goes on by the very command that began it, whatever the plan has chosen since."""

from __future__ import annotations

from pathlib import Path

import pytest

from training import runs, settings
from training.control import resume
from training.errors import UserError
from training.runs import Run
from training.settings import command_line

# Flags of which the plan makes something else on a CPU.
BEGAN = ("--batch-size", "1", "--fp16", "--load-in-4bit", "--set", "Hardware.DEVICE=auto", "--lora-r", "8")


@pytest.fixture
def begun(tmp_path: Path) -> Run:
    """A run on a CPU that was begun by these flags, as its record has it."""
    config = tmp_path / "config.ini"
    config.write_text("[Model]\n", encoding="utf-8")
    (tmp_path / "train_data.jsonl").write_text('{"prompt": "a", "completion": "b"}\n', encoding="utf-8")
    plan = settings.load(config, command_line.parse([*BEGAN, "--config", str(config)]).overrides, check_files=False)
    chosen = {
        "Training.PER_DEVICE_TRAIN_BATCH_SIZE": 4, "Training.GRADIENT_ACCUMULATION_STEPS": 1, "Hardware.PRECISION": "fp32",
        "Hardware.DEVICE": "cpu", "Quantization.LOAD_IN_4BIT": False,
    }  # fmt: skip
    for key, value in chosen.items():
        plan = plan.with_choice(key, value, "a test")
    (tmp_path / "run").mkdir()
    run = Run(tmp_path / "run")
    (run.path / runs.CONFIG).write_text(plan.to_ini(), encoding="utf-8")
    run.update(state="interrupted", written=dict(plan.replaced))
    return runs.open_run(run.path)


def taken_up(run: Run, *flags: str) -> settings.Settings:
    """The settings of a run that goes on by these flags."""
    return resume.settings_of(run, command_line.parse(["--resume", str(run.path), *flags]))


def test_the_flags_that_began_a_run_go_on_with_it_though_the_plan_chose_otherwise(begun):
    own = taken_up(begun)
    assert own.training.per_device_train_batch_size == 4 and own.hardware.precision == "fp32"
    assert taken_up(begun, *BEGAN) == own
    # On other machines, too: what was typed is no change of the step.
    elsewhere = taken_up(begun, *BEGAN, "--set", "Hardware.LINK_GBPS=2")
    assert elsewhere.training == own.training and elsewhere.hardware.link_gbps == 2


def test_flags_that_are_neither_what_was_given_nor_what_was_chosen_are_refused(begun):
    assert taken_up(begun, "--batch-size", "4").training.per_device_train_batch_size == 4
    with pytest.raises(UserError) as caught:
        taken_up(begun, "--batch-size", "2", "--set", "Hardware.DEVICE=auto", "--lora-r", "16")
    assert caught.value.problems[:2] == [
        "--batch-size: Training.PER_DEVICE_TRAIN_BATCH_SIZE is 4 in the run, not 2",
        "--lora-r: LoRA.R is 8 in the run, not 16",
    ]
    with pytest.raises(UserError, match="--batch-size: Training.PER_DEVICE_TRAIN_BATCH_SIZE is 4 in the run, not 2"):
        taken_up(begun, "--batch-size", "1", "--batch-size", "2")


def test_a_run_of_an_older_version_does_not_say_what_was_given_and_its_own_values_count(begun):
    del begun.status["written"]
    with pytest.raises(UserError, match="--batch-size: Training.PER_DEVICE_TRAIN_BATCH_SIZE is 4 in the run, not 1"):
        taken_up(begun, "--batch-size", "1")
