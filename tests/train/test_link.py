"""The line between processes: what is said of it before a training, and what it came to."""

from __future__ import annotations

from dataclasses import replace

import pytest

from training.train import link, link_speed
from training.train.link import Exchange, Line, Speed
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
    monkeypatch.setattr(link_speed, "_measured", lambda team, numbers, device: Speed(1.0))
    line, words = link_speed.looked_at(Wire(), 1_000_000, None, written)
    assert line.speed == Speed(counts)
    assert words == (f"between the processes: 1 Gbit/s measured{beside}; 4.0 MB of gradients a step take 32 ms")


def test_the_delay_of_a_line_is_said_and_reckoned_with_whatever_its_width(monkeypatch):
    monkeypatch.setattr(link_speed, "_measured", lambda team, numbers, device: Speed(1.0, 0.04))
    line, words = link_speed.looked_at(Wire(), 1_000_000, None, 2.0)
    assert line.speed == Speed(2.0, 0.04) and line.speed.seconds(4_000_000) == pytest.approx(0.056)
    measured = "1 Gbit/s measured (LINK_GBPS = 2), 40 ms an exchange at least"
    assert words == f"between the processes: {measured}; 4.0 MB of gradients a step take 72 ms"


class Counted:
    """A line of this width and delay, that counts what was exchanged."""

    def __init__(self, gbps: float, delay: float) -> None:
        self.line, self.made = Speed(gbps, delay), []

    def took(self, count: int) -> float:
        self.made.append(count)
        return self.line.seconds(link.in_a_ring(count, 2))


@pytest.mark.parametrize(("gbps", "delay"), [(100.0, 0.0001), (1.0, 0.0), (0.1, 0.02), (0.01, 0.001), (0.001, 0.1)])
@pytest.mark.parametrize("numbers", [20_000, 2_000_000, 200_000_000])
def test_width_and_delay_are_told_apart_by_small_and_large_exchanges_of_bounded_time(gbps, delay, numbers):
    line = Counted(gbps, delay)
    found = link_speed.fitted(line.took, numbers, 2)
    assert found.gbps == pytest.approx(gbps, rel=1e-3) and found.delay == pytest.approx(delay, rel=1e-3, abs=1e-5)
    assert sum(map(line.line.seconds, (link.in_a_ring(count, 2) for count in line.made))) < 4
    assert max(line.made) <= numbers


def test_a_line_on_which_only_the_delay_is_felt_is_reckoned_by_that(monkeypatch):
    # Exchanges that wait for busy cores: those of many numbers happened to wait for less long.
    found = link_speed.fitted(lambda count: 0.003 if count == 1 else 0.002, 10_000, 2)
    assert found.seconds(link.in_a_ring(10_000, 2)) == pytest.approx(0.002)
    assert found.gbps > 0 and found.delay >= 0


def test_what_the_exchange_came_to_is_held_against_what_was_reckoned():
    line = Line(bytes=4_000_000, speed=Speed(1.0), sending=4.0, waiting=1.0, steps=100)
    found = line.exchange(stepping=20.0)
    assert found == Exchange(seconds=0.04, share=0.2, waiting=0.05, reckoned=0.032, gbps=1.0)
    assert found.words() == (
        "20% of the steps' time to add the gradients up (40 ms a step; reckoned 32 ms at 1 Gbit/s), 5% to wait for each other"
    )
    found = replace(line, speed=Speed(1.0, 0.04)).exchange(stepping=20.0)
    assert found.reckoned == 0.072 and "reckoned 72 ms at 1 Gbit/s, 40 ms an exchange at least)" in found.words()


def test_of_a_training_without_a_step_nothing_is_said():
    assert Line(bytes=1, speed=Speed(1.0)).exchange(stepping=0.0) is None
