"""Samplers of other programs, called as in their pipelines, with a given network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_lab.bench import official
from diffusion_lab.bench.benchmark import Setting, Work

Peer = Callable[[nn.Module, tuple[int, ...], int, Setting], Work]
"""(network, shape, steps, setting) -> a function that samples once from new noise."""


def diffusers(name: str, **config: Any) -> Peer:
    """A scheduler of diffusers, called as in its pipelines."""

    def make(network: nn.Module, shape: tuple[int, ...], steps: int, setting: Setting) -> Work:
        import diffusers as program

        scheduler = getattr(program, name)(**config)

        @torch.no_grad()
        def run() -> Tensor:
            scheduler.set_timesteps(steps, device=setting.device)
            x = torch.randn(shape, device=setting.device) * scheduler.init_noise_sigma
            for t in scheduler.timesteps:
                x = scheduler.step(network(scheduler.scale_model_input(x, t), t), t, x).prev_sample
            return x

        return run

    return make


def diffusers_corrected(network: nn.Module, shape: tuple[int, ...], steps: int, setting: Setting) -> Work:
    """diffusers' ScoreSdeVeScheduler, called as in ScoreSdeVePipeline."""
    from diffusers import ScoreSdeVeScheduler

    scheduler = ScoreSdeVeScheduler(snr=0.16, sigma_min=0.01, sigma_max=50.0)

    @torch.no_grad()
    def run() -> Tensor:
        x = torch.randn(shape, device=setting.device) * scheduler.init_noise_sigma
        scheduler.set_timesteps(steps, device=setting.device)
        scheduler.set_sigmas(steps)
        for i, t in enumerate(scheduler.timesteps):
            sigma = scheduler.sigmas[i] * torch.ones(shape[0], device=setting.device)
            x = scheduler.step_correct(network(x, sigma), x).prev_sample
            output = scheduler.step_pred(network(x, sigma), t, x)
            x = output.prev_sample
        return output.prev_sample_mean

    return run


def azula(sampler: str, schedule: str) -> Peer:
    """A sampler of azula, whose denoisers return the mean of x_0."""

    def make(network: nn.Module, shape: tuple[int, ...], steps: int, setting: Setting) -> Work:
        from azula import noise, sample
        from azula.denoise import Denoiser, DiracPosterior

        class Mean(Denoiser):
            def __init__(self) -> None:
                super().__init__()
                self.schedule = getattr(noise, schedule)()

            def forward(self, x_t: Tensor, t: Tensor) -> DiracPosterior:
                return DiracPosterior(network(x_t, t))

        chosen = getattr(sample, sampler)(Mean(), steps=steps, silent=True, device=setting.device)
        return lambda: chosen(chosen.init(shape))

    return make


def score_sde(sde: str, predictor: str, corrector: str, eps: float) -> Peer:
    """The sampler of score_sde_pytorch with a predictor and a corrector."""

    def make(network: nn.Module, shape: tuple[int, ...], steps: int, setting: Setting) -> Work:
        with official.inside(setting, "score_sde_pytorch"):
            import sampling
            import sde_lib
        process = getattr(sde_lib, sde)(N=steps)
        run = sampling.get_pc_sampler(
            process, shape, sampling.get_predictor(predictor), sampling.get_corrector(corrector), lambda x: x,
            snr=0.16, continuous=True, eps=eps, device=setting.device,
        )  # fmt: skip
        return lambda: run(network)[0]

    return make


def edm(network: nn.Module, shape: tuple[int, ...], steps: int, setting: Setting) -> Work:
    """EDM's generate.py as shipped: in float64, whatever the network's precision."""
    with official.inside(setting, "edm"):
        from generate import edm_sampler

    def answer(x: Tensor, sigma: Tensor, labels: None) -> Tensor:
        return network(x, sigma)

    answer.sigma_min, answer.sigma_max, answer.round_sigma = 0.002, 80.0, torch.as_tensor

    @torch.no_grad()
    def run() -> Tensor:
        return edm_sampler(answer, torch.randn(shape, device=setting.device), num_steps=steps)

    return run


def k_diffusion(network: nn.Module, shape: tuple[int, ...], steps: int, setting: Setting) -> Work:
    """k-diffusion's sample_heun."""
    from k_diffusion.sampling import get_sigmas_karras, sample_heun

    def run() -> Tensor:
        sigmas = get_sigmas_karras(steps, 0.002, 80.0, device=setting.device)
        return sample_heun(network, torch.randn(shape, device=setting.device) * 80.0, sigmas, disable=True)

    return run


DDPM: dict[str, Peer] = {
    "diffusers": diffusers("DDPMScheduler", variance_type="fixed_large", clip_sample=True),
    "azula": azula("DDPMSampler", "VPSchedule"),
    "score_sde": score_sde("VPSDE", "ancestral_sampling", "none", 1e-3),
}
DDIM: dict[str, Peer] = {
    "diffusers": diffusers("DDIMScheduler", clip_sample=False),
    "azula": azula("DDIMSampler", "VPSchedule"),
}
HEUN: dict[str, Peer] = {
    "diffusers": diffusers("HeunDiscreteScheduler", use_karras_sigmas=True),
    "azula": azula("HeunSampler", "VESchedule"),
    "edm (in float64)": edm,
    "k-diffusion": k_diffusion,
}
CORRECTED: dict[str, Peer] = {
    "diffusers": diffusers_corrected,
    "azula (half the noise, no norms)": azula("PCSampler", "VESchedule"),
    "score_sde": score_sde("VESDE", "reverse_diffusion", "langevin", 1e-5),
}
