"""A network that is dealt to the ranks: each holds a part of its parameters, gradients, optimiser states and average.

A tensor that is dealt is a DTensor; nothing here changes one that is not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from pytorch_lightning.strategies import ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map_only

from diffusion_lab import ranks

LISTS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


def shard(network: nn.Module, mesh: DeviceMesh) -> None:
    """Deal the parameters of a network to the ranks of a mesh along their first axis (Rajbhandari et al. 2020, ZeRO-3).

    Whatever stands in a list of modules, the blocks of a U-Net for instance, is put together when it computes and not
    before or after; the rest of the network, all of it if there are no lists, from its forward to its backward pass.
    """
    if isinstance(network, FSDPModule):
        return
    if any(p.dim() == 4 and not p.is_contiguous() for p in network.parameters()):
        # Parts of weights have no layout of channels; convolutions take that of what comes in.
        network.to(memory_format=torch.contiguous_format)
        network.register_forward_pre_hook(_channels_last)
    for block in blocks(network):
        fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)


def _channels_last(network: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return inputs[0].contiguous(memory_format=torch.channels_last), *inputs[1:]


def blocks(module: nn.Module, listed: bool = False) -> Iterator[nn.Module]:
    """The outermost modules with parameters that stand in a list, in whatever part of a network."""
    for child in module.children():
        if listed and type(child) not in LISTS:
            yield from [child] if any(True for _ in child.parameters()) else []
        else:
            yield from blocks(child, listed or type(child) in LISTS)


def gather(network: nn.Module) -> bool:
    """Give every rank the whole network until `scatter`: none waits for another in a forward pass, or one back to x.

    All ranks together; whether there was anything to do.
    """
    parts = _parts(network)
    if not any(isinstance(p, DTensor) for part in parts[:1] for p in part.parameters()):
        return False
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.set_reshard_after_backward(False, recurse=False)
        part.unshard()
    return True


def scatter(network: nn.Module) -> None:
    """Leave each rank its part."""
    for part in _parts(network):
        part.set_reshard_after_forward(part is not network, recurse=False)
        part.set_reshard_after_backward(True, recurse=False)
        part.reshard()


def _parts(network: nn.Module) -> list[FSDPModule]:
    """What is put together at once, the network itself before its blocks; nothing if it is not dealt."""
    return [m for m in network.modules() if isinstance(m, FSDPModule)] if isinstance(network, FSDPModule) else []


def full(tensor: Tensor) -> Tensor:
    """All of a tensor; of one that is dealt all ranks ask together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gathered(tree: Any) -> Any:
    """Nested containers with every tensor that is dealt put together, on the CPU of rank 0; None on the others.

    One at a time, so that no device has to hold them all.
    """
    first = ranks.rank_and_world()[0] == 0

    def collected(tensor: DTensor) -> Tensor | None:
        whole = tensor.full_tensor()
        return whole.cpu() if first else None

    return tree_map_only(DTensor, collected, tree)


def distribute(tensor: Tensor, like: Tensor) -> Tensor:
    """A rank's part of a tensor that all have: on the device of `like`, dealt and laid out in memory as that is."""
    if isinstance(tensor, DTensor):
        return tensor
    if isinstance(like, DTensor):
        tensor = distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    elif (tensor.device, tensor.stride()) == (like.device, like.stride()):
        return tensor
    return torch.empty_like(like, dtype=tensor.dtype).copy_(tensor)


def distribute_states(states: Iterable[Mapping[str, Any]], parameters: Sequence[Tensor]) -> None:
    """Deal optimisers' states of a checkpoint as the parameters are; kernels for many tensors trust that it is so."""
    for of_all in (one["state"] for one in states):
        for of_one, p in ((of_all[i], p) for i, p in enumerate(parameters) if i in of_all):
            same = [key for key, value in of_one.items() if getattr(value, "shape", None) == p.shape]
            of_one.update({key: distribute(of_one[key], p) for key in same})


class Sharded(ModelParallelStrategy):
    """Deals the network to all ranks (`Model.configure_model`); its checkpoints are those of one device."""

    lightning_restore_optimizer = True

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes  # known since there is a Trainer
        super().setup_environment()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        return gathered(self.lightning_module.state_dict())

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        return gathered(Strategy.optimizer_state(self, optimizer))

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        own = self.lightning_module.state_dict()
        state = {k: distribute(v, own[k]) if k in own else v for k, v in checkpoint["state_dict"].items()}
        self.lightning_module.load_state_dict(state, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        Strategy.load_optimizer_state_dict(self, checkpoint)
