"""Samplers against official trajectories, exact Gaussian laws, and each other."""

from __future__ import annotations

import dataclasses
import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.noise import draw, image_generators
from diffusion_lab.parameterization import Parameterization
from diffusion_lab.process import (
    VE,
    VP,
    Cosine,
    DiscreteProcess,
    Geometric,
    Linear,
    ProbabilityPath,
    Rectified,
    SubVP,
)
from diffusion_lab.sampler import (
    DDIM,
    EDM,
    Ancestral,
    AnnealedLangevin,
    DPMSolver,
    EulerMaruyama,
    Langevin,
    ReverseDiffusion,
    Sampler,
    UniPC,
)  # fmt: skip
from diffusion_lab.sampler.multistep import dpm_weights
from diffusion_lab.sampler.record import Combine, Evaluate, Form, Recorder
from diffusion_lab.sampler.scalar_process import ScalarProcess
from diffusion_lab.verification import Gaussian, GaussianLaw, mixture
from diffusion_lab.verification.mixture import exact_denoiser

PROCESSES = {
    "linear": lambda: DiscreteProcess(Linear(), 1000),
    "cosine": lambda: DiscreteProcess(Cosine(), 200),
    "geometric": lambda: DiscreteProcess(Geometric(0.01, 20.0), 200),
    "vp": lambda: VP(Linear()),
    "subvp": lambda: SubVP(Linear()),
    "ve": lambda: VE(Geometric(0.01, 20.0)),
    "flow": lambda: ProbabilityPath(Rectified()),
}


class Straight:
    """The optimal eps of `mixture.diag64`, whose pixels are independent: three operations a call, in x's dtype."""

    def __init__(self, process):
        self.process, target = process, mixture.diag64()
        self.mean, self.variance = target.m[0].reshape(8, 8), target.c[0].diag().reshape(8, 8)

    def __call__(self, x, c_noise):
        t = c_noise[:1].double()
        t = (t + 1) / self.process.levels if self.process.levels else t / 999
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        return (x - (alpha * self.mean).to(x)) * (sigma / (alpha**2 * self.variance + sigma**2)).to(x)


def straight_denoiser(process):
    c_noise = "level" if process.levels else "time_999"
    return Denoiser(Straight(process), process, Parameterization(output="eps", c_noise=c_noise))


class Replay:
    """Stands in for `stream`: hands out recorded noise."""

    def __init__(self, noise: np.ndarray) -> None:
        self.noise = iter(torch.as_tensor(noise))

    def __call__(self, shape, generator, dtype, device="cpu"):
        return lambda: next(self.noise).to(dtype)


@pytest.mark.parametrize("target", ["gmm2d", "gauss64"])
@pytest.mark.parametrize("spacing, name", [("uniform", "uniform"), ("quadratic", "quad")])
@pytest.mark.parametrize("steps", [10, 20, 50])
@pytest.mark.parametrize("eta", [0, 0.5, 1])
def test_ddim_matches_the_official_program(recorded, monkeypatch, target, spacing, name, steps, eta):
    official = recorded("ddim")[f"{target}.{name}.eta{eta}.N{steps}"]
    x = torch.as_tensor(np.random.RandomState(91).randn(*official.shape), dtype=torch.float32)
    noise = np.random.RandomState(92).randn(steps, *official.shape).astype(np.float32)
    # The official program draws at every step; ours not where there is nothing to add.
    denoiser = exact_denoiser(mixture.TARGETS[target](), DiscreteProcess(Linear()))
    sampler = Sampler(DDIM(eta), steps=steps, spacing=spacing)
    times = sampler.check(denoiser)
    used = eta * denoiser.process.posterior(times[1:], times[:-1])[2] > 0
    monkeypatch.setattr("diffusion_lab.sampler.plan.stream", Replay(noise[:-1][used]))
    *_, last = sampler.trajectory(denoiser, x)
    assert (last.x - official).abs().max() / official.abs().max() < 1e-4


@pytest.mark.parametrize("target", ["gmm2d", "gauss64"])
@pytest.mark.parametrize("steps", [10, 50])
def test_clipped_fixed_large_ancestral_matches_the_official_program(recorded, monkeypatch, target, steps):
    official = recorded("ddim")[f"{target}.uniform.ddpm_clamped.N{steps}"]
    x = torch.as_tensor(np.random.RandomState(91).randn(*official.shape), dtype=torch.float32)
    noise = np.random.RandomState(92).randn(steps, *official.shape).astype(np.float32)
    monkeypatch.setattr("diffusion_lab.sampler.plan.stream", Replay(noise))
    denoiser = exact_denoiser(mixture.TARGETS[target](), DiscreteProcess(Linear()))
    *_, last = Sampler(Ancestral("fixed_large"), steps=steps, clip=True).trajectory(denoiser, x)
    assert (last.x - official).abs().max() / official.abs().max() < 1e-4


def test_ddim_with_eta_one_is_ddpm_fixed_small_exactly():
    denoiser = exact_denoiser(mixture.gmm2d(), DiscreteProcess(Linear(), 60))
    for steps in (None, 13):
        samples = [
            Sampler(predictor, steps=steps, precision="float64")(
                denoiser, (8, 2, 1, 1), torch.Generator().manual_seed(3)
            )
            for predictor in (DDIM(1.0), Ancestral("fixed_small"))
        ]
        torch.testing.assert_close(*samples, rtol=1e-9, atol=1e-9)


def gaussian(target):
    """A Gaussian target in the eigenbasis of its covariance, where coordinates are independent."""
    return Gaussian(target.eigenvectors[0].T @ target.m[0], target.eigenvalues[0])


def affine_law(target, process, sampler):
    """Exact mean and covariance of a sampler's output on Gaussian data."""
    denoiser = straight_denoiser(process)
    law = GaussianLaw(gaussian(target), denoiser, sampler.check(denoiser))
    for _, x in sampler.follow(law, law.noise(process.prior_std)):
        pass
    u = target.eigenvectors[0]
    return u @ x[0], u @ torch.diag((x[1:] ** 2).sum(0)) @ u.T


SAMPLERS = {
    "ancestral small": (Ancestral("fixed_small"), None),
    "ancestral large": (Ancestral("fixed_large"), None),
    "ddim": (DDIM(0.0), None),
    "ddim 0.5": (DDIM(0.5), None),
    "reverse diffusion": (ReverseDiffusion(), None),
    "euler-maruyama": (EulerMaruyama(), None),
    "probability flow": (EulerMaruyama(probability_flow=True), None),
    "euler-maruyama sigma": (EulerMaruyama(diffusion="sigma", diffusion_scale=0.5), None),
    "euler-maruyama sine": (EulerMaruyama(diffusion="sine"), None),
    "euler-maruyama constant": (EulerMaruyama(diffusion="constant"), None),
    "dpm 2": (DPMSolver(2), None),
    "dpm 3": (DPMSolver(3), None),
    "unipc 2": (UniPC(2), None),
    "unipc 3 bh1": (UniPC(3, "bh1"), None),
    "heun": (EDM(2), None),
    "euler with churn": (EDM(1, churn=3.0), None),
    "heun with churn": (EDM(2, churn=3.0, s_noise=1.01), None),
    "annealed langevin": (None, AnnealedLangevin(snr=0.3, steps=3)),
    "pc": (ReverseDiffusion(), AnnealedLangevin(snr=0.2, steps=2)),
    "unipc with langevin": (UniPC(2), AnnealedLangevin(snr=0.1, steps=1)),
    "heun with langevin": (EDM(2), AnnealedLangevin(snr=0.1, steps=1)),
}
STEPS = {"reverse diffusion": 22, "euler-maruyama": 22, "pc": 22}  # VP's discretisation takes no fewer


@pytest.mark.parametrize("process", ["linear", "geometric", "vp", "ve"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_exact_gaussian_law_through_the_public_loop(process, name):
    target, (predictor, corrector) = mixture.diag64(), SAMPLERS[name]
    denoiser = straight_denoiser(PROCESSES[process]())
    spacing = "uniform" if name in STEPS else "karras"
    sampler = Sampler(predictor, corrector, STEPS.get(name, 8), spacing)
    mean, covariance = affine_law(target, denoiser.process, sampler)
    n = 2_000
    x = sampler(denoiser, (n, 1, 8, 8), torch.Generator().manual_seed(0)).flatten(1).double()
    assert ((x.mean(0) - mean).abs() < 4.5 * (covariance.diag() / n).sqrt()).all()
    ratio = x.var(0) / covariance.diag()
    assert (ratio - 1).abs().max() < 4.5 * (2 / n) ** 0.5
    assert ratio.mean().item() == pytest.approx(1, abs=4.5 * (2 / n / 64) ** 0.5)  # 1.8 %


FINE = {
    "ancestral small": 200, "ddim": 200, "reverse diffusion": 300, "euler-maruyama": 300, "dpm 3": 60,
    "unipc 3 bh1": 60, "heun": 60, "heun with churn": 100, "pc": 200, "euler-maruyama sigma": 300,
    "euler-maruyama sine": 300, "euler-maruyama constant": 300,
}  # fmt: skip


FINE_PROCESSES = ("vp", "flow", "subvp", "ve")


@pytest.mark.parametrize(
    "process, name",  # of VE, whose prior lacks the data's variance, only noise as large as its own forgets it
    [(p, name) for name in FINE for p in (FINE_PROCESSES[:2] if "maruyama " in name else FINE_PROCESSES)],
)
def test_many_steps_give_the_data_law(process, name):
    target, process, (predictor, corrector) = mixture.gauss64(), PROCESSES[process](), SAMPLERS[name]
    predictor = EDM(2, churn=3.0) if name == "heun with churn" else predictor
    spacing = "uniform" if FINE[name] >= 200 else "log_snr"
    mean, covariance = affine_law(target, process, Sampler(predictor, corrector, FINE[name], spacing))
    # VE starts at mean 0 and without the data's variance, as published.
    slack = 0.02 if isinstance(process, VE) else 0.01
    assert (mean - target.m[0]).abs().max() < slack
    assert (covariance - target.c[0]).abs().max() < 0.06 * target.c[0].abs().max()


def exact_flow(target, process, x, t, s):
    """The probability-flow ODE's map from t to s for Gaussian data."""
    u = target.eigenvectors[0]
    return (gaussian(target).flow(process, x.flatten(1) @ u, t, s) @ u.T).reshape(x.shape)


ORDERS = {
    "euler": (EulerMaruyama(probability_flow=True), "log_snr", (0.85, 1.25)),
    "edm euler": (EDM(1), "log_snr", (0.9, 1.15)),
    "ddim": (DDIM(), "log_snr", (0.9, 1.15)),
    "heun": (EDM(2), "log_snr", (1.85, 2.2)),
    "dpm 2m": (DPMSolver(2), "log_snr", (1.7, 2.2)),
    "dpm 3m": (DPMSolver(3), "log_snr", (2.0, 2.6)),  # the published form is of order 2, see DPMSolver.third
    "unipc 1": (UniPC(1), "log_snr", (1.7, 2.3)),
    "unipc 2": (UniPC(2), "log_snr", (2.4, 3.4)),
    "unipc 3": (UniPC(3), "log_snr", (2.2, 4.8)),
    "unipc 3 bh1": (UniPC(3, "bh1"), "log_snr", (2.2, 4.8)),
}


LADDERS = ("ddim", "heun", "dpm 3m", "unipc 2")  # one of each kind: to a solver a ladder is a process like another


@pytest.mark.parametrize(
    "name, process",
    [(name, process) for name in ORDERS for process in ("vp", "subvp", "ve", "linear")[: 4 if name in LADDERS else 3]],
)
def test_order_of_convergence(name, process):
    """log(error ratio) / log(step ratio) when the steps are halved."""
    target, process, (predictor, spacing, (low, high)) = mixture.diag64(), PROCESSES[process](), ORDERS[name]
    denoiser = straight_denoiser(process)
    x = process.prior_std * torch.randn(16, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    errors = []
    for moves in (40, 80):
        sampler = Sampler(predictor, None, moves + 1, spacing, denoise=False, precision="float64")
        times = sampler.check(denoiser)
        want = exact_flow(target, process, x, times[0], times[-1])
        *_, last = sampler.trajectory(denoiser, x)
        errors.append((last.x - want).square().mean().sqrt().item())
    assert low < math.log2(errors[0] / errors[1]) < high


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
def test_unipc_is_exact_for_predictions_that_are_polynomials_of_lambda(variant):
    """x_s - a x_t = sigma_s int e^lambda x0(lambda) dlambda, of degree 2 for the predictor and 3 once refined."""
    process, times = VP(Linear()), VP(Linear()).timesteps(9, "log_snr") ** 1.05
    p = ScalarProcess(process, times)
    lam = [p.lambda_(t) for t in p.times]
    for i in (3, 6):
        fine = torch.linspace(lam[i], lam[i + 1], 20_001, dtype=torch.float64)
        for degree in range(4):
            at, asked = lambda t: SimpleNamespace(t=t, x0=(p.lambda_(t) - lam[0]) ** degree), []

            def denoise(x, t):
                asked.append(x)
                return at(t)

            past = [at(t) for t in p.times[i - 2 : i + 1][::-1]]
            refined = UniPC(3, variant)(p, 0.0, *p.times[i : i + 2], denoise, None, past)
            want = p.sigma(p.times[i + 1]) * torch.trapezoid(fine.exp() * (fine - lam[0]) ** degree, fine)
            (predicted,) = asked
            assert refined == pytest.approx(want.item(), rel=1e-7)
            assert (predicted == pytest.approx(want.item(), rel=1e-7)) == (degree < 3)


def test_dpm_solver_3m_has_the_published_derivatives():
    """Predictions 1, u and u^2 of u = (lambda - lambda_t) / h have (D_1, D_2) = (0, 0), (1, 0) and (0, 1)."""
    h, places = 0.7, (0.0, -0.8, -2.1)
    phi_1 = -math.expm1(-h)
    phi_2 = 1 - phi_1 / h
    weights = dpm_weights(h, places[1:])
    for power, want in enumerate((phi_1, phi_2, 0.5 - phi_2 / h)):
        assert sum(w * u**power for w, u in zip(weights, places, strict=True)) == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("solver", [DPMSolver(3), UniPC(3)])
def test_multistep_solvers_warm_up_by_one_order_a_step(solver):
    denoiser = Denoiser(None, VP(Linear()), Parameterization("x0", "time_999"))
    p = ScalarProcess(denoiser.process, denoiser.process.timesteps(6, "log_snr"))
    recorder = Recorder(denoiser, p, thresholded=False)
    x, used = Form({0: 1.0}), []
    for t, s in itertools.pairwise(p.times):
        x = recorder.apply("step", solver, x, t, s)
        used.append(len(x.terms) - 1 - isinstance(solver, UniPC))  # x, and UniC's own
    assert used == [1, 2, 3, 3, 3]


@pytest.mark.parametrize("variant, bound", [("bh1", -0.7), ("bh2", math.expm1(-0.7))])
def test_unipc_of_one_place_is_half_of_b(variant, bound):
    """With h = -0.7: x0_0 (1 - e^h) - B(h) / 2 (x0_1 - x0_0) / r, r = -0.8."""
    other = -bound * 0.5 / -0.8
    assert UniPC(2, variant).weights(-0.7, [-0.8]) == pytest.approx([-math.expm1(-0.7) - other, other], rel=1e-12)


def test_settings_of_the_sampler_reach_the_grid_and_the_step_size():
    process, t = DiscreteProcess(Linear()), torch.tensor(0.5, dtype=torch.float64)
    denoiser = straight_denoiser(process)
    times = Sampler(DDIM(), steps=9, spacing="karras", rho=3.0).check(denoiser)
    assert torch.equal(times, process.timesteps(9, "karras", rho=3.0)) and not torch.equal(
        times, process.timesteps(9, "karras")
    )
    beta = Linear().betas(1000)[499].item()
    size = AnnealedLangevin(snr=0.2).size(ScalarProcess(process, times), 0.5)
    assert size == pytest.approx(2 * (1 - beta) * (0.2 * process.sigma(t).item()) ** 2, rel=1e-9)


def test_dpm_solver_of_order_one_and_edm_euler_are_ddim():
    for build in PROCESSES.values():
        denoiser = exact_denoiser(mixture.gmm2d(), build())
        x = denoiser.process.prior_std * torch.randn(4, 2, 1, 1)
        ends = []
        for predictor in (DDIM(), DPMSolver(1), EDM(1)):
            *_, last = Sampler(predictor, None, 6, "karras", precision="float64").trajectory(denoiser, x)
            ends.append(last.x)
        torch.testing.assert_close(ends[1], ends[0], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(ends[2], ends[0], rtol=1e-9, atol=1e-9)


NFE = [
    (DDIM(), None, 7, 7), (DPMSolver(3), None, 7, 7), (UniPC(3), None, 7, 7), (EDM(2), None, 18, 35),
    (ReverseDiffusion(), Langevin(steps=1), 30, 60), (None, AnnealedLangevin(snr=0.1, steps=5), 10, 51),
    (EDM(2), Langevin(steps=2), 4, 4 * 2 + 3 * 2 + 1), (UniPC(2), Langevin(), 5, 5 + 4 + 5), (EDM(1, churn=9.0), None, 6, 6),
]  # fmt: skip


@pytest.mark.parametrize("predictor, corrector, steps, nfe", NFE)
def test_nfe_is_counted_and_the_trajectory_ends_at_data(predictor, corrector, steps, nfe):
    """EDM's 18 steps are 35 evaluations, ScoreSDE's PC two a step, NCSNv2's denoising one more."""
    denoiser = exact_denoiser(mixture.gmm2d(), VP(Linear()))
    states = list(Sampler(predictor, corrector, steps).trajectory(denoiser, torch.randn(3, 2, 1, 1)))
    assert denoiser.nfe == nfe
    assert states[-1].t == 0 and torch.equal(states[-1].x, states[-1].x0)
    assert len(states) == steps + (predictor is None)


def test_long_steps_of_the_vp_discretisation_are_refused():
    with pytest.raises(ValueError, match="use more sampler.steps"):
        Sampler(ReverseDiffusion(), steps=10).check(exact_denoiser(mixture.gmm2d(), VP(Linear())))


def test_uniform_start():
    denoiser = Denoiser(None, DiscreteProcess(Geometric(0.01, 3.0), 10), Parameterization(low=0.0))
    sampler = Sampler(DDIM(), start="uniform")
    images = sampler.prior(denoiser, (1, 1, 300, 300), torch.Generator().manual_seed(0))
    points = sampler.prior(denoiser, (50_000, 2), torch.Generator().manual_seed(0))
    for x, low, high in ((images, 0, 1), (points, -3, 3)):
        even = torch.linspace(low, high, x.numel())
        assert (x.flatten().sort().values - even).abs().max() < 1.7 * (high - low) / x.numel() ** 0.5


def test_each_image_has_its_own_noise():
    denoiser = exact_denoiser(mixture.gmm2d(), DiscreteProcess(Linear(), 50))
    sampler = Sampler(Ancestral())

    def sample(indices):
        return sampler(denoiser, (len(indices), 2, 1, 1), image_generators(7, indices))

    whole = sample(range(6))
    torch.testing.assert_close(torch.cat([sample(range(4)), sample(range(4, 6))]), whole)
    assert torch.equal(sample([3, 9, 2, 4, 11, 5])[[0, 2, 3, 5]], whole[[3, 2, 4, 5]])
    assert not torch.allclose(sample(range(6, 12)), whole)
    with pytest.raises(ValueError, match="3 generators for a batch of 4"):
        draw((4, 2), image_generators(0, range(3)), torch.float32)


def test_clip_bounds_the_estimates():
    denoiser = exact_denoiser(mixture.gauss64(), DiscreteProcess(Linear()))
    wide = list(Sampler(DDIM(), steps=5).trajectory(denoiser, 3 * torch.randn(4, 1, 8, 8)))
    clipped = list(Sampler(DDIM(), steps=5, clip=True).trajectory(denoiser, 3 * torch.randn(4, 1, 8, 8)))
    assert max(s.x0.abs().max() for s in wide) > 1.2 and max(s.x0.abs().max() for s in clipped) <= 1


def test_clip_is_to_the_models_own_range_and_leaves_points_alone():
    denoiser = Denoiser(lambda x, c: torch.zeros_like(x), VE(Geometric()), Parameterization(c_noise="nothing", low=0.0))
    images, sampler = torch.tensor([-2.0, 0.3, 2.0]).reshape(1, 1, 1, 3), Sampler(DDIM(), steps=2, clip=True)
    for x, want in ((images, images.clamp(0, 1)), (images.reshape(3, 1), images.reshape(3, 1))):
        assert torch.equal(next(sampler.trajectory(denoiser, x)).x0, want)


def test_churn_is_added_between_s_min_and_s_max_only_and_is_that_of_algorithm_2():
    process = VE(Geometric(0.01, 20.0))
    p = ScalarProcess(process, process.timesteps(9, "karras"))
    n = [p.noise_to_signal(t) for t in p.times]
    for churn, gamma in ((0.9, 0.1), (90.0, math.sqrt(2) - 1)):
        for i, t in enumerate(p.times):
            x, t_hat = EDM(2, churn, s_min=n[6], s_max=n[2], s_noise=1.1).churned(p, 0.0, t, lambda std: std)
            if not 2 <= i <= 6:
                assert x == 0 and t_hat == t
                continue
            raised = (1 + gamma) * n[i]
            assert p.noise_to_signal(t_hat) == pytest.approx(raised, rel=1e-9)
            assert x == pytest.approx(1.1 * (raised**2 - n[i] ** 2) ** 0.5, rel=1e-9)
    _, first = EDM(1, 90.0).churned(p, 0.0, p.times[0], lambda std: std)
    assert first > 1 and p.noise_to_signal(first) == pytest.approx(math.sqrt(2) * n[0], rel=1e-9)
    discrete = DiscreteProcess(
        Geometric(0.01, 20.0), 50
    )  # whose largest level bounds the noise, as NVlabs' round_sigma does
    p = ScalarProcess(discrete, discrete.timesteps(9, "karras"))
    assert EDM(1, 90.0).churned(p, 0.0, 1.0, lambda std: std) == (0.0, 1.0)


def edm_sampler(denoise, x, sigmas, noise, churn, s_min, s_max, s_noise):
    """Algorithm 2 of Karras et al. 2022 as NVlabs' edm_sampler has it, in sigma alone."""
    count, sigmas = len(sigmas), [*sigmas, 0.0]
    x_next = x * sigmas[0]
    for i, (t_cur, t_next) in enumerate(itertools.pairwise(sigmas)):
        gamma = min(churn / count, math.sqrt(2) - 1) if s_min <= t_cur <= s_max else 0
        t_hat = t_cur + gamma * t_cur
        x_hat = x_next
        if gamma:
            x_hat = x_next + math.sqrt(t_hat**2 - t_cur**2) * s_noise * next(noise)
        d_cur = (x_hat - denoise(x_hat, t_hat)) / t_hat
        x_next = x_hat + (t_next - t_hat) * d_cur
        if i < count - 1:
            d_prime = (x_next - denoise(x_next, t_next)) / t_next
            x_next = x_hat + (t_next - t_hat) * (0.5 * d_cur + 0.5 * d_prime)
    return x_next


@pytest.mark.parametrize("steps", [5, 18])
@pytest.mark.parametrize(
    "churn, s_min, s_max", [(0.0, 0, math.inf), (4.0, 0, math.inf), (40.0, 0.05, 10.0), (1e3, 0, 1e3)]
)
@pytest.mark.parametrize("process", ["ve", "vp"])
def test_heun_with_churn_is_the_published_program(process, churn, s_min, s_max, steps):
    """Every step churns, the first one beyond sigma_max and the last one too."""
    denoiser = straight_denoiser(PROCESSES[process]())
    process, target = denoiser.process, mixture.diag64()
    mean, variance = target.m[0].reshape(8, 8), target.c[0].diag().reshape(8, 8)
    times, shape = process.timesteps(steps, "karras"), (4, 1, 8, 8)
    z = torch.randn(steps + 1, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    want = edm_sampler(
        lambda x, sigma: mean + (x - mean) * variance / (variance + sigma**2),
        z[0] * process.prior_std / process.sigma(times[0]),
        (process.sigma(times) / process.alpha(times)).tolist(), iter(z[1:]), churn, s_min, s_max, 1.007,
    )  # fmt: skip
    sampler = Sampler(EDM(2, churn, s_min, s_max, 1.007), None, steps, "karras", precision="float64")
    noise = iter(z[1:])
    sampler_noise = lambda *_: lambda: next(noise)  # noqa: E731
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffusion_lab.sampler.plan.stream", sampler_noise)
        states = list(sampler.trajectory(denoiser, process.prior_std * z[0]))
    assert len(states) == steps and states[-1].t == 0 and denoiser.nfe == 2 * steps - 1
    torch.testing.assert_close(states[-1].x, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("corrector", [None, AnnealedLangevin(snr=0.1, steps=2)])
@pytest.mark.parametrize("predictor", [DDIM(), EDM(2), UniPC(2), None])
def test_a_trajectory_tells_where_it_is(predictor, corrector):
    """Times go down the grid; the network says that there is no noise, so that a guess is the x it was asked at."""
    if predictor is None and corrector is None:
        return
    process = VE(Geometric(0.1, 1.0))
    denoiser = Denoiser(lambda x, c: torch.zeros_like(x), process, Parameterization(c_noise="nothing"))
    sampler = Sampler(predictor, corrector, 5, denoise=False)
    states = list(sampler.trajectory(denoiser, torch.ones(2, 2), torch.Generator().manual_seed(0)))
    times = sampler.check(denoiser).tolist()
    assert [s.t for s in states] == (times if predictor is None else [*times[1:], times[-1]])
    if corrector is None:
        for state in states:
            torch.testing.assert_close(state.x, torch.ones(2, 2))
            torch.testing.assert_close(state.x0, torch.ones(2, 2))
    elif predictor is None:  # the noise of the last Langevin step came after its guess
        assert all(not torch.equal(s.x0, s.x) for s in states)


def test_langevin_of_each_image_does_not_depend_on_its_batch_unless_norms_are_averaged():
    denoiser = exact_denoiser(mixture.gmm2d(), VE(Geometric()))
    x = 3 * torch.randn(4, 2, 1, 1)
    x[1:] *= 5

    def first(size, **norm):
        sampler = Sampler(None, Langevin(**norm), steps=2, denoise=False)
        return next(sampler.trajectory(denoiser, x[:size], image_generators(0, range(size)))).x[:1]

    torch.testing.assert_close(first(4), first(1))
    assert torch.equal(first(4), first(4, norm="image")) and not torch.allclose(first(4), first(4, norm="batch"))
    torch.testing.assert_close(first(1, norm="batch"), first(1))


def test_float64_on_request_agrees_with_float32():
    denoiser = exact_denoiser(mixture.gmm2d(), DiscreteProcess(Linear()))
    x = torch.randn(4, 2, 1, 1)
    outs = []
    for precision in ("float32", "float64"):
        *_, last = Sampler(DDIM(), steps=50, precision=precision).trajectory(denoiser, x)
        outs.append(last.x)
    assert [o.dtype for o in outs] == [torch.float32, torch.float64]
    torch.testing.assert_close(outs[0].double(), outs[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: DDIM(1.5), r"DDIM: eta=1.5 must be in \[0, 1\]"),
        (lambda: DPMSolver(4), "order=4 must be one of 1, 2, 3"),
        (lambda: UniPC(0), "order=0 must be one of 1, 2, 3"),
        (lambda: EDM(3), "EDM: order=3 must be one of 1, 2"),
        (lambda: EDM(churn=-1.0), r"EDM: churn=-1.0 must be in \[0, inf\)"),
        (lambda: Langevin(snr=0.0), r"Langevin: snr=0.0 must be in \(0, inf\)"),
        (lambda: Langevin(norm="images"), "norm='images' must be one of batch, image"),
        (lambda: Ancestral("small"), "must be one of fixed_small, fixed_large"),
        (lambda: AnnealedLangevin(), "either step_size or snr"),
        (lambda: AnnealedLangevin(1e-5, 0.1), "either step_size or snr"),
        (lambda: AnnealedLangevin(-1e-5), r"step_size=-1e-05 must be in \(0, inf\)"),
        (lambda: Sampler(None), "Sampler: give predictor or corrector, or both"),
    ],
)
def test_senseless_samplers_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("predictor", [DPMSolver(2), UniPC(2), EDM(2)], ids=lambda p: type(p).__name__)
def test_grids_that_repeat_levels_are_refused_where_steps_need_a_length(predictor):
    with pytest.raises(ValueError, match="repeat levels"):
        Sampler(predictor, None, 30, "quadratic").check(exact_denoiser(mixture.gmm2d(), DiscreteProcess(Linear(), 50)))


def test_a_corrector_alone_shows_the_guesses_it_made():
    denoiser = exact_denoiser(mixture.gmm2d(), DiscreteProcess(Geometric(0.01, 3.0), 5))
    x = torch.randn(3, 2, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sampler = Sampler(None, AnnealedLangevin(snr=0.1, steps=1), denoise=False, precision="float64")
    for state in sampler.trajectory(denoiser, x, torch.Generator().manual_seed(1)):
        want = denoiser(x, torch.tensor(state.t, dtype=torch.float64)).x0
        torch.testing.assert_close(state.x0, want, rtol=1e-12, atol=1e-12)
        x = state.x


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("name", SAMPLERS)
def test_drawing_ends_where_the_trajectory_does(process, name):
    """Drawing writes moves by one guess with the network's output, a trajectory with the guesses that it shows."""
    (predictor, corrector), process = SAMPLERS[name], PROCESSES[process]()
    output, c_noise = ("v", "level") if process.levels else ("x0", "time_999")
    network = lambda x, t: (x + t.to(x)[:, None] / 2000).sin()  # noqa: E731
    denoiser = Denoiser(network, process, Parameterization(output, c_noise))
    steps, spacing = (22, "uniform") if name in STEPS else (6, "karras")
    for denoise in (True, False):
        sampler = Sampler(predictor, corrector, steps, spacing, denoise=denoise, precision="float64")
        generator = lambda: torch.Generator().manual_seed(5)  # noqa: E731
        got, source = sampler(denoiser, (3, 2), generator()), generator()
        nfe, denoiser.nfe = denoiser.nfe, 0
        *_, last = sampler.trajectory(denoiser, sampler.prior(denoiser, (3, 2), source), source)
        assert nfe == denoiser.nfe
        torch.testing.assert_close(got, last.x, rtol=1e-9, atol=1e-9)
        denoiser.nfe = 0


def test_a_step_of_one_evaluation_is_two_operations_and_no_prediction_is_made_that_is_not_needed():
    denoiser = Denoiser(lambda x, t: x, DiscreteProcess(Linear(), 50), Parameterization())
    image, points = torch.zeros(2, 1, 2, 2), torch.zeros(2, 2)
    for predictor, x, clip, shown, want in (
        (DDIM(), image, False, False, (5, 5)), (DDIM(), image, True, False, (5, 4)), (DDIM(), points, True, False, (5, 5)),
        (Ancestral(), image, False, False, (5, 5)), (EDM(), image, False, False, (9, 9)),
        (DPMSolver(2), image, False, False, (5, 5)),
    ):  # fmt: skip
        plan = Sampler(predictor, steps=5, clip=clip).record(denoiser, x, shown)
        assert tuple(sum(isinstance(o, kind) for o in plan.instructions) for kind in (Evaluate, Combine)) == want


def test_settings_that_are_changed_in_place_change_the_next_samples():
    """There is no hidden cache: a plan is made when it is asked for."""
    network = torch.nn.Linear(2, 2).double()
    denoiser = Denoiser(lambda x, t: network(x), VP(Linear()), Parameterization(c_noise="time_999"))
    sampler = Sampler(DDIM(), AnnealedLangevin(snr=0.1, steps=1), steps=5, precision="float64")
    seen = [sampler(denoiser, (2, 2), torch.Generator().manual_seed(0))]

    def changed(part, key, value):
        setattr(part, key, value)
        seen.append(sampler(denoiser, (2, 2), torch.Generator().manual_seed(0)))
        assert all(not torch.equal(seen[-1], one) for one in seen[:-1]), key

    changed(sampler, "steps", 6)
    changed(sampler, "spacing", "karras")
    changed(sampler, "rho", 3.0)
    changed(sampler, "t_end", 0.01)
    changed(sampler, "predictor", DDIM(0.5))
    changed(sampler, "corrector", AnnealedLangevin(snr=0.2, steps=1))
    changed(sampler, "corrector", None)
    changed(denoiser.process, "schedule", Cosine())
    changed(denoiser.process.schedule, "s", 0.1)
    changed(denoiser, "parameterization", Parameterization("v", c_noise="time_999"))
    changed(denoiser, "process", SubVP(Linear()))
    for part, key in ((DDIM(), "eta"), (Langevin(), "snr")):  # a step is a value: it cannot be changed in place
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(part, key, 0.3)
