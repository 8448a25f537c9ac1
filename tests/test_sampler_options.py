"""Times that a user gives, and thresholds of x_0."""

from __future__ import annotations

import pytest
import torch
from test_sampler import exact_flow, straight_denoiser

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.parameterization import Parameterization
from diffusion_lab.process import VE, VP, DiscreteProcess, Geometric, Linear
from diffusion_lab.sampler import DDIM, EDM, AdamsBashforth, Langevin, ProbabilityFlow, Sampler
from diffusion_lab.verification import mixture
from diffusion_lab.verification.mixture import exact_denoiser


def denoiser_of(process, network=None):
    return Denoiser(network, process, Parameterization("x0", "nothing"))


@pytest.mark.parametrize(
    "process, unit, times, want",
    [
        (VP(Linear()), "t", [1.0, 0.5, 0.01], [1.0, 0.5, 0.01]),
        (DiscreteProcess(Linear(), 50), "level", [50, 20, 1], [1.0, 0.4, 0.02]),
        (VE(Geometric(0.01, 50.0)), "sigma", [50.0, 0.01**0.5 * 50**0.5, 0.02], [1.0, 0.5, None]),
    ],
)
def test_explicit_times_are_the_grid_in_any_unit(process, unit, times, want):
    sampler = Sampler(DDIM(), steps=50, spacing="explicit", times=times, unit=unit)
    found = sampler.check(denoiser_of(process))
    for got, expected in zip(found.tolist(), want, strict=True):
        assert expected is None or got == pytest.approx(expected, rel=1e-9)
    if unit == "sigma":
        torch.testing.assert_close(process.sigma(found), torch.tensor(times, dtype=torch.float64), rtol=1e-9, atol=0)


def test_explicit_times_below_one_start_from_their_own_share_of_the_noise():
    process = VE(Geometric(0.01, 50.0))
    sampler = Sampler(DDIM(), spacing="explicit", times=[5.0, 0.1], unit="sigma")
    x = sampler.prior(denoiser_of(process), (20_000, 2), torch.Generator().manual_seed(0))
    assert x.std().item() == pytest.approx(5.0, rel=0.02)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"spacing": "explicit"}, "go together"),
        ({"times": [1.0, 0.5]}, "go together"),
        (
            {"spacing": "explicit", "times": [1.0, 0.5], "t_end": 0.1},
            "sampler.times says all times: leave out sampler.t_start",
        ),
        ({"spacing": "explicit", "times": [0.5, 0.5]}, "strictly decreasing"),
        ({"spacing": "explicit", "times": []}, "go together"),
        ({"spacing": "explicit", "times": [1.5, 0.5]}, "between 1e-05 and 1,"),
        ({"spacing": "explicit", "times": [1.0, 0.0]}, r"a list whose elements are in \(0, inf\)"),
        ({"spacing": "explicit", "times": [9.0, 1.0], "unit": "level"}, "use sampler.unit=t or sigma"),
        ({"spacing": "explicit", "times": [1e9, 1.0], "unit": "sigma"}, "must lie between"),
        ({"spacing": "explicit", "times": [1.0], "unit": "snr"}, "unit='snr' must be one of t, sigma, level"),
        ({"clip": True, "dynamic_threshold": 0.9}, "in place of clip"),
        ({"dynamic_threshold": 1.5}, r"dynamic_threshold=1.5 must be in \(0, 1\]"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(settings, message):
    with pytest.raises(ValueError, match=message) as error:
        Sampler(DDIM(), **settings).check(denoiser_of(VP(Linear())))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("low, high", [(-1.0, 1.0), (0.0, 1.0)])
def test_dynamic_thresholding_is_imagens(low, high):
    """s is the quantile of |x_0| of each image, at least 1, on the scale where the range is [-1, 1]."""
    row = Parameterization("x0", "nothing", low, high)
    unit = (
        torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)).double()
        * torch.tensor([0.1, 1.0, 3.0])[:, None, None, None]
    )
    x0 = (low + high) / 2 + (high - low) / 2 * unit
    denoiser = Denoiser(lambda x, t: x0, VP(Linear()), row)
    sampler = Sampler(DDIM(), steps=2, dynamic_threshold=0.9, precision="float64")
    first = next(sampler.trajectory(denoiser, torch.randn(3, 1, 8, 8, dtype=torch.float64))).x0
    for got, each in zip(first, unit, strict=True):
        s = max(1.0, each.abs().flatten().sort().values.quantile(0.9).item())
        want = each.clamp(-s, s) / s
        torch.testing.assert_close(got, (low + high) / 2 + (high - low) / 2 * want, rtol=1e-9, atol=1e-9)
    assert first.min() >= low and first.max() <= high


INVERSIONS = {"ddim": (DDIM(), 1), "heun": (EDM(2), 2), "lms": (AdamsBashforth(2), 2)}


@pytest.mark.parametrize(
    "process", [VP(Linear()), VE(Geometric(0.01, 20.0)), DiscreteProcess(Linear())], ids=["vp", "ve", "ddpm"]
)
@pytest.mark.parametrize("name", INVERSIONS)
def test_inversion_is_the_flow_map_to_the_order_of_the_method(process, name):
    """On Gaussian data from t_end to 1 in closed form; from images, whose own noise is 0, and back again."""
    target, denoiser, (step, order) = mixture.diag64(), straight_denoiser(process), INVERSIONS[name]
    x0 = target.m[0].reshape(1, 1, 8, 8) + 0.5 * torch.randn(
        4, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    errors, returned = [], []
    for steps in (60, 120):
        sampler = Sampler(step, None, steps + 1, "log_snr", precision="float64", t_end=0.02)
        end, one = sampler.timesteps(denoiser)[[-1, 0]]
        alpha, sigma = process.alpha_sigma(end)
        x_end = alpha * x0 + sigma * denoiser(alpha * x0, end).eps
        noise = sampler.invert(denoiser, x0)
        errors.append((noise - exact_flow(target, process, x_end, end, one)).square().mean().sqrt().item())
        returned.append((sampler.as_written(denoiser, noise) - x0).square().mean().sqrt().item())
    assert 2 ** (order - 0.4) < errors[0] / errors[1] < 2 ** (order + 0.8)
    assert returned[1] < 0.03  # not 0: the first step, from no noise to t_end, is of order 1


def test_inversion_of_the_flow_returns_the_image():
    denoiser, flow = exact_denoiser(mixture.gmm2d(), VP(Linear())), ProbabilityFlow(1e-8, 1e-8, precision="float64")
    x0 = torch.randn(5, 2, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    *_, back = flow.trajectory(denoiser, flow.invert(denoiser, x0))
    assert (back.x - x0).abs().max() < 1e-3


@pytest.mark.parametrize(
    "sampler, message",
    [
        (Sampler(DDIM(0.5), steps=5), "draws noise"),
        (Sampler(DDIM(), Langevin(), steps=5), "corrector"),
        (Sampler(DDIM(), steps=5, clip=True), "clipping"),
        (Sampler(EDM(2, churn=3.0), steps=5), "draws noise"),
    ],
)
def test_what_has_no_inverse_is_refused(sampler, message):
    with pytest.raises(ValueError, match=message):
        sampler.invert(exact_denoiser(mixture.gmm2d(), VP(Linear())), torch.zeros(1, 2, 1, 1))
