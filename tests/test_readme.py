"""Both READMEs against the program: settings, flags, exit codes, events, files; and against each other."""

from __future__ import annotations

import ast
import dataclasses
import functools
import re
import signal

import pytest
from conftest import ROOT

from training import control, environment, errors, export, plan, runs, settings, usage
from training.sections import reference

ENGLISH = (ROOT / "README.md").read_text(encoding="utf-8")
CHINESE = (ROOT / "README.zh-CN.md").read_text(encoding="utf-8")
BOTH = pytest.mark.parametrize("text", [ENGLISH, CHINESE], ids=["en", "zh"])
# How the Chinese table says what is allowed; words that a user types stay as they are.
VALUES = (
    ("whole number", "整数"), ("names with commas between", "名称，用逗号分隔"), ("number, ", "数值，"), ("^text", "文本"), ("^path", "路径"),
    (r", or none$", "，或留空"), (r"\(none\)", "（无）"), (r"auto, or a ", "auto，或"), (r"from 0 up to, not including, 1", "从 0 到 1（不含 1）"),
    (r"above (\S+) and at most (\S+)", r"大于 \1，至多 \2"), (r"from (\S+) to (\S+)", r"从 \1 到 \2"), (r"at least (\S+)", r"至少 \1"),
    ("整数, ", "整数，"),
)  # fmt: skip
MADE_LATER = {"training/finetune.log"}  # named, and there only once something has run


def chinese(cell: str) -> str:
    """A default or the allowed values of the English table, as the Chinese table has them."""
    for english, translated in VALUES:
        cell = re.sub(english, translated, cell)
    return cell


def cells(line: str) -> list[str]:
    """The cells of one line of a table."""
    return [cell.strip() for cell in line.strip().strip("|").split(" | ")]


def settings_of(text: str) -> str:
    """The generated part of a README."""
    return text.split("<!-- settings -->\n")[1].split("\n<!-- /settings -->")[0]


def lines_of(text: str) -> list[str]:
    """The lines outside of code blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE).splitlines()


def table(text: str, first: str) -> list[list[str]]:
    """The rows of the table whose first line begins with `first`, without that line and the rule under it."""
    lines = text.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(first))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append(cells(line))
    return rows


def code(text: str) -> list[str]:
    """What stands in backquotes."""
    return re.findall(r"`([^`\n]+)`", text)


@functools.cache
def emitted() -> dict[str, set[str]]:
    """Every event that the program emits, with the names of its fields, as the source has them."""
    found: dict[str, set[str]] = {}
    for path in (ROOT / "training").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "emit"):
                continue
            named = {keyword.arg for keyword in node.keywords if keyword.arg}
            # A name that is computed is the state in which a run ended.
            names = [node.args[0].value] if isinstance(node.args[0], ast.Constant) else ["failed", "interrupted"]
            for name in names:
                found.setdefault(name, set()).update(named)
    return found


def test_the_english_table_of_settings_is_the_programs_own():
    assert settings_of(ENGLISH) == reference().strip("\n")


def test_the_chinese_table_has_the_same_keys_defaults_and_values():
    english = [line for line in settings_of(ENGLISH).splitlines() if line.startswith(("###", "| `"))]
    translated = [line for line in settings_of(CHINESE).splitlines() if line.startswith(("###", "| `"))]
    assert len(english) == len(translated) > 60
    for ours, theirs in zip(english, translated, strict=True):
        if ours.startswith("###"):
            assert theirs == ours
            continue
        assert cells(theirs)[:3] == [cells(ours)[0], *map(chinese, cells(ours)[1:3])]
        assert re.search("[\u4e00-\u9fff]", cells(theirs)[3]), f"not translated: {theirs}"


@BOTH
def test_every_flag_is_named(text):
    flags = {*usage.SETTING_FLAGS, *usage.COMMANDS, *usage.SWITCHES, "--config", "--set", "--help"}
    assert flags <= {word for span in code(text) for word in re.findall(r"--[a-z-]+", span)}


@BOTH
def test_every_setting_flag_stands_beside_the_setting_it_sets(text):
    rows = {row[0].strip("`").split()[0]: row[1] for row in table(text, "| flag |" if text is ENGLISH else "| 标志 |")}
    for flag, key in usage.SETTING_FLAGS.items():
        assert key.partition(".")[2] in code(rows[flag])


@BOTH
def test_the_exit_codes_are_those_of_the_program(text):
    rows = table(text, "| exit |" if text is ENGLISH else "| 退出码 |")
    stopped = f"{128 + signal.SIGINT} / {128 + signal.SIGTERM}"
    known = ["0", *(str(kind.exit_code) for kind in (errors.RunError, errors.UserError, errors.MachineError)), stopped]
    assert [row[0] for row in rows] == known


@pytest.mark.slow
@BOTH
def test_the_events_and_their_fields_are_those_that_are_emitted(text):
    rows = table(text, "| event |" if text is ENGLISH else "| 事件 |")
    told = {name: set(code(row[1])) for row in rows for name in code(row[0])}
    known = emitted()
    assert told.keys() == known.keys()
    for name, fields in known.items():
        assert fields <= told[name], name
        if name in ("environment", "dataset"):  # these hand on a whole record
            continue
        assert told[name] == fields | ({"error", "exit_code"} if name in ("failed", "interrupted") else set()), name
    assert told["environment"] == {field.name for field in dataclasses.fields(environment.Machine)}


@BOTH
def test_every_file_of_the_repository_that_is_named_exists(text):
    roots = "training|tests|examples|requirements|benchmarks|outputs"
    words = {word for span in code("\n".join(lines_of(text))) for word in span.split()}
    paths = {word for word in words if re.fullmatch(rf"(?:{roots})/[\w./-]*|(?:\./)?\w+\.sh", word)}
    blocks = "\n".join(re.findall(r"^```sh\n(.*?)^```$", text, re.DOTALL | re.MULTILINE))
    paths |= set(re.findall(rf"(?<!\S)(?:(?:{roots})/[\w-]+\.\w+|\./\w+\.sh)(?!\S)", blocks))
    links = set(re.findall(r"\]\(([^)#:]+)\)", text))
    assert len(paths) > 15 and links
    missing = [path for path in (paths | links) - MADE_LATER if not (ROOT / path).exists()]
    assert not missing


@BOTH
def test_every_example_is_named(text):
    for example in (ROOT / "examples").glob("*.ini"):
        assert f"examples/{example.name}" in code(text)


@BOTH
def test_the_files_of_a_run_are_named(text):
    rows = table(text, "| file | what it is |" if text is ENGLISH else "| 文件 | 内容 |")
    named = {name.rstrip("/") for row in rows for name in code(row[0])}
    known = {runs.CONFIG, runs.LOG, runs.EVENTS, runs.STATUS, runs.CHECKPOINTS, runs.ADAPTER, runs.MERGED, runs.REPORT}
    assert (
        known | {runs.REJECTED, runs.TENSORBOARD, "Modelfile", "report.md", "report.html", "<name>.Q4_K_M.gguf"}
        == named
    )


@BOTH
def test_the_checks_and_the_stages_of_the_export_are_those_of_the_program(text):
    rows = table(text, "| check |" if text is ENGLISH else "| 检查 |")
    source = (ROOT / "training" / "checks.py").read_text(encoding="utf-8")
    known = re.findall(r"= Check\(\s*f?\"([^\"]+)\"", source)
    assert {row[0] for row in rows} == {name.split(" {")[0] for name in known} | {"modelfile"}
    assert ("、" if text is CHINESE else ", ").join(export.STAGES) in text


@BOTH
def test_what_is_said_to_be_not_built_is_refused(text):
    title = "### Not built yet\n" if text is ENGLISH else "### 尚未实现\n"
    said = code(text.split(title)[1].split("\n#")[0])
    flags = [word for word in said if word in usage.COMMANDS]
    assert flags == [flag for flag in usage.COMMANDS if flag not in ("--resume", "--check") and not known_command(flag)]
    values = {"NUM_PROCESSES": "2", "NUM_MACHINES": "2", "MAIN_PROCESS_ADDRESS": "10.0.0.5", "SHARDING": "fsdp"}
    several = [settings.Override("Hardware", key, value, key) for key, value in values.items()]
    with pytest.raises(errors.UserError) as refused:
        plan._not_built(settings.load(ROOT / "config.ini", several))
    refusals = re.findall(r"^ *([A-Z_]+).* not built yet", str(refused.value), re.MULTILINE)
    assert sorted(refusals) == ["SHARDING"]
    assert set(refusals) <= set(said)


def known_command(flag: str) -> bool:
    """Whether the program does something at this flag."""
    return flag.removeprefix("--") in control.COMMANDS


def test_both_have_the_same_headings_in_the_same_order():
    levels = [
        [re.match("#+", line)[0] for line in lines_of(text) if re.match("#+ ", line)] for text in (ENGLISH, CHINESE)
    ]
    assert levels[0] == levels[1] and len(levels[0]) > 15


def test_both_have_the_same_code_blocks():
    ours, theirs = (re.findall(r"^```.*?^```$", text, re.DOTALL | re.MULTILINE) for text in (ENGLISH, CHINESE))
    assert ours == theirs and len(ours) > 5


def test_both_have_the_same_tables_row_by_row():
    ours, theirs = ([row for row in lines_of(text) if row.startswith("|")] for text in (ENGLISH, CHINESE))
    assert [len(cells(row)) for row in ours] == [len(cells(row)) for row in theirs]
    assert [sorted(code(row)) for row in ours if row not in settings_of(ENGLISH)] == [
        sorted(code(row)) for row in theirs if row not in settings_of(CHINESE)
    ]


@BOTH
def test_flags_in_commands_are_flags_of_the_program(text):
    known = {*usage.SETTING_FLAGS, *usage.COMMANDS, *usage.SWITCHES, "--config", "--set", "--help"}
    for block in re.findall(r"^```sh\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        for line in block.splitlines():
            if line.startswith("./run.sh"):
                assert set(re.findall(r"(?<= )--[a-z-]+", line)) <= known
