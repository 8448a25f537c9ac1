"""The variational bound against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.likelihood import VariationalBound, bits_per_dim, log_mass_of_level
from diffusion_lab.noise import image_generators
from diffusion_lab.parameterization import Parameterization
from diffusion_lab.process import VP, Cosine, DiscreteProcess, Geometric, Linear
from diffusion_lab.verification import mixture
from diffusion_lab.verification.mixture import exact_denoiser


def expected_bound(target, process, variance):
    """E[-bound] over data of a Gaussian target with the exact denoiser, in nats, in closed form.

    E|x_0 - x0_hat|^2 is the trace of the posterior covariance lam sigma^2 / (alpha^2 lam + sigma^2).
    """
    lam, mean = target.eigenvalues[0], target.m[0]
    t = torch.arange(1, process.levels + 1, dtype=torch.float64) / process.levels
    alpha, sigma = process.alpha(t), process.sigma(t)
    error = (lam * sigma[:, None] ** 2 / (alpha[:, None] ** 2 * lam + sigma[:, None] ** 2)).sum(1)
    s, d = t[1:] - 1 / process.levels, len(lam)
    true, model = process.reverse_variance(s, t[1:], "fixed_small"), process.reverse_variance(s, t[1:], variance)
    b = process.posterior(s, t[1:])[1]
    steps = 0.5 * (d * ((model / true).log() + true / model - 1) + b**2 * error[1:] / model)
    end = (sigma[-1] / process.prior_std) ** 2
    second = (alpha[-1] / process.prior_std) ** 2 * (lam.sum() + (mean**2).sum())
    prior = 0.5 * (second + d * (end - 1 - end.log()))
    v = process.decoder_variance
    decoder = 0.5 * (error[0] / v + d * (2 * math.pi * v).log())
    return prior, steps.sum(), decoder


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("schedule", [Linear(), Cosine(), Geometric(0.02, 20.0)], ids=lambda s: type(s).__name__)
def test_bound_is_the_closed_form_on_gaussian_data(schedule, variance):
    target = mixture.gauss64()
    process = DiscreteProcess(schedule, 100)
    denoiser = exact_denoiser(target, process)
    x0, _ = target.sample(1500, 1)
    bound = VariationalBound(variance, clip=False)(denoiser, x0, None, torch.Generator().manual_seed(0))
    for got, want in zip(
        (bound.prior, bound.steps, bound.decoder), expected_bound(target, process, variance), strict=True
    ):
        assert got.mean().item() == pytest.approx(want.item(), abs=4.5 * got.std().item() / 1500**0.5 + 1e-9)
    total = -bound.log_likelihood
    assert list(bound.terms) == ["prior", "steps", "decoder"]
    torch.testing.assert_close(sum(bound.terms.values()), total)
    assert total.std().item() / 1500**0.5 < 0.033 * abs(total.mean().item())  # a lost term would show
    assert total.mean() > -target.log_density(x0).mean()
    assert denoiser.nfe == 100


def test_a_subset_of_terms_is_an_unbiased_estimate():
    target, process = mixture.diag64(), DiscreteProcess(Linear(), 200)
    denoiser = exact_denoiser(target, process)
    x0, _ = target.sample(3000, 2)
    few = VariationalBound("fixed_large", clip=False, terms=40)(denoiser, x0, None, torch.Generator().manual_seed(1))
    assert denoiser.nfe == 41
    want = expected_bound(target, process, "fixed_large")[1].item()
    assert few.steps.mean().item() == pytest.approx(want, abs=4.5 * few.steps.std().item() / 3000**0.5)
    assert few.steps.std().item() / 3000**0.5 < 0.02 * abs(want)


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_decoder_probabilities_sum_to_one_and_are_the_integral(levels):
    grid = torch.linspace(-1, 1, levels, dtype=torch.float64)
    for mean, std in ((0.03, 0.3), (0.97, 0.01), (-2.0, 0.5), (0.0, 3.0)):
        mass = log_mass_of_level(grid, torch.full_like(grid, mean), std, -1.0, 1.0, levels).exp()
        assert mass.sum().item() == pytest.approx(1, abs=1e-12)
        inner = slice(1, -1)
        half = 1 / (levels - 1)
        normal = torch.distributions.Normal(torch.tensor(mean, dtype=torch.float64), std)
        torch.testing.assert_close(
            mass[inner], normal.cdf(grid[inner] + half) - normal.cdf(grid[inner] - half), rtol=1e-6, atol=1e-13
        )


def test_decoder_probability_is_exact_in_the_far_tail():
    """At 40 standard deviations the probability is 1e-350, yet its logarithm is known: log(phi(z)/z) to leading order."""
    z = torch.tensor([40.0], dtype=torch.float64)
    log_mass = log_mass_of_level(torch.zeros(1, dtype=torch.float64), -(z + 1 / 255) * 1.0, 1.0, -1.0, 1.0, 256)
    z_low = z  # the near edge of the bin
    leading = -0.5 * z_low**2 - (z_low * math.sqrt(2 * math.pi)).log() + torch.log1p(-(-z_low * 2 / 255).exp())
    assert log_mass.item() == pytest.approx(leading.item(), rel=1e-5)


def test_bound_of_an_image_does_not_depend_on_its_batch():
    target, process = mixture.gauss64(), DiscreteProcess(Linear(), 20)
    x0, _ = target.sample(6, 0)
    x0 = x0.clamp(-1, 1)

    def bound(indices):
        chosen = VariationalBound()(exact_denoiser(target, process), x0[indices], 17, image_generators(0, indices))
        return chosen.log_likelihood

    torch.testing.assert_close(bound([4, 1]), bound(list(range(6)))[[4, 1]])


def test_bits_per_dim():
    assert bits_per_dim(torch.tensor(-64 * math.log(17.0)), 64).item() == pytest.approx(math.log2(17))


def test_the_bound_needs_discrete_levels_and_a_positive_number_of_terms():
    with pytest.raises(ValueError, match="discrete noise levels"):
        VariationalBound()(exact_denoiser(mixture.gmm2d(), VP(Linear())), torch.zeros(1, 2, 1, 1), None)
    with pytest.raises(ValueError, match="at least 1"):
        VariationalBound(terms=0)


def test_the_bound_clips_images_but_not_points():
    """Points and unbounded data have no range, so an estimate outside [-1, 1] must not be clipped."""
    for shape, bounded, clipped in (((2,), True, False), ((1, 2, 2), False, False), ((1, 2, 2), True, True)):
        row = Parameterization("eps", "level", -1.0, 1.0, bounded=bounded)
        denoiser = Denoiser(lambda x, t: torch.zeros_like(x), DiscreteProcess(Linear(), 20), row)
        x0 = 3 + torch.randn(3, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        values = [
            VariationalBound(clip=clip)(denoiser, x0, None, torch.Generator().manual_seed(1)).log_likelihood
            for clip in (False, True)
        ]
        assert torch.equal(*values) != clipped
