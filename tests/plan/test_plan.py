"""What the plan chooses and refuses, on settings and models described in a line."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from tests.support.folders import folder
from tests.support.plans import CPU, a_base_model, a_plan, a_summary
from tests.support.settings import a_settings
from training import settings
from training.base_model import BaseModel
from training.data import ChatTemplate
from training.errors import MachineError, UserError
from training.fast_cpu import kernels, policy
from training.plan import Plan, choices, disk_space, served_tools, time_estimate
from training.settings import Choice, Override, Settings
from training.system.this_machine import Gpu

ON_CPU = {"DEVICE": "cpu", "ENGINE": "transformers"}


def in_file(tmp_path, text: str, *overrides: Override) -> Settings:
    """Settings of a file that somebody has written, where it matters what stands in the file."""
    config = tmp_path / "config.ini"
    config.write_text(text, encoding="utf-8")
    return settings.load(config, overrides, check_files=False)


def model(parameters: int) -> BaseModel:
    config = {"hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16}
    return a_base_model(config, parameters)


OTHER = Override("Model", "BASE_MODEL_NAME", "Qwen/Qwen3-0.6B", "argument 3 (BASE_MODEL)")
RATE = "[Training]\nLEARNING_RATE = 2e-3\n"


def fitted(tmp_path, asked: Settings, parameters: int) -> Settings:
    return choices.fit_to_model(asked, a_base_model(parameters=parameters, path=folder(tmp_path / "model")))


def test_a_high_learning_rate_of_the_file_is_not_taken_to_a_larger_model_named_on_the_command_line(tmp_path):
    chosen = fitted(tmp_path, in_file(tmp_path, RATE, OTHER), 600_000_000)
    assert chosen.training.learning_rate == 2e-4
    assert "0.002 stands in config.ini for another, smaller model" in chosen.origin("Training.LEARNING_RATE")


@pytest.mark.parametrize("parameters", [135_000_000, 600_000_000])
def test_a_learning_rate_that_was_written_for_the_files_own_model_is_kept(tmp_path, parameters):
    assert fitted(tmp_path, in_file(tmp_path, RATE), parameters).training.learning_rate == 2e-3


def test_a_learning_rate_from_the_command_line_is_kept_for_any_model(tmp_path):
    rate = Override("Training", "LEARNING_RATE", "2e-3", "--learning-rate")
    asked = in_file(tmp_path, "[Training]\nMAX_STEPS = 9\n", OTHER, rate)
    assert fitted(tmp_path, asked, 600_000_000).training.learning_rate == 2e-3


def test_rows_beyond_a_window_that_llama_cpp_does_not_compute_are_refused_with_what_would_do():
    tried = {"architecture": "MistralForCausalLM", "window": 4096}
    for known, longest in (({"architecture": "x"}, 9999), (tried, 4096)):
        choices.check_window(known, longest)
    with pytest.raises(
        UserError, match="4,096 tokens that this MistralForCausalLM has, .* 4,097: .* MAX_SEQ_LENGTH = 4096"
    ):
        choices.check_window(tried, 4097)


def test_short_rows_of_one_step_are_taken_together_and_their_number_stays():
    assert policy.regrouped(2, 4, longest=500, mean=200) == (8, 1)
    assert policy.regrouped(2, 4, longest=900, mean=400) == (4, 2)
    assert policy.regrouped(2, 4, longest=2500, mean=200) == (2, 4), "the longest rows together would take the memory"
    assert policy.regrouped(2, 4, longest=2000, mean=1100) == (2, 4)
    assert policy.regrouped(3, 5, longest=64, mean=60) == (15, 1)


def test_rows_that_begin_alike_count_for_what_is_computed_of_them_within_the_memory_of_all():
    assert policy.regrouped(2, 4, longest=900, mean=800, alike=700) == (8, 1)
    assert policy.regrouped(2, 4, longest=1500, mean=800, alike=700) == (4, 2), "the longest rows would take the memory"
    assert policy.regrouped(2, 4, longest=900, mean=800, alike=100) == (2, 4)


def test_the_fast_path_is_for_cpus_and_says_why_it_is_not_taken():
    on_gpu = a_settings(DEVICE="cuda", ENGINE="transformers")
    assert policy.wanted(on_gpu) == (False, "it is for training with transformers on a CPU")
    off = a_settings(FAST_CPU=False, **ON_CPU)
    assert policy.wanted(off) == (False, "FAST_CPU")


@pytest.mark.parametrize(
    ("flags", "saves"),
    [
        (b"flags: avx2 avx_vnni", ""),
        (b"flags: avx512_vnni", ""),
        (b"flags: avx2", ", which on this CPU saves memory and no time"),
    ],
)
def test_8_bits_say_what_they_are_good_for_on_this_cpu(monkeypatch, flags, saves):
    monkeypatch.setattr(kernels, "cpu", lambda: flags)
    chosen = policy.wanted(a_settings(FAST_CPU="int8", **ON_CPU))
    assert chosen.reason == f"weights in 8 bits{saves}; checked against the plain path when training starts"


def test_weights_in_8_bits_are_taken_where_that_is_asked_for_and_can_be_had(monkeypatch):
    asked = a_settings(FAST_CPU="int8", **ON_CPU)
    assert policy.wanted(asked).value == "int8"
    assert policy.taken(asked) and policy.by_hand(asked, "qwen3") and not policy.without_layers(asked, "qwen3")
    assert not policy.taken(a_settings(FAST_CPU=False, **ON_CPU))


@pytest.mark.parametrize(
    ("more", "kind", "missing", "why"),
    [
        ({}, "gemma3", "", "it is for models of the kinds llama, mistral, qwen2, qwen3, and this one is gemma3; write auto"),
        ({"LORA_DROPOUT": 0.1}, "llama", "", "it goes with plain LoRA alone: USE_DORA = false, LORA_DROPOUT = 0 and BIAS = none; write auto"),
        ({"ENGINE": "unsloth"}, "llama", "", "it is for training with transformers on a CPU"),
        ({}, "llama", "there is no C compiler", "there is no C compiler; write auto"),
    ],
)  # fmt: skip
def test_weights_in_8_bits_that_cannot_be_had_are_refused_before_training(monkeypatch, more, kind, missing, why):
    monkeypatch.setattr("training.fast_cpu.fast_loss.without_8_bits", lambda: missing)
    asked = a_settings(**{"FAST_CPU": "int8", **ON_CPU, **more})
    with pytest.raises(UserError) as raised:
        choices.choose_for_rows(asked, a_base_model({"model_type": kind}, 1000), a_summary(10), CPU)
    assert str(raised.value).endswith(f"FAST_CPU = int8: {why}")


def test_the_reasons_of_automatic_choices_outlive_a_resume(tmp_path, monkeypatch):
    monkeypatch.setattr("training.system.this_machine.versions", dict)
    first = choices.decide(in_file(tmp_path, "[Hardware]\nENGINE = transformers\n"), CPU)
    assert first.origin("Hardware.ENGINE") == "config.ini:2", "what somebody set is no choice of ours"
    (tmp_path / "config.ini").write_text(first.to_ini(), encoding="utf-8")
    resumed = choices.decide(settings.of_run(tmp_path / "config.ini", check_files=False), CPU)
    assert sorted(resumed.choices) == sorted(first.choices)
    assert resumed.origin("Hardware.DEVICE") == "automatic: no CUDA, ROCm or XPU device"
    assert resumed.origin("Quantization.LOAD_IN_4BIT") == "automatic: no CUDA device"


def test_checkpointing_is_chosen_where_activations_do_not_fit_and_says_both_sizes():
    asked = a_settings(**ON_CPU)
    assert disk_space.checkpointing(asked, model(600_000_000), a_summary(100), CPU).value is False
    choice = disk_space.checkpointing(asked, model(600_000_000), a_summary(4096), CPU)
    assert choice.value is True
    assert re.fullmatch(r"about \d+\.\d GB needed without, 12.0 GB are free", choice.reason)


def test_on_a_card_too_checkpointing_is_chosen_only_where_activations_do_not_fit():
    asked = a_settings(DEVICE="cuda", ENGINE="transformers", PRECISION="bf16", LOAD_IN_4BIT=False, FAST_CPU=False)
    card = replace(CPU, gpus=(Gpu("a card", 24 * 10**9, (8, 9), 20 * 10**9),), backend="cuda")
    assert disk_space.checkpointing(asked, model(600_000_000), a_summary(100), card).value is False
    choice = disk_space.checkpointing(asked, model(600_000_000), a_summary(8192), card)
    assert choice.value is True
    assert re.fullmatch(r"about \d+\.\d GB needed without, 20.0 GB are free", choice.reason)


def llama_8b(monkeypatch, vocabulary: int = 128_256) -> BaseModel:
    """Llama-3.1-8B as the plan sees it: its size, and the shapes of its linear layers."""
    shapes = {"q_proj": (4096, 4096), "k_proj": (1024, 4096), "v_proj": (1024, 4096), "o_proj": (4096, 4096)}
    shapes |= {"gate_proj": (14336, 4096), "up_proj": (14336, 4096), "down_proj": (4096, 14336)}
    layers = [(f"model.layers.{i}.x.{name}", *shape) for i in range(32) for name, shape in shapes.items()]
    monkeypatch.setattr(disk_space, "linear_modules", lambda _: layers)
    return a_base_model({"vocab_size": vocabulary}, 8_030_261_248)


@pytest.mark.parametrize("modules", ["q_proj,k_proj,v_proj,o_proj", "all-linear"])
def test_a_model_of_8_billion_parameters_fits_into_40_gb_of_disk(monkeypatch, modules):
    asked = a_settings(TARGET_MODULES=modules, KEEP_MERGED=False, KEEP_F16=False)
    disk = disk_space.disk_needed(asked, llama_8b(monkeypatch), 60)
    assert disk["merged"] == disk["f16 GGUF"] == 2 * 8_030_261_248
    assert disk["q4_k_m"] == pytest.approx(4_920_739_232, rel=0.01)  # the file that is published of it
    assert disk["logits for the checks"] == 2 * 512 * 128_256 * 4
    assert 36e9 < sum(disk.values()) < 40e9


def test_every_quantised_file_is_added_to_the_disk_that_is_needed(monkeypatch):
    one, three = (
        disk_space.disk_needed(a_settings(QUANTIZATION_METHOD=methods), llama_8b(monkeypatch), 60)
        for methods in ("q4_k_m", "q4_k_m, q8_0, iq2_xs")
    )
    assert sum(three.values()) - sum(one.values()) == three["q8_0"] + three["iq2_xs"]
    assert three["q8_0"] > 8.03e9 > three["iq2_xs"] > 2e9


def test_a_method_that_needs_an_importance_matrix_is_refused_where_the_model_cannot_be_run():
    chosen = a_settings(QUANTIZATION_METHOD="q4_k_m, iq2_xs")
    said = r"iq2_xs needs an importance matrix, and the model must be run for it in 17.1 GB; 12.0 GB are free"
    with pytest.raises(MachineError, match=said):
        disk_space.check_importance(chosen, model(8_000_000_000), CPU)
    disk_space.check_importance(chosen, model(600_000_000), CPU)
    disk_space.check_importance(a_settings(QUANTIZATION_METHOD="q4_k_m"), model(8_000_000_000), CPU)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "text", "said"),
    [
        (None, "", "Ollama: not here; the Modelfile is written all the same"),
        ("echo ollama version is 0.31.2", "REQUIRES 0.30.0\n", "Ollama 0.31.2"),
        ("echo ollama version is 0.29.9", "TEMPLATE x\n", "Ollama 0.29.9"),
        (
            "echo ollama version is 0.29.9",
            "REQUIRES 0.30.0\n",
            "0.29.9 is here, and this model will need 0.30.0 or later",
        ),
        ("echo no server >&2; exit 1", "", "Ollama: not here"),
    ],
)
def test_the_ollama_that_is_here_is_told_before_training(tmp_path, monkeypatch, script, text, said):
    if script:
        (tmp_path / "ollama").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "ollama").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin" if script else str(tmp_path))
    told: list[str] = []
    sink = choices.logger.add(told.append, format="{level} {message}")
    choices.look_at_ollama(text)
    choices.logger.remove(sink)
    assert said in told[-1]
    assert told[-1].startswith("WARNING" if "will need" in said else "INFO")


def test_a_spread_model_is_trained_by_its_own_layers():
    asked = a_settings(NUM_PROCESSES="2", SHARDING="fsdp", DEVICE="cpu", ENGINE="transformers")
    assert policy.wanted(asked) == Choice(False, "SHARDING = fsdp puts the model's own layers together")


def planned(asked: Settings, **config: object) -> Plan:
    return a_plan(asked, base=a_base_model(config), steps=10, validation=range(8))


def test_the_time_of_a_run_follows_from_that_of_one_layer_and_three(monkeypatch):
    asked = a_settings(EVAL_STEPS=5, MAX_STEPS=10, DEVICE="cpu")
    monkeypatch.setattr(time_estimate, "usual_batch", lambda plan, rows: {})
    monkeypatch.setattr(time_estimate, "timed_pass", lambda plan, layers, batch: (float(layers), 2.0 * layers))
    monkeypatch.setattr("os.getloadavg", lambda: (0.5, 0.5, 0.5))
    # 30 layers take 30 s, 4 micro-batches a step 120 s; 4 validations of 8 rows take a third of a step each
    assert time_estimate.lines(planned(asked, num_hidden_layers=30))[0].startswith(
        "time: about 22 min 40 s of training, 2 min 00 s a step (measured just now"
    )
    monkeypatch.setattr("os.getloadavg", lambda: (900.0, 9.0, 9.0))
    assert ", beside other programs: load 900.0 on" in time_estimate.lines(planned(asked, num_hidden_layers=30))[0]
    assert "22 min 40 s" in time_estimate.lines(planned(asked, text_config={"num_hidden_layers": 30}))[0]


def test_the_time_of_a_step_has_what_goes_over_a_line_that_is_given_and_says_how_much_that_is(monkeypatch):
    monkeypatch.setattr(time_estimate, "_seconds", lambda plan: 3.0)
    monkeypatch.setattr(time_estimate, "sizes", lambda plan: (10**8, 10**9))  # 0.4 GB a step between two
    asked = a_settings(
        NUM_PROCESSES=2, LINK_GBPS=3.2, DEVICE="cpu", PER_DEVICE_TRAIN_BATCH_SIZE=1, GRADIENT_ACCUMULATION_STEPS=2
    )
    found = time_estimate.lines(planned(asked))
    assert "4.0 s a step, 25% of it between the processes (measured just now" in found[0]
    # 4 s with both processes on one machine; 1.5 and 1.5 s with one more
    assert found[1:] == [
        "machines: 2 would be 1.3 times as fast as one, with the same rows a step at 3.2 Gbit/s; with more rows a step "
        "(GRADIENT_ACCUMULATION_STEPS) they are faster: the gradients go once a step"
    ]
    assert len(time_estimate.lines(planned(a_settings(NUM_PROCESSES=2, DEVICE="cpu")))) == 1


def test_where_nothing_can_be_measured_the_plan_says_so(monkeypatch):
    on_gpu = planned(a_settings(DEVICE="cuda"))
    assert time_estimate.lines(on_gpu)[0] == "time: not measured before a run on a GPU; its first steps tell it"
    monkeypatch.setattr(time_estimate, "usual_batch", lambda plan, rows: {})
    monkeypatch.setattr(time_estimate, "timed_pass", lambda plan, layers, batch: (1.0, 1.0))
    unknown = planned(a_settings(DEVICE="cpu"), model_type="odd")
    assert time_estimate.lines(unknown)[0] == "time: not measured (StopIteration); the first steps of a run tell it"


def test_a_model_is_described_with_fewer_layers_and_nothing_else_changed():
    types = ["sliding_attention", "full_attention"] * 9
    whole = {"hidden_size": 8, "num_hidden_layers": 18, "layer_types": types, "transformers_version": "5"}
    small = {"hidden_size": 8, "num_hidden_layers": 3, "layer_types": types[:3]}
    assert time_estimate.with_layers(whole, 3) == small
    assert time_estimate.with_layers({"a": 1, "text_config": whole}, 3) == {"a": 1, "text_config": small}


def test_rows_with_tools_are_told_who_will_write_them_as_they_are_trained(logged: list[str]) -> None:
    served_tools.say(3, ChatTemplate("", "", tools_by_name=True))
    assert (
        "3 rows" in logged[0] and "TEMPLATE writes them as they are trained, for Ollama of every version" in logged[0]
    )
    assert "in the order of their names" in logged[0] and "TOOL_FORM = own" in logged[0]
    served_tools.say(3, ChatTemplate("", ""))
    assert "TEMPLATE, by which older Ollama writes prompts, knows none" in logged[1]
