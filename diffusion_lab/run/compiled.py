"""compile=true: a network compiled in place, so that neither its name nor the keys of its weights change."""

from __future__ import annotations

import torch
from lightning_fabric.utilities.rank_zero import rank_zero_only
from torch import nn

from diffusion_lab.errors import ConfigError
from diffusion_lab.output import say


def compile_network(network: nn.Module, device: torch.device, replay: bool = False) -> None:
    """Let torch.compile translate a network for `device` when it is first called; it stays the same module.

    With `replay`, for calls of a few fixed shapes whose output is read before the next one (sampling), a CUDA device
    also records all kernels of a call as one graph, so that the host does not start them one by one.

    Raises:
        ConfigError: if nothing can be compiled there, as a one-line function tells now instead of the first step.
    """
    try:
        torch.compile(torch.neg)(torch.ones(2, device=device))
    except Exception as error:  # a missing C++ compiler, Python header or Triton: each has another class
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ConfigError(
            f"compile=true needs a working compiler for {device.type} ({reason}): install one, or set compile=false"
        ) from error
    if rank_zero_only.rank == 0:
        say("compile=true: the first steps translate the network, which takes minutes for a large one")
    network.compile(**({"mode": "reduce-overhead", "dynamic": False} if replay and device.type == "cuda" else {}))
