"""`diffusion-lab verify` passes every loss that is shipped, and fails wrong ones."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from test_sampler_verification import failures

from diffusion_lab.config.compose import composed, options, plain
from diffusion_lab.config.instantiate import instantiate
from diffusion_lab.loss import DenoisingLoss, HybridLoss, ImplicitScoreMatching, Importance, LogNormal, OneTimeLoss
from diffusion_lab.noise import draw, draw_each
from diffusion_lab.process import VP, Linear
from diffusion_lab.verification import check_loss
from diffusion_lab.verification.problem import ONE


@pytest.mark.parametrize("name", options("loss"))
def test_every_loss_passes(name):
    node = plain(composed("train", [f"loss={name}", "data=toy2d", "++loss.teacher.ckpt_path=run"]))["loss"]
    if "_target_" not in node["teacher"]:
        del node["teacher"]
    assert failures(check_loss(instantiate(node, "loss"))) == []


@pytest.mark.parametrize(
    "loss",
    [
        DenoisingLoss("min_snr", time_law=LogNormal()),
        DenoisingLoss("likelihood", time_law=Importance()),
        DenoisingLoss(simple_weight=0.0, vlb_weight=1.0),
        HybridLoss(),
        HybridLoss(0.0, 1.0, detach_mean=False),
    ],
)
def test_other_settings_pass(loss):
    assert failures(check_loss(loss)) == []


class WrongTarget(OneTimeLoss):
    def at(self, denoiser, x0, t, eps):
        x = denoiser.process.perturb(x0, t, eps)
        return (denoiser(x, t).eps - x0).square().flatten(1).mean(1)


class WrongVelocity(OneTimeLoss):
    """v + alpha eps - sigma x_0: a sign is wrong."""

    def at(self, denoiser, x0, t, eps):
        alpha, sigma = denoiser.process.marginal(t, x0)
        estimate = denoiser(alpha * x0 + sigma * eps, t)
        return (estimate.v + (alpha * eps - sigma * x0)).square().flatten(1).mean(1)


class NoTrace(ImplicitScoreMatching):
    """Without the term that keeps the score from vanishing."""

    def at(self, denoiser, x0, t, eps):
        score = denoiser(denoiser.process.perturb(x0, t, eps), t).score
        return 0.5 * score.square().flatten(1).sum(1)


class OneTimeForAll:
    def __call__(self, denoiser, x0, generator=None):
        t = draw_each(denoiser.process.sample_times, len(x0), x0.device, generator)[:1].expand(len(x0))
        eps = draw(x0.shape, generator, x0.dtype, x0.device)
        return (denoiser(denoiser.process.perturb(x0, t, eps), t).eps - eps).square().flatten(1).mean(1)


class OfTheBatch(OneTimeLoss):
    def at(self, denoiser, x0, t, eps):
        squared = (denoiser(denoiser.process.perturb(x0, t, eps), t).eps - eps).square().flatten(1).mean(1)
        return squared / squared.mean()


class InfiniteGradient(OneTimeLoss):
    def at(self, denoiser, x0, t, eps):
        estimate = denoiser(denoiser.process.perturb(x0, t, eps), t)
        return (estimate.eps - eps).square().flatten(1).sum(1) + (estimate.eps - estimate.eps.detach()).norm(
            dim=1
        ).sqrt()


class IgnoresTheNetwork(OneTimeLoss):
    def at(self, denoiser, x0, t, eps):
        return eps.square().flatten(1).mean(1) + 0 * denoiser(denoiser.process.perturb(x0, t, eps), t).eps.sum(1)


class VarianceOfTwice(HybridLoss):
    """The learned variance is compared with twice the data."""

    def at(self, denoiser, x0, t, eps):
        return super().at(denoiser, 2 * x0, t, eps)


@pytest.mark.parametrize(
    "loss, check",
    [
        (WrongTarget(), "gradient at the optimum"),
        (WrongVelocity(), "gradient at the optimum"),
        (NoTrace(), "gradient at the optimum"),
        (VarianceOfTwice(), "gradient at the optimum"),
        (OneTimeForAll(), "own time"),
        (OfTheBatch(), "an item alone"),
        (InfiniteGradient(), "not finite"),
        (IgnoresTheNetwork(), "largest gradient away"),
    ],
    ids=lambda one: one if isinstance(one, str) else type(one).__name__,
)
def test_wrong_losses_fail(loss, check):
    assert any(check in one for one in failures(check_loss(loss)))


def test_the_loss_of_the_guide_passes():
    """The mean absolute error has its minimum at the median, which for Gaussian data is the mean."""
    guide = (Path(__file__).parents[1] / "docs/guide/own_parts.md").read_text()
    names: dict[str, type] = {}
    exec(re.search(r"```python\n(from diffusion_lab.noise.*?)```", guide, re.DOTALL)[1], names)
    assert failures(check_loss(names["AbsoluteError"]())) == []


def test_a_loss_that_suits_no_process_is_refused():
    class Refuses(OneTimeLoss):
        def at(self, denoiser, x0, t, eps):
            raise ValueError("this loss needs three levels")

    with pytest.raises(ValueError, match="needs three levels"):
        list(check_loss(Refuses()))


def test_exact_networks_are_the_ones_that_are_asked_at_their_own_times():
    """A Gaussian's denoiser takes one time for each item."""
    process = VP(Linear())
    x, t = torch.randn(5, 2, dtype=torch.float64), torch.arange(1, 6, dtype=torch.float64) / 6
    whole = ONE.denoiser(process)(x, t).eps
    alone = torch.cat([ONE.denoiser(process)(x[k : k + 1], t[k]).eps for k in range(5)])
    torch.testing.assert_close(whole, alone)
