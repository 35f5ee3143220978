"""What a run says of rows in forms of their own: before training, once for each file, or with exit code 2."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.support.programs import finetune

pytestmark = pytest.mark.tiny


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


CALL = {"type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "The weather.", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}}}}}]  # fmt: skip


def _with_tools(number: int) -> dict[str, object]:
    """A conversation in which a tool is called, and its answer is put into words."""
    call = {**CALL, "id": f"call00{number:03}"}
    asked = [
        {"role": "user", "content": f"Weather {number} in Oslo?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
    ]
    told = [
        {"role": "tool", "content": "rain", "tool_call_id": call["id"]},
        {"role": "assistant", "content": f"It rains {number}."},
    ]
    return {"messages": asked if number % 4 == 0 else [*asked, *told], "tools": TOOLS}


def test_rows_with_tools_are_trained_exported_and_measured_by_their_calls(tiny_config: Path, tmp_path: Path) -> None:
    rows = tmp_path / "tools.jsonl"
    rows.write_text("".join(json.dumps(_with_tools(number)) + "\n" for number in range(16)), "utf-8")
    asked = ("--config", tiny_config, "--data", rows, "--set", "Training.MAX_STEPS=3")
    refused = finetune(*asked, "--check")
    assert refused.code == 2
    assert refused.stderr.count("tools are offered in the row, and the chat template writes none") == 1
    template = Path(sys.prefix) / "llama.cpp/models/templates/Qwen-Qwen3-0.6B.jinja"
    ended = finetune(*asked, "--set", f"Model.CHAT_TEMPLATE={template}")
    assert ended.code == 0, ended.stderr
    report = json.loads((ended.run / "report.json").read_text("utf-8"))
    scores = {score["name"]: score for score in report["scores"]}
    assert scores["tool calls that parse"]["before"] == 0 and scores["tool calls that match"]["rows"] >= 1
    assert all(check["passed"] is not False for check in report["checks"])
