"""Figures that explain themselves, and answers with the worst first and what Ollama runs beside them."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from tests.support.reports import good
from training.checks import Outcome
from training.evaluation import LOSS, PERPLEXITY, Score
from training.report import Report, as_html, as_markdown, contents
from training.report.schema import RunFacts, Sample

SAMPLES = (
    Sample("right", "?", "yes, it is", True, "yes, it is", "yes, it is", True),
    Sample("wrong", "?", "zzzz", True, "no", "no", True),
    Sample("endless", "?", "yes yes yes", False, "yes", "yes", True),
)


def section(made: Report, title: str) -> str:
    """A section of report.md."""
    return as_markdown.markdown(made).partition(f"## {title}\n")[2].partition("\n## ")[0]


def test_the_worst_answers_come_first() -> None:
    text = section(good(Path("/r"), samples=SAMPLES), "Answers")
    assert re.findall(r"^### (.*)$", text, re.MULTILINE) == ["endless", "wrong", "right"]
    assert "3 questions, the farthest from what is expected first." in text


def test_the_quantised_files_answer_stands_beside_the_others_and_is_not_repeated() -> None:
    made = good(Path("/r"), samples=SAMPLES)
    page = as_html.html(made)
    assert page.count('<div class="who">quantised') == 3
    assert page.count("the same as after") == 1
    assert "quantised: the same as after" in as_markdown.markdown(made)


def test_an_answer_that_was_cut_off_says_so_whoever_gave_it() -> None:
    made = good(Path("/r"), samples=(Sample("q", "a", "b", True, "b", "b b b b", False),))
    assert "quantised, cut off: it did not stop by itself" in as_html.html(made)


def test_an_answer_that_was_cut_off_before_its_end_could_be_told_is_not_said_to_run_on() -> None:
    made = good(Path("/r"), samples=(Sample("q", "a", "b", None, "b", "b b b b", None),))
    page, text = as_html.html(made), as_markdown.markdown(made)
    assert "after, cut off where the asking ends" in page and "quantised, cut off where the asking ends" in page
    assert "after (cut off where the asking ends):" in text
    assert "did not stop by itself" not in page and "did not stop by itself" not in text


def test_figures_of_one_kind_have_the_same_decimals_everywhere() -> None:
    scores = (
        Score(LOSS, 3.0, 0.03381, 0.05, -3.1, -2.9, 31, "better"),
        Score(PERPLEXITY, 47.5531, 1.0344, rows=31),
        Score("exact match", 0.0, 1.0, 1.0, 1.0, 1.0, 8, "better"),
        Score("answer length, characters", 109.75, 45.5, rows=8),
    )
    rows = [
        [line.split("|")[at] for at in (1, 3, 4)]
        for line in section(good(Path("/r"), scores=scores), "Evaluation").splitlines()[3:7]
    ]
    assert [[cell.strip() for cell in row] for row in rows] == [
        [LOSS, "3.000", "0.034"],
        [PERPLEXITY, "47.55", "1.03"],
        ["exact match", "0.000", "1.000"],
        ["answer length, characters", "109.8", "45.5"],
    ]


def test_two_losses_of_the_same_rows_and_an_interval_without_0_are_explained() -> None:
    scores = (Score(LOSS, 3.68, 3.07, None, -0.9, -0.3, 5, "cannot tell from 5 rows"),)
    text = " ".join(section(good(Path("/r"), scores=scores), "Evaluation").split())
    assert "The validation loss above is a mean over all validation rows" in text
    assert "5 rows may all point one way by chance: from fewer than 6 nothing is told, whatever the interval" in text


def test_what_the_merge_rounds_away_is_told_with_what_it_costs() -> None:
    tensors = Outcome("merged tensors", True, {"rounding_loss": 0.6449})
    logits = Outcome("merged logits", True, {"mean_kl": 0.003, "mean_kl_of_training": 0.25})
    text = " ".join(section(good(Path("/r"), checks=(tensors, logits)), "Checks").split())
    assert "by 64 % of the size of the update, to and fro" in text
    assert "the predictions move by 1.2 % of what the training moved them" in text
    text = " ".join(section(good(Path("/r"), checks=(tensors,)), "Checks").split())
    assert "What it costs was not measured here." in text


def test_the_page_has_a_table_of_contents_links_to_files_and_a_bar_of_the_time() -> None:
    made = good(Path("/r"))
    page = as_html.html(made)
    for one in contents.sections(made):
        name = as_html.anchor(one)
        assert f'<a href="#{name}">' in page and f'<section id="{name}">' in page
    assert '<a href="./my-assistant.Q4_K_M.gguf">' in page and '<a href="./adapter/">' in page
    made = dataclasses.replace(made, run=RunFacts("r", "/r", stages={"train": 30.0, "check": 10.0}))
    assert "<title>train: 30 s, 75 %</title>" in as_html.html(made)


def test_a_name_that_is_a_link_elsewhere_stays_a_name() -> None:
    from training.report.schema import Artefact

    page = as_html.html(good(Path("/r"), artefacts=(Artefact("javascript:alert(1)", 5), Artefact("a b#c?.gguf", 5))))
    assert 'href="./javascript%3Aalert%281%29"' in page and 'href="./a%20b%23c%3F.gguf"' in page


def test_a_telephone_gets_a_chart_that_it_can_read() -> None:
    from training.report.schema import Step, TrainingFacts

    losses = tuple(Step(at, 3 - at / 30) for at in range(1, 61))
    page = as_html.html(good(Path("/r"), training=TrainingFacts(60, 60, losses=losses)))
    assert '<div class="narrow"><svg viewBox="0 0 340 230"' in page and "min-width: 34rem" not in page


def test_long_names_may_be_broken_where_their_parts_end_and_numbers_nowhere() -> None:
    logits = Outcome("merged logits", True, {"mean_kl_of_training": 0.25, "tokens": 1275})
    page = as_html.html(good(Path("/r"), checks=(logits,)))
    assert "mean_<wbr>kl_<wbr>of_<wbr>training 0.25" in page


def test_report_md_breaks_no_word_in_a_terminal_of_80_columns() -> None:
    prose = [
        line for line in as_markdown.markdown(good(Path("/r"))).splitlines() if line[:1].isalpha() or line[:2] == "**"
    ]
    assert prose and all(len(line) <= 80 or " " not in line for line in prose)


def test_one_of_a_thing_is_not_said_in_the_plural() -> None:
    from training.report.schema import TrainingFacts

    made = good(Path("/r"), training=TrainingFacts(1, 1, epochs=1.0))
    assert "1 step (1 epoch)" in contents.trained(made)
