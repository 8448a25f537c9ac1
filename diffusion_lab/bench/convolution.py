"""3x3 convolutions of the networks for CIFAR-10: output and gradients, by Winograd's algorithm and directly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion_lab.bench.benchmark import Benchmark, Setting, Work
from diffusion_lab.network.winograd import Convolution

SIZES = ((64, 64, 32), (128, 128, 32), (256, 128, 32), (256, 256, 16), (512, 256, 16), (256, 256, 8))
"""Channels of the input and of the output, and the resolution."""


def benchmarks(setting: Setting) -> Iterator[Benchmark]:
    """Return one benchmark per size; by them `diffusion_lab.network.winograd.pays` decides."""
    return (of_size(setting, *size) for size in ([(4, 8, 8)] if setting.small else SIZES))


def of_size(setting: Setting, channels: int, outputs: int, resolution: int) -> Benchmark:
    """Compare a layer's output and gradients of input and weight."""
    batch = 2 if setting.small else 16
    make = partial(torch.randn, device=setting.device)
    x, direction = (make(batch, width, resolution, resolution) for width in (channels, outputs))
    inputs = [x, make(outputs, channels, 3, 3) / (9 * channels) ** 0.5]
    inputs = [tensor.to(memory_format=torch.channels_last).requires_grad_() for tensor in inputs]

    def work(layer: Callable[[Tensor, Tensor], Tensor]) -> Work:
        def run() -> tuple[Tensor, ...]:
            return torch.autograd.grad(layer(*inputs), inputs, direction)

        return run

    layers = {
        "Winograd's algorithm": lambda x, w: Convolution.apply(x, w, False),
        "torch": lambda x, w: F.conv2d(x, w, padding=1),
    }
    size = f"{channels} to {outputs} channels, {resolution}x{resolution}, batch {batch}"
    title = f"3x3 convolution and its gradients, {size}"
    return Benchmark(title, {name: partial(work, layer) for name, layer in layers.items()})
