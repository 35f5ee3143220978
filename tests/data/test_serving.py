"""A whole run under a template of another family: what stands in its files, and what --check says of its rows."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from tests.support.programs import finetune
from training.llama import gguf_file
from training.ollama import modelfile_syntax

pytestmark = pytest.mark.tiny

QUICK = [word for name in ("MAX_STEPS=1", "SAVE_STEPS=0", "EVAL_STEPS=0") for word in ("--set", f"Training.{name}")]
TEMPLATES = Path(sys.prefix) / "llama.cpp/models/templates"


@pytest.mark.parametrize(
    ("name", "line", "after"),
    [
        ("deepseek-ai-DeepSeek-R1-Distill-Qwen-32B", "{%- set enable_thinking = false %}", "<think>\n</think>"),
        ("Qwen-Qwen3-0.6B", "{%- set enable_thinking = true %}", "<|im_start|>assistant\n<think>\n\n</think>"),
    ],
)
def test_the_files_of_a_run_serve_what_was_trained(tiny_config: Path, name: str, line: str, after: str) -> None:
    wanted = f"NEW_MODEL_NAME = tiny\nCHAT_TEMPLATE = {TEMPLATES / name}.jinja"
    tiny_config.write_text(tiny_config.read_text().replace("NEW_MODEL_NAME = tiny", wanted))
    ended = finetune("--config", tiny_config, *QUICK)
    assert ended.code == 0, ended.stderr
    assert f"the exported chat template begins with a line that sets {line[8:-3]}:" in ended.stderr
    exported = line + (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    served = gguf_file.read(ended.run / "tiny.Q4_K_M.gguf").fields
    assert served["tokenizer.chat_template"] == exported
    assert served["tokenizer.ggml.add_eos_token"] is False
    assert (ended.run / "merged" / "chat_template.jinja").read_text(encoding="utf-8") == exported
    template = dict(modelfile_syntax.read(ended.run / "Modelfile"))["template"]
    assert after + "{{ end }}" in template


def test_rows_that_a_gguf_cannot_give_as_they_are_trained_end_the_check_with_exit_2(
    tiny_config: Path, tiny_model: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "stripping")
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    # in the place of a token that the model has room for, so that its weights stay as they are
    tokenizer["added_tokens"][-1] |= {"content": "<dom>", "lstrip": True, "special": False}
    words = tokenizer["model"]["vocab"]
    words["<dom>"] = words.pop(
        next(word for word, number in words.items() if number == tokenizer["added_tokens"][-1]["id"])
    )
    file.write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    tiny_config.write_text(tiny_config.read_text().replace(str(tiny_model), str(folder)))
    rows = tmp_path / "rows.jsonl"
    with rows.open("a", encoding="utf-8") as out:
        out.write(json.dumps({"instruction": "Look up <dom> please", "output": "Here it is."}) + "\n")
    ended = finetune(
        "--config", tiny_config, "--set", "Dataset.VALIDATION_SPLIT=0", "--set", "Training.EVAL_STEPS=0", "--check"
    )
    assert ended.code == 2, ended.stderr
    assert "1 of 17 rows would be read in Ollama as other tokens than are trained:" in ended.stderr
    assert f"{rows.name}:17: " in ended.stderr and "the token <dom> is lstrip" in ended.stderr
