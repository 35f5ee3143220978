"""The memory plan, and all choices for a card, on described machines: no card is at hand, so each is a record.

Whether the estimate is right on a CPU is measured by benchmarks/memory_plan.py.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.support.plans import a_base_model, a_plan, a_summary
from training import base_model, settings
from training.base_model import Peek
from training.data.dataset import Counts
from training.errors import MachineError
from training.fast_cpu import policy
from training.plan import choices, disk_space, memory, memory_fit
from training.plan import plan as plans
from training.settings import Settings, contradictions
from training.system import this_machine
from training.system.this_machine import Gpu, Machine

GB = 10**9
# What torch says of these cards (bytes, compute capability); an MI300X is gfx942, which ROCm's torch gives as 9.4.
CARDS = {
    "Tesla T4": (15.8, (7, 5), "cuda"),
    "NVIDIA GeForce RTX 4090": (25.3, (8, 9), "cuda"),
    "NVIDIA A100-SXM4-40GB": (42.3, (8, 0), "cuda"),
    "NVIDIA H100 80GB HBM3": (85.0, (9, 0), "cuda"),
    "AMD Instinct MI300X": (206.1, (9, 4), "rocm"),
}
LLAMA_8B = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 128_256,
}  # fmt: skip
EIGHT = memory.shape(LLAMA_8B, 8_030_261_248)
SMALL = memory.shape(
    {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
     "num_key_value_heads": 3, "vocab_size": 49_152},
    134_515_008,
)  # fmt: skip


def machine(card: str | None = None, free: float | None = None, memory_free: float = 60) -> Machine:
    """A described machine: nothing of it is there."""
    gpus, backend = (), None
    if card is not None:
        size, capability, backend = CARDS[card]
        gpus = (Gpu(card, int(size * GB), capability, int((free or size) * GB)),)
    return Machine("3.11", "Linux", "a CPU", 8, "amx_bf16", 64 * GB, int(memory_free * GB), gpus, backend, {})


def decided(tmp_path, monkeypatch, where: Machine, text: str = "") -> Settings:
    monkeypatch.setattr(this_machine, "versions", lambda: {"unsloth": "2026.10.9"})
    (tmp_path / "config.ini").write_text(text or "[Model]\n", encoding="utf-8")
    return choices.decide(settings.load(tmp_path / "config.ini", check_files=False), where)


def total(asked, model, longest: int) -> int:
    return sum(memory.estimate(asked, model, longest).values())


@pytest.mark.parametrize(
    ("card", "precision", "why"),
    [
        ("Tesla T4", "fp16", "compute capability 7.5: no bf16 hardware before 8.0"),
        ("NVIDIA GeForce RTX 4090", "bf16", "compute capability 8.9"),
        ("NVIDIA A100-SXM4-40GB", "bf16", "compute capability 8.0"),
        ("NVIDIA H100 80GB HBM3", "bf16", "compute capability 9.0"),
        ("AMD Instinct MI300X", "bf16", "rocm device"),
    ],
)
def test_what_is_chosen_and_logged_for_a_card(tmp_path, monkeypatch, card, precision, why):
    where = machine(card)
    asked = decided(tmp_path, monkeypatch, where)
    base = a_base_model(LLAMA_8B, EIGHT.parameters)
    checkpointing = disk_space.checkpointing(asked, base, a_summary(2048), where)
    assert asked.choices == (
        ("Hardware.DEVICE", "cuda", card),
        ("Hardware.PRECISION", precision, why),
        ("Hardware.ENGINE", "unsloth", "training on a GPU"),
        ("Hardware.NUM_THREADS", 8, "physical cores"),
        ("Training.OPTIM", "adamw_8bit", "Unsloth on a GPU"),
    )
    assert checkpointing == (True, "Unsloth's own, which offloads to the CPU")
    assert asked.quantization.load_in_4bit is True and asked.training.per_device_train_batch_size == 2
    asked = asked.with_choice("Training.GRADIENT_CHECKPOINTING", *checkpointing)
    assert memory_fit.check(asked, EIGHT, 2048, where) is None, "a model of 8B in 4 bit goes onto each of them"
    logged = memory.words(memory.estimate(asked, EIGHT, 2048))
    assert logged == (
        "8.7 GB (program 0.3 GB, weights 5.8 GB, adapter and optimizer 0.1 GB, activations 1.4 GB, logits 1.0 GB)"
    )
    (line,) = [line for line in where.lines() if line.startswith("GPU")]
    size, capability, _ = CARDS[card]
    assert (
        line == f"GPU {card}, {size:.1f} GB free of {size:.1f} GB, compute capability {capability[0]}.{capability[1]}"
    )


def test_4_bits_are_for_cuda_and_rocm_and_left_out_with_the_reason_elsewhere(tmp_path, monkeypatch):
    text = "[Hardware]\nENGINE = transformers\n"
    intel = replace(machine(), gpus=(Gpu("Intel Arc", 16 * GB, (0, 0)),), backend="xpu")
    for where, loaded in ((machine("Tesla T4"), True), (machine("AMD Instinct MI300X"), True), (intel, False)):
        asked = decided(tmp_path, monkeypatch, where, text)
        assert asked.quantization.load_in_4bit is loaded
        reasons = [reason for name, _, reason in asked.choices if name == "Quantization.LOAD_IN_4BIT"]
        assert reasons == ([] if loaded else ["no CUDA device"])


SPREAD = "[Hardware]\nENGINE = transformers\nNUM_PROCESSES = 4\nSHARDING = fsdp\n"
IN_16_BIT = "[Quantization]\nLOAD_IN_4BIT = false\n"


def test_a_card_holds_its_share_of_a_spread_model_and_what_is_put_together_of_it(tmp_path, monkeypatch):
    where = machine("Tesla T4")
    asked = decided(tmp_path, monkeypatch, where, IN_16_BIT + SPREAD)
    layer = (EIGHT.parameters - EIGHT.embeddings) // EIGHT.layers
    # What is outside of the layers, a layer, and what the next two are gathered in, or again what is outside.
    together = 2 * (EIGHT.embeddings + layer + max(EIGHT.embeddings, 2 * layer))
    assert memory.estimate(asked, EIGHT, 512)["weights"] == 2 * EIGHT.parameters // 4 + together
    roomy = replace(where, memory_available=64 * GB)
    asked = asked.with_choice("Training.GRADIENT_CHECKPOINTING", True, "")
    assert memory_fit.check(asked, EIGHT, 2048, roomy) is None, "16 bit of 8B on four cards of 16 GB"
    whole = asked.with_choice("Hardware.SHARDING", "none", "")
    with pytest.raises(MachineError, match=r"needed, 15\.8 GB free; set SHARDING = fsdp; or LOAD_IN_4BIT = true"):
        memory_fit.check(whole, EIGHT, 2048, roomy)


def test_of_a_spread_model_in_4_bit_each_card_holds_its_share_and_all_the_scales(tmp_path, monkeypatch):
    asked = decided(tmp_path, monkeypatch, machine("Tesla T4"), SPREAD)
    assert asked.quantization.load_in_4bit and "Quantization.LOAD_IN_4BIT" not in {name for name, _, _ in asked.choices}
    within = EIGHT.parameters - EIGHT.embeddings
    shared = 2 * EIGHT.embeddings + within // 2
    assert memory.cut_weights(asked, EIGHT) == shared
    assert memory.whole_weights(asked, EIGHT) == shared + int(0.016 * within)
    layer = within // 2 // EIGHT.layers
    together = 2 * EIGHT.embeddings + layer + max(2 * EIGHT.embeddings, 2 * layer) + 2 * 4096 * 14336
    expected = shared // 4 + int(0.016 * within) + together
    assert memory.estimate(asked, EIGHT, 512)["weights"] == pytest.approx(expected, abs=64)


LLAMA_70B = {
    **LLAMA_8B, "hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64, "intermediate_size": 28_672,
}  # fmt: skip
SEVENTY = memory.Shape(70_553_706_496, 8192, 28_672, 80, 64, 8, 128, 128_256, "llama")
OFFLOADED = SPREAD.replace("fsdp", "fsdp-offload")
ONE_ROW = (
    "[Training]\nPER_DEVICE_TRAIN_BATCH_SIZE = 1\nGRADIENT_ACCUMULATION_STEPS = 4\nGRADIENT_CHECKPOINTING = true\n"
)


def offloaded(asked: Settings, model: memory.Shape, where: Machine) -> Settings:
    return memory_fit.offloaded(asked, model, 512, where)


def test_shares_that_do_not_fit_on_the_cards_stay_in_the_machines_memory_with_the_reason_and_the_cost(
    tmp_path, monkeypatch
):
    where = machine("NVIDIA GeForce RTX 4090", memory_free=200)
    asked = decided(tmp_path, monkeypatch, where, ONE_ROW + IN_16_BIT + SPREAD)
    with pytest.raises(MachineError, match="too little memory"):
        memory_fit.check(asked, SEVENTY, 512, where)
    moved = offloaded(asked, SEVENTY, where)
    reason = (
        "about 48.5 GB needed on a card, 25.3 GB free: the shares stay in the machine's memory; to keep them on the cards, set "
        "LOAD_IN_4BIT = true"
    )
    assert moved.choices[-1] == ("Hardware.SHARDING", "fsdp-offload", reason)
    assert memory_fit.check(moved, SEVENTY, 512, where) is None
    # 2 x 4 micro-batches x a quarter of 2 bytes x (70.55e9 - 2 x 128,256 x 8,192)
    assert memory_fit.bus_line(moved, SEVENTY) == (
        "over each card's bus: 274 GB a step, its share of the layers twice a micro-batch (SHARDING = fsdp-offload); "
        "11 s at 25 GB/s (PCIe 4.0)"
    )
    assert memory_fit.bus_line(asked, SEVENTY) == ""


def test_the_plan_has_the_choice_with_its_reason_and_what_goes_over_the_bus(tmp_path, monkeypatch):
    where = machine("NVIDIA GeForce RTX 4090", memory_free=200)
    asked = offloaded(decided(tmp_path, monkeypatch, where, ONE_ROW + IN_16_BIT + SPREAD), SEVENTY, where)
    counts = Counts(rows=8, turns=8, text=0, bad=0, train=8, validation=0, test=0)
    plan = a_plan(asked, machine=where, base=a_base_model(LLAMA_70B, SEVENTY.parameters), train=range(8))
    plan = replace(plan, data=replace(plan.data, counts=counts), memory=memory.estimate(asked, SEVENTY, 512))
    monkeypatch.setattr(plans, "sizes", lambda plan: (10**8, 10**9))
    monkeypatch.setattr(plans.system_text, "line", lambda template: ())
    lines = plans.lines(plan)
    assert any(line.startswith("Hardware.SHARDING = fsdp-offload: about 48.5 GB needed on a card, ") for line in lines)
    assert memory_fit.bus_line(asked, SEVENTY) in lines


def test_shares_stay_on_the_cards_where_they_fit_or_the_machine_has_no_room_for_them(tmp_path, monkeypatch):
    where = machine("NVIDIA GeForce RTX 4090", memory_free=200)
    asked = decided(tmp_path, monkeypatch, where, ONE_ROW + IN_16_BIT + SPREAD)
    assert offloaded(asked, EIGHT, where) is asked, "8B fits"
    small = replace(where, memory_available=100 * GB)
    assert offloaded(asked, SEVENTY, small) is asked, "the machine has no room"
    whole = asked.with_choice("Hardware.SHARDING", "none", "")
    assert offloaded(whole, SEVENTY, where) is whole, "nobody asked for it"
    t4 = machine("Tesla T4", memory_free=200)
    asked = decided(tmp_path, monkeypatch, t4, IN_16_BIT + SPREAD).with_choice("LoRA.R", 4096, "")
    assert offloaded(asked, SEVENTY, t4) is asked, "the adapter alone is too large"


def test_shares_that_were_asked_to_stay_in_memory_are_refused_where_there_is_no_room(tmp_path, monkeypatch):
    where = machine("NVIDIA GeForce RTX 4090", memory_free=100)
    asked = decided(tmp_path, monkeypatch, where, ONE_ROW + IN_16_BIT + OFFLOADED)
    with pytest.raises(MachineError) as caught:
        memory_fit.check(asked, SEVENTY, 512, where)
    assert str(caught.value).startswith("too little memory beside the cards: SHARDING = fsdp-offload keeps the shares")
    # Of each of two machines half of them stay; the first one reads them all.
    second = asked.with_choice("Hardware.NUM_MACHINES", 2, "").with_choice("Hardware.MACHINE_RANK", 1, "")
    first = second.with_choice("Hardware.MACHINE_RANK", 0, "")
    assert memory_fit.check(second, SEVENTY, 512, where) is None
    assert memory.beside_cards(second, SEVENTY) < 0.65 * memory.beside_cards(first, SEVENTY)


def test_memory_that_a_card_fetches_from_is_kept_in_powers_of_two(tmp_path, monkeypatch):
    asked = decided(tmp_path, monkeypatch, machine("Tesla T4"), IN_16_BIT + OFFLOADED)
    second = asked.with_choice("Hardware.MACHINE_RANK", 1, "").with_choice("Hardware.NUM_MACHINES", 2, "")
    shares = {(4096, 4096): 4 << 20, (4096, 1024): 1 << 20, (4096, 14336): 16 << 20}  # of 4, 1 and 14 MiB
    each = 2 * shares[4096, 4096] + 2 * shares[4096, 1024] + 3 * shares[4096, 14336]
    assert memory.beside_cards(second, EIGHT) == 4 * (32 * each + memory.PROGRAM["cpu"])


def test_a_spread_batch_is_not_halved_so_one_that_cannot_fit_is_refused(tmp_path, monkeypatch):
    where = machine("Tesla T4", memory_free=64)
    text = (
        "[Training]\nPER_DEVICE_TRAIN_BATCH_SIZE = 32\nGRADIENT_ACCUMULATION_STEPS = 1\nGRADIENT_CHECKPOINTING = true\n"
    )
    alone = decided(tmp_path, monkeypatch, where, text + "[Hardware]\nENGINE = transformers\n")
    assert memory_fit.check(alone, EIGHT, 2048, where).startswith("memory may not do")
    with pytest.raises(MachineError, match="set PER_DEVICE_TRAIN_BATCH_SIZE = "):
        memory_fit.check(decided(tmp_path, monkeypatch, where, text + SPREAD), EIGHT, 2048, where)


def test_a_model_that_machine_0_cannot_read_whole_is_refused_before_it_is_spread(tmp_path, monkeypatch):
    where = replace(machine("Tesla T4"), memory_available=8 * GB)
    asked = decided(tmp_path, monkeypatch, where, IN_16_BIT + SPREAD)
    with pytest.raises(MachineError) as caught:
        memory_fit.check(asked, EIGHT, 512, where)
    assert str(caught.value) == (
        "too little memory beside the cards: SHARDING = fsdp reads the whole model first, 16.1 GB, and 8.0 GB are free; "
        "choose a smaller BASE_MODEL_NAME, or a machine with more"
    )
    checkpointed = asked.with_choice("Training.GRADIENT_CHECKPOINTING", True, "")
    other = checkpointed.with_choice("Hardware.NUM_MACHINES", 2, "").with_choice("Hardware.MACHINE_RANK", 1, "")
    assert memory_fit.check(other, EIGHT, 512, where) is None
    four = checkpointed.with_choice("Quantization.LOAD_IN_4BIT", True, "")
    assert memory_fit.check(four, EIGHT, 512, where) is None, "in 4 bit it is read matrix by matrix"


def test_on_a_cpu_the_whole_model_stands_beside_the_shares_while_they_are_made(tmp_path, monkeypatch):
    asked = decided(
        tmp_path, monkeypatch, machine(), SPREAD + "DEVICE = cpu\nPRECISION = bf16\nAUTO_FP16_BF16 = false\n"
    )
    assert memory.estimate(asked, EIGHT, 512)["weights"] >= 2 * (2 * EIGHT.parameters // 4) * 4


def test_fp16_by_the_flag_of_guides_is_a_wish_that_a_cpu_cannot_fulfil_and_by_settings_a_mistake(tmp_path):
    (tmp_path / "config.ini").write_text("[Model]\n", encoding="utf-8")

    def asked(source: str) -> Settings:
        pairs = {"AUTO_FP16_BF16": "false", "PRECISION": "fp16"}
        overrides = [settings.Override("Hardware", key, value, source) for key, value in pairs.items()]
        return choices.decide(settings.load(tmp_path / "config.ini", overrides, check_files=False), machine())

    for source in ("--fp16", "fp16: PRECISION="):
        taken = asked(source)
        assert ("Hardware.PRECISION", "bf16", "--fp16 is for a card; the CPU has amx_bf16") in taken.choices
        assert list(contradictions.find(taken)) == []
    (problem,) = (told for _, told in contradictions.find(asked("--set Hardware.PRECISION")))
    assert "a CPU trains in bf16 or fp32" in problem


def test_what_the_program_holds_of_a_card_already_is_not_counted_against_what_is_free(tmp_path, monkeypatch):
    """The context of this process was there when the card was asked: 0.5 GB or so, which 0.8 GB for the program held too."""
    asked = decided(tmp_path, monkeypatch, machine("Tesla T4"))
    assert memory.estimate(asked, EIGHT, 512)["program"] == 0.3 * GB


def test_a_model_in_16_bit_is_too_large_for_a_t4_and_4_bit_is_the_way(tmp_path, monkeypatch):
    where = machine("Tesla T4")
    text = "[Quantization]\nLOAD_IN_4BIT = false\n[Training]\nGRADIENT_CHECKPOINTING = true\n"
    with pytest.raises(MachineError) as caught:
        memory_fit.check(decided(tmp_path, monkeypatch, where, text), EIGHT, 2048, where)
    assert str(caught.value) == (
        "too little memory: about 18.9 GB (program 0.3 GB, weights 16.1 GB, adapter and optimizer 0.1 GB, activations "
        "1.4 GB, logits 1.0 GB) needed, 15.8 GB free; set LOAD_IN_4BIT = true"
    )


def test_what_other_programs_hold_of_a_card_is_not_free(tmp_path, monkeypatch):
    where = machine("NVIDIA GeForce RTX 4090", free=4)
    asked = decided(tmp_path, monkeypatch, where, "[Training]\nGRADIENT_CHECKPOINTING = true\n")
    with pytest.raises(
        MachineError, match=r"4\.0 GB free; even the least takes \d\.\d GB: choose a smaller BASE_MODEL"
    ):
        memory_fit.check(asked, EIGHT, 2048, where)


def test_on_a_card_a_batch_that_does_not_fit_is_a_warning_for_it_is_halved_while_training(tmp_path, monkeypatch):
    where = machine("Tesla T4")
    text = (
        "[Training]\nPER_DEVICE_TRAIN_BATCH_SIZE = 16\nGRADIENT_ACCUMULATION_STEPS = 1\nGRADIENT_CHECKPOINTING = true\n"
    )
    asked = decided(tmp_path, monkeypatch, where, text)
    warning = memory_fit.check(asked, EIGHT, 2048, where)
    assert warning.startswith("memory may not do: about ")
    assert "set PER_DEVICE_TRAIN_BATCH_SIZE = 8 with GRADIENT_ACCUMULATION_STEPS = 2; or MAX_SEQ_LENGTH = " in warning


CPU = "[Hardware]\nDEVICE = cpu\nENGINE = transformers\n"


def test_each_way_that_is_named_makes_the_run_fit(tmp_path, monkeypatch):
    asked = decided(
        tmp_path, monkeypatch, machine(), CPU + "[LoRA]\nR = 64\n[Training]\nPER_DEVICE_TRAIN_BATCH_SIZE = 8\n"
    )
    there = 5 * GB
    assert total(asked, SMALL, 2048) > memory_fit.MARGIN * there
    named = memory_fit.lower(asked, SMALL, 2048, there)
    assert named.startswith("set GRADIENT_CHECKPOINTING = true; or ")
    assert total(asked.with_choice("Training.GRADIENT_CHECKPOINTING", True, ""), SMALL, 2048) <= there
    length = int(named.rpartition("MAX_SEQ_LENGTH = ")[2])
    assert total(asked, SMALL, length) <= there < total(asked, SMALL, length + 128)


def test_where_one_setting_does_not_do_several_are_named_and_together_they_do(tmp_path, monkeypatch):
    asked = decided(tmp_path, monkeypatch, machine(), CPU + "[Training]\nPER_DEVICE_TRAIN_BATCH_SIZE = 64\n")
    there = 2 * GB
    named = memory_fit.lower(asked, SMALL, 4096, there)
    assert named.startswith("set GRADIENT_CHECKPOINTING = true and PER_DEVICE_TRAIN_BATCH_SIZE = ")
    size = int(named.partition("BATCH_SIZE = ")[2].split()[0])
    changed = asked.with_choice("Training.GRADIENT_CHECKPOINTING", True, "")
    changed = changed.with_choice("Training.PER_DEVICE_TRAIN_BATCH_SIZE", size, "")
    assert total(changed, SMALL, 4096) <= there or " and " in named.partition("ACCUMULATION_STEPS")[2]


def test_a_model_that_does_not_fit_into_memory_is_refused_before_it_is_loaded(tmp_path, monkeypatch):
    where = machine(memory_free=12)
    with pytest.raises(
        MachineError, match=r"too little memory: about .* 12\.0 GB free; even the least takes .* smaller"
    ):
        memory_fit.check(decided(tmp_path, monkeypatch, where, CPU), EIGHT, 512, where)


def test_a_hub_model_that_cannot_fit_is_refused_before_it_is_downloaded(tmp_path, monkeypatch):
    """The Hub's answer is a stand-in: config.json and the number of parameters, as `base_model.peek` gives them."""
    seen = Peek("org/name-8B", "hub", LLAMA_8B, EIGHT.parameters, 8192, 16 * GB)
    monkeypatch.setattr(base_model, "peek", lambda model: seen)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    asked = decided(tmp_path, monkeypatch, machine(memory_free=12), "[Model]\nBASE_MODEL_NAME = org/name-8B\n" + CPU)
    with pytest.raises(MachineError, match="too little memory: about .* choose a smaller BASE_MODEL_NAME"):
        memory_fit.check_before_download(asked, machine(memory_free=12))
    said = []
    monkeypatch.setattr(memory_fit.logger, "info", lambda text, *values: said.append(text.format(*values)))
    memory_fit.check_before_download(asked, machine(memory_free=60))
    assert len(said) == 1
    assert said[0].startswith("org/name-8B: about ") and "with 4,096 (MAX_SEQ_LENGTH); 60.0 GB free" in said[0]


def test_a_hub_model_that_fits_with_its_shares_in_the_machines_memory_is_not_refused(tmp_path, monkeypatch):
    seen = Peek("org/name-70B", "hub", LLAMA_70B, SEVENTY.parameters, 8192, 141 * GB)
    monkeypatch.setattr(base_model, "peek", lambda model: seen)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    where = machine("NVIDIA GeForce RTX 4090", memory_free=200)
    text = "[Model]\nBASE_MODEL_NAME = org/name-70B\n" + ONE_ROW + IN_16_BIT + SPREAD
    assert memory_fit.check_before_download(decided(tmp_path, monkeypatch, where, text), where) is None
    with pytest.raises(MachineError, match="too little memory"):
        memory_fit.check_before_download(
            decided(tmp_path, monkeypatch, where, text), replace(where, memory_available=120 * GB)
        )


def test_where_the_hub_does_not_answer_the_look_is_left_out(tmp_path, monkeypatch):
    def unreachable(model):
        raise MachineError("no Hub")

    monkeypatch.setattr(base_model, "peek", unreachable)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    asked = decided(tmp_path, monkeypatch, machine(), "[Model]\nBASE_MODEL_NAME = org/name-8B\n" + CPU)
    assert memory_fit.check_before_download(asked, machine()) is None


def test_more_of_anything_never_takes_less(tmp_path, monkeypatch):
    asked = decided(tmp_path, monkeypatch, machine(), CPU)
    base = total(asked, SMALL, 640)
    assert total(asked, SMALL, 1024) > base
    assert total(asked.with_choice("Training.PER_DEVICE_TRAIN_BATCH_SIZE", 4, ""), SMALL, 640) > base
    assert total(asked.with_choice("LoRA.R", 64, ""), SMALL, 640) > base
    assert total(asked.with_choice("Hardware.PRECISION", "fp32", ""), SMALL, 640) > base
    assert total(asked.with_choice("Training.GRADIENT_CHECKPOINTING", True, ""), SMALL, 640) < base


def test_a_trained_output_layer_keeps_the_logits_of_all_tokens(tmp_path, monkeypatch):
    asked = decided(tmp_path, monkeypatch, machine(), CPU)
    head = asked.with_choice("LoRA.TARGET_MODULES", ["q_proj", "lm_head"], "")
    assert memory.estimate(head, SMALL, 1024)["logits"] == 2 * 1024 * SMALL.vocabulary * 24
    assert memory.estimate(head, SMALL, 1024)["logits"] > memory.estimate(asked, SMALL, 1024)["logits"]


def test_each_way_to_the_loss_is_reckoned_with_the_tokens_that_it_takes_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "TRL_CHUNK", 0)  # without what each is held against
    asked = decided(tmp_path, monkeypatch, machine(), CPU).with_choice("Hardware.FAST_CPU", True, "")
    by_hand, plain = (memory.Shape(**{**vars(SMALL), "model_type": kind}) for kind in ("llama", "phi3"))
    rows = asked.training.per_device_train_batch_size * 1024
    assert memory.estimate(asked, by_hand, 1024)["logits"] == min(rows, policy.HEAD_CHUNK) * SMALL.vocabulary * 2
    assert memory.estimate(asked, plain, 1024)["logits"] == min(rows, policy.LOSS_CHUNK) * SMALL.vocabulary * 16


def test_weights_in_8_bits_take_a_byte_and_the_exact_ones_stay_in_a_file_of_their_own_dtype(tmp_path, monkeypatch):
    asked = decided(tmp_path, monkeypatch, machine(), CPU).with_choice("Hardware.FAST_CPU", "int8", "")
    in_file = lambda dtype: replace(EIGHT, model_type="llama", dtype=dtype)  # noqa: E731
    layers = EIGHT.layers * EIGHT.layer_weights
    rest = 2 * (EIGHT.parameters - layers)
    assert memory.weights(asked, in_file("bfloat16")) == rest + layers
    assert memory.weights(asked, in_file("float32")) == memory.weights(asked, in_file("")) == rest + 3 * layers
    checkpointed = asked.with_choice("Training.GRADIENT_CHECKPOINTING", True, "")
    checkpointed = checkpointed.with_choice("Training.PER_DEVICE_TRAIN_BATCH_SIZE", 1, "")
    assert (
        total(checkpointed, in_file("bfloat16"), 1024)
        < 12 * GB
        < total(checkpointed.with_choice("Hardware.FAST_CPU", True, ""), in_file("bfloat16"), 1024)
    )
    assert memory.shape({"torch_dtype": "bfloat16"}, 1).dtype == "bfloat16"


def test_weights_are_laid_out_for_their_products_where_half_of_the_memory_does(tmp_path, monkeypatch):
    asked = decided(tmp_path, monkeypatch, machine(), CPU).with_choice("Hardware.FAST_CPU", True, "")
    model = replace(EIGHT, model_type="llama", dtype="bfloat16")
    needed = sum(memory.estimate(asked, model, 256, packs=True).values())
    layers = EIGHT.layers * EIGHT.layer_weights
    # A copy for each direction, and the exact ones stay in their file.
    assert needed - total(asked, model, 256) == 2 * layers
    enough, less = (machine(memory_free=gigabytes) for gigabytes in (2 * needed / GB + 1, 2 * needed / GB - 1))
    assert memory_fit.packs(asked, model, 256, enough)
    assert not memory_fit.packs(asked, model, 256, less)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("Hardware.FAST_CPU", "int8"),
        ("Hardware.FAST_CPU", False),
        ("Hardware.PRECISION", "fp32"),
        ("LoRA.USE_DORA", True),
    ],
)
def test_only_weights_in_bf16_that_the_hand_written_layers_multiply_are_laid_out(tmp_path, monkeypatch, key, value):
    asked = decided(tmp_path, monkeypatch, machine(), CPU).with_choice("Hardware.FAST_CPU", True, "")
    model, roomy = replace(EIGHT, model_type="llama", dtype="bfloat16"), machine(memory_free=900)
    assert memory_fit.packs(asked, model, 256, roomy)
    assert not memory_fit.packs(asked.with_choice(key, value, ""), model, 256, roomy)
    assert not memory_fit.packs(asked, replace(model, model_type="phi3"), 256, roomy)


def test_the_adapter_is_counted_from_the_config_as_from_the_weights(tmp_path, monkeypatch, embedded):
    asked = decided(tmp_path, monkeypatch, machine(), CPU)
    assert memory.adapter_parameters(asked, SMALL) == disk_space.adapter_parameters(asked, a_base_model(path=embedded))


@pytest.mark.parametrize(
    ("before", "device", "after"),
    [
        ({}, "auto", {"CUDA_VISIBLE_DEVICES": "0", "ZE_AFFINITY_MASK": "0"}),
        ({}, "cuda:1", {"CUDA_VISIBLE_DEVICES": "1", "ZE_AFFINITY_MASK": "1"}),
        ({"CUDA_VISIBLE_DEVICES": "2,GPU-5"}, "cuda:1", {"CUDA_VISIBLE_DEVICES": "GPU-5", "ZE_AFFINITY_MASK": "1"}),
        ({"CUDA_VISIBLE_DEVICES": "2,3"}, "cuda", {"CUDA_VISIBLE_DEVICES": "2", "ZE_AFFINITY_MASK": "0"}),
        ({"CUDA_VISIBLE_DEVICES": "2"}, "cuda:1", {"CUDA_VISIBLE_DEVICES": "-1", "ZE_AFFINITY_MASK": "1"}),
        ({"CUDA_VISIBLE_DEVICES": ""}, "auto", {"CUDA_VISIBLE_DEVICES": "", "ZE_AFFINITY_MASK": "0"}),
        ({"HIP_VISIBLE_DEVICES": "4,5"}, "cuda:1", {"HIP_VISIBLE_DEVICES": "5", "ZE_AFFINITY_MASK": "1"}),
    ],
)
def test_one_process_sees_one_card(monkeypatch, before, device, after):
    names = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ZE_AFFINITY_MASK")
    for name in names:
        monkeypatch.setenv(name, "")  # so that monkeypatch puts it back
        monkeypatch.delenv(name)
    for name, value in before.items():
        monkeypatch.setenv(name, value)
    this_machine.show_one_card(device)
    assert {name: this_machine.os.environ[name] for name in names if name in this_machine.os.environ} == after
    for name in names:
        monkeypatch.delenv(name, raising=False)
