"""The report: whole, honest about what a run did not reach, and unable to be broken by any text inside it."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import math
import re
import shlex
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.paths import ROOT
from tests.support.reports import evaluation, good, hostile, in_state, step, write_events
from training import report, runs
from training.checks import Outcome
from training.evaluation import Score
from training.report import Report, as_html, as_markdown, charts, contents, curves, gathering, schema, writing
from training.report.blocks import Table
from training.report.schema import (
    Artefact,
    BaseFacts,
    Evaluation,
    Quantised,
    RunFacts,
    Sample,
    Step,
    TrainingFacts,
)
from training.runs import Run
from training.system import files, privacy, wording
from training.system.wording import columns, fold
from training.train.link import Exchange

TOKEN = "hf_" + "AbCdEfGhIjKlMnOpQrStUvWxYz"


def refuse(constant: str) -> float:
    raise AssertionError(f"{constant} is not JSON")


# Files


def test_report_json_is_the_last_file_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = []
    whole = files.write_bytes
    monkeypatch.setattr(files, "write_bytes", lambda path, *rest: (order.append(path.name), whole(path, *rest)))
    report.write(tmp_path, good(tmp_path))
    assert order == ["report.md", "report.html", "report.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(order)


def test_a_full_disk_leaves_no_report_json_not_even_an_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report.write(tmp_path, good(tmp_path))

    def full(path: Path, content: bytes, shared: bool) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        report.write(tmp_path, good(tmp_path))
    assert not (tmp_path / "report.json").exists()


@pytest.mark.parametrize("state", ["interrupted", "failed"])
def test_a_run_that_is_not_done_gets_no_report_json(tmp_path: Path, state: str) -> None:
    report.write(tmp_path, in_state(good(tmp_path), state))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.md"]


def test_report_json_reads_back_to_the_same_report(tmp_path: Path) -> None:
    write_events(tmp_path, step(1, 3.0), step(2, 2.0), evaluation(2, 1.5))
    said = report.write(tmp_path, good(tmp_path))
    assert said.training and len(said.training.losses) == 2
    assert schema.plain(report.read(tmp_path / "report.json")) == schema.plain(said)


def test_a_dict_will_do_and_a_field_that_does_not_exist_is_refused_by_name(tmp_path: Path) -> None:
    as_dict = schema.plain(good(tmp_path))
    assert report.write(tmp_path, as_dict).training == good(tmp_path).training
    with pytest.raises(ValueError, match="TrainingFacts has no field stepz"):
        report.write(tmp_path, {**as_dict, "training": {"stepz": 3}})


def test_nan_and_infinity_never_reach_report_json(tmp_path: Path) -> None:
    write_events(tmp_path, step(1, 3.0), '{"event": "step", "step": 2, "total": 60, "loss": NaN}')
    bad = dataclasses.replace(good(tmp_path).training, after=math.nan, best=math.inf)
    report.write(tmp_path, good(tmp_path, training=bad, checks=(Outcome("c", True, {"largest": math.inf}),)))
    found = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert found["training"]["after"] is None and found["training"]["losses"][1]["loss"] is None


@pytest.mark.slow
def test_a_long_run_keeps_its_reports_small(tmp_path: Path) -> None:
    losses = tuple(Step(at, 3 / (1 + at / 900), 1e-4, 1.0, 400.0) for at in range(1, 20_001))
    report.write(tmp_path, good(tmp_path, training=dataclasses.replace(good(tmp_path).training, losses=losses)))
    kept = report.read(tmp_path / "report.json").training.losses
    assert (len(kept), kept[0].step, kept[-1].step) == (writing.MOST_STEPS, 1, 20_000)
    assert (tmp_path / "report.html").stat().st_size < 300_000
    assert (tmp_path / "report.md").stat().st_size < 10_000


def test_artefacts_are_the_finished_files_with_size_and_hash(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "adapter").mkdir(parents=True)
    (run / "checkpoints" / "step-20").mkdir(parents=True)
    for name in (
        "adapter/a.safetensors",
        "b.gguf",
        "checkpoints/step-20/c",
        "status.json",
        "finetune.log",
        "report.md",
    ):
        (run / name).write_bytes(b"abc")
    (run / f"d.gguf.7{files.PARTIAL}").write_bytes(b"half")
    (run / "link").symlink_to(tmp_path)
    digest = hashlib.sha256(b"abc").hexdigest()
    expected = (Artefact("adapter/a.safetensors", 3, digest), Artefact("b.gguf", 3, digest))
    assert writing.artefacts(run) == expected


# What it says


@pytest.mark.parametrize(
    ("before", "after", "tone", "said"),
    [
        (3.18, 1.01, "good", "Better: validation loss 3.180 -> 1.010 (-68.2 %)."),
        (3.18, 3.17, "warn", "Hardly changed: validation loss 3.180 -> 3.170 (-0.3 %)."),
        (3.18, 4.77, "bad", "Worse: validation loss 3.180 -> 4.770 (+50.0 %)."),
        (None, None, "warn", "Trained without validation rows"),
    ],
)
def test_the_result_is_one_honest_sentence(before: float, after: float, tone: str, said: str) -> None:
    training = TrainingFacts(60, 60, before=before, after=after)
    result = contents.result(good(Path("/r"), training=training))
    assert result.tone == tone and result.text.startswith(said)


def test_an_interrupted_run_says_how_far_it_came_and_how_to_go_on() -> None:
    training = TrainingFacts(23, 60, before=3.18, losses=(Step(1, 3.0), Step(23, 1.2)))
    made = in_state(good(Path("/runs/a b"), training=training), "interrupted")
    text = as_markdown.markdown(made)
    assert "**Interrupted after step 23 of 60." in text
    assert f"{ROOT}/run.sh --resume '/runs/a b'" in text and "ollama run" not in text
    assert "ended at 23 of 60" in as_html.html(made)


def test_a_failed_run_says_where_why_and_what_is_safe() -> None:
    failed = {"failed_stage": "training", "error": "the loss is not a number", "safe": "step 20 is whole"}
    text = as_markdown.markdown(in_state(good(Path("/r")), "failed", **failed))
    assert "**Failed in training: the loss is not a number**" in text and "step 20 is whole" in text
    assert "export_ollama.sh" not in text


@pytest.mark.parametrize("state", ["completed", "interrupted", "failed"])
def test_a_run_that_reached_nothing_still_has_a_report(tmp_path: Path, state: str) -> None:
    bare = Report("x", RunFacts("r", "/r", state), BaseFacts("b"))
    report.write(tmp_path, bare)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert text.startswith("# x\n") and "None" not in text and "## Losses" not in text
    assert "None" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_without_a_record_of_training_its_events_still_tell_the_losses(tmp_path: Path) -> None:
    write_events(tmp_path, step(1, 3.0), step(2, 2.5))
    said = report.write(tmp_path, in_state(good(tmp_path, training=None), "failed"))
    assert said.training and (said.training.steps, said.training.total) == (2, 60)
    assert "## Losses" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_warnings_come_before_everything_else() -> None:
    headings = re.findall(r"^## (.*)$", as_markdown.markdown(good(Path("/r"))), re.MULTILINE)
    assert headings[:2] == ["Warnings", "Next"]
    assert [section.title for section in contents.sections(good(Path("/r")))] == headings


def test_report_md_answers_what_a_person_in_a_hurry_asks() -> None:
    training = dataclasses.replace(good(Path("/r")).training, losses=(Step(1, 3.0), Step(60, 1.0)))
    text = as_markdown.markdown(good(Path("/r"), training=training))
    for said in (
        "embedded/SmolLM2-135M-Instruct (135 M parameters), 144 rows of train_data.jsonl, 60 steps (3.3 epochs)",
        f"{ROOT}/export_ollama.sh /r my-assistant\nollama run my-assistant",
        "loss   * training loss",
        "### Who are you?",
        "我是 my-assistant。",
        "| my-assistant.Q4_K_M.gguf | 105 MB |",
        "| merged = base + update | passed  |",
        "| LoRA.R          | 8     | 16      | config.ini:14 |",
        "| Training.OPTIM       | adamw_torch | no CUDA device |",
        f"{ROOT}/run.sh --config /r/config.ini --fresh",
    ):
        assert said in text or said in " ".join(text.split())


def test_the_table_of_files_says_what_quantising_cost_and_what_was_made_with_an_importance_matrix() -> None:
    size = 105_454_432
    files = (
        Quantised("a.Q4_K_M.gguf", "q4_k_m", size, 0.02, 0.943, 12.4, perplexity_change=0.0124),
        Quantised("a.IQ2_XS.gguf", "iq2_xs", size, 0.9, 0.5, 31.0, importance=True, perplexity_change=1.531),
        Quantised("a.F16.gguf", "f16", size, perplexity=12.25),
    )
    text = as_markdown.markdown(good(Path("/r"), quantised=files))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if "| a." in line]
    assert [row[1] for row in rows] == ["q4_k_m", "iq2_xs, importance matrix", "f16"]
    assert [row[5] for row in rows] == ["12.4 (+1.2 %)", "31 (+153.1 %)", "12.25"]


def test_commands_survive_spaces_quotes_and_chinese_in_the_path() -> None:
    place = "/home/it's/我的 输出/run"
    text = as_markdown.markdown(good(Path(place)))
    commands = [shlex.split(line) for line in text.splitlines() if line.startswith("/")]
    assert commands == [
        [f"{ROOT}/export_ollama.sh", place, "my-assistant"],
        [f"{ROOT}/run.sh", "--config", f"{place}/config.ini", "--fresh"],
    ]


def test_a_check_that_failed_stands_out_and_one_that_was_not_run_says_why() -> None:
    made = good(Path("/r"), checks=(Outcome("a", False), Outcome("b", None, why="too little memory")))
    assert re.search(r"\| a +\| FAILED ", as_markdown.markdown(made))
    text = as_html.html(made)
    assert '<td class="verdict bad">FAILED</td>' in text and "too little memory" in text


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.01, "under 0.1 s"), (9.94, "9.9 s"), (59.7, "1 min 00 s"), (312, "5 min 12 s"), (7380, "2 h 03 min")],
)
def test_times_read_as_people_say_them(seconds: float, said: str) -> None:
    assert wording.duration(seconds) == said


def test_sizes_read_as_ollama_says_them() -> None:
    assert [wording.size(n) for n in (812, 2100, 105_454_432, 8_030_000_000)] == ["812 B", "2.1 kB", "105 MB", "8.0 GB"]


# Text that would break it


def pipes(line: str) -> int:
    """Column borders of a Markdown table's line: pipes that are not escaped."""
    return len(re.findall(r"(?<!\\)(?:\\\\)*\|", line))


@given(st.lists(st.text(), min_size=2, max_size=2))
def test_no_cell_can_break_a_markdown_table(cells: list[str]) -> None:
    lines = as_markdown.table(Table(("one", "two"), (tuple(cells), ("x", "y")))).split("\n")
    assert (
        len(lines) == 4 and len(as_markdown.table(Table(("one", "two"), (tuple(cells), ("x", "y")))).splitlines()) == 4
    )
    assert {pipes(line) for line in lines} == {3}


def test_a_cell_with_pipe_backtick_and_line_end_shows_exactly_that() -> None:
    lines = as_markdown.table(Table(("a", "b"), (("x|`y`\nz", "my_name __init__ <b>"),))).splitlines()
    assert lines[2] == r"| x\|\`y\` z | my_name \_\_init\_\_ \<b> |"


@pytest.mark.parametrize("text", ["*a*", "_a_", "~~a~~", "[a](b)", "<b>", "$a$", "`a`", "&lt;", "a\\*b"])
def test_marks_of_markdown_and_of_its_viewers_stay_text(text: str) -> None:
    shown = as_markdown.inline(text)
    assert re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", shown) == text  # what a viewer makes of it
    assert re.match(r"\\|a\\", shown)


@given(st.text(alphabet="`a\n~ "))
def test_no_answer_can_end_its_code_block(answer: str) -> None:
    lines = as_markdown.fence(as_markdown.wrapped(answer), "text").split("\n")
    ticks = lines[-1]
    assert lines[0] == f"{ticks}text" and not any(line.strip(" ").startswith(ticks) for line in lines[1:-1])


@pytest.mark.parametrize("text", ["# a", "1. a", "- a", "> a", "+ a", "=== a", "10) a"])
def test_a_line_that_looks_like_markdown_stays_text(text: str) -> None:
    shown = as_markdown.paragraph(text)
    assert re.match(r"\\[#>+=-]|\d+\\[.)]", shown) and shown.replace("\\", "", 1) == text


@given(st.text(min_size=0, max_size=400))
def test_folding_loses_no_character_but_spaces_at_line_ends(line: str) -> None:
    folded = fold(line)
    assert "".join("".join(folded).split()) == "".join(line.split())
    assert all(columns(part) <= 100 for part in folded)


class Tags(HTMLParser):
    """Which elements and attributes a browser would see."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.links: set[str | None] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.links |= {value for name, value in attrs if name in ("src", "href", "action", "data", "xlink:href")}

    def handle_data(self, data: str) -> None:
        self.text += data


def test_hostile_text_in_any_field_adds_no_element_and_no_attribute_to_the_page(tmp_path: Path) -> None:
    made = good(tmp_path, training=dataclasses.replace(good(tmp_path).training, losses=(Step(1, 3.0),)))
    parsed, plain = Tags(), Tags()
    parsed.feed(as_html.html(hostile(made)))
    plain.feed(as_html.html(made))
    assert parsed.tags == plain.tags and parsed.attributes == plain.attributes and "script" not in parsed.tags
    assert all(link == "data:," or link.startswith(("#", "./")) for link in parsed.links)
    assert {link for link in plain.links if link.startswith("./")} == {"./adapter/", "./my-assistant.Q4_K_M.gguf"}
    assert "<script>document.title='owned'</script>" in parsed.text


def test_escape_sequences_are_shown_and_not_obeyed(tmp_path: Path) -> None:
    report.write(tmp_path, hostile(good(tmp_path)))
    for name in ("report.md", "report.html"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)
        assert "\\x1b" in text and "\\u202e" in text


def test_half_a_character_does_not_stop_the_report(tmp_path: Path) -> None:
    report.write(tmp_path, good(tmp_path, samples=(Sample("q\ud83d", "a\udc80", "b"),)))
    assert report.read(tmp_path / "report.json").samples[0].question == "q\ufffd"


# Privacy


def test_tokens_and_keys_reach_none_of_the_three_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef0123456789abcdef01234567")
    made = good(
        tmp_path,
        settings={"Model": {"BASE_MODEL_NAME": f"https://user:{TOKEN}@host/x", "HF_TOKEN": "short-one"}},
        differences=(("Hub.API_KEY", "another-one", None, "config.ini:3"), ("Model.X", TOKEN, "", "--set")),
        choices=(("Training.REPORT_TO", "wandb", "key 0123456789abcdef0123456789abcdef01234567"),),
        warnings=(f"401 for Authorization: Bearer {TOKEN}", "sk-proj-" + "a1" * 20),
        samples=(Sample(f"What is {TOKEN}?", None, TOKEN),),
        machine={"proxy": "http://me:pass-word@proxy:8080"},
    )
    report.write(tmp_path, made)
    for name in ("report.json", "report.md", "report.html"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        for secret in (TOKEN, "short-one", "another-one", "0123456789abcdef0123", "a1a1a1", "pass-word"):
            assert secret not in text
    assert privacy.HIDDEN in (tmp_path / "report.json").read_text(encoding="utf-8")


def test_hashes_revisions_and_ordinary_words_are_not_taken_for_secrets() -> None:
    text = "max_tokens 64, tokens_per_second 412, revision 7ae557604adf67be50417f59c2c2f167def9a775, task-oriented-model-name"
    assert privacy.redact(text) == text
    assert not privacy.names_a_secret("MAX_TOKENS") and not privacy.names_a_secret("tokenizers")


@pytest.mark.slow
def test_reading_and_writing_a_report_needs_no_heavy_package() -> None:
    code = "import sys, training.report; print(*sorted({'torch', 'transformers', 'matplotlib', 'numpy'} & set(sys.modules)))"
    root = Path(schema.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


# Curves


def test_steps_told_twice_by_a_resumed_run_count_once(tmp_path: Path) -> None:
    again = [step(at, 9.0) for at in range(1, 31)] + [evaluation(20, 8.0), evaluation(30, 7.0)]
    path = write_events(tmp_path, *again, *(step(at, 1.0) for at in range(21, 26)))
    steps, evaluations, total = curves.read(path)
    assert [item.step for item in steps] == list(range(1, 26)) and total == 60
    assert steps[19].loss == 9.0 and steps[20].loss == 1.0
    assert evaluations == (Evaluation(20, 8.0),)


def test_torn_and_foreign_lines_are_passed_over(tmp_path: Path) -> None:
    path = write_events(tmp_path, step(1), "[1, 2]", '{"event": "started"}', "", '{"event": "step", "st')
    assert len(curves.read(path)[0]) == 1
    assert curves.read(tmp_path / "none.jsonl") == ((), (), 0)


def test_a_chart_in_ascii_fits_a_terminal_of_80_columns() -> None:
    steps = [Step(at, 3 - at / 30) for at in range(1, 61)]
    drawn = charts.text(curves.charts(steps, [Evaluation(0, 3.1), Evaluation(60, 1.2)], 60)[0])
    assert drawn.isascii() and max(map(len, drawn.splitlines())) <= 80
    rows = [line[8:] for line in drawn.splitlines()[1:-2]]
    assert rows[3][0] == "o" and next(row for row in rows if row.endswith("o"))  # before and after
    heights = [at for column in range(64) for at, row in enumerate(rows) if row[column : column + 1] == "*"]
    assert len(heights) > 50 and heights == sorted(heights)  # a loss that falls is drawn falling


def test_a_diverged_run_is_drawn_on_a_logarithmic_scale_and_marks_where_numbers_end() -> None:
    steps = [Step(at, 2.4 * 1.45 ** max(0, at - 12) if at < 30 else None, 1e-4) for at in range(1, 32)]
    chart = curves.charts(steps, [], 60)[0]
    assert "(logarithmic)" in charts.text(chart) and "!" in charts.text(chart).splitlines()[1]
    assert "not a number from step 30" in charts.svg(chart) and "not a finite number at step 30" in charts.describe(
        chart
    )


def test_a_run_whose_every_loss_is_nan_has_a_report(tmp_path: Path) -> None:
    write_events(tmp_path, step(1, None), step(2, None))
    report.write(tmp_path, in_state(good(tmp_path, training=None), "failed"))
    assert "! not a number" in (tmp_path / "report.md").read_text(encoding="utf-8")


@given(st.lists(st.floats(-1e9, 1e9), min_size=1))
def test_every_value_lies_on_its_scale_and_larger_ones_higher(values: list[float]) -> None:
    axis = charts.scale(values)
    room = 1e-6 * max(1.0, abs(axis.low), abs(axis.high))
    assert axis.low < axis.high and max(values) <= axis.high + room
    assert axis.logarithmic or min(values) >= axis.low - room
    shares = [axis.share(value) for value in sorted(values)]
    assert shares == sorted(shares) and shares[0] >= 0 and shares[-1] <= 1
    assert 2 <= len(axis.ticks) <= 13 and list(axis.ticks) == sorted(set(axis.ticks))


@pytest.mark.parametrize("losses", [[1.0], [0.0, 0.0], [2e-4, 2e-4], [3.0, None, 2.0], [1e-12, 5e-12]])
def test_svg_is_well_formed_and_stays_inside_its_frame(losses: list[float | None]) -> None:
    steps = [Step(at, loss) for at, loss in enumerate(losses, 1)]
    root = ElementTree.fromstring(charts.svg(curves.charts(steps, [], 3)[0]))
    assert root.get("role") == "img" and root.get("aria-label", "").startswith("Loss by step: training loss from")
    dots = [(float(item.get("cx")), float(item.get("cy"))) for item in root.iter("circle")]
    assert len(dots) == sum(loss is not None for loss in losses)
    assert all(0 <= x <= 760 and 0 <= y <= 280 for x, y in dots)


def test_every_curve_that_was_measured_is_drawn_and_no_other() -> None:
    full = [Step(at, 1.0, 1e-4, 0.5, 400.0) for at in (1, 2)]
    titles = [chart.title for chart in curves.charts(full, [], 2)]
    assert titles == ["Loss", "Learning rate", "Tokens per second", "Gradient norm"]
    assert [chart.title for chart in curves.charts([Step(1, 1.0)], [], 2)] == ["Loss"]
    assert curves.charts([], [], 0) == []


# ---- gathered from what the stages left -------------------------------------------------------------------------


LEFT = {
    "train": {
        "steps": 3, "epochs": 1.0, "loss": 1.5, "validation": {"before": 2.0, "after": 1.5, "best": 1.25}, "best_step": 2,
        "stopped_early": False, "train_seconds": 4.0, "tokens": 30, "tokens_per_second": 7.5, "peak_memory": 9,
        "micro_batch": 1, "accumulation": 1, "seconds": 5.0, "trainable": 7, "fingerprint": {},
    },
    "evaluate": {
        "seconds": 2.0,
        "samples": [{"question": "q", "expected": "e", "before": "b", "after": "a", "stopped": True}],
        "scores": [{"name": "chrF", "before": 0.1, "after": 0.5, "quantised": None, "rows": 8, "verdict": "better"}],
        "general": [],
    },
    "merge": {"seconds": 1.0, "merge": {}},
    "check": {"seconds": 1.5, "checks": 1, "quantised": {"scores": {"chrF": 0.4}, "speeds": {"a.gguf": 12.0}}},
}  # fmt: skip


def left(folder: Path, stages: dict[str, object], **status: object) -> Run:
    planned = good(folder, settings={"Training": {"EARLY_STOPPING_PATIENCE": 0}}, warnings=())
    files.write_json(folder / runs.CHECKPOINTS / gathering.PLANNED, schema.plain(planned))
    return Run(folder, {"stages": stages, **status})


def test_a_report_is_gathered_from_what_the_stages_left(tmp_path: Path) -> None:
    (tmp_path / runs.CHECKPOINTS).mkdir()
    check = {"name": "c", "passed": True, "figures": {"n": 1}, "threshold": "t", "why": "w", "seconds": 0.5}
    rows = [{"file": "a.gguf", "method": "q4_k_m", "bytes": 5, "fallback": None, "kl": 0.1, "top1": 0.9}]
    made = gathering.gather(left(tmp_path, LEFT, checks=[check], quantised=rows), "completed")
    assert made.run.stages == {"train": 5.0, "evaluate": 2.0, "merge": 1.0, "check": 1.5}
    assert made.base.trainable == 7
    assert made.training == TrainingFacts(3, 60, 1.0, 2.0, 1.5, 1.25, 2, False, 7.5, 9)
    assert made.samples == (Sample("q", "b", "a", True, "e"),)
    assert made.training.exchange is None
    assert made.scores == (Score("chrF", 0.1, 0.5, 0.4, rows=8, verdict="better"),)
    assert made.quantised == (Quantised("a.gguf", "q4_k_m", 5, 0.1, 0.9, tokens_per_second=12.0),)
    assert made.checks == (Outcome(**check),)


def test_what_went_between_several_processes_is_told(tmp_path: Path) -> None:
    (tmp_path / runs.CHECKPOINTS).mkdir()
    between = {"seconds": 0.34, "share": 0.12, "waiting": 0.03, "reckoned": 0.32, "gbps": 1.0}
    made = gathering.gather(left(tmp_path, {**LEFT, "train": {**LEFT["train"], "exchange": between}}), "completed")
    assert made.training.exchange == Exchange(**between)
    assert (
        "Between the processes: 12% of the steps' time to add the gradients up (0.34 s a step; reckoned 0.32 s at 1 Gbit/s), "
        "3% to wait for each other."
    ) in " ".join(as_markdown.markdown(made).split())


def test_the_quantised_files_answers_are_put_beside_those_of_base_and_tuned_model(tmp_path: Path) -> None:
    (tmp_path / runs.CHECKPOINTS).mkdir()
    said = {"scores": {}, "speeds": {}, "answers": [{"text": "z", "stopped": False}]}
    made = gathering.gather(left(tmp_path, {**LEFT, "check": {**LEFT["check"], "quantised": said}}), "completed")
    assert made.samples == (Sample("q", "b", "a", True, "e", "z", False),)


def test_a_run_that_is_not_done_is_told_of_as_far_as_it_came_without_hashing_its_files(tmp_path: Path) -> None:
    write_events(
        tmp_path,
        {"event": "started", "time": 100.0},
        {**evaluation(0, 3.5), "time": 101.0},
        {**step(1, 3.0), "time": 160.0},
    )
    (tmp_path / runs.CHECKPOINTS).mkdir()
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "weights").write_bytes(b"abc")
    made = writing.with_curves(tmp_path, gathering.gather(left(tmp_path, {}), "killed", ended=False))
    assert (made.run.seconds, made.run.finished, made.artefacts) == (60.0, 160.0, ())
    assert made.training and (made.training.before, made.training.after, made.training.steps) == (3.5, None, 1)
    assert made.data == good(tmp_path).data


def test_stages_that_a_run_did_not_reach_leave_their_part_of_the_report_out(tmp_path: Path) -> None:
    (tmp_path / runs.CHECKPOINTS).mkdir()
    made = gathering.gather(left(tmp_path, {}), "interrupted")
    assert (made.training, made.samples, made.scores, made.quantised, made.checks) == (None, (), (), (), ())


def test_a_model_is_worse_by_the_validation_loss_or_by_the_held_out_rows(tmp_path: Path) -> None:
    assert gathering.worse(Run(tmp_path, {"stages": LEFT}), best=False) == ""
    losses = {"before": 1.0, "after": 1.5, "best": 0.75}
    run = Run(tmp_path, {"stages": {"train": {**LEFT["train"], "validation": losses}}})
    assert gathering.worse(run, best=True) == ""
    assert gathering.worse(run, best=False).endswith("validation loss 1.0000 before, 1.5000 after")
    score = {"name": "loss on held-out answers", "before": 1.0, "after": None, "rows": 8, "verdict": "worse"}
    run = Run(tmp_path, {"stages": {"train": LEFT["train"], "evaluate": {"scores": [score]}}})
    assert gathering.worse(run, best=False).endswith("loss on held-out answers 1.0000 before, no finite number after")
