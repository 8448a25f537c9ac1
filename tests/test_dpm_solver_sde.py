"""SDE-DPM-Solver++ against DDIM with eta = 1, integrals in closed form, and the exact variance of Gaussian data."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import pytest
import torch

from diffusion_lab.process import VE, VP, DiscreteProcess, Geometric, Linear, SubVP
from diffusion_lab.sampler import DDIM, DPMSolver
from diffusion_lab.sampler.record import Form
from diffusion_lab.sampler.scalar_process import ScalarProcess
from diffusion_lab.sampler.step import Prediction, coefficients


class Weights(NamedTuple):
    """A step x_s = a x_t + sum_k b[k] x0_k + c z, the latest x0 first."""

    a: float
    b: list[float]
    c: float


def weights(step, process, times):
    """Those of the steps along `times`, each run on linear forms."""
    p, past, found = ScalarProcess(process, times), [], []
    for number, (t, s) in enumerate(pairwise(p.times)):

        def denoise(x, t, number=number):
            return Prediction(t, x, Form({number: 1.0}), coefficients(*p.alpha_sigma(t), None))

        terms = step(p, Form({"x": 1.0}), t, s, denoise, lambda std: Form({"z": std}) if std else 0.0, past).terms
        past = [denoise(Form({"x": 1.0}), t), *past]
        found.append(Weights(terms["x"], [terms[k] for k in range(number, -1, -1) if k in terms], terms.get("z", 0.0)))
    return found


PROCESSES = [DiscreteProcess(Linear(), 1000), VP(Linear()), SubVP(Linear()), VE(Geometric(0.01, 20.0))]
MEAN, STD = 0.3, 0.5  # of the data


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_a_constant_prediction_gives_the_exact_transition(process, order):
    """Then x_s given x_t is q(x_s | x_t, x_0), which DDIM draws from at eta = 1, whatever the order."""
    times = process.timesteps(8, "log_snr")
    for i, (found, exact) in enumerate(
        zip(weights(DPMSolver(order, stochastic=True), process, times), weights(DDIM(1.0), process, times), strict=True)
    ):
        assert len(found.b) == min(order, i + 1)
        assert (found.a, sum(found.b), found.c) == pytest.approx((exact.a, exact.b[0], exact.c), rel=1e-9)


def test_order_three_is_exact_for_predictions_linear_in_lambda():
    """The mean is (sigma_s / sigma_t) e^-h x_t + 2 alpha_s int e^(-2 (lambda_s - lambda)) x0_hat(lambda) dlambda."""
    process = VP(Linear())
    times = process.timesteps(7, "karras")
    lam = (process.log_snr(times) / 2).tolist()
    for i, move in enumerate(weights(DPMSolver(3, stochastic=True), process, times)):
        h, alpha_s = lam[i + 1] - lam[i], process.alpha(times[i + 1]).item()
        integral = h - (1 - math.exp(-2 * h)) / 2  # of 2 e^(-2 (h - u)) u over u in [0, h]
        found = sum(b * (lam[i - k] - lam[i]) for k, b in enumerate(move.b))
        assert (found == pytest.approx(alpha_s * integral, rel=1e-9)) == (i >= 2)  # a third guess makes the order


def test_order_two_weighs_predictions_as_published():
    process = VP(Linear())
    times = process.timesteps(6, "karras")
    lam = (process.log_snr(times) / 2).tolist()
    for i, move in enumerate(weights(DPMSolver(2, stochastic=True), process, times)):
        h, alpha_s = lam[i + 1] - lam[i], process.alpha(times[i + 1]).item()
        slope = (1 - math.exp(-2 * h)) * h / (lam[i] - lam[i - 1]) / 2 if i else 0.0
        assert move.b[1:] == pytest.approx([-alpha_s * slope] * (i > 0), rel=1e-9)


def error(predictor: DPMSolver, steps: int) -> float:
    """How far the standard deviation is from that of Gaussian data, by exact guesses, at the last time."""
    process = VP(Linear())
    times = process.timesteps(steps, "log_snr")
    x, past = torch.zeros(steps + 1).double(), []  # the mean, then a column for each independent noise
    x[1] = process.prior_std
    for i, (t, move) in enumerate(zip(times, weights(predictor, process, times))):
        alpha, sigma = process.alpha(t), process.sigma(t)
        gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
        x0 = gain * x
        x0[0] += MEAN * (1 - gain * alpha)
        past = [x0, *past][: len(move.b)]
        x = move.a * x + sum(b * guess for b, guess in zip(move.b, past))
        x[i + 2] += move.c
    alpha, sigma = process.alpha(times[-1]), process.sigma(times[-1])
    assert x[0].item() == pytest.approx((alpha * MEAN).item(), abs=1e-5)
    return abs(x[1:].norm() - (alpha**2 * STD**2 + sigma**2).sqrt()).item()


def test_order_of_convergence_on_gaussian_data():
    first, second = ([error(DPMSolver(order, stochastic=True), n) for n in (80, 160)] for order in (1, 2))
    assert first[0] / first[1] == pytest.approx(2, rel=0.1)
    assert second[0] / second[1] == pytest.approx(4, rel=0.1)
    assert second[1] < first[1] / 20
