"""Samplers against other people's programs: k-diffusion, torchdiffeq and diffusers, on an exact denoiser in float64.

reference/record_samplers.py has run their functions as they are.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from diffusion_lab.process import VE, VP, Cosine, DiscreteProcess, Geometric, Linear, SubVP
from diffusion_lab.sampler import (
    DDIM,
    EDM,
    PNDM,
    AdamsBashforth,
    Ancestral,
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
    multistep,
)  # fmt: skip
from diffusion_lab.verification import mixture
from diffusion_lab.verification.mixture import exact_denoiser


class At(Sampler):
    """A sampler at given times, in float64."""

    def __init__(self, predictor, times, **settings) -> None:
        super().__init__(predictor, precision="float64", **settings)
        self.times = torch.as_tensor(times, dtype=torch.float64)

    def caution(self, denoiser, times=None):
        """Other people's programs start from noise alone as well."""

    def timesteps(self, denoiser):
        return self.times


def read(name):
    """(samples by name, description)."""
    with np.load(Path(__file__).parent / "reference" / f"{name}.npz") as arrays:
        meta = json.loads(bytes(arrays["_meta"]).decode())
        return dict(zip(meta["names"], torch.as_tensor(arrays["samples"]), strict=True)), meta


K_DIFFUSION, K_META = read("k_diffusion")
DIFFUSERS, D_META = read("diffusers")
SHAPE, TARGET = (3, 2, 1, 1), mixture.gmm2d()


@pytest.fixture
def recorded_noise(monkeypatch):
    """Samplers draw the recorded noise, in order."""

    def replay(*_):
        noise = iter(torch.as_tensor(np.random.RandomState(92).randn(40, *SHAPE)))
        return lambda: next(noise)

    for module in ("loop", "plan"):
        monkeypatch.setattr(f"diffusion_lab.sampler.{module}.stream", replay)


def x_1():
    return torch.as_tensor(np.random.RandomState(91).randn(*SHAPE))


def ends(sampler, denoiser, x):
    """Where a sampler ends, recorded and as written."""
    *_, last = sampler.trajectory(denoiser, x)
    return last.x, sampler.as_written(denoiser, x)


def error(ours, theirs):
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


CHURN = {"churn": 2.0, "s_min": 0.05, "s_max": 15.0, "s_noise": 1.003}
TO_DATA = {
    "euler": EDM(1), "heun": EDM(2), "dpm_2": DPMSolverSingle(2), "euler.churn": EDM(1, **CHURN),
    "heun.churn": EDM(2, **CHURN), "dpmpp_2m": DPMSolver(2), "dpmpp_2m_sde": DPMSolver(2, stochastic=True),
    "dpmpp_3m_sde": DPMSolver(3, stochastic=True),
    **{f"euler_ancestral.{e}.{s}": EulerAncestral(e, s) for e, s in ((1.0, 1.0), (0.5, 1.0), (1.0, 1.01), (1.6, 1.0))},
    **{f"dpmpp_2s_ancestral.{e}.{s}": DPMpp2SAncestral(e, s) for e, s in ((1.0, 1.0), (0.5, 1.0), (1.0, 1.01), (1.6, 1.0))},
    **{f"dpmpp_sde.{e}.{r}": DPMppSDE(e, 1.01, r) for e, r in ((1.0, 0.5), (0.5, 0.5), (1.0, 0.3), (0.0, 0.5))},
}  # fmt: skip
TO_THE_LAST_TIME = {
    **{f"lms.{order}": AdamsBashforth(order) for order in (1, 2, 3, 4)},
    **{f"dpm_solver_{order}_step": DPMSolverSingle(order) for order in (1, 2, 3)},
    "torchdiffeq.midpoint": RungeKutta("midpoint"), "torchdiffeq.heun2": RungeKutta("heun"),
    "torchdiffeq.rk4": RungeKutta("rk4"),
}  # fmt: skip


@pytest.mark.parametrize(
    "process", [VE(Geometric(0.01, 20.0)), VP(Linear()), SubVP(Linear())], ids=["ve", "vp", "subvp"]
)
@pytest.mark.parametrize("name", K_DIFFUSION)
def test_k_diffusion_and_torchdiffeq(recorded_noise, monkeypatch, process, name):
    """They work in y = x / alpha on n = sigma / alpha, where all processes are one."""
    if name == "dpmpp_3m_sde":  # its second step is of another form of order 2 than that of dpmpp_2m_sde
        plain = multistep.dpm_weights

        def second(h, back):
            phi_2 = 1 + np.expm1(-h) / h
            return [phi_2 / -back[0] - np.expm1(-h), phi_2 / back[0]] if len(back) == 1 else plain(h, back)

        monkeypatch.setattr(multistep, "dpm_weights", second)
    n = torch.tensor(K_META["sigmas"], dtype=torch.float64)
    times = process.time(-2 * n.log())
    sampler = At({**TO_DATA, **TO_THE_LAST_TIME}[name], times, denoise=name in TO_DATA)
    x, last = 20 * process.alpha(times[0]) * x_1(), 1 if name in TO_DATA else process.alpha(times[-1])
    for end in ends(sampler, exact_denoiser(TARGET, process), x):
        assert error(end / last, K_DIFFUSION[name]) < 1e-9


def diffusers_case(key):
    """(step, whether it ends at x_0, whether at level 1) of a recorded name: schedule.spacing.name.settings."""
    _, spacing, name, *rest = key.split(".")
    setting, lower = ".".join(rest), {"lower_order_final": rest[-1:] == ["True"]}
    order = int(rest[0]) if rest and rest[0].isdecimal() else 1
    cases = {
        "ddpm": (Ancestral, setting, False, False),
        "pndm": (PNDM, None, False, True),
        "euler_ancestral": (EulerAncestral, None, True, False),
        "heun": (EDM, 2, True, False),
        "lms": (AdamsBashforth, order, False, False),
        "deis": (lambda order: AdamsBashforth(order, "log_sigma"), order, False, True),
        "unipc": (lambda order: UniPC(order, variant, **lower), order, True, False),
        "dpmpp": (lambda order: DPMSolver(order, **lower), order, True, False),
        "dpm": (lambda order: DPMSolver(order, predicts="eps", **lower), order, False, True),
        "sde_dpmpp": (lambda order: DPMSolver(order, stochastic=True), order, True, False),
        "lu_singlestep": (SINGLESTEP.get, setting, False, False),
        "ddim": (lambda eta: DDIM(float(eta)), setting, True, False),
    }
    variant = "bh1" if spacing == "trailing" and not lower["lower_order_final"] else "bh2"
    build, argument, to_data, to_level_1 = cases[name]
    return build() if argument is None else build(argument), to_data, to_level_1


SINGLESTEP = {
    "dpmsolver.1": DPMSolverSingle(1), "dpmsolver.2": DPMSolverSingle(2),
    "dpmsolver++.1": DPMSolver(1), "dpmsolver++.2": DPMSolver2S(),
}  # fmt: skip
PROCESSES = {"linear": DiscreteProcess(Linear(), 1000), "cosine": DiscreteProcess(Cosine(), 1000)}


@pytest.mark.parametrize("key", DIFFUSERS)
def test_diffusers(recorded_noise, key):
    process = PROCESSES[key.split(".")[0]]
    step, to_data, to_level_1 = diffusers_case(key)
    times = [level / 1000 for level in dict.fromkeys([*D_META["levels"][key], *([1] if to_level_1 else [])])]
    if "lu_" in key:
        times = process.timesteps(7 if key.endswith("2") else 13, "log_snr")
    sampler = At(step, times, denoise=to_data)
    for end in ends(sampler, exact_denoiser(TARGET, process), x_1()):
        assert error(end, DIFFUSERS[key]) < 1e-9


def restarted(y, grid, low, high, steps, repeats, s_noise, noise):
    """Xu et al. 2023, Algorithm 1, in sigma as it is published, for EDM's D(x; sigma); grid ends at 0."""
    slope = lambda y, n: (y - TARGET.denoise(y, 1.0, n)) / n  # noqa: E731

    def heun(y, n, n_next):
        d = slope(y, n)
        ahead = y + (n_next - n) * d
        return ahead if n_next == 0 else y + (n_next - n) * (d + slope(ahead, n_next)) / 2

    nearest = int(np.argmin(np.abs(np.array(grid) - low)))
    for i in range(len(grid) - 1):
        y = heun(y, grid[i], grid[i + 1])
        if i + 1 == nearest:
            a, b = high ** (1 / 7), grid[nearest] ** (1 / 7)
            again = [(a + j / (steps - 1) * (b - a)) ** 7 for j in range(steps)]
            for _ in range(repeats):
                y = y + s_noise * np.sqrt(again[0] ** 2 - again[-1] ** 2) * next(noise)
                for n, n_next in itertools.pairwise(again):
                    y = heun(y, n, n_next)
    return y


@pytest.mark.parametrize(
    "process", [VE(Geometric(0.01, 20.0)), VP(Linear()), SubVP(Linear())], ids=["ve", "vp", "subvp"]
)
@pytest.mark.parametrize(
    "low, high, steps, repeats, s_noise", [(0.06, 0.3, 6, 2, 1.003), (0.7, 3.0, 3, 1, 1.0), (0.02, 1.0, 4, 3, 1.0)]
)
def test_restart_is_the_published_algorithm(recorded_noise, process, low, high, steps, repeats, s_noise):
    n = torch.tensor(K_META["sigmas"], dtype=torch.float64)
    times = process.time(-2 * n.log())
    noise = iter(torch.as_tensor(np.random.RandomState(92).randn(40, *SHAPE)))
    ends_at = (process.sigma(times) / process.alpha(times)).tolist()
    want = restarted(20 * x_1(), [*ends_at, 0.0], low, high, steps, repeats, s_noise, noise)
    denoiser = exact_denoiser(TARGET, process)
    for end in ends(
        At(Restart(low, high, steps, repeats, s_noise), times), denoiser, 20 * process.alpha(times[0]) * x_1()
    ):
        assert error(end, want) < 1e-9
    assert denoiser.nfe == 2 * (2 * len(times) - 1 + repeats * 2 * (steps - 1))


def test_a_restart_that_would_not_go_back_is_refused():
    with pytest.raises(ValueError, match="use more sampler.steps, or a higher `high`"):
        Sampler(Restart(0.9, 1.0), steps=3, spacing="karras").check(exact_denoiser(TARGET, VE(Geometric(0.01, 20.0))))
