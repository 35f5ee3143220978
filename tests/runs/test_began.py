"""What was decided when a run began holds for its resume: here, how functions and calls are written."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.plans import CPU, a_base_model
from tests.support.runs import a_manifest
from tests.support.settings import a_settings
from training import base_model, runs, settings
from training.errors import UserError
from training.plan import plan as plans
from training.runs import began, checkpoint
from training.settings import Settings, loading
from training.system import files

QWEN = Path(sys.prefix) / "llama.cpp/models/templates/Qwen-Qwen2.5-7B-Instruct.jinja"


def of_run(folder: Path, text: str) -> Settings:
    (folder / "config.ini").write_text(text, encoding="utf-8")
    return loading.of_run(folder / "config.ini", check_files=False)


def test_a_run_that_is_older_than_a_setting_goes_on_as_it_was_done_then(tmp_path: Path) -> None:
    assert of_run(tmp_path, "[Dataset]\nFORMAT = auto  # default\n").dataset.tool_form == "own"
    assert of_run(tmp_path, "[Dataset]\nTOOL_FORM = ollama  # default\n").dataset.tool_form == "ollama"
    assert settings.load(tmp_path / "config.ini", check_files=False).dataset.tool_form == "ollama"
    (tmp_path / "config.ini").write_text("[Model]\n", encoding="utf-8")
    assert settings.load(tmp_path / "config.ini", check_files=False).dataset.tool_form == "ollama", "a new run"
    typed = settings.Override("Dataset", "TOOL_FORM", "ollama", "--set")
    assert loading.of_run(tmp_path / "config.ini", [typed], check_files=False).dataset.tool_form == "ollama"


def marks(order: str, **values: object) -> dict[str, object]:
    base = replace(a_base_model(), revision="a" * 40)
    return checkpoint.fingerprint(a_settings(**values), "d", base, "t") | {checkpoint.FUNCTIONS: order}


def test_a_checkpoint_of_an_older_version_is_gone_on_with_in_the_rows_own_form_and_order_only() -> None:
    older = {
        key: value
        for key, value in marks(checkpoint.AS_HANDED).items()
        if key not in (checkpoint.FUNCTIONS, "Dataset.TOOL_FORM")
    }
    checkpoint.refuse_mismatch(older, marks(checkpoint.AS_HANDED, TOOL_FORM="own"))
    with pytest.raises(
        UserError, match="functions = 'in the order of the rows' in the run, 'in the order of their names'"
    ):
        checkpoint.refuse_mismatch(older, marks(checkpoint.BY_NAME, TOOL_FORM="own"))
    with pytest.raises(UserError, match="TOOL_FORM = 'own' in the run, 'ollama' now"):
        checkpoint.refuse_mismatch(older, marks(checkpoint.AS_HANDED))


def a_run(folder: Path, fingerprint: Mapping[str, object] | None, trained: bool = False) -> runs.Run:
    """A run that was stopped: with a checkpoint of this fingerprint, or after its training."""
    folder.mkdir(exist_ok=True)
    stages = {"train": {"fingerprint": dict(fingerprint or {})}} if trained else {}
    files.write_json(folder / runs.STATUS, {"state": "interrupted", "stages": stages})
    if fingerprint is not None and not trained:
        (folder / runs.CHECKPOINTS).mkdir(exist_ok=True)
        with checkpoint.writing(folder / runs.CHECKPOINTS, a_manifest(2, fingerprint=fingerprint)) as partial:
            state = {"global_step": 2, "max_steps": 6, "log_history": [], "stateful_callbacks": {}}
            files.write_json(partial / checkpoint.TRAINER_STATE, state)
    return runs.open_run(folder)


@pytest.mark.parametrize("trained", [False, True])
def test_functions_are_ordered_anew_only_where_nothing_was_trained_in_another_order(
    tmp_path: Path, trained: bool
) -> None:
    assert began.may_order_functions(None)
    assert began.may_order_functions(a_run(tmp_path / "nothing yet", None))
    assert began.may_order_functions(a_run(tmp_path / "so", {checkpoint.FUNCTIONS: checkpoint.BY_NAME}, trained))
    assert not began.may_order_functions(
        a_run(tmp_path / "other", {checkpoint.FUNCTIONS: checkpoint.AS_HANDED}, trained)
    )
    assert not began.may_order_functions(a_run(tmp_path / "older", {"Dataset.FORMAT": "auto"}, trained))


@pytest.mark.tiny
def test_the_rows_of_a_run_that_goes_on_are_written_in_the_order_in_which_it_began(
    tmp_path: Path, tiny_model: Path
) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {"town": "Oslo", "days": 2}}}
    row = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "rain"},
        {"role": "assistant", "content": "Rain."},
    ]
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
    (tmp_path / "rows.jsonl").write_text((json.dumps({"messages": row, "tools": tools}) + "\n") * 4, encoding="utf-8")
    given = a_settings(
        tmp_path, BASE_MODEL_NAME=tiny_model, CHAT_TEMPLATE=QWEN, DATASET_FILE=tmp_path / "rows.jsonl", DEVICE="cpu",
        VALIDATION_SPLIT=0, OUTPUT_DIR=tmp_path,
    )  # fmt: skip
    base = base_model.locate(given.model)

    def written(run: runs.Run | None) -> str:
        plan = plans._read_rows(given, CPU, base, None, 0, run.path if run else None)
        return plan.tokenizer.decode(plan.train[0]["input_ids"])

    by_name, as_handed = '{"days": 2, "town": "Oslo"}', '{"town": "Oslo", "days": 2}'
    assert by_name in written(None)
    assert as_handed in written(a_run(tmp_path / "older", {"Dataset.FORMAT": "auto"}))
    assert by_name in written(a_run(tmp_path / "now", {checkpoint.FUNCTIONS: checkpoint.BY_NAME}))
