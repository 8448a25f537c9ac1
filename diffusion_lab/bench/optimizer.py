"""Adam and EMA on the parameters of DDPM's U-Net, compared with other programs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from diffusion_lab.bench import official
from diffusion_lab.bench.benchmark import Benchmark, Setting
from diffusion_lab.callback import EMA
from diffusion_lab.config.compose import training
from diffusion_lab.config.instantiate import instantiate
from diffusion_lab.network import UNet

DECAY, RATE = 0.9999, 2e-4

Run = Callable[[], list[Tensor]]
"""Some updates; returns the EMA."""


def network(setting: Setting, gradients: list[Tensor]) -> nn.Module:
    """Return the U-Net, with the same weights and gradients in every call."""
    torch.manual_seed(0)
    form = {"channels": 32, "groups": 8} if setting.small else {"channels": 128}
    unet = UNet(3, 32, **form).to(setting.device, memory_format=torch.channels_last)
    if not gradients:
        gradients += [1e-3 * torch.randn_like(p) for p in unet.parameters()]
    for p, gradient in zip(unet.parameters(), gradients, strict=True):
        p.grad = gradient
    return unet


def repeated(update: Callable[[], None], averages: Callable[[], list[Tensor]], steps: int) -> Run:
    """Return a function that makes `steps` updates."""

    def work() -> list[Tensor]:
        for _ in range(steps):
            update()
        return averages()

    return work


def ours(unet: nn.Module, steps: int) -> Run:
    """The optimiser of conf/optimizer/adam.yaml and our EMA callback."""
    settings = training(["logger=csv", f"optimizer.lr={RATE}"])
    optimizer = instantiate(settings["optimizer"], "optimizer")(unet.parameters())
    ema = EMA(DECAY)
    ema.start(unet)

    def update() -> None:
        optimizer.step()
        ema.update()

    return repeated(update, lambda: list(ema.weights.values()), steps)


def score_sde(unet: nn.Module, steps: int, setting: Setting) -> Run:
    """score_sde_pytorch: PyTorch's default Adam, and models/ema.py."""
    kind = official.module(setting, "score_sde_pytorch", "models.ema").ExponentialMovingAverage
    optimizer = torch.optim.Adam(unet.parameters(), lr=RATE)
    ema = kind(unet.parameters(), DECAY, use_num_updates=False)

    def update() -> None:
        optimizer.step()
        ema.update(unet.parameters())

    return repeated(update, lambda: ema.shadow_params, steps)


def diffusers(unet: nn.Module, steps: int, foreach: bool = False) -> Run:
    """diffusers' EMAModel and PyTorch's default Adam; `foreach` is an option of EMAModel."""
    from diffusers.training_utils import EMAModel

    optimizer = torch.optim.Adam(unet.parameters(), lr=RATE)
    ema = EMAModel(unet.parameters(), decay=DECAY, min_decay=DECAY, foreach=foreach)
    ema.step(unet.parameters())  # the first call only copies

    def update() -> None:
        optimizer.step()
        ema.step(unet.parameters())

    return repeated(update, lambda: ema.shadow_params, steps)


def ema_pytorch(unet: nn.Module, steps: int) -> Run:
    """ema_pytorch, as in denoising-diffusion-pytorch, updated in every step, and the default Adam."""
    from ema_pytorch import EMA as Average

    optimizer = torch.optim.Adam(unet.parameters(), lr=RATE)
    ema = Average(unet, beta=DECAY, min_value=DECAY, update_after_step=-1, update_every=1)
    ema.update()  # the first call only copies

    def update() -> None:
        optimizer.step()
        ema.update()

    return repeated(update, lambda: list(ema.ema_model.parameters()), steps)


def hand_written(unet: nn.Module, steps: int) -> Run:
    """Hand-written: two PyTorch calls on prepared lists."""
    parameters = list(unet.parameters())
    optimizer = torch.optim.Adam(parameters, lr=RATE, fused=True)
    averages = [p.detach().clone() for p in parameters]

    @torch.no_grad()
    def update() -> None:
        optimizer.step()
        torch._foreach_lerp_(averages, parameters, 1 - DECAY)

    return repeated(update, lambda: averages, steps)


def agreement(results: Mapping[str, list[Tensor]]) -> str:
    """Report the largest difference of the averages from ours."""
    first, *others = ([a.detach().float() for a in averages] for averages in results.values())
    norm = torch.nn.utils.get_total_norm(first)
    most = max(torch.nn.utils.get_total_norm([a - b for a, b in zip(first, o, strict=True)]) for o in others)
    return f"averages differ by at most {(most / norm).item():.1e} of their norm"


def benchmarks(setting: Setting) -> Iterator[Benchmark]:
    """One update of the weights and the EMA."""
    steps, gradients = 2 if setting.small else 5, []
    ways = {
        "ours: fused Adam, EMA callback": ours,
        "default Adam, score_sde_pytorch's EMA": partial(score_sde, setting=setting),
        "default Adam, diffusers' EMAModel": diffusers,
        "default Adam, diffusers' EMAModel, foreach": partial(diffusers, foreach=True),
        "default Adam, ema_pytorch": ema_pytorch,
        "hand-written: fused Adam, foreach lerp": hand_written,
    }
    count = sum(p.numel() for p in network(setting, gradients).parameters())
    yield Benchmark(
        f"Adam and EMA on {count / 1e6:.1f}M parameters: an update",
        {name: (lambda way=way: way(network(setting, gradients), steps)) for name, way in ways.items()},
        per=steps,
        note=agreement,
    )
