"""Who may take the fast path, and what is taken together on it."""

from __future__ import annotations

from training.fast_cpu import kernels
from training.settings import Choice, Settings

ENOUGH = 2048  # tokens in a usual micro-batch beyond which larger products are no faster
MOST = 4 * ENOUGH  # tokens in a micro-batch of the longest rows, for the sake of memory
# Trained tokens whose logits are computed at once: under the model's own layers (1024 x 49k x 4 bytes = 200 MB), and by
# hand (functions.HeadLoss).
LOSS_CHUNK, HEAD_CHUNK = 1024, 512
INT8 = "int8"  # FAST_CPU: the frozen weights of the layers in 8 bits
# Whose layers are built of exactly the parts of decoder.py.
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
# Rows that begin with so many equal tokens are computed once for these, where that leaves out so much of a micro-batch.
LEAST_SHARED, LEAST_SAVED = 16, 0.05
# Queries taken together. Of a longer row, keys that lie after the whole block are not multiplied.
BLOCK = 512


def wanted(settings: Settings) -> Choice:
    """Whether the fast path is taken, before it is tried."""
    hardware = settings.hardware
    if hardware.fast_cpu is False:
        return Choice(False, "FAST_CPU")
    if hardware.device != "cpu" or hardware.engine != "transformers":
        return Choice(False, "it is for training with transformers on a CPU")
    if hardware.sharding != "none":
        return Choice(False, "SHARDING = fsdp puts the model's own layers together")
    for name in ("lm_head", "embed_tokens"):
        if name in settings.lora.target_modules:
            return Choice(False, f"{name} is trained")
    reason = "checked against the plain path when training starts"
    if hardware.fast_cpu != INT8:
        return Choice(True, reason)
    # Its units for dot products of bytes; made of other instructions they are as slow as those of floats.
    saves = "" if b"vnni" in kernels.cpu() else ", which on this CPU saves memory and no time"
    return Choice(INT8, f"weights in 8 bits{saves}; {reason}")


def taken(settings: Settings) -> bool:
    """Whether the fast path is to be tried, once that was chosen."""
    return settings.hardware.fast_cpu in (True, INT8)


def without_layers(settings: Settings, model_type: str) -> str:
    """Why FAST_CPU = int8 is not for such a run: the plain layers have no weights in 8 bits. Empty where it is."""
    if by_hand(settings, model_type):
        return ""
    if model_type not in FAMILIES:
        return f"it is for models of the kinds {', '.join(FAMILIES)}, and this one is {model_type or 'another'}"
    return "it goes with plain LoRA alone: USE_DORA = false, LORA_DROPOUT = 0 and BIAS = none"


def regrouped(micro: int, accumulation: int, longest: int, mean: float, alike: int = 0) -> tuple[int, int]:
    """Rows a micro-batch and micro-batches a step, with the same product: as many rows together as ENOUGH tokens hold.

    `longest` and `mean`: tokens a row; `alike`: those that all rows begin with, which are computed once.
    """
    step = micro * accumulation
    fitting = [size for size in range(micro, step + 1) if step % size == 0]
    fitting = [size for size in fitting if size * (mean - alike) + alike <= ENOUGH and size * longest <= MOST]
    together = max(fitting, default=micro)
    return together, step // together


def by_hand(settings: Settings, model_type: str) -> bool:
    """Whether the hand-written layers are for such a run (decoder.unsupported looks at the model itself later)."""
    lora = settings.lora
    plain_lora = not lora.use_dora and lora.lora_dropout == 0 and lora.bias == "none"
    return taken(settings) and model_type in FAMILIES and plain_lora
