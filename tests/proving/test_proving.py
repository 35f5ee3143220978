"""`./run.sh --prove`: what is tried, what counts as the same, and what is said of it."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.environments import python_with
from tests.support.paths import ROOT
from tests.support.programs import finetune
from tests.support.settings import a_settings
from tests.support.tiny import write_tiny_config
from training.errors import MachineError, RunError, UserError
from training.proving import command, prove
from training.proving.sides import FAST, ON_CPU, PLAIN, SMALL, UNSLOTH, Figures, Here, failure, sides, taken
from training.proving.verdict import BOUNDS, difference, judge
from training.settings.command_line import Arguments, parse

CPU = Here(device="cpu", engine="transformers", fast=True, unsloth=True, parameters=SMALL, machine=["a CPU"])
CARD = replace(CPU, device="cuda", engine="unsloth", machine=["a card"])


def some_figures(**changes: Any) -> Figures:
    given = {
        "losses": [3.0, 2.5, 2.0, 1.5, 1.0], "norms": [1.0] * 5, "tokens": [100] * 5, "tokens_per_second": 100.0,
        "peak": 10**9, "load_peak": 10**9, "planned": 10**9, "seconds": 1.0, "precision": "bf16", "four_bit": False,
        "fast_path": None,
    }  # fmt: skip
    return Figures(**given | changes)


# ---- what is tried -------------------------------------------------------------------------------------------------


def test_on_a_cpu_transformers_own_way_is_held_against_the_fast_path_and_unsloth_where_it_is_there():
    assert [side.name for side in sides(CPU)] == [PLAIN, FAST, UNSLOTH]
    assert [side.name for side in sides(replace(CPU, unsloth=False))] == [PLAIN, FAST]


def test_on_a_card_both_engines_are_held_against_the_cpu_where_the_model_is_small():
    assert [side.name for side in sides(CARD)] == [ON_CPU, PLAIN, UNSLOTH]
    for large in (SMALL + 1, None):
        assert [side.name for side in sides(replace(CARD, parameters=large))] == [PLAIN, UNSLOTH]


@pytest.mark.parametrize(
    ("here", "side"),
    [(CPU, FAST), (replace(CPU, fast=False), PLAIN), (replace(CPU, engine="unsloth"), UNSLOTH), (CARD, UNSLOTH),
     (replace(CARD, engine="transformers"), PLAIN)],
)  # fmt: skip
def test_the_side_that_the_settings_take_is_known(here, side):
    assert taken(here) == side


# ---- what counts as the same ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"losses": [3.02, 2.5, 2.0, 1.5, 1.04]}, ""),
        ({"losses": [3.04, 2.5, 2.0, 1.5, 1.0]}, "the loss of step 1 is 3.04 instead of 3"),
        ({"losses": [3.0, 2.5, 2.0, 1.5, 1.06]}, "the loss of step 5 is 1.06 instead of 1"),
        ({"losses": [3.0, 2.5, float("nan"), 1.5, 1.0]}, "the loss of step 3 is nan instead of 2"),
        ({"losses": [3.0, 2.5]}, "2 steps instead of 5"),
        ({"norms": [1.2, 1, 1, 1, 1]}, "the gradient's norm in step 1 is 1.2 instead of 1"),
        ({"norms": [1.0, 9, 9, 9, 9]}, ""),
        ({"tokens": [100, 100, 1234, 100, 100]}, "1,234 tokens in step 3 instead of 100: these are other batches"),
    ],
)
def test_rounding_is_no_difference_and_more_is_one_by_its_step(changes, why):
    assert difference(some_figures(), some_figures(**changes)) == why


def test_float32_is_held_more_tightly_than_16_bits_and_4_bits_against_16_more_loosely():
    off = {"losses": [3.02, 2.5, 2.0, 1.5, 1.0]}
    assert difference(some_figures(precision="fp32"), some_figures(precision="fp32", **off))
    assert difference(some_figures(precision="fp32"), some_figures(**off)) == ""
    assert difference(some_figures(), some_figures(four_bit=True, losses=[3.2, 2.5, 2.0, 1.5, 1.0])) == ""
    assert BOUNDS["fp32"].first < BOUNDS["bf16"].first < BOUNDS["4 bit"].first


# ---- what is said --------------------------------------------------------------------------------------------------


def said(here: Here, **figures: Figures) -> Any:
    names = dict(zip((side.name for side in sides(here)), figures.values(), strict=True))
    return judge(here, sides(here), names)


def test_what_agrees_and_is_the_fastest_is_confirmed():
    found = said(CPU, plain=some_figures(), fast=some_figures(tokens_per_second=300), other=some_figures())
    assert found.good and found.fastest == FAST
    assert (
        found.words == f"{FAST}, which these settings take, agrees with {PLAIN}, {UNSLOTH}, and is the fastest of them."
    )


def test_what_agrees_and_is_faster_is_recommended_with_the_setting_to_write():
    found = said(
        CARD, cpu=some_figures(precision="fp32"), plain=some_figures(tokens_per_second=150), own=some_figures()
    )
    assert found.good and found.fastest == PLAIN
    assert found.words.endswith(f"{PLAIN} is 1.50 times as fast: ENGINE = transformers.")


def test_the_cpu_beside_a_card_is_no_recommendation_however_fast():
    found = said(CARD, cpu=some_figures(tokens_per_second=9e9), plain=some_figures(), own=some_figures())
    assert found.fastest in (PLAIN, UNSLOTH)


def test_what_does_something_else_is_not_to_be_trained_with_however_fast():
    wrong = some_figures(losses=[9.0] * 5, tokens_per_second=9e9)
    found = said(CPU, plain=some_figures(), fast=wrong, other=some_figures())
    assert not found.good and FAST not in found.agreeing
    assert found.words == (
        f"Do not train so: {FAST}, which these settings take, does something else: the loss of step 1 is 9 instead of 3; "
        "ENGINE = transformers, FAST_CPU = false does what was expected."
    )


def test_one_side_alone_proves_nothing():
    found = said(replace(CPU, unsloth=False), plain=failure("could not be tried: no"), fast=some_figures())
    assert not found.good and "one side alone proves nothing" in found.words


# ---- the command ---------------------------------------------------------------------------------------------------


def asked(monkeypatch, here: Here, *answers: Any) -> list[tuple[str, dict[str, str]]]:
    """The command's questions to its processes, answered by these; what it asked, with the settings that it put over."""
    seen: list[tuple[str, dict[str, str]]] = []
    told = iter([vars(here), *(answer if isinstance(answer, dict) else vars(answer) for answer in answers)])

    def answered(what: str, arguments: Arguments, over: Any, *rest: Path) -> Any:
        seen.append((what, dict(over)))
        return next(told)

    monkeypatch.setattr(command, "_asked", answered)
    return seen


def a_config(folder: Path) -> Arguments:
    (folder / "rows.jsonl").write_text('{"instruction": "Who?", "output": "I."}\n')
    (folder / "config.ini").write_text(
        f"[Dataset]\nDATASET_FILE = rows.jsonl\n[Training]\nOUTPUT_DIR = {folder / 'out'}\n"
    )
    return parse(["--prove", "--config", str(folder / "config.ini")])


def test_each_side_has_five_steps_and_nothing_else_and_the_page_says_what_came_of_it(tmp_path, monkeypatch):
    seen = asked(monkeypatch, CPU, some_figures(), some_figures(tokens_per_second=300), some_figures())
    stdout = io.StringIO()
    assert prove(a_config(tmp_path), stdout) == 0
    assert [what for what, _ in seen] == ["look", "train", "train", "train"]
    for _, over in seen[1:]:
        assert (over["Training.MAX_STEPS"], over["Training.SAVE_STEPS"], over["Hardware.NUM_PROCESSES"]) == (
            "5",
            "0",
            "1",
        )
    assert [over["Hardware.ENGINE"] for _, over in seen[1:]] == ["transformers", "transformers", "unsloth"]
    *lines, path = stdout.getvalue().splitlines()
    page = Path(path)
    assert page.name == "prove.html" and page.parent.parent == tmp_path / "out"
    assert "agrees with" in lines[-1] and any(FAST in line and " 300 " in line for line in lines)
    record = json.loads((page.parent / "prove.json").read_text())
    assert record["v"] == 1 and record["verdict"]["good"] and len(record["figures"][PLAIN]["losses"]) == 5
    html, text = page.read_text(), (page.parent / "prove.md").read_text()
    for words in (record["verdict"]["words"], "Loss of each step", "a CPU"):
        assert words in html and words in text
    assert "<script" not in html and "://" not in html


def test_a_side_that_does_something_else_ends_with_1_after_its_page_was_written(tmp_path, monkeypatch):
    asked(monkeypatch, CPU, some_figures(), some_figures(losses=[9.0] * 5), some_figures())
    stdout = io.StringIO()
    with pytest.raises(RunError, match="Do not train so") as caught:
        prove(a_config(tmp_path), stdout)
    assert caught.value.exit_code == 1
    assert Path(stdout.getvalue().splitlines()[-1]).is_file()


def test_an_engine_that_cannot_be_tried_is_named_with_its_reason_and_the_others_go_on(tmp_path, monkeypatch):
    asked(monkeypatch, CPU, some_figures(), some_figures(), {"failed": "Unsloth cannot be imported", "exit_code": 3})
    stdout = io.StringIO()
    assert prove(a_config(tmp_path), stdout) == 0
    assert f"{UNSLOTH}: could not be tried: Unsloth cannot be imported" in stdout.getvalue().splitlines()


@pytest.mark.parametrize(("code", "kind"), [(2, UserError), (3, MachineError)])
def test_what_no_side_can_do_is_refused_before_any_is_tried(tmp_path, monkeypatch, code, kind):
    monkeypatch.setattr(command, "_asked", lambda *given: {"failed": "no such device", "exit_code": code})
    with pytest.raises(kind, match="no such device"):
        prove(a_config(tmp_path), io.StringIO())
    assert not (tmp_path / "out").exists()


def test_bad_rows_are_a_users_mistake_and_no_page_is_written(tmp_path, monkeypatch):
    asked(monkeypatch, CPU, {"failed": "rows.jsonl:1: no answer", "exit_code": 2})
    with pytest.raises(UserError, match="no answer"):
        prove(a_config(tmp_path), io.StringIO())
    assert not (tmp_path / "out").exists()


def test_a_page_that_cannot_be_written_is_the_machines_failure(tmp_path, monkeypatch):
    asked(monkeypatch, CPU, some_figures(), some_figures(), some_figures())
    arguments = a_config(tmp_path)
    (tmp_path / "out").write_text("a file")
    with pytest.raises((MachineError, UserError), match="OUTPUT_DIR"):
        prove(arguments, io.StringIO())


@pytest.mark.slow
def test_a_side_whose_process_is_ended_from_outside_is_one_that_could_not_be_tried(tmp_path, monkeypatch):
    (tmp_path / "worker.py").write_text("import os; os.kill(os.getpid(), 9)")
    monkeypatch.setattr(command, "WORKER", tmp_path / "worker.py")
    answer = command._asked("train", a_config(tmp_path), (), tmp_path)
    assert answer == {"failed": "its process has ended with -9 (too little memory, most likely)", "exit_code": 1}


@pytest.mark.tiny
def test_on_a_cpu_all_three_engines_train_the_same_steps(tmp_path, tiny_model):
    python = python_with(
        "unsloth", [ROOT / "requirements" / "gpu-no-deps.txt", ROOT / "requirements" / "test-unsloth.txt"]
    )
    config = write_tiny_config(tmp_path, tiny_model)
    ended = finetune("--prove", "--config", config, cwd=tmp_path, python=python)
    assert ended.code == 0, ended.stderr
    page = Path(ended.stdout.splitlines()[-1])
    record = json.loads((page.parent / "prove.json").read_text())
    assert record["verdict"]["agreeing"] == [PLAIN, FAST, UNSLOTH]
    assert all(len(figures["losses"]) == 5 and figures["peak"] > 0 for figures in record["figures"].values())
    assert len({tuple(figures["tokens"]) for figures in record["figures"].values()}) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"config.ini", "rows.jsonl", "outputs"}
    assert [path.name for path in (tmp_path / "outputs").iterdir()] == [page.parent.name], "no run, no checkpoint"


def test_weights_in_8_bits_are_not_held_against_exact_ones():
    from training.proving import worker

    with pytest.raises(UserError, match="FAST_CPU = int8: --prove compares ways that give the same numbers"):
        worker.look(a_settings(FAST_CPU="int8"))
