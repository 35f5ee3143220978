"""Reading data files row by row: every format, every kind of badness with its exact message, and a fuzz."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import string
import subprocess
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from training.data import BadRow, Row, Turn, columns, json_shapes, pairs, raw_lines, rows, text_encoding, values
from training.data.reading import Reading
from training.errors import UserError
from training.settings import prompt_template, table

CONTAINED = "not text; unpack it or save it as JSON lines or CSV (gzip is read as it is)"
# (file name, content, the exact message for its first bad row)
WRONG = [
    (
        "a.jsonl",
        b'{"prompt": "a", "completion": "b"}\n{"prompt": "a" "completion": "b"}\n',
        "a.jsonl:2: not JSON: Expecting ',' delimiter (column 16)",
    ),
    (
        "a.jsonl",
        b"{'prompt': 'a', 'completion': 'b'}\n",
        "a.jsonl:1: not JSON: Expecting property name enclosed in double quotes (column 2); JSON takes double quotes",
    ),
    (
        "a.jsonl",
        b'{\n"prompt": "a"}\n',
        f"a.jsonl:1: no known fields (found: prompt); what would do: {rows.WOULD_DO}",
    ),
    (
        "a.jsonl",
        b'{"text": "a"}\n{\n"prompt": "a"}\n',
        "a.jsonl:2: not JSON: Expecting property name enclosed in double quotes (column 2); rows are whole objects, one a line, or a list of them in [ ]",
    ),
    ("a.jsonl", b"hello\n", "a.jsonl:1: not JSON: Expecting value (column 1)"),
    (
        "a.jsonl",
        '{"prompt": "你好", "completion": "b"}\n'.encode("gbk"),
        "a.jsonl:1: not UTF-8 (byte 0xc4), so none of the file is read; most likely it is GB18030 (GBK: Chinese Windows and Excel): ENCODING = gb18030 reads it so, and this makes a file of UTF-8: iconv -f GB18030 -t UTF-8 a.jsonl > a.utf8.jsonl",
    ),
    (
        "a.jsonl",
        b'{"prompt": "caf\xe9", "completion": "b"}\n',
        "a.jsonl:1: not UTF-8 (byte 0xe9), so none of the file is read; most likely it is CP1252 (Western Windows and Excel): ENCODING = cp1252 reads it so, and this makes a file of UTF-8: iconv -f CP1252 -t UTF-8 a.jsonl > a.utf8.jsonl",
    ),
    (
        "a.jsonl",
        b'{"text": "a"}\n["a"]\n',
        'a.jsonl:2: is a list, not an object like {"prompt": ..., "completion": ...}',
    ),
    ("a.jsonl", b"4\n", 'a.jsonl:1: is a number (4), not an object like {"prompt": ..., "completion": ...}'),
    ("a.jsonl", b"null\n", 'a.jsonl:1: is null, not an object like {"prompt": ..., "completion": ...}'),
    ("a.jsonl", b'"hi"\n', 'a.jsonl:1: is text, not an object like {"prompt": ..., "completion": ...}'),
    ("a.jsonl", b"{}\n", f"a.jsonl:1: no known fields (found: none); what would do: {rows.WOULD_DO}"),
    ("a.jsonl", b'{"prompt": "a"}\n', f"a.jsonl:1: no known fields (found: prompt); what would do: {rows.WOULD_DO}"),
    (
        "a.jsonl",
        b'{"prompt": "2+2", "completion": 4}\n',
        "a.jsonl:1: completion is a number (4), not text; write it in quotes",
    ),
    ("a.jsonl", b'{"prompt": "2+2", "completion": true}\n', "a.jsonl:1: completion is true, not text"),
    ("a.jsonl", b'{"prompt": "2+2", "completion": ["4"]}\n', "a.jsonl:1: completion is a list, not text"),
    ("a.jsonl", b'{"text": {"a": 1}}\n', "a.jsonl:1: text is an object, not text"),
    (
        "a.jsonl",
        b'{"instruction": "a", "output": null}\n',
        "a.jsonl:1: output is null, not text (fields found: instruction, output)",
    ),
    ("a.jsonl", b'{"messages": null}\n', "a.jsonl:1: messages is null, not a list (fields found: messages)"),
    (
        "a.jsonl",
        b'{"instruction": "a", "input": 1.5, "output": "b"}\n',
        "a.jsonl:1: input is a number (1.5), not text; write it in quotes",
    ),
    ("a.jsonl", b'{"instruction": "a", "output": ""}\n', "a.jsonl:1: the answer is empty: output holds no text"),
    ("a.jsonl", b'{"prompt": "a", "completion": " \\n"}\n', "a.jsonl:1: the answer is empty: completion holds no text"),
    (
        "a.jsonl",
        '{"prompt": "用户: a", "completion": "助手: "}\n'.encode(),
        "a.jsonl:1: the answer is empty: completion holds no text",
    ),
    ("a.jsonl", b'{"prompt": " ", "completion": "b"}\n', "a.jsonl:1: prompt is empty"),
    ("a.jsonl", b'{"text": ""}\n', "a.jsonl:1: text is empty"),
    (
        "a.jsonl",
        b'{"prompt": "a", "prompt": "b", "completion": "c"}\n',
        "a.jsonl:1: the key 'prompt' stands twice in one object",
    ),
    (
        "a.jsonl",
        b'{"messages": [{"role": "user", "role": "user", "content": "a"}]}\n',
        "a.jsonl:1: the key 'role' stands twice in one object",
    ),
    ("a.jsonl", b'{"text": NaN}\n', "a.jsonl:1: not JSON: NaN is not a JSON value"),
    ("a.jsonl", b'{"text": "a\\u0000b"}\n', "a.jsonl:1: text holds a NUL character"),
    ("a.jsonl", b'{"text": "a\x00b"}\n', "a.jsonl:1: not JSON: holds NUL bytes"),
    ("a.jsonl", b'{"text": "a\\ud800b"}\n', "a.jsonl:1: text holds half a character (a lone surrogate, \\ud800)"),
    (
        "a.jsonl",
        b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n",
        "a.jsonl:1: nested too deep: a row is one object with text in it",
    ),
    ("a.jsonl", b'{"text": ' + b"9" * 5000 + b"}\n", "a.jsonl:1: not JSON: a number with too many digits"),
    ("a.jsonl", b'{"messages": "hi"}\n', "a.jsonl:1: messages is text, not a list of turns"),
    ("a.jsonl", b'{"messages": []}\n', "a.jsonl:1: there are no turns"),
    ("a.jsonl", b'{"messages": ["hi"]}\n', "a.jsonl:1: messages, turn 1 is text, not an object with role and content"),
    ("a.jsonl", b'{"messages": [{"content": "hi"}]}\n', "a.jsonl:1: messages, turn 1 has no role (found: content)"),
    (
        "a.jsonl",
        b'{"conversations": [{"from": "human"}]}\n',
        "a.jsonl:1: conversations, turn 1 has no value (found: from)",
    ),
    (
        "a.jsonl",
        b'{"messages": [{"role": "user", "content": null}]}\n',
        "a.jsonl:1: messages, turn 1: content is null, not text",
    ),
    (
        "a.jsonl",
        b'{"messages": [{"role": "user", "content": 3}]}\n',
        "a.jsonl:1: messages, turn 1: content is a number (3), not text; write it in quotes",
    ),
    (
        "a.jsonl",
        b'{"messages": [{"role": "tool", "content": "a"}]}\n',
        "a.jsonl:1: the last turn is the tool's: the answer is missing",
    ),
    (
        "a.jsonl",
        b'{"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}\n',
        "a.jsonl:1: the last turn is the user's: the answer is missing",
    ),
    (
        "a.jsonl",
        b'{"messages": [{"role": "assistant", "content": "a"}]}\n',
        "a.jsonl:1: roles do not alternate: assistant comes first, user was expected",
    ),
    (
        "a.jsonl",
        b'{"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]}\n',
        "a.jsonl:1: the last turn is the system's: the answer is missing",
    ),
    (
        "a.jsonl",
        b'{"conversations": [{"from": "human", "value": "a"}]}\n',
        "a.jsonl:1: the last turn is the user's: the answer is missing",
    ),
    (
        "a.jsonl",
        b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}]}\n',
        "a.jsonl:1: the answer is empty",
    ),
    (
        "a.jsonl",
        b'{"messages": [{"role": "user", "content": ""}, {"role": "assistant", "content": "a"}]}\n',
        "a.jsonl:1: the user's turn is empty",
    ),
    (
        "a.jsonl",
        b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "", "tool_calls": [1]}]}\n',
        "a.jsonl:1: messages, turn 2: call 1 is a number (1), not a call with the name of a function and its arguments",
    ),
    (
        "a.jsonl",
        b'{"text": "User: a\\nUser: b\\nAssistant: c"}\n',
        "a.jsonl:1: roles do not alternate: user comes after user, assistant was expected; JOIN_TURNS = true makes one turn of them, false keeps them apart",
    ),
    ("a.jsonl", b'{"text": "' + b"a" * (17 << 20) + b'"}\n{"text": 1}\n', "a.jsonl:1: the row is longer than 16 MiB"),
    (
        "a.json",
        b'[\n{"text": "a"},\n{"text": "b"}\n{"text": "c"}\n]',
        "a.json:3: not JSON: Extra data (line 4, column 1); a comma or a line break is missing in front of it",
    ),
    (
        "a.json",
        b'[\n{"text": "a"},\n\n{"text":\n  b},\n{"text": 3}]',
        "a.json:4: not JSON: Expecting value (line 5, column 3)",
    ),
    ("a.json", b'[\n{"text": "a"},\n{"text": "b"}\n', "a.json:3: the list is not closed: ] is missing"),
    ("a.json", b'[\n{"text": "a"},\n{"text": "b}\n]', "a.json:3: the list is not closed: ] is missing"),
    ("a.json", b'[{"text": "a"},\n,{"text": "a"}]', "a.json:2: not JSON: a comma without a row"),
    ("a.json", b'[{"text": "a"}]\n\nmore', "a.json:3: not JSON: text after the end of the list"),
    ("a.json", b"[1,\n2]", 'a.json:1: is a number (1), not an object like {"prompt": ..., "completion": ...}'),
    (
        "a.json",
        '[{"text": "你好你好"},\n{"text": "'.encode() + b'\xff\xfe"}]',
        "a.json:2: not UTF-8 (byte 0xff), so none of the file is read; it is in no encoding that is known here: it is damaged, or joined from files in several encodings. Save it as UTF-8, or mend this line and look again",
    ),
    (
        "a.json",
        b'[\n{"text": "' + b"a" * (17 << 20) + b'"}\n, {"text": 1}\n]',
        "a.json:2: the row is longer than 16 MiB",
    ),
    ("a.csv", b"prompt,completion\na,b\na,b,c\na\n", "a.csv:3: 3 in the row, 2 fields in the header"),
    ("a.csv", b'prompt,completion\n"a\nb",""\n', "a.csv:2: the answer is empty: completion holds no text"),
    ("a.csv", b'prompt,completion\na,"b\nc,d\n', "a.csv:2: not CSV: a quotation mark is opened here and never closed"),
    ("a.csv", b'prompt,completion\na,"b"c\nd,e\n', "a.csv:2: not CSV: ',' expected after '\"'"),
    (
        "a.csv",
        b"prompt,completion\na,caf\xe9\n",
        "a.csv:2: not UTF-8 (byte 0xe9), so none of the file is read; most likely it is CP1252 (Western Windows and Excel): ENCODING = cp1252 reads it so, and this makes a file of UTF-8: iconv -f CP1252 -t UTF-8 a.csv > a.utf8.csv",
    ),
    (
        "a.txt",
        b"ok\ncaf\xe9\n",
        "a.txt:2: not UTF-8 (byte 0xe9), so none of the file is read; most likely it is CP1252 (Western Windows and Excel): ENCODING = cp1252 reads it so, and this makes a file of UTF-8: iconv -f CP1252 -t UTF-8 a.txt > a.utf8.txt",
    ),
    ("a.txt", b"ok\na\x00b\n", "a.txt:2: text holds a NUL character"),
    (
        "a.jsonl.gz",
        gzip.compress(b'{"text": "a"}\n' * 5000)[:-20],
        "a.jsonl.gz:4646: the gzip file is damaged or cut short here (Compressed file ended before the end-of-stream marker was reached)",
    ),
    (
        "a.jsonl.gz",
        b"\x1f\x8b\x08\x00rubbish that is no gzip",
        "a.jsonl.gz:1: the gzip file is damaged or cut short here (Error -3 while decompressing data: invalid stored block lengths)",
    ),
    ("a.csv", b"prompt,prompt\na,b\n", "a.csv:1: a column name stands twice in the header: prompt, prompt"),
    (
        "a.csv",
        b"PK\x03\x04\x14\x00",
        "a.csv: is a ZIP archive (prepare_data.py reads those that chat programs export), not text; unpack it or save it as JSON lines or CSV (gzip and zstd are read as they are)",
    ),
    (
        "a.json",
        b"PAR1\x15\x04",
        "a.json: is no whole Parquet file, behind row 0 (Parquet file size is 6 bytes, smaller than the minimum file footer (8 bytes))",
    ),
    (
        "a.jsonl.gz",
        gzip.compress(b"BZh91AY"),
        "a.jsonl.gz: is packed by bzip2, not text; unpack it or save it as JSON lines or CSV (gzip and zstd are read as they are)",
    ),
    (
        "a.jsonl",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n",
        "a.jsonl: is a pointer of Git LFS, not the file itself; git lfs pull fetches that",
    ),
    (
        "a.json",
        b"\n<!DOCTYPE html>\n<html>",
        "a.json: is a web page, not rows: was it downloaded from the page that shows the file?",
    ),
    (
        "a.jsonl",
        '{"text": "a"}'.encode("utf-16-le"),
        "a.jsonl: is UTF-16 without its mark (every second byte is NUL): ENCODING = utf-16-le reads it",
    ),
    (
        "a.jsonl",
        b'{"prompt": "a", "chosen": "b", "rejected": "c"}\n',
        f"a.jsonl:1: no known fields (found: prompt, chosen, rejected); what would do: {rows.WOULD_DO}; preference pairs are not trained here, but COLUMNS = prompt: prompt, completion: chosen takes the preferred ones",
    ),
    (
        "a.csv",
        b"who,me\nwhat,that\n",
        f"a.csv:2: no known fields (found: who, me); what would do: {rows.WOULD_DO}; or COLUMNS says what they hold, as in COLUMNS = instruction: who, output: me; the first line of a CSV file must name the columns",
    ),
    (
        "a.csv",
        "prompt,completion\n你好,世界\n".encode("gbk"),
        "a.csv:2: not UTF-8 (byte 0xc4), so none of the file is read; most likely it is GB18030 (GBK: Chinese Windows and Excel): ENCODING = gb18030 reads it so, and this makes a file of UTF-8: iconv -f GB18030 -t UTF-8 a.csv > a.utf8.csv",
    ),
    ("a.jsonl", b"# rows\n", "a.jsonl:1: not JSON: Expecting value (column 1); JSON has no comments"),
    (
        "a.jsonl",
        "{“text”: “a”}\n".encode(),
        'a.jsonl:1: not JSON: Expecting property name enclosed in double quotes (column 2); quotes are straight (") in JSON',
    ),
    (
        "a.jsonl",
        '{"prompt": "a", "completion": " \u200b \ufeff "}\n'.encode(),
        "a.jsonl:1: the answer is empty: completion holds no text",
    ),
    (
        "a.jsonl",
        b'{"messages": "[{\\"role\\": \\"user\\"}]"}\n',
        "a.jsonl:1: messages, turn 1 has no content (found: role)",
    ),
    (
        "a.parquet",
        b"PAR1",
        "a.parquet: is no whole Parquet file, behind row 0 (Parquet file size is 4 bytes, smaller than the minimum file footer (8 bytes))",
    ),
]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # so that the messages above can name the files without a path


def _file(name: str, content: bytes) -> Path:
    Path(name).write_bytes(content)
    return Path(name)


def _read(name: str, content: bytes | str, format: str = "auto", template: str | None = None) -> list[Row | BadRow]:
    path = Path(name)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(rows.read(path, Reading(format, prompt_template.parse(template) if template else None)))


def _jsonl(*fields: dict) -> str:
    return "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in fields)


def _chat(*contents: str) -> tuple[Turn, ...]:
    return tuple(Turn("assistant" if i % 2 else "user", content) for i, content in enumerate(contents))


@pytest.mark.parametrize(("name", "content", "message"), WRONG, ids=[f"{i}" for i in range(len(WRONG))])
def test_a_wrong_file_gives_exactly_this_message(name: str, content: bytes, message: str) -> None:
    try:
        found = [str(row) for row in _read(name, content) if isinstance(row, BadRow)]
    except UserError as error:
        found = [str(error)]
    assert found[0] == message


def test_a_missing_file_a_folder_and_a_pipe_are_named() -> None:
    Path("folder.jsonl").mkdir()
    os.mkfifo("pipe.jsonl")
    for name, reason in (
        ("none.jsonl", "there is no such file"),
        ("folder.jsonl", "is a folder, not a file"),
        ("pipe.jsonl", "is not an ordinary file"),
    ):
        with pytest.raises(UserError, match=f"^{name}: {reason}$"):
            list(rows.read(Path(name)))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named() -> None:
    Path("a.jsonl").write_text("{}")
    Path("a.jsonl").chmod(0)
    with pytest.raises(UserError, match="^a.jsonl: cannot be read: Permission denied$"):
        list(rows.read(Path("a.jsonl")))


def test_rows_after_a_bad_one_are_read_all_the_same() -> None:
    for name, content in (
        ("a.jsonl", '{"text": "a"}\nrubbish\n{"text": "b"}\n'),
        ("a.json", '[{"text": "a"},\n{"text": },\n{"text": "b"}]'),
        ("a.csv", 'text,x\na,1\n"a"b,1\nb,1\n'),
        ("a.txt", b"a\n\0\nb\n"),
    ):
        found = _read(name, content)
        assert [row.text if isinstance(row, Row) else "bad" for row in found] == ["a", "bad", "b"], name


def test_every_format_becomes_turns_row_by_row_in_one_file() -> None:
    found = _read(
        "a.jsonl",
        _jsonl(
            {"instruction": "Add", "input": "1 and 2", "output": "3"},
            {"instruction": "Add", "input": None, "output": "3"},
            {"instruction": "Q", "response": "A"},
            {"prompt": "Q", "completion": "A"},
            {"input": "Q", "output": "A"},
            {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]},
            {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]},
            {"text": "just text"},
        ),
    )
    assert [row.messages for row in found] == [
        _chat("Add\n\n1 and 2", "3"),
        _chat("Add", "3"),
        *[_chat("Q", "A")] * 5,
        None,
    ]
    assert [row.line for row in found] == list(range(1, 9))
    assert found[-1].text == "just text"


def test_a_system_text_is_taken_from_the_turns_or_from_its_own_field() -> None:
    turns = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    found = _read(
        "a.jsonl",
        _jsonl(
            {"messages": [{"role": "system", "content": "S"}, *turns]},
            {"system": "S", "prompt": "Q", "completion": "A"},
            {"messages": [{"role": "system", "content": " "}, *turns]},
        ),
    )
    assert [row.messages[0] for row in found] == [Turn("system", "S"), Turn("system", "S"), Turn("user", "Q")]


@pytest.mark.parametrize(
    ("prompt", "completion", "expected"),
    [
        ("用户: 你好", "助手: 您好", ("你好", "您好")),
        ("用户：你好", "助手：您好", ("你好", "您好")),
        ("他说 用户: 你好", "答 助手: 您好", ("他说 用户: 你好", "答 助手: 您好")),
        ("用户: 用户: 你好", "助手: 助手: 您好", ("用户: 你好", "助手: 您好")),
        ("用户:admin", "a", ("用户:admin", "a")),
    ],
)
def test_a_role_in_front_is_stripped_once_and_only_at_the_start(prompt: str, completion: str, expected: tuple) -> None:
    (row,) = _read("a.jsonl", _jsonl({"prompt": prompt, "completion": completion}))
    assert row.messages == _chat(*expected)


def test_what_the_go_host_writes_is_read() -> None:
    line = (
        b'{"completion":"\xe5\x8a\xa9\xe6\x89\x8b: \\u003cb\\u003e \\u0026","prompt":"\xe7\x94\xa8\xe6\x88\xb7: a"}\n'
    )
    (row,) = _read("a.jsonl", line)
    assert row.messages == _chat("a", "<b> &")


@pytest.mark.parametrize(
    "text",
    ["用户：你好\n助手：您好\n用户：再见\n助手：再\n见", "User: 你好\nAssistant: 您好\nUser: 再见\nAssistant: 再\n见"],
)
def test_text_written_as_turns_becomes_turns(text: str) -> None:
    (row,) = _read("a.jsonl", _jsonl({"text": text}))
    assert row.messages == _chat("你好", "您好", "再见", "再\n见")


@pytest.mark.parametrize("text", ["See User: a\nAssistant: b", "User: alone", "A user: said\nthis"])
def test_other_text_stays_text(text: str) -> None:
    (row,) = _read("a.jsonl", _jsonl({"text": text}))
    assert (row.messages, row.text) == (None, text)


def test_bom_crlf_blank_lines_and_gzip_change_nothing() -> None:
    plain = '{"text": "a"}\n{"text": "ü"}\n'
    expected = [(1, "a"), (2, "ü")]
    for name, content in (
        ("a.jsonl", plain),
        ("b.jsonl", b"\xef\xbb\xbf" + plain.encode()),
        ("c.jsonl", plain.replace("\n", "\r\n")),
        ("d.jsonl", plain.rstrip()),
        ("e.jsonl.gz", gzip.compress(plain.encode())),
        ("f.jsonl.gz", gzip.compress(b"\xef\xbb\xbf" + plain.encode())),
        ("g.json", '[{"text": "a"},\n{"text": "ü"}]'),
        ("h.json", plain),
        ("i.jsonl", '[{"text": "a"},\n{"text": "ü"}]'),
        ("j.txt", "a\nü\n"),
        ("k.txt.gz", gzip.compress("a\nü".encode())),
    ):
        assert [(row.line, row.text) for row in _read(name, content)] == expected, name
    assert [row.line for row in _read("l.jsonl", plain.replace("\n", "\n\n"))] == [1, 3]


def test_csv_knows_its_delimiter_and_the_line_a_row_starts_on() -> None:
    for name, mark in (("a.csv", ","), ("b.csv", ";"), ("c.tsv", "\t"), ("d.csv.gz", ",")):
        content = f'prompt{mark}completion\n"a\n, ""b"""{mark}c\n\nd{mark}e\n'.encode()
        found = _read(name, gzip.compress(content) if name.endswith("gz") else content)
        assert [(row.line, row.messages) for row in found] == [(2, _chat('a\n, "b"', "c")), (5, _chat("d", "e"))]


def test_a_forced_format_refuses_rows_of_another() -> None:
    content = _jsonl({"prompt": "a", "completion": "b"}, {"text": "a"})
    good, bad = _read("a.jsonl", content, "prompt")
    assert good.messages == _chat("a", "b")
    assert str(bad) == "a.jsonl:2: fields found: text; FORMAT = prompt wants prompt + completion"
    with pytest.raises(UserError, match="FORMAT = sharegpt: must be one of auto, messages"):
        list(rows.read(Path("a.jsonl"), Reading("sharegpt")))


def test_the_settings_know_the_same_formats() -> None:
    assert ("auto", "messages", "conversations", *columns.PAIRS, "text") == table.FORMATS


def test_a_prompt_template_builds_the_users_turn_from_any_columns() -> None:
    template = "### {instruction}\nTopic: {topic}\n{input}\n=> {response}"
    content = _jsonl(
        {"instruction": "Do", "topic": "x", "input": "y", "output": "z"},
        {"instruction": "Do", "topic": "x", "output": "z"},
        {"instruction": "Do", "output": "z"},
    )
    first, second, third = _read("a.jsonl", content, "auto", template)
    assert first.messages == _chat("Do\nTopic: x\ny", "z")
    assert second.messages == _chat("Do\nTopic: x", "z")  # an empty column goes with its label
    assert third.reason.startswith("fields found: instruction, output; PROMPT_TEMPLATE wants instruction, topic, input")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{instruction}", "{response} is missing: it marks where the answer stands"),
        ("{response}", "only {response} is there: {instruction} (or another column) must stand in front of it"),
        (
            "{response} {instruction}",
            "{instruction} stands after {response}, so the prompt for an answer would hold what comes after it",
        ),
        (
            "{instruction}{instruction}{response}",
            "{instruction} stands twice, so the prompt for an answer does not follow from it",
        ),
        (
            "{instruction.x}{response}",
            "{instruction.x} is not the name of a column; a brace that is meant as text is written twice",
        ),
        ("{a}{response!r}", "{response!r} is not the name of a column; a brace that is meant as text is written twice"),
        ("{}{response}", "{} is not the name of a column; a brace that is meant as text is written twice"),
        (
            "{instruction {response}",
            "a brace has no partner; a brace that is meant as text is written twice: {{ or }}",
        ),
    ],
)
def test_a_prompt_template_that_no_answering_follows_from_is_refused(template: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        prompt_template.parse(template)
    assert str(caught.value) == f"[Dataset] PROMPT_TEMPLATE: {message}"


def test_braces_written_twice_are_text() -> None:
    found = prompt_template.parse('{{"q": "{instruction}"}} {response} {{}}')
    assert (found.prefix, found.middle, found.suffix) == ('{"q": "', '"} ', " {}")


SAID = {
    "GB18030": "今天天气怎么样,我不知道，请看天气预报。",
    "BIG5": "今天天氣怎麼樣,我不知道，請看天氣預報。",
    "EUC-JP": "今日の天気はどうですか,晴れです。",
    "CP932": "今日の天気はどうですか,晴れです。",
    "CP949": "오늘 날씨는 어때요,맑습니다",
    "CP1251": "Какая сегодня погода,Солнечно",
    "CP1252": "Où est le château,Près de l’église",
}


@pytest.mark.slow
@pytest.mark.parametrize("encoding", SAID)
@pytest.mark.parametrize("name", ["a.csv", "a.json", "a.jsonl", "a.txt", "a.csv.gz"])
def test_a_file_in_another_encoding_is_refused_whole_and_the_named_command_converts_it(
    encoding: str, name: str
) -> None:
    asked, answer = SAID[encoding].split(",")
    row = json.dumps({"prompt": asked, "completion": answer}, ensure_ascii=False)
    text = {".csv": f"prompt,completion\n{asked},{answer}\n", ".json": f"[{row}]", ".jsonl": row, ".txt": asked}
    content = text[Path(name.removesuffix(".gz")).suffix].encode(encoding)
    with pytest.raises(UserError, match=f"most likely it is {encoding} ") as refused:
        _read(name, gzip.compress(content) if name.endswith(".gz") else content)
    subprocess.run(str(refused.value).rpartition(": ")[2], shell=True, check=True)
    (row,) = rows.read(Path(name.removesuffix(".gz")).with_stem("a.utf8"))
    assert asked in (row.text, row.messages[0].content if row.messages else "")


@pytest.mark.parametrize("bad", ["first", "last"])
def test_one_cell_that_is_not_utf8_is_enough_wherever_it_stands(bad: str) -> None:
    by_chance = "学习,学校\n" * 50_000
    other = "今天天气怎么样,我不知道\n"
    lines = other + by_chance if bad == "first" else by_chance + other
    with pytest.raises(UserError, match=f"a.csv:{2 if bad == 'first' else 50_002}: not UTF-8"):
        next(rows.read(_file("a.csv", f"input,output\n{lines}".encode("gb18030"))))


def test_a_file_that_is_utf8_by_chance_alone_is_refused() -> None:
    text = "input,output\n学习,学校\n一,元\n站,院\n药,雪\n"
    with pytest.raises(UserError, match="a.csv:2: is UTF-8 by chance only, .* 'ѧϰ' is '学习' in GB18030"):
        _read("a.csv", text.encode("gb18030"))
    meant = text.encode("gb18030").decode()
    (first, *_) = _read("a.csv", "\ufeff" + meant)  # the mark of UTF-8 says that it is meant so
    assert first.messages == _chat("ѧϰ", "ѧУ")


@pytest.mark.parametrize("text", ["é,α\nя,б", "ä,ö", "Привет,мир", "שלום,עולם", "αβγ,δ", "مرحبا,ب", "Æ,Ø"])
def test_short_texts_in_other_alphabets_are_utf8(text: str) -> None:
    assert all(isinstance(row, Row) for row in _read("a.csv", f"prompt,completion\n{text}\n"))


@pytest.mark.parametrize("start", [b"{", b"[", b"", b'{"', b'{"data":', b'{"a": 1,', b'{"instruction": ['])
@pytest.mark.parametrize("space", [b"\n", b"\r", b" "])
def test_white_space_is_looked_through_a_few_times_and_not_once_for_each_of_its_bytes(
    start: bytes, space: bytes
) -> None:
    file = io.BytesIO(start + space * (raw_lines.CHUNK - len(start)))
    started = time.process_time()
    assert (json_shapes.shape(file).kind == "list") == (start == b"[")
    assert time.process_time() - started < 0.5  # once for each byte would be some minutes


def test_a_character_on_the_border_of_two_chunks_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    for size in range(1, 9):
        monkeypatch.setattr(text_encoding, "CHUNK", size)
        assert _read("a.txt", "aé你😀b\n")[0].text == "aé你😀b"
        with pytest.raises(UserError, match=r"a.txt:2: not UTF-8 \(byte 0xe4\)"):
            _read("a.txt", "é\n你".encode()[:-1])


TURNS = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
SAMPLES = [
    {"instruction": "Q", "output": "A"},
    {"instruction": "Q", "response": "A"},
    {"prompt": "Q", "completion": "A"},
    {"input": "Q", "output": "A"},
    {"messages": TURNS},
    {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]},
    {"text": "T"},
]


@pytest.mark.parametrize("sample", SAMPLES, ids=["+".join(sample) for sample in SAMPLES])
def test_null_in_the_place_of_any_value_is_a_bad_row_with_its_line(sample: dict) -> None:
    (whole,) = _read("a.jsonl", _jsonl(sample))
    assert isinstance(whole, Row)
    broken = [{**sample, name: None} for name in sample] + [dict.fromkeys(sample)]
    for name, turns in sample.items():
        if isinstance(turns, list):
            broken += [{name: [*turns[:i], None, *turns[i + 1 :]]} for i in range(2)]
            broken += [
                {name: [*turns[:i], {**turn, key: None}, *turns[i + 1 :]]}
                for i, turn in enumerate(turns)
                for key in turn
            ]
    found = _read("a.jsonl", _jsonl(*broken))
    assert [row.line for row in found] == list(range(1, len(broken) + 1))
    assert all(isinstance(row, BadRow) and "null" in row.reason for row in found)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt"])
def test_a_line_of_100_megabytes_is_a_bad_row_in_bounded_memory(name: str) -> None:
    begin = {"a.jsonl": b'{"text": "', "a.json": b'[{"text": "', "a.csv": b'text,x\n"', "a.txt": b""}[name]
    after = {"a.jsonl": b'\n{"text": "good"}\n', "a.json": b'"}]', "a.csv": b'",1\n', "a.txt": b"\ngood\n"}[name]
    with Path(name).open("wb") as file:
        file.write(begin)
        file.seek(100 << 20, os.SEEK_CUR)  # NUL bytes that take no disk
        file.write(after)
    tracemalloc.start()
    try:
        bad, *rest = rows.read(Path(name))
        assert tracemalloc.get_traced_memory()[1] < 5 * raw_lines.MAX_ROW_BYTES
    finally:
        tracemalloc.stop()
    assert bad.reason.startswith("the row is longer than 16 MiB")
    assert [row.text for row in rest] == (["good"] if after.endswith(b"\n") and b"good" in after else [])


@pytest.mark.slow
@pytest.mark.parametrize("inner", [b"[", b'{"a":'])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_bomb_of_brackets_is_a_bad_row(name: str, inner: bytes) -> None:
    bomb = b'{"text": ' + inner * 200_000
    content = bomb + b'\n{"text": "good"}\n' if name == "a.jsonl" else b"[" + bomb
    bad, *rest = _read(name, content)
    assert isinstance(bad, BadRow) and bad.line == (1 if name == "a.jsonl" else -1)
    assert [row.text for row in rest] == (["good"] if name == "a.jsonl" else [])


def _is_by_column(values: list) -> bool:
    """Whether a single object may hold several rows, column by column."""
    return (
        len(values) == 1
        and isinstance(values[0], dict)
        and any(isinstance(one, (list, dict)) for one in values[0].values())
    )


JSON_VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4) | st.sampled_from(sorted(columns.KNOWN)), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
KNOWN_FIELDS = st.dictionaries(
    st.sampled_from([*sorted(columns.KNOWN), "system"]), JSON_VALUE | st.text(alphabet=string.printable), max_size=4
)
FUZZ = settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.slow
@FUZZ
@given(st.binary(max_size=400), st.sampled_from(["f.jsonl", "f.json", "f.csv", "f.txt", "f.jsonl.gz"]))
def test_no_bytes_whatever_bring_a_traceback(content: bytes, name: str) -> None:
    for prefix in (b"", b"[", b'[{"text": "', b"\x1f\x8b\x08\x00", b"prompt,completion\n"):
        try:
            found = _read(name, prefix + content)
        except UserError:
            continue
        assert all(isinstance(row, (Row, BadRow)) and row.line for row in found)


@pytest.mark.slow
@FUZZ
@given(
    st.lists(KNOWN_FIELDS | JSON_VALUE, max_size=6).filter(
        lambda values: not isinstance((values or [None])[0], list) and not _is_by_column(values)
    )
)
def test_any_json_gives_one_verdict_a_row_and_good_rows_alternate(values: list) -> None:
    lines = _read("f.jsonl", "".join(json.dumps(value) + "\n" for value in values))
    assert [row.line for row in lines] == list(range(1, len(values) + 1))
    for row in lines:
        if isinstance(row, Row) and row.messages:
            talk = [turn for turn in row.messages if turn.role != "system"]
            assert talk[-1].role == "assistant" and all(turn.content.strip() for turn in talk)
            assert all(one.role != two.role for one, two in zip(talk, talk[1:], strict=False))


@pytest.mark.slow
@FUZZ
@given(
    st.lists(KNOWN_FIELDS, max_size=6).filter(lambda values: not _is_by_column(values)), st.sampled_from([None, 0, 2])
)
def test_a_json_list_says_the_same_as_json_lines(values: list, indent: int | None) -> None:
    def verdicts(found: list) -> list:
        return [row.reason if isinstance(row, BadRow) else (row.messages, row.text) for row in found]

    lines = _read("f.jsonl", "".join(json.dumps(value) + "\n" for value in values))
    assert verdicts(_read("f.json", json.dumps(values, indent=indent))) == verdicts(lines)


TEXT = st.text(  # what cannot be seen makes a bad row, where there is nothing else
    st.characters(exclude_categories=["Cs"], exclude_characters="\0\r" + values.INVISIBLE), min_size=1, max_size=30
)


@pytest.mark.slow
@FUZZ
@given(
    st.lists(
        st.tuples(TEXT, TEXT).filter(
            lambda pair: pair[0].strip() and pair[1].strip() and pair[1].strip().casefold() not in pairs.NULL_WORDS
        ),
        min_size=1,
        max_size=5,
    )
)
def test_csv_and_json_rows_come_back_as_they_were_written(written: list[tuple[str, str]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["input", "output"])
    writer.writerows(written)
    for found in (
        _read("f.csv", text.getvalue()),
        _read("f.jsonl", _jsonl(*({"input": a, "output": b} for a, b in written))),
    ):
        assert [row.messages for row in found] == [_chat(*pair) for pair in written]
