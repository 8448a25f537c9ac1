"""The exact denoiser of a density: its score by autograd, and its samples."""

from __future__ import annotations

import pytest
import torch

from diffusion_lab.data.toy2d_density import TARGETS
from diffusion_lab.process import VE, VP, DiscreteProcess, Geometric, Linear, SingleLevel
from diffusion_lab.sampler import ProbabilityFlow
from diffusion_lab.verification import denoiser_of

PROCESSES = {
    "VP": VP(Linear()),
    "VE": VE(Geometric(0.01, 20.0)),
    "DDPM": DiscreteProcess(Linear()),
    "one level": SingleLevel(0.3),
}


@pytest.mark.parametrize("name", PROCESSES)
def test_the_score_is_the_gradient_of_the_log_density(name):
    process, t = PROCESSES[name], torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)
    for density in (TARGETS["two_modes"](), TARGETS["checkerboard"]()):
        x = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
        (want,) = torch.autograd.grad(density.log_density(x, *process.alpha_sigma(t)).sum(), x)
        got = denoiser_of(density, process)(x.detach(), t).score
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-8)


def test_its_samples_are_those_of_the_density():
    data = TARGETS["two_modes"]()
    x = ProbabilityFlow()(denoiser_of(data, PROCESSES["VP"]), (2000, 2), torch.Generator().manual_seed(0))
    assert (data.mode_weights(x) - data.modes.weights).abs().max() < 0.02
