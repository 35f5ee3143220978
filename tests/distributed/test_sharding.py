"""A model spread over the processes of a training: the losses, answers and files are those of one process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support import adopted, small
from tests.support.faults import FAULTY
from tests.support.paths import ROOT
from tests.support.programs import finetune, wait_for_step
from tests.support.ranks import TWO, gone, in_rank, other_process, program, slowly
from tests.support.runs import files_of, losses
from tests.support.tiny import write_tiny_config
from training.train.ranks import Ranks

# Its runs need no real vocabulary.
tiny_model, undisturbed = small.tiny_model, small.undisturbed

FSDP = (*TWO, "--set", "Hardware.SHARDING=fsdp")

# Models of several shapes in two processes: the loss and gradients of one, and how much of the model each of them has.
SPREAD = """
import copy, sys
sys.path.insert(0, {root!r})
from pathlib import Path
import torch
import torch.distributed as dist
from accelerate import init_empty_weights
from peft import LoraConfig, get_peft_model
from torch.distributed.fsdp import CPUOffloadPolicy
from transformers import AutoModelForCausalLM, GemmaConfig, LlamaConfig, Qwen2Config, Qwen3MoeConfig
from training.train import sharding
from training.train.team import Place, Team
from tests.support.settings import a_settings
rank = int(sys.argv[1])
torch.set_num_threads(1)
dist.init_process_group("gloo", store=dist.FileStore(sys.argv[2], 2), rank=rank, world_size=2)
team = Team(Place(rank=rank, local_rank=rank, size=2, local_size=2))
def groups(model):
    bare = model.get_base_model()
    return [group for one in (bare, *sharding.layers(bare)) for group in one._get_fsdp_state()._fsdp_param_groups]
same = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, vocab_size=97)
configs = [
    LlamaConfig(**same, tie_word_embeddings=True),
    Qwen2Config(**same, tie_word_embeddings=False),
    GemmaConfig(**same, head_dim=8, pad_token_id=0),
    Qwen3MoeConfig(**same, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, head_dim=8),
]
for config in configs:
    for more in (dict(), dict(use_dora=True), dict(bias="all", lora_dropout=0.1)):
        torch.manual_seed(7)
        whole = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        lora = lambda: LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], init_lora_weights=False, **more)
        reference = get_peft_model(whole, lora())
        if rank == 0:
            model = copy.deepcopy(reference)
        else:
            with init_empty_weights(include_buffers=False):
                empty = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
            empty.tie_weights()
            torch.manual_seed(8)  # the adapter is rank 0's
            model = get_peft_model(empty, lora())
        # Where the shares stay in memory, those of the layers do, by torch's own policy; on a CPU all is as without.
        away = "use_dora" in more
        sharding.spread(model, team, a_settings(DEVICE="cpu", NUM_PROCESSES="2", SHARDING="fsdp-offload" if away else "fsdp"))
        policies = [type(group.offload_policy) is CPUOffloadPolicy for group in groups(model)]
        assert policies == [False, away, away, away], policies
        ids = torch.tensor([[5, 11, 3, 90, 41, 7, 2]])
        def tried(model):
            torch.manual_seed(9)
            model.train()
            model.zero_grad()
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
            loss.backward()
            return loss.item(), {{n: p.grad for n, p in model.named_parameters() if p.grad is not None}}
        (loss, gradients), (here, own) = tried(reference), tried(model)
        # Where a buffer begins decides with some CPUs how its sums are rounded.
        assert abs(loss - here) <= 1e-5 * loss, (config.model_type, more, loss, here)
        assert gradients.keys() == own.keys(), (config.model_type, more)
        off = [n for n in own if not torch.allclose(gradients[n], own[n], rtol=1e-4, atol=1e-6)]
        assert not off, (config.model_type, more, off)
        frozen = [p for p in model.parameters() if not p.requires_grad]
        share = sum(p.to_local().numel() for p in frozen) / sum(p.numel() for p in frozen)
        assert 0.45 < share < 0.55, (config.model_type, share)
        # Rank 0 asks by itself; the other follows.
        if rank:
            sharding.accompany(model, team)
        else:
            with sharding.led(model, team), torch.no_grad():
                for one in (reference, model):
                    one.eval()
                answers = [one.generate(input_ids=ids, max_new_tokens=6, do_sample=False, synced_gpus=False, pad_token_id=0) for one in (reference, model)]
            assert torch.equal(*answers), (config.model_type, more, answers)
        print(config.model_type, sorted(more))
"""


@pytest.mark.slow
def test_models_of_many_shapes_have_equal_losses_gradients_and_answers_when_they_are_spread(tmp_path):
    script = tmp_path / "spread.py"
    script.write_text(SPREAD.format(root=str(ROOT)), encoding="utf-8")
    both = [
        adopted.Popen(
            [sys.executable, script, str(rank), tmp_path / "store"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for rank in (0, 1)
    ]  # fmt: skip
    try:
        for one in both:
            said, trouble = one.communicate(timeout=240)
            assert one.returncode == 0, trouble
            assert len(said.splitlines()) == 12
    finally:
        for one in both:
            one.kill()


@pytest.mark.slow
def test_the_trainer_leaves_a_model_that_is_spread_where_it_is():
    class Trainer:
        def _move_model_to_device(self, model: str, device: str) -> None:
            moved.append((model, device))

    moved: list[tuple[str, str]] = []
    for spread in (True, False):
        trainer = type("Trainer", (Ranks, Trainer), {"watch": SimpleNamespace(spread=spread)})()
        trainer._move_model_to_device("a model", "cuda:0")
    assert moved == [("a model", "cuda:0")]


@pytest.mark.slow
def test_each_layer_is_spread_by_itself_also_one_with_more_experts_than_there_are_layers():
    import torch
    from torch.nn import Linear, ModuleList

    from training.train import sharding

    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = ModuleList(Linear(2, 2) for _ in range(5))

    model = torch.nn.Module()
    model.layers = ModuleList(Layer() for _ in range(3))
    model.vision = ModuleList([Linear(2, 2), Linear(2, 2)])
    model.head = ModuleList([Linear(2, 2)])
    assert sharding.layers(model) == [*model.layers, *model.vision]
    del model.vision
    assert sharding.layers(model) == list(model.layers)


@pytest.mark.tiny
def test_a_spread_training_that_lost_a_process_goes_on_to_the_files_of_one_process(tmp_path, tiny_model, undisturbed):
    config = write_tiny_config(tmp_path, tiny_model)
    process = slowly("--config", config, *FSDP, "--set", "Training.SAMPLE_STEPS=2")
    run = wait_for_step(tmp_path / "outputs", 3, process)
    os.kill(other_process(run), signal.SIGKILL)  # the first rank waits for its share of a layer
    began = time.monotonic()
    stdout, stderr = process.communicate(timeout=120)
    assert time.monotonic() - began < 60
    assert (process.returncode, stdout.strip()) == (1, str(run)), stderr
    assert "was killed by SIGKILL\nthe checkpoint of step" in stderr and "Traceback" not in stderr

    ended = finetune("--config", config, "--resume")
    assert ended.code == 0, ended.stderr
    assert "the weights twice a micro-batch (SHARDING = fsdp), and the gradients of the adapter" in ended.stderr
    ours, theirs = losses(run), losses(undisturbed)
    assert [ours[step] for step in theirs] == pytest.approx([theirs[step] for step in theirs], rel=1e-3)
    assert files_of(run) == small.RUN_FILES
    assert "step 2: asked: " in (run / "finetune.log").read_text(encoding="utf-8")
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    assert len(report["samples"]) == 3 and all(one["before"] and one["after"] for one in report["samples"])


# One of the two finds no memory in the middle of the model, where the other waits for it.
SCARCE = """
from transformers.models.llama import modeling_llama
real = modeling_llama.LlamaMLP.forward
def scarce(self, *given):
    if self.training:
        raise RuntimeError(NO_MEMORY)
    return real(self, *given)
modeling_llama.LlamaMLP.forward = scarce
"""


@pytest.mark.tiny
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_of_a_spread_model_that_lacks_memory_ends_all_in_time_with_what_would_do(tmp_path, tiny_model, rank):
    config = write_tiny_config(tmp_path, tiny_model)
    process = adopted.Popen(
        program(in_rank(rank, SCARCE), "--config", config, *FSDP),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    began = time.monotonic()
    _, stderr = process.communicate(timeout=120)
    assert (process.returncode, time.monotonic() - began < 90) == (1, True), stderr
    assert "can't allocate memory" in stderr and "MAX_SEQ_LENGTH" in stderr, stderr


# SIGTERM comes to the rank in its first forward pass for the evaluation, which is rank 0's.
IN_EVALUATION = """
from training.train import sharding
real = sharding.accompany
def accompany(model, team, stop=lambda: None):
    os.kill(os.getpid(), signal.SIGTERM)
    real(model, team, stop)
sharding.accompany = accompany
"""


@pytest.mark.tiny
def test_a_signal_to_another_rank_in_the_evaluation_of_a_spread_model_ends_all_and_the_rest_is_done_by_one(
    tmp_path, tiny_model
):
    config = write_tiny_config(tmp_path, tiny_model)
    process = adopted.Popen(
        [sys.executable, "-c", FAULTY.format(root=str(ROOT), fault=in_rank(1, IN_EVALUATION)), "--config", config, *FSDP],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    stdout, stderr = process.communicate(timeout=180)
    assert process.returncode == 143, stderr
    run = Path(stdout.strip())
    assert gone(other_process(run))
    status = json.loads((run / "status.json").read_text(encoding="utf-8"))
    assert status["state"] == "interrupted" and "train" in status["stages"] and "evaluate" not in status["stages"]
    ended = finetune("--config", config, "--resume")
    assert ended.code == 0, ended.stderr
    assert files_of(run) == small.RUN_FILES
