"""Predictors and correctors against single updates of the official ScoreSDE and NCSN programs, noise and all."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from test_sampler import Replay

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.parameterization import Parameterization
from diffusion_lab.process import VE, VP, DiscreteProcess, Geometric, Linear, SubVP
from diffusion_lab.sampler import (
    Ancestral,
    AnnealedLangevin,
    EulerMaruyama,
    Langevin,
    ReverseDiffusion,
    Sampler,
)
from diffusion_lab.sampler.scalar_process import ScalarProcess
from diffusion_lab.sampler.step import Prediction, coefficients
from diffusion_lab.verification import mixture

SDES = {"ve": lambda: VE(Geometric(0.01, 50.0)), "vp": lambda: VP(Linear()), "subvp": lambda: SubVP(Linear())}
PRECISIONS = [(torch.float64, 1e-9), (torch.float32, 5e-6)]


def relative(got, want):
    return ((got - want).abs().max() / want.abs().max()).item()


def exact(target, process):
    """A denoiser that knows the score at any time."""

    def network(x, c_noise):
        t = c_noise.double() / 999
        t = t[0] if (t == t[0]).all() else t
        return mixture.TARGETS[target]().eps(x, process.alpha(t), process.sigma(t))

    return Denoiser(network, process, Parameterization(c_noise="time_999"))


def step_ends(name, predictor, t):
    """(process, t, s) whose coefficients the official update at time t uses, N = 1000.

    It reads its tables at the level below t; VE's are 999 steps of the clock, VP's betas belong to steps of 1/1000.
    """
    index = (t.double() * 999).floor()
    if name == "subvp" or predictor == "euler_maruyama":
        return SDES[name](), t.double(), t.double() - 1 / 1000
    if name == "vp" and predictor == "ancestral_sampling":
        return DiscreteProcess(Linear()), (index + 1) / 1000, index / 1000
    if name == "vp":
        return SDES[name](), index / 999, index / 999 - 1 / 1000
    return SDES[name](), index / 999, (index - 1) / 999


PREDICTORS = {
    "reverse_diffusion": ReverseDiffusion(),
    "reverse_diffusion.pf": ReverseDiffusion(probability_flow=True),
    "euler_maruyama": EulerMaruyama(),
    "ancestral_sampling": Ancestral("fixed_large"),
}


@pytest.mark.parametrize("dtype, tolerance", PRECISIONS)
@pytest.mark.parametrize("target", ["gmm2d", "gauss64"])
@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize("predictor", PREDICTORS)
def test_predictors_make_the_official_step(recorded, predictor, name, target, dtype, tolerance):
    official, key = recorded("sde_steps"), f"{target}.{name}.{predictor}"
    if f"{key}.x_out" not in official.arrays:
        pytest.skip("the official program has none")
    rule = Ancestral("fixed_small") if (name, predictor) == ("ve", "ancestral_sampling") else PREDICTORS[predictor]
    # From the lowest level the official table leads to clean data: our denoising step, not a predictor's.
    lowest = name == "ve" or (name == "vp" and predictor.startswith("reverse"))
    t = official["t"][: 4 if lowest else 5]
    process, at, s = step_ends(name, predictor, t)
    x, sde, z = official[f"{target}.{name}.x"][: len(t)].to(dtype), SDES[name](), official[f"{target}.z"][0]
    score = exact(target, sde)(x, t.to(dtype)).score
    for std in (0.0, 1.0):
        steps = []
        for each, late, early in zip(range(len(t)), at.tolist(), s.tolist()):
            p = ScalarProcess(process, [late, early])
            # The network is asked at t itself, the tables are read below it: what is known at t is the score.
            row = coefficients(*p.alpha_sigma(late), Parameterization("score", "nothing").eps)
            denoise = lambda x, t: Prediction(t, x, score[each], row)  # noqa: E731
            noise = lambda c: std * c * z[each].to(dtype)  # noqa: E731
            steps.append(rule(p, x[each], late, early, denoise, noise, []))
        want = official[f"{key}.{'x_out' if std else 'x_mean'}"][: len(t)]
        assert relative(torch.stack(steps), want) < tolerance


@pytest.mark.parametrize("dtype, tolerance", PRECISIONS)
@pytest.mark.parametrize("target", ["gmm2d", "gauss64"])
@pytest.mark.parametrize("name", ["ve", "vp"])
@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("corrector", ["langevin", "ald"])
def test_correctors_make_the_official_steps(recorded, monkeypatch, corrector, steps, name, target, dtype, tolerance):
    official, process = recorded("sde_steps"), SDES[name]()
    x, t = official[f"{target}.{name}.x"].to(dtype), official["t"]
    rule = Langevin(0.16, 1, "batch") if corrector == "langevin" else AnnealedLangevin(snr=0.16, steps=1)
    # Official times are one for each sample, and the level below t gives the factor 1 - beta.
    kept = (1 - Linear().betas(1000)[(t.double() * 999).floor().long()]).tolist() if name == "vp" else [1.0] * len(t)
    denoiser, noise = exact(target, process), Replay(official[f"{target}.z"].numpy())(x.shape, None, dtype)
    score = lambda x, _: SimpleNamespace(score=denoiser(x, t.to(dtype)).score)  # noqa: E731
    for _ in range(steps):
        z, rows = noise(), []
        for i, (a, sigma) in enumerate(zip(kept, process.sigma(t.double()).tolist(), strict=True)):
            p = SimpleNamespace(signal_kept=lambda t, a=a: a, sigma=lambda t, sigma=sigma: sigma)
            rows.append(rule(p, x, t, score, lambda std=1.0: std * z)[i])
        x = torch.stack(rows)
    assert relative(x, official[f"{target}.{name}.{corrector}.n{steps}.x_out"]) < tolerance


def test_signal_kept_is_the_official_alpha():
    """1 - beta_i on VP and on its ladder, 1 on VE; on sub-VP, where the official program crashes, close to VP's."""
    kept = lambda process, t: ScalarProcess(process, [1.0]).signal_kept(float(t))  # noqa: E731
    betas = Linear().betas(1000)
    short = DiscreteProcess(Linear(), 50)  # one of its own levels, not a thousandth
    for i in (1, 25, 50):
        assert kept(short, i / 50) == pytest.approx(1 - Linear().betas(50)[i - 1].item())
    for i in (0, 500, 999):
        t = torch.tensor((i + 1) / 1000, dtype=torch.float64)
        assert kept(DiscreteProcess(Linear()), t) == pytest.approx(1 - betas[i].item(), abs=1e-12)
        u = torch.tensor(i / 999, dtype=torch.float64)
        assert kept(VP(Linear()), u.clamp(min=1e-3)) == pytest.approx(1 - betas[max(i, 1)].item(), abs=2e-5)
        assert kept(SubVP(Linear()), u.clamp(min=1e-3)) == pytest.approx(1 - betas[max(i, 1)].item(), abs=2e-4)
        assert kept(VE(Geometric()), t) == 1


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 1e-5)])
@pytest.mark.parametrize("target", ["gmm2d", "gauss64"])
@pytest.mark.parametrize("denoise", [False, True])
def test_annealed_langevin_is_ncsns(recorded, monkeypatch, target, denoise, dtype, tolerance):
    official = recorded("ncsn")
    process = DiscreteProcess(Geometric(0.01, 1.0), 6)
    name = {torch.float32: "float32", torch.float64: "float64"}[dtype]
    sampler = Sampler(None, AnnealedLangevin(step_size=2e-5, steps=3), denoise=denoise, precision=name)
    monkeypatch.setattr("diffusion_lab.sampler.plan.stream", Replay(official[f"{target}.noise"].numpy()))
    *_, last = sampler.trajectory(exact(target, process), official[f"{target}.x_init"])
    assert relative(last.x, official[f"{target}.ald.{'denoised' if denoise else 'final'}"]) < tolerance


@pytest.mark.parametrize(
    "name, levels, top",
    [
        ("ncsn_cifar10", 10, 1.0),
        ("ncsnv2_cifar10", 232, 50.0),
        ("ncsnv2_celeba64", 500, 90.0),
        ("ncsnv2_church96", 788, 140.0),
    ],
)
def test_published_ladders(recorded, name, levels, top):
    sigmas = recorded("ncsn")[f"sigmas.{name}"]
    ladder = DiscreteProcess(Geometric(0.01, top), levels)
    t = torch.arange(levels, 0, -1, dtype=torch.float64) / levels
    assert ((ladder.sigma(t) - sigmas) / sigmas).abs().max() < 2e-6  # recorded in float32
