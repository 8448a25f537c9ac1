"""Benchmarks of the other networks: output and gradients of ours and the official one, with the same weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from diffusion_lab.bench import official
from diffusion_lab.bench.benchmark import Benchmark, Setting, Unavailable, Work
from diffusion_lab.bench.unets import ML_COLLECTIONS
from diffusion_lab.interop.ncsn import refinenet
from diffusion_lab.interop.score_sde import ncsnpp
from diffusion_lab.network import NCSNpp, RefineNet

Output = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""(network, images in [0, 1], official c_noise) -> the output as the official program defines it."""


@dataclass(frozen=True)
class Pair:
    """Our network and the official one for CIFAR-10, as functions of the number of channels."""

    title: str
    program: str
    ours: Callable[[int], nn.Module]
    official: Callable[[Setting, int], nn.Module]
    weights: Callable[[Any, Mapping[str, Tensor]], dict[str, Tensor]]
    output: Output
    c_noise: Tensor


def score_sde_ncsnpp(setting: Setting, channels: int) -> nn.Module:
    """ScoreSDE's "ncsnpp" by configs/ve/cifar10_ncsnpp_continuous.py; on a CPU without the extension for CUDA."""
    cpu = setting.device.type == "cpu"
    with official.inside(setting, "score_sde_pytorch", ML_COLLECTIONS):
        # The import compiles filters for CUDA; those for the CPU, which are written in Python, never call them.
        with patch("torch.utils.cpp_extension.load") if cpu else nullcontext():
            try:
                from models.ncsnpp import NCSNpp as Official
            except (RuntimeError, OSError) as error:
                raise Unavailable(f"its CUDA extension cannot be compiled here: {error}".partition("\n")[0]) from error
        from configs.ve.cifar10_ncsnpp_continuous import get_config
    config = get_config()
    config.device, config.model.nf = setting.device, channels
    return Official(config)


def ncsn(setting: Setting, channels: int) -> nn.Module:
    """NCSN's CondRefineNetDilated for CIFAR-10, configs/anneal.yml."""
    with official.inside(setting, "ncsn"):
        from models.cond_refinenet_dilated import CondRefineNetDilated
    data = SimpleNamespace(logit_transform=False, channels=3, image_size=32)
    return CondRefineNetDilated(SimpleNamespace(data=data, model=SimpleNamespace(ngf=channels, num_classes=10)))


def ncsnv2(setting: Setting, channels: int) -> nn.Module:
    """NCSNv2's network by configs/cifar10.yml."""
    with official.inside(setting, "ncsnv2"):
        from models.ncsnv2 import NCSNv2
    data = SimpleNamespace(logit_transform=False, rescaled=False, channels=3, image_size=32)
    norm = {"normalization": "InstanceNorm++", "nonlinearity": "elu", "spec_norm": False}
    levels = {"sigma_begin": 50, "sigma_end": 0.01, "sigma_dist": "geometric", "num_classes": 232}
    model = SimpleNamespace(ngf=channels, **norm, **levels)
    return NCSNv2(SimpleNamespace(data=data, model=model, device=setting.device))


def over_sigma(network: nn.Module, x: Tensor, sigma: Tensor) -> Tensor:
    return network(2 * x - 1, sigma.log()) / sigma[:, None, None, None]


def unscaled(network: nn.Module, x: Tensor, level: Tensor) -> Tensor:
    return network(2 * x - 1, level)


def over_sigma_of_level(network: nn.Module, x: Tensor, level: Tensor) -> Tensor:
    sigmas = torch.logspace(*torch.tensor([50, 0.01], dtype=torch.float64).log10().tolist(), 232, dtype=torch.float64)
    return network(2 * x - 1, level) / sigmas.to(x)[level][:, None, None, None]


PAIRS = (
    Pair(
        "NCSN++ (FIR)",
        "score_sde_pytorch",
        lambda channels: NCSNpp(3, 32, channels=channels),
        score_sde_ncsnpp,
        ncsnpp,
        over_sigma,
        torch.tensor([0.02, 0.3, 4.0, 45.0]),
    ),
    Pair(
        "NCSN's RefineNet",
        "ncsn",
        lambda channels: RefineNet(3, 32, channels=channels, levels=10, pool="average"),
        ncsn,
        refinenet,
        unscaled,
        torch.tensor([0, 3, 6, 9]),
    ),
    Pair(
        "NCSNv2's RefineNet",
        "ncsnv2",
        lambda channels: RefineNet(3, 32, channels=channels),
        ncsnv2,
        refinenet,
        over_sigma_of_level,
        torch.tensor([0, 80, 150, 231]),
    ),
)


def benchmarks(setting: Setting) -> Iterator[Benchmark]:
    """Return one benchmark per network, in float32, with dropout if it is trained with dropout."""
    return (benchmark(pair, setting) for pair in PAIRS)


def benchmark(pair: Pair, setting: Setting) -> Benchmark:
    """Compare ours, in channels_last as in training, with the official network of the same weights."""
    channels, batch = (32, 2) if setting.small else (128, 4 * setting.threads)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(batch, 3, 32, 32, generator=generator).to(setting.device)
    direction = torch.randn(batch, 3, 32, 32, generator=generator).to(setting.device)
    c_noise = pair.c_noise.repeat(batch)[:batch].to(setting.device)
    network = pair.ours(channels).to(setting.device, memory_format=torch.channels_last)

    def ours() -> Work:
        return Gradients(network, pair.output, x, c_noise, direction)

    def theirs() -> Work:
        peer = pair.official(setting, channels).to(setting.device)
        draw_weights(peer, generator)
        network.load_state_dict(pair.weights(network, peer.state_dict()))
        return Gradients(peer, lambda network, x, t: network(x, t), x, c_noise, direction)

    title = f"output and gradients of {pair.title}, float32, 32x32, batch {batch}"
    return Benchmark(title, {"ours": ours, pair.program: theirs}, note=agreement)


def draw_weights(network: nn.Module, generator: torch.Generator) -> None:
    """Draw random weights of usual scale for every layer; by default the last layers of blocks are almost zero."""
    for p in (p for p in network.parameters() if p.requires_grad):
        deviation = p[0].numel() ** -0.5 if p.dim() > 1 else 0.3
        p.data.copy_(deviation * torch.randn(p.shape, generator=generator))


@dataclass(frozen=True)
class Gradients:
    """A run of one network: the output, and the gradients of its product with `direction`."""

    network: nn.Module
    output: Output
    x: Tensor
    c_noise: Tensor
    direction: Tensor

    def __call__(self) -> Gradients:
        self.compute(training=True)
        return self

    def compute(self, training: bool) -> tuple[Tensor, Tensor]:
        """Return the output and its gradient with respect to x, with dropout if training."""
        self.network.train(training).zero_grad()
        x = self.x.clone().requires_grad_()
        y = self.output(self.network, x, self.c_noise)
        y.backward(self.direction)
        return y.detach(), x.grad


def agreement(last: Mapping[str, Gradients]) -> str:
    """Report sizes, and the differences of output and gradient without dropout."""
    ours, *others = last.values()
    text = f"{count(ours.network):,} weights"
    for name, theirs in zip(list(last)[1:], others, strict=True):
        pairs = zip(ours.compute(training=False), theirs.compute(training=False), strict=True)
        differences = [((a - b).norm() / b.norm()).item() for a, b in pairs]
        text += f"; {name} {count(theirs.network):,}, "
        text += f"output differs by {differences[0]:.0e}, gradient by {differences[1]:.0e}"
    return text


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())
