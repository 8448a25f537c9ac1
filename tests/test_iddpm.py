"""IDDPM's losses, bound and sampling with learned variances against the authors' program and closed forms."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from reference.record_iddpm import LEVELS, LOSSES, SCHEDULES, network

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.guidance import Guided
from diffusion_lab.likelihood import VariationalBound, decoder_nll, step_kl
from diffusion_lab.loss import DenoisingLoss, HybridLoss, LossSecondMoment
from diffusion_lab.parameterization import Parameterization
from diffusion_lab.process import VP, Cosine, DiscreteProcess, Linear
from diffusion_lab.sampler import DDIM, EDM, Ancestral, Sampler

RECORD = {
    name: torch.from_numpy(value) for name, value in np.load(Path(__file__).parent / "reference/iddpm.npz").items()
}
X0, NOISE = RECORD["x0"].double(), RECORD["noise"].double()


def denoiser_of(schedule, levels, learned_range=True, net=network):
    made = {"linear": Linear, "cosine": Cosine}[schedule]()
    row = Parameterization("eps", "level", learned_range=learned_range)
    return Denoiser(lambda x, t: net(x, t)[:, : None if learned_range else 3], DiscreteProcess(made, levels), row)


SETTINGS = {  # of HybridLoss; the program's KL is one random term of the bound, without the factor T
    "MSE": lambda levels: {"vlb_weight": 1 / levels},
    "RESCALED_MSE": lambda levels: {"vlb_weight": 0.001},
    "KL": lambda levels: {"simple_weight": 0, "vlb_weight": 1 / levels, "detach_mean": False},
    "RESCALED_KL": lambda levels: {"simple_weight": 0, "vlb_weight": 1, "detach_mean": False},
}


def approximate_mass(x, mean, std, low, high, grey_levels):
    """log of the probability of x's bin, with the program's approximation of the normal distribution function."""

    def distribution(z):
        return (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))) / 2

    half = (high - low) / (grey_levels - 1) / 2
    below, above = (distribution((x + shift - mean) / std) for shift in (-half, half))
    below, above = torch.where(x < low + half, 0.0, below), torch.where(x > high - half, 1.0, above)
    return (above - below).clamp(min=1e-12).log()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_training_losses_are_the_official_ones(schedule, levels, loss, monkeypatch):
    """To 2e-5, and the rounding of the program's float32: KL is the small difference of numbers of about 10."""
    denoiser, settings = denoiser_of(schedule, levels), SETTINGS[loss](levels)
    rounding = 2e-6 * settings["vlb_weight"] * levels
    t = (torch.tensor([0, 1, levels // 3, levels - 2, levels - 1]) + 1).float() / levels
    exact, wanted = HybridLoss(**settings).at(denoiser, X0, t, NOISE).float(), RECORD[f"{schedule}_{levels}_{loss}"]
    torch.testing.assert_close(exact[1:], wanted[1:], rtol=2e-5, atol=rounding)
    torch.testing.assert_close(exact[:1], wanted[:1], rtol=1e-3, atol=1e-7)
    monkeypatch.setattr("diffusion_lab.likelihood.terms.log_mass_of_level", approximate_mass)
    approximate = HybridLoss(**settings).at(denoiser, X0, t, NOISE).float()
    torch.testing.assert_close(approximate, wanted, rtol=2e-5, atol=rounding)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_term_of_the_bound_is_the_official_one(schedule):
    denoiser, bound, bits = denoiser_of(schedule, 50), VariationalBound("learned_range"), math.log(2) * X0[0].numel()
    process = denoiser.process
    for level in range(1, 51):
        t, eps = torch.full((5,), level / 50, dtype=torch.float64), RECORD[f"{schedule}_noises"][level - 1].double()
        mean, fraction = bound.predict(denoiser, process, X0, t, eps)
        if level == 1:
            nats = decoder_nll(process, X0, mean, "learned_range", fraction, (-1.0, 1.0), 256)
        else:
            nats = step_kl(process, t, X0, mean, "learned_range", fraction)
        torch.testing.assert_close((nats / bits).float(), RECORD[f"{schedule}_terms"][level - 1], **close(level))
    torch.testing.assert_close(
        (bound.prior(process, X0) / bits).float(), RECORD[f"{schedule}_prior"], rtol=2e-5, atol=1e-7
    )


def close(level):
    """Tolerances: at the first level the program approximates the normal distribution function by a tanh."""
    return {"rtol": 2e-5, "atol": 2e-6} if level > 1 else {"rtol": 1e-2, "atol": 1e-3}


def constant(value):
    """A network whose learned variance is at one end: -1 for fixed_small, 1 for fixed_large."""
    return lambda x, t: torch.cat([torch.tanh(x), torch.full_like(x, value)], dim=1)


@pytest.mark.parametrize(("value", "variance"), [(-1.0, "fixed_small"), (1.0, "fixed_large")])
class TestEnds:
    def test_the_step_has_the_law_of_the_fixed_variance(self, value, variance):
        learned, fixed = (
            denoiser_of("cosine", 100, net=constant(value)),
            denoiser_of("cosine", 100, False, constant(value)),
        )
        shape, seed = (4, 3, 4, 4), lambda: torch.Generator().manual_seed(0)
        for clip in (False, True):
            one = Sampler(Ancestral("learned_range"), steps=20, clip=clip, precision="float64")(learned, shape, seed())
            two = Sampler(Ancestral(variance), steps=20, clip=clip, precision="float64")(fixed, shape, seed())
            torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)

    def test_the_bound_but_for_the_decoder_is_that_of_the_fixed_variance(self, value, variance):
        learned, fixed = (
            denoiser_of("linear", 50, net=constant(value)),
            denoiser_of("linear", 50, False, constant(value)),
        )
        one = VariationalBound("learned_range")(learned, X0, 256, torch.Generator().manual_seed(0))
        two = VariationalBound(variance)(fixed, X0, 256, torch.Generator().manual_seed(0))
        torch.testing.assert_close(one.steps, two.steps, rtol=1e-9, atol=0)
        if value == -1:
            torch.testing.assert_close(one.decoder, two.decoder, rtol=1e-9, atol=0)


def test_the_bound_term_trains_the_variance_only_and_the_mean_by_l_simple_alone():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.mean, self.v = torch.nn.Parameter(torch.rand(1)), torch.nn.Parameter(torch.rand(1))

        def forward(self, x, t):
            return torch.cat([self.mean * x, self.v + 0 * x], dim=1)

    def gradients(loss):
        net = Net()
        torch.nn.init.constant_(net.mean, 0.3)
        denoiser = Denoiser(net, DiscreteProcess(Linear(), 50), Parameterization("eps", "level", learned_range=True))
        loss.at(denoiser, X0.float(), torch.tensor([0.02, 0.04, 0.5, 0.9, 1.0]), NOISE.float()).mean().backward()
        return net.mean.grad, net.v.grad

    mean, v = gradients(HybridLoss(simple_weight=0, vlb_weight=1))
    assert mean is None or mean.abs() == 0
    assert v.abs() > 0
    simple = gradients(HybridLoss(simple_weight=1, vlb_weight=0))[0]
    torch.testing.assert_close(gradients(HybridLoss(simple_weight=1, vlb_weight=1))[0], simple)
    assert gradients(HybridLoss(simple_weight=0, vlb_weight=1, detach_mean=False))[0].abs() > 0


def test_respacing_to_all_levels_is_the_identity_and_the_network_sees_original_levels():
    denoiser, shape = denoiser_of("cosine", 40), (2, 3, 4, 4)
    seen = []

    def spy(x, t):
        seen.append(t[0].item())
        return network(x, t)

    every = [
        Sampler(Ancestral("learned_range"), steps=steps, precision="float64")(
            denoiser, shape, torch.Generator().manual_seed(0)
        )
        for steps in (None, 40)
    ]
    assert every[0].equal(every[1])
    denoiser.network = spy
    Sampler(Ancestral("learned_range"), steps=10)(denoiser, shape, torch.Generator().manual_seed(0))
    assert seen == [36.0, 32.0, 28.0, 24.0, 20.0, 16.0, 12.0, 8.0, 4.0, 0.0]


def test_other_samplers_losses_and_guidance_take_the_mean_alone():
    learned, fixed = denoiser_of("cosine", 100), denoiser_of("cosine", 100, False)
    for sampler in (Sampler(DDIM(), steps=10), Sampler(EDM(), steps=8, clip=True), Sampler(Ancestral(), steps=10)):
        one, two = (sampler(d, (2, 3, 4, 4), torch.Generator().manual_seed(0)) for d in (learned, fixed))
        assert one.equal(two)
    t = torch.rand(5)
    torch.testing.assert_close(DenoisingLoss().at(learned, X0, t, NOISE), DenoisingLoss().at(fixed, X0, t, NOISE))
    guided = Guided(learned, denoiser_of("cosine", 100, net=constant(0.5)), 1.7)
    assert guided(X0, torch.tensor(0.5)).fraction.equal(learned(X0, torch.tensor(0.5)).fraction)
    samples = Sampler(Ancestral("learned_range"), steps=5)(guided, (2, 3, 4, 4), torch.Generator().manual_seed(0))
    assert samples.shape == (2, 3, 4, 4)


def test_a_learned_range_needs_a_network_that_learns_it():
    plain = denoiser_of("linear", 50, False)
    with pytest.raises(ValueError, match="variance=learned_range needs a network"):
        Sampler(Ancestral("learned_range"), steps=5).check(plain)
    for call in (lambda: HybridLoss()(plain, X0), lambda: VariationalBound("learned_range")(plain, X0, 256)):
        with pytest.raises(ValueError, match="variance=learned_range needs a network"):
            call()
    with pytest.raises(ValueError, match="known to the network only: use loss=hybrid"):
        DenoisingLoss(vlb_weight=1.0, variance="learned_range")(denoiser_of("linear", 50), X0)
    continuous = Denoiser(network, VP(Linear()), Parameterization("eps", "time_999", learned_range=True))
    with pytest.raises(ValueError, match="discrete noise levels"):
        HybridLoss()(continuous, X0)


class TestLossSecondMoment:
    process = DiscreteProcess(Linear(), 4)

    def filled(self):
        law = LossSecondMoment(4, history=2)
        for loss in (3.0, 1.0, 2.0):  # the first is forgotten
            law.update(self.process, torch.tensor([0.25, 0.5, 0.75, 1.0]), loss * torch.tensor([1.0, 2.0, 3.0, 4.0]))
        return law

    def test_probabilities_are_the_root_mean_squares_of_the_last_losses(self):
        law = LossSecondMoment(4, history=2)
        assert law.probabilities().tolist() == [0.25] * 4
        p = self.filled().probabilities()
        torch.testing.assert_close(p, 0.999 * torch.tensor([0.1, 0.2, 0.3, 0.4]).double() + 0.00025)

    def test_weights_keep_the_mean_under_uniform_times(self):
        t, weight = self.filled().sample(self.process, 200_000, torch.device("cpu"), None)
        assert (weight * t).mean().item() == pytest.approx(0.625, abs=0.005)
        assert (t == 1).float().mean().item() == pytest.approx(0.4, abs=0.005)

    def test_the_history_is_part_of_a_checkpoint_and_validation_does_not_touch_it(self):
        loss = HybridLoss(time_law=self.filled())
        again = HybridLoss(time_law=LossSecondMoment(4, history=2))
        again.load_state_dict(loss.state_dict())
        assert again.time_law.probabilities().equal(loss.time_law.probabilities())
        denoiser = denoiser_of("linear", 4)
        loss(denoiser, X0, torch.Generator().manual_seed(0))
        assert again.time_law.probabilities().equal(loss.time_law.probabilities())
        loss(denoiser, X0)
        assert not again.time_law.probabilities().equal(loss.time_law.probabilities())

    def test_another_number_of_levels_is_named(self):
        with pytest.raises(ValueError, match="history of losses is of 4 levels, and the process has 1000"):
            self.filled().sample(DiscreteProcess(Linear(), 1000), 2, torch.device("cpu"), None)
