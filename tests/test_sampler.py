"""Samplers against official trajectories, exact Gaussian laws, and each other."""

from __future__ import annotations

import analytic
import numpy as np
import pytest
import torch
from exact import exact_denoiser

from diffusion_lab.noise import draw, image_generators
from diffusion_lab.process import VE, VP, Cosine, Geometric, Ladder, Linear, SubVP
from diffusion_lab.sampler import DDIM, Ancestral, Sampler

PROCESSES = {
    "linear": lambda: Ladder(Linear(), 1000),
    "cosine": lambda: Ladder(Cosine(), 200),
    "geometric": lambda: Ladder(Geometric(0.01, 20.0), 200),
    "vp": lambda: VP(Linear()),
    "subvp": lambda: SubVP(Linear()),
    "ve": lambda: VE(Geometric(0.01, 20.0)),
}


class Replay:
    """Stands in for `draw`: hands out recorded noise."""

    def __init__(self, noise: np.ndarray) -> None:
        self.noise = iter(torch.as_tensor(noise))

    def __call__(self, shape, generator, dtype, device="cpu"):
        return next(self.noise).to(dtype)


@pytest.mark.parametrize("target", ["gmm2d", "gauss64"])
@pytest.mark.parametrize("spacing, name", [("uniform", "uniform"), ("quadratic", "quad")])
@pytest.mark.parametrize("steps", [10, 20, 50])
@pytest.mark.parametrize("eta", [0, 0.5, 1])
def test_ddim_matches_the_official_program(recorded, monkeypatch, target, spacing, name, steps, eta):
    official = recorded("ddim")[f"{target}.{name}.eta{eta}.N{steps}"]
    x = torch.as_tensor(np.random.RandomState(91).randn(*official.shape), dtype=torch.float32)
    noise = np.random.RandomState(92).randn(steps, *official.shape).astype(np.float32)
    # The official program draws at every step; ours not where there is nothing to add.
    denoiser = exact_denoiser(analytic.TARGETS[target](), Ladder(Linear()))
    sampler = Sampler(DDIM(eta), steps, spacing, clip=False)
    times = denoiser.process.grid(steps, spacing)
    used = sampler.predictor.coefficients(denoiser.process, times[:-1], times[1:])[2] > 0
    monkeypatch.setattr("diffusion_lab.sampler.base.draw", Replay(noise[used.numpy()]))
    *_, last = sampler.trajectory(denoiser, x)
    assert (last.x - official).abs().max() / official.abs().max() < 1e-4


@pytest.mark.parametrize("target", ["gmm2d", "gauss64"])
@pytest.mark.parametrize("steps", [10, 50])
def test_clipped_fixed_large_ancestral_matches_the_official_program(recorded, monkeypatch, target, steps):
    official = recorded("ddim")[f"{target}.uniform.ddpm_clamped.N{steps}"]
    x = torch.as_tensor(np.random.RandomState(91).randn(*official.shape), dtype=torch.float32)
    noise = np.random.RandomState(92).randn(steps, *official.shape).astype(np.float32)
    monkeypatch.setattr("diffusion_lab.sampler.base.draw", Replay(noise))
    denoiser = exact_denoiser(analytic.TARGETS[target](), Ladder(Linear()))
    *_, last = Sampler(Ancestral("fixed_large"), steps).trajectory(denoiser, x)
    assert (last.x - official).abs().max() / official.abs().max() < 1e-4


def test_ddim_with_eta_one_is_ddpm_fixed_small_exactly():
    denoiser = exact_denoiser(analytic.gmm2d(), Ladder(Linear()))
    for steps in (1000, 25):
        samples = [
            Sampler(predictor, steps, clip=False, precision="float64")(
                denoiser, (8, 2, 1, 1), torch.Generator().manual_seed(3)
            )
            for predictor in (DDIM(1.0), Ancestral("fixed_small"))
        ]
        torch.testing.assert_close(*samples, rtol=1e-9, atol=1e-9)


def affine_law(target, denoiser, sampler):
    """Exact mean and covariance of a sampler's output on Gaussian data, in float64.

    With Gaussian data x0_hat = K x + k, so each step is affine: in the eigenbasis of the covariance mean and variance follow a
    recursion and need no Monte Carlo.
    """
    process, lam = denoiser.process, target.lam[0]
    times = process.grid(sampler.steps, sampler.spacing)
    m0 = target.u[0].T @ target.m[0]
    mean, var = torch.zeros_like(m0), torch.full_like(lam, process.prior_std**2)
    coefficients = sampler.predictor.coefficients(process, times[:-1], times[1:])
    for t, a, b, c in zip(times[:-1], *coefficients, strict=True):
        alpha, sigma = process.alpha(t), process.sigma(t)
        gain = alpha * lam / (alpha**2 * lam + sigma**2)
        mean = a * mean + b * (m0 + gain * (mean - alpha * m0))
        var = (a + b * gain) ** 2 * var + c**2
    return target.u[0] @ mean, target.u[0] @ torch.diag(var) @ target.u[0].T


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize(
    "predictor", [Ancestral("fixed_small"), Ancestral("fixed_large"), DDIM(0.0), DDIM(0.5)], ids=str
)
def test_exact_gaussian_law_through_the_public_loop(process, predictor):
    target = analytic.gauss64()
    denoiser = exact_denoiser(target, PROCESSES[process]())
    sampler = Sampler(predictor, 12, clip=False)
    mean, covariance = affine_law(target, denoiser, sampler)
    n = 20_000
    x = sampler(denoiser, (n, 1, 8, 8), torch.Generator().manual_seed(0)).flatten(1).double()
    assert ((x.mean(0) - mean).abs() < 4.5 * (covariance.diag() / n).sqrt()).all()
    assert (x.var(0) / covariance.diag() - 1).abs().max() < 0.045  # 4.5 standard errors
    assert x.var(0).sum() / covariance.trace() == pytest.approx(1, abs=0.015)


@pytest.mark.parametrize("predictor", [Ancestral("fixed_small"), DDIM(0.0)], ids=str)
def test_many_steps_give_the_data_law(predictor):
    target = analytic.gauss64()
    denoiser = exact_denoiser(target, Ladder(Linear()))
    mean, covariance = affine_law(target, denoiser, Sampler(predictor, None, clip=False))
    assert (mean - target.m[0]).abs().max() < 0.01
    assert (covariance - target.c[0]).abs().max() < 0.02 * target.c[0].abs().max()  # the error of 1000 steps


def test_each_image_has_its_own_noise():
    denoiser = exact_denoiser(analytic.gmm2d(), Ladder(Linear(), 50))
    sampler = Sampler(Ancestral(), clip=False)

    def sample(indices):
        return sampler(denoiser, (len(indices), 2, 1, 1), image_generators(7, indices))

    whole = sample(range(6))
    torch.testing.assert_close(torch.cat([sample(range(4)), sample(range(4, 6))]), whole)
    assert torch.equal(sample([3, 9, 2, 4, 11, 5])[[0, 2, 3, 5]], whole[[3, 2, 4, 5]])
    assert not torch.allclose(sample(range(6, 12)), whole)
    with pytest.raises(ValueError, match="3 generators for a batch of 4"):
        draw((4, 2), image_generators(0, range(3)), torch.float32)


def test_nfe_is_counted_and_the_trajectory_ends_at_data():
    denoiser = exact_denoiser(analytic.gmm2d(), Ladder(Linear()))
    states = list(Sampler(DDIM(), 7, clip=False).trajectory(denoiser, torch.randn(3, 2, 1, 1)))
    assert denoiser.nfe == 7 == len(states)
    assert states[-1].t == 0 and torch.allclose(states[-1].x, states[-1].x0, atol=1e-6)


def test_clip_bounds_the_estimates():
    denoiser = exact_denoiser(analytic.gauss64(), Ladder(Linear()))
    wide = list(Sampler(DDIM(), 5, clip=False).trajectory(denoiser, 3 * torch.randn(4, 1, 8, 8)))
    clipped = list(Sampler(DDIM(), 5, clip=True).trajectory(denoiser, 3 * torch.randn(4, 1, 8, 8)))
    assert max(s.x0.abs().max() for s in wide) > 1.2 and max(s.x0.abs().max() for s in clipped) <= 1


def test_float64_on_request_agrees_with_float32():
    denoiser = exact_denoiser(analytic.gmm2d(), Ladder(Linear()))
    x = torch.randn(4, 2, 1, 1)
    outs = []
    for precision in ("float32", "float64"):
        *_, last = Sampler(DDIM(), 50, clip=False, precision=precision).trajectory(denoiser, x)
        outs.append(last.x)
    assert [o.dtype for o in outs] == [torch.float32, torch.float64]
    torch.testing.assert_close(outs[0].double(), outs[1], rtol=1e-4, atol=1e-4)


def test_eta_out_of_range_is_refused():
    with pytest.raises(ValueError, match="between 0"):
        DDIM(1.5)
