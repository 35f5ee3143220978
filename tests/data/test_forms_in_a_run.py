"""What a run says of rows in forms of their own: before training, once for each file, or with exit code 2."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.support.programs import finetune

pytestmark = pytest.mark.tiny

QWEN_3 = Path(sys.prefix) / "llama.cpp/models/templates/Qwen-Qwen3-0.6B.jinja"
CALL = {"function": {"name": "weather", "arguments": {"city": "Oslo"}}}
ROW = {
    "messages": [
        {"role": "user", "content": "Weather in Oslo?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": {"sky": "grey"}},
        {"role": "assistant", "content": "It rains."},
    ],
    "tools": [{"name": "weather", "parameters": {"type": "object"}}],
}


def test_columns_of_the_usual_names_are_told_of_once(tiny_config: Path, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("Id,Question,Answer\n" + "".join(f"{i},What is {i}?,It is {i}.\n" for i in range(16)), "utf-8")
    ended = finetune("--config", tiny_config, "--data", table, "--check")
    assert ended.code == 0, ended.stderr
    assert ended.stderr.count("16 rows of the columns Question, Answer, taken as instruction, output") == 1
    other = finetune(
        "--config", tiny_config, "--data", table, "--columns", "instruction: Frage, output: Answer", "--check"
    )
    assert other.code == 2
    assert (
        "COLUMNS names 'Frage', which is not there (fields found: Id, Question, Answer); 16 such rows" in other.stderr
    )


def test_tools_are_refused_by_a_template_without_and_what_older_servers_lack_is_said(
    tiny_config: Path, tmp_path: Path
) -> None:
    rows = tmp_path / "tools.jsonl"
    rows.write_text("".join(json.dumps(ROW | {"id": number}) + "\n" for number in range(16)), "utf-8")
    plain = finetune("--config", tiny_config, "--data", rows, "--check")
    assert plain.code == 2, plain.stderr
    assert "tools are offered in the row, and the chat template writes none" in plain.stderr
    assert "16 such rows" in plain.stderr
    tiny_config.write_text(
        tiny_config.read_text("utf-8").replace("NEW_MODEL_NAME", f"CHAT_TEMPLATE = {QWEN_3}\nNEW_MODEL_NAME"), "utf-8"
    )
    ended = finetune("--config", tiny_config, "--data", rows, "--check")
    assert ended.code == 0, ended.stderr
    assert "16 rows offer or call tools" in ended.stderr and "knows none" in ended.stderr
