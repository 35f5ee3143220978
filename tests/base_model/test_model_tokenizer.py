"""A model's tokenizer is loaded in one place, in one way."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.paths import ROOT
from training.base_model import load_tokenizer
from training.system import foreign_code


def test_no_other_file_loads_a_tokenizer() -> None:
    files = [file for file in (ROOT / "training").rglob("*.py") if "AutoTokenizer.from_" in file.read_text("utf-8")]
    assert [file.name for file in files] == ["model_tokenizer.py"]


@pytest.mark.slow
@pytest.mark.parametrize("trusted", [False, True])
def test_its_own_code_runs_where_the_settings_allow_that_and_nothing_is_fetched(
    trusted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoTokenizer

    asked = []
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda folder, **options: asked.append((folder, options)))
    monkeypatch.setenv(foreign_code.SWITCH, "1" if trusted else "0")
    load_tokenizer(tmp_path)
    assert asked == [(tmp_path, {"local_files_only": True, "trust_remote_code": trusted})]
