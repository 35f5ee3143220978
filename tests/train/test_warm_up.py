"""The learning rate: above 0 from the first step on, and in runs of older versions as they began."""

from __future__ import annotations

import pytest

from training.runs.checkpoint import Carried

pytestmark = pytest.mark.slow


def rates(kind: str, warm: int, total: int, risen: bool) -> list[float]:
    """The learning rates of a run's steps, of 1 at the top."""
    import torch
    from transformers import get_scheduler

    from training.train import warm_up

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = get_scheduler(kind, optimizer, warm, total)
    if risen:
        warm_up.rise_at_once(schedule, warm)
    found = []
    for _ in range(total):
        found.append(optimizer.param_groups[0]["lr"])
        assert schedule.get_last_lr() == [found[-1]]
        optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize("kind", ["linear", "cosine", "polynomial", "constant_with_warmup", "inverse_sqrt"])
def test_no_step_of_a_warm_up_has_a_rate_of_0_and_what_follows_is_as_ever(kind: str) -> None:
    new, old = rates(kind, 4, 10, risen=True), rates(kind, 4, 10, risen=False)
    assert old[0] == 0
    assert new[:4] == pytest.approx([1 / 5, 2 / 5, 3 / 5, 4 / 5])
    assert new[4:] == old[4:] and max(new) == new[4] == 1


def test_a_schedule_whose_state_is_read_back_goes_on_where_it_stopped() -> None:
    import torch
    from transformers import get_scheduler

    from training.train import warm_up

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    first, again = (get_scheduler("linear", optimizer, 4, 10) for _ in range(2))
    warm_up.rise_at_once(first, 4)
    for _ in range(2):
        optimizer.step()
        first.step()
    warm_up.rise_at_once(again, 4)
    again.load_state_dict(first.state_dict())
    again.step()
    assert again.get_last_lr() == [pytest.approx(4 / 5)]


def test_a_checkpoint_carries_how_the_rate_rises_and_one_of_an_older_version_says_that_it_did_not() -> None:
    assert Carried.read(Carried(rises_at_once=True).as_dict()).rises_at_once
    assert not Carried.read({"fast_path": "none"}).rises_at_once
