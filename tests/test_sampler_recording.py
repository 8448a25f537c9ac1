"""A recorded sampler computes what its steps say; what is not linear runs as it is written."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from test_sampler import straight_denoiser

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.parameterization import Parameterization
from diffusion_lab.process import VE, VP, DiscreteProcess, Geometric, Linear, SubVP
from diffusion_lab.sampler import (
    DDIM,
    EDM,
    PNDM,
    AdamsBashforth,
    Ancestral,
    AnnealedLangevin,
    DPMpp2SAncestral,
    DPMppSDE,
    DPMSolver,
    DPMSolver2S,
    DPMSolverSingle,
    EulerAncestral,
    EulerMaruyama,
    Langevin,
    Restart,
    ReverseDiffusion,
    RungeKutta,
    Sampler,
    UniPC,
)  # fmt: skip
from diffusion_lab.sampler.plan import loops
from diffusion_lab.sampler.record import Combine, Draw, Form, NotLinear, Recorder
from diffusion_lab.sampler.scalar_process import ScalarProcess
from diffusion_lab.verification import mixture
from diffusion_lab.verification.mixture import exact_denoiser

PROCESSES = {
    "vp": VP(Linear()), "subvp": SubVP(Linear()), "ve": VE(Geometric(0.01, 20.0)),
    "ddpm": DiscreteProcess(Linear()), "ncsn": DiscreteProcess(Geometric(0.01, 20.0), 200),
}  # fmt: skip
STEPS = [
    Ancestral("fixed_small"), Ancestral("fixed_large"), DDIM(), DDIM(0.5), EulerAncestral(), EulerAncestral(0.5, 1.1),
    ReverseDiffusion(), ReverseDiffusion(True), EulerMaruyama(), EulerMaruyama(True),
    EDM(1), EDM(2), EDM(1, 3.0), EDM(2, 3.0, 0.05, 5.0, 1.01), Restart(), Restart(0.5, 5.0, 3, 3, 1.01),
    DPMSolver(1), DPMSolver(2), DPMSolver(3), DPMSolver(3, lower_order_final=True), DPMSolver(3, predicts="eps"),
    DPMSolver(1, True), DPMSolver(2, True), DPMSolver(3, True), UniPC(1), UniPC(2), UniPC(3), UniPC(3, "bh1", True),
    *(AdamsBashforth(order) for order in (1, 2, 3, 4)), AdamsBashforth(3, "t"), AdamsBashforth(4, "log_sigma"), PNDM(),
    DPMSolverSingle(1), DPMSolverSingle(2), DPMSolverSingle(3), DPMSolver2S(), DPMSolver2S(0.8), DPMpp2SAncestral(),
    DPMpp2SAncestral(0.5, 1.1), DPMpp2SAncestral(1.5), DPMppSDE(), DPMppSDE(0.5, 1.1, 0.3), RungeKutta("midpoint"),
    RungeKutta("heun"), RungeKutta("rk4"), RungeKutta("midpoint", "t"), RungeKutta("rk4", "t"), RungeKutta("heun", "t"),
    None,
]  # fmt: skip


def seeded():
    return torch.Generator().manual_seed(1)


def start(process, shape=(3, 1, 8, 8)):
    return process.prior_std * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def agree(sampler, denoiser, x, tolerance=1e-12):
    """Recorded, drawn and as written, a sampler ends at one x; returned as written."""
    want = sampler.as_written(denoiser, x, seeded())
    ends = [end for *_, end, _ in sampler.record(denoiser, x)(x, seeded())]
    ends.append(list(sampler.trajectory(denoiser, x, seeded()))[-1].x)
    for end in (ends[-2], ends[-1]):
        assert ((end - want).abs().max() / want.abs().max()).item() < tolerance
    return want


@pytest.mark.filterwarnings("ignore:the first of the sampler")
@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("step", STEPS, ids=str)
def test_recorded_is_as_written(process, step):
    """Without a corrector; with one, that makes predictions of its own; ending at x_0, and at the last time."""
    steps, spacing = (22, "uniform") if isinstance(step, ReverseDiffusion | EulerMaruyama) else (5, "karras")
    denoiser, langevin = straight_denoiser(PROCESSES[process]), AnnealedLangevin(snr=0.1, steps=1)
    for corrector in (None, langevin) if step and process in ("vp", "ncsn") else (None,) if step else (langevin,):
        sampler = Sampler(step, corrector, steps, spacing, denoise=corrector is None, precision="float64")
        agree(sampler, denoiser, start(denoiser.process, (1, 1, 8, 8)))


# what a form can do, and what it cannot


def test_forms_add_and_multiply_as_arrays_do():
    x, z = Form({0: 1.0}), Form({1: 2.0})
    got = 3 * (x - z / 4) + 0 - (-z) * 0.5 + sum([x, x])
    assert got.terms == {0: 5.0, 1: 3 * -0.5 + 1.0}
    assert (np.sqrt(4.0) * x).terms == (x * np.float64(2.0)).terms == (x / np.float64(0.5)).terms == {0: 2.0}
    assert (0 - x).terms == {0: -1.0} and (0.0 + x).terms == {0: 1.0}
    assert x.terms == {0: 1.0} and z.terms == {1: 2.0}


NOT_LINEAR = {
    "a clamp": lambda x: x.clamp(-1, 1), "a product": lambda x: x * x, "a quotient": lambda x: x / x,
    "a reciprocal": lambda x: 1 / x, "a power": lambda x: x**2, "an absolute value": abs, "a number": lambda x: x + 1.0,
    "a number before": lambda x: 1.0 - x, "a function of torch": torch.sin, "a tensor": lambda x: torch.ones(2) * x,
    "a sum with a tensor": lambda x: torch.ones(2) + x, "a product with a tensor": lambda x: x * torch.ones(2),
    "a norm": torch.linalg.vector_norm, "torch.where": lambda x: torch.where(x, x, x), "an index": lambda x: x[0],
    "a comparison": lambda x: x > 0, "a truth value": bool, "a floor": lambda x: x // 1.0, "a remainder": lambda x: x % 1.0,
    "an inequality": lambda x: x != 0, "a power of 2": lambda x: 2.0**x, "rounding": round, "a part": lambda x: x.__setitem__(0, 0.0), "a length": len, "a loop": list,
    "a float": float, "its shape": lambda x: x.shape, "a matrix": lambda x: x @ x, "addcmul": lambda x: torch.addcmul(x, x, x),
    "in place": lambda x: x.add_(1), "equality": lambda x: x == 0, "an integer": int, "hashing": hash,
}  # fmt: skip


@pytest.mark.parametrize("what", NOT_LINEAR)
def test_what_is_not_linear_is_told(what):
    with pytest.raises(NotLinear):
        NOT_LINEAR[what](Form({0: 1.0}))


# steps that a user may write


def noise_twice(p, x, t, s, denoise, noise, past):
    return DDIM(0.0)(p, x, t, s, denoise, noise, past) + noise(0.1) - noise(0.2) + noise(0.0)


def noise_in_two_places(p, x, t, s, denoise, noise, past):
    z = noise(0.3)
    return p.sigma(s) / p.sigma(t) * x + 0.5 * denoise(x + z, t).x0 + 0.7 * z


def noise_kept_for_later(p, x, t, s, denoise, noise, past):
    z, other = noise(), noise(2.0)
    x = DDIM(0.0)(p, x + 0.1 * other, t, s, denoise, noise, past)
    return x + 0.1 * noise(), 0.1 * z, x  # what a sum is made of is below


def noise_out_of_order(p, x, t, s, denoise, noise, past):
    x, z, _ = noise_kept_for_later(p, x, t, s, denoise, noise, past)
    return x + z


def noise_in_vain(p, x, t, s, denoise, noise, past):
    noise()
    return DDIM(1.0)(p, x, t, s, denoise, noise, past)


def noise_alone(p, x, t, s, denoise, noise, past):
    return noise(p.sigma(s))


def nothing_at_all(p, x, t, s, denoise, noise, past):
    return x


def no_x(p, x, t, s, denoise, noise, past):
    return p.alpha(s) * denoise(x, t).x0


def asked_twice(p, x, t, s, denoise, noise, past):
    return 0.5 * (denoise(x, t).x0 + denoise(x, t).x0) * p.alpha(s) + p.sigma(s) * denoise(x, t).v


def clamped(p, x, t, s, denoise, noise, past):
    d = denoise(x, t)
    return p.alpha(s) * d.x0.clamp(-0.1, 0.1) + p.sigma(s) * d.eps + noise(0.1)


def clamped_with_history(p, x, t, s, denoise, noise, past):
    x0 = denoise(x, t).x0
    before = next((one.x0 for one in past if one.t > t), x0)
    return p.sigma(s) / p.sigma(t) * x + 0.3 * (1.5 * x0 - 0.5 * before).clamp(-0.1, 0.1) + noise(0.1) * noise().sign()


def clamped_and_refined(p, x, t, s, denoise, noise, past):
    """Takes the prediction that the last step made at t, unless a corrector, which is recorded, has moved x since."""
    return UniPC(2)(p, x.clamp(-1e9, 1e9), t, s, denoise, noise, past)


def decides(p, x, t, s, denoise, noise, past):
    return 0.9 * x if x.mean() > 0 else 0.8 * x


USERS = [
    noise_twice, noise_in_two_places, noise_out_of_order, noise_in_vain, noise_alone, nothing_at_all, no_x, asked_twice,
]  # fmt: skip
RUN = [clamped, clamped_with_history, clamped_and_refined, decides]


@pytest.mark.parametrize("corrector", [None, AnnealedLangevin(snr=0.1, steps=1), Langevin(snr=0.1)], ids=repr)
@pytest.mark.parametrize("step", [*USERS, *RUN], ids=lambda step: step.__name__)
def test_a_users_step_is_recorded_or_run_as_written(step, corrector):
    """Langevin's norms are not linear, so that a step and a corrector are each recorded or run beside the other."""
    denoiser = exact_denoiser(mixture.gmm2d(), PROCESSES["vp"])
    x = start(denoiser.process, (3, 2, 1, 1))
    for denoise in (True, False):
        sampler = Sampler(step, corrector, 6, "log_snr", denoise=denoise, precision="float64")
        agree(sampler, denoiser, x, 1e-10)
        run = {type(one).__name__ for one in sampler.record(denoiser, x).instructions}
        assert ("Run" in run) == (step in RUN or isinstance(corrector, Langevin))


def test_steps_that_are_run_have_the_law_of_those_that_are_recorded():
    """A step with a clamp that never acts is DDIM with noise, number for number."""

    def free(p, x, t, s, denoise, noise, past):
        return DDIM(0.7)(p, x.clamp(-1e9, 1e9), t, s, denoise, noise, past)

    denoiser = exact_denoiser(mixture.gmm2d(), PROCESSES["vp"])
    x = start(denoiser.process, (3, 2, 1, 1))
    ends = [agree(Sampler(step, None, 9, precision="float64"), denoiser, x) for step in (free, DDIM(0.7))]
    assert (ends[0] - ends[1]).abs().max() < 1e-12


def test_history_is_seen_where_only_some_steps_are_run():
    """A multistep solver that clamps late in the way finds the predictions of its recorded steps... and the reverse."""
    lengths = []

    def late(p, x, t, s, denoise, noise, past):
        x = x.clamp(-1e9, 1e9) if t < 0.5 else x
        lengths.append(len(past))
        return DPMSolver(3)(p, x, t, s, denoise, noise, past)

    denoiser = exact_denoiser(mixture.gmm2d(), PROCESSES["vp"])
    x = start(denoiser.process, (3, 2, 1, 1))
    ends = [agree(Sampler(step, None, 9, precision="float64"), denoiser, x) for step in (late, DPMSolver(3))]
    assert (ends[0] - ends[1]).abs().max() < 1e-12
    assert max(lengths) >= 3


def test_noise_is_drawn_in_the_order_of_the_step_and_never_for_nothing():
    """A draw of standard deviation 0 draws nothing; one that is not used is drawn, so that both ways see one stream."""
    p = ScalarProcess(PROCESSES["vp"], [1.0, 0.5])
    recorder = Recorder(straight_denoiser(PROCESSES["vp"]), p)
    assert recorder.noise(0.0) == 0.0 and not recorder.instructions
    assert recorder.noise(0.3).terms == {1: 0.3} and recorder.instructions == [Draw(1)]
    assert math.isclose((recorder.noise() * 0.5).terms[2], 0.5)


def test_a_check_finds_what_a_step_lacks_without_recording_all_of_it():
    """Steps of one's own are tried on the first two times; ours know what they need of a whole grid."""
    tried = []

    def broken(p, x, t, s, denoise, noise, past):
        tried.append(t)
        return p.no_such_number(t) * x

    denoiser = exact_denoiser(mixture.gmm2d(), PROCESSES["vp"])
    with pytest.raises(AttributeError, match="no_such_number"):
        Sampler(broken).check(denoiser)
    assert tried == [1.0]

    def counted(p, x, t, s, denoise, noise, past):
        tried.append(t)
        return x

    Sampler(counted).check(denoiser)
    assert len(tried) == 3


def test_a_grid_is_computed_once_for_a_batch(monkeypatch):
    denoiser, made = exact_denoiser(mixture.gmm2d(), PROCESSES["vp"]), []
    monkeypatch.setattr(Sampler, "timesteps", lambda self, denoiser: made.append(1) or denoiser.process.timesteps(5))
    Sampler(DDIM())(denoiser, (2, 2, 1, 1))
    assert len(made) == 1


def test_heun_takes_as_few_operations_as_its_hand_written_loop():
    denoiser = Denoiser(lambda x, c_noise: x, VE(Geometric(0.02, 80.0)), Parameterization("x0", "log_sigma"))
    plan = Sampler(EDM(), steps=5, spacing="karras").record(denoiser, torch.zeros(2, 3, 4, 4))
    sums = [len(one.weights) for one in plan.instructions if type(one) is Combine]
    assert sums == [2, 3] * 4  # x_s = (x + u + h d_s) / 2 from u = x + h d, instead of from x, d and d_s


def test_a_plan_is_the_loop_that_one_would_write():
    """The registers of a step are those of every other, so that all steps share one body."""
    denoiser, like = exact_denoiser(mixture.gmm2d(), PROCESSES["vp"]), torch.zeros(2, 2, 1, 1)
    assert Sampler(DDIM(0.5), steps=40, denoise=False).record(denoiser, like).source.splitlines()[:5] == [
        "def run(r0, noise):",
        "    for [c0, c1, c2, c3] in rows[0]:",
        "        r1 = c0(r0)",
        "        r2 = noise()",
        "        r0 = (r0 * c1).addcmul_(r1, c2).addcmul_(r2, c3)",
    ]
    plan = Sampler(EDM(), Langevin(), steps=40, spacing="karras").record(denoiser, like)
    assert plan.source.count(" in rows") < 10 < len(plan.instructions) / 10


@pytest.mark.parametrize("texts, want", [
    ("abababx", [(0, 2, 3), (6, 1, 1)]), ("aabaabaab", [(0, 3, 3)]), ("xaaaaa", [(0, 1, 1), (1, 1, 5)]), ("", []),
    ("abcabd", [(0, 1, 1), (1, 1, 1), (2, 1, 1), (3, 1, 1), (4, 1, 1), (5, 1, 1)]),
])  # fmt: skip
def test_lines_that_repeat_become_loops(texts, want):
    found = list(loops(list(texts)))
    assert found == want
    assert "".join(texts[start : start + length] * count for start, length, count in found) == texts


def test_a_prediction_that_is_the_networks_output_is_taken_as_it_is():
    """A product with 1 would be one more pass over memory in each Langevin step."""
    for output, name in (("score", "score"), ("eps", "eps"), ("x0", "x0")):
        network = exact_denoiser(mixture.gmm2d(), PROCESSES["ve"]).network
        denoiser = Denoiser(network, PROCESSES["ve"], Parameterization(output, "log_sigma"))
        sampler, x = Sampler(DDIM(), steps=3, precision="float64"), start(denoiser.process, (3, 2, 1, 1))
        prediction = sampler.written(denoiser, sampler.timesteps(denoiser), x).denoise(x, 1.0)
        assert getattr(prediction, name) is prediction.output
