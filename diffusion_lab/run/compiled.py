"""compile=true: compile a network in place, so that neither its name nor the keys of its weights change."""

from __future__ import annotations

import torch
from lightning_fabric.utilities.rank_zero import rank_zero_only
from torch import nn

from diffusion_lab.errors import ConfigError
from diffusion_lab.output import say


def compile_network(network: nn.Module, device: torch.device, replay: bool = False) -> None:
    """Have torch.compile compile a network for `device` at its first call; it stays the same module.

    With `replay`, for calls of a few fixed shapes whose output is read before the next one (sampling), a CUDA device
    also records all kernels of a call as one CUDA graph, so that the host does not launch them one by one.

    Raises:
        ConfigError: if the compiler does not work there; a one-line function is compiled to find out.
    """
    try:
        torch.compile(torch.neg)(torch.ones(2, device=device))
    except Exception as error:  # a missing C++ compiler, Python header or Triton each raises a different class
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ConfigError(
            f"compile=true needs a working compiler for {device.type} ({reason}): install one, or set compile=false"
        ) from error
    if rank_zero_only.rank == 0:
        say("compile=true: the first steps compile the network, which takes minutes for a large one")
    network.compile(**({"mode": "reduce-overhead", "dynamic": False} if replay and device.type == "cuda" else {}))
