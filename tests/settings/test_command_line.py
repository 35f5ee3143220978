"""The command line: what it sets, what it refuses and in which words, and how fast it answers."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.paths import ROOT
from training import settings
from training.errors import UserError
from training.settings.command_line import Arguments, parse
from training.settings.table import EVERY, TABLE
from training.settings.usage import COMMANDS, SETTING_FLAGS, SWITCHES


def given_settings(*argv):
    """{Section.KEY: (value, source)} of a command line; of two for one key the last, as load() takes it."""
    return {f"{o.section}.{o.key}": (o.value, o.source) for o in parse(argv).overrides}


def refused(*argv):
    with pytest.raises(UserError) as error:
        parse(argv)
    assert error.value.title == "wrong arguments" and error.value.problems[-1] == "./run.sh --help lists all arguments"
    return error.value.problems[:-1]


def test_nothing_given_is_a_run_with_the_shipped_settings():
    assert parse([]) == Arguments("run", ROOT / "config.ini")
    assert parse([]).run is None


def test_four_positions_as_the_go_host_gives_them():
    assert given_settings("data.jsonl", "/out put", "qwen3:0.6b", "3") == {
        "Dataset.DATASET_FILE": ("data.jsonl", "argument 1 (DATA)"),
        "Training.OUTPUT_DIR": ("/out put", "argument 2 (OUTPUT_DIR)"),
        "Model.BASE_MODEL_NAME": ("qwen3:0.6b", "argument 3 (BASE_MODEL)"),
        "Training.NUM_TRAIN_EPOCHS": ("3", "argument 4 (EPOCHS)"),
        "Training.MAX_STEPS": ("0", "argument 4 (EPOCHS)"),
    }


def test_an_empty_position_was_not_given():
    assert given_settings("", "", "", "") == {}
    assert list(given_settings("", "out")) == ["Training.OUTPUT_DIR"]


@pytest.mark.parametrize(("flag", "key"), SETTING_FLAGS.items())
@pytest.mark.parametrize("form", ["{flag} 7", "{flag}=7", "{under} 7", "{under}=7"])
def test_every_flag_sets_its_key_in_every_form(flag, key, form):
    argv = form.format(flag=flag, under="--" + flag[2:].replace("-", "_")).split(" ")
    found = given_settings(*argv)
    assert found.pop(key) == ("7", flag)
    assert found == ({"Training.MAX_STEPS": ("0", "--epochs")} if flag == "--epochs" else {})


def test_the_flags_are_those_that_are_promised():
    assert set(SETTING_FLAGS) == {
        "--data", "--columns", "--output", "--model", "--epochs", "--batch-size", "--learning-rate", "--max-length", "--lora-r", "--name",
    }  # fmt: skip
    assert set(SETTING_FLAGS.values()) <= set(TABLE)


def test_set_reaches_any_setting_and_its_value_may_hold_anything():
    assert given_settings("--set", "Model.SYSTEM_PROMPT=a=b # c", "--set=LoRA.R=8", "--set", "Model.REVISION=") == {
        "Model.SYSTEM_PROMPT": ("a=b # c", "--set Model.SYSTEM_PROMPT"),
        "LoRA.R": ("8", "--set LoRA.R"),
        "Model.REVISION": ("", "--set Model.REVISION"),
    }


def test_a_flag_beats_a_position_and_the_last_flag_wins():
    found = given_settings("--output=b", "--epochs", "5", "data", "a", "", "3", "--output", "c")
    assert found["Training.OUTPUT_DIR"] == ("c", "--output")
    assert found["Training.NUM_TRAIN_EPOCHS"] == ("5", "--epochs")
    assert given_settings("--epochs=2", "--set", "Training.MAX_STEPS=9")["Training.MAX_STEPS"][0] == "9"
    assert given_settings("--set", "Training.MAX_STEPS=9", "--epochs=2")["Training.MAX_STEPS"][0] == "0"


def test_negative_numbers_and_words_after_two_dashes_are_values():
    assert given_settings("--epochs", "-1")["Training.NUM_TRAIN_EPOCHS"][0] == "-1"
    assert given_settings("--name=--x")["Model.NEW_MODEL_NAME"][0] == "--x"
    assert given_settings("--", "--data", "-")["Dataset.DATASET_FILE"][0] == "--data"


@pytest.mark.parametrize(("flag", "takes"), [(flag, takes) for flag, (takes, _) in COMMANDS.items()])
def test_every_command_is_known_with_and_without_a_run(flag, takes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = flag[2:]
    if takes not in ("RUN RUN...", "MODEL"):
        assert (parse([flag]).command, parse([flag]).runs) == (name, ())
    if takes == "[RUN]":
        assert parse([flag, "outputs/x"]).run == tmp_path / "outputs/x"
        assert parse([f"{flag}=finetune_1"]).run == Path("finetune_1")
        (tmp_path / "here").mkdir()
        assert parse([flag, "here"]).run == tmp_path / "here"
        assert parse([flag, ""]).run is None
        assert parse([flag, "--config", "c.ini"]).runs == ()
    if takes == "RUN RUN...":
        assert parse([flag, "a", "b/c", "/d"]).runs == (Path("a"), tmp_path / "b/c", Path("/d"))


def test_switches_go_with_what_they_are_for():
    assert parse(["--fresh", "--detach"]).fresh and parse(["--detach", "--resume", "x"]).detach
    assert parse(["--status", "--json"]).json and parse(["--events"]).events
    assert not any([parse([]).fresh, parse([]).detach, parse([]).json, parse([]).events])


@pytest.mark.parametrize(
    ("argv", "problems"),
    [
        (["--epoch", "3"], ["--epoch is not a flag; did you mean --epochs?"]),
        (["--dta=x", "--lora_rank=8"], ["--dta is not a flag; did you mean --data?", "--lora-rank is not a flag; write --lora-r"]),
        (["--xyz"], ["--xyz is not a flag"]),
        (["-x"], ["-x is not a flag"]),
        (["--check=yes"], ["--check takes no value"]),
        (["--fresh=1"], ["--fresh takes no value"]),
        (["--resume="], ["--resume=: names no run"]),
        (["--data"], ["--data needs a value"]),
        (["--data", "--check"], ["--data needs a value"]),
        (["--name", ""], ["--name needs a value"]),
        (["--config"], ["--config needs a value"]),
        (["--set"], ["--set needs a value: Section.KEY=VALUE"]),
        (["--set", "R=8"], ["--set R=8: write LoRA.R=8"]),
        (["--set", "LoRA.R"], ["--set LoRA.R: write Section.KEY=VALUE, as in LoRA.R=8"]),
        (["--set", "max_steps"], ["--set max_steps: write Training.MAX_STEPS=VALUE"]),
        (["--set", ".R=8"], ["--set .R=8: write Section.KEY=VALUE, as in LoRA.R=8"]),
        (["--model", "None"], ["--model None: is no value; leave the flag out to take the one in the settings file"]),
        (["d", "o", "None", "3"], ['argument 3 (BASE_MODEL) = None: is no value; give "" to take the one in the settings file']),
        (["d", "o", "<nil>", "null"], [
            'argument 3 (BASE_MODEL) = <nil>: is no value; give "" to take the one in the settings file',
            'argument 4 (EPOCHS) = null: is no value; give "" to take the one in the settings file']),
        (["a", "b", "c", "4", "e", "f"], ["too many arguments: e, f; there are four: DATA OUTPUT_DIR BASE_MODEL EPOCHS"]),
        (["--check", "--status"], ["--check and --status exclude each other"]),
        (["--fresh", "--resume"], ["--fresh does not go with --resume"]),
        (["--json"], ["--json does not go with a run"]),
        (["--detach", "--history"], ["--detach does not go with --history"]),
        (["--detach", "--events"], ["--detach and --events exclude each other: follow with --follow --events"]),
        (["--status", "a", "b"], ["--status takes [RUN]"]),
        (["--history", "a"], ["--history takes no further argument"]),
        (["--check", "--events"], ["--events does not go with --check"]),
        (["--check", "--json"], ["--json does not go with --check"]),
        (["--chekc", "--set", "x", "--name=None"], [
            "--chekc is not a flag; did you mean --check?", "--set x: write Section.KEY=VALUE, as in LoRA.R=8",
            "--name None: is no value; leave the flag out to take the one in the settings file"]),
    ],
)  # fmt: skip
def test_wrong_arguments_are_all_named(argv, problems):
    assert refused(*argv) == problems


@given(
    st.lists(
        st.sampled_from(
            [
                *SETTING_FLAGS,
                *COMMANDS,
                *SWITCHES,
                "--set",
                "--",
                "-",
                "x",
                "LoRA.R=8",
                "",
                "=",
                "-1",
                "--=",
                "助手",
                "--\n",
            ]
        )
    )
)
def test_no_command_line_breaks_the_parser(argv):
    try:
        assert parse(argv).command in ("run", *(flag[2:] for flag in COMMANDS))
    except UserError as error:
        assert error.problems and all("\n" not in problem for problem in error.problems)


def test_the_settings_file_is_looked_for_where_the_caller_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    assert parse(["--config", "x.ini"]).config == tmp_path / "x.ini"
    assert parse(["--config=a.ini", "--config=~/b.ini"]).config == Path("/home/me/b.ini")


def test_odd_paths_give_an_error_or_a_path_never_a_traceback(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for argv in (["--config", "~nobody-here/x.ini"], ["--status", "~nobody-here"]):
        with pytest.raises(UserError, match="^~nobody-here.*: Could not determine home directory"):
            parse(argv)
    assert parse(["--status", "x" * 300]).run == tmp_path / ("x" * 300)


def test_an_error_names_the_argument_it_comes_from(tmp_path):
    (tmp_path / "c.ini").write_text("[LoRA]\nR = 0")
    arguments = parse(["", "", "", "three", "--set", "LoRA.r=1", "--set", "LoRA.LORA_ALPHA=x", "--batch_size", "0"])
    with pytest.raises(UserError) as error:
        settings.load(tmp_path / "c.ini", arguments.overrides, check_files=False)
    assert error.value.problems == [
        "c.ini:2: [LoRA] R = 0: must be at least 1",
        "--set LoRA.r: [LoRA] r is not a setting; write R",
        "--set LoRA.LORA_ALPHA=x: expected a whole number",
        "--batch-size 0: must be at least 1",
        "argument 4 (EPOCHS) = three: expected a number such as 0.1 or 2e-4",
    ]


def run(*argv, cwd=ROOT):
    command = [sys.executable, "-I", "-S", ROOT / "training" / "settings" / "command_line.py", *argv]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


@pytest.mark.slow
def test_as_a_script_it_says_on_stderr_what_is_wrong_and_exits_with_2(tmp_path):
    result = run("--set", "LoRA.R=x", "--config", ROOT / "config.ini", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "arguments: 1 problem\n  --set LoRA.R=x: expected a whole number\n"
    result = run("none.jsonl", "out", "", "3", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.endswith(f"\n  argument 1 (DATA) = none.jsonl: no such file ({tmp_path}/none.jsonl)\n")
    result = run("--config", "none.ini", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (2, f"{tmp_path}/none.ini: no such file\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--events", "--set", "LoRA.R=x"], "--set LoRA.R=x: expected a whole number"),
        (["--nonsense", "--events"], "--nonsense is not a flag"),
    ],
)
@pytest.mark.parametrize("script", ["settings/command_line.py", "finetune.py"])  # before the set-up, and after it
def test_a_program_that_listens_is_told_what_is_wrong_as_an_event(script, argv, said):
    command = [sys.executable, ROOT / "training" / script, *argv]
    result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    (event,) = [json.loads(line) for line in result.stdout.splitlines()]
    assert (result.returncode, event["v"], event["event"], event["exit_code"]) == (2, 1, "failed", 2)
    assert said in event["error"]
    assert said in result.stderr


@pytest.mark.slow
def test_as_a_script_it_is_silent_when_all_is_right(tmp_path):
    for argv in (["--check"], [], ["--status"]):
        result = run(*argv, cwd=tmp_path)
        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert os.listdir(tmp_path) == []  # noqa: PTH208 - the names are what is asked for


@pytest.mark.slow
def test_a_folder_that_was_removed_is_named(tmp_path):
    gone = tmp_path / "gone"
    code = f"import os, sys; os.mkdir({str(gone)!r}); os.chdir({str(gone)!r}); os.rmdir({str(gone)!r}); sys.path.insert(0, {str(ROOT)!r})"
    code += "; from training.settings.command_line import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-I", "-S", "-c", code]
    for argv in (["data.jsonl"], ["--config", "x.ini"]):
        result = subprocess.run([*command, *argv], capture_output=True, text=True)
        assert (result.returncode, result.stderr) == (2, "the folder you are in was removed; go to another one\n")
    assert subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.slow
def test_help_names_every_flag_and_every_setting_on_stdout():
    result = run("--help", "--nonsense")
    assert (result.returncode, result.stderr) == (0, "")
    for word in (*SETTING_FLAGS, *COMMANDS, *SWITCHES, "--config", "--set", *(item.key for item in EVERY.values())):
        assert f"  {word}" in result.stdout
    assert run("-h").stdout == result.stdout
    assert max(map(len, result.stdout.split("\n"))) <= 130


@pytest.mark.slow
@pytest.mark.parametrize("script", ["settings/command_line.py", "finetune.py"])
@pytest.mark.parametrize("argv", [["--help"], ["--set", "LoRA.R=x"]])
def test_it_answers_in_a_moment(script, argv):
    def processor_time():
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    start = processor_time()
    code = subprocess.run([sys.executable, str(ROOT / "training" / script), *argv], capture_output=True).returncode
    assert processor_time() - start < 0.3  # of the processor, for other programs may be using it as well
    assert code == (0 if argv == ["--help"] else 2)
