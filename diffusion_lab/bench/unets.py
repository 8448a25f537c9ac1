"""A step of training DDPM's U-Net for CIFAR-10, as in each program: loss, gradient, Adam, EMA."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_lab.bench import official
from diffusion_lab.bench.benchmark import Setting
from diffusion_lab.callback import EMA
from diffusion_lab.denoiser import Denoiser
from diffusion_lab.loss import DenoisingLoss
from diffusion_lab.network import UNet
from diffusion_lab.parameterization import Parameterization
from diffusion_lab.process import DiscreteProcess, Linear

RATE, DECAY, DROPOUT = 2e-4, 0.9999, 0.1
ML_COLLECTIONS = {"ml_collections": ModuleType("ml_collections")}
"""A stand-in for the package of ScoreSDE's configurations, of which only attribute access is needed."""
ML_COLLECTIONS["ml_collections"].ConfigDict = SimpleNamespace


@dataclass(frozen=True)
class Step:
    """One step of training of a network on images (B, 3, 32, 32) in [-1, 1]; calling it returns the loss."""

    network: nn.Module
    take: Callable[[Tensor], Tensor]

    def __call__(self, images: Tensor) -> Tensor:
        return self.take(images)

    @property
    def parameters(self) -> int:
        """Number of trained parameters."""
        return sum(p.numel() for p in self.network.parameters() if p.requires_grad)


def ours(setting: Setting, channels: int, bf16: bool = False, compiled: bool = False, **form: Any) -> Step:
    """Ours, as in training: channels_last, fused Adam, our EMA callback."""
    network = UNet(3, 32, channels=channels, dropout=DROPOUT, **form).to(setting.device)
    network.to(memory_format=torch.channels_last)
    row = Parameterization(output="eps", c_noise="level", low=-1.0, high=1.0, unit_input=True)
    denoiser = Denoiser(network, DiscreteProcess(Linear(), 1000), row)
    take = training_step(denoiser, bf16)
    if compiled:
        network.compile()
    return Step(network, take)


def training_step(denoiser: Denoiser, bf16: bool = False) -> Callable[[Tensor], Tensor]:
    """Loss, gradient, fused Adam and our EMA callback for images; returns the loss."""
    network, loss, average = denoiser.network, DenoisingLoss(), EMA(DECAY)
    optimizer = torch.optim.Adam(network.parameters(), lr=RATE, fused=True)
    average.start(network)

    def take(images: Tensor) -> Tensor:
        optimizer.zero_grad()
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            value = loss(denoiser, images).mean()
        value.backward()
        optimizer.step()
        average.update()
        return value.detach()

    return take


def diffusers(setting: Setting, channels: int, bf16: bool = False, compiled: bool = False) -> Step:
    """UNet2DModel with the settings of google/ddpm-cifar10-32, trained as in diffusers' unconditional example."""
    from diffusers import DDPMScheduler, UNet2DModel
    from diffusers.training_utils import EMAModel

    network = UNet2DModel(**diffusers_form(channels)).to(setting.device)
    schedule, average = DDPMScheduler(1000), EMAModel(network.parameters(), decay=DECAY)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE)
    if compiled:
        network.compile()

    def take(images: Tensor) -> Tensor:
        noise = torch.randn_like(images)
        t = torch.randint(1000, (len(images),), device=images.device)
        with torch.autocast(setting.device.type, torch.bfloat16, enabled=bf16):
            output = network(schedule.add_noise(images, noise, t), t).sample
        loss = nn.functional.mse_loss(output.float(), noise)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        average.step(network.parameters())
        return loss.detach()

    return Step(network, take)


def diffusers_form(channels: int) -> dict[str, Any]:
    """Return the arguments of UNet2DModel for DDPM's U-Net."""
    return {
        "sample_size": 32,
        "block_out_channels": tuple(channels * m for m in (1, 2, 2, 2)),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": None,
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "norm_eps": 1e-6,
        "dropout": DROPOUT,
    }


def score_sde(setting: Setting, channels: int) -> Step:
    """ScoreSDE's "ddpm" by configs/vp/ddpm/cifar10.py, with its loss, optimiser, clipping and EMA."""
    with official.inside(setting, "score_sde_pytorch", ML_COLLECTIONS):
        import losses
        from configs.vp.ddpm.cifar10 import get_config
        from models.ddpm import DDPM
        from models.ema import ExponentialMovingAverage
        from sde_lib import VPSDE
    config = get_config()
    config.model.nf, config.model.dropout = channels, DROPOUT
    network = DDPM(config).to(setting.device)
    average = ExponentialMovingAverage(network.parameters(), DECAY)
    sde = VPSDE(config.model.beta_min, config.model.beta_max, config.model.num_scales)
    optimizer, manager = losses.get_optimizer(config, network.parameters()), losses.optimization_manager(config)
    step = losses.get_step_fn(sde, True, manager, config.training.reduce_mean, config.training.continuous)
    state = {"model": network, "optimizer": optimizer, "ema": average, "step": 0}
    return Step(network, lambda images: step(state, images).detach())


def edm(setting: Setting, channels: int) -> Step:
    """EDM's DDPM++ with two blocks per resolution instead of four, its loss and EMA."""
    form = {"model_channels": channels, "num_blocks": 2, "dropout": DROPOUT}
    with official.inside(setting, "edm"):  # it imports its modules again when it creates and copies networks
        from training.loss import VPLoss
        from training.networks import VPPrecond

        network = VPPrecond(32, 3, model_type="SongUNet", **form).to(setting.device)
        average, loss = copy.deepcopy(network).eval().requires_grad_(False), VPLoss()
    optimizer = torch.optim.Adam(network.parameters(), lr=RATE)

    def take(images: Tensor) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        value = loss(net=network, images=images, labels=None).sum() / len(images)
        value.backward()
        for p in network.parameters():
            torch.nan_to_num(p.grad, nan=0, posinf=1e5, neginf=-1e5, out=p.grad)
        optimizer.step()
        with torch.no_grad():
            for a, p in zip(average.parameters(), network.parameters(), strict=True):
                a.copy_(p.detach().lerp(a, DECAY))
        return value.detach()

    return Step(network, take)


def denoising_diffusion_pytorch(setting: Setting, channels: int) -> Step:
    """denoising-diffusion-pytorch's U-Net, which has another architecture, with its loss and EMA."""
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet
    from ema_pytorch import EMA as Average

    network = Unet(dim=channels, dim_mults=(1, 2, 2, 2), full_attn=(False, True, False, False), dropout=DROPOUT)
    diffusion = GaussianDiffusion(network, image_size=32, auto_normalize=False).to(setting.device)
    optimizer = torch.optim.Adam(diffusion.parameters(), lr=RATE, betas=(0.9, 0.99))
    average = Average(diffusion, beta=DECAY, update_every=1)

    def take(images: Tensor) -> Tensor:
        loss = diffusion(images)
        loss.backward()
        nn.utils.clip_grad_norm_(diffusion.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update()
        return loss.detach()

    return Step(network, take)
