"""What is special to a card, where none is: the libraries' own code on the CPU, and a card's answers where only it has them."""

from __future__ import annotations

import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests.support.paths import ROOT
from tests.support.settings import a_settings
from training.train import Watch, loop, random_state, team, trouble
from training.train.ranks import Ranks

# ---- where the model goes ------------------------------------------------------------------------------------------

PREPARE = """
import sys
from types import SimpleNamespace
sys.path.insert(0, sys.argv[1])
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType

accelerator = Accelerator(cpu=True)
# What they are in one of several processes with a card each.
accelerator.state.__dict__["distributed_type"] = DistributedType.MULTI_GPU
accelerator.state.__dict__["device"] = torch.device("cuda", 0)
model = torch.nn.Linear(1, 1)
model.is_loaded_in_4bit = True
model.hf_device_map = {"": sys.argv[2]}
accelerator.prepare_model(model, device_placement=False, evaluation_mode=True)
print("taken")
"""


def prepared(place: str) -> subprocess.CompletedProcess:
    """accelerate's word on a model in 4 bits at a place, in one of several processes."""
    return subprocess.run([sys.executable, "-c", PREPARE, ROOT, place], capture_output=True, text=True)


@pytest.mark.slow
def test_accelerate_trains_a_model_in_4_bits_in_several_processes_where_the_engine_puts_it():
    from training.train import engine

    place = engine.device_map(a_settings(DEVICE="cuda", NUM_PROCESSES=2))
    assert place == {"": "cuda:0"}
    assert prepared(place[""]).stdout == "taken\n"
    assert "on a different device than the one you're training on" in prepared("cuda").stderr


def test_on_the_cpu_nothing_is_put_anywhere():
    from training.train import engine

    assert engine.device_map(a_settings(DEVICE="cpu")) is None


def test_a_model_that_is_spread_is_read_into_the_machines_memory():
    from training.train import engine

    for sharding in ("fsdp", "fsdp-offload"):
        assert engine.device_map(a_settings(DEVICE="cuda", NUM_PROCESSES=2, SHARDING=sharding)) == {"": "cpu"}


# ---- memory --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_a_step_without_memory_held_is_free_before_the_next_try(monkeypatch):
    held: list[weakref.ref[Any]] = []

    class Activations:
        pass

    def failing(session: object, found: object) -> None:
        activations = Activations()
        held.append(weakref.ref(activations))
        with trouble.memory_watched():
            raise RuntimeError("CUDA out of memory")

    class Session:
        watch, settings = Watch(folder=Path(), fingerprint={}, keep=1), a_settings()

    monkeypatch.setattr(loop, "_run", failing)
    assert loop._tried(Session(), None) == "CUDA out of memory"
    trouble.free_memory()
    assert held[0]() is None


@pytest.mark.slow
def test_memory_that_nothing_holds_is_given_back_to_the_card(monkeypatch):
    import torch

    emptied: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append("cuda"))
    trouble.free_memory()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.xpu, "is_available", lambda: True)
    monkeypatch.setattr(torch.xpu, "empty_cache", lambda: emptied.append("xpu"))
    trouble.free_memory()
    assert emptied == ["cuda", "xpu"]


# ---- waits for the card --------------------------------------------------------------------------------------------


def a_trainer(losses: list[float], steps: int) -> Any:
    """Our part of the trainer over one whose micro-batches have these losses, `steps` of them an optimizer step."""
    import torch

    class Base:
        class accelerator:  # noqa: N801
            native_amp, device, sync_gradients = False, torch.device("cpu"), False
            gather_for_metrics = None

        _metrics: ClassVar[dict[str, dict[str, list[float]]]] = {"train": {}}

        class args:  # noqa: N801
            device, report_to = torch.device("cpu"), ()

        class state:  # noqa: N801
            global_step = 7

        model = torch.nn.Linear(1, 1)
        done = 0

        def training_step(self, model: object, inputs: object, count: object) -> torch.Tensor:
            type(self).done += 1
            return torch.tensor(losses[self.done - 1])

    class Trainer(Ranks, Base):
        def training_step(self, *given: Any) -> torch.Tensor:
            self.accelerator.sync_gradients = (self.done + 1) % steps == 0
            return super().training_step(*given)

    Trainer.watch = Watch(folder=Path(), fingerprint={}, keep=1, team=team.Alone())
    return Trainer()


@pytest.mark.slow
def test_a_card_is_not_waited_for_in_every_micro_batch(monkeypatch):
    import torch

    # For a number that is read out of a tensor a card is waited for.
    reads: list[str] = []
    for name in ("item", "tolist", "__bool__", "__int__", "__float__"):
        read = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda tensor, name=name, read=read: reads.append(name) or read(tensor))
    trainer = a_trainer([1.0] * 4, steps=4)
    batch = {"input_ids": torch.ones(2, 3), "attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]])}
    for _ in range(3):
        trainer.training_step(None, batch)
    assert reads == []
    trainer.training_step(None, batch)
    assert reads == ["tolist"] and trainer.watch.tokens == 20


@pytest.mark.tiny
@pytest.mark.parametrize("loss_type", ["nll", "chunked_nll"])
def test_trl_reads_no_figure_of_a_micro_batch(monkeypatch, tiny_model, tmp_path, loss_type):
    import datasets
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    class Trainer(Ranks, SFTTrainer):
        watch = Watch(folder=Path(), fingerprint={}, keep=1, team=team.Alone())

    read_by_trl: list[float] = []
    read = torch.Tensor.item

    def item(tensor: torch.Tensor) -> float:
        if sys._getframe(1).f_code.co_filename.endswith("sft_trainer.py"):
            read_by_trl.append(read(tensor))
        return read(tensor)

    rows = datasets.Dataset.from_dict({"input_ids": [[5, 6, 7, 8]] * 4, "labels": [[5, 6, 7, 8]] * 4})
    arguments = SFTConfig(
        str(tmp_path), max_steps=1, gradient_accumulation_steps=2, per_device_train_batch_size=2, use_cpu=True,
        bf16=False, report_to=[], loss_type=loss_type, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    trainer = Trainer(model, arguments, train_dataset=rows, processing_class=AutoTokenizer.from_pretrained(tiny_model))
    monkeypatch.setattr(torch.Tensor, "item", item)
    trainer.train()
    assert read_by_trl and set(read_by_trl) == {0}
    assert not any("entropy" in logs or "mean_token_accuracy" in logs for logs in trainer.state.log_history)


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [0, 3])
def test_a_loss_of_any_micro_batch_that_is_no_number_ends_the_run_before_its_step_is_taken(wrong):
    import torch

    from training.errors import RunError

    losses = [1.0] * 4
    losses[wrong] = float("nan")
    trainer = a_trainer(losses, steps=4)
    with pytest.raises(RunError, match="the loss of step 8 is not a finite number"):
        for _ in range(4):
            trainer.training_step(None, {"input_ids": torch.ones(2, 3)})


# ---- PEFT's casts --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_under_autocast_a_step_without_pefts_casts_is_bit_for_bit_the_step_with_them(tiny_model, checkpointing):
    import torch
    from peft import LoraConfig, get_peft_model
    from peft.helpers import disable_input_dtype_casting
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear")).train()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert {p.dtype for p in trained.values()} == {torch.float32}
    ids = torch.arange(40).reshape(2, 20)
    found = []
    for active in (False, True):
        model.zero_grad()
        # As Ranks.training_step does: the backward pass, which reckons layers again, stands inside.
        with disable_input_dtype_casting(model, active=active):
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
        found.append([loss.detach(), *(p.grad.clone() for p in trained.values())])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert any(gradient.any() for gradient in found[0][1:])


# ---- random states -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_random_state_of_an_intel_card_is_kept_and_put_back(monkeypatch, tmp_path):
    import torch

    card = [torch.arange(16, dtype=torch.uint8)]
    put: list[torch.Tensor] = []
    monkeypatch.setattr(torch.xpu, "is_available", lambda: True)
    monkeypatch.setattr(torch.xpu, "get_rng_state_all", lambda: card)
    monkeypatch.setattr(torch.xpu, "set_rng_state_all", put.extend)
    state = random_state.heard(random_state.told(random_state.take()))
    random_state.put_back(state)
    torch.save(random_state.named(state, alone=True), tmp_path / "rng_state.pth")
    random_state.put_back_xpu(tmp_path / "rng_state.pth")
    assert [one.tolist() for one in put] == [card[0].tolist()] * 2


@pytest.mark.slow
def test_one_process_keeps_one_cards_state_and_several_a_list_as_the_trainer_looks_for_them():
    import torch

    one = torch.zeros(16, dtype=torch.uint8)
    state = random_state.RandomState(
        python=(3, (), None), numpy=("MT19937", None, 0, 0, 0.0), torch=one, cuda=[one], xpu=None
    )
    assert random_state.named(state, alone=True)["cuda"] is one
    assert random_state.named(state, alone=False)["cuda"] == [one]
    assert "xpu" not in random_state.named(state, alone=True)
