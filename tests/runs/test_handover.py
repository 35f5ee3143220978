"""What training hands over (training/runs/handover.py): the file keeps its form, and those of older versions are read."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import pytest

from tests.support.facts import some_facts
from training import runs
from training.data import ChatTemplate, Item
from training.data.private_questions import PrivateQuestion
from training.data.row_texts import RowText, RowTexts
from training.runs import Facts
from training.runs.handover import BaseOfRun, Prompt, Sequence

WHOLE = """\
{
  "v": 1,
  "base": {
    "name": "me/base",
    "path": "/models/base",
    "kind": "folder",
    "files": {
      "config.json": "ab"
    }
  },
  "template": {
    "jinja": "{{ messages }}",
    "source": "its own",
    "bos": "",
    "eos": "</s>",
    "turn_end": "",
    "tail": "",
    "eos_follows": false,
    "end_tokens": [
      "</s>"
    ],
    "opens_think": false,
    "takes_system": true,
    "today": "2026-11-30",
    "special": {
      "eos_token": "</s>"
    },
    "served": "",
    "opening": "",
    "thinking": "auto",
    "tools_apart": false,
    "alone": false,
    "tools_by_name": false,
    "thinks": false
  },
  "plain": false,
  "stops": [
    "</s>"
  ],
  "end_ids": [
    2
  ],
  "num_ctx": 256,
  "questions": [
    {
      "ids": [
        1
      ],
      "most": 32,
      "question": "",
      "wanted": 0
    }
  ],
  "sequences": [
    {
      "ids": [
        1
      ],
      "first": 0
    }
  ],
  "measured": [
    {
      "ids": [
        1
      ],
      "labels": [
        -100
      ],
      "question": "你好",
      "expected": "",
      "prompt": [],
      "most": 32,
      "wanted": 0
    }
  ],
  "asked": [],
  "calibration": [
    1
  ],
  "row_texts": {
    "texts": [
      {
        "text": "a",
        "file": "r.jsonl",
        "line": 1
      }
    ],
    "rows": 1,
    "total": 9
  },
  "private": [
    {
      "kind": "phone",
      "file": "r.jsonl",
      "line": 1,
      "digest": "ab12",
      "prompts": [
        [
          1
        ]
      ],
      "most": 9
    }
  ],
  "tools": "ollama"
}
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / runs.CHECKPOINTS).mkdir()
    return tmp_path


def facts(system: str | None = None) -> Facts:
    return some_facts(
        base=BaseOfRun(name="me/base", path=Path("/models/base"), kind="folder", files={"config.json": "ab"}),
        template=ChatTemplate(
            "{{ messages }}", "its own", system, eos="</s>", end_tokens=("</s>",), today=date(2026, 11, 30),
            special={"eos_token": "</s>"},
        ),
        questions=[Prompt(ids=[1], most=32)],
        sequences=[Sequence(ids=[1], first=0)],
        measured=[Item(ids=[1], labels=[-100], question="你好", expected="", prompt=[], most=32)],
        calibration=[1],
        row_texts=RowTexts((RowText("a", "r.jsonl", 1),), 1, 9),
        private=[PrivateQuestion(kind="phone", file="r.jsonl", line=1, digest="ab12", prompts=[[1]], most=9)],
        tools="ollama",
    )  # fmt: skip


def test_the_file_has_its_form_and_reads_back_to_the_same_facts(run: Path) -> None:
    facts().write(run)
    assert (run / runs.CHECKPOINTS / runs.FACTS).read_text(encoding="utf-8") == WHOLE
    assert Facts.read(run) == facts()
    assert Facts.read(run).template.special == {"eos_token": "</s>"}


def test_the_system_prompt_stays_out_of_the_file(run: Path) -> None:
    facts(system="Your name is Bond.").write(run)
    assert (run / runs.CHECKPOINTS / runs.FACTS).read_text(encoding="utf-8") == WHOLE


def test_a_file_of_an_older_version_reads_without_what_it_lacks(run: Path) -> None:
    record = json.loads(WHOLE)
    for key in ("measured", "asked", "calibration", "row_texts", "private", "tools"):
        del record[key]
    del (
        record["base"]["files"],
        record["template"]["served"],
        record["template"]["opening"],
        record["template"]["thinking"],
    )
    (run / runs.CHECKPOINTS / runs.FACTS).write_text(json.dumps(record), encoding="utf-8")
    old = Facts.read(run)
    assert (old.base.files, old.measured, old.asked, old.calibration, old.row_texts) == ({}, [], [], [], RowTexts())
    assert old.private == []
    assert old.tools == ""
    assert old.template == facts().template and old.questions == facts().questions


def test_what_a_later_version_adds_is_passed_over(run: Path) -> None:
    record = json.loads(WHOLE) | {"later": 1}
    record["base"]["later"] = 1
    (run / runs.CHECKPOINTS / runs.FACTS).write_text(json.dumps(record), encoding="utf-8")
    assert Facts.read(run) == facts()
