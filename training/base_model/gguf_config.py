"""What transformers calls the settings of the model in a GGUF file.

The names come from transformers' own table (integrations/ggml.py); what that table leaves out is added here: the size of
a head, biases, how positions are scaled. Whether the result is right is not argued but measured (gguf_model.agreement).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from training.errors import UserError
from training.llama import GGUF

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# Architectures whose settings are plain values. The others (state spaces, shared layers, lists of values by layer) go
# through transformers' own reader of GGUF files, which knows their peculiarities but takes ten times as long.
PLAIN = {
    "llama": "llama", "mistral": "mistral", "qwen2": "qwen2", "qwen2moe": "qwen2_moe", "qwen3": "qwen3",
    "qwen3moe": "qwen3_moe", "phi3": "phi3", "gemma2": "gemma2", "gemma3": "gemma3_text", "starcoder2": "starcoder2",
    "nemotron": "nemotron",
}  # fmt: skip


def build(gguf: GGUF, special: Mapping[str, int]) -> PreTrainedConfig:
    """The transformers configuration; `special` holds the ids of bos, eos and pad (-1: none)."""
    from transformers import AutoConfig

    found = _plain(gguf) if gguf.architecture in PLAIN else _by_transformers(gguf)
    ids = {name: special[name] if special[name] >= 0 else None for name in ("bos", "eos", "pad")}
    found |= {"bos_token_id": ids["bos"], "eos_token_id": ids["eos"]}
    found["pad_token_id"] = ids["pad"] if ids["pad"] is not None else ids["eos"]
    found["vocab_size"] = len(gguf.fields["tokenizer.ggml.tokens"])
    found.pop("unk_token_id", None)
    config = AutoConfig.for_model(found.pop("model_type"), **found)
    config.dtype = "bfloat16"
    return config


def _plain(gguf: GGUF) -> dict[str, Any]:
    from transformers.integrations.ggml import GGUF_CONFIG_DEFAULTS_MAPPING, GGUF_CONFIG_MAPPING

    model_type = PLAIN[gguf.architecture]
    table = model_type.removesuffix("_text")
    found: dict[str, Any] = {"model_type": model_type, **GGUF_CONFIG_DEFAULTS_MAPPING.get(table, {})}
    # Its type there says object; the keys are GGUF's and the values transformers'.
    names = cast(Mapping[str, "str | None"], GGUF_CONFIG_MAPPING[table])
    for key, name in names.items():
        value = gguf.of_architecture(key)
        if name and value is not None:
            found[name] = _shortest(value)
    found["tie_word_embeddings"] = "output.weight" not in gguf.tensors
    even_share = found["hidden_size"] // found["num_attention_heads"]
    found["head_dim"] = gguf.of_architecture("attention.key_length") or found.get("head_dim") or even_share
    if gguf.architecture in ("llama", "qwen3"):
        found["attention_bias"] = "blk.0.attn_q.bias" in gguf.tensors
    found["rope_parameters"] = _positions(gguf, found.pop("rope_theta", None), found["head_dim"])
    if any(isinstance(value, list) for value in found.values()):
        raise UserError("its layers differ in size, which transformers' model of this architecture cannot follow")
    return {name: value for name, value in found.items() if value is not None}


def _by_transformers(gguf: GGUF) -> dict[str, Any]:
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    try:
        found: dict[str, Any] = load_gguf_checkpoint(str(gguf.path))["config"]
    except (ValueError, KeyError, NotImplementedError) as error:
        raise UserError(
            f'transformers cannot read the architecture "{gguf.architecture}" from a GGUF file; '
            "name the model's Hub id or its folder of safetensors instead"
        ) from error
    found.pop("_model_name_or_path", None)
    return found


def _shortest(value: object) -> Any:
    """A float32 as the shortest decimal that gives it: 1e-05, where the file's four bytes read 9.999999747378752e-06."""
    if not isinstance(value, float):
        return value
    import numpy as np

    return float(str(np.float32(value)))


def _positions(gguf: GGUF, theta: float | None, head_dim: int) -> dict[str, Any] | None:
    """transformers' rope_parameters. Raises UserError for a scaling that cannot be told from the file."""
    theta = theta or _shortest(gguf.of_architecture("rope.freq_base")) or 10000.0
    if gguf.architecture == "gemma3":
        return None  # two kinds of layers with a table each: the defaults of transformers, measured like everything
    if gguf.tensors.keys() & {"rope_factors_long.weight", "rope_factors_short.weight"}:
        raise UserError("its positions are scaled by LongRoPE, whose settings a GGUF file does not tell completely")
    if "rope_freqs.weight" in gguf.tensors:
        return {"rope_theta": theta, **_llama3(gguf, theta, head_dim)}
    kind = gguf.of_architecture("rope.scaling.type", "none")
    factor = _shortest(gguf.of_architecture("rope.scaling.factor", 1.0))
    if kind in ("none", "") or factor in (0.0, 1.0):
        return {"rope_theta": theta, "rope_type": "default"}
    if kind not in ("linear", "yarn"):
        raise UserError(f'its positions are scaled by "{kind}"; linear, yarn and Llama-3\'s way are known')
    found = {"rope_theta": theta, "rope_type": kind, "factor": factor}
    original = gguf.of_architecture("rope.scaling.original_context_length")
    if original and kind == "yarn":
        found["original_max_position_embeddings"] = original
    return found


def _llama3(gguf: GGUF, theta: float, head_dim: int) -> dict[str, Any]:
    """The settings behind Llama-3.1's table of divisors (`rope_freqs.weight`), found by trying those that are in use."""
    import math

    import numpy as np

    table = gguf.values(gguf.tensors["rope_freqs.weight"]).reshape(-1)
    frequencies = theta ** -(np.arange(0, head_dim, 2) / head_dim)
    for factor in (8.0, 32.0, 4.0, 16.0, 2.0, 64.0):
        for original in (8192, 4096, 2048, 16384, 32768):
            wave = 2 * math.pi / frequencies
            smooth = np.clip((original / wave - 1.0) / (4.0 - 1.0), 0, 1)
            ours = 1 / ((1 - smooth) / factor + smooth)
            if table.shape == ours.shape and np.allclose(table, ours, rtol=1e-4):
                return {
                    "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                    "original_max_position_embeddings": original,
                }  # fmt: skip
    raise UserError("its table of position divisors (rope_freqs.weight) is not Llama-3's with any known setting")
