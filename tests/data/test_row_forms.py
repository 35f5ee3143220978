"""Rows as people and tools have them: each form is read as what it can only mean, or refused once with what decides."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from training.data import BadRow, Row, Turn, dataset, parallel_reading, rows
from training.data.reading import PLAIN, Reading
from training.data.record import grouped
from training.errors import UserError
from training.settings import column_names

Q, A = Turn("user", "Who?"), Turn("assistant", "Me.")
Q2, A2 = Turn("user", "Why?"), Turn("assistant", "So.")
CALL = {"id": "abc123def", "type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
CALLED = Turn("assistant", "", more=json.dumps({"tool_calls": [CALL]}))


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def read(content: object, name: str = "a.jsonl", reading: Reading = PLAIN) -> list[Row | BadRow]:
    if not isinstance(content, (str, bytes)):
        content = json.dumps(content, ensure_ascii=False)
    Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
    return list(rows.read(Path(name), reading))


def turns(content: object, name: str = "a.jsonl", reading: Reading = PLAIN) -> tuple[Turn, ...]:
    (row,) = read(content, name, reading)
    assert isinstance(row, Row), row
    return row.messages


def reason(content: object, name: str = "a.jsonl", reading: Reading = PLAIN) -> str:
    (row,) = read(content, name, reading)
    assert isinstance(row, BadRow), row
    return row.reason


def said(content: object, **fields: object) -> dict[str, object]:
    return {"role": "user" if content in ("Who?", "Why?") else "assistant", "content": content, **fields}


# ---- what was learned wrongly ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mark",
    [{"weight": 0}, {"weight": 0.0}, {"train": False}, {"loss": False}, {"trainable": 0}, {"loss": False, "weight": 0}],
)
def test_an_answer_that_is_not_to_be_learned_stays_in_the_context(mark: dict) -> None:
    found = turns({"messages": [said("Who?"), said("Me.", **mark), said("Why?"), said("So.", weight=1)]})
    assert found == (Q, Turn("assistant", "Me.", trained=False), Q2, A2)


@pytest.mark.parametrize(
    ("marks", "told"),
    [
        ({"weight": 0.5}, "weight = 0.5: a turn is learned whole (1, true) or stays in the context (0, false)"),
        ({"weight": -1}, "weight = -1: a turn"),
        ({"train": "no"}, "train = no: a turn"),
        ({"weight": 0, "train": True}, "weight and train contradict each other"),
    ],
)
def test_a_weight_between_is_refused_with_its_turn(marks: dict, told: str) -> None:
    assert reason({"messages": [said("Who?"), said("Me.", **marks)]}).startswith(f"messages, turn 2: {told}")


def test_a_row_of_which_nothing_is_learned_is_bad() -> None:
    assert reason({"messages": [said("Who?"), said("Me.", weight=0)]}) == "no answer of it is to be learned"


def test_a_question_that_is_to_be_learned_is_said_once_for_the_file() -> None:
    (row,) = read({"messages": [said("Who?", weight=1), said("Me.", weight=1)]})
    assert row.messages == (Q, A)
    assert row.read_as == ("with questions that are to be learned: TRAIN_ON = completion learns the answers alone",)


def test_dollys_context_is_the_input() -> None:
    row = {"instruction": "Who?", "context": "I am here.", "response": "Me.", "category": "closed_qa"}
    (found,) = read(row)
    assert found.messages == (Turn("user", "Who?\n\nI am here."), A)
    assert found.unused == ("category",)
    assert turns({**row, "context": ""}) == turns({**row, "context": None}) == (Q, A)
    assert turns({"question": "Who?", "context": "I am here.", "answer": "Me."}) == found.messages
    assert "input and context both hold text: COLUMNS says" in reason({**row, "input": "x", "output": "y"})


def test_llama_factorys_history_and_system_are_the_earlier_turns() -> None:
    row = {"instruction": "Why?", "input": "", "output": "So.", "system": "S", "history": [["Who?", "Me."]]}
    expected = (Turn("system", "S"), Q, A, Q2, A2)
    assert turns(row) == expected
    assert turns({**row, "history": json.dumps(row["history"])}) == expected
    assert turns({**row, "history": [said("Who?"), said("Me.")]}) == expected
    assert turns({**row, "history": "User: Who?\nAssistant: Me."}) == expected
    assert turns({**row, "history": []}) == turns({**row, "history": None}) == (Turn("system", "S"), Q2, A2)
    assert reason({**row, "history": [["Who?"]]}) == "history, turn 1 is a list, not [question, answer]"
    (other,) = read({**row, "history": "born in 1970", "tools": "hammer, saw", "thinking": True})
    assert other.messages == (Turn("system", "S"), Q2, A2)
    assert other.unused == ("history", "tools", "thinking")


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_thoughts_are_kept_beside_their_answer(name: str) -> None:
    thought = (Q, Turn("assistant", "Me.", thoughts="Hm."))
    assert turns({"messages": [said("Who?"), said("Me.", **{name: "Hm."})]}) == thought
    assert turns({"instruction": "Who?", "output": "Me.", name: "Hm."}) == thought
    assert turns({"messages": [said("Who?"), said("Me.", **{name: None})]}) == (Q, A)


def test_thoughts_in_two_places_are_refused_unless_they_are_the_same() -> None:
    within = "<think>\nHm.\n</think>\n\nMe."
    assert turns({"messages": [said("Who?"), said(within, reasoning="Hm.")]}) == (Q, Turn("assistant", within))
    assert "and others in the answer" in reason({"messages": [said("Who?"), said(within, reasoning="Ah.")]})
    assert "different thoughts" in reason({"messages": [said("Who?"), said("Me.", reasoning="a", thinking="b")]})


@pytest.mark.parametrize("word", ["NaN", "nan", "None", "NULL", "NA", "null", " <NA> ", "#N/A"])
def test_an_answer_that_is_a_missing_value_is_bad_unless_it_is_meant(word: str) -> None:
    for content, name in (
        ({"instruction": "Who?", "output": word}, "a.jsonl"),
        (f"question,answer\nWho?,{word}\n", "a.csv"),
    ):
        assert f"the answer is {word.strip()!r}" in reason(content, name)
        assert "NULL_WORDS = keep" in reason(content, name)
        assert turns(content, name, Reading(null_words="keep")) == (Q, Turn("assistant", word))
    assert turns({"messages": [said("Who?"), said("None")]}) == (Q, Turn("assistant", "None"))


MARKUP = {
    "ChatML": "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\nMe.<|im_end|>\n",
    "Llama 3": "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|><|start_header_id|>user"
    "<|end_header_id|>\n\nWho?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nMe.<|eot_id|>",
    "Gemma": "<bos><start_of_turn>user\nWho?<end_of_turn>\n<start_of_turn>model\nMe.<end_of_turn>\n",
    "Llama 2 and Mistral": "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nWho? [/INST] Me. </s><s>[INST] Why? [/INST] So. </s>",
    "Zephyr and Phi-3": "<|system|>\nS</s>\n<|user|>\nWho?</s>\n<|assistant|>\nMe.</s>\n",
    "### Human": "### Human: Who?\n### Assistant: Me.\n### Human: Why?\n### Assistant: So.",
    "### Human on one line": "### Human: Who?### Assistant: Me.### Human: Why?### Assistant: So.",
    "Alpaca": "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nWho?\n\n### Response:\nMe.</s>",
}


@pytest.mark.parametrize("name", MARKUP)
def test_text_in_the_markup_of_a_model_is_the_conversation_that_it_is(name: str) -> None:
    text = MARKUP[name]
    expected = ((Turn("system", "S"),) if "S" in text.replace("So", "").replace("SYS", "") else ()) + (Q, A)
    (row,) = read({"text": text})
    assert row.messages == expected + ((Q2, A2) if "Why?" in text else ())
    assert row.read_as == (
        f"with text in the chat markup of {name}, read as conversations; FORMAT = text keeps it plain",
    )
    (plain,) = read({"text": text}, reading=Reading("text"))
    assert (plain.messages, plain.text) == (None, text)


@pytest.mark.parametrize(
    "text",
    ["See [INST] and [/INST].", "In ChatML <|im_start|>user begins a turn.", "### Notes\n### More", "<|user|>", "### "],
)
def test_text_about_markup_stays_text(text: str) -> None:
    assert [(row.messages, row.text) for row in read({"text": text})] == [(None, text)]


def test_an_input_under_alpacas_headings_is_part_of_the_question() -> None:
    text = "### Instruction:\nAdd\n\n### Input:\n1 2\n\n### Response:\n3"
    assert turns({"text": text}) == (Turn("user", "Add\n\n1 2"), Turn("assistant", "3"))


# ---- columns -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    ["Instruction,Output", "QUESTION,Answer", "query,response", "input,target", "问题,回答", "提问,答案", "User Input,Assistant",
     "instruction,output,,", "\ufeffquestion,answer", "sep=,\nquestion,answer", "user,assistant"],
)  # fmt: skip
def test_the_usual_names_of_columns_are_known_in_any_case_in_english_and_chinese(header: str) -> None:
    assert turns(f"{header}\nWho?,Me.{',,' * header.endswith(',,')}\n", "a.csv") == (Q, A)


def test_other_columns_stay_beside_and_how_it_was_read_is_said() -> None:
    (row,) = read("Ticket,Date,Language,Question,Answer\n7,2024,en,Who?,Me.\n", "a.csv")
    assert row.messages == (Q, A) and row.unused == ("Ticket", "Date", "Language")
    assert row.read_as == ("of the columns Question, Answer, taken as instruction, output",)
    assert turns("指令,输入,输出\n加,1 2,3\n", "a.csv") == (Turn("user", "加\n\n1 2"), Turn("assistant", "3"))
    assert turns({"System": "S", "Prompt": "用户: Who?", "Completion": "助手: Me."}) == (Turn("system", "S"), Q, A)
    assert turns({"Messages": [said("Who?"), said("Me.")]}) == (Q, A)


def test_columns_that_may_each_be_the_question_are_refused_once_with_the_setting_that_decides() -> None:
    found = read("question,prompt,answer\n" + "Who?,x,Me.\n" * 50, "a.csv")
    (told,) = grouped(found, 20)
    assert told.startswith(
        "a.csv:2: question and prompt may each be the question: COLUMNS says which, as in COLUMNS = "
    )
    assert told.endswith("; 50 such rows: lines 2, 3, 4, 5, 6 and 45 more")


def _columns(text: str) -> Reading:
    return Reading(columns=column_names.parse(text))


def test_columns_says_what_any_column_holds() -> None:
    table = "Frage,Antwort,Anweisung,question\nWho?,Me.,S,x\n"
    assert turns(table, "a.csv", _columns("instruction: Frage, output: Antwort, system: Anweisung")) == (
        Turn("system", "S"),
        Q,
        A,
    )
    assert turns("question,answer,Rolle\nWho?,Me.,S\n", "a.csv", _columns("system: Rolle")) == (
        Turn("system", "S"),
        Q,
        A,
    )
    assert turns({"dialog_1": [said("Who?"), said("Me.")]}, reading=_columns("messages: dialog_1")) == (Q, A)
    missing = reason("frage,Antwort\nWho?,Me.\n", "a.csv", _columns("instruction: Frage, output: Antwort"))
    assert missing == "COLUMNS names 'Frage', which is not there (fields found: frage, Antwort); 'frage' is there"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("instruction", "'instruction': expected field: column"),
        ("instruction: ", "'instruction:': expected field: column"),
        ("instructoin: Frage", "instructoin is not a field; .* did you mean instruction"),
        ("output: a, output: b", "output is named twice"),
        ('"output: a', "a quotation mark has no partner"),
    ],
)
def test_a_wrong_columns_setting_is_told_with_what_would_do(text: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        column_names.parse(text)


def test_a_column_whose_name_holds_a_comma_stands_in_quotes() -> None:
    assert column_names.parse('"instruction: Frage, kurz", output: Antwort') == {
        "instruction": "Frage, kurz",
        "output": "Antwort",
    }


# ---- tables ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('prompt,completion\na, "b, c"\nd, "e, f"\n', [("a", "b, c"), ("d", "e, f")]),
        ("instruction|output\na|b, c\n", [("a", "b, c")]),
        ("instruction,output,,\na,b,,\n", [("a", "b")]),
        ("instruction,output\na,b,,\n", [("a", "b")]),
        ("instruction,output\n,\na,b\n,\n\n,,\nc,d\n", [("a", "b"), ("c", "d")]),
        (",instruction,output\n0,a,b\n", [("a", "b")]),
        ("prompt,completion\na, b\n", [("a", " b")]),
    ],
)
def test_tables_as_programs_write_them_are_read(content: str, expected: list[tuple[str, str]]) -> None:
    found = read(content, "a.csv")
    assert [tuple(turn.content for turn in row.messages) for row in found] == expected


def test_empty_rows_are_left_out_and_said() -> None:
    (row,) = read("instruction,output\n,\n,,\na,b\n", "a.csv")
    assert row.line == 4 and row.read_as == ("behind an empty row, which is left out",)


def test_a_value_without_a_column_is_a_bad_row_and_a_backslash_before_a_quotation_mark_is_named() -> None:
    assert reason("instruction,output,\na,b,c\n", "a.csv") == "3 in the row, 2 fields in the header"
    assert reason("instruction,,output\na,x,b\n", "a.csv") == "holds a value in a column without a name"
    bad, good = read('instruction,output\na,"He said \\"hi\\""\nb,c\n', "a.csv")
    assert 'is written twice in CSV ("") and not with a backslash' in bad.reason and isinstance(good, Row)


# ---- JSON --------------------------------------------------------------------------------------------------------

ONE, TWO = {"instruction": "Who?", "output": "Me."}, {"instruction": "Why?", "output": "So."}
BOTH = f"{json.dumps(ONE)}\n{json.dumps(TWO)}\n"


@pytest.mark.parametrize(
    "content",
    [
        {"data": [ONE, TWO]},
        {"version": "1.0", "n": 2, "train": [ONE, TWO]},
        json.dumps({"examples": [ONE, TWO], "info": {"by": "me"}}, indent=2),
        {"instruction": ["Who?", "Why?"], "output": ["Me.", "So."]},
        json.dumps({"instruction": ["Who?", "Why?"], "output": ["Me.", "So."]}, indent=1),
        {"instruction": {"0": "Who?", "1": "Why?"}, "output": {"0": "Me.", "1": "So."}},
        {"Question": ["Who?", "Why?"], "Answer": ["Me.", "So."]},
        json.dumps(ONE, indent=2) + "\n" + json.dumps(TWO, indent=2),
        json.dumps(ONE, indent=2) + ",\n" + json.dumps(TWO, indent=2) + ",\n",
        json.dumps(ONE) + json.dumps(TWO),
        json.dumps(ONE) + " , " + json.dumps(TWO) + "\n",
        json.dumps(ONE) + ",\n" + json.dumps(TWO) + ",\n",
        f"[{json.dumps(ONE)},\n{json.dumps(TWO)},\n]",
        json.dumps(ONE) + "\r" + json.dumps(TWO) + "\r",
        json.dumps([said("Who?"), said("Me.")]) + "\n" + json.dumps([said("Why?"), said("So.")]) + "\n",
        [[said("Who?"), said("Me.")], [said("Why?"), said("So.")]],
    ],
)
def test_json_in_any_shape_gives_the_same_rows(content: object) -> None:
    for name in ("a.json", "a.jsonl"):
        assert [row.messages for row in read(content, name)] == [(Q, A), (Q2, A2)]


def test_one_list_of_messages_is_one_row() -> None:
    assert turns([said("Who?"), said("Me.")], "a.json") == (Q, A)
    assert turns(json.dumps([said("Who?"), said("Me.")], indent=2), "a.json") == (Q, A)


def test_an_object_with_two_lists_of_rows_is_refused() -> None:
    *_, last = read({"train": [ONE], "test": [TWO]}, "a.json")
    assert last.fatal and "several lists of rows, train, test: write each into a file of its own" in last.reason


def test_columns_of_different_lengths_are_refused() -> None:
    told = reason({"instruction": ["a", "b"], "output": ["x"]}, "a.json")
    assert told == "holds columns of different lengths: instruction 2, output 1"


def test_an_object_that_is_not_closed_is_named() -> None:
    *_, last = read(json.dumps(ONE, indent=2) + '\n{\n "instruction": "a"', "a.json")
    assert str(last) == "a.json:5: not JSON: the object is not closed: } is missing"


@pytest.mark.parametrize("written", [json.dumps, repr])
def test_turns_inside_of_a_text_are_read(written: Any) -> None:
    content = io.StringIO()
    csv.writer(content).writerows([["messages"], [written([said("Who?"), said("Me.")])]])
    assert turns(content.getvalue(), "a.csv") == (Q, A)


def test_parts_of_text_are_joined_and_pictures_refused() -> None:
    part = {"type": "text", "text": "Who?"}
    assert turns({"messages": [{"role": "user", "content": [part]}, said("Me.")]}) == (Q, A)
    (row,) = read({"messages": [{"role": "user", "content": [part, part]}, said("Me.")]})
    assert row.messages[0].content == "Who?Who?" and row.read_as == ("with texts in parts, joined as they are",)
    picture = {"type": "image_url", "image_url": {"url": "x"}}
    told = reason({"messages": [{"role": "user", "content": [part, picture]}, said("Me.")]})
    assert told == "messages, turn 1: content, part 2 is of the kind 'image_url': pictures and the like are not trained"


def test_of_trls_prompt_and_completion_the_completion_is_learned() -> None:
    row = {"prompt": [said("Who?"), said("Me."), said("Why?")], "completion": [said("So.")]}
    assert turns(row) == (Q, Turn("assistant", "Me.", trained=False), Q2, A2)
    assert [turn.content for turn in turns({**row, "completion": "So."})] == ["Who?", "Me.", "Why?", "So."]


# ---- turns -------------------------------------------------------------------------------------------------------


def _talk(*talk: tuple[str, str]) -> dict:
    return {"messages": [{"role": role, "content": content} for role, content in talk]}


def test_roles_in_capitals_and_developer_are_known() -> None:
    assert turns(_talk(("Developer", "S"), ("User", "Who?"), ("ASSISTANT", "Me."))) == (Turn("system", "S"), Q, A)


def test_neighbouring_turns_of_one_speaker_are_for_join_turns_to_decide() -> None:
    row = _talk(("user", "Who?"), ("user", "You."), ("assistant", "Me."), ("assistant", "Yes."))
    assert "JOIN_TURNS = true makes one turn of them, false keeps them apart" in reason(row)
    (joined,) = read(row, reading=Reading(join_turns=True))
    assert joined.messages == (Turn("user", "Who?\n\nYou."), Turn("assistant", "Me.\n\nYes."))
    assert joined.read_as == ("with neighbouring turns of one speaker, joined into one (JOIN_TURNS = true)",)
    assert [turn.content for turn in turns(row, reading=Reading(join_turns=False))] == ["Who?", "You.", "Me.", "Yes."]
    row["messages"][3]["weight"] = 0
    assert "of which one is learned and the other is not" in reason(row, reading=Reading(join_turns=True))


def test_what_comes_after_the_last_answer_is_left_out_and_counted() -> None:
    (row,) = read(_talk(("user", "Who?"), ("assistant", "Me."), ("user", "Why?")))
    assert row.messages == (Q, A)
    assert row.read_as == ("that end without an answer: what comes after the last one is left out",)
    assert reason(_talk(("user", "Who?"))) == "the last turn is the user's: the answer is missing"


def test_a_greeting_stays_in_the_context_and_such_rows_are_not_one_prompt() -> None:
    talk = [("assistant", "Hello!"), ("user", "Who?"), ("assistant", "Me.")]
    (row,) = read(_talk(*talk))
    assert row.messages == (Turn("assistant", "Hello!", trained=False), Q, A)
    from training.data import oddities

    other = read(_talk(talk[0], ("user", "Why?"), talk[2]))[0]
    assert oddities.numbers(row)[2] != oddities.numbers(other)[2]


def test_a_system_text_may_stand_anywhere() -> None:
    talk = (
        ("system", "S"),
        ("user", "Who?"),
        ("assistant", "Me."),
        ("system", "T"),
        ("user", "Why?"),
        ("assistant", "So."),
    )
    assert turns(_talk(*talk)) == (Turn("system", "S"), Q, A, Turn("system", "T"), Q2, A2)


# ---- tools -------------------------------------------------------------------------------------------------------

OFFER = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
ANSWERED = (Q, CALLED, Turn("tool", "rain", more=json.dumps({"tool_call_id": "abc123def"})), A)


def test_tool_calls_in_openais_form_are_read_with_arguments_as_text_or_object() -> None:
    for arguments in ({"city": "Oslo"}, '{"city": "Oslo"}'):
        call = {**CALL, "function": {"name": "weather", "arguments": arguments}}
        messages = [said("Who?"), {"role": "assistant", "content": None, "tool_calls": [call]},
                    {"role": "tool", "content": "rain", "tool_call_id": "abc123def"}, said("Me.")]  # fmt: skip
        (row,) = read({"messages": messages, "tools": OFFER})
        assert row.messages == ANSWERED and json.loads(row.tools) == OFFER
        (from_text,) = read({"messages": json.dumps(messages), "tools": json.dumps(OFFER)})
        assert (from_text.messages, from_text.tools) == (row.messages, row.tools)


@pytest.mark.parametrize(
    ("given", "text"), [({"sky": "grey"}, '{"sky": "grey"}'), ([1, 2], "[1, 2]"), (None, ""), ("", "")]
)
def test_what_a_tool_gives_may_be_any_json(given: object, text: str) -> None:
    messages = [
        said("Who?"),
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": given},
    ]
    found = turns({"messages": [*messages, said("Me.")]})
    assert found == (Q, CALLED, Turn("tool", text), A)


def test_anthropics_and_sharegpts_calls_become_openais() -> None:
    use = {"type": "tool_use", "id": "abc123def", "name": "weather", "input": {"city": "Oslo"}}
    result = {"type": "tool_result", "tool_use_id": "abc123def", "content": [{"type": "text", "text": "rain"}]}
    anthropic = [
        said("Who?"),
        {"role": "assistant", "content": [use]},
        {"role": "user", "content": [result]},
        said("Me."),
    ]
    offer = [{"name": "weather", "input_schema": {"type": "object"}}]
    (row,) = read({"messages": anthropic, "tools": offer})
    assert row.messages == ANSWERED and json.loads(row.tools) == OFFER
    call = json.dumps({"name": "weather", "arguments": {"city": "Oslo"}})
    pairs = [("human", "Who?"), ("function_call", call), ("observation", "rain"), ("gpt", "Me.")]
    found = turns(
        {"conversations": [{"from": name, "value": value} for name, value in pairs], "tools": json.dumps(OFFER)}
    )
    (made,) = json.loads(found[1].more)["tool_calls"]
    assert made["function"] == CALL["function"] and len(made["id"]) == 9
    assert [turn.role for turn in found] == ["user", "assistant", "tool", "assistant"]


@pytest.mark.parametrize(
    ("call", "told"),
    [
        ({"function": {"name": "f", "arguments": "{"}}, "the arguments of f are a text that is not JSON"),
        ({"function": {"name": "f", "arguments": [1]}}, "the arguments of f are a list, not an object"),
        ({"function": {}}, "not a call with the name of a function and its arguments"),
    ],
)
def test_a_call_that_is_none_is_refused_with_its_place(call: dict, told: str) -> None:
    found = reason({"messages": [said("Who?"), {"role": "assistant", "content": "", "tool_calls": [call]}]})
    assert found.startswith("messages, turn 2: call 1") and told in found


def test_a_result_without_a_call_is_refused() -> None:
    assert "a tool's result comes after user" in reason(_talk(("user", "Who?"), ("tool", "rain"), ("assistant", "Me.")))


# ---- files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["gbk", "gb18030", "big5", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_encoding_reads_what_it_names(encoding: str, name: str) -> None:
    texts = "问题,回答\n今天天气,不知道\n" if encoding != "big5" else "問題,回答\n今天天氣,不知道\n"
    _, asked, answer = texts.replace("\n", ",").split(",")[1:4]
    if name == "a.jsonl":
        texts = json.dumps({"prompt": asked, "completion": answer}, ensure_ascii=False)
    columns = {} if name == "a.jsonl" or encoding != "big5" else column_names.parse("instruction: 問題, output: 回答")
    found = turns(texts.encode(encoding), name, Reading(encoding=encoding, columns=columns or None))
    assert [turn.content for turn in found] == [asked, answer]
    packed = gzip.compress(texts.encode(encoding))
    assert turns(packed, f"{name}.gz", Reading(encoding=encoding, columns=columns or None)) == found


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_a_mark_in_front_of_the_file_says_its_encoding(encoding: str) -> None:
    assert turns("instruction\toutput\nWho?\tMe.\n".encode(encoding), "a.tsv") == (Q, A)
    assert turns("instruction\toutput\nWho?\tMe.\n".encode(encoding), "a.tsv", Reading(encoding="gbk")) == (Q, A)


def test_a_packed_file_that_is_damaged_is_told_whatever_its_encoding() -> None:
    packed = gzip.compress("今天天气怎么样，我不知道。\n".encode("gbk") * 5000)[:-20]
    *_, last = read(packed, "a.txt.gz", Reading(encoding="gbk"))
    assert last.fatal and last.reason.startswith("the gzip file is damaged or cut short here")


def test_what_is_not_in_the_encoding_named_is_refused() -> None:
    with pytest.raises(UserError, match="a.txt: is not in gbk .*ENCODING = auto names the likely encoding"):
        read(b"ok\n\x80\xff\xff\n", "a.txt", Reading(encoding="gbk"))
    with pytest.raises(
        UserError, match="a.txt: is UTF-8, and would be garbled by ENCODING = gbk: ENCODING = auto reads it"
    ):
        read("今天天气怎么样，我不知道。\n", "a.txt", Reading(encoding="gbk"))


def test_parquet_is_read_by_its_content_whatever_its_name() -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(
        pa.Table.from_pylist([{"messages": [said("Who?"), said("Me.")]}, ONE | {"messages": None}]), "a.parquet"
    )
    found = list(rows.read(Path("a.parquet")))
    assert [row.messages for row in found if isinstance(row, Row)] == [(Q, A)]
    assert [row.line for row in found] == [-1, -2]
    pq.write_table(pa.Table.from_pylist([ONE, TWO]), "rows")
    assert [row.messages for row in rows.read(Path("rows"))] == [(Q, A), (Q2, A2)]
    whole = Path("a.parquet").read_bytes()
    Path("a.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="a.parquet: is no whole Parquet file, behind row 0"):
        list(rows.read(Path("a.parquet")))


def test_what_arrow_fills_up_with_nulls_is_not_there() -> None:
    other = {"id": "xyz123abc", "type": "function", "function": {"name": "time", "arguments": {"zone": "UTC"}}}
    offer = [*OFFER, {"type": "function", "function": {"name": "time", "parameters": {"required": ["zone"]}}}]
    talks = [
        {"messages": [said("Who?"), {"role": "assistant", "content": "", "tool_calls": [call]}], "tools": offer}
        for call in (CALL, other)
    ]
    Path("a.parquet").write_bytes(_parquet(talks))
    found = list(rows.read(Path("a.parquet")))
    assert [json.loads(row.messages[1].more)["tool_calls"] for row in found] == [[CALL], [other]]
    assert all(json.loads(row.tools) == offer for row in found)


def test_an_excel_file_is_read_row_by_row() -> None:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for values in (["Question", "Answer", None], ["Who?", "Me.", None], [None, None, None], ["2+2", 4, None]):
        book.active.append(values)
    book.save("a.xlsx")
    found = list(rows.read(Path("a.xlsx")))
    assert [row.messages for row in found] == [(Q, A), (Turn("user", "2+2"), Turn("assistant", "4"))]
    assert [row.line for row in found] == [-2, -4]
    book.create_sheet("more").append(["Question", "Answer"])
    book.save("a.xlsx")
    with pytest.raises(UserError, match="holds several sheets .*, more.: save the one to learn as a file of its own"):
        list(rows.read(Path("a.xlsx")))


def test_zstd_is_unpacked_and_its_damage_named() -> None:
    import pyarrow as pa

    packed = pa.Codec("zstd").compress(BOTH.encode() * 5000, asbytes=True)
    found = read(packed, "a.jsonl.zst")
    assert len(found) == 10_000 and found[-1].messages == (Q2, A2)
    *_, last = read(packed[:-20], "a.jsonl.zst")
    assert last.fatal and last.reason.startswith("the zstd file is damaged or cut short here (")


@pytest.mark.parametrize(
    "content", [BOTH, f"[{json.dumps(ONE)}, {json.dumps(TWO)}]", "instruction,output\nWho?,Me.\nWhy?,So.\n"]
)
def test_a_file_without_an_ending_is_told_by_its_contents(content: str) -> None:
    assert [row.messages for row in read(content, "rows")] == [(Q, A), (Q2, A2)]


def test_a_file_whose_kind_nothing_tells_is_refused() -> None:
    with pytest.raises(
        UserError, match="rows: unknown kind of file '', and its content does not tell; known are .jsonl"
    ):
        read("some words, and more\nof them\n", "rows")


# ---- the rule as a whole -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_wrong_kind_in_10_000_rows_gives_at_most_a_screen_of_text() -> None:
    wrong = [
        {"messages": [said("Who?"), said("Me.", weight=0.3 + number / 1e5)]}
        if number % 3
        else {"frage": "a", f"k{number}": 1}
        for number in range(10_000)
    ]
    found = read("".join(json.dumps(one) + "\n" for one in wrong))
    told = str(dataset.bad_rows_error([row for row in found if isinstance(row, BadRow)]))
    assert told.count("\n") < 24 and len(told) < 6000


def test_rows_come_back_from_the_disk_as_they_were_read() -> None:
    content = [
        {"messages": [said("Who?"), said("Me.", weight=0), said("Why?"), said("So.", reasoning="Hm.")], "tools": OFFER},
        {"messages": [said("Who?"), {"role": "assistant", "content": "", "tool_calls": [CALL]}]},
        {"text": "plain"},
        ONE,
    ]
    found = read("".join(json.dumps(one) + "\n" for one in content))
    (part,) = parallel_reading.parts(Path("a.jsonl"), PLAIN)
    assert [parallel_reading.row_of(record) for record in part.batch.to_pylist()] == found


WORDS = st.text("abcdefghij 你好。?\n\"',;|", min_size=1, max_size=20).map(str.strip).filter(lambda text: len(text) > 3)
TALKS = st.lists(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=3), min_size=2, max_size=4)


def _csv(table: list[list[str]], **how: Any) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n", **how).writerows(table)
    return out.getvalue()


def _messages(talk: list[tuple[str, str]]) -> list[dict]:
    return [
        {"role": role, "content": text} for pair in talk for role, text in zip(("user", "assistant"), pair, strict=True)
    ]


def _marked(chat: list[dict]) -> str:
    return "".join(f"<|im_start|>{one['role']}\n{one['content']}<|im_end|>\n" for one in chat)


def _parquet(records: list[dict]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(records), out)
    return out.getvalue()


def _xlsx(table: list[list[str]]) -> bytes:
    openpyxl = pytest.importorskip("openpyxl")
    book, out = openpyxl.Workbook(), io.BytesIO()
    for cells in table:
        book.active.append(cells)
    book.save(out)
    return out.getvalue()


def _zstd(text: str) -> bytes:
    import pyarrow as pa

    packed: bytes = pa.Codec("zstd").compress(text.encode(), asbytes=True)
    return packed


def _called(asked: str, city: str, result: str, answer: str) -> dict[str, dict[str, object]]:
    """The same conversation with a call in the forms of those who write such: OpenAI's, its older one, Anthropic's, ShareGPT's."""
    arguments, called = {"city": city}, json.dumps({"name": "weather", "arguments": {"city": city}})
    question, told = {"role": "user", "content": asked}, {"role": "assistant", "content": answer}
    function = {"name": "weather", "arguments": json.dumps(arguments)}
    use = {"type": "tool_use", "id": "abc123def", "name": "weather", "input": arguments}
    given = {"type": "tool_result", "tool_use_id": "abc123def", "content": result}
    openai = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "abc123def", "type": "function", "function": function}],
    }
    share = [("human", asked), ("function_call", called), ("observation", result), ("gpt", answer)]
    hermes = [
        ("human", asked),
        ("gpt", f"<tool_call>{called}</tool_call>"),
        ("tool", f"<tool_response>{result}</tool_response>"),
        ("gpt", answer),
    ]
    return {
        "OpenAI": {"messages": [question, openai, {"role": "tool", "content": result, "tool_call_id": "abc123def"}, told]},
        "older": {"messages": [question, {"role": "assistant", "function_call": function}, {"role": "function", "content": result}, told]},
        "Anthropic": {"messages": [question, {"role": "assistant", "content": [use]}, {"role": "user", "content": [given]}, told]},
        "ShareGPT": {"conversations": [{"from": who, "value": text} for who, text in share]},
        "Hermes": {"conversations": [{"from": who, "value": text} for who, text in hermes]},
    }  # fmt: skip


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(WORDS, WORDS, WORDS, WORDS)
def test_a_call_in_any_form_is_the_same_call(asked: str, city: str, result: str, answer: str) -> None:
    for form, row in _called(asked, city, result, answer).items():
        (found,) = read(json.dumps(row))
        assert isinstance(found, Row) and found.messages, (form, found)
        assert [turn.role for turn in found.messages] == ["user", "assistant", "tool", "assistant"], form
        assert [turn.content for turn in found.messages] == [asked, "", result, answer], form
        (call,) = json.loads(found.messages[1].more)["tool_calls"]
        assert call["function"] == {"name": "weather", "arguments": {"city": city}}, form


def _written(talks: list[list[tuple[str, str]]]) -> dict[tuple[str, str], object]:
    """The same conversations in many forms: (name, what it is) -> content."""
    chats = [_messages(talk) for talk in talks]
    share = [
        [{"from": {"user": "Human", "assistant": "gpt"}[m["role"]], "value": m["content"]} for m in chat]
        for chat in chats
    ]
    history = [{"instruction": t[-1][0], "output": t[-1][1], "history": [list(one) for one in t[:-1]]} for t in talks]
    lines = "\n".join(json.dumps({"messages": chat}, ensure_ascii=False) for chat in chats)
    return {
        ("a.jsonl", "messages"): lines,
        ("a.jsonl", "commas"): lines.replace("\n", ",\n") + ",",
        ("a.json", "glued"): lines.replace("\n", ""),
        ("a.json", "list"): [{"messages": chat} for chat in chats],
        ("a.json", "wrapped"): {"version": 1, "rows": [{"conversations": chat} for chat in share]},
        ("a.json", "pretty"): "\n".join(json.dumps({"messages": chat}, indent=1) for chat in chats),
        ("a.json", "bare"): chats,
        ("a.jsonl", "history"): "\n".join(json.dumps(one) for one in history),
        ("a.jsonl", "speakers"): "\n".join(
            json.dumps({"dialog": [{"speaker": one["role"].title(), "text": one["content"]} for one in chat]})
            for chat in chats
        ),
        ("a.jsonl", "ChatML"): "\n".join(json.dumps({"text": _marked(chat)}) for chat in chats),
        ("a.jsonl", "prompts in ChatML"): "\n".join(
            json.dumps(
                {
                    "prompt": _marked(chat[:-1]) + "<|im_start|>assistant\n",
                    "completion": chat[-1]["content"] + "<|im_end|>",
                }
            )
            for chat in chats
        ),
        ("a.parquet", "messages"): _parquet([{"messages": chat} for chat in chats]),
        ("a.csv", "in cells"): _csv([["Messages"], *([json.dumps(chat)] for chat in chats)]),
        ("a.csv", "semicolons"): _csv([["Conversation", "id"], *([repr(chat), "1"] for chat in chats)], delimiter=";"),
    }


@pytest.mark.slow
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TALKS)
def test_any_form_of_the_same_conversations_reads_back_to_them(talks: list[list[tuple[str, str]]]) -> None:
    expected = [[(one["role"], one["content"]) for one in _messages(talk)] for talk in talks]
    for (name, what), content in _written(talks).items():
        found = read(content, name)
        assert all(isinstance(row, Row) for row in found), (what, found)
        assert [[(turn.role, turn.content) for turn in row.messages] for row in found] == expected, what
    pairs = [[pair] for talk in talks for pair in talk]
    single = [[pair[0][0], pair[0][1]] for pair in pairs]
    for table, name in (
        (_csv([["Question", "Answer"], *single]), "a.csv"),
        (_csv([["问题", "回答"], *single], delimiter="\t").encode("utf-16"), "a.tsv"),
        (_csv([["prompt", "response"], *single], delimiter="|"), "a.csv"),
        (_csv([["instruction", "output"], *single], delimiter=";"), "a.tsv"),
        (_xlsx([["Query", "Reply"], *single]), "a.xlsx"),
        (_zstd("".join(json.dumps({"input": one, "response": two}) + "\n" for one, two in single)), "a.jsonl.zst"),
        ({"prompt": [one for one, _ in single], "completion": [one for _, one in single]}, "a.json"),
    ):
        assert [[turn.content for turn in row.messages] for row in read(table, name)] == single


# ---- what would be lost beside what a row is read by -------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "correct"),
    [
        ("question,A,B,C,D,correct", "the answer's column"),
        ("Question,a,b,answer", "answer"),
        ("q,a,b", "the answer's column"),
    ],
)
def test_the_first_choice_is_not_taken_for_the_answer(columns: str, correct: str) -> None:
    names = columns.split(",")
    told = reason(f"{columns}\n{','.join('x' * len(names))}\n", "a.csv")
    assert f"{names[1]} and {names[2]} look like the choices of a question" in told
    assert f"COLUMNS = instruction: {names[0]}, output: {correct}" in told


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"question": "Who?", "answer": "Me.", "choices": ["Me.", "You."]}, "choices holds the choices .* COLUMNS = instruction: question, output: answer goes on"),
        ({"instruction": "Who?", "output": "Me.", "options": {"A": "Me."}}, "options holds the choices"),
        ({"text": "A passage.", "question": "Who?", "answer": "Me."}, "text, question and answer all hold text: COLUMNS = instruction: question, input: text, output: answer .*FORMAT = text learns"),
        ({"text": "A passage of Me.", "Query": "Who?", "Reply": "Me."}, "text, Query and Reply all"),
        ({"instruction": "Who?", "text": "A passage of Me.", "output": "Me."}, "text holds text beside instruction and output.*COLUMNS = instruction: instruction, input: text, output: output takes"),
        ({"prompt": "Who?", "input": "A passage.", "completion": "Me."}, "input holds text beside prompt and completion.*COLUMNS = instruction: prompt, input: input, output: completion takes it"),
        ({"prompt": "Who?", "input": "A passage.", "output": "Me."}, "prompt holds text beside input and output.*COLUMNS = instruction: prompt, input: input, output: output takes it"),
        ({"messages": [said("Who?"), said("Me.")], "context": "A passage."}, "context stands beside messages, .*FORMAT = messages goes on without it"),
        ({"messages": [said("Who?"), said("Me.")], "history": [["a", "b"]]}, "history stands beside messages"),
    ],
)  # fmt: skip
def test_what_belongs_to_a_row_is_not_lost_with_a_warning(row: dict, told: str) -> None:
    assert re.search(told, reason(row)), reason(row)


@pytest.mark.parametrize(
    "more",
    [
        {"text": "Below is a task. Who? Response: Me."},
        {"text": " "},
        {"text": None},
        {"choices": []},
        {"prompt": "Who?"},
    ],
)
def test_what_says_nothing_new_is_left_out_as_before(more: dict) -> None:
    assert turns({"instruction": "Who?", "output": "Me.", **more}) == (Q, A)


@pytest.mark.parametrize(
    ("row", "reading"),
    [
        ({"instruction": "Who?", "text": "A passage.", "output": "Me."}, Reading("alpaca")),
        ({"question": "Who?", "choices": ["a"], "answer": "Me."},
         Reading(columns=column_names.parse("instruction: question, output: answer"))),
        ({"question": "Who?", "A": "x", "B": "y", "answer": "Me."},
         Reading(columns=column_names.parse("instruction: question, output: answer"))),
        ({"messages": [said("Who?"), said("Me.")], "context": "A passage."}, Reading("messages")),
    ],
)  # fmt: skip
def test_who_says_how_rows_are_read_has_decided(row: dict, reading: Reading) -> None:
    assert turns(row, reading=reading) == (Q, A)


# ---- offers, calls and thoughts in other places ------------------------------------------------------------------

WEATHER = {"name": "weather", "description": "d", "parameters": {"type": "object", "properties": {}}}


@pytest.mark.parametrize("offer", [WEATHER, json.dumps(WEATHER), {"type": "function", "function": WEATHER}])
def test_one_function_that_is_offered_without_a_list_is_offered(offer: object) -> None:
    (row,) = read({"messages": [said("Who?"), said("Me.")], "tools": offer})
    assert json.loads(row.tools) == [{"type": "function", "function": WEATHER}]


@pytest.mark.parametrize("is_text", [True, False])
def test_an_answer_that_is_a_list_of_calls_beside_offers_is_calls(is_text: bool) -> None:
    calls = [{"name": "weather", "arguments": {"city": "Oslo"}}, {"name": "weather", "arguments": {"city": "Rome"}}]
    row = {"id": 1, "query": "Who?", "answers": json.dumps(calls) if is_text else calls, "tools": json.dumps([WEATHER])}
    (found,) = read(row)
    assert isinstance(found, Row) and found.messages and found.messages[0] == Q and found.messages[1].content == ""
    made = json.loads(found.messages[1].more)["tool_calls"]
    assert [one["function"] for one in made] == calls and "taken as calls" in " ".join(found.read_as)


def test_a_list_of_objects_without_offers_is_the_answers_text() -> None:
    text = json.dumps([{"name": "weather", "arguments": {}}])
    assert turns({"query": "Who?", "answers": text}) == (Q, Turn("assistant", text))


def test_a_call_and_what_is_said_after_it_are_not_joined() -> None:
    called = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    told = reason({"messages": [said("Who?"), called, said("Me.")]}, reading=Reading(join_turns=True))
    assert told.startswith("an answer that calls tools and the next one, which says something, are not one")
    before = turns({"messages": [said("Who?"), said("Me."), called]}, reading=Reading(join_turns=True))
    assert before == (Q, Turn("assistant", "Me.", more=CALLED.more))


def test_thoughts_in_parts_are_refused_beside_others_as_in_fields() -> None:
    parts = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "Me."}]
    told = reason({"messages": [said("Who?"), said(parts, reasoning_content="so")]})
    assert told == "messages, turn 2 holds thoughts in a field, and others in its parts: leave one"
    parts = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "<think>\nso\n</think>\nMe."}]
    assert "and others in the answer: leave one" in reason({"messages": [said("Who?"), said(parts)]})
    parts = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "Me."}]
    same = turns({"messages": [said("Who?"), said(parts, reasoning_content="hm")]})
    assert same == (Q, Turn("assistant", "Me.", thoughts="hm"))
