"""The card in merged/ and adapter/: what a stranger needs to know, and nothing that is private."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests.support.reports import HOSTILE, good
from training.report import Report, gathering, model_card
from training.report.schema import BaseFacts
from training.runs import Run


def made(**changes: object) -> Report:
    settings = {
        "LoRA": {"R": 8, "LORA_ALPHA": 16, "LORA_DROPOUT": 0.0, "TARGET_MODULES": ["q_proj", "v_proj"]},
        "Training": {"LEARNING_RATE": 2e-4},
    }
    return good(Path("/home/somebody/secret/run"), settings=settings, **changes)


def test_the_card_names_base_model_licence_data_and_training() -> None:
    text = model_card.card(made(), "peft", "apache-2.0")
    assert text.startswith(
        "---\nlibrary_name: peft\nbase_model: HuggingFaceTB/SmolLM2-135M-Instruct\nlicense: apache-2.0\ntags:\n"
    )
    for said in (
        "# my-assistant",
        "A LoRA adapter for HuggingFaceTB/SmolLM2-135M-Instruct",
        "Rows: 144 training, 24 validation",
        "60 steps (3.3 epochs), learning rate 0.0002, seed 3407",
        "rank 8, alpha 16, dropout 0.0, on q_proj,v_proj",
        "validation loss 3.180 -> 1.010",
    ):
        assert said in text


def test_the_card_holds_no_row_no_answer_and_no_path() -> None:
    base = BaseFacts("/home/somebody/models/Private-8B", "folder")
    text = model_card.card(made(base=base), "transformers", "")
    assert "Private-8B" in text and "base_model" not in text
    for private in ("/home", "somebody", "/data", "train_data.jsonl", "Who are you?", "SmolLM."):
        assert private not in text


@pytest.mark.parametrize(
    ("readme", "licence", "found"),
    [
        ("---\nlicense: llama3.1\nlanguage: en\n---\n# A model\n", None, "llama3.1"),
        ("# A model\nlicense: mit\n", None, ""),
        (None, "LICENSE.txt", "other"),
        (None, None, ""),
    ],
)
def test_the_licence_is_the_base_models_where_it_says_one(tmp_path: Path, readme, licence, found) -> None:
    base, folder = tmp_path / "base", tmp_path / "merged"
    base.mkdir()
    folder.mkdir()
    if readme:
        (base / "README.md").write_text(readme, encoding="utf-8")
    if licence:
        (folder / licence).write_text("terms", encoding="utf-8")
    report = made(base=BaseFacts("a/b", "hub"))
    assert model_card.licence(report, base, folder) == found


def test_hostile_names_open_no_front_matter_and_no_heading() -> None:
    hostile = f"x\n---\nlicense: mit\n# owned {HOSTILE}"
    report = dataclasses.replace(made(base=BaseFacts(hostile, "hub")), name=hostile)
    text = model_card.card(report, "peft", hostile)
    assert "license:" not in text.partition("\n# ")[0]
    assert len([line for line in text.splitlines() if line.startswith("#")]) == 2, "the name, and how good it is"


def test_a_finished_run_whose_facts_are_gone_is_finished_all_the_same(
    tmp_path: Path, logged: list[str], monkeypatch
) -> None:
    monkeypatch.setattr(gathering, "gather", lambda *_, **__: made())
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / gathering.PLANNED).write_text("{}", encoding="utf-8")
    gathering._write_cards(Run(tmp_path, {}))
    assert logged and logged[-1].startswith("no model card: ")
