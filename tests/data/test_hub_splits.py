"""Which files of a data set on a hub are meant (training/data/hub_splits.py): its card, and the usual names."""

from __future__ import annotations

import re

import pytest

from training.data import hub_splits
from training.errors import UserError


def configs(files: list[str], card: str = "", name: str = "owner/rows") -> dict[str, dict[str, list[str]]]:
    return {key: dict(value) for key, value in hub_splits.configurations("hf", name, sorted(files), card).items()}


def card(yaml: str) -> str:
    return f"---\n{yaml}\n---\n# Rows\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["train.jsonl", "README.md", ".gitattributes"], {"train": ["train.jsonl"]}),
        (["rows.jsonl", "LICENSE"], {"train": ["rows.jsonl"]}),
        (["rows.jsonl.gz"], {"train": ["rows.jsonl.gz"]}),
        (["rows.json.zst"], {"train": ["rows.json.zst"]}),
        (
            ["data/train-00001-of-00002.parquet", "data/train-00000-of-00002.parquet", "data/test-00000-of-00001.parquet"],
            {
                "train": ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"],
                "test": ["data/test-00000-of-00001.parquet"],
            },
        ),
        (["data/train_sft-00000-of-00001-abc.parquet"], {"train_sft": ["data/train_sft-00000-of-00001-abc.parquet"]}),
        (["train.csv", "validation.csv", "dev.csv"], {"train": ["train.csv"], "validation": ["validation.csv", "dev.csv"]}),
        (["train/a.txt", "train/b.txt", "eval/c.txt"], {"train": ["train/a.txt", "train/b.txt"], "test": ["eval/c.txt"]}),
        (["my-train-set.tsv", "my_test.tsv"], {"train": ["my-train-set.tsv"], "test": ["my_test.tsv"]}),
        # Neither hidden files nor those that describe others are rows.
        (["train.jsonl", ".cache/train.jsonl", "dataset_infos.json", "__MACOSX/train.jsonl"], {"train": ["train.jsonl"]}),
    ],
)  # fmt: skip
def test_the_usual_names_tell_the_splits(files: list[str], expected: dict[str, list[str]]) -> None:
    found = configs(files)
    assert list(found) == ["default"]
    assert {split: sorted(some) for split, some in found["default"].items()} == {
        split: sorted(some) for split, some in expected.items()
    }


@pytest.mark.parametrize(
    ("yaml", "expected"),
    [
        ("configs:\n- config_name: a\n  data_files: a.jsonl", {"a": {"train": ["a.jsonl"]}}),
        ("configs:\n- config_name: a\n  data_files: '*.jsonl'", {"a": {"train": ["a.jsonl", "b.jsonl"]}}),
        ("configs:\n- config_name: a\n  data_files: [b.jsonl, a.jsonl]", {"a": {"train": ["b.jsonl", "a.jsonl"]}}),
        (
            "configs:\n- config_name: a\n  data_files:\n  - {split: fit, path: a.jsonl}\n  - {split: held, path: [b.jsonl]}",
            {"a": {"fit": ["a.jsonl"], "held": ["b.jsonl"]}},
        ),
        (
            "configs:\n- config_name: en\n  data_dir: en\n- config_name: zh\n  data_dir: zh/\n  default: true",
            {"en": {"train": ["en/train.csv"], "test": ["en/test.csv"]}, "zh": {"train": ["zh/rows.csv"]}},
        ),
        ("configs:\n- config_name: en\n  data_dir: en\n  data_files: test.csv", {"en": {"train": ["en/test.csv"]}}),
        ("configs:\n- data_files: a.jsonl", {"default": {"train": ["a.jsonl"]}}),
        ("configs:\n- config_name: 2024\n  data_files: a.jsonl", {"2024": {"train": ["a.jsonl"]}}),
        # A configuration of what is not here is none.
        ("configs:\n- config_name: a\n  data_files: a.jsonl\n- config_name: b\n  data_files: gone/*", {"a": {"train": ["a.jsonl"]}}),
    ],
)  # fmt: skip
def test_the_card_tells_the_configurations(yaml: str, expected: dict) -> None:
    files = ["README.md", "a.jsonl", "b.jsonl", "en/train.csv", "en/test.csv", "zh/rows.csv"]
    assert configs(files, card(yaml)) == expected


def test_what_the_hub_made_of_a_program_is_told_apart_by_its_folders() -> None:
    files = ["en/train/0000.parquet", "en/train/0001.parquet", "en/test/0000.parquet", "zh/train/0000.parquet"]
    assert configs(files) == {
        "en": {"test": files[2:3], "train": files[:2]},
        "zh": {"train": files[3:]},
    }


def test_a_program_is_refused_and_not_read() -> None:
    with pytest.raises(
        UserError, match=r"^this data set is a program \(rows.py\), which is not run; hf:owner/rows/FILE names"
    ):
        configs(["rows.py", "train.jsonl"])
    # With files named by its author beside it, it needs no program.
    assert configs(["rows.py", "a.jsonl"], card("configs:\n- config_name: a\n  data_files: a.jsonl"))
    assert configs(["other.py", "train.jsonl"])


@pytest.mark.parametrize(
    ("yaml", "said"),
    [
        ("configs: 7", "has configs that are no list of configurations"),
        ("configs: [7]", "has configs that are no list of configurations"),
        ("configs: [{config_name: [a], data_files: a.jsonl}]", "a configuration whose config_name is no text"),
        ("configs: [{config_name: a, data_files: 7}]", "has data_files that are neither patterns nor a list"),
        ("configs: [{config_name: a, data_files: [7]}]", "has data_files that are neither patterns nor a list"),
        (
            "configs: [{config_name: a, data_files: [{split: a}]}]",
            "has data_files that are neither patterns nor a list",
        ),
        (
            "configs: [{config_name: a, data_files: {train: {a: 1}}}]",
            "has data_files that are neither patterns nor a list",
        ),
        ("configs: [{config_name: a, data_dir: 7}]", "a data_dir that is no text"),
        ("configs: [{config_name: a, data_files: 'a**b.jsonl'}]", r"a pattern that cannot be used: a\*\*b.jsonl"),
        ("configs: [", "begins with YAML that cannot be read"),
        ("a: " + "[" * 5000, "begins with YAML that cannot be read"),
    ],
)
def test_a_card_that_is_none_is_told(yaml: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        configs(["a.jsonl", "README.md"], card(yaml))


def test_a_card_whose_head_has_no_end_is_not_taken_for_none() -> None:
    with pytest.raises(UserError, match="the head of its README.md is too long to be read"):
        configs(["a.jsonl"], "---\n" + "a: b\n" * (hub_splits.MOST_HEAD // 4))


def test_a_data_set_without_rows_is_refused() -> None:
    with pytest.raises(UserError, match=r"has no files that are read here; those end in \.jsonl, "):
        configs(["README.md", "train.zip", "images/1.png"])


TWO = {"default": {"train": ["a"], "test": ["b"]}}
MANY = {"en": {"train": ["a"], "test": ["b"]}, "zh": {"train": ["c"]}}
ALIKE = {"train": {"train": ["a"], "test": ["b"]}}


@pytest.mark.parametrize(
    ("every", "words", "chosen"),
    [
        ({"default": {"train": ["a"]}}, (), ("default", "train")),
        ({"x": {"rows": ["a"]}}, (), ("x", "rows")),
        (TWO, ("test",), ("default", "test")),
        (TWO, ("default", "train"), ("default", "train")),
        (TWO, ("", "train"), ("default", "train")),
        (MANY, ("zh",), ("zh", "train")),
        (MANY, ("test",), ("en", "test")),
        (MANY, ("en", "train"), ("en", "train")),
        (ALIKE, ("", "train"), ("train", "train")),
        (ALIKE, ("train", "test"), ("train", "test")),
    ],
)
def test_what_can_be_meant_in_one_way_only_is_taken(
    every: dict, words: tuple[str, ...], chosen: tuple[str, str]
) -> None:
    assert hub_splits.choose(every, words, "DATASET_FILE = ", "hf:o/n") == chosen


@pytest.mark.parametrize(
    ("every", "words", "said"),
    [
        (TWO, (), "has several splits, and none is named; write DATASET_FILE = hf:o/n:default:train, or hf:o/n:default:test"),
        (MANY, (), "has several splits, and none is named; write DATASET_FILE = hf:o/n:en:train, or hf:o/n:en:test, or hf:o/n:zh:train"),
        (MANY, ("en",), "has several splits, and none is named; write DATASET_FILE = "),
        (MANY, ("train",), "has a split of that name in several configurations; write DATASET_FILE = "),
        (MANY, ("", "train"), "has a split of that name in several configurations; write DATASET_FILE = "),
        (TWO, ("dev",), "has no configuration or split dev; write DATASET_FILE = "),
        (TWO, ("default", "dev"), "has no default:dev; write DATASET_FILE = "),
        (TWO, ("zh", "train"), "has no zh:train; write DATASET_FILE = "),
        (TWO, ("", "dev"), "has no :dev; write DATASET_FILE = "),
        (ALIKE, ("train",), "train is a configuration and a split; write DATASET_FILE = hf:o/n:train:SPLIT or DATASET_FILE = hf:o/n::train"),
    ],
)  # fmt: skip
def test_what_can_be_meant_in_two_ways_is_refused_with_the_lines_that_would_do(
    every: dict, words: tuple[str, ...], said: str
) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(said)}"):
        hub_splits.choose(every, words, "DATASET_FILE = ", "hf:o/n")


def test_of_very_many_the_first_are_named_and_the_rest_is_counted() -> None:
    every = {f"c{number:03}": {"train": ["a"]} for number in range(120)}
    with pytest.raises(UserError, match=r"hf:o/n:c019:train, and 100 more are there$"):
        hub_splits.choose(every, (), "", "hf:o/n")


def test_a_split_in_two_kinds_of_files_or_in_some_that_are_not_read_is_refused() -> None:
    with pytest.raises(
        UserError,
        match=r"files of several kinds there \(1 json, 2 parquet\), maybe of the same rows; name one: hf:o/n/a.jsonl",
    ):
        hub_splits.one_kind("hf:o/n", ["a.jsonl", "a.parquet", "b.parquet"])
    with pytest.raises(UserError, match=r"it has b.zip there, which is not read here"):
        hub_splits.one_kind("hf:o/n", ["a.jsonl", "b.zip"])
    hub_splits.one_kind("hf:o/n", ["a.jsonl", "b.json", "c.ndjson.gz"])


@pytest.mark.parametrize(
    "pattern",
    ["a.jsonl", "*.jsonl", "**/*.jsonl", "data/**", "data/*/x-[0-9].jsonl", "**/deep/**/*.jsonl", "d?ta/*", "**", "*", "[!d]*.jsonl"],
)  # fmt: skip
def test_a_pattern_of_a_card_fits_what_the_library_says_that_it_fits(pattern: str) -> None:
    files = [
        "a.jsonl",
        "b.jsonl",
        "data/x.jsonl",
        "data/en/x-1.jsonl",
        "data/deep/y.jsonl",
        "data/deep/z/y.jsonl",
        "data.jsonl",
    ]
    ours, theirs = hub_splits._told_of(pattern), hub_splits._library_s(pattern)
    assert [file for file in files if ours(file)] == [file for file in files if theirs(file)]


def test_a_pattern_that_would_take_hours_as_one_expression_is_done_at_once() -> None:
    files = ["a" * 900 + "c.jsonl", "a" * 900 + "b.jsonl"]
    text = card(f"configs:\n- config_name: x\n  data_files: '{'*a' * 40}*b.jsonl'")
    assert configs(files, text) == {"x": {"train": [files[1]]}}
