"""Solvers against what is known of them: order of convergence, evaluations, the law that a stochastic one draws from."""

from __future__ import annotations

import math

import pytest
import torch
from test_sampler import exact_flow, gaussian, straight_denoiser

from diffusion_lab.process import VE, VP, Cosine, DiscreteProcess, Geometric, Linear, SubVP
from diffusion_lab.sampler import (
    DDIM,
    EDM,
    PNDM,
    AdamsBashforth,
    DPMpp2SAncestral,
    DPMppSDE,
    DPMSolver,
    DPMSolver2S,
    DPMSolverSingle,
    EulerAncestral,
    Restart,
    RungeKutta,
    Sampler,
    UniPC,
)  # fmt: skip
from diffusion_lab.sampler.scalar_process import ScalarProcess
from diffusion_lab.verification import GaussianLaw, mixture

PROCESSES = {
    "vp": VP(Linear()), "subvp": SubVP(Linear()), "ve": VE(Geometric(0.01, 20.0)), "ddpm": DiscreteProcess(Linear()),
}  # fmt: skip

ORDERS = {
    "pndm": (PNDM(), (1.5, 2.4)),  # its weights, of order 4, are those for even steps in n
    "lms 1": (AdamsBashforth(1), (0.9, 1.15)),
    "lms 2": (AdamsBashforth(2), (1.8, 2.3)),
    "lms 3": (AdamsBashforth(3), (2.6, 3.4)),
    "lms 4": (AdamsBashforth(4), (3.4, 4.6)),
    "deis t 1": (AdamsBashforth(1, "t"), (0.9, 1.15)),
    "deis t 2": (AdamsBashforth(2, "t"), (1.8, 2.3)),
    "deis t 3": (AdamsBashforth(3, "t"), (2.6, 3.7)),
    "deis log 2": (AdamsBashforth(2, "log_sigma"), (1.8, 2.3)),
    "deis log 3": (AdamsBashforth(3, "log_sigma"), (2.7, 3.7)),
    "dpm-solver-1": (DPMSolverSingle(1), (0.9, 1.15)),
    "dpm-solver-2": (DPMSolverSingle(2), (1.85, 2.2)),
    "dpm-solver-3": (DPMSolverSingle(3), (2.8, 3.3)),
    "2s": (DPMSolver2S(), (1.85, 2.2)),
    "2s at 0.8": (DPMSolver2S(0.8), (1.8, 2.3)),
    "2s, eta 0": (DPMpp2SAncestral(0.0), (1.85, 2.2)),
    "sde, eta 0": (DPMppSDE(0.0), (1.85, 2.2)),
    "dpm 2m of eps": (DPMSolver(2, predicts="eps"), (1.8, 2.3)),
    "midpoint": (RungeKutta("midpoint"), (2.8, 3.2)),  # y''' + 3 f_y y'', its error, is 0 for Gaussian data
    "heun": (RungeKutta("heun"), (1.85, 2.2)),
    "rk4": (RungeKutta("rk4"), (3.7, 4.4)),
    "midpoint t": (RungeKutta("midpoint", "t"), (1.8, 2.3)),
    "heun t": (RungeKutta("heun", "t"), (1.8, 2.3)),
    "rk4 t": (RungeKutta("rk4", "t"), (3.4, 4.6)),
    "restart without": (Restart(repeats=0), (1.85, 2.2)),
}


@pytest.mark.parametrize("process", ["vp", "subvp", "ve"])
@pytest.mark.parametrize("name", ORDERS)
def test_order_of_convergence(name, process):
    """log(error ratio) / log(step ratio) when the steps are halved, on a part of the way: on the whole of it errors cancel for Gaussian data."""
    (step, (low, high)), process = ORDERS[name], PROCESSES[process]
    denoiser, target, errors = straight_denoiser(process), mixture.diag64(), []
    x = process.prior_std * torch.randn(4, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for count in (30, 60):
        sampler = Sampler(step, None, count + 1, "log_snr", denoise=False, precision="float64", t_end=0.3)
        times = sampler.timesteps(denoiser)
        want = exact_flow(target, process, x, times[0], times[-1])
        errors.append((sampler.as_written(denoiser, x) - want).square().mean().sqrt().item())
    assert low < math.log2(errors[0] / errors[1]) < high


@pytest.mark.parametrize("schedule", [Linear, Cosine])
@pytest.mark.parametrize("variable", ["sigma", "t", "log_sigma"])
def test_adams_bashforth_integrates_its_polynomials_exactly(variable, schedule):
    """Weights times u^k are int u^k dn, on discrete levels too; order 1 is the length of the step in n."""
    p = ScalarProcess(DiscreteProcess(schedule()), [0.9, 0.8, 0.6, 0.5, 0.3])
    value = {"sigma": p.noise_to_signal, "t": lambda t: t, "log_sigma": lambda t: -p.lambda_(t)}[variable]
    t, s, nodes = 0.5, 0.3, [0.5, 0.6, 0.8]
    n = torch.linspace(p.noise_to_signal(t), p.noise_to_signal(s), 2_001, dtype=torch.float64)
    u = {"sigma": n, "t": p.process.time(-2 * n.log()), "log_sigma": n.log()}[variable]
    for order in (1, 2, 3):
        weights = AdamsBashforth(order, variable).weights(p, t, s, nodes[:order])
        for power in range(order):
            got = sum(weight * value(node) ** power for weight, node in zip(weights, nodes[:order], strict=True))
            assert got == pytest.approx(torch.trapezoid(u**power, n).item(), rel=1e-6)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_solvers_of_order_one_and_ancestral_euler_are_ddim(process):
    denoiser = straight_denoiser(process)
    x = process.prior_std * torch.randn(2, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def end(step):
        return Sampler(step, None, 7, "karras", precision="float64").as_written(
            denoiser, x, torch.Generator().manual_seed(1)
        )

    ones = [AdamsBashforth(1, variable) for variable in ("sigma", "t", "log_sigma")]
    for step in (*ones, DPMSolverSingle(1), DPMSolver(1, predicts="eps"), EulerAncestral(0.0), EDM(1)):
        assert (end(step) - end(DDIM())).abs().max() < 1e-9, step
    for eta in (0.3, 1.0):
        assert (end(EulerAncestral(eta)) - end(DDIM(eta))).abs().max() < 1e-9


NFE = [
    (PNDM(), 9, 10), (AdamsBashforth(4), 9, 9), (AdamsBashforth(3, "t"), 9, 9), (DPMSolverSingle(1), 9, 9),
    (DPMSolverSingle(2), 9, 17), (DPMSolverSingle(3), 9, 25), (DPMSolver2S(), 9, 17), (DPMpp2SAncestral(), 9, 17),
    (DPMpp2SAncestral(2.0), 9, 9), (DPMppSDE(), 9, 17), (EulerAncestral(), 9, 9), (RungeKutta("midpoint"), 9, 17),
    (RungeKutta("rk4"), 9, 33), (RungeKutta("heun", "t"), 9, 17), (DPMSolver(3, predicts="eps"), 9, 9),
    (UniPC(3, lower_order_final=True), 9, 9), (Restart(0.05, 0.5, 4, 3), 9, 17 + 3 * 3 * 2), (Restart(repeats=0), 9, 17),
]  # fmt: skip


@pytest.mark.parametrize("step, steps, nfe", NFE)
def test_evaluations_are_counted(step, steps, nfe):
    denoiser = straight_denoiser(PROCESSES["ve"])
    sampler, x = Sampler(step, None, steps, "karras"), torch.zeros(1, 1, 8, 8)
    for run in (lambda: list(sampler.trajectory(denoiser, x)), lambda: sampler.as_written(denoiser, x)):
        denoiser.nfe = 0
        run()
        assert denoiser.nfe == nfe


STOCHASTIC = {
    "euler ancestral": EulerAncestral(), "euler ancestral 0.5": EulerAncestral(0.5),
    "2s ancestral": DPMpp2SAncestral(), "2s ancestral 0.5": DPMpp2SAncestral(0.5), "sde": DPMppSDE(),
    "sde 0.3": DPMppSDE(0.5, r=0.3), "2m sde": DPMSolver(2, stochastic=True), "3m sde": DPMSolver(3, stochastic=True),
    "restart": Restart(0.1, 1.0, 10, 3), "churn": EDM(2, churn=10.0),
}  # fmt: skip


@pytest.mark.parametrize("process", ["vp", "subvp", "ve"])
@pytest.mark.parametrize("name", STOCHASTIC)
def test_many_steps_give_the_data_law(process, name):
    """Exact mean and covariance, without Monte Carlo, from the law of the data itself at the first time."""
    slack = 0.15 if isinstance(STOCHASTIC[name], EulerAncestral) else 0.02  # of order 1
    target, process = mixture.gauss64(), PROCESSES[process]
    sampler = Sampler(STOCHASTIC[name], None, 100, "log_snr")
    denoiser = straight_denoiser(process)
    law = GaussianLaw(gaussian(target), denoiser, sampler.timesteps(denoiser), 400)
    *_, (_, x) = sampler.follow(law, law.begin())
    assert (x[0] - law.data.mean).abs().max() < 0.01
    assert ((x[1:] ** 2).sum(0) / law.data.variance - 1).abs().max() < slack


@pytest.mark.parametrize("name", STOCHASTIC)
def test_samples_have_the_exact_law_of_their_sampler(name):
    """Few steps: mean and variance of what is drawn are those that the recorded noise says, pixel by pixel."""
    target, process = mixture.diag64(), PROCESSES["ve"]
    denoiser, sampler, n = straight_denoiser(process), Sampler(STOCHASTIC[name], None, 8, "karras"), 2_000
    law = GaussianLaw(gaussian(target), denoiser, sampler.timesteps(denoiser), 400)
    *_, (_, x) = sampler.follow(law, law.noise(process.prior_std))
    mean, variance = target.eigenvectors[0] @ x[0], (target.eigenvectors[0] ** 2) @ (x[1:] ** 2).sum(0)
    drawn = sampler(denoiser, (n, 1, 8, 8), torch.Generator().manual_seed(0)).flatten(1).double()
    assert ((drawn.mean(0) - mean).abs() < 4.5 * (variance / n).sqrt()).all()
    assert (drawn.var(0) / variance - 1).abs().max() < 4.5 * (2 / n) ** 0.5
    assert (drawn.var(0) / variance).mean().item() == pytest.approx(1, abs=4.5 * (2 / n / 64) ** 0.5)
