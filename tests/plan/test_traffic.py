"""What the processes of a training send each other."""

from __future__ import annotations

from tests.support.settings import a_settings
from training.plan import traffic


def test_each_process_passes_every_gradient_on_twice_but_for_its_own_share():
    assert traffic.sent(1_000_000, 2) == 4_000_000
    assert traffic.sent(1_000_000, 8) == 7_000_000
    assert traffic.sent(1_000_000, 1) == 0


def test_the_plan_says_how_long_that_takes_on_links_of_three_kinds():
    said = traffic.line(a_settings(NUM_PROCESSES="2"), 10_092_544, 1_200_000_000)
    assert said == (
        "between the processes: each sends 40.4 MB a step, the gradients of the adapter (0.32 s at 1 Gbit/s, "
        "32 ms at 10 Gbit/s, 3.2 ms at 100 Gbit/s)"
    )
    assert traffic.line(a_settings(NUM_PROCESSES="2"), 1000, 1_200_000_000).endswith(
        "(under 1 ms at 1 Gbit/s, under 1 ms at 10 Gbit/s, under 1 ms at 100 Gbit/s)"
    )


def test_the_weights_of_a_model_that_is_spread_go_round_twice_in_every_micro_batch():
    assert traffic.sent_weights(16_000_000_000, 8, micro_batches=4) == 112_000_000_000
    asked = a_settings(NUM_PROCESSES="2", SHARDING="fsdp", GRADIENT_ACCUMULATION_STEPS="4")
    assert traffic.line(asked, 10_092_544, 1_200_000_000) == (
        "between the processes: each sends 4.8 GB a step, the weights twice a micro-batch (SHARDING = fsdp), and the "
        "gradients of the adapter (39 s at 1 Gbit/s, 3.9 s at 10 Gbit/s, 0.39 s at 100 Gbit/s)"
    )
