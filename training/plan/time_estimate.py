"""How long will the training take? Measured in a few seconds on the model's own shape, before it is loaded.

A model is a stack of equal layers. With one layer and with three, the time of a forward and backward pass over real
rows tells what a layer costs and what the rest does (embedding, output layer, loss); the weights may hold anything. So
it works for a model that is not downloaded yet, and takes a twentieth of its memory.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from loguru import logger

from training.data import replay
from training.data.encoding import IGNORED
from training.evaluation.base_answers import LONGEST_ANSWER, MOST_SECONDS, TOGETHER
from training.fast_cpu import fast_loss, policy
from training.plan import memory, replayed, traffic
from training.plan.plan import Plan, sizes
from training.system import this_machine, wording
from training.train import engine

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel

FEW, MORE = 1, 3  # layers of the two small models
ENOUGH = 3.0  # seconds after which one measurement is enough
LAYERS = ("num_hidden_layers", "n_layer", "num_layers")
# A forward and backward pass takes about three times as long as the forward pass of a validation.
BACKWARD = 3.0


def lines(plan: Plan) -> list[str]:
    """The estimate for the plan, or why there is none; and whether more machines would be faster, where their line is known."""
    if plan.settings.hardware.device != "cpu":
        return ["time: not measured before a run on a GPU; its first steps tell it"]
    try:
        computing = _seconds(plan)
        sending, more = _between(plan, computing)
    except Exception as error:  # an estimate is no reason to refuse a run that would work
        logger.opt(exception=True).debug("no estimate")
        return [f"time: not measured ({type(error).__name__}); the first steps of a run tell it"]
    seconds = computing + sending
    total = seconds * plan.steps + _validations(plan, computing)
    part = f", {sending / seconds:.0%} of it between the processes" if sending else ""
    return [
        f"time: about {wording.duration(total)} of training, {wording.duration(seconds)} a step{part} (measured just now on "
        f"{MORE} layers of random weights{this_machine.busy()}); {_answering(plan)}loading, checks and GGUF files come on top",
        *([more] if more else ()),
    ]


def _between(plan: Plan, computing: float) -> tuple[float, str]:
    """Seconds of a step that go over the line between the processes, and what is said of more machines; nothing where the
    line is not known."""
    if plan.settings.hardware.link_gbps == "auto":
        return 0.0, ""
    adapter, whole = sizes(plan)
    return traffic.seconds(plan.settings, adapter, whole) or 0.0, traffic.machines_line(
        plan.settings, adapter, computing
    )


def _answering(plan: Plan) -> str:
    """What it takes at most until the base model has given its answers for the replay rows; nothing where it is not asked.

    A token of a batch of answers costs a forward pass over one token of each.
    """
    if plan.replay is None or not replayed.awaited(plan.replay):
        return ""
    import torch

    few, more = (
        _one_token(_shallow(plan, layers), torch.ones((TOGETHER, 1), dtype=torch.long)) for layers in (FEW, MORE)
    )
    token = more + max(0.0, (more - few) / (MORE - FEW)) * (_layers(plan.base.config) - MORE)
    batches = math.ceil(min(plan.replay.count, len(replay.prompts(0))) / TOGETHER)
    seconds = min(MOST_SECONDS, batches * LONGEST_ANSWER * token)
    return f"before it up to {wording.duration(seconds)} for {plan.replay.count:,} answers of the base model, if all of them end; "


def _one_token(model: PeftModel, ids: torch.Tensor) -> float:
    """Seconds of a forward pass."""
    import torch

    taken = []
    with torch.no_grad():
        for _ in range(3):  # the first one sets buffers up
            began = time.perf_counter()
            model.eval()(input_ids=ids)
            taken.append(time.perf_counter() - began)
    return min(taken)


def _seconds(plan: Plan) -> float:
    """Seconds of one optimizer step."""
    training = plan.settings.training
    batch = usual_batch(plan, training.per_device_train_batch_size)
    (_, few), (clock, more) = (timed_pass(plan, layers, batch) for layers in (FEW, MORE))
    a_layer = max(0.0, (more - few) / (MORE - FEW))
    whole = few + a_layer * (_layers(plan.base.config) - FEW)
    # The processor's time tells layers apart also where other programs take turns on it; the clock is that of one model.
    return clock * whole / more * training.gradient_accumulation_steps


def _validations(plan: Plan, seconds: float) -> float:
    """Seconds that validating takes in all: before, at the end, and on the way."""
    if plan.validation is None:
        return 0.0
    every = plan.settings.training.eval_steps
    times = 2 + (plan.steps // every if every else 0)
    return times * len(plan.validation) / plan.settings.rows_a_step * seconds / BACKWARD


def _layers(config: Mapping[str, object]) -> int:
    return next(layers for key in LAYERS if (layers := memory.number(config, key, 0)))


def usual_batch(plan: Plan, rows: int) -> dict[str, torch.Tensor]:
    """One micro-batch of rows of a usual length, padded as the trainer pads them."""
    import torch

    lengths = plan.train.with_format("numpy")["length"][:]
    order = lengths.argsort()
    # Evenly spread from short to long.
    middle = [int(order[len(order) * (2 * i + 1) // (2 * rows)]) for i in range(rows)]
    usual = [plan.train[i] for i in middle]
    longest = max(len(row["input_ids"]) for row in usual)

    def padded(name: str, filling: int) -> torch.Tensor:
        return torch.tensor([row[name] + [filling] * (longest - len(row[name])) for row in usual])

    masks = [[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in usual]
    return {
        "input_ids": padded("input_ids", 0),
        "labels": padded("labels", IGNORED),
        "attention_mask": torch.tensor(masks),
    }


def timed_pass(plan: Plan, layers: int, batch: dict[str, torch.Tensor]) -> tuple[float, float]:
    """Seconds by the clock and of the processor for a forward and backward pass of the model with so many layers."""
    model = _shallow(plan, layers)
    bare = cast("PreTrainedModel", model.get_base_model())
    fast = policy.taken(plan.settings) and fast_loss.plain_head(bare)
    in_8_bits = plan.settings.hardware.fast_cpu == policy.INT8
    decoder = fast_loss.layers(bare, in_8_bits=in_8_bits) if fast else None
    taken = []
    for _ in range(3):  # the first one sets buffers up
        began, used = time.perf_counter(), time.process_time()
        loss = fast_loss.loss(bare, batch, None, decoder) if fast else model(**batch).loss
        loss.backward()
        taken.append((time.perf_counter() - began, time.process_time() - used))
        if sum(clock for clock, _ in taken) > ENOUGH:
            break
    return min(clock for clock, _ in taken), min(used for _, used in taken)


def _shallow(plan: Plan, layers: int) -> PeftModel:
    """The model with `layers` layers and an adapter, as the engine sets it up; its weights are all the same number."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    settings = plan.settings
    attention = "eager" if plan.longest <= engine.EAGER_UP_TO else "sdpa"
    config = AutoConfig.for_model(**with_layers(plan.base.config, layers))
    with torch.random.fork_rng(devices=[]), no_init_weights():
        model = AutoModelForCausalLM.from_config(
            config, dtype=getattr(torch, engine.DTYPES[settings.hardware.precision]), attn_implementation=attention
        )
    for parameter in model.parameters():
        parameter.data.fill_(0.01)  # what memory happens to hold may be denormal, and slow
    model.config.use_cache = False
    model = get_peft_model(
        model, LoraConfig(task_type="CAUSAL_LM", **engine.lora(settings)), autocast_adapter_dtype=True
    )
    if settings.training.gradient_checkpointing is True:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable()
    return model.train()


def with_layers(config: Mapping[str, object], layers: int) -> dict[str, Any]:
    """A config.json that describes the same model with fewer layers."""
    small = {key: value for key, value in config.items() if key != "transformers_version"}
    if isinstance(text := small.get("text_config"), Mapping):
        return small | {"text_config": with_layers(text, layers)}
    small |= {key: layers for key in LAYERS if key in small}
    if isinstance(types := small.get("layer_types"), list):
        small["layer_types"] = types[:layers]
    return small
