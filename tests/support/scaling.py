"""The rungs of docs/scaling.md, from one card to several machines, and what is reckoned for each by the plan's own code."""

from __future__ import annotations

from tests.support.settings import a_settings
from training.plan import memory, traffic
from training.settings import Settings
from training.system.wording import gigabytes, size

# Qwen3-0.6B, Llama-3.1-8B, Llama-3.1-70B.
MODELS = {
    "0.6B": memory.Shape(596_049_920, 1024, 3072, 28, 16, 8, 128, 151_936, "qwen3"),
    "8B": memory.Shape(8_030_261_248, 4096, 14_336, 32, 32, 8, 128, 128_256, "llama"),
    "70B": memory.Shape(70_553_706_496, 8192, 28_672, 80, 64, 8, 128, 128_256, "llama"),
}
LONGEST = 2048
RUNGS: dict[str, dict[str, object]] = {
    "one card, 4 bit": {},
    "one card, 16 bit": {"LOAD_IN_4BIT": False},
    "eight cards, 4 bit": {"NUM_PROCESSES": 8},
    "eight cards, 16 bit, spread": {"NUM_PROCESSES": 8, "SHARDING": "fsdp", "LOAD_IN_4BIT": False},
    "eight cards, 4 bit, spread": {"NUM_PROCESSES": 8, "SHARDING": "fsdp"},
    "eight cards, 16 bit, spread, offloaded": {"NUM_PROCESSES": 8, "SHARDING": "fsdp-offload", "LOAD_IN_4BIT": False},
    "two machines of eight, 16 bit, spread": {
        "NUM_PROCESSES": 8, "NUM_MACHINES": 2, "MAIN_PROCESS_ADDRESS": "10.0.0.5:29500", "SHARDING": "fsdp",
        "LOAD_IN_4BIT": False,
    },
}  # fmt: skip


def on_a_rung(more: dict[str, object]) -> Settings:
    """The settings of a rung, their automatic choices made."""
    chosen = {
        "DEVICE": "cuda", "ENGINE": "transformers", "PRECISION": "bf16", "OPTIM": "adamw_torch", "TARGET_MODULES": "all-linear",
        "PER_DEVICE_TRAIN_BATCH_SIZE": 1, "GRADIENT_ACCUMULATION_STEPS": 1, "GRADIENT_CHECKPOINTING": True,
    }  # fmt: skip
    return a_settings(**chosen, **more)


def row(rung: str, more: dict[str, object]) -> list[str]:
    """The cells of a rung: what a card needs for each model, and what each process sends in a micro-batch."""
    asked = on_a_rung(more)
    needed = [gigabytes(sum(memory.estimate(asked, model, LONGEST).values())) for model in MODELS.values()]
    return [rung, *needed, " / ".join(sent(asked, model) for model in MODELS.values())]


def sent(asked: Settings, model: memory.Shape) -> str:
    """Bytes that each process sends in a step of one micro-batch."""
    if asked.processes == 1:
        return "-"
    gradients = traffic.sent(memory.adapter_parameters(asked, model), asked.processes)
    if asked.hardware.sharding == "none":
        return size(gradients)
    return size(gradients + traffic.sent_weights(memory.cut_weights(asked, model), asked.processes, 1))
