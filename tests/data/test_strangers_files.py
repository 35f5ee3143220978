"""Files of a kind that strangers have, from tools for labels, chat programs, data sets and offices: a case for each kind.

What would be learned wrongly is refused with a setting that decides, and that setting reads it.
"""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.row_forms import A2, ONE, Q2, TALK, TALK2, A, Form, Q, holds, table, talk
from training.data import BadRow, Row, Turn, raw_lines, rows
from training.data.reading import Reading
from training.settings import column_names

SYSTEM = Turn("system", "S")
LEFT = replace(A, trained=False)


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _thinking(name: str, **fields: object) -> Form:
    return Form(
        {**ONE, name: "Hm.", **fields},
        f"{name} may hold what .*COLUMNS = reasoning_content: {name} learns it; FORMAT = alpaca",
    )


# What was trained wrongly with a warning or without a word.
LOST = {
    "a class beside a text": table("text,label\nI like it,positive\n", "label stands beside text.*COLUMNS = instruction: text, output: label"),
    "a class as a number": table("text,label\nI like it,1\n", "label stands beside text"),
    "Doccano": Form({"id": 1, "text": "Who?", "label": ["Me."]}, "label stands beside text.*rows of instruction . output.*FORMAT = text"),
    "a summary beside a text": table("text,summary\nLong.,Short.\n", "summary stands beside text.*COLUMNS = instruction: text, output: summary"),
    "an answer beside a text": Form({"text": "Who?", "response": "Me."}, "response stands beside text.*COLUMNS = instruction: text, output"),
    "LLaMA-Factory's answers that are not wanted": Form({**ONE, "kto_tag": False}, "kto_tag is false.*KTO.*ON_BAD_ROW = skip.*FORMAT = alpaca"),
    "an answer with a thumb down": Form({"prompt": "Who?", "response": "No.", "feedback": "thumbs_down"},
                                        "feedback is thumbs_down.*nobody liked.*ON_BAD_ROW = skip"),
    "a row of the weight 0": Form({**ONE, "weight": 0}, "weight is 0 beside the answer.*ON_BAD_ROW = skip.*FORMAT = alpaca"),
    "a row with half a weight": Form(talk(*TALK, weight=0.5), "weight = 0.5 beside the answer.*FORMAT = messages learns it whole"),
    "a row that is not to be trained": Form({**ONE, "train": False}, "train is false beside the answer"),
    **{
        f"a message with {name}": Form(talk(TALK[0], {**TALK[1], name: 1}, *TALK2), f"messages: {name} stands in a turn.*FORMAT = messages")
        for name in ("mask", "loss_mask", "is_masked")
    },
    "Axolotl's parts of a turn": Form(talk(TALK[0], {**TALK[1], "train_detail": [{"begin_offset": 0, "train": False}]}), "train_detail stands in a turn"),
    **{
        f"thoughts named {name}": _thinking(name)
        for name in ("cot", "Complex_CoT", "chain_of_thought", "rationale", "thought", "think", "thinking_content", "deepseek_reasoning", "思维链")
    },
    "s1K's thoughts": Form({**ONE, "thinking_trajectories": ["Hm."]}, "thinking_trajectories may hold.*FORMAT = alpaca goes on"),
    "thoughts of a message under another name": Form(talk(TALK[0], {**TALK[1], "thought": "Hm."}), "messages: thought stands in a turn"),
    "a line of a chat in a TXT file": table("User: Who?\nAssistant: Me.\n", "begins with 'User:', as a turn.*FORMAT = text", "a.txt"),
    "a line of a question in a TXT file": table("Q: Who?\nA: Me.\n", "begins with 'Q:', as a turn.*FORMAT = text", "a.txt"),
    "a line of a question in Chinese": table("问：谁?\n答：我。\n", "begins with '问：', as a turn", "a.txt"),
    "Harmony": Form({"text": "<|start|>user<|message|>Who?<|end|><|start|>assistant<|channel|>final<|message|>Me.<|return|>"},
                    r"begins with '<\|start\|>', as a part.*FORMAT = text"),
    "Mistral's markup with tools": Form({"text": "<s>[AVAILABLE_TOOLS][{}][/AVAILABLE_TOOLS][INST]Who?[/INST]Me.</s>"}, "begins with '.AVAILABLE_TOOLS"),
}  # fmt: skip

# The same, and one way to read it.
READ = {
    "prompt and response as JSON": Form({"prompt": "Who?", "response": "Me."}, [(Q, A)]),
    "ChatGLM's history": Form({"prompt": "Why?", "response": "So.", "history": [["Who?", "Me."]]}, [(Q, A, Q2, A2)]),
    "instruction and completion": Form({"instruction": "Who?", "completion": "Me."}, [(Q, A)]),
    "input and response": Form({"input": "Who?", "response": "Me."}, [(Q, A)]),
    "traditional Chinese": table("問題,回答\nWho?,Me.\n"),
    "traditional Chinese with an input": table("指令,輸入,輸出\nWho?,,Me.\n"),
    "a mark of direction in front of the header": table("\u200finstruction,output\nWho?,Me.\n"),
    "names in camel case": table("userInput,expectedOutput\nWho?,Me.\n"),
    "FLAN": Form({"inputs": "Who?", "targets": "Me.", "task": "t"}, [(Q, A)]),
    "Langfuse": table("id,input,expectedOutput,metadata\n1,Who?,Me.,\n"),
    **{
        f"a system text named {name}": Form({name: "S", **ONE}, [(SYSTEM, Q, A)])
        for name in ("system_message", "systemPrompt", "System Prompt", "meta_instruction", "系統提示")
    },
    "an earlier answer that is not to be trained": Form(talk(TALK[0], {**TALK[1], "training": False}, *TALK2), [(Q, LEFT, Q2, A2)]),
    "OpenRouter's thoughts": Form(talk(TALK[0], {**TALK[1], "reasoning": "Hm.", "reasoning_details": [{"text": "Hm."}]}),
                                  [(Q, replace(A, thoughts="Hm."))]),
    "Anthropic's older prompts": Form({"prompt": "\n\nHuman: Who?\n\nAssistant:", "completion": " Me."}, [(Q, A)]),
    "BELLE's turns in the instruction": Form(
        {"instruction": "Human:Who?\nAssistant:Me.\nHuman:Why?\nAssistant:", "input": "", "output": "So."}, [(Q, LEFT, Q2, A2)]
    ),
    "such a prompt with Chinese roles": Form({"prompt": "用户: Who?\n助手：", "completion": "Me."}, [(Q, A)]),
    "an answer with a role on a line of its own": Form({"prompt": "User: Who?\nAssistant:", "completion": "Me.\nUser: x"},
                                                       [(Q, Turn("assistant", "Me.\nUser: x"))]),
    "such a prompt with FORMAT": table('{"prompt": "User: Who?\\nAssistant:", "completion": "Me."}',
                                       [(Turn("user", "User: Who?\nAssistant:"), A)], "a.jsonl", format="prompt"),
    "a question about roles": Form({"instruction": "What does Assistant: mean?", "output": "Me."}, [(Turn("user", "What does Assistant: mean?"), A)]),
    "a prompt in [INST] alone": Form({"prompt": "[INST] Who? [/INST]", "completion": "Me."}, [(Q, A)]),
    **{
        f"text in the markup of {name}": Form({"text": text}, [(Q, A)])
        for name, text in {
            "OpenAssistant": "<|prompter|>Who?<|endoftext|><|assistant|>Me.<|endoftext|>",
            "DeepSeek": "<｜begin▁of▁sentence｜><｜User｜>Who?<｜Assistant｜>Me.<｜end▁of▁sentence｜>",
            "Command R": "<BOS_TOKEN><|START_OF_TURN_TOKEN|><|USER_TOKEN|>Who?<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>Me."
                         "<|END_OF_TURN_TOKEN|>",
            "Granite": "<|start_of_role|>user<|end_of_role|>Who?<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>Me.<|end_of_text|>",
            "Phi-4": "<|im_start|>user<|im_sep|>Who?<|im_end|><|im_start|>assistant<|im_sep|>Me.<|im_end|>",
            "Llama 4": "<|begin_of_text|><|header_start|>user<|header_end|>\n\nWho?<|eot|><|header_start|>assistant<|header_end|>\n\nMe.<|eot|>",
            "GLM-4": "[gMASK]<sop><|user|>\nWho?<|assistant|>\nMe.",
            "OpenChatKit": "<human>: Who?\n<bot>: Me.",
            "Vicuna": "USER: Who? ASSISTANT: Me.</s>",
        }.items()
    },
    "Vicuna's words in front": Form({"text": "A chat between us. USER: Who? ASSISTANT: Me.</s>"}, [(Turn("system", "A chat between us."), Q, A)]),
    "DeepSeek's system text": Form({"text": "<｜begin▁of▁sentence｜>S<｜User｜>Who?<｜Assistant｜>Me.<｜end▁of▁sentence｜>"}, [(SYSTEM, Q, A)]),
    "Mistral's system text": Form({"text": "<s>[SYSTEM_PROMPT]S[/SYSTEM_PROMPT][INST]Who?[/INST]Me.</s>"}, [(SYSTEM, Q, A)]),
    "a table in Markdown": table("| instruction | output |\n|---|:-:|\n| Who? | Me. |\n", name="a.md"),
    "a table in Markdown named CSV": table("question | answer\n--- | ---\nWho? | Me\\|you.\n", [(Q, Turn("assistant", "Me|you."))]),
    "a table in Markdown in a TXT file": table("| instruction | output |\n|---|---|\n| Who? | Me. |\n", name="a.txt"),
    "a title above the table": table("My FAQ\n\nquestion,answer\nWho?,Me.\n"),
    "a title of Numbers": table("Table 1,,\nquestion,answer,\nWho?,Me.,\n"),
    "a comment above the table": table("# by X, in 2024\nquestion;answer\nWho?;Me.\n"),
    "a table of texts with a header in a text": table('text\nHi.\n"question, answer"\n', ["Hi.", "question, answer"]),
    "Excel's word on the delimiter": table("sep=;\nquestion;answer\nWho?;Me.\n"),
    **{
        f"exchanges, {name}": Form({"conversation": [one, two]}, [(Q, A, Q2, A2)])
        for name, one, two in (
            ("Firefly's", {"human": "Who?", "assistant": "Me."}, {"human": "Why?", "assistant": "So."}),
            ("Capybara's", {"input": "Who?", "output": "Me."}, {"input": "Why?", "output": "So."}),
            ("COIG's", {"question": "Who?", "answer": "Me."}, {"question": "Why?", "answer": "So."}),
            ("of a chat's history", ["Who?", "Me."], ["Why?", "So."]),
        )
    },
    "XTuner's exchanges": Form({"conversation": [{"system": "S", "input": "Who?", "output": "Me."}]}, [(SYSTEM, Q, A)]),
    "turns of a role and a text": Form({"conversations": [["human", "Who?"], ["gpt", "Me."]]}, [(Q, A)]),
    "roles of a help desk": Form(talk({"role": "customer", "content": "Who?"}, {"role": "agent", "content": "Me."}), [(Q, A)]),
    "Cohere's roles": Form(talk({"role": "User", "content": "Who?"}, {"role": "Chatbot", "content": "Me."}), [(Q, A)]),
    "messages and a text for an answer": Form({"prompt": [TALK[0]], "response": "Me."}, [(Q, A)]),
    "OpenAI's evaluations": Form({"input": [TALK[0]], "ideal": "Me."}, [(Q, A)]),
    "messages on both sides": Form({"input": [TALK[0]], "output": TALK[1]}, [(Q, A)]),
    "a message in each row of a table": table("id,role,content\n1,user,Who?\n1,assistant,Me.\n", "the row is one message"),
    "preferred answers to an instruction": Form({"instruction": "Who?", "input": "", "chosen": "Me.", "rejected": "x"},
                                                "COLUMNS = instruction: instruction, output: chosen takes"),
    # What stands beside and changes nothing is left out as before.
    "a text with a source": Form({"text": "Once.", "source": "x", "meta": {"a": 1}}, ["Once."]),
    "a text that holds its summary": Form({"text": "Once. Short.", "summary": "Short."}, ["Once. Short."]),
    "the effort of reasoning": Form({**ONE, "reasoning_effort": "high", "reasoning_language": "en"}, [(Q, A)]),
    "the word dislike as an answer": Form({**ONE, "output": "Dislike"}, [(Q, Turn("assistant", "Dislike"))]),
    "a weight of things": Form({**ONE, "weight": 72.5}, [(Q, A)]),
    "a turn alone that is no line": Form({"text": "User: alone"}, ["User: alone"]),
    "a line of a system in a TXT file": table("System: Windows\n", ["System: Windows"], "a.txt"),
    "a line with both": table("Q: Who? A: Me.\n", "begins with 'Q:'", "a.txt"),
    "a question and its answer as one text": Form({"text": "Q: Who?\nA: Me."}, ["Q: Who?\nA: Me."]),
}  # fmt: skip

# What is no file of rows.
OTHER_FILES = {
    "tar": (b"a.jsonl".ljust(257, b"\0") + b"ustar\0", "a.tar", "is a tar archive: unpack it"),
    "tar named so": (b"a.jsonl".ljust(257, b"\0") + b"ustar\0", "a.jsonl", "is a tar archive"),
    "XML": ("<?xml version='1.0'?>\n<a/>", "a.txt", "is XML"),
    "Anki": ("#separator:tab\n#html:true\nWho?\tMe.\n", "a.txt", "is an export of Anki.*end in .tsv"),
    "a pickle": (b"\x80\x04\x95" + bytes(50), "a.json", "is a pickle of Python"),
    "NumPy": (b"\x93NUMPY\x01\0" + bytes(50), "a.json", "is a NumPy file"),
    "a stream of Arrow": (b"\xff\xff\xff\xff\x10\0\0\0" + bytes(50), "a.arrow", "is an Arrow stream"),
    "RTF": (b"{\\rtf1 Who?}", "a.txt", "word processor"),
    "a table without a header": (
        "My FAQ\nWho?,Me.\n",
        "a.csv",
        "1 fields in the header; the first line must name the columns",
    ),
}
ALL = LOST | READ | {name: Form(content, come, file) for name, (content, file, come) in OTHER_FILES.items()}


@pytest.mark.parametrize("named", ALL)
def test_a_strangers_file_is_read_in_its_only_way_or_refused_once(named: str) -> None:
    holds(ALL[named])


@pytest.mark.parametrize("named", LOST)
def test_the_settings_that_a_refusal_names_read_the_row(named: str) -> None:
    form = LOST[named]
    reason = next(row.reason for row in holds(form) if isinstance(row, BadRow))
    formats = re.findall(r"FORMAT = (\w+)", reason)
    columns = re.findall(r"COLUMNS = (.+?) learns", reason)
    assert formats, reason
    ways = [Reading(format=name) for name in formats] + [Reading(columns=column_names.parse(one)) for one in columns]
    for way in ways:
        assert all(isinstance(row, Row) for row in rows.read(Path(form.name), way)), (way, reason)


def test_a_call_that_an_answer_marks_is_a_call_where_the_row_offers_functions() -> None:
    call = "<tool_call>\n{'arguments': {'city': 'Oslo'}, 'name': 'weather'}\n</tool_call>"
    for offered in ([{"name": "weather"}], []):
        Path("a.jsonl").write_text(json.dumps(talk(TALK[0], {**TALK[1], "content": call}, tools=offered)))
        (row,) = rows.read(Path("a.jsonl"))
        assert isinstance(row, Row) and row.messages
        answer = row.messages[1]
        if offered:
            assert answer.content == "" and json.loads(answer.more)["tool_calls"][0]["function"]["name"] == "weather"
        else:
            assert answer == Turn("assistant", call)


def test_a_table_of_markdown_may_have_a_title_and_its_rows_are_named_by_their_lines() -> None:
    Path("a.csv").write_text("My questions\n| Question | Answer |\n|---|---|\n| Who? | Me. |\n| a | b | c |\n")
    found, bad = rows.read(Path("a.csv"))
    assert isinstance(found, Row) and isinstance(bad, BadRow)
    assert (found.messages, found.line, bad.line) == ((Q, A), 4, 5)


def test_a_line_of_a_markdown_table_that_cannot_be_read_is_told_and_does_not_end_the_file_in_silence(
    monkeypatch,
) -> None:
    monkeypatch.setattr(raw_lines, "MAX_ROW_BYTES", 100)
    monkeypatch.setattr(csv, "field_size_limit", lambda size: None)  # it would hold for all tests after this one
    Path("a.csv").write_text(f"| Question | Answer |\n|---|---|\n| Who? | Me. |\n| {'x' * 200} | y |\n| Why? | So. |\n")
    found, bad = rows.read(Path("a.csv"))
    assert isinstance(found, Row) and isinstance(bad, BadRow)
    assert (found.messages, bad.line, bad.fatal) == ((Q, A), 4, True)


def test_a_sheet_of_excel_is_read_as_it_is_shown() -> None:
    openpyxl = pytest.importorskip("openpyxl")
    import datetime

    book = openpyxl.Workbook()
    for values in (
        ["FAQ 2024", None, None], ["question", "answer", None], ["Who?", "Me._x000D_\nYou.", None],
        ["When?", datetime.datetime(2024, 1, 2), None], ["And?", datetime.datetime(2024, 1, 2, 3, 4), None],
    ):  # fmt: skip
        book.active.append(values)
    lists = book.create_sheet("lists")
    lists.append(["x"])
    lists.sheet_state = "hidden"
    book.save("a.xlsx")
    found = list(rows.read(Path("a.xlsx")))
    assert all(isinstance(row, Row) for row in found)
    assert [row.messages[1].content for row in found] == ["Me.\nYou.", "2024-01-02", "2024-01-02 03:04:00"]
    assert {"of the sheet that is shown: hidden ones are left out", "of a table below a title, which is left out"} <= {
        *found[0].read_as
    }


def test_a_header_of_excel_may_stand_below_empty_rows_and_a_column_alone_has_no_title() -> None:
    openpyxl = pytest.importorskip("openpyxl")
    for table_, come in (
        ([[None], [None], ["question", "answer"], ["Who?", "Me."]], [(Q, A)]),
        ([["text", None], ["question", None]], ["question"]),
    ):
        book = openpyxl.Workbook()
        for number, values in enumerate(table_, 1):
            for place, value in enumerate(values, 1):
                book.active.cell(number, place, value)
        book.active.cell(9, 2, "")
        book.save("a.xlsx")
        found = [row.messages or row.text for row in rows.read(Path("a.xlsx")) if isinstance(row, Row)]
        assert found == come
