"""The Parzen density of a finite set: the closed-form optimum of denoising score matching."""

from __future__ import annotations

import pytest
import torch

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.loss import DenoisingLoss
from diffusion_lab.parameterization import Parameterization
from diffusion_lab.process import VE, VP, DiscreteProcess, Geometric, Linear, SingleLevel
from diffusion_lab.sampler import Ancestral, Sampler
from diffusion_lab.verification.parzen import Parzen

POINTS = torch.tensor([[-1.0, 0.5], [0.3, 0.2], [0.9, -0.8]], dtype=torch.float64)
PROCESSES = {
    "single": SingleLevel(0.4),
    "ncsn": DiscreteProcess(Geometric(0.1, 2.0), 5),
    "vp": VP(Linear()),
    "ve": VE(Geometric(0.05, 3.0)),
}


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_the_score_is_the_gradient_of_the_log_density(process):
    parzen, generator = Parzen(POINTS), torch.Generator().manual_seed(0)
    for t in process.timesteps(min(4, process.levels or 4)):
        alpha, sigma = process.alpha_sigma(t.double())
        x = torch.randn(20, 2, dtype=torch.float64, generator=generator).mul_(sigma + 1).requires_grad_()
        (gradient,) = torch.autograd.grad(parzen.log_density(x, alpha, sigma).sum(), x)
        score = parzen.denoiser(process)(x.detach(), t).score
        assert (score - gradient).abs().max() < 1e-6 * gradient.abs().max()
    cell, (alpha, sigma) = 0.02, process.alpha_sigma(torch.tensor(0.5 if process.levels != 1 else 1.0).double())
    axis = torch.arange(-12, 12, cell, dtype=torch.float64)
    lattice = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).reshape(-1, 2)
    assert parzen.log_density(lattice, alpha, sigma).exp().sum() * cell**2 == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_no_change_of_the_optimum_lowers_the_denoising_loss(process):
    """With the same times and noise, the excess loss of eps + d is E|d|^2, as the cross term vanishes."""
    best = Parzen(POINTS).denoiser(process)
    x0 = POINTS[torch.randint(3, (40_000,), generator=torch.Generator().manual_seed(0))]
    losses = DenoisingLoss()(best, x0, torch.Generator().manual_seed(1))
    for change in (lambda x: 0.1 * x, lambda x: 0.1 * torch.sin(3 * x), lambda x: torch.full_like(x, -0.1)):

        def other(x, c_noise, change=change):
            return best(x, c_noise.double() / 999).eps + change(x)

        row = Parameterization("eps", "time_999", bounded=False)
        changed = DenoisingLoss()(Denoiser(other, process, row), x0, torch.Generator().manual_seed(1))
        t = process.sample_times(len(x0), x0.device, generator := torch.Generator().manual_seed(1))
        x = process.perturb(x0, t, torch.randn(x0.shape, dtype=x0.dtype, generator=generator))
        excess, squared = changed - losses, change(x).square().mean(1)
        error = (excess - squared).std() / len(x0) ** 0.5
        assert abs(excess.mean() - squared.mean()) < 4 * error


def test_samples_of_the_optimum_are_the_training_points():
    process = DiscreteProcess(Geometric(0.01, 3.0), 60)
    denoiser = Parzen(POINTS).denoiser(process)
    x = Sampler(Ancestral("fixed_small"))(denoiser, (300, 2), torch.Generator().manual_seed(0)).double()
    distance, nearest = torch.cdist(x, POINTS).min(1)
    assert distance.max() < 0.02
    assert nearest.bincount(minlength=3).min() > 60
