"""Maximum likelihood of an energy: its gradient in closed form, its Langevin dynamics, and the samples that it keeps."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from zygote import run

from diffusion_lab.config.compose import check
from diffusion_lab.denoiser import Denoiser
from diffusion_lab.errors import ConfigError
from diffusion_lab.loss import ContrastiveLoss, energy
from diffusion_lab.network import MLP, Energy
from diffusion_lab.noise import image_generators
from diffusion_lab.parameterization import Parameterization
from diffusion_lab.process import VE, VP, Geometric, Linear, SingleLevel

SIGMA = 0.5
ROW = Parameterization(output="scaled_score", c_noise="nothing", low=0.0, high=1.0)


class Affine(nn.Module):
    """f(x) = x - M x + b, so that the energy |x - f|^2 / (2 sigma) is that of N(M^-1 b, sigma (M^T M)^-1)."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.tensor([[1.0, 0.3], [-0.2, 0.7]], dtype=torch.float64))
        self.bias = nn.Parameter(torch.tensor([0.4, -0.3], dtype=torch.float64))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x - x @ self.matrix.T + self.bias

    @property
    def law(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.matrix.inverse() @ self.bias, SIGMA * (self.matrix.T @ self.matrix).inverse()


class Pixels(nn.Module):
    """A smooth network of images."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = MLP(4, width=8, depth=1)
        nn.init.normal_(self.inner.linear_out.weight)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.inner(x.flatten(1), t).reshape(x.shape)


def affine() -> Denoiser:
    return Denoiser(Energy(Affine()), SingleLevel(SIGMA, 2.0), ROW)


def images() -> Denoiser:
    torch.manual_seed(0)
    return Denoiser(Energy(Pixels()), SingleLevel(SIGMA), ROW)


@pytest.mark.parametrize("output", ["eps", "x0", "v", "score", "scaled_score"])
@pytest.mark.parametrize("process", [SingleLevel(0.3), VP(Linear()), VE(Geometric())], ids=["single", "vp", "ve"])
@pytest.mark.parametrize("shape", [(3, 4), (3, 1, 2, 2)], ids=["points", "images"])
def test_the_gradient_of_the_energy_is_minus_the_score(output, process, shape):
    torch.manual_seed(0)
    row = Parameterization(output, "nothing", 0.0, 3.0, unit_input=True)
    denoiser = Denoiser(Energy(Pixels()).double(), process, row)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    t = torch.full((3,), 1.0 if process.levels == 1 else 0.4, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(energy(denoiser, x, t).sum(), x)
    torch.testing.assert_close(gradient, -denoiser(x, t).score, rtol=1e-8, atol=1e-8)


def test_the_gradient_is_that_of_the_negative_log_likelihood():
    """-log p = E + log Z with log Z = -log |det M| of the affine network; x- are samples of its exact law."""
    denoiser, count = affine(), 100_000
    inner, loss = denoiser.network.network, ContrastiveLoss(steps=1, step_size=1e-3, reinit=0.0)
    torch.manual_seed(0)
    mean, covariance = (one.detach() for one in inner.law)
    loss.replay = mean + torch.randn(count, 2, dtype=torch.float64) @ torch.linalg.cholesky(covariance).T
    x0 = 0.3 * torch.randn(count, 2, dtype=torch.float64) - 1
    parameters = [inner.matrix, inner.bias]
    got = torch.autograd.grad(loss(denoiser, x0).mean(), parameters)
    positive = x0 + SIGMA * torch.randn_like(x0)
    exact = (positive @ inner.matrix.T - inner.bias).square().sum(1).mean() / (2 * SIGMA) - inner.matrix.logdet()
    for g, e in zip(got, torch.autograd.grad(exact, parameters), strict=True):
        assert (g - e).abs().max() < 0.03 * e.abs().max()


def test_the_squares_of_both_energies_are_added():
    denoiser, count = affine(), 5
    losses = {}
    for l2 in (0.0, 0.1):
        loss, generator = ContrastiveLoss(2, l2=l2), torch.Generator().manual_seed(0)
        losses[l2] = loss(denoiser, torch.zeros(count, 2, dtype=torch.float64), generator)
    eps = torch.randn(count, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    positive = energy(denoiser, SIGMA * eps, torch.ones(count))
    negative = positive - losses[0.0]
    torch.testing.assert_close(losses[0.1], losses[0.0] + 0.1 * (positive**2 + negative**2))


class TestLangevin:
    def test_without_noise_it_is_gradient_descent_with_a_bounded_gradient(self):
        denoiser, x = affine(), torch.tensor([[2.0, -1.0], [0.1, 0.4]], dtype=torch.float64)
        inner, want = denoiser.network.network, x
        for _ in range(3):
            gradient = (want @ inner.matrix.T - inner.bias) @ inner.matrix / SIGMA
            want = want - 0.1 * gradient.clamp(-0.7, 0.7)
        loss = ContrastiveLoss(3, step_size=0.2, noise=0.0, clip=0.7)
        got = loss.langevin(denoiser, x, torch.ones(2, dtype=torch.float64), lambda: torch.ones_like(x))
        torch.testing.assert_close(got, want.detach())

    @pytest.mark.parametrize("step_size, noise", [(0.2, None), (None, None), (0.2, 0.1)])
    def test_it_samples_the_energy_at_the_stated_temperature(self, step_size, noise):
        """Its exact law: C = T P^-1 (1 - step_size P / 4)^-1 with the precision P and T = noise^2 / step_size."""
        denoiser = affine()
        mean, covariance = (one.detach() for one in denoiser.network.network.law)
        step = step_size or SIGMA**2 / 5
        precision, temperature = covariance.inverse(), 1.0 if noise is None else noise**2 / step
        want = temperature * (precision - step / 4 * precision @ precision).inverse()
        generator, x = torch.Generator().manual_seed(0), torch.zeros(20_000, 2, dtype=torch.float64)
        draw = lambda: torch.randn(x.shape, generator=generator, dtype=x.dtype)  # noqa: E731
        x = ContrastiveLoss(400, step_size, noise).langevin(denoiser, x, torch.ones(len(x), dtype=x.dtype), draw)
        assert (x.mean(0) - mean).abs().max() < 0.03
        assert (x.T.cov() - want).norm() < 0.03 * want.norm()


class TestReplay:
    def test_chains_start_from_kept_samples_or_with_probability_reinit_from_noise(self):
        loss, noise = ContrastiveLoss(reinit=0.2), torch.full((20_000, 1, 2, 2), 7.0)
        assert loss.replayed(noise) is noise
        loss.replay = torch.arange(50.0).reshape(50, 1, 1, 1).expand(50, 1, 2, 2) + 100
        start = loss.replayed(noise)
        anew = start[:, 0, 0, 0] == 7
        assert anew.float().mean().item() == pytest.approx(0.2, abs=0.015)
        assert (start == start[:, :1, :1, :1]).all(), "whole images are chosen"
        assert len(start[~anew].unique()) == 50

    @pytest.mark.parametrize("build, low, high, shape", [(affine, -2, 2, (2,)), (images, 0, 1, (1, 2, 2))])
    def test_noise_is_uniform_in_the_image_range_or_that_of_the_prior(self, build, low, high, shape):
        x = ContrastiveLoss().from_noise(build(), torch.randn(50_000, *shape)).flatten()
        assert low <= x.min() and x.max() <= high
        width = high - low
        assert x.mean().item() == pytest.approx((low + high) / 2, abs=0.01 * width)
        assert x.var().item() == pytest.approx(width**2 / 12, rel=0.02)

    def test_the_oldest_samples_are_dropped_and_validation_keeps_none(self):
        loss, denoiser = ContrastiveLoss(2, replay_size=10), affine()
        for count in (4, 8, 10):
            before = loss.replay
            loss(denoiser, torch.zeros(4, 2, dtype=torch.float64))
            assert len(loss.replay) == count
        assert torch.equal(loss.replay[:6], before[2:])
        kept = loss.replay
        loss(denoiser, torch.zeros(4, 2, dtype=torch.float64), torch.Generator().manual_seed(0))
        assert loss.replay is kept and not kept.requires_grad

    @pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
    def test_the_held_out_loss_of_an_item_depends_on_its_generator_alone(self, off):
        loss, denoiser, x0 = ContrastiveLoss(3), images(), torch.rand(5, 1, 2, 2)
        loss(denoiser, x0)
        with off():
            whole = loss(denoiser, x0, image_generators(3, range(5)))
            parts = [loss(denoiser, x0[i : i + 1], image_generators(3, [i])) for i in range(5)]
        torch.testing.assert_close(whole, torch.cat(parts))
        assert not torch.allclose(whole, loss(denoiser, x0, image_generators(4, range(5))))


@pytest.mark.parametrize(
    "words, message",
    [
        ("network=mlp", "ContrastiveLoss needs a network with an energy: use network=energy for points"),
        ("network=energy model=ncsn", "ContrastiveLoss has samples of one noise level: use model=score"),
        ("network=energy model=score_sde", "ContrastiveLoss has samples of one noise level: use model=score"),
        ("network=energy data.conditional=true", "ContrastiveLoss has samples without labels: set data.conditional=f"),
        ("network=energy compile=true", "Energy needs second derivatives, which torch.compile does not support"),
        ("network=energy loss.steps=0", "loss.steps=0 must be at least 1"),
        ("network=energy loss.reinit=1.5", r"loss.reinit=1.5 must be in \[0, 1\]"),
        ("network=energy loss.step_size=0", r"loss.step_size=0 must be in \(0, inf\)"),
        ("network=energy", None),
    ],
)
def test_a_configuration_is_refused_before_anything_is_imported(words, message):
    command = ["loss=contrastive", "data=toy2d", *(["model=score"] * ("model=" not in words)), *words.split()]
    if message is None:
        return check("train", command)
    with pytest.raises(ConfigError, match=message):
        check("train", command)


def test_other_denoisers_are_refused():
    several = Denoiser(Energy(Affine()), VP(Linear()), ROW)
    labelled = affine()
    labelled.classes = 3
    plain = Denoiser(MLP().double(), SingleLevel(SIGMA), ROW)
    for denoiser, message in ((several, "one noise level"), (labelled, "without labels"), (plain, "MLP has no energy")):
        with pytest.raises(ValueError, match=message):
            ContrastiveLoss(1)(denoiser, torch.zeros(2, 2, dtype=torch.float64))
    with pytest.raises(ValueError, match="ContrastiveLoss: replay_size=0 must be at least 1"):
        ContrastiveLoss(replay_size=0)


@pytest.mark.parametrize("name", ["contrastive", "score_matching"])
def test_the_experiments_of_energies_of_digits_run(name, tmp_path):
    done = run(
        "train.py", f"experiment=energy/{name}", "debug=fast", "trainer.accelerator=cpu", "logger=csv", "metric=none",
        f"hydra.run.dir={tmp_path}", "sampler.corrector.steps=2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    contents = torch.load(next((tmp_path / "checkpoints").glob("*.ckpt")), weights_only=True)
    assert contents["config"]["optimizer"]["betas"] == ([0.0, 0.999] if name == "contrastive" else [0.9, 0.999])
    assert ("replay" in contents.get("loss", {})) == (name == "contrastive")
