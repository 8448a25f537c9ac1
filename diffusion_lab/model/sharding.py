"""Sharding of a network (FSDP): each rank holds a part of its parameters, gradients, optimiser states and EMA weights.

A sharded tensor is a DTensor; other tensors are left unchanged.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

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
    """Shard the parameters of a network over a mesh along their first axis (Rajbhandari et al. 2020, ZeRO-3).

    Modules in lists, such as the blocks of a U-Net, are gathered only while they compute.  The rest of the network (all
    of it, if there are no lists) stays gathered from its forward to its backward pass.
    """
    if isinstance(network, FSDPModule):
        return
    if any(p.dim() == 4 and not p.is_contiguous() for p in network.parameters()):
        # Sharded weights cannot be channels_last; convolutions use the memory format of their input.
        network.to(memory_format=torch.contiguous_format)
        network.register_forward_pre_hook(_channels_last)
    for block in blocks(network):
        fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)


def _channels_last(network: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return inputs[0].contiguous(memory_format=torch.channels_last), *inputs[1:]


def blocks(module: nn.Module, listed: bool = False) -> Iterator[nn.Module]:
    """The outermost modules with parameters that are in a list, anywhere in a network."""
    for child in module.children():
        if listed and type(child) not in LISTS:
            yield from [child] if any(True for _ in child.parameters()) else []
        else:
            yield from blocks(child, listed or type(child) in LISTS)


def gather(network: nn.Module) -> bool:
    """Gather the full network on every rank until `scatter`, so that forward passes need no communication.

    All ranks must call it together; return whether the network was sharded.
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
    """Undo `gather`: each rank keeps its shard only."""
    for part in _parts(network):
        part.set_reshard_after_forward(part is not network, recurse=False)
        part.set_reshard_after_backward(True, recurse=False)
        part.reshard()


def _parts(network: nn.Module) -> list[FSDPModule]:
    """The units of sharding, the network itself before its blocks; empty if it is not sharded."""
    return [m for m in network.modules() if isinstance(m, FSDPModule)] if isinstance(network, FSDPModule) else []


def full(tensor: Tensor) -> Tensor:
    """Return the full tensor; for a sharded one all ranks must call this together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gathered(tree: Any) -> Any:
    """Return nested containers with every sharded tensor gathered on the CPU of rank 0; None on the other ranks.

    Tensors are gathered one at a time, so that no device has to hold all of them.
    """
    first = ranks.rank_and_world()[0] == 0

    def collected(tensor: DTensor) -> Tensor | None:
        gathered_tensor = tensor.full_tensor()
        return gathered_tensor.cpu() if first else None

    return tree_map_only(DTensor, collected, tree)


def distribute(tensor: Tensor, like: Tensor) -> Tensor:
    """Return this rank's shard of a tensor that all ranks have, with the device, sharding and layout of `like`."""
    if isinstance(tensor, DTensor):
        return tensor
    if isinstance(like, DTensor):
        tensor = distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    elif (tensor.device, tensor.stride()) == (like.device, like.stride()):
        return tensor
    return torch.empty_like(like, dtype=tensor.dtype).copy_(tensor)


def distribute_states(states: Iterable[Mapping[str, Any]], parameters: Sequence[Tensor]) -> None:
    """Shard optimiser states of a checkpoint like the parameters, as multi-tensor kernels require."""
    for by_parameter in (optimizer["state"] for optimizer in states):
        for state, p in ((by_parameter[i], p) for i, p in enumerate(parameters) if i in by_parameter):
            same = [key for key, value in state.items() if getattr(value, "shape", None) == p.shape]
            state.update({key: distribute(state[key], p) for key in same})


class Sharded(ModelParallelStrategy):
    """Shards the network over all ranks (`Model.configure_model`); checkpoints are the same as on one device."""

    SHARDED: ClassVar = True
    REFUSES: ClassVar = {
        "trainer.precision=16-mixed": "does not support trainer.precision=16-mixed: "
        "use 32-true, bf16-mixed or bf16-true",
        "trainer.precision=64-true": "does not support trainer.precision=64-true: use 32-true, bf16-mixed or bf16-true",
    }
    lightning_restore_optimizer = True

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes  # known only once there is a Trainer
        super().setup_environment()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        return gathered(self.lightning_module.state_dict())

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        return gathered(Strategy.optimizer_state(self, optimizer))

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        current = self.lightning_module.state_dict()
        state = {k: distribute(v, current[k]) if k in current else v for k, v in checkpoint["state_dict"].items()}
        self.lightning_module.load_state_dict(state, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        Strategy.load_optimizer_state_dict(self, checkpoint)
