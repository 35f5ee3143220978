"""GGUF files made by hand, and changed."""

from __future__ import annotations

import mmap
import shutil
import struct
from pathlib import Path
from typing import Any

from training.llama import gguf_file


def edit_end(gguf: Path, token: int) -> None:
    """Write another eos into a GGUF file, in place."""
    key, number = b"tokenizer.ggml.eos_token_id", 4
    begin = struct.pack("<Q", len(key)) + key + struct.pack("<I", number)
    with gguf.open("r+b") as file, mmap.mmap(file.fileno(), 0) as content:
        at = content.find(begin)
        assert at > 0 and content.find(begin, at + 1) < 0
        struct.pack_into("<I", content, at + len(begin), token)


def edit_tensor(source: Path, target: Path, name: str, change) -> Path:
    """A copy of a GGUF file with one tensor's raw data changed in place: as numbers of 32 or 16 bits, else as bytes."""
    import numpy as np
    from gguf import GGMLQuantizationType
    from gguf.quants import quant_shape_to_byte_shape

    shutil.copyfile(source, target)
    # The package's own reader takes seconds for a real vocabulary.
    tensor = gguf_file.read(target).tensors[name]
    kind = {"F32": np.float32, "F16": np.float16}.get(tensor.kind_name)
    shape = tensor.shape if kind else quant_shape_to_byte_shape(tensor.shape, GGMLQuantizationType(tensor.kind))
    data = np.memmap(target, kind or np.uint8, "r+", tensor.start, shape)
    change(data)
    data.flush()
    return target


# Byte-level BPE's names of the 256 bytes, as every vocabulary of that kind has them.
PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
BYTES = {b: chr(b) for b in PRINTABLE} | {
    b: chr(256 + i) for i, b in enumerate(b for b in range(256) if b not in PRINTABLE)
}


def write_gguf(path: Path, pairs: dict[str, Any], tensors: dict[str, Any] | None = None) -> Path:
    """A GGUF file made by the package gguf, so that our reader is tested against another's writer."""
    from gguf import GGUFWriter

    writer = GGUFWriter(path, pairs["general.architecture"])
    kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    for key, value in pairs.items():
        if key != "general.architecture":
            (writer.add_array if isinstance(value, list) else kinds[type(value)])(key, value)
    for name, tensor in (tensors or {}).items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def byte_vocabulary(pre: str) -> dict[str, Any]:
    """A byte-level vocabulary with a few merges and the tokens of ChatML."""
    merges = ["Ġ t", "h e", "Ġt he", "1 2", "12 3", "l l", "Ċ Ċ", "Ġ Ġ", "a b", "ab c"]
    tokens = [*BYTES.values(), *(m.replace(" ", "") for m in merges), "<|end|>", "<|im_start|>", "<|im_end|>", "<tool>"]
    types = [1] * (len(tokens) - 4) + [3, 3, 3, 4]
    return {
        "general.architecture": "llama", "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types, "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": len(tokens) - 3, "tokenizer.ggml.eos_token_id": len(tokens) - 2,
        "tokenizer.ggml.add_bos_token": False, "tokenizer.chat_template": "{{ messages[0]['content'] }}",
    }  # fmt: skip


def model_pairs(vocabulary: dict[str, Any]) -> dict[str, Any]:
    """The settings of a two-layer Llama with grouped heads."""
    return vocabulary | {
        "llama.context_length": 256, "llama.embedding_length": 64, "llama.block_count": 2,
        "llama.feed_forward_length": 96, "llama.attention.head_count": 4, "llama.attention.head_count_kv": 2,
        "llama.rope.dimension_count": 16, "llama.rope.freq_base": 5000.0,
        "llama.attention.layer_norm_rms_epsilon": 1e-5, "llama.vocab_size": len(vocabulary["tokenizer.ggml.tokens"]),
    }  # fmt: skip


def model_tensors(vocabulary: dict[str, Any], tied: bool = True) -> dict[str, Any]:
    """Random weights for model_pairs."""
    import numpy as np

    rng = np.random.default_rng(7)
    size = len(vocabulary["tokenizer.ggml.tokens"])
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (size, 64), "output_norm.weight": (64,)}
    for layer in range(2):
        shapes |= {
            f"blk.{layer}.{name}.weight": shape
            for name, shape in {
                "attn_q": (64, 64), "attn_k": (32, 64), "attn_v": (32, 64), "attn_output": (64, 64), "attn_norm": (64,),
                "ffn_gate": (96, 64), "ffn_up": (96, 64), "ffn_down": (64, 96), "ffn_norm": (64,),
            }.items()
        }  # fmt: skip
    if not tied:
        shapes["output.weight"] = (size, 64)
    return {
        name: (1 + 0.1 * rng.standard_normal(shape) if "norm" in name else 0.3 * rng.standard_normal(shape)).astype(
            "f4"
        )
        for name, shape in shapes.items()
    }
