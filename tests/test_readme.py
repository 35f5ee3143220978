"""The pages against the program, against each other, and each against its translation.

The pages are README.md, CONTRIBUTING.md and everything in docs/. NAME.zh-CN.md is the Chinese of NAME.md.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import re
import shlex
import signal
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from training import control, errors, runs
from training.data import replay, rows
from training.pipeline import export_stages
from training.settings import other_names, rules, usage
from training.settings.rules import Given
from training.settings.table import EVERY as SETTINGS
from training.settings.table import EVERY_SECTION, reference
from training.system.this_machine import Machine

CHINESE = ".zh-CN.md"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = [page for page in PAGES if not page.name.endswith(CHINESE)]
EVERY = [page.with_name(page.stem + end) for page in PAGES for end in (".md", CHINESE)]
# Pages that are in English only: they are linked to, and their own links are looked after too.
OTHERS = [ROOT / "examples" / "go-host" / "README.md", ROOT / "benchmarks" / "README.md"]
BOTH = pytest.mark.parametrize("end", [".md", CHINESE], ids=["en", "zh"])
# How the Chinese table says what is allowed; words that a user types stay as they are.
TRANSLATED = (
    ("whole number", "整数"), ("names with commas between", "名称，用逗号分隔"), ("number, ", "数值，"), ("^text", "文本"), ("^path", "路径"),
    (r", or none$", "，或留空"), (r"\(none\)", "（无）"), (r"auto, or a ", "auto，或"), (r"from 0 up to, not including, 1", "从 0 到 1（不含 1）"),
    (r"above (\S+) and at most (\S+)", r"大于 \1，至多 \2"), (r"from (\S+) to (\S+)", r"从 \1 到 \2"), (r"at least (\S+)", r"至少 \1"),
    ("整数, ", "整数，"),
)  # fmt: skip
# Named, and there only once something has run.
MADE_LATER = {"training/finetune.log"}
# Words in capitals that are no setting of ours: what a user fills in, and parts of a Modelfile or of the source.
FILLED_IN = {*usage.POSITIONS, "DIR", "EPOCHS", "FILE", "FLAGS", "KEY", "MODEL", "NAME", "RUN", "TEXT", "URL", "VALUE"}
NO_SETTINGS = {
    "GET",
    "POST",
    "FROM",
    "TEMPLATE",
    "RENDERER",
    "PARSER",
    "ADAPTER",
    "PARAMETER",
    "GGUF",
    "NFC",
    "FORMATS",
    "PAIRS",
    "NOT_COMPARED",
} | {
    "GB18030",
    "UTF",
}
# Variables that others read; ours are found in the scripts.
OTHERS_VARIABLES = {
    "HF_TOKEN",
    "HF_ENDPOINT",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "OLLAMA",
    "OLLAMA_GO_TEMPLATE",
    "WANDB_API_KEY",
}
OTHERS_VARIABLES |= {"RANK", "WORLD_SIZE", "MASTER_ADDR"}


OTHER_NAMES = (*other_names.TAKEN, *other_names.IMPLIED)


def name(page: Path) -> str:
    """A page as the name of its test."""
    return str(page.relative_to(ROOT))


PAIR = pytest.mark.parametrize("page", PAGES, ids=name)
EACH = pytest.mark.parametrize("page", EVERY, ids=name)


@functools.cache
def read(page: Path) -> str:
    """The text of a page."""
    return page.read_text(encoding="utf-8")


def pair(page: Path) -> tuple[str, str]:
    """A page in English and in Chinese."""
    return read(page), read(page.with_name(page.stem + CHINESE))


def document(title: str, end: str) -> str:
    """The page of docs/ with this name, in the language of `end`."""
    return read(ROOT / "docs" / f"{title}{end}")


def chinese(cell: str) -> str:
    """A default or the allowed values of the English table, as the Chinese table has them."""
    for english, translated in TRANSLATED:
        cell = re.sub(english, translated, cell)
    return cell


def cells(line: str) -> list[str]:
    """The cells of one line of a table."""
    return [cell.strip() for cell in line.strip().strip("|").split(" | ")]


def settings_of(text: str) -> str:
    """The generated part of the page of the settings."""
    return text.split("<!-- settings -->\n")[1].split("\n<!-- /settings -->")[0]


def blocks(text: str, language: str = r"\w*") -> list[str]:
    """The code blocks, each with its fences."""
    return re.findall(rf"^```{language}\n.*?^```$", text, re.DOTALL | re.MULTILINE)


def lines_of(text: str) -> list[str]:
    """The lines outside of code blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE).splitlines()


def commands(text: str) -> list[str]:
    """The lines of the code blocks of the shell."""
    return [line for block in blocks(text, "sh") for line in block.splitlines()[1:-1]]


def headings(text: str) -> list[tuple[int, str]]:
    """Level and words of every heading."""
    found = (re.match("(#+) (.+)", line) for line in lines_of(text))
    return [(len(heading[1]), heading[2]) for heading in found if heading]


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


def spans(text: str) -> list[str]:
    """What stands in backquotes outside of code blocks."""
    return code("\n".join(lines_of(text)))


def links(text: str) -> list[str]:
    """Where the links of a page lead."""
    return re.findall(r"\]\(([^)\s]+)\)", "\n".join(lines_of(text)))


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as the Markdown viewers of code hosts make them."""
    found: list[str] = []
    for _, words in headings(text):
        plain = re.sub(r"[^\w\- ]", "", words.replace("`", "").lower()).replace(" ", "-")
        found.append(plain + (f"-{found.count(plain)}" if plain in found else ""))
    return set(found)


@functools.cache
def source() -> str:
    """Everything that takes flags or reads variables: the scripts, and the program."""
    files = [*ROOT.glob("*.sh"), *(ROOT / "tests").glob("*.sh"), ROOT / "tests" / "conftest.py"]
    return "\n".join(path.read_text(encoding="utf-8") for path in [*files, *(ROOT / "training").rglob("*.py")])


@functools.cache
def emitted() -> dict[str, set[str]]:
    """Every event that the program emits, with the names of its fields, as the source has them."""
    found: dict[str, set[str]] = {}
    for path in (ROOT / "training").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "emit"):
                continue
            named = {keyword.arg for keyword in node.keywords if keyword.arg}
            # A name that is computed is the state in which a run ended.
            names = [node.args[0].value] if isinstance(node.args[0], ast.Constant) else ["failed", "interrupted"]
            for event in names:
                found.setdefault(event, set()).update(named)
    return found


# ---- a page and its translation --------------------------------------------------------------------------------------


def test_every_page_is_there_in_english_and_in_chinese():
    there = {*(ROOT / "docs").glob("*"), *ROOT.glob("*.md")}
    assert there == set(EVERY)


@PAIR
def test_both_languages_have_the_same_headings_in_the_same_order(page):
    ours, theirs = ([level for level, _ in headings(text)] for text in pair(page))
    assert ours == theirs
    assert ours[0] == 1 and ours.count(1) == 1


@PAIR
def test_both_languages_have_the_same_code_blocks(page):
    ours, theirs = (blocks(text) for text in pair(page))
    assert ours == theirs


@PAIR
def test_both_languages_have_the_same_tables_row_by_row(page):
    ours, theirs = ([row for row in lines_of(text) if row.startswith("|")] for text in pair(page))
    assert [len(cells(row)) for row in ours] == [len(cells(row)) for row in theirs]
    skip = tuple(settings_of(text) if "<!-- settings -->" in text else "" for text in pair(page))
    assert [sorted(code(row)) for row in ours if row not in skip[0]] == [
        sorted(code(row)) for row in theirs if row not in skip[1]
    ]


@PAIR
def test_both_languages_name_the_same_things_paragraph_by_paragraph(page):
    ours, theirs = (
        [sorted(code(line)) for line in lines_of(text) if line.strip() and not line.startswith("|")]
        for text in pair(page)
    )
    assert len(ours) == len(theirs)
    for number, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        assert one == other, f"paragraph {number}"


@PAIR
def test_both_languages_link_to_the_same_places(page):
    """Each to the page in its own language; the links of the first paragraph lead to the other language and back."""
    ours, theirs = ([re.sub(r"#.*", "#", link).replace(CHINESE, ".md") for link in links(text)] for text in pair(page))
    assert ours == theirs


# ---- links -----------------------------------------------------------------------------------------------------------


def test_the_readme_is_short():
    for text in pair(ROOT / "README.md"):
        assert len(text.splitlines()) <= 200


@BOTH
def test_every_page_is_one_click_from_the_readme(end):
    linked = {link.partition("#")[0] for link in links(read(ROOT / f"README{end}"))}
    assert {name(page) for page in EVERY if page.name.endswith(CHINESE) == (end == CHINESE)} <= {
        *linked,
        f"README{end}",
    }


@EACH
def test_every_page_begins_with_the_way_back_to_the_readme_and_to_the_other_language(page):
    ours, others = (".md", CHINESE) if not page.name.endswith(CHINESE) else (CHINESE, ".md")
    readme = ("" if page.parent == ROOT else "../") + f"README{ours}"
    other = page.name.removesuffix(ours) + others
    first = links(read(page))[:2]
    assert first[0] == other if page.name == readme else first == [readme, other]


def test_the_table_that_the_readme_shows_is_read(tmp_path):
    (block,) = blocks(read(ROOT / "README.md"), "csv")
    file = tmp_path / "rows.csv"
    file.write_text("\n".join(block.splitlines()[1:-1]) + "\n", encoding="utf-8")
    (row,) = rows.read(file)
    assert [turn.content for turn in row.messages] == ["Do you ship to Canada?", "Yes, within a week."]


@pytest.mark.parametrize("page", [*EVERY, *OTHERS], ids=name)
def test_every_link_leads_to_a_file_and_a_heading_that_is_there(page):
    for link in links(read(page)):
        if re.match(r"https?:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link}: no such file"
        assert target.is_relative_to(ROOT.resolve()), link
        if anchor:
            assert anchor in anchors(read(target)), f"{link}: the headings there are {sorted(anchors(read(target)))}"


@EACH
def test_a_link_stays_in_its_language(page):
    """But for the links at its beginning."""
    pages = {each.resolve() for each in EVERY}
    for link in links(read(page))[1 if page.name.startswith("README") else 2 :]:
        target = (page.parent / link.partition("#")[0]).resolve()
        if target in pages:
            assert target.name.endswith(CHINESE) == page.name.endswith(CHINESE), link


# ---- names -----------------------------------------------------------------------------------------------------------


@EACH
def test_every_file_of_the_repository_that_is_named_exists(page):
    text = read(page)
    roots = "training|tests|examples|requirements|benchmarks|outputs|docs"
    words = {word for span in spans(text) for word in span.split()}
    paths = {word for word in words if re.fullmatch(rf"(?:{roots})/[\w./-]*|(?:\./)?\w+\.sh", word)}
    paths |= set(re.findall(rf"(?<!\S)(?:(?:{roots})/[\w-]+\.\w+|\./\w+\.sh)(?!\S)", "\n".join(commands(text))))
    missing = [path for path in paths - MADE_LATER if not (ROOT / path).exists()]
    assert not missing


@EACH
def test_every_flag_that_is_named_is_a_flag_of_some_program(page):
    known = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", source())) | {
        found for name in (*OTHER_NAMES, *other_names.MEANT) for found in re.findall("--[a-z-]+", f"--{name}")
    }
    named = {flag for span in spans(read(page)) for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]*", span)}
    assert named <= known


@EACH
def test_flags_in_commands_are_flags_of_the_program_that_is_called(page):
    known = {
        *usage.SETTING_FLAGS,
        *usage.SERVICE_FLAGS,
        *usage.COMMANDS,
        *usage.SWITCHES,
        "--config",
        "--set",
        "--help",
    }
    known |= {f"--{name}" for name in OTHER_NAMES}
    for line in commands(read(page)):
        called = re.search(r"(?:training/|\./|tests/)(?!test_)\w+\.(?:py|sh)", line)
        flags = set(re.findall(r"(?<= )--[a-z-]+", line))
        if line.startswith("./run.sh"):
            assert flags <= known
        elif called and called[0] != "tests/run.sh":
            program = (ROOT / called[0]).read_text(encoding="utf-8")
            assert flags <= set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", program)), line


def keys() -> dict[str, str]:
    """Every key with its section."""
    return {item.key: item.section for item in SETTINGS.values()}


@EACH
def test_every_key_that_is_named_is_a_setting_or_a_variable_that_is_read(page):
    """A misspelt one is there on purpose: the message that corrects it is quoted."""
    known = {*keys(), *FILLED_IN, *NO_SETTINGS, *OTHERS_VARIABLES, *signal.Signals.__members__}
    variables = set(re.findall(r"\b[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+\b|\bPYTHON\b", source()))
    for span in spans(read(page)):
        if "is not a setting" in span:
            continue
        for word in re.findall(r"(?<![\w/.<-])[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)*(?![\w/.-])", span):
            if len(word) > 1 and not re.fullmatch(r"Q\d.*", word):
                assert word in known or word in variables, span


@EACH
def test_every_value_that_a_page_gives_a_setting_is_taken(page):
    """In the text as `KEY = value`, in commands as --set Section.KEY=value."""
    given = [
        (keys()[key], key, value)
        for span in spans(read(page))
        for key, value in re.findall(r"^([A-Z][A-Z0-9_]+) = (.+)$", span)
        if key in keys()
    ]
    for text in [*commands(read(page)), *spans(read(page))]:
        for section, key, value in re.findall(r"--set (?!Section\.)(\w+)\.([A-Z_0-9]+)=(\S+)", text):
            assert keys().get(key) == section, text
            given.append((section, key, shlex.split(value)[0]))
    for section, key, value in given:
        item = SETTINGS[f"{section}.{key}"]
        rules.read(Given(value, ROOT), item.rule, item.kind)


# ---- the promises of single pages ------------------------------------------------------------------------------------


def test_the_english_table_of_settings_is_the_programs_own():
    assert settings_of(document("settings", ".md")) == reference().strip("\n")


def test_the_chinese_table_has_the_same_keys_defaults_and_values():
    texts = (document("settings", end) for end in (".md", CHINESE))
    english, translated = (
        [line for line in settings_of(text).splitlines() if line.startswith(("###", "| `"))] for text in texts
    )
    assert len(english) == len(translated) == len(EVERY_SECTION) + len(SETTINGS)
    for ours, theirs in zip(english, translated, strict=True):
        if ours.startswith("###"):
            assert theirs == ours
            continue
        assert cells(theirs)[:3] == [cells(ours)[0], *map(chinese, cells(ours)[1:3])]
        assert re.search("[\u4e00-\u9fff]", cells(theirs)[3]), f"not translated: {theirs}"


@BOTH
def test_every_flag_is_on_the_page_of_the_command_line(end):
    flags = {
        *usage.SETTING_FLAGS,
        *usage.SERVICE_FLAGS,
        *usage.COMMANDS,
        *usage.SWITCHES,
        "--config",
        "--set",
        "--help",
    }
    text = document("command-line", end)
    assert flags <= {word for span in code(text) for word in re.findall(r"--[a-z-]+", span)}


@BOTH
def test_every_setting_flag_stands_beside_the_setting_it_sets(end):
    text = document("command-line", end)
    rows = {row[0].strip("`").split()[0]: row[1] for row in table(text, "| flag |" if end == ".md" else "| 标志 |")}
    for flag, key in usage.SETTING_FLAGS.items():
        assert key.partition(".")[2] in code(rows[flag])


@BOTH
def test_the_exit_codes_are_those_of_the_program(end):
    rows = table(document("command-line", end), "| exit |" if end == ".md" else "| 退出码 |")
    stopped = f"{128 + signal.SIGINT} / {128 + signal.SIGTERM}"
    kinds = (errors.RunError, errors.UserError, errors.MachineError, errors.EndedAtOnce, errors.NotSwitched)
    known = ["0", *(str(kind.exit_code) for kind in kinds), stopped]
    assert [row[0] for row in rows] == known


@BOTH
def test_the_kinds_of_error_have_the_exit_codes_that_the_page_of_the_design_says(end):
    text = document("design", end)
    for kind in (errors.UserError, errors.MachineError, errors.RunError):
        assert re.search(rf"`{kind.__name__}` ?[(（]{kind.exit_code}[)）]", text)


@pytest.mark.slow
@BOTH
def test_the_events_and_their_fields_are_those_that_are_emitted(end):
    rows = table(document("events", end), "| event |" if end == ".md" else "| 事件 |")
    told = {event: set(code(row[1])) for row in rows for event in code(row[0])}
    known = emitted()
    assert told.keys() == known.keys()
    for event, fields in known.items():
        assert fields <= told[event], event
        if event in ("environment", "dataset"):  # these hand on a whole record
            continue
        parts = {"error", "exit_code", *errors.UserError("").parts(), *errors.RunError("", "").parts()}
        assert told[event] == fields | (parts if event in ("failed", "interrupted") else set()), event
    assert told["environment"] == {field.name for field in dataclasses.fields(Machine)}


@BOTH
def test_every_example_is_named(end):
    for example in (ROOT / "examples").glob("*.ini"):
        assert f"examples/{example.name}" in code(document("settings", end))


@BOTH
def test_the_files_of_a_run_are_named(end):
    rows = table(document("run-directory", end), "| file | what it is |" if end == ".md" else "| 文件 | 内容 |")
    named = {file.rstrip("/") for row in rows for file in code(row[0])}
    known = {runs.CONFIG, runs.LOG, runs.EVENTS, runs.STATUS, runs.CHECKPOINTS, runs.ADAPTER, runs.MERGED, runs.REPORT}
    assert (
        known
        | {
            runs.REJECTED,
            replay.FILE,
            runs.ROWS,
            runs.TENSORBOARD,
            "Modelfile",
            "report.md",
            "report.html",
            "<name>.Q4_K_M.gguf",
        }
        == named
    )


@BOTH
def test_the_checks_and_the_stages_of_the_export_are_those_of_the_program(end):
    rows = table(read(ROOT / f"README{end}"), "| check |" if end == ".md" else "| 检查 |")
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "training").rglob("*.py")]
    known = {check for text in sources for check in re.findall(r"\bCheck\(\s*f?\"([^\"]+)\"", text)}
    assert {row[0] for row in rows} == {check.split(" {")[0] for check in known}
    assert ("、" if end == CHINESE else ", ").join(export_stages.STAGES) in document("ollama", end)


def test_every_command_of_the_usage_does_something():
    built = {"resume", "check", "prove", "serve", *control.COMMANDS}
    assert {flag.removeprefix("--") for flag in usage.COMMANDS} <= built
