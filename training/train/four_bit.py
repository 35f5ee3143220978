"""The frozen weights in 4 bits (LOAD_IN_4BIT): bitsandbytes' NF4, and how such a model is spread over the ranks.

A weight is two things then. Its numbers, two to a byte, are cut into shares and sent round as any other weight is: as bytes,
which FSDP2 takes where they are frozen (torch 2.13). bitsandbytes can call them bf16 for this (`quant_storage`), but then a
copy may change those that are no numbers (its issue 1945). Its scales, a thirtieth of that, stay whole in each rank:
`Linear4bit` keeps them beside the weight, and finds them there when FSDP2 has put the weight together as a plain tensor.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import BitsAndBytesConfig, PreTrainedModel

# The tensors of a weight's scales: of the numbers themselves, and of those scales, which are in 8 bits.
SCALES, OF_SCALES = ("absmax", "code", "offset"), ("absmax", "code")


def config(compute: torch.dtype) -> BitsAndBytesConfig:
    """How transformers puts the linear layers into 4 bits; they multiply in `compute`."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )


def without_weights(model: PreTrainedModel, how: BitsAndBytesConfig, dtype: torch.dtype) -> None:
    """Give a model that has no weights the layers that one in 4 bits has, and these the shapes of their numbers and scales.

    `dtype`: of the weights before.
    """
    from bitsandbytes import functional
    from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer

    # Else bitsandbytes would make this table of its own without numbers, too, and keep it.
    functional.name2qmap.setdefault("dynamic", functional.create_dynamic_map())
    quantizer: Any = Bnb4BitHfQuantizer(how, pre_quantized=False)
    quantizer.preprocess_model(model=model, device_map={"": "meta"})
    for module in model.modules():
        if hasattr(module, "quant_state"):
            module.to(dtype)
            # What moving a weight to a device calls, to none.
            weight: Any = module.weight
            weight._quantize("meta")
            # PEFT unpacks a copy of it where USE_DORA asks for the lengths of its rows; without numbers it cannot be copied.
            weight.__deepcopy__ = functools.partial(_itself, weight)
    model.hf_quantizer = quantizer
    quantizer.postprocess_model(model)


def _itself(weight: torch.Tensor, memo: object) -> torch.Tensor:
    """Nothing in it can change, for nothing is in it."""
    return weight


def make_plain(model: torch.nn.Module) -> None:
    """The numbers of each weight as a plain tensor, which FSDP2 cuts; the scales stay beside it."""
    import torch

    for module in _layers(model):
        module.weight = torch.nn.Parameter(module.weight.data, requires_grad=False)
        # Else a CPU that multiplies bf16 would put them into another order when it is asked, in a copy.
        module.support_avx512bf16_for_cpu = False


def share_scales(model: torch.nn.Module, rank: int, kind: str) -> None:
    """The scales of rank 0 in all ranks, on the device."""
    import torch
    import torch.distributed as dist

    for module in _layers(model):
        state = module.quant_state
        for part, name in [*((state, name) for name in SCALES), *((state.state2, name) for name in OF_SCALES)]:
            value: torch.Tensor = getattr(part, name)
            here = value.to(kind) if rank == 0 else torch.empty_like(value, device=kind)
            dist.broadcast(here, src=0)
            setattr(part, name, here)


def _layers(model: torch.nn.Module) -> Iterator[Any]:
    """The linear layers in 4 bits, which bitsandbytes calls Linear4bit."""
    return (module for module in model.modules() if getattr(module, "quant_state", None) is not None)
