"""Preconditionings, which samplers use, against `forward` and x = alpha x_0 + sigma eps, for every parameterization."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import nn

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.network.embedding import FourierWaves
from diffusion_lab.noise import draw, image_generators, stream
from diffusion_lab.parameterization import CONDITIONING, TO_EPS, Parameterization
from diffusion_lab.process import VE, VP, DiscreteProcess, Geometric, Linear, SubVP

PROCESSES = (DiscreteProcess(Linear(), 50), SubVP(Linear()), VE(Geometric(0.05, 20.0)))
X0 = {
    "eps": lambda x, out, alpha, sigma: (x - sigma * out) / alpha,
    "x0": lambda x, out, alpha, sigma: out,
    "v": lambda x, out, alpha, sigma: (alpha * x - sigma * out) / (alpha**2 + sigma**2),
    "u": lambda x, out, alpha, sigma: (x - sigma * out) / (alpha + sigma),
    "edm": lambda x, out, alpha, sigma: (
        (alpha * x + sigma * (alpha**2 + sigma**2) ** 0.5 * out) / (alpha**2 + sigma**2)
    ),
    "score": lambda x, out, alpha, sigma: (x + sigma**2 * out) / alpha,
    "scaled_score": lambda x, out, alpha, sigma: (x + sigma * out) / alpha,
}
"""x_0 for each meaning of the output."""


class Asked:
    """A nonlinear network that records its inputs."""

    def __call__(self, x, c_noise):
        self.seen, self.c_noise = x, c_noise
        return (1.3 * x + 0.1).sin()


def combine(weights, x, others):
    return weights[0] * x + sum(weight * other for weight, other in zip(weights[1:], others, strict=True))


def close(got, want, tolerance):
    assert got.dtype == want.dtype and got.shape == want.shape
    assert (got - want).abs().max() <= tolerance * want.abs().max().clamp(min=1)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 2e-5)])
@pytest.mark.parametrize("shape", [(3, 2, 4, 4), (3, 2)], ids=["images", "points"])
@pytest.mark.parametrize("output", TO_EPS)
def test_a_preconditioning_agrees_with_forward_at_its_time(output, shape, dtype, tolerance):
    assert X0.keys() == TO_EPS.keys()
    times = torch.tensor([1.0, 0.04], dtype=torch.float64)
    z = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows = product(PROCESSES, CONDITIONING, ((-1.0, 1.0), (0.0, 1.0), (-0.5, 2.0)), (False, True))
    for process, c_noise, (low, high), unit_input in rows:
        if "level" in c_noise and not process.levels:
            continue
        network = Asked()
        denoiser = Denoiser(network, process, Parameterization(output, c_noise, low, high, unit_input))
        for t, preconditioning in zip(times, denoiser.preconditionings(times, z.to(dtype)), strict=True):
            alpha, sigma = process.alpha(t), process.sigma(t)
            x = ((alpha**2 + sigma**2).sqrt() * z).to(dtype)
            estimate = denoiser(x, t)
            seen, c_noise_there = network.seen, network.c_noise
            out = denoiser.network_output(x, preconditioning)
            close(network.seen, seen, tolerance)
            assert torch.equal(network.c_noise, c_noise_there) and network.c_noise.stride() == (1,)
            x0 = preconditioning.c_skip * x + preconditioning.c_out * out
            if dtype == torch.float64:  # in float32 forward itself is further off where alpha is small
                close(x0, estimate.x0, tolerance)
            exact, x = out.double(), x.double()
            expected = X0[output](x, exact, alpha, sigma)
            close(x0, expected.to(dtype), tolerance)


def test_network_outputs_are_counted_and_computed_in_the_networks_precision():
    asked = []

    class Network(nn.Linear):
        def forward(self, x, t):
            asked.append((x.dtype, t.dtype))
            return super().forward(x)

    half, full = torch.bfloat16, torch.float32
    for network, dtype in ((Network(2, 2), full), (Network(2, 2).to(half), half)):
        denoiser = Denoiser(network, VP(Linear()), Parameterization(c_noise="time_999"))
        preconditioning, _ = denoiser.preconditionings(torch.tensor([1.0, 0.5]), torch.zeros(3, 2))
        for count in (1, 2):
            denoiser.network_output(torch.zeros(3, 2), preconditioning)
            assert denoiser.nfe == count and asked[-1] == (dtype, full)


def test_the_precision_of_a_network_is_that_of_its_trained_parameters():
    half, full = torch.bfloat16, torch.float32
    both = nn.Sequential(FourierWaves(8, 16.0), nn.Linear(8, 2)).to(half)
    assert [p.dtype for p in both.parameters()] == [full, half, half]
    frozen = nn.Sequential(FourierWaves(8, 16.0), nn.Linear(8, 2)).to(half).requires_grad_(False)
    for network, dtype in (
        (both, half), (frozen, half), (nn.Linear(2, 2), full), (nn.ReLU(), None), (lambda x, t: x, None),
    ):  # fmt: skip
        assert Denoiser(network, VP(Linear()), Parameterization()).network_dtype == dtype


@pytest.mark.parametrize("each", [False, True])
def test_a_stream_returns_the_same_noise_as_draw_in_one_buffer(each):
    shape, dtype = (4, 3, 5), torch.float64
    generators = lambda: image_generators(3, range(4)) if each else torch.Generator().manual_seed(3)  # noqa: E731
    fresh, source = stream(shape, generators(), dtype), generators()
    first = fresh()
    for k in range(3):
        want = draw(shape, source, dtype)
        assert torch.equal(first, want)
        if each:
            alone = [torch.randn(3, 5, dtype=dtype, generator=one) for one in image_generators(3, range(4))]
            assert torch.equal(torch.stack(alone), want) == (k == 0)
        assert fresh().data_ptr() == first.data_ptr()
