"""The forms of files that people were seen to have, a case for each: read as what it can only mean, refused in one line, or
as right as it was before. What is particular to a kind of forms stands in test_row_forms.py."""

from __future__ import annotations

import gzip
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.row_forms import A2, ONE, Q2, TALK, TALK2, TWO, A, Form, Q, holds, table, talk
from training.data import BadRow, Row, Turn, rows
from training.data.reading import Reading
from training.settings import column_names

CALL = {"id": "abc123def", "type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
CALLED = Turn("assistant", "", more=json.dumps({"tool_calls": [CALL]}))
RESULT = Turn("tool", "rain", more=json.dumps({"tool_call_id": "abc123def"}))


def _columns(text: str) -> dict[str, str]:
    return column_names.parse(text)


ANSWER_LEFT = (Q, replace(A, trained=False), Q2, A2)
WRONG_BEFORE = {
    **{
        f"a message with {name}": Form(talk(TALK[0], {**TALK[1], **mark}, *TALK2), [ANSWER_LEFT])
        for name, mark in {
            '"weight": 0': {"weight": 0},
            '"train": false': {"train": False},
            '"loss": false': {"loss": False},
            '"trainable": false': {"trainable": False},
        }.items()
    },
    "a fraction as weight": Form(talk(TALK[0], {**TALK[1], "weight": 0.5}), "weight = 0.5: a turn is learned whole"),
    "Dolly": Form(
        {"instruction": "Who?", "context": "I am.", "response": "Me.", "category": "qa"}, [(Turn("user", "Who?\n\nI am."), A)]
    ),
    "LLaMA-Factory": Form(
        {"instruction": "Why?", "input": "", "output": "So.", "system": "S", "history": [["Who?", "Me."]]},
        [(Turn("system", "S"), Q, A, Q2, A2)],
    ),
    "reasoning_content": Form(talk(TALK[0], {**TALK[1], "reasoning_content": "Hm."}), [(Q, replace(A, thoughts="Hm."))]),
    "reasoning": Form({**ONE, "reasoning": "Hm."}, [(Q, replace(A, thoughts="Hm."))]),
    "thinking": Form(talk(TALK[0], {**TALK[1], "thinking": "Hm."}), [(Q, replace(A, thoughts="Hm."))]),
    **{
        f"the answer {word}": table(f"question,answer\nWho?,{word}\nWhy?,So.\n", f"answer is {word!r}.* NULL_WORDS = keep")
        for word in ("NaN", "nan", "None", "NULL", "NA", "null")
    },
    "a real NA": table("question,answer\nWho?,NA\n", [(Q, Turn("assistant", "NA"))], null_words="keep"),
    "a missing input beside the answer": table("instruction,input,output\nWho?,nan,Me.\n", "input is 'nan'.*leave it empty"),
    "words like nan in a message": Form(talk(TALK[0], {**TALK[1], "content": "NaN"}), [(Q, Turn("assistant", "NaN"))]),
    "words like nan within an answer": Form({**ONE, "output": "It is NaN."}, [(Q, Turn("assistant", "It is NaN."))]),
    "text in Llama 2's markup": Form({"text": "<s>[INST] Who? [/INST] Me. </s>"}, [(Q, A)]),
    "text under ### Human": Form({"text": "### Human: Who?\n### Assistant: Me."}, [(Q, A)]),
    "text under ### Human on lines of their own": Form({"text": "### Human\nWho?\n### Assistant\nMe."}, [(Q, A)]),
    "text in ChatML": Form(
        {"text": "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\nMe.<|im_end|>\n"}, [(Q, A)]
    ),
    "text under Alpaca's headings": Form({"text": "### Instruction:\nWho?\n\n### Response:\nMe."}, [(Q, A)]),
    "text under Instruction and Output": Form({"text": "### Instruction:\nWho?\n\n### Output:\nMe."}, [(Q, A)]),
    "markup with FORMAT = text": table('{"text": "### Human: Who?\\n### Assistant: Me."}',
                                       ["### Human: Who?\n### Assistant: Me."], "a.jsonl", format="text"),
    "markup with turns of a tool": Form(
        {"text": "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>tool\nx<|im_end|>\n<|im_start|>assistant\nMe.<|im_end|>"},
        "chat markup of ChatML, with turns of tool.*FORMAT = text",
    ),
    "a prompt in markup": Form({"prompt": "<s>[INST] Who? [/INST]", "completion": " Me. </s>"}, [(Q, A)]),
    "an instruction under Alpaca's headings": Form(
        {"instruction": "### Instruction:\nWho?\n\n### Response:\n", "output": "Me."}, [(Q, A)]
    ),
    "an exchange within a prompt in markup": Form(
        {"prompt": "### Human: Who?\n### Assistant: Me.\n### Human: Why?\n### Assistant:", "completion": " So."}, [ANSWER_LEFT]
    ),
    "functions of OpenAI's older form": Form(
        talk(TALK[0], {"role": "assistant", "content": None, "function_call": {**CALL["function"], "id": CALL["id"]}},
             {"role": "function", "name": "weather", "content": "rain"}, TALK[1], functions=[{"name": "weather"}]),
        [(Q, CALLED, Turn("tool", "rain", more=json.dumps({"name": "weather"})), A)],
    ),
    **{
        f"an answer that is not wanted, {label!r}": Form({"prompt": "Who?", "completion": "No.", "label": label},
                                                         "label is false.*KTO.*ON_BAD_ROW = skip does.*FORMAT = prompt learns")
        for label in (False, "False")
    },
    "an answer that is wanted": Form({"prompt": "Who?", "completion": "Me.", "label": True}, [(Q, A)]),
    "a conversation that is not wanted": Form(talk(*TALK, label=False), "label is false.*FORMAT = messages learns them all"),
    "answers of either label": Form('{"prompt": "Who?", "completion": "Me.", "label": false}', [(Q, A)],
                                    reading=Reading(format="prompt")),
    "a message in each row": Form({"message_id": "a", "text": "Who?", "role": "prompter"},
                                  "role is 'prompter' beside text: the row is one message.*FORMAT = text learns each"),
    "a text with a role of another kind": Form({"text": "Once.", "role": "king"}, ["Once."]),
    **{
        f"the input {given!r}": Form({"instruction": "Who?", "input": given, "output": "Me."}, [(Q, A)])
        for given in ("<noinput>", "No input", "noinput")
    },
    "a real input of that kind": Form({"instruction": "Who?", "input": "No input", "output": "Me."},
                                      [(Turn("user", "Who?\n\nNo input"), A)], reading=Reading(null_words="keep")),
    **{
        f"Excel's {error}": table(f"question,answer\nWho?,{error}\n", f"answer is '{re.escape(error)}', as Excel writes an error")
        for error in ("#REF!", "#NAME?", "#VALUE!", "#DIV/0!", "#N/A", "#BEZUG!")
    },
    "an error of Excel beside the answer": table("instruction,input,output\nWho?,#REF!,Me.\n", "input is '#REF!', as Excel writes"),
    "SQuAD": Form({"context": "I am.", "question": "Who?", "answers": {"text": ["Me.", "Me."], "answer_start": [0, 0]}},
                  [(Turn("user", "Who?\n\nI am."), A)]),
    "SQuAD in a cell": table('question,answers\nWho?,"{\'text\': [\'Me.\'], \'answer_start\': [3]}"\n'),
    "SQuAD with several answers": Form({"question": "Who?", "answers": {"text": ["Me.", "I."], "answer_start": [0, 0]}},
                                       "output holds 2 different answers: leave one"),
    "SQuAD without an answer": Form({"question": "Who?", "answers": {"text": [], "answer_start": []}}, "the answer is empty"),
    "a list of one text in a cell": table('question,answer\nWho?,"[\'Me.\']"\n', "is a list of one text.*FORMAT = alpaca learns it"),
    "such a list with FORMAT": table('instruction,output\nWho?,"[\'Me.\']"\n', [(Q, Turn("assistant", "['Me.']"))], format="alpaca"),
    "a list of numbers": Form({**ONE, "output": "[1, 2]"}, [(Q, Turn("assistant", "[1, 2]"))]),
    "passages that were found": Form({"question": "Who?", "contexts": ["I am.", "He is."], "answer": "Me."},
                                     [(Turn("user", "Who?\n\nI am.\n\nHe is."), A)]),
    "a picture": Form({"image": "a.jpg", **talk(*TALK)}, "image holds what the row is about.*FORMAT = messages goes on"),
    "an empty field for a picture": Form({"image": None, **ONE}, [(Q, A)]),
    "a line of ChatML": table("<|im_start|>user\n", r"text begins with '<\|im_start\|>', as a part.*TXT.*FORMAT = text", "a.txt"),
    "a line of ChatML with FORMAT = text": table("<|im_start|>user\n", ["<|im_start|>user"], "a.txt", format="text"),
    "preferred messages": Form({"chosen": [*TALK], "rejected": [*TALK]}, "COLUMNS = messages: chosen takes the preferred"),
    "preferred texts": Form({"chosen": "Human: Who?", "rejected": "x"}, "COLUMNS = text: chosen takes the preferred ones"),
    "preferred messages beside their prompt": Form({"prompt": [TALK[0]], "chosen": [TALK[1]], "rejected": [TALK[1]]},
                                                   "COLUMNS = prompt: prompt, completion: chosen takes the preferred ones"),
    "SQuAD with a number": Form({"question": "Who?", "answers": {"text": [7], "answer_start": [0]}}, "output: text is a number"),
    "OpenAI's preferences": Form({"input": {"messages": [TALK[0]]}, "preferred_output": [TALK[1]], "non_preferred_output": [TALK[1]]},
                                 "preference pairs are not trained here: write what is preferred"),
    "questions of a form": table("Timestamp,What do you ask?,What is right?\n1,Who?,Me.\n",
                                 r"COLUMNS = instruction: What do you ask\?, output: What is right\?"),
}  # fmt: skip

POLISH = "Zażółć gęślą jaźń. Proszę napisać dlaczego książka leży na półce; dziękuję za pomoc."
RUSSIAN = "Москва стоит на реке и давно известна своими улицами. Зимой здесь холодно."
CELL = json.dumps(TALK).replace('"', '""')
READ = {
    "capitals": table("Instruction,Output\nWho?,Me.\n"),
    "tickets": table("Ticket,Date,Language,Question,Answer\n7,2024-01-01,en,Who?,Me.\n"),
    "query and response": table("query,response\nWho?,Me.\n"),
    "input and target": table("input,target\nWho?,Me.\n"),
    "问题 and 回答": table("问题,回答\nWho?,Me.\n"),
    "提问 and 答案": table("提问,答案\nWho?,Me.\n"),
    "COLUMNS": table("Frage,Antwort\nWho?,Me.\n", columns=_columns("instruction: Frage, output: Antwort")),
    "two that may be the question": table("question,prompt,answer\nWho?,x,Me.\n", "question and prompt may each be.*COLUMNS"),
    "columns without a name behind": table("instruction,output,,\nWho?,Me.,,\n"),
    "empty rows of Excel": table("instruction,output\n,\nWho?,Me.\n,\n,,\n"),
    "UTF-16 with its mark": table("instruction\toutput\nWho?\tMe.\n".encode("utf-16")),
    "Excel's Unicode text as it names it": table("Question\tAnswer\r\nWho?\tMe.\r\n".encode("utf-16"), name="a.txt"),
    "a table with tabs in a TXT file": table("instruction\toutput\nWho?\tMe.\n", name="a.txt"),
    "JSON lines in a TXT file": Form(json.dumps(ONE) + "\n" + json.dumps(TWO), [(Q, A), (Q2, A2)], "a.txt"),
    "a JSON list in a TXT file": Form([ONE, TWO], [(Q, A), (Q2, A2)], "a.txt"),
    "lines of text with braces": Form('{"a": 1}\n{b}\n', ['{"a": 1}', "{b}"], "a.txt"),
    "lines of text with a comma": table("question, answer\nWho?\n", ["question, answer", "Who?"], "a.txt"),
    "CR alone at the ends of lines": table('instruction,output\rWho?,Me.\rWhy?,"So,\rso."\r',
                                           [(Q, A), (Q2, Turn("assistant", "So,\nso."))]),
    "Windows-1252": table("instruction,output\nWho?,Été à Köln.\n".encode("cp1252"), "most likely it is CP1252.*ENCODING = cp1252"),
    "ENCODING = cp1252": table("instruction,output\nWho?,Été à Köln.\n".encode("cp1252"),
                               [(Q, Turn("assistant", "Été à Köln."))], encoding="cp1252"),
    "GBK": table("问题,回答\n今天天气怎么样,我不知道。\n".encode("gbk"), "most likely it is GB18030 .*ENCODING = gb18030 reads it"),
    "ENCODING = gbk": table("问题,回答\n今天天气怎么样,我不知道。\n".encode("gbk"),
                            [(Turn("user", "今天天气怎么样"), Turn("assistant", "我不知道。"))], encoding="gbk"),
    "Windows-1250": table(f"instruction,output\nWho?,{POLISH}\n".encode("cp1250"), "most likely it is CP1250 .*ENCODING = cp1250"),
    "ENCODING = cp1250": table(f"instruction,output\nWho?,{POLISH}\n".encode("cp1250"),
                               [(Q, Turn("assistant", POLISH))], encoding="cp1250"),
    "KOI8-R": table(f"instruction,output\nWho?,{RUSSIAN}\n".encode("koi8_r"), "most likely it is KOI8-R .*ENCODING = koi8-r"),
    "a blank after the comma, then quotes": table('instruction,output\nWho?, "Me, b"\n', [(Q, Turn("assistant", "Me, b"))]),
    "| between columns": table("instruction|output\nWho?|Me.\n"),
    "a backslash before a quotation mark": table('instruction,output\nWho?,"He said \\"hi\\""\n', "written twice in CSV"),
    '{"data": [...]}': Form({"data": [ONE, TWO]}, [(Q, A), (Q2, A2)], "a.json"),
    '{"train": [...]}': Form({"train": [ONE, TWO]}, [(Q, A), (Q2, A2)], "a.json"),
    "an object of facts in front of the list": Form({"info": {"by": "me"}, "data": [ONE, TWO]}, [(Q, A), (Q2, A2)], "a.json"),
    "datasets' to_dict": Form({"instruction": ["Who?", "Why?"], "output": ["Me.", "So."]}, [(Q, A), (Q2, A2)], "a.json"),
    "objects over several lines": Form(json.dumps(ONE, indent=2) + "\n" + json.dumps(TWO, indent=2), [(Q, A), (Q2, A2)]),
    "one object over several lines": Form(json.dumps(ONE, indent=2), [(Q, A)]),
    "objects on one line": Form(json.dumps(ONE) + json.dumps(TWO), [(Q, A), (Q2, A2)]),
    "a comma after the last row": Form(f"[{json.dumps(ONE)}, {json.dumps(TWO)},]", [(Q, A), (Q2, A2)], "a.json"),
    "a comma at the end of each line": Form(json.dumps(ONE) + ",\n" + json.dumps(TWO) + ",\n", [(Q, A), (Q2, A2)]),
    "a line that is a bare list of messages": Form(json.dumps(TALK) + "\n" + json.dumps(TALK2), [(Q, A), (Q2, A2)]),
    "a list of such lists": Form([TALK, TALK2], [(Q, A), (Q2, A2)], "a.json"),
    "messages as JSON in a cell": table(f'messages\n"{CELL}"\n'),
    "messages as JSON in a string": Form({"messages": json.dumps(TALK)}, [(Q, A)]),
    "content in parts": Form(talk({"role": "user", "content": [{"type": "text", "text": "Who?"}]}, TALK[1]), [(Q, A)]),
    "TRL's prompt and completion": Form({"prompt": [TALK[0]], "completion": [TALK[1]]}, [(Q, A)]),
    "User and Assistant": Form(talk({**TALK[0], "role": "User"}, {**TALK[1], "role": "Assistant"}), [(Q, A)]),
    "developer": Form(talk({"role": "developer", "content": "S"}, *TALK), [(Turn("system", "S"), Q, A)]),
    "speaker and text": Form(
        talk({"speaker": "human", "text": "Who?"}, {"speaker": "bot", "text": "Me."}), [(Q, A)]
    ),
    "neighbouring turns": Form(talk(TALK[0], TALK2[0], TALK[1]), "user comes after user.*JOIN_TURNS = true"),
    "neighbouring turns, joined": Form(talk(TALK[0], TALK2[0], TALK[1]), [(Turn("user", "Who?\n\nWhy?"), A)],
                                       reading=Reading(join_turns=True)),
    "neighbouring turns, kept apart": Form(talk(TALK[0], TALK2[0], TALK[1]), [(Q, Q2, A)], reading=Reading(join_turns=False)),
    "the person's turn at the end": Form(talk(*TALK, TALK2[0]), [(Q, A)]),
    "the assistant's greeting": Form(talk({**TALK2[1]}, *TALK), [(replace(A2, trained=False), Q, A)]),
    "a system text in mid-conversation": Form(talk(*TALK, {"role": "system", "content": "S"}, *TALK2),
                                              [(Q, A, Turn("system", "S"), Q2, A2)]),
    "a blank system text in mid-conversation": Form(talk(*TALK, {"role": "system", "content": " "}, *TALK2), [(Q, A, Q2, A2)]),
    "tool calls and results": Form(
        talk(TALK[0], {"role": "assistant", "content": None, "tool_calls": [CALL]},
             {"role": "tool", "content": "rain", "tool_call_id": "abc123def"}, TALK[1]), [(Q, CALLED, RESULT, A)],
    ),
    "Anthropic's tool_use and tool_result": Form(
        talk(TALK[0], {"role": "assistant", "content": [
            {"type": "tool_use", "id": "abc123def", "name": "weather", "input": {"city": "Oslo"}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "abc123def", "content": "rain"}]}, TALK[1]),
        [(Q, CALLED, RESULT, A)],
    ),
    "function_call and observation": Form(
        {"conversations": [{"from": "human", "value": "Who?"}, {"from": "function_call", "value": json.dumps(CALL)},
                           {"from": "observation", "value": "rain"}, {"from": "gpt", "value": "Me."}]},
        [(Q, CALLED, Turn("tool", "rain"), A)],
    ),
    "calls in the marks of Hermes": Form(
        {"conversations": [{"from": "human", "value": "Who?"},
                           {"from": "gpt", "value": f"<tool_call>\n{json.dumps(CALL)}\n</tool_call>"},
                           {"from": "tool", "value": "<tool_response>\nrain\n</tool_response>"}, {"from": "gpt", "value": "Me."}]},
        [(Q, CALLED, Turn("tool", "rain"), A)],
    ),
    "a gzip file without an ending": Form(gzip.compress(json.dumps(ONE).encode()), [(Q, A)], "rows"),
    "no file ending": Form(json.dumps(ONE), [(Q, A)], "rows"),
}  # fmt: skip

EMOJI = "👩‍👩‍👧‍👦 ｆｕｌｌ"
STAYS = {
    "emoji and full-width letters": Form({**ONE, "output": EMOJI}, [(Q, Turn("assistant", EMOJI))]),
    "exotic breaks inside JSON strings": Form({**ONE, "output": "a\u2028b\x85c\u2029d"}, [(Q, Turn("assistant", "a\u2028b\x85c\u2029d"))]),
    "an empty system text": Form(talk({"role": "system", "content": ""}, *TALK), [(Q, A)]),
    "a blank system text": Form(talk({"role": "system", "content": " \n"}, *TALK), [(Q, A)]),
    "null fields of pandas": Form({**ONE, "input": None, "messages": None, "text": None}, [(Q, A)]),
    "empty extras": Form(talk(TALK[0], {**TALK[1], "tool_calls": [], "refusal": None, "function_call": None, "annotations": []}), [(Q, A)]),
    "an index column without a name": table(",instruction,output\n0,Who?,Me.\n"),
    "semicolons and a BOM": table("\ufeffinstruction;output\r\nWho?;Me.\r\n"),
    "quoted line breaks": table('instruction,output\nWho?,"a\nb"\n', [(Q, Turn("assistant", "a\nb"))]),
    "half a surrogate": Form('{"instruction": "Who?", "output": "\\ud83d"}', r"half a character \(a lone surrogate"),
    "NaN as a JSON value": Form('{"instruction": "Who?", "output": NaN}', "NaN is not a JSON value"),
    "messages beside prompt and prompt_id": Form(talk(*TALK, prompt="x", prompt_id="7"), [(Q, A)]),
    "a list of objects in a field beside": Form(
        "".join(json.dumps({**one, "items": [{"x": 1}]}) + "\n" for one in (ONE, TWO)), [(Q, A), (Q2, A2)]
    ),
    "such a list in front of the row's own fields": Form({"data": [{"x": 1}], **ONE}, [(Q, A)]),
    "such a list in front of them in every line": Form(
        "".join(json.dumps({"rows": [{"x": 1}], **one}) + "\n" for one in (ONE, TWO)), [(Q, A), (Q2, A2)]
    ),
    "a text of its own": Form({"text": "Once upon a time."}, ["Once upon a time."]),
}  # fmt: skip
ALL = {**WRONG_BEFORE, **READ, **STAYS}


@pytest.mark.parametrize("named", ALL)
def test_a_form_that_people_have_gives_its_rows_or_one_reason(
    named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    holds(ALL[named])


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Who?", "chosen": "Me.", "rejected": "x"},
        {"prompt": [TALK[0]], "chosen": [TALK[1]], "rejected": [TALK[1]]},
        {"prompt": "Who?", "chosen": [*TALK], "rejected": [*TALK]},
        {"chosen": "Human: Who?\n\nAssistant: Me.", "rejected": "x"},
    ],
)
def test_the_setting_that_a_refusal_of_preferences_names_reads_the_preferred_ones(
    row: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.jsonl").write_text(json.dumps(row))
    (bad,) = rows.read(Path("a.jsonl"))
    assert isinstance(bad, BadRow)
    (named,) = re.findall(r"COLUMNS = (.+) takes", bad.reason)
    (found,) = rows.read(Path("a.jsonl"), Reading(columns=_columns(named)))
    assert isinstance(found, Row) and found.messages == (Q, A)


def test_tools_of_either_name_are_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    offer = [{"name": "weather"}]
    for fields in (
        {"tools": offer}, {"tools": json.dumps(offer)}, {"tools": repr(offer)}, {"tools": [json.dumps(offer[0])]}, {"functions": offer},
        {"tools": offer, "functions": offer},
    ):  # fmt: skip
        Path("a.jsonl").write_text(json.dumps(talk(*TALK, **fields)))
        (row,) = rows.read(Path("a.jsonl"))
        assert isinstance(row, Row) and json.loads(row.tools) == [{"type": "function", "function": offer[0]}]
        assert row.unused == ()
    Path("a.jsonl").write_text(json.dumps(talk(*TALK, tools=offer, functions=[{"name": "other"}])))
    (row,) = rows.read(Path("a.jsonl"))
    assert isinstance(row, BadRow) and row.reason == "tools and functions offer different functions: leave one"
