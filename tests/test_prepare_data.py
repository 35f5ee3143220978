"""Preparing data: what is cleaned away and said so, the shapes written, and a split without an empty file."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.support import exports, small
from tests.support.at_hubs import led_to, nowhere
from tests.support.hubs import COMMIT, Hub, ModelScope
from tests.support.paths import ROOT
from tests.support.programs import finetune
from training import chats, create_sample_data, prepare_data
from training.data import BadRow, Record, Row, oddities, rows, splitting
from training.data.reading import Reading
from training.system import files
from training.system.signals import Signals

# Its runs need no real vocabulary.
tiny_model = small.tiny_model
SCRIPT = ROOT / "training" / "prepare_data.py"
# What each sample can become. Plain text holds no question, and turns are no plain text.
SINGLE, LONG = ("alpaca", "qa", "chat"), ("chat",)
FITTING = {
    "sample_data.json": SINGLE,
    "sample_alpaca.jsonl": SINGLE,
    "sample_chat.jsonl": LONG,
    "sample_conversations.jsonl": LONG,
    "sample_prompt_completion.jsonl": SINGLE,
    "sample_qa.csv": SINGLE,
    "sample_text.txt": ("text",),
    "sample_text_turns.jsonl": (*SINGLE, "text"),
}
CASES = [(name, kind) for name, kinds in FITTING.items() for kind in kinds]
FORMAT_OF = {"alpaca": "alpaca", "qa": "input", "chat": "messages", "text": "text"}


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("samples")
    create_sample_data.write(folder)
    return folder


@pytest.fixture
def prepare(tmp_path: Path, capsys: pytest.CaptureFixture) -> Callable[..., SimpleNamespace]:
    """Run the script's own main on a file; gives exit code, paths written, what stderr said."""

    def run(source: Path, kind: str, *more: str) -> SimpleNamespace:
        words = [
            "--input",
            source,
            "--format-type",
            kind,
            "--output-dir",
            tmp_path / "out",
            "--output-name",
            "my",
            *more,
        ]
        code = prepare_data.main(list(map(str, words)))
        out, err = capsys.readouterr()
        return SimpleNamespace(code=code, paths=[Path(line) for line in out.splitlines()], said=err.splitlines())

    return run


@pytest.fixture(autouse=True)
def _no_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    """main takes over SIGINT, which pytest wants for itself."""
    monkeypatch.setattr(Signals, "install", lambda self: None)


def script(*arguments: str | Path, python: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    """The script in a process of its own."""
    command = [sys.executable, *python, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=60)


def jsonl(path: Path, found: list) -> Path:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in found), "utf-8")
    return path


def written(paths: list[Path]) -> list[dict]:
    return [json.loads(line) for path in paths for line in path.read_text("utf-8").splitlines()]


def meaning(row: Row) -> tuple:
    """What a row trains, without where it stands."""
    return row.messages, row.text


# ---- from the samples --------------------------------------------------------------------------------------------


def test_every_sample_has_a_case() -> None:
    assert set(FITTING) == set(create_sample_data.samples())


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_samples_come_back_from_three_files_as_the_rows_they_were(name: str, kind: str, samples: Path, prepare) -> None:
    done = prepare(samples / name, kind)
    assert done.code == 0
    assert [path.name for path in done.paths] == ["my_train.jsonl", "my_validation.jsonl", "my_test.jsonl"]
    parts = [list(rows.read(path, Reading(FORMAT_OF[kind]))) for path in done.paths]
    assert all(parts)  # no file is empty
    found = [row for part in parts for row in part]
    assert [row for row in found if isinstance(row, BadRow)] == []
    assert sorted(map(repr, map(meaning, found))) == sorted(repr(meaning(row)) for row in rows.read(samples / name))


@pytest.mark.parametrize("name", FITTING)
def test_the_input_format_may_be_named_whatever_the_file_is_called(name: str, samples: Path, prepare, tmp_path) -> None:
    (tmp_path / "data").write_bytes((samples / name).read_bytes())
    kind = FITTING[name][0]
    named = prepare(tmp_path / "data", kind, "--input-format", name.rpartition(".")[2])
    assert (named.code, written(named.paths)) == (0, written(prepare(samples / name, kind).paths))


@pytest.mark.parametrize(
    ("name", "kind", "reason"),
    [
        ("sample_text.txt", "alpaca", "plain text has no question; --format-type text takes it"),
        ("sample_text.txt", "qa", "plain text has no question; --format-type text takes it"),
        ("sample_text.txt", "chat", "plain text has no question; --format-type text takes it"),
        ("sample_data.json", "text", "turns are no text row; --format-type chat takes them"),
    ],
)
def test_a_kind_that_no_row_fits_ends_with_2_and_writes_nothing(name, kind, reason, samples, prepare, tmp_path) -> None:
    done = prepare(samples / name, kind)
    assert (done.code, done.paths, list((tmp_path / "out").iterdir())) == (2, [], [])
    count = len(list(rows.read(samples / name)))
    assert done.said[0] == f"{samples / name}: no rows: all {count} are bad"
    assert f": {reason}" in done.said[1]
    assert len(done.said) == 2


def test_ten_rows_are_split_8_1_1(samples: Path, prepare) -> None:
    done = prepare(samples / "sample_data.json", "alpaca")
    assert [len(path.read_text("utf-8").splitlines()) for path in done.paths] == [8, 1, 1]
    assert done.said == [
        f"{samples / 'sample_data.json'}: 10 rows read, 0 bad, 0 duplicates",
        "rows written: 8 my_train.jsonl, 1 my_validation.jsonl, 1 my_test.jsonl",
    ]


def test_no_split_writes_one_file_in_the_order_of_the_input(samples: Path, prepare, tmp_path) -> None:
    done = prepare(samples / "sample_data.json", "alpaca", "--no-split")
    assert done.paths == [tmp_path / "out" / "my.jsonl"]
    assert written(done.paths) == json.loads((samples / "sample_data.json").read_text("utf-8"))


@pytest.mark.slow
def test_the_script_runs_from_anywhere_and_prints_paths_only(samples: Path, tmp_path: Path) -> None:
    done = script("--input", samples / "sample_qa.csv", "--input-format", "csv", "--format-type", "qa",
                  "--output-dir", tmp_path / "a" / "b", "--output-name", "my")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(tmp_path / "a" / "b" / f"my_{part}.jsonl") for part in prepare_data.PARTS]
    assert len(list((tmp_path / "a" / "b").iterdir())) == 3


@pytest.mark.tiny
def test_prepared_samples_train(samples: Path, prepare, tiny_config: Path) -> None:
    done = prepare(samples / "sample_data.json", "alpaca")
    ended = finetune(
        "--config", tiny_config, "--data", done.paths[0], "--set", f"Dataset.VALIDATION_FILE={done.paths[1]}",
        "--set", "Training.MAX_STEPS=1", "--set", "Training.SAVE_STEPS=0", "--set", "Training.EVAL_STEPS=0",
    )  # fmt: skip
    assert ended.code == 0, ended.stderr
    report = json.loads((ended.run / "report.json").read_text("utf-8"))
    assert "rows: 8 to train, 1 to validate" in ended.stderr
    assert report["training"]["before"] > 0


# ---- cleaning ----------------------------------------------------------------------------------------------------


def test_bad_rows_are_dropped_and_named_up_to_a_limit(prepare, tmp_path: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", [{"input": "q", "output": "a"}, *['{"input": "q"}'] * 19, "rubbish", "x", {}])
    done = prepare(source, "qa", "--no-split")
    assert (done.code, written(done.paths)) == (0, [{"input": "q", "output": "a"}])
    assert done.said[0] == f"{source}: 23 rows read, 22 bad, 0 duplicates"
    assert done.said[1] == f"  {source}:2: no known fields (found: input); what would do: {rows.WOULD_DO}" + (
        "; 19 such rows: lines 2, 3, 4, 5, 6 and 14 more"
    )
    assert done.said[2] == f"  {source}:21: not JSON: Expecting value (column 1); 2 such rows: lines 21, 22"
    assert done.said[3].startswith(f"  {source}:23: no known fields (found: none)")
    assert len(done.said) == 5


def test_outer_white_space_goes_and_inner_stays(prepare, tmp_path: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", [{"instruction": " do\n  it ", "input": "\t", "output": "\u3000done \n"}])
    done = prepare(source, "alpaca", "--no-split")
    assert written(done.paths) == [{"instruction": "do\n  it", "input": "", "output": "done"}]


def test_rows_without_an_answer_are_bad(prepare, tmp_path: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", [{"instruction": "a", "output": " "}, {"instruction": "a", "output": "b"}])
    done = prepare(source, "alpaca", "--no-split")
    assert done.said[1] == f"  {source}:1: the answer is empty: output holds no text"
    assert len(written(done.paths)) == 1


def test_rows_that_differ_in_white_space_only_are_written_once(prepare, tmp_path: Path) -> None:
    found = [("a b", "c"), ("a  b\n", "c"), (" a b", "c "), ("ab", "c"), ("a b", "d")]
    source = jsonl(tmp_path / "a.jsonl", [{"input": asked, "output": answer} for asked, answer in found])
    done = prepare(source, "qa", "--no-split")
    assert [(row["input"], row["output"]) for row in written(done.paths)] == [("a b", "c"), ("ab", "c"), ("a b", "d")]
    assert done.said[0] == f"{source}: 5 rows read, 0 bad, 2 duplicates"


def test_question_and_answer_are_taken(prepare, tmp_path: Path) -> None:
    source = tmp_path / "a.csv"
    source.write_text("question,answer,id\nWho?,Me.,1\nWhy?,,2\n", "utf-8")
    done = prepare(source, "qa", "--no-split")
    assert written(done.paths) == [{"input": "Who?", "output": "Me."}]
    assert done.said[1:4] == [
        f"  {source}:3: the answer is empty: output holds no text (of the columns question, answer, taken as instruction, output)",
        "1 row of the columns question, answer, taken as instruction, output",
        "fields that are not taken over: id",
    ]


def test_a_long_conversation_is_bad_for_alpaca_and_qa_and_named(prepare, samples: Path) -> None:
    for kind in ("alpaca", "qa"):
        done = prepare(samples / "sample_conversations.jsonl", kind, "--no-split")
        reason = f"{kind} takes one question and one answer; --format-type chat takes a longer conversation"
        assert done.said[1] == f"  {samples / 'sample_conversations.jsonl'}:1: {reason}"
        assert len(written(done.paths)) == 2


def test_a_system_text_is_kept_in_every_shape_with_turns(prepare, tmp_path: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", [{"system": " Be kind. ", "prompt": "用户: 你好", "completion": "助手: 好"}])
    shapes = {kind: written(prepare(source, kind, "--no-split").paths)[0] for kind in SINGLE}
    assert shapes == {
        "alpaca": {"system": "Be kind.", "instruction": "你好", "input": "", "output": "好"},
        "qa": {"system": "Be kind.", "input": "你好", "output": "好"},
        "chat": {
            "messages": [
                {"role": "system", "content": "Be kind."},
                {"role": "user", "content": "你好"},
                {"role": "assistant", "content": "好"},
            ]
        },
    }


def test_gzip_is_read(prepare, samples: Path, tmp_path: Path) -> None:
    (tmp_path / "a.json.gz").write_bytes(gzip.compress((samples / "sample_data.json").read_bytes()))
    assert len(written(prepare(tmp_path / "a.json.gz", "alpaca").paths)) == 10


@pytest.mark.parametrize("kind", ["json", "jsonl"])
def test_one_object_over_several_lines_is_one_row(kind: str, prepare, tmp_path: Path) -> None:
    source = tmp_path / f"a.{kind}"
    source.write_text('{\n  "instruction": "Who?",\n  "output": "Me."\n}\n', "utf-8")
    done = prepare(source, "qa", "--no-split", "--input-format", kind)
    assert written(done.paths) == [{"input": "Who?", "output": "Me."}]


def test_text_in_the_markup_of_a_model_fits_chat_and_stays_text_where_text_is_asked_for(
    prepare, tmp_path: Path
) -> None:
    text = "### Human: Who?\n### Assistant: Me."
    source = jsonl(
        tmp_path / "a.jsonl", [{"text": text}, {"prompt": "### Human: Why?\n### Assistant:", "completion": "So."}]
    )
    assert written(prepare(source, "text", "--no-split").paths) == [{"text": text}]
    assert [row["output"] for row in written(prepare(source, "qa", "--no-split").paths)] == ["Me.", "So."]
    (kept,) = written(prepare(source, "qa", "--no-split", "--format", "prompt").paths)
    assert kept == {"input": "### Human: Why?\n### Assistant:", "output": "So."}


TEXT = st.text(st.sampled_from('ab \n\t：:用户助手User\u3000\u2028"\\😀'), max_size=12)
RECORDS = st.one_of(
    st.fixed_dictionaries({"instruction": TEXT, "output": TEXT}, optional={"input": st.none() | TEXT, "system": TEXT}),
    st.fixed_dictionaries({"prompt": TEXT, "completion": TEXT}, optional={"instruction": TEXT}),
    st.fixed_dictionaries({"input": TEXT, "output": TEXT}),
    st.fixed_dictionaries({"text": TEXT}),
    st.fixed_dictionaries(
        {
            "messages": st.lists(
                st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "gpt"]), "content": TEXT})
            )
        }
    ),
)


@pytest.mark.slow
@hypothesis_settings(max_examples=150)
@given(RECORDS, st.sampled_from(prepare_data.TYPES))
def test_what_is_written_is_read_back_as_the_row_that_was_kept(fields: dict, kind: str) -> None:
    made = prepare_data._clean(Record(1, fields), Path("a.jsonl"), kind)
    if isinstance(made, BadRow):
        assert made.reason
        return
    row, shaped = made
    again = rows.interpret(Record(1, json.loads(json.dumps(shaped))), Path("a.jsonl"), Reading(FORMAT_OF[kind]))
    assert again == rows.interpret(Record(1, shaped), Path("a.jsonl"))  # told without FORMAT as well
    assert isinstance(again, Row)
    assert oddities.numbers(again)[1:] == oddities.numbers(row)[1:]


# ---- splitting ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@given(st.lists(st.integers(0, 8), min_size=1, max_size=40), st.sampled_from([0.01, 0.05, 0.4]), st.integers(0, 3))
def test_three_prompts_fill_three_parts_and_equal_prompts_stay_together(prompts, share, seed) -> None:
    owner = list(splitting.deal(prompts, share, share, seed))
    assert len(owner) == len(prompts)
    assert len(set(owner)) == min(3, len(set(prompts)))
    assert 0 in owner
    assert len(set(zip(prompts, owner, strict=True))) == len(set(prompts))


def test_the_split_is_seeded(prepare, tmp_path: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", [{"input": f"q{i}", "output": "a"} for i in range(200)])
    first, again, other = (written(prepare(source, "qa", "--seed", seed).paths) for seed in ("1", "1", "2"))
    assert first == again != other


def test_200_rows_are_split_90_5_5_by_default(prepare, tmp_path: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", [{"input": f"q{i}", "output": "a"} for i in range(200)])
    assert [len(written([path])) for path in prepare(source, "qa").paths] == [180, 10, 10]
    more = prepare(source, "qa", "--validation-split", "0.2", "--test-split", "0.1")
    assert [len(written([path])) for path in more.paths] == [140, 40, 20]


def test_too_few_rows_leave_files_out_and_it_is_said(prepare, tmp_path: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", [{"input": "q", "output": "a"}])
    done = prepare(source, "qa")
    assert [path.name for path in done.paths] == ["my_train.jsonl"]
    assert done.said[1:3] == [
        f"my_{part}.jsonl is left out: 1 row with 1 different prompt, too few for it" for part in ("validation", "test")
    ]


def test_a_part_that_is_left_out_does_not_stay_behind_from_an_older_split(prepare, tmp_path: Path, samples) -> None:
    prepare(samples / "sample_data.json", "qa")
    done = prepare(samples / "sample_data.json", "qa", "--test-split", "0")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["my_train.jsonl", "my_validation.jsonl"]
    assert done.said[1] == "my_test.jsonl is left out: --test-split 0; the older one was removed"


# ---- what is refused ---------------------------------------------------------------------------------------------


def test_a_broken_file_is_refused_and_leaves_older_results_alone(prepare, samples: Path, tmp_path: Path) -> None:
    before = written(prepare(samples / "sample_data.json", "alpaca").paths)
    source = tmp_path / "a.json"
    source.write_text('[{"input": "a", "output": "b"},\n{"input": "c"', "utf-8")
    done = prepare(source, "qa")
    assert (done.code, done.said) == (
        2,
        ["the file is broken; what follows this cannot be read", f"  {source}:2: the list is not closed: ] is missing"],
    )
    assert written([tmp_path / "out" / f"my_{part}.jsonl" for part in prepare_data.PARTS]) == before
    assert len(list((tmp_path / "out").iterdir())) == 3


def test_a_file_in_another_encoding_is_refused_whole_and_leaves_older_results_alone(prepare, samples: Path, tmp_path):
    before = written(prepare(samples / "sample_data.json", "alpaca").paths)
    source = tmp_path / "a.csv"
    source.write_bytes("input,output\n学习,学校\n今天天气怎么样,我不知道\nWhy?,So.\n".encode("gb18030"))
    done = prepare(source, "qa")
    assert done.code == 2
    assert done.said == [
        f"{source}:3: not UTF-8 (byte 0xbd), so none of the file is read; most likely it is GB18030 (GBK: Chinese Windows "
        "and Excel): ENCODING = gb18030 reads it so, and this makes a file of UTF-8: "
        f"iconv -f GB18030 -t UTF-8 {source} > {tmp_path / 'a.utf8.csv'}"
    ]
    assert written([tmp_path / "out" / f"my_{part}.jsonl" for part in prepare_data.PARTS]) == before


def test_an_empty_and_a_missing_file_are_refused(prepare, tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    assert prepare(tmp_path / "a.txt", "text").said[0] == f"{tmp_path / 'a.txt'}: no rows: the file is empty"
    done = prepare(tmp_path / "b.txt", "text")
    assert (done.code, done.said) == (2, [f"{tmp_path / 'b.txt'}: there is no such file"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output-name", "a/b"], "--output-name a/b: must be a file name without /; --output-dir is the folder"),
        (["--test-split", "1"], "--test-split 1: must be from 0 up to, not including, 1"),
        (["--validation-split", "nan"], "--validation-split nan: must be from 0 up to, not including, 1"),
        (
            ["--validation-split", "0.5", "--test-split", "0.5"],
            "--validation-split and --test-split make 1: no rows are left to train on",
        ),
        (["--seed", "-1"], "--seed -1: must be at least 0"),
    ],
)
def test_wrong_arguments_are_named(arguments: list[str], message: str, prepare, samples: Path, tmp_path: Path) -> None:
    done = prepare(samples / "sample_data.json", "qa", *arguments)
    assert (done.code, done.paths, done.said) == (2, [], [message])
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_an_unknown_kind_of_rows_is_told_with_those_there_are(samples: Path, tmp_path: Path) -> None:
    done = script(
        "--input", samples / "sample_data.json", "--format-type", "xml", "--output-dir", tmp_path, "--output-name", "a"
    )
    assert (done.returncode, done.stdout) == (2, "")
    for known in prepare_data.TYPES:
        assert known in done.stderr


def test_the_input_is_never_replaced(prepare, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    source = jsonl(tmp_path / "out" / "my_train.jsonl", [{"input": "q", "output": "a"}])
    before = source.read_bytes()
    done = prepare(source, "qa")
    assert (done.code, source.read_bytes()) == (2, before)
    assert done.said == [f"--input {source}: the result would replace it; choose another --output-name"]


def test_a_folder_that_cannot_be_written_is_the_machines(prepare, samples: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = prepare(samples / "sample_data.json", "qa", "--output-dir", str(tmp_path / "file" / "below"))
    assert done.code == 3
    assert done.said == [
        f"{tmp_path / 'file' / 'below'} cannot be written: Not a directory; --output-dir names another"
    ]
    done = prepare(samples / "sample_data.json", "qa", "--output-dir", str(tmp_path / "file"))
    assert (done.code, done.said) == (2, [f"--output-dir {tmp_path / 'file'}: is a file, not a folder"])


def test_a_full_disk_leaves_nothing_half_written(prepare, samples: Path, tmp_path: Path, monkeypatch) -> None:
    """The disk is full when the second file is put on it; a fake, for a full disk cannot be had here."""
    real, calls = files.sync, []

    def full(path: Path) -> None:
        calls.append(path)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        real(path)

    monkeypatch.setattr(files, "sync", full)
    done = prepare(samples / "sample_data.json", "qa")
    assert done.code == 3
    assert done.said[-1] == f"{tmp_path / 'out'} cannot be written: No space left on device; --output-dir names another"
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.slow
def test_without_numpy_the_split_is_refused_and_no_split_works(samples: Path, tmp_path: Path) -> None:
    words = [
        "--input",
        samples / "sample_data.json",
        "--format-type",
        "qa",
        "--output-dir",
        tmp_path / "o",
        "--output-name",
        "a",
    ]
    # A checkout that was never set up: no .venv to go on in.
    alone = shutil.copytree(SCRIPT.parent, tmp_path / "alone" / "training", ignore=shutil.ignore_patterns("*.log*"))
    command = [sys.executable, "-S", str(alone / SCRIPT.name), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=60)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("numpy, which deals the rows out, is not installed in this Python: ")
    done = subprocess.run([*command, "--no-split"], capture_output=True, text=True, encoding="utf-8", timeout=60)
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'o' / 'a.jsonl'}\n"), done.stderr


def test_the_options_on_reading_are_those_of_the_settings(prepare, tmp_path: Path) -> None:
    source = tmp_path / "a.csv"
    source.write_bytes("Frage,Antwort\n今天天气怎么样,不知道\nWho?,NaN\n".encode("gbk"))
    columns = ("--columns", "instruction: Frage, output: Antwort")
    done = prepare(source, "qa", "--no-split", *columns, "--encoding", "gbk", "--null-words", "keep")
    assert [row["output"] for row in written(done.paths)] == ["不知道", "NaN"]
    done = prepare(source, "qa", "--no-split", "--encoding", "klingon")
    assert (done.code, done.said[0]) == (2, "--encoding klingon: is no encoding that is known; auto, utf-8, utf-16, gbk, big5, shift_jis, euc-kr, cp1251, cp1252 and others are")  # fmt: skip


def test_weights_tools_and_thoughts_come_through_chat_and_fit_nothing_else(prepare, tmp_path: Path) -> None:
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    messages = [
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "1", "tool_call_id": "a"},
        {"role": "assistant", "content": "Me.", "weight": 0},
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "So.", "reasoning_content": "Hm."},
    ]
    source = jsonl(tmp_path / "a.jsonl", [{"messages": messages, "tools": [{"name": "f", "parameters": {}}]}])
    done = prepare(source, "chat", "--no-split")
    (before,), (after,) = rows.read(source), rows.read(done.paths[0])
    assert (after.messages, after.tools) == (before.messages, before.tools)
    done = prepare(source, "qa", "--no-split")
    assert "qa has no place for tools, thoughts, or turns that are not learned" in "".join(done.said)


@pytest.mark.slow
def test_without_packages_it_goes_on_in_the_python_that_has_them(samples: Path, tmp_path: Path) -> None:
    words = ["--input", samples / "sample_data.json", "--format-type", "qa", "--output-dir", tmp_path / "o"]
    done = script(*words, "--output-name", "a", python=("-S",))
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 3, done.stderr


# ---- exports of chat programs ------------------------------------------------------------------------------------


@pytest.fixture
def exported(tmp_path: Path) -> dict[str, Path]:
    return exports.every(tmp_path)


@pytest.mark.parametrize("kind", chats.NAMES)
def test_an_export_becomes_rows_that_training_reads(kind: str, exported: dict[str, Path], prepare) -> None:
    mine = {"whatsapp": ["--my-name", "Ben"], "discord": ["--my-name", "Ben"], "slack": ["--my-name", "Benny"]}
    done = prepare(exported[kind], "chat", "--no-split", *mine.get(kind, ()))
    assert done.code == 0, done.said
    assert done.said[0].startswith(f"{exported[kind]}: read as an export of {chats.NAMES[kind]}: ")
    found = list(rows.read(done.paths[0]))
    assert found and all(isinstance(row, Row) for row in found)
    named = prepare(exported[kind], "chat", "--no-split", "--input-format", kind, *mine.get(kind, ()))
    assert (named.code, list(rows.read(named.paths[0]))) == (0, found)


def test_the_picture_stands_before_what_is_written(exported: dict[str, Path], prepare) -> None:
    done = prepare(exported["whatsapp"], "chat", "--no-split", "--my-name", "ben")
    assert done.said == [
        f"{exported['whatsapp']}: read as an export of WhatsApp: 1 chat; messages: Ben (you) 4, Anna 3",
        "  2 conversations, 6 turns, 3 answers to be learned, 2024-03-13 to 2024-03-14",
        "  longest: 4 turns, 44 characters; written in: Latin letters 100%",
        "  left out: system lines 1, media 1",
        "  1 message edited: as they were in the end",
        f"{exported['whatsapp']}: 2 rows read, 0 bad, 0 duplicates",
        "rows written: 2 my.jsonl",
    ]


def test_without_a_name_nothing_is_written(exported: dict[str, Path], prepare, tmp_path: Path) -> None:
    done = prepare(exported["whatsapp"], "chat")
    assert (done.code, done.paths, list((tmp_path / "out").iterdir())) == (2, [], [])
    assert done.said == [
        f"{exported['whatsapp']}: --my-name says whose answers are to be learned: Ben (4 messages) or Anna (3 messages)"
    ]


@pytest.mark.parametrize(
    ("kind", "more", "said"),
    [
        ("chatgpt", ["--my-name", "Ben"], "--my-name Ben: an export of ChatGPT says itself who answers; leave it out"),
        ("telegram", ["--date-order", "dmy"], "--date-order dmy: an export of Telegram says itself which is the day"),
        ("slack", ["--columns", "input: a"], "--columns input: a: the export of a chat program has no columns to name"),
        ("whatsapp", ["--gap-minutes", "0"], "--gap-minutes 0: must be above 0"),
        ("whatsapp", ["--gap-minutes", "nan"], "--gap-minutes nan: must be above 0"),
        ("whatsapp", ["--most-turns", "1"], "--most-turns 1: must be at least 2, or 0 for no limit"),
    ],
)
def test_options_that_say_nothing_are_refused(kind: str, more: list[str], said: str, exported, prepare) -> None:
    done = prepare(exported[kind], "chat", *more)
    assert (done.code, done.said) == (2, [said])


@pytest.mark.parametrize("flag", ["--my-name", "--gap-minutes", "--most-turns", "--date-order"])
def test_options_of_chats_are_refused_for_rows(flag: str, samples: Path, prepare) -> None:
    value = {"--my-name": "Ben", "--date-order": "dmy"}.get(flag, "5")
    done = prepare(samples / "sample_data.json", "chat", flag, value)
    assert done.code == 2
    assert done.said[0].startswith(
        f"{flag}: {samples / 'sample_data.json'} is read as a file of rows, not as the export of"
    )


def test_private_things_are_told_by_line_or_masked_and_alike_each_time(prepare, tmp_path: Path) -> None:
    path = jsonl(
        tmp_path / "a.jsonl", [{"prompt": f"q{n}", "completion": f"mail a{n % 2}@company.de"} for n in range(4)]
    )
    warned = prepare(path, "qa", "--no-split")
    assert warned.said[1] == (
        f"{path}:1: 4 rows with an e-mail address (--on-private mask writes a mask in its place); lines 1, 2, 3, 4"
    )
    first = written(prepare(path, "qa", "--no-split", "--on-private", "mask").paths)
    assert "company" not in str(first) and first[0]["output"] == first[2]["output"] != first[1]["output"]
    assert written(prepare(path, "qa", "--no-split", "--on-private", "mask").paths) == first
    stopped = prepare(path, "qa", "--on-private", "stop")
    assert stopped.code == 2 and "holds an e-mail address: ON_PRIVATE = mask" in stopped.said[1]


def test_texts_are_masked_and_taken_from_the_column_that_is_named(prepare, tmp_path: Path) -> None:
    path = jsonl(
        tmp_path / "a.jsonl",
        [
            {"Body": "Ann: ann@company.de"},
            {"Body": "User: Where is Ann?\nAssistant: Ask ben@company.de."},
            {"Body": "x"},
        ],
    )
    done = prepare(path, "text", "--no-split", "--columns", "text: Body", "--on-private", "mask")
    one, two, three = (found["text"] for found in written(done.paths))
    assert "company" not in one + two and one.startswith("Ann: [e-mail ")
    assert two.startswith("User: Where is Ann?\nAssistant: Ask [e-mail ") and three == "x"


def test_an_input_stays_apart_with_a_mask(prepare, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"instruction": "Who?", "input": "ann@company.de", "output": "Ann."}])
    (found,) = written(prepare(path, "alpaca", "--no-split", "--on-private", "mask").paths)
    assert found["instruction"] == "Who?" and found["input"].startswith("[e-mail ")


def test_a_missing_export_is_told_as_that(prepare, tmp_path: Path) -> None:
    done = prepare(tmp_path / "none.zip", "chat", "--my-name", "Ben")
    assert (done.code, done.said) == (2, [f"{tmp_path / 'none.zip'}: there is no such file"])


# ---- documents ---------------------------------------------------------------------------------------------------


@pytest.fixture
def guide(tmp_path: Path) -> Path:
    folder = tmp_path / "guide"
    folder.mkdir()
    (folder / "a.md").write_text("# A\n\n" + "User: one\nAssistant: two\n" * 10 + "\n# B\n\n" + "Text. " * 20, "utf-8")
    (folder / "b.txt").write_text("Plain text of b.", "utf-8")
    return folder


def test_a_folder_of_documents_becomes_rows_of_plain_text(guide: Path, prepare) -> None:
    done = prepare(guide, "text", "--no-split", "--characters", "300")
    assert (done.code, done.said) == (
        0,
        [f"{guide}: 3 rows read, 0 bad, 0 duplicates", "rows written: 3 my.jsonl"],
    )
    texts = [row["text"] for row in written(done.paths)]
    assert [text.split("\n")[0] for text in texts] == ["# A", "# B", "Plain text of b."]
    assert all(row.text for row in rows.read(done.paths[0]) if isinstance(row, Row))


def test_one_document_may_be_named(guide: Path, prepare) -> None:
    done = prepare(guide / "a.md", "text", "--no-split", "--input-format", "documents")
    assert (done.code, len(written(done.paths))) == (0, 1)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--characters", "99"], "--characters 99: must be at least 100"),
        (["--format-type", "chat"], "plain text has no question; --format-type text takes it"),
        (["--my-name", "Ben"], "is read as a file of rows, not as the export of a chat program"),
    ],
)
def test_what_does_not_fit_documents_is_refused(more: list[str], said: str, guide: Path, prepare) -> None:
    done = prepare(guide, "text", *more)
    assert done.code == 2 and said in "\n".join(done.said)


def test_characters_are_of_documents_alone(samples: Path, prepare, tmp_path: Path) -> None:
    done = prepare(samples / "sample_text.txt", "text", "--characters", "500")
    assert (done.code, done.said) == (2, ["--characters 500: only documents are cut; --input-format documents"])
    chat = prepare(exports.every(tmp_path)["telegram"], "chat", "--characters", "500")
    assert chat.said == ["--characters 500: only documents are cut; --most-turns cuts conversations"]


# ---- data sets on a hub ------------------------------------------------------------------------------------------


@pytest.fixture
def at_hubs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The same data sets on both hubs."""

    def lines(word: str, *numbers: int) -> bytes:
        return b"".join(
            json.dumps({"prompt": f"{word}{n}", "completion": "mail a@company.de"}).encode() + b"\n" for n in numbers
        )

    content = {
        "owner/parts": {
            "data/train-00000-of-00002.jsonl": lines("a", 1, 2, 3, 3),
            "data/train-00001-of-00002.jsonl": lines("a", 3) + lines("b", 1, 2),
        },
        "owner/splits": {"train.jsonl": lines("a", 1), "test.jsonl": lines("b", 1)},
        "owner/bad": {"train.jsonl": b"{}\n"},
    }
    hub, scope = Hub({}, data=content), ModelScope(data=content)
    led_to(monkeypatch, tmp_path / "caches", hub, scope)
    yield
    hub.server.shutdown()
    scope.server.shutdown()


@pytest.mark.parametrize(("at", "commit"), [("hf", "a" * 40), ("ms", COMMIT)])
def test_a_data_set_on_a_hub_is_prepared_as_one_file_of_all_its_parts(
    at: str, commit: str, at_hubs: None, prepare
) -> None:
    done = prepare(f"{at}:owner/parts", "chat", "--no-split", "--on-private", "mask")
    assert done.code == 0, done.said
    assert [row["messages"][0]["content"] for row in written(done.paths)] == ["a1", "a2", "a3", "b1", "b2"]
    assert len({row["messages"][1]["content"] for row in written(done.paths)}) == 1, "one mask in all its files"
    assert f"{at}:owner/parts is {at}:owner/parts@{commit}:default:train: 2 files" in done.said
    counted = [line.rpartition("/")[2] for line in done.said if "rows read" in line]
    assert counted == [
        "train-00000-of-00002.jsonl: 4 rows read, 0 bad, 1 duplicates",
        "train-00001-of-00002.jsonl: 3 rows read, 0 bad, 1 duplicates",
    ]


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("hf:owner/splits", 2, "--input hf:owner/splits: has several splits, and none is named; write --input hf:owner/splits:default:train, or"),
        ("hf:owner", 2, "--input hf:owner: is written hf:owner/name, hf:owner/name:config:split or"),
        ("hf:owner/none", 3, "--input hf:owner/none: the Hub"),
        ("hf:owner/bad", 2, "train.jsonl: no rows: all 1 are bad"),
    ],
)  # fmt: skip
def test_a_name_on_a_hub_that_gives_no_rows_is_refused_with_the_flag(
    name: str, code: int, said: str, at_hubs: None, prepare, tmp_path: Path
) -> None:
    done = prepare(name, "chat")
    assert (done.code, done.paths) == (code, [])
    assert any(said in line for line in done.said), done.said
    assert not list(tmp_path.rglob("my*"))


def test_a_hub_that_cannot_be_reached_names_the_flag_that_asks_the_other(
    prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    led_to(monkeypatch, tmp_path / "caches", nowhere(), nowhere())
    done = prepare("hf:owner/parts", "chat")
    assert done.code == 3
    assert done.said[-1].endswith("ModelScope may have it under the same name: --input ms:owner/parts")


def test_a_python_without_what_fetches_data_sets_says_so(prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    done = prepare("hf:owner/parts", "chat")
    assert done.code == 3
    assert (
        "--input hf:owner/parts: huggingface_hub, which is needed to fetch a data set, is not installed"
        in done.said[-1]
    )
