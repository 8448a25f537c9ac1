"""Implicit, sliced and denoising score matching against the Fisher divergence, and the energy network."""

from __future__ import annotations

import itertools
import math

import analytic
import numpy as np
import pytest
import torch
from torch import nn

from diffusion_lab.config.instantiate import instantiate
from diffusion_lab.config.schema import parameters
from diffusion_lab.data.toy2d_density import GaussianMixture
from diffusion_lab.denoiser import Denoiser
from diffusion_lab.loss import DenoisingLoss, ImplicitScoreMatching, SlicedScoreMatching
from diffusion_lab.network import MLP, Energy
from diffusion_lab.network.blocks import AttentionBlock
from diffusion_lab.parameterization import Parameterization
from diffusion_lab.process import VP, Cosine, DiscreteProcess, Geometric, SingleLevel
from diffusion_lab.ranges import Finite

SCORE = Parameterization(output="score", c_noise="nothing")


def random_mlp(dimensions: int = 2, seed: int = 0) -> MLP:
    """A smooth network in float64 with no small weights."""
    generator = torch.Generator().manual_seed(seed)
    network = MLP(dimensions, width=8, depth=2, embedding=4).double()
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 3
    return network


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ones(batch: int) -> torch.Tensor:
    return torch.ones(batch, dtype=torch.float64)


def test_the_loss_of_the_exact_score_is_minus_half_its_mean_square():
    """Data N(m, A A^T) at level sigma: s = C^-1 (m - x), C = A A^T + sigma^2 I, so E = -tr(C^-1) + tr(C^-1) / 2."""
    sigma, mean = 0.7, torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    mixing = torch.tensor([[1.0, 0.0, 0.0], [0.6, 0.5, 0.0], [-0.3, 0.2, 0.8]], dtype=torch.float64)
    covariance = mixing @ mixing.T + sigma**2 * torch.eye(3, dtype=torch.float64)
    noise = draw(50, 6)
    noise = noise - noise.mean(0)  # whitened, so that the mean over the sample is the expectation
    noise = noise @ torch.linalg.inv(torch.linalg.cholesky(noise.T @ noise / len(noise))).T
    denoiser = Denoiser(lambda x, t: (mean - x) @ covariance.inverse(), SingleLevel(sigma), SCORE)
    loss = ImplicitScoreMatching().at(denoiser, mean + noise[:, :3] @ mixing.T, ones(50), noise[:, 3:])
    expected = -0.5 * sigma**2 * covariance.inverse().trace()
    torch.testing.assert_close(loss.mean(), expected, rtol=1e-10, atol=0)


def quadrature(data: torch.Tensor, nodes: int = 40) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(x0, eps, weights) whose weighted sum is the expectation over a finite data set and Gaussian noise."""
    node, weight = (torch.as_tensor(a) for a in np.polynomial.hermite_e.hermegauss(nodes))
    weight = weight / math.sqrt(2 * math.pi)
    eps, weights = torch.cartesian_prod(node, node), torch.cartesian_prod(weight, weight).prod(1)
    return data.repeat_interleave(len(eps), 0), eps.repeat(len(data), 1), weights.repeat(len(data)) / len(data)


SIGNS = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=2)), dtype=torch.float64)
DATA = torch.tensor([[-0.8, 0.1], [0.5, 0.9], [0.6, -0.4]], dtype=torch.float64)


def every_sign(x0):
    return SIGNS[:, None].expand(-1, *x0.shape)


LOSSES = {
    "implicit": lambda d, x0, t, eps: ImplicitScoreMatching().at(d, x0, t, eps),
    "sliced": lambda d, x0, t, eps: SlicedScoreMatching(reduce_variance=False).at(d, x0, t, eps, every_sign(x0)),
    "sliced, variance reduced": lambda d, x0, t, eps: SlicedScoreMatching().at(d, x0, t, eps, every_sign(x0)),
    "denoising": lambda d, x0, t, eps: DenoisingLoss(reduction="half_sum").at(d, x0, t, eps),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("wrap", [lambda network: network, Energy], ids=["score", "energy"])
@pytest.mark.parametrize("process", [SingleLevel(0.5), VP(Cosine())], ids=["single", "vp"])
def test_every_loss_has_the_gradient_of_the_fisher_divergence(name, wrap, process):
    """d/d theta of the loss = d/d theta sigma^2 E|s_theta - grad log p_t|^2 / 2, the expectation by quadrature."""
    x0, eps, weights = quadrature(DATA)
    t = torch.full((len(x0),), 1.0 if isinstance(process, SingleLevel) else 0.4, dtype=torch.float64)
    alpha, sigma = process.alpha(t[0]), process.sigma(t[0])
    denoiser = Denoiser(wrap(random_mlp()), process, SCORE)
    x = process.perturb(x0, t, eps)
    mixture = GaussianMixture(DATA, torch.full((3,), 1 / 3, dtype=torch.float64), 0.0)
    explicit = 0.5 * (denoiser(x, t).score - mixture.score(x, alpha, sigma)).square().sum(1) * sigma**2
    of = list(denoiser.network.parameters())
    expected = torch.autograd.grad((weights * explicit).sum(), of)
    got = torch.autograd.grad((weights * LOSSES[name](denoiser, x0, t, eps)).sum(), of)
    scale = max(e.abs().max() for e in expected)
    for g, e in zip(got, expected, strict=True):
        assert (g - e).abs().max() < 1e-5 * scale  # what 40 nodes leave


@pytest.mark.parametrize("reduce_variance", [True, False])
def test_all_sign_vectors_together_are_the_exact_trace(reduce_variance):
    """Images of 2 x 1 x 2: the trace is that of the 4 x 4 Jacobian, and the 16 sign vectors average to it."""
    mlp, process = random_mlp(4), SingleLevel(0.3)
    denoiser = Denoiser(lambda x, t: mlp(x.flatten(1), t).reshape(x.shape), process, SCORE)
    x0, eps = draw(5, 2, 1, 2, seed=1), draw(5, 2, 1, 2, seed=2)
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=4)), dtype=torch.float64).reshape(16, 1, 2, 1, 2)
    sliced = SlicedScoreMatching(16, reduce_variance).at(denoiser, x0, ones(5), eps, signs.expand(-1, 5, -1, -1, -1))
    x = (x0 + 0.3 * eps).flatten(1)
    for i in range(5):
        jacobian = torch.autograd.functional.jacobian(lambda z: mlp(z[None], torch.zeros(1).double())[0], x[i])
        score = mlp(x[i : i + 1], torch.zeros(1).double())
        expected = 0.09 * (jacobian.trace() + score.square().sum() / 2)
        torch.testing.assert_close(sliced[i], expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(ImplicitScoreMatching().at(denoiser, x0, ones(5), eps), sliced, rtol=1e-10, atol=0)


def test_one_projection_is_the_formula():
    """A linear score s = M x: v^T M^T v + (v^T M x)^2 / 2, times sigma^power."""
    matrix, sigma = draw(2, 2), 0.5
    denoiser = Denoiser(lambda x, t: x @ matrix.T, SingleLevel(sigma), SCORE)
    x0, eps, v = draw(7, 2, seed=1), draw(7, 2, seed=2), draw(1, 7, 2, seed=3)
    x = x0 + sigma * eps
    for power in (0.0, 1.0, 2.0):
        got = SlicedScoreMatching(reduce_variance=False, sigma_power=power).at(denoiser, x0, ones(7), eps, v)
        along = (v[0] * (x @ matrix.T)).sum(1)
        expected = sigma**power * (torch.einsum("bi,ij,bj->b", v[0], matrix, v[0]) + along**2 / 2)
        torch.testing.assert_close(got, expected)
        implicit = ImplicitScoreMatching(sigma_power=power).at(denoiser, x0, ones(7), eps)
        square = (x @ matrix.T).square().sum(1)
        torch.testing.assert_close(implicit, sigma**power * (matrix.trace() + square / 2))


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 1e-6)])
def test_annealed_sliced_loss_matches_the_official_one(recorded, dtype, tolerance):
    official = recorded("ncsn")
    process = DiscreteProcess(Geometric(0.01, 1.0), 10)
    denoiser = Denoiser(analytic.toy_net, process, Parameterization(output="score", c_noise="level_from_top"))
    t = (10 - official["loss.labels"]).to(dtype) / 10
    x0, eps, v = (official[f"loss.{key}"].to(dtype) for key in ("x0", "z", "v"))
    loss = SlicedScoreMatching(probe="gaussian").at(denoiser, x0, t, eps, v[None]).mean()
    assert abs(loss.item() / official["loss.ssm_vr.v1"].item() - 1) < tolerance


def test_denoising_at_one_level_is_vincents_loss():
    """1/2 sigma^2 |s(x) + (x - x0) / sigma^2|^2 (Vincent 2011, weighted by sigma^2)."""
    network, sigma = random_mlp(), 0.4
    x0, eps = draw(6, 2, seed=1), draw(6, 2, seed=2)
    x = x0 + sigma * eps
    expected = 0.5 * sigma**2 * (network(x, torch.zeros(6).double()) + (x - x0) / sigma**2).square().sum(1)
    denoiser = Denoiser(network, SingleLevel(sigma), SCORE)
    torch.testing.assert_close(DenoisingLoss(reduction="half_sum").at(denoiser, x0, ones(6), eps), expected)


@pytest.mark.parametrize("probe, fourth", [("rademacher", 1.0), ("gaussian", 3.0)])
def test_projections_follow_their_distribution_and_the_generator(monkeypatch, probe, fourth):
    seen = []
    monkeypatch.setattr(SlicedScoreMatching, "at", lambda self, d, x0, t, eps, v: seen.append((t, eps, v)) or t)
    process, x0 = DiscreteProcess(Geometric(0.01, 1.0), 10), torch.zeros(20_000, 2)
    for _ in range(2):
        loss = SlicedScoreMatching(projections=3, probe=probe)
        loss(Denoiser(None, process, SCORE), x0, torch.Generator().manual_seed(5))
    for first, second in zip(*seen, strict=True):
        assert torch.equal(first, second)
    t, eps, v = seen[0]
    assert v.shape == (3, 20_000, 2) and v.dtype == eps.dtype == torch.float32
    size = 120_000**-0.5  # one standard error of a mean of unit variance; the fourth moment's is larger
    assert v.mean().abs() < 4 * size and (v.square().mean() - 1).abs() < 6 * size
    assert (v**4).mean() == pytest.approx(fourth, abs=40 * size)
    assert (v[..., 0] * v[..., 1]).mean().abs() < 6 * size and (v[0] * eps).mean().abs() < 8 * size
    assert eps.std() == pytest.approx(1, abs=0.02) and len(t.unique()) == 10


@pytest.mark.parametrize(
    "arguments, words", [({"projections": 0}, "at least 1"), ({"probe": "sphere"}, "rademacher, g")]
)
def test_invalid_options_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        SlicedScoreMatching(**arguments)


class IdentitySigma(SingleLevel):
    """sigma(t) is t itself, a tensor created with autograd off."""

    def sigma(self, t: torch.Tensor) -> torch.Tensor:
        return t

    def sample_times(self, batch, device, generator=None):
        return 0.1 + torch.rand(batch, generator=generator)


@pytest.mark.parametrize("network", [MLP(2, width=8), Energy(MLP(2, width=8))], ids=["score", "energy"])
@pytest.mark.parametrize("loss", [ImplicitScoreMatching(), SlicedScoreMatching(2)], ids=["implicit", "sliced"])
@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_validation_computes_the_same_loss_without_autograd(network, loss, off):
    denoiser = Denoiser(network, IdentitySigma(), Parameterization("score", "log_sigma"))
    torch.manual_seed(0)
    nn.init.normal_(next(p for p in reversed(list(network.parameters())) if p.dim() == 2))
    trained = loss(denoiser, torch.ones(4, 2), torch.Generator().manual_seed(0))
    with off():
        x0 = torch.ones(4, 2)
        evaluated = loss(denoiser, x0, torch.Generator().manual_seed(0))
        assert not x0.requires_grad and not evaluated.requires_grad
    assert trained.requires_grad
    torch.testing.assert_close(trained.detach(), evaluated, rtol=1e-4, atol=1e-4)


class Attention(nn.Module):
    """Self-attention as a network: fused kernels have no second derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.block = AttentionBlock(4, groups=2).double()
        nn.init.normal_(self.block.out.weight)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.block(x)


@pytest.mark.parametrize("network", [Attention(), Energy(Attention())], ids=["score", "energy"])
@pytest.mark.parametrize("loss", [DenoisingLoss(), SlicedScoreMatching()], ids=["denoising", "sliced"])
def test_networks_with_attention_train(network, loss):
    denoiser = Denoiser(network, SingleLevel(0.3), SCORE)
    loss(denoiser, draw(2, 4, 3, 3)).mean().backward()
    assert all(p.grad.abs().max() > 0 for p in network.parameters() if p.dim() == 2)


def test_the_output_of_energy_is_minus_its_gradient():
    """Output = -dE/dx by central differences, and its Jacobian is symmetric, unlike that of the inner network."""
    inside = random_mlp()
    network, x, t, step = Energy(inside), draw(4, 2), draw(4, seed=1).abs(), 1e-5
    for axis in range(2):
        shift = step * torch.eye(2, dtype=torch.float64)[axis]
        slope = (network.energy(x + shift, t) - network.energy(x - shift, t)) / (2 * step)
        torch.testing.assert_close(network(x, t)[:, axis], -slope, rtol=1e-6, atol=1e-8)
    residual = x - inside(x, t)
    torch.testing.assert_close(network.energy(x, t), (residual**2).sum(1) / 2)
    asymmetry = []
    for f in (network, inside):
        jacobian = torch.autograd.functional.jacobian(lambda z: f(z[None], t[:1])[0], x[0])
        asymmetry.append(((jacobian - jacobian.T).norm() / jacobian.norm()).item())
    assert asymmetry[0] < 1e-12 and asymmetry[1] > 0.05


class Shift(nn.Module):
    """f(x) = 2 label, so that -grad E = -(x - 2 label)."""

    def forward(self, x: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return 2 * label


def test_energy_passes_the_condition_to_its_network():
    x, label = draw(3, 2), draw(3, 2, seed=1)
    torch.testing.assert_close(Energy(Shift())(x, ones(3), label=label), -(x - 2 * label))


class Gain(nn.Module):
    """f(x, t) = gain t x: autograd keeps t itself."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x * t[:, None] * self.gain


@pytest.mark.parametrize("inside", [random_mlp(), Gain()], ids=["mlp", "gain"])
@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_energy_is_evaluated_without_autograd(off, inside):
    network = Energy(inside)
    with off():
        x, t = draw(3, 2), ones(3)
        output = network(x, t)
        assert not output.requires_grad and not x.requires_grad
    assert torch.equal(network(draw(3, 2), ones(3)).detach(), output)
    x = draw(3, 2)
    assert network(x, ones(3)).requires_grad and not x.requires_grad  # the caller's tensor is left as it is


def test_energy_is_built_and_trained_from_a_configuration():
    node = {
        "_target_": "diffusion_lab.network.Energy",
        "network": {"_target_": "diffusion_lab.network.MLP", "dimensions": 2, "width": 8},
    }
    network = instantiate(node)
    assert parameters(node["_target_"])["network"].required
    denoiser = Denoiser(network, SingleLevel(0.5), SCORE)
    optimizer = torch.optim.SGD(denoiser.network.parameters(), 0.1)
    nn.init.normal_(network.network.linear_out.weight)
    before = {name: p.clone() for name, p in network.named_parameters()}
    DenoisingLoss(reduction="half_sum")(denoiser, draw(64, 2).float()).mean().backward()
    optimizer.step()
    for name, parameter in network.named_parameters():
        # A bias that the scalar alone would not feel is felt, too: distributed training waits for every gradient.
        # W_2 of the modulation starts as almost zero and shields what lies before it.
        assert parameter.grad is not None, name
        if not name.startswith("network.time"):
            assert not torch.equal(parameter, before[name]), name


def test_losses_have_a_readable_signature():
    assert parameters("diffusion_lab.loss.SlicedScoreMatching")["probe"].options == ("rademacher", "gaussian")
    assert parameters("diffusion_lab.loss.ImplicitScoreMatching")["sigma_power"].hint == Finite
