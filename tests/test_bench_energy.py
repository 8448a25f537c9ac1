"""The error of an energy's density by method, and the Parzen density as the optimum of denoising score matching."""

from __future__ import annotations

import math

import pytest
import torch

from diffusion_lab.bench import energy, parzen
from diffusion_lab.data.toy2d_density import GaussianMixture
from diffusion_lab.denoiser import Denoiser
from diffusion_lab.loss import DenoisingLoss
from diffusion_lab.network import MLP
from diffusion_lab.parameterization import Parameterization
from diffusion_lab.process import VE, VP, Geometric, Linear, SingleLevel
from diffusion_lab.verification.parzen import Parzen

POINTS = torch.tensor([[-0.8, 0.1], [0.5, 0.9], [0.6, -0.4]], dtype=torch.float64)


def test_the_command_measures_every_method_and_draws_the_errors(capsys, tmp_path):
    energy.main(["--scale", "0.01", "--out", str(tmp_path / "energy.png")])
    printed = capsys.readouterr().out
    assert all(f"\n{name}" in printed for name in energy.METHODS)
    assert (tmp_path / "energy.png").stat().st_size > 5000


def test_the_error_is_zero_for_the_exact_density_and_known_for_another():
    grid = energy.Grid()
    total_variation, divergence = grid.errors(grid.exact)
    assert total_variation < 1e-12 and abs(divergence) < 1e-12
    assert grid.exact.exp().sum().item() * grid.cell == pytest.approx(1, abs=1e-4)
    low = grid.exact.clone()
    low[grid.points[:, 0] < 0] -= 0.5  # no density of total 1: half of the mass times exp(-0.5)
    total_variation, divergence = grid.errors(low)
    assert total_variation == pytest.approx(0.25 * (1 - math.exp(-0.5)), abs=0.01)
    assert divergence == pytest.approx(0.25, abs=0.02)


def test_the_command_compares_networks_with_the_parzen_density(capsys, tmp_path):
    parzen.main(["--steps", "2", "--out", str(tmp_path / "parzen.png")])
    printed = capsys.readouterr().out
    assert printed.count("relative error of the score") == 3 and printed.count("samples of the ") == 2
    assert (tmp_path / "parzen.png").stat().st_size > 5000


@pytest.mark.parametrize(
    "process", [SingleLevel(0.4), VP(Linear()), VE(Geometric(0.05, 3.0))], ids=["single", "vp", "ve"]
)
def test_the_optimal_denoiser_is_the_gradient_of_the_log_parzen_density(process):
    t = torch.full((50,), 1.0 if process.levels == 1 else 0.6, dtype=torch.float64)
    alpha, sigma = (k.item() for k in process.alpha_sigma(t[:1]))
    x = torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    exact = Parzen(POINTS)
    density = exact.log_density(x, alpha, sigma)
    (gradient,) = torch.autograd.grad(density.sum(), x)
    score = exact.denoiser(process)(x, t).score
    assert (score - gradient).abs().max() < 1e-10 * max(1, gradient.abs().max().item())
    mixture = GaussianMixture(POINTS, torch.full((3,), 1 / 3, dtype=torch.float64), 0.0)
    torch.testing.assert_close(density, mixture.log_density(x, alpha, sigma))
    torch.testing.assert_close(score, mixture.score(x, alpha, sigma))


def test_no_perturbation_lowers_the_loss_of_the_optimum():
    """The expected loss, by quadrature over the noise, is least at size 0 and grows by the square of the size."""
    process = SingleLevel(0.4)
    nodes = torch.linspace(-5, 5, 101, dtype=torch.float64)
    weight = (-nodes.square() / 2).exp()
    weights = torch.cartesian_prod(weight, weight).prod(1).repeat(3)
    weights = weights / weights.sum()
    eps, x0 = torch.cartesian_prod(nodes, nodes).repeat(3, 1), POINTS.repeat_interleave(len(nodes) ** 2, 0)
    one, best = torch.ones(len(x0), dtype=torch.float64), Parzen(POINTS).denoiser(process)

    def loss(change, size):
        def moved(x, c_noise):
            return best.network(x, c_noise) + size * change(x)

        return (weights * DenoisingLoss(reduction="half_sum").at(best.with_network(moved), x0, one, eps)).sum().item()

    for change in (lambda x: x, lambda x: torch.ones_like(x), lambda x: x.flip(1).sin(), lambda x: -x.square()):
        low, least, high = (loss(change, size) for size in (-0.1, 0.0, 0.1))
        assert min(low, high) > least + 1e-4
        assert abs(low - high) < 1e-6, "the slope at the optimum is zero"


def test_a_network_trained_on_three_points_approaches_their_parzen_score():
    torch.manual_seed(0)
    process, x = SingleLevel(0.4), POINTS.repeat(400, 1).float()
    x = x + 0.4 * torch.randn_like(x)
    network = MLP(2, width=32, depth=2, embedding=8)
    denoiser = Denoiser(network, process, Parameterization("scaled_score", "nothing"))
    optimizer, loss = torch.optim.Adam(network.parameters(), 5e-3), DenoisingLoss(reduction="half_sum")
    want = Parzen(POINTS).denoiser(process)(x, torch.ones(len(x))).score
    errors = []
    for step in range(401):
        if step in (0, 400):
            got = denoiser(x, torch.ones(len(x))).score
            errors.append(((got - want).square().mean() / want.square().mean()).item())
        optimizer.zero_grad()
        loss(denoiser, POINTS[torch.randint(3, (256,))].float()).mean().backward()
        optimizer.step()
    assert errors[0] > 0.5 and errors[1] < 0.02


def test_samples_of_the_exact_optimum_are_the_training_points():
    torch.manual_seed(0)
    samples, distance = parzen.distances(Parzen(parzen.POINTS).denoiser(parzen.ANNEALED))
    assert distance.max() < 1e-2
    assert len(torch.cdist(samples, parzen.POINTS).argmin(1).unique()) == len(parzen.POINTS)
