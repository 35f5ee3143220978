"""The page about scaling: its figures are those of the plan's own code."""

from __future__ import annotations

import re

import pytest

from tests.support import scaling
from tests.support.paths import ROOT

CHINESE = {
    "one card, 4 bit": "一张显卡，4 位",
    "one card, 16 bit": "一张显卡，16 位",
    "eight cards, 4 bit": "八张显卡，4 位",
    "eight cards, 16 bit, spread": "八张显卡，16 位，分散",
    "eight cards, 4 bit, spread": "八张显卡，4 位，分散",
    "eight cards, 16 bit, spread, offloaded": "八张显卡，16 位，分散，留在内存",
    "two machines of eight, 16 bit, spread": "两台各八张，16 位，分散",
}


@pytest.mark.parametrize("end", [".md", ".zh-CN.md"])
def test_what_a_card_needs_on_each_rung_is_what_the_plan_reckons(end: str) -> None:
    text = (ROOT / "docs" / f"scaling{end}").read_text(encoding="utf-8")
    shown = text.split("<!-- rungs -->\n")[1].split("<!-- /rungs -->")[0].splitlines()
    rows = [scaling.row(rung, more) for rung, more in scaling.RUNGS.items()]
    if end != ".md":
        rows = [[CHINESE[rung], *rest] for rung, *rest in rows]
    assert shown == [f"| {' | '.join(row)} |" for row in rows]


def test_the_sums_in_its_text_follow_from_the_table() -> None:
    text = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    spread = scaling.sent(
        scaling.on_a_rung(scaling.RUNGS["two machines of eight, 16 bit, spread"]), scaling.MODELS["8B"]
    )
    said, seconds = re.search(r"sends (\d+) GB a micro-batch: (\d+) s", text).groups()
    assert (round(float(spread.removesuffix(" GB"))), round(8 * float(spread.removesuffix(" GB")) / 10)) == (
        int(said),
        int(seconds),
    )
