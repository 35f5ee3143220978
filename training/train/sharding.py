"""The frozen model spread over the ranks of a training (SHARDING = fsdp), by torch's FSDP2.

Each rank keeps a share of every frozen weight, on its card or, where there is no room (fsdp-offload), in the machine's
memory. A layer is put together for its turn, forward and backward, and let go of again. The adapter is not spread: it is
small, and so its gradients, checkpoints and files are those of any training in several processes.

Rank 0 alone reads the weights from the disk, and hands each its share; and rank 0 alone asks the tuned model its
questions. For that the others must take part in every forward pass, whatever goes through it: see `led` and `accompany`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, cast

from training.errors import Interrupted
from training.settings import Settings
from training.system.signals import words
from training.train import four_bit
from training.train.team import Team

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from torch.distributed.device_mesh import DeviceMesh
    from transformers import PreTrainedModel

# Of SHARDING: the shares of the layers stay in the machine's memory.
OFFLOADED = "fsdp-offload"
# What rank 0 says in a round: another forward pass, or that there is none any more.
FORWARD, DONE = 1, 2


def wanted(settings: Settings) -> bool:
    """Whether the model is spread."""
    return settings.hardware.sharding != "none"


def offloaded(settings: Settings) -> bool:
    """Whether the shares of the layers stay in the machine's memory."""
    return settings.hardware.sharding == OFFLOADED


def spread(model: PeftModel, team: Team, settings: Settings) -> None:
    """Give each rank its share of the frozen weights, on its device or beside it, and the adapter of rank 0; nothing where
    that is not wanted.

    Every rank calls it, once its process group is there: rank 0 with the whole model on the CPU, the others with one that
    has no weights (`engine.load(..., empty=True)`).
    """
    if not wanted(settings):
        return
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    kind = settings.hardware.device.partition(":")[0]
    bare = cast("PreTrainedModel", model.get_base_model())
    trained = [value for value in bare.parameters() if value.requires_grad]
    if settings.quantization.load_in_4bit:
        four_bit.make_plain(bare)
        four_bit.share_scales(bare, team.rank, kind)
    whole = _taken_out(bare)
    mesh = init_device_mesh(kind, (team.size,))
    _cut(bare, mesh, set(trained), offloaded(settings))
    _share_out(bare, whole, mesh, team.rank, offloaded(settings))
    for value in trained:
        here = torch.empty_like(value, device=kind) if value.is_meta else value.detach().to(kind)
        dist.broadcast(here, src=0)
        if value.is_meta:
            # Data on a device cannot be put into a parameter on none.
            torch.utils.swap_tensors(value, torch.nn.Parameter(here, requires_grad=True))
        else:
            value.data = here


def _taken_out(bare: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The frozen weights by name. The model keeps their shapes alone, as it has them in the ranks that read none: else rank 0
    had its share twice while it is made."""
    import torch

    whole: dict[str, torch.Tensor] = {}
    hollow: dict[torch.nn.Parameter, torch.nn.Parameter] = {}
    for place, module in bare.named_modules():
        for name, value in list(module.named_parameters(recurse=False)):
            if value.requires_grad:
                continue
            # A matrix that stands in two places, as a tied head does, stays one, and is named once.
            if value not in hollow:
                hollow[value] = torch.nn.Parameter(value.detach().to("meta"), requires_grad=False)
                whole[f"{place}.{name}" if place else name] = value.detach()
            setattr(module, name, hollow[value])
    return whole


def _cut(bare: PreTrainedModel, mesh: DeviceMesh, own: set[torch.nn.Parameter], offload: bool) -> None:
    """Have FSDP2 keep shares of all but each rank's `own`; those of the layers in the machine's memory where that is wanted.

    What stands outside of the layers is on the device in any case: it is little, and a model is asked on the device of its
    first weight.
    """
    from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard

    # A card fetches quickly what the system cannot move.
    policy = CPUOffloadPolicy(pin_memory=mesh.device_type != "cpu") if offload else OffloadPolicy()
    for layer in layers(bare):
        fully_shard(layer, mesh=mesh, ignored_params=own, offload_policy=policy)
    # It is let go of, too. Else it would stay after an evaluation, but in rank 0, where saving the adapter lets go of it: the
    # ranks would ask each other for different things.
    fully_shard(bare, mesh=mesh, ignored_params=own, reshard_after_forward=True)


def _share_out(
    bare: PreTrainedModel, whole: dict[str, torch.Tensor], mesh: DeviceMesh, rank: int, offload: bool
) -> None:
    """Rank 0's frozen weights, one after the other; of each a rank is sent its share alone."""
    import torch
    from torch.distributed.tensor import DTensor, distribute_tensor

    beside = {value for layer in layers(bare) for value in layer.parameters()} if offload else set()
    for name, value in list(bare.named_parameters()):
        if not isinstance(value, DTensor):
            continue
        full, kind = whole.pop(name), mesh.device_type
        there = full.to(kind) if rank == 0 else torch.empty(full.shape, dtype=full.dtype, device=kind)
        share = distribute_tensor(there, mesh, value.placements)
        del full, there
        place, _, own_name = name.rpartition(".")
        here = {own_name: share.cpu() if value in beside else share}
        bare.get_submodule(place).load_state_dict(here, strict=False, assign=True)
    # What stands in two places was named once.
    bare.tie_weights()


def layers(bare: PreTrainedModel) -> list[torch.nn.Module]:
    """The layers of a model, of which each is put together by itself: the members of its lists of modules. A list within a
    layer, of its experts for example, is no list of layers."""
    import torch

    lists = {name: one for name, one in bare.named_modules() if isinstance(one, torch.nn.ModuleList) and len(one) > 1}
    inner = {name for name in lists for other in lists if name.startswith(f"{other}.")}
    return [layer for name, one in lists.items() if name not in inner for layer in one]


@contextmanager
def led(model: PeftModel, team: Team) -> Iterator[None]:
    """In rank 0: within this block each forward pass is told to the others, who `accompany` it.

    Raises Interrupted where another rank has heard a signal.
    """

    def tell(*_: object) -> None:
        if stop := next((one for one in team.round(FORWARD)[1:] if one), None):
            raise Interrupted(stop, words(stop))

    hook = model.get_base_model().register_forward_pre_hook(tell, prepend=True)
    try:
        yield
    finally:
        hook.remove()
        # They may have gone, which has been told elsewhere.
        with suppress(RuntimeError):
            team.round(DONE)


def accompany(model: PeftModel, team: Team, stop: Callable[[], int | None] = lambda: None) -> None:
    """In every other rank: take part in rank 0's forward passes until it says that there are none any more.

    What goes through the model here is one token that nobody reads: what counts is that the layers are put together.
    `stop`: the signal that has come here, if any, for rank 0 to stop by.
    """
    import torch

    model.eval()
    bare = model.get_base_model()
    token = torch.zeros((1, 1), dtype=torch.long, device=next(bare.buffers()).device)
    with torch.no_grad():
        while (heard := team.round(stop() or 0))[0] != DONE:
            # Rank 0 obeys a signal that one of the others has heard, and goes no further.
            if not any(heard[1:]):
                bare(input_ids=token, use_cache=False)
