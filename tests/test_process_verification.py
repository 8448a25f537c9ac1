"""`diffusion-lab verify` passes every schedule and process that is shipped, and fails wrong ones."""

from __future__ import annotations

import pytest
import torch
from test_process import DISCRETE, PATHS, SDES
from test_sampler_verification import failures

from diffusion_lab.config.compose import composed, options, plain
from diffusion_lab.config.instantiate import instantiate
from diffusion_lab.process import VP, Cosine, DiscreteProcess, Geometric, Linear, Rectified, Sigmoid, SingleLevel, SubVP
from diffusion_lab.verification import check_process, check_schedule


def name(one):
    """The name of a class or a check in the name of a test."""
    return one if isinstance(one, str) else type(one).__name__


SHIPPED = [*(f"schedule={one}" for one in options("schedule")), *(f"sde={one}" for one in options("sde"))]


@pytest.mark.parametrize("part", SHIPPED)
def test_every_schedule_and_process_passes(part):
    settings = plain(composed("train", [part]))
    if part.startswith("schedule"):
        assert failures(check_schedule(instantiate(settings["schedule"], "schedule"))) == []
    else:
        assert failures(check_process(instantiate(settings["sde"]["process"], "sde.process"))) == []


@pytest.mark.parametrize("schedule", [Sigmoid(tau=0.3), Linear(0.05, 12.0), Cosine(0.1, 50.0)], ids=name)
def test_other_settings_of_a_schedule_pass(schedule):
    assert failures(check_schedule(schedule)) == []


OTHERS = [*(build() for build in SDES.values()), VP(Cosine()), SubVP(Sigmoid()), *DISCRETE, SingleLevel(0.3), *PATHS]


@pytest.mark.parametrize("process", OTHERS, ids=name)
def test_other_processes_pass(process):
    assert failures(check_process(process)) == []


class WrongSlope(Linear):
    def free_beta(self, t):
        return super().free_beta(t) / 2


class NoRoot(Cosine):
    def sigma(self, t):
        return -torch.expm1(self.log_abar(t))


class OneLevelTooFew(Linear):
    def betas(self, levels):
        return super().betas(levels)[1:]


class NotNearNoise(Rectified):
    def alpha(self, t):
        return 1 - t / 2


class Falling(Geometric):
    def sigma(self, t):
        return super().sigma(1 - t)


class WrongFamily(Rectified):
    def alpha_of(self, ratio):
        return (1 + ratio).rsqrt()


@pytest.mark.parametrize(
    "schedule, check",
    [
        (WrongSlope(), "beta / autograd"),
        (NoRoot(), "alpha^2 + sigma^2"),
        (OneLevelTooFew(), "levels"),
        (NotNearNoise(), "sigma / alpha at t = 1"),
        (Falling(), "rise of the log-SNR"),
        (WrongFamily(), "alpha_of"),
    ],
    ids=name,
)
def test_wrong_schedules_fail(schedule, check):
    assert any(check in one for one in failures(check_schedule(schedule)))


class HalfTheNoise(VP):
    def g(self, t):
        return super().g(t) / 2


class DriftOfTheWrongSign(VP):
    def f(self, t):
        return -super().f(t)


class WrongPrior(VP):
    prior_std = 2.0


class ForgetsTheScale(VP):
    def transition(self, s, t):
        return self.alpha(t) / self.alpha(s), self.sigma(t) ** 2 - self.sigma(s) ** 2


class VarianceOfTheNextLevel(DiscreteProcess):
    def reverse_variance(self, s, t, variance):
        return super().reverse_variance(t, t + 1 / self.levels, variance)


@pytest.mark.parametrize(
    "process, check",
    [
        (HalfTheNoise(Linear()), "deviation of simulated paths"),
        (HalfTheNoise(Linear()), "g^2"),
        (DriftOfTheWrongSign(Linear()), "mean of simulated paths"),
        (WrongPrior(Linear()), "prior"),
        (ForgetsTheScale(Linear()), "variance"),
        (VarianceOfTheNextLevel(Linear(), 100), "posterior variance"),
    ],
    ids=name,
)
def test_wrong_processes_fail(process, check):
    assert any(check in one for one in failures(check_process(process)))
