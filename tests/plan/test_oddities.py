"""A plan that is odd is judged before the training: one line each, with what mends it."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from tests.support.plans import a_plan
from tests.support.settings import a_settings
from training import settings
from training.data import ChatTemplate
from training.errors import UserError
from training.plan import odd, oddities, system_text
from training.settings import Override, Settings

OWN = "{% if messages[0].role != 'system' %}<s>system: You are Somebody.</s>{% endif %}"
TURNS = "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}"


def said(asked: Settings, rows: int, steps: int) -> list[str]:
    return list(oddities.lengths(asked, rows, steps))


def test_many_passes_over_few_rows_are_told_with_the_flag_that_makes_fewer() -> None:
    (line,) = said(a_settings(), 8, 60)
    assert (
        line.startswith("60 steps are 60 passes over 8 rows: a model learns them by heart")
        and "--epochs 3 makes 3 steps" in line
    )


def test_few_steps_are_told_with_the_flag_that_makes_more() -> None:
    (line,) = said(a_settings(MAX_STEPS=0), 45, 18)
    assert line == "18 steps are few for an adapter, which begins at zero; --epochs 5 makes 30"


def test_rows_that_are_never_seen_are_counted() -> None:
    (line,) = said(a_settings(), 4000, 60)
    assert line == "60 steps see 480 of 4,000 rows; --epochs 1 takes them all, in 500 steps"


def test_an_ordinary_plan_has_nothing_odd() -> None:
    plan = a_plan(a_settings(), train=range(169), validation=range(31), steps=60)
    assert odd(plan) == []


@pytest.mark.parametrize(
    ("values", "rows", "held", "line"),
    [
        ({}, 9, 1, "put some into a file of their own: --set Dataset.VALIDATION_FILE=FILE"),
        ({}, 45, 5, "5 rows to measure on: a verdict, better or worse, takes 6 at least; --set Dataset.VALIDATION_SPLIT=0.12 keeps that many"),
        ({"TEST_SPLIT": 0.02}, 49, 1, "1 row to measure on: a verdict, better or worse, takes 6 at least; --set Dataset.TEST_SPLIT=0.12 keeps that many"),
        ({"VALIDATION_FILE": "/data/held.jsonl"}, 50, 2, "held.jsonl"),
        ({}, 100, 0, "no rows to measure on"),
    ],
)  # fmt: skip
def test_too_few_rows_for_a_verdict_are_told_before_the_training(values, rows, held, line) -> None:
    (told,) = oddities.held_out(a_settings(**values), rows, held)
    assert line in told


def test_six_rows_are_enough_and_who_wants_none_is_not_told() -> None:
    assert not list(oddities.held_out(a_settings(), 50, 6))
    assert not list(oddities.held_out(a_settings(VALIDATION_SPLIT=0), 50, 0))


def test_a_warm_up_of_most_of_the_run_is_told_where_somebody_wrote_it() -> None:
    (line,) = oddities.warm_up(a_settings(WARMUP_STEPS=15), 18)
    assert line.startswith("the learning rate rises over 15 of 18 steps") and "--set Training.WARMUP_STEPS=1" in line
    assert not list(oddities.warm_up(a_settings(WARMUP_STEPS=15, LR_SCHEDULER_TYPE="constant"), 18))
    assert not list(oddities.warm_up(a_settings(), 60))


def test_a_default_warm_up_never_takes_half_of_the_run(tmp_path: Path) -> None:
    fitted = settings.clamp(a_settings(MAX_STEPS=6, folder=tmp_path), 6)
    assert fitted.training.warmup_steps == 0
    assert fitted.origin("Training.WARMUP_STEPS") == "automatic: the run has 6 steps only"


def test_a_run_that_has_begun_keeps_its_warm_up(tmp_path: Path) -> None:
    run = tmp_path / "config.ini"
    run.write_text("[Training]\nMAX_STEPS = 6  # config.ini:3\nWARMUP_STEPS = 5  # default\n", encoding="utf-8")
    assert settings.clamp(settings.of_run(run, check_files=False), 6).training.warmup_steps == 5


def test_what_was_fitted_to_a_short_run_is_no_mistake_of_its_user_when_it_is_resumed(tmp_path: Path) -> None:
    """EVAL_STEPS is shortened to the run, also where nothing is validated."""
    config, run = tmp_path / "config.ini", tmp_path / "run.ini"
    config.write_text("[Dataset]\nVALIDATION_SPLIT = 0\n[Training]\nMAX_STEPS = 5\n", encoding="utf-8")
    fitted = settings.clamp(settings.load(config, check_files=False), 5)
    assert fitted.training.eval_steps == 5
    run.write_text(fitted.to_ini(), encoding="utf-8")
    assert settings.of_run(run, check_files=False).training == fitted.training
    with pytest.raises(UserError, match="--eval-steps 5: there are no rows to validate on"):
        settings.of_run(run, [Override("Training", "EVAL_STEPS", "5", "--eval-steps")], check_files=False)


def test_the_system_text_of_the_models_own_template_is_told_with_the_setting_that_replaces_it() -> None:
    template = ChatTemplate(OWN + TURNS, "a test", today=date(2026, 1, 1))
    (line,) = system_text.line(template)
    assert "“system: You are Somebody.”" in line or "You are Somebody." in line
    assert "--set Model.SYSTEM_PROMPT=TEXT" in line
    assert not list(system_text.line(ChatTemplate(TURNS, "a test")))
    assert not list(system_text.line(ChatTemplate(OWN + TURNS, "a test", system="Be brief.")))


def test_a_template_that_takes_no_system_message_has_no_system_text_of_its_own() -> None:
    refusing = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}{{ m.content }}{% endfor %}"
    assert system_text.own_system_text(ChatTemplate(refusing, "a test")) == ""
