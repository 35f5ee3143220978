"""Loading rows: bad rows stop or are kept for the record, warnings, and a split that can be trusted."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.settings import a_settings
from training.data import BadRow, Data, Row, Turn, dataset, oddities, parallel_reading, raw_lines, splitting
from training.data.dataset import Counts
from training.data.oddities import Seen
from training.data.reading import PLAIN
from training.errors import MachineError, UserError
from training.system import pool

Load = Callable[..., Data]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Load rows (or the lines of a file) with the defaults of config.ini, but for what is given."""

    def run(rows: list[Any], **given: Any) -> Data:
        path = tmp_path / "a.jsonl"
        path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), "utf-8")
        values = {"dataset_file": path, "validation_split": 0.0} | given
        overrides = {f"Dataset.{name.upper()}": str(value) for name, value in values.items()}
        return dataset.load(a_settings(**overrides), tmp_path / "cache")

    return run


def _row(prompt: Any, answer: str = "an answer") -> dict:
    return {"prompt": f"question {prompt}", "completion": answer}


def _lines(part: Any) -> list[int]:
    return part["line"][:] if part is not None else []


def test_rows_keep_their_turns_file_and_line(load: Load, tmp_path: Path) -> None:
    data = load([_row(1), "", {"text": "plain"}])
    assert [dataset.as_row(record) for record in data.train] == [
        Row((Turn("user", "question 1"), Turn("assistant", "an answer")), None, str(tmp_path / "a.jsonl"), 1),
        Row(None, "plain", str(tmp_path / "a.jsonl"), 3),
    ]
    assert data.counts == Counts(rows=2, turns=1, text=1, bad=0, train=2, validation=0, test=0)
    assert not data.plain
    assert data.sha256 == {
        str(tmp_path / "a.jsonl"): hashlib.sha256((tmp_path / "a.jsonl").read_bytes()).hexdigest(),
    }


def test_bad_rows_with_one_reason_are_one_line_with_the_first_places_and_their_count(
    load: Load, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught:
        load([_row(1), *['{"text": 1}'] * 1234])
    lines = str(caught.value).splitlines()
    assert lines[0] == "1,234 bad rows (ON_BAD_ROW = skip goes on without them)"
    reason = "text is a number (1), not text; write it in quotes"
    assert lines[1:] == [f"  {tmp_path / 'a.jsonl'}:2: {reason}; 1,234 such rows: lines 2, 3, 4, 5, 6 and 1,229 more"]


def test_bad_rows_whose_reasons_differ_in_a_number_or_a_quoted_word_are_one_line(load: Load, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load(['{"text": 1}', "{'a", '{"text": 23}', '{"a": 1, "a": 2}', '{"bc": 1, "bc": 2}', '{"text": "a" 1}'])
    assert [line.partition("; 2 such rows: ")[2] for line in str(caught.value).splitlines()[1:]] == [
        "lines 1, 3",
        "",
        "lines 4, 5",
        "",
    ]


def test_reasons_are_named_up_to_a_limit_and_the_rest_counted(load: Load) -> None:
    with pytest.raises(UserError) as caught:
        load([json.dumps({"x" + chr(97 + number): 1}) for number in range(25)])
    lines = str(caught.value).splitlines()
    assert (len(lines), lines[-1]) == (22, "  and 5 more")


def test_rows_of_a_list_on_one_line_are_told_by_their_numbers(load: Load, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([_row(1), {"text": 1}, _row(1), {"text": 2}]), "utf-8")
    with pytest.raises(UserError) as caught:
        load([], dataset_file=path)
    reason = "text is a number (1), not text; write it in quotes"
    assert str(caught.value).splitlines()[1:] == [f"  {path}, row 2: {reason}; 2 such rows: rows 2, 4"]
    data = load([], dataset_file=path, on_bad_row="skip")
    assert data.warnings == [f"{path}, row 3: 1 row the same as an earlier one"]
    dataset.write_rejected(tmp_path / "rejected.jsonl", data.rejected)
    written = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_text("utf-8").splitlines()]
    assert [(row["line"], row["row"]) for row in written] == [(1, 2), (1, 4)]


def test_skipped_rows_are_counted_and_written_down(load: Load, tmp_path: Path) -> None:
    data = load([_row(1), "rubbish", _row(2)], on_bad_row="skip")
    assert (_lines(data.train), data.counts.bad) == ([1, 3], 1)
    dataset.write_rejected(tmp_path / "rejected.jsonl", data.rejected)
    written = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_text("utf-8").splitlines()]
    reason = "not JSON: Expecting value (column 1)"
    assert written == [{"file": str(tmp_path / "a.jsonl"), "line": 2, "reason": reason}]


def test_a_broken_file_is_never_skipped(load: Load, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"text": "a"},\n{"text": "b"}', "utf-8")
    with pytest.raises(UserError) as caught:
        load([], dataset_file=tmp_path / "a.json", on_bad_row="skip")
    assert str(caught.value) == (
        f"the file is broken; this cannot be skipped\n  {tmp_path / 'a.json'}:2: the list is not closed: ] is missing"
    )


@pytest.mark.parametrize("given", [{}, {"on_bad_row": "skip"}, {"max_rows": 1}])
def test_a_file_in_another_encoding_is_never_skipped_nor_believed_in_part(
    load: Load, tmp_path: Path, given: dict
) -> None:
    source = tmp_path / "a.csv"
    source.write_bytes("input,output\nWhy?,So.\n学习,学校\n今天天气怎么样,我不知道\n".encode("gb18030"))
    with pytest.raises(UserError, match="a.csv:4: not UTF-8 .* iconv -f GB18030 -t UTF-8 ") as refused:
        load([], dataset_file=source, **given)
    assert len(str(refused.value).splitlines()) == 1


def test_a_file_without_a_good_row_is_refused(load: Load, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"^{tmp_path / 'a.jsonl'}: no rows: the file is empty$"):
        load([])
    with pytest.raises(UserError, match=f"^{tmp_path / 'a.jsonl'}: no rows: all 2 are bad$"):
        load(["rubbish", "rubbish"], on_bad_row="skip")


def test_max_rows_takes_the_first_rows(load: Load) -> None:
    assert _lines(load([_row(i) for i in range(9)], max_rows=4).train) == [1, 2, 3, 4]


def test_all_plain_text_is_told(load: Load) -> None:
    assert load([{"text": "a"}, {"text": "b"}]).plain


def test_duplicates_short_long_and_garbled_rows_are_warned_of(load: Load, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [_row(1), _row(1), _row(" 1"), _row(2, "x"), _row(3, "y" * 100_001), _row(4, "cafÃ© olÃ©"), _row(5, "café")]
    assert load(rows).warnings == [
        f"{path}:2: 1 row the same as an earlier one",
        f"{path}:3: 1 row the same as an earlier one but for white space",
        f"{path}:4: 1 row with an answer shorter than 2 characters",
        f"{path}:5: 1 row longer than 100,000 characters",
        f"{path}:6: 1 row with garbled text (UTF-8 read as something else, like Ã© for é)",
    ]


def test_what_a_web_page_or_a_program_has_written_otherwise_is_warned_of(load: Load, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [_row(1, "you &amp; me"), _row(2, "one\\ntwo"), _row(3, "print('a\\n')\nprint(2)"), _row(4, "R&D; a & b")]
    assert load(rows).warnings == [
        f"{path}:1: 1 row with characters as HTML writes them (&amp; for &), which are learned so",
        f"{path}:2: 1 row with \\n written out and no line break, which is learned so",
    ]


def test_a_warning_names_the_first_lines_and_counts_the_rest(load: Load, tmp_path: Path) -> None:
    rows = [_row(1, "x"), "", *(_row(i) for i in range(2, 4)), *(_row(i, "y") for i in range(4, 11)), _row(2)]
    assert load(rows).warnings == [
        f"{tmp_path / 'a.jsonl'}:12: 1 row the same as an earlier one",
        f"{tmp_path / 'a.jsonl'}:1: 8 rows with an answer shorter than 2 characters; lines 1, 5, 6, 7, 8 and 3 more",
    ]


def test_columns_that_are_not_used_are_warned_of(load: Load, tmp_path: Path) -> None:
    turns = [
        {"role": "user", "content": "Q", "name": "Ann"},
        {"role": "assistant", "content": "A", "reasoning_content": "R"},
    ]
    rows = [
        {**_row(1), "category": "x", "empty": "", "none": None},
        {"instruction": "I", "input": "used", "system": "used", "output": "O", "history": [["a", "b"]]},
        {"instruction": "I2", "output": "O", "history": []},
        {"messages": turns, "id": 7},
        {**_row(2), "category": "y"},
        {"text": "plain", "system": "S"},
        {"input": "Q", "output": "O", "rating": "P"},
    ]
    path = tmp_path / "a.jsonl"
    assert [told for told in load(rows).warnings if "not used" in told] == [
        f"{path}:1: 2 rows with 'category', which is not used; lines 1, 5",
        f"{path}:4: 1 row with 'id', which is not used",
        f"{path}:4: 1 row with 'messages: name', which is not used",
        f"{path}:6: 1 row with 'system', which is not used",
        f"{path}:7: 1 row with 'rating', which is not used",
    ]


def test_a_column_of_the_prompt_template_is_used(load: Load) -> None:
    rows = [{"instruction": "I", "topic": "T", "output": "an answer"}]
    assert load(rows, prompt_template="{instruction} {topic} {response}").warnings == []


def test_a_text_that_begins_like_a_turn_is_told_of(load: Load, tmp_path: Path) -> None:
    path = tmp_path / "held.jsonl"
    path.write_text('{"text": "用户：你好"}\n{"text": "User: alone"}\n', "utf-8")
    assert load([_row(1)], validation_file=path).warnings == [
        f"{path}:1: 2 rows with text that begins like a turn (User:, 用户：) and holds no whole exchange, trained as plain "
        "text; lines 1, 2"
    ]


def test_a_chat_whose_turns_are_lines_of_a_txt_file_is_refused(load: Load, tmp_path: Path) -> None:
    path = tmp_path / "held.txt"
    path.write_text("用户：你好\n助手：好\nplain\n", "utf-8")
    with pytest.raises(UserError, match="begins with '用户：', as a turn.*FORMAT = text learns each line.*lines 1, 2"):
        load([_row(1)], validation_file=path)


def test_a_new_column_in_every_row_is_told_of_a_few_times(load: Load) -> None:
    told = load([{**_row(i), f"c{i}": 1} for i in range(100)]).warnings
    assert len(told) == oddities.MOST_COLUMNS


@pytest.mark.parametrize(
    "text", ["鸡蛋à la carte", "Ärger, Öl, Übung, naïve façade", "你好，世界", "“quotes” – dashes…"]
)
def test_sound_text_is_not_called_garbled(load: Load, text: str) -> None:
    assert load([_row(1, text)]).warnings == []


def test_the_split_is_seeded_and_loses_no_row(load: Load) -> None:
    rows = [_row(i) for i in range(100)]
    data, again = (load(rows, validation_split=0.1, test_split=0.05) for _ in range(2))
    parts = [_lines(part) for part in (data.train, data.validation, data.test)]
    assert [len(part) for part in parts] == [85, 10, 5]
    assert sorted(sum(parts, [])) == list(range(1, 101))
    assert parts == [_lines(part) for part in (again.train, again.validation, again.test)]


@pytest.mark.parametrize(
    ("rows", "note"),
    [
        ([_row(1)], "no validation rows: 1 row is too few for VALIDATION_SPLIT = 0.5"),
        (
            [_row(1), _row(1)],
            "no validation rows: 2 rows are too alike (rows with equal prompts stay together) for VALIDATION_SPLIT = 0.5",
        ),
    ],
)
def test_too_few_rows_for_a_split_mean_no_validation_and_it_is_said(load: Load, rows: list, note: str) -> None:
    data = load(rows, validation_split=0.5)
    assert (len(data.train), data.validation, data.notes) == (len(rows), None, [note])


def test_a_test_file_beats_its_split_and_shared_prompts_are_warned_of(load: Load, tmp_path: Path) -> None:
    tested = tmp_path / "tested.jsonl"
    tested.write_text(json.dumps(_row(1)) + "\n" + json.dumps(_row(99)) + "\n", encoding="utf-8")
    data = load([_row(i) for i in range(10)], test_file=tested, test_split=0.5, validation_split=0.2)
    assert (data.counts.train, data.counts.validation, data.counts.test) == (8, 2, 2)
    assert data.test is not None and {row["file"] for row in data.test} == {str(tested)}
    assert data.warnings == [f"{tested}: 1 row with a prompt that is trained on too: the test loss will flatter"]
    assert "TEST_FILE is given: TEST_SPLIT is not used" in data.notes and str(tested) in data.sha256


def test_a_validation_file_beats_the_split_and_shared_prompts_are_warned_of(load: Load, tmp_path: Path) -> None:
    held = tmp_path / "held.jsonl"
    held.write_text(json.dumps(_row(3)) + "\n" + json.dumps(_row("new")) + "\n", "utf-8")
    data = load([_row(i) for i in range(10)], validation_file=held, validation_split=0.5)
    assert (len(data.train), _lines(data.validation)) == (10, [1, 2])
    assert data.warnings == [f"{held}: 1 row with a prompt that is trained on too: the validation loss will flatter"]
    assert set(data.sha256) == {str(tmp_path / "a.jsonl"), str(held)}


def test_bad_rows_of_both_files_are_named_together(load: Load, tmp_path: Path) -> None:
    held = tmp_path / "held.jsonl"
    held.write_text("rubbish\n", "utf-8")
    with pytest.raises(UserError) as caught:
        load(["rubbish"], validation_file=held)
    assert [problem.split(": ")[0] for problem in caught.value.problems] == [f"{tmp_path / 'a.jsonl'}:1", f"{held}:1"]


@pytest.mark.slow
@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.integers(0, 12), min_size=1, max_size=60),
    st.sampled_from([0, 0.01, 0.1, 0.5, 0.99]),
    st.sampled_from([0, 0.05, 0.5, 0.99]),
    st.integers(0, 5),
)
def test_no_split_straddles_equal_prompts_or_empties_the_training_rows(
    prompts: list[int], validation: float, test: float, seed: int
) -> None:
    parts, notes = splitting.split(prompts, validation, test, seed)
    assert sorted(int(i) for part in parts for i in part) == list(range(len(prompts)))
    assert len(parts[0]) >= 1
    of_parts = [{prompts[i] for i in part} for part in parts]
    assert not (of_parts[0] & of_parts[1] or of_parts[0] & of_parts[2] or of_parts[1] & of_parts[2])
    for part, share in ((parts[1], validation), (parts[2], test)):
        assert len(part) <= int(len(prompts) * share + 0.5)
    assert len(notes) == sum(
        bool(share) and not len(part) for part, share in ((parts[1], validation), (parts[2], test))
    )


def test_the_split_does_not_depend_on_what_a_hash_happens_to_be() -> None:
    assert [list(part) for part in splitting.split([7, 8, 9, 1], 0.25, 0, 0)[0]] == [
        list(part) for part in splitting.split([1, 2, 3, 4], 0.25, 0, 0)[0]
    ]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a file is read by one process")
@pytest.mark.parametrize(
    "ending", [".jsonl", ".txt", ".json", ".csv", ".jsonl.gz", ".txt.gz", ".json.gz", "-cut.jsonl.gz"]
)
def test_a_long_file_read_by_several_processes_says_the_same(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [
        json.dumps(_row(i % 70, "x" * (i % 3 + 1)) | ({f"c{i % 31}": i} if i % 4 == 0 else {})) for i in range(300)
    ]
    lines[50:50] = ["", "rubbish", json.dumps(_row(1, "y" * 9000)), "\ufeff", json.dumps({"text": "cafÃ©"}), "{}"]
    if "txt" in ending:  # a TXT file that is JSON would be read as such
        lines = [f"- {line}" if line.startswith("{") else line for line in lines]
    if ".json" in ending and "l" not in ending:
        lines = ["[", *(line + "," for line in lines if line not in ("\ufeff", "")), "{}]"]
    if ending == ".csv":
        lines = [
            "prompt,completion",
            *(f'{i % 70},"{"y" * (9000 * (i == 250))}a\n""b"""{",x" * (i % 50 == 9)}' for i in range(300)),
        ]
    content = b"\xef\xbb\xbf" + "\n".join(lines).encode()
    path = tmp_path / f"a{ending}"
    packed = gzip.compress(content) if ending.endswith("gz") else content
    path.write_bytes(packed[: -len(packed) // 3] if "cut" in ending else packed)
    monkeypatch.setattr(raw_lines, "MAX_ROW_BYTES", 5000)
    monkeypatch.setattr(raw_lines, "CHUNK", 100)

    def read() -> tuple:
        seen, bad, good = Seen(), [], []
        for part in parallel_reading.parts(path, PLAIN):
            seen.add(part.seen)
            bad += part.bad
            good += part.batch.to_pylist()
        return good, bad, seen

    alone = read()
    assert len(alone[1]) == 2 if "txt" in ending else len(alone[1]) > 1
    assert len(alone[0]) >= 50
    assert alone[1][-1].fatal == (ending not in (".jsonl", ".txt", ".jsonl.gz", ".txt.gz"))
    assert len(alone[2].lines) > 10 or "json" not in ending
    monkeypatch.setattr(parallel_reading, "LONG", 0)
    monkeypatch.setattr(pool, "cores", lambda: 3)
    for block in (64, 1000, 7000):
        monkeypatch.setattr(parallel_reading, "BLOCK", block)
        assert read() == alone


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a file is read by one process")
def test_a_process_that_is_ended_while_it_reads_is_the_machines_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(_row(1)) + "\n", "utf-8")
    monkeypatch.setattr(parallel_reading, "LONG", 0)
    monkeypatch.setattr(pool, "cores", lambda: 2)
    monkeypatch.setattr(oddities, "remember", lambda row, seen: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(MachineError, match=r"reading .*a.jsonl: a process was ended from outside; too little memory"):
        list(parallel_reading.parts(path, PLAIN))


def test_rejected_rows_say_where_they_are() -> None:
    assert str(BadRow("a.jsonl", 3, "is bad")) == "a.jsonl:3: is bad"


# ---- several files -----------------------------------------------------------------------------------------------


def of_several(tmp_path: Path, written: str, **more: object) -> Data:
    listed = ", ".join(f"{tmp_path}/{name}" for name in written.split(", "))
    values = {"DATASET_FILE": listed} | more
    overrides = {f"Dataset.{name}": str(value) for name, value in values.items()}
    return dataset.load(a_settings(**overrides), tmp_path / "cache")


@pytest.fixture
def several(tmp_path: Path) -> Path:
    for name, count in (("a", 10), ("b", 6), ("c", 4)):
        rows = (json.dumps({"prompt": f"{name}{n}?", "completion": f"{name}{n} it is."}) for n in range(count))
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows), "utf-8")
    return tmp_path


def questions(rows: datasets.Dataset | None) -> list[str]:
    return [] if rows is None else [row["messages"][0]["content"] for row in rows]


def test_rows_of_several_files_are_taken_as_often_as_their_shares_say(several: Path) -> None:
    data = of_several(several, "a.jsonl, b.jsonl*2, c.jsonl*0.5", VALIDATION_SPLIT=0)
    found = Counter(questions(data.train))
    assert [found[f"a{n}?"] for n in range(10)] == [1] * 10
    assert [found[f"b{n}?"] for n in range(6)] == [2] * 6
    assert sum(found[f"c{n}?"] for n in range(4)) == 2
    assert data.used == {str(several / "a.jsonl"): 10, str(several / "b.jsonl"): 12, str(several / "c.jsonl"): 2}
    assert set(data.sha256) == set(data.used) and data.counts.train == 24 and data.counts.rows == 20


def test_a_part_of_a_share_is_left_to_the_seed(several: Path) -> None:
    first, again = (questions(of_several(several, "a.jsonl*1.5", VALIDATION_SPLIT=0).train) for _ in range(2))
    assert first == again and len(first) == 15 and Counter(Counter(first).values()) == {1: 5, 2: 5}


def test_a_row_that_is_taken_twice_is_never_validated_on(several: Path) -> None:
    data = of_several(several, "a.jsonl*2, b.jsonl", VALIDATION_SPLIT=0.25)
    assert questions(data.validation) and not set(questions(data.validation)) & set(questions(data.train))
    assert max(Counter(questions(data.validation)).values()) == 1


def test_bad_rows_of_each_file_are_named_by_it(several: Path) -> None:
    (several / "c.jsonl").write_text('{"prompt": "x"}\n', "utf-8")
    with pytest.raises(UserError, match=r"c.jsonl:1: no known fields"):
        of_several(several, "a.jsonl, c.jsonl")


def test_max_rows_counts_all_files_together(several: Path) -> None:
    data = of_several(several, "a.jsonl, b.jsonl, c.jsonl", MAX_ROWS=12, VALIDATION_SPLIT=0)
    assert Counter(one[0] for one in questions(data.train)) == {"a": 10, "b": 2}
    assert list(data.used.values()) == [10, 2]


def test_all_rows_of_a_file_are_bad_counts_its_own(several: Path) -> None:
    (several / "b.jsonl").write_text('{"prompt": "x"}\n' * 2, "utf-8")
    with (several / "a.jsonl").open("a") as file:
        file.write('\n{"prompt": "x"}\n')
    with pytest.raises(UserError, match=r"b.jsonl: no rows: all 2 are bad"):
        of_several(several, "a.jsonl, b.jsonl", ON_BAD_ROW="skip")


def test_a_share_that_is_no_whole_row_is_said_and_of_all_files_refused(several: Path) -> None:
    data = of_several(several, "a.jsonl, c.jsonl*0.1", VALIDATION_SPLIT=0)
    told = f"{several / 'c.jsonl'}: nothing of it is trained on: a share of 0.1 of its rows is no whole row"
    assert told in data.warnings
    with pytest.raises(UserError, match=r"nothing to train on: DATASET_FILE takes no whole row of its files") as error:
        of_several(several, "c.jsonl*0.1", VALIDATION_SPLIT=0)
    assert told in str(error.value)


def test_a_file_that_max_rows_leaves_unread_is_said_and_its_bad_rows_stop_nothing(several: Path) -> None:
    (several / "c.jsonl").write_text('{"prompt": "x"}\n', "utf-8")
    with (several / "b.jsonl").open("a") as file:
        file.write('\n{"prompt": "x"}\n')
    data = of_several(several, "a.jsonl, b.jsonl, c.jsonl", MAX_ROWS=12, VALIDATION_SPLIT=0)
    assert f"{several / 'c.jsonl'}: is not read: MAX_ROWS = 12 was reached before it" in data.warnings
    names = ", ".join(f"{several}/{name}.jsonl" for name in "abc")
    dataset.refuse_early(a_settings(**{"Dataset.DATASET_FILE": names, "Dataset.MAX_ROWS": "12"}))


def test_rows_that_are_taken_twice_count_once_among_the_different_ones(several: Path) -> None:
    data = of_several(several, "a.jsonl*2, b.jsonl", VALIDATION_SPLIT=0)
    assert (data.counts.train, data.different) == (26, 16)
