"""The line between processes: what is said of it before a training, and what it came to."""

from __future__ import annotations

import pytest

from training.train import link, link_speed
from training.train.link import Exchange, Line
from training.train.team import Alone


def test_one_process_has_no_line_and_nothing_is_measured_or_said():
    line, words = link_speed.looked_at(Alone(), 1000, None, written=None)
    assert words == "" and line.exchange(10.0) is None


class Wire(Alone):
    """Two ranks, of which this is the first, on a line of 1 Gbit/s."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 2


@pytest.mark.parametrize(("written", "counts", "beside"), [(None, 1.0, ""), (2.0, 2.0, " (LINK_GBPS = 2)")])
def test_the_line_is_measured_with_what_will_go_over_it_and_what_is_written_counts(
    monkeypatch, written, counts, beside
):
    monkeypatch.setattr(
        link_speed, "_measured", lambda team, numbers, device: 8 * link.in_a_ring(numbers, 2) / 1e9 / 0.032
    )
    line, words = link_speed.looked_at(Wire(), 1_000_000, None, written)
    assert line.gbps == pytest.approx(counts)
    assert words == (f"between the processes: 1 Gbit/s measured{beside}; 4.0 MB of gradients a step take 32 ms")


def test_what_the_exchange_came_to_is_held_against_what_was_reckoned():
    line = Line(bytes=4_000_000, gbps=1.0, sending=4.0, waiting=1.0, steps=100)
    found = line.exchange(stepping=20.0)
    assert found == Exchange(seconds=0.04, share=0.2, waiting=0.05, reckoned=0.032, gbps=1.0)
    assert found.words() == (
        "20% of the steps' time to add the gradients up (40 ms a step; reckoned 32 ms at 1 Gbit/s), 5% to wait for each other"
    )


def test_of_a_training_without_a_step_nothing_is_said():
    assert Line(bytes=1, gbps=1.0).exchange(stepping=0.0) is None
