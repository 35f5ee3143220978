"""What a run says of rows in forms of their own: before training, once for each file, or with exit code 2."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from tests.support.programs import finetune
from training.llama import gguf_file

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


def test_a_models_template_for_tools_is_the_one_that_the_files_of_a_run_carry(
    tiny_config: Path, tiny_model: Path, tmp_path: Path
) -> None:
    rows = tmp_path / "tools.jsonl"
    rows.write_text("".join(json.dumps(_with_tools(number)) + "\n" for number in range(16)), "utf-8")
    base = Path(shutil.copytree(tiny_model, tmp_path / "base"))
    for_tools = (Path(sys.prefix) / "llama.cpp/models/templates/Qwen-Qwen3-0.6B.jinja").read_text("utf-8").strip()
    held = json.loads((base / "tokenizer_config.json").read_text("utf-8"))
    own = (base / "chat_template.jinja").read_text("utf-8")
    (base / "chat_template.jinja").unlink()
    held["chat_template"] = [{"name": "default", "template": own}, {"name": "tool_use", "template": for_tools}]
    (base / "tokenizer_config.json").write_text(json.dumps(held), "utf-8")
    asked = ("--config", tiny_config, "--data", rows, "--set", f"Model.BASE_MODEL_NAME={base}")
    refused = finetune(*asked, "--check")
    assert refused.code == 2 and refused.stderr.count("CHAT_TEMPLATE = tool_use learns and serves all rows") == 1
    ended = finetune(*asked, "--set", "Training.MAX_STEPS=3", "--set", "Model.CHAT_TEMPLATE=tool_use")
    assert ended.code == 0, ended.stderr
    # What was chosen is carried alone: readers take another that is named tool_use where a chat offers tools.
    for gguf in ended.run.rglob("*.gguf"):
        fields = gguf_file.read(gguf).fields
        assert str(fields["tokenizer.chat_template"]).endswith(for_tools)
        assert not any(name.startswith("tokenizer.chat_template.") for name in fields)
    merged = [path for path in ended.run.rglob("tokenizer_config.json") if path.parent.name == "merged"]
    for path in merged:
        own_file = path.with_name("chat_template.jinja")
        text = (
            own_file.read_text("utf-8") if own_file.exists() else json.loads(path.read_text("utf-8"))["chat_template"]
        )
        assert isinstance(text, str) and text.endswith(for_tools)
    report = json.loads((ended.run / "report.json").read_text("utf-8"))
    assert any(ended.run.rglob("*.gguf")) and merged
    assert all(check["passed"] is not False for check in report["checks"])
