"""What the processes of a training send each other."""

from __future__ import annotations

from tests.support.settings import a_settings
from training.plan import traffic
from training.settings import Settings


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
    offloaded = a_settings(NUM_PROCESSES="2", SHARDING="fsdp-offload", DEVICE="cuda")
    assert "a micro-batch (SHARDING = fsdp-offload), and" in traffic.line(offloaded, 10_092_544, 1_200_000_000)


def test_where_the_line_is_given_the_plan_says_what_that_takes_and_from_when_on_several_cards_are_faster():
    asked = a_settings(NUM_PROCESSES="4", LINK_GBPS="10", DEVICE="cuda")
    # 60.6 MB are 48.4 ms; one card takes R, four take R / 4 and that: less where R is above 4/3 of it
    assert traffic.line(asked, 10_092_544, 1_200_000_000) == (
        "between the processes: each sends 60.6 MB a step, the gradients of the adapter (48 ms at 10 Gbit/s); faster than one "
        "card where that takes more than 65 ms for the same rows"
    )
    spread = a_settings(NUM_PROCESSES="4", LINK_GBPS="10", DEVICE="cuda", SHARDING="fsdp")
    assert traffic.line(spread, 10_092_544, 1_200_000_000).endswith("the gradients of the adapter (5.8 s at 10 Gbit/s)")


def test_before_there_is_a_second_card_the_plan_says_from_when_on_it_would_pay():
    one = a_settings(LINK_GBPS="0.5", DEVICE="cuda")
    assert traffic.line(one, 10_092_544, 1_200_000_000) == (
        "two cards would take 0.65 s a step for the gradients at 0.5 Gbit/s; faster than one card where that takes more than "
        "1.3 s for the same rows"
    )
    assert traffic.line(a_settings(DEVICE="cuda"), 10_092_544, 1) == ""
    assert traffic.line(a_settings(LINK_GBPS="0.5", DEVICE="cpu"), 10_092_544, 1) == "", "there it is measured"


def a_cluster(machines: int, gbps: object, **more: object) -> Settings:
    """Settings for machines without cards, with 16 rows a step."""
    rows = {"PER_DEVICE_TRAIN_BATCH_SIZE": 1, "GRADIENT_ACCUMULATION_STEPS": 16 // machines}
    where = {"NUM_MACHINES": machines, "MAIN_PROCESS_ADDRESS": "10.0.0.5:29500", "DEVICE": "cpu", "LINK_GBPS": gbps}
    return a_settings(**{**rows, **where, **more})


def test_of_machines_without_cards_the_plan_says_how_much_faster_they_and_twice_as_many_are():
    # 40.4 MB at 1 Gbit/s are 0.323 s, among four machines 0.484: 20 / 10.32, and 20 / 5.48
    assert traffic.machines_line(a_cluster(2, 1), 10_092_544, 10.0) == (
        "machines: 2 are 1.9 times as fast, 4 would be 3.6 times as fast as one, with the same rows a step at 1 Gbit/s"
    )
    assert traffic.machines_line(a_cluster(1, 1), 10_092_544, 20.0).startswith(
        "machines: 2 would be 1.9 times as fast, 4 would be 3.6 times as fast as one"
    )


def test_machines_that_are_slower_than_one_are_said_to_be_so_with_what_would_help():
    # 3.2 s on the line for one second of work each
    assert traffic.machines_line(a_cluster(2, 0.1), 10_092_544, 1.0) == (
        "machines: 2 are 0.47 times as fast, 4 would be 0.37 times as fast as one, with the same rows a step at 0.1 Gbit/s; "
        "with more rows a step (GRADIENT_ACCUMULATION_STEPS) they are faster: the gradients go once a step"
    )


def test_of_machines_nothing_is_said_where_the_line_is_not_known_or_the_rows_cannot_be_shared_out():
    assert traffic.machines_line(a_cluster(2, "auto"), 10_092_544, 1.0) == ""
    odd = a_cluster(1, 10, GRADIENT_ACCUMULATION_STEPS=3)
    assert traffic.machines_line(odd, 10_092_544, 1.0) == ""
