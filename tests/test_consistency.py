"""Consistency losses against the authors' program and closed forms."""

from __future__ import annotations

import functools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from zygote import ROOT, run

from diffusion_lab.config.compose import check
from diffusion_lab.denoiser import Denoiser
from diffusion_lab.errors import ConfigError
from diffusion_lab.loss import ConsistencyLoss, FrozenDenoiser, KarrasPairs, ProgressiveLoss, TunedPairs
from diffusion_lab.noise import image_generators
from diffusion_lab.parameterization import Parameterization
from diffusion_lab.process import VE, VP, DiscreteProcess, Geometric, Linear
from diffusion_lab.sampler import Consistency, Sampler
from diffusion_lab.verification.gaussian import Gaussian

RECORD = dict(np.load(Path(__file__).parent / "reference/consistency.npz"))
X0, NOISE = (torch.from_numpy(RECORD[key]) for key in ("x0", "noise"))
WEIGHTINGS = {"uniform": "uniform", "snr": "snr", "snr_plus_one": "snr+1", "karras": "karras",
              "truncated_snr": "truncated-snr"}  # fmt: skip


def official(scale, x, log_sigma, boundary=0.002):
    """D of the program's networks in closed form."""
    sigma = log_sigma.exp().reshape(-1, *(1,) * (x.dim() - 1))
    less = sigma - boundary
    c_skip, c_out, c_in = 0.25 / (less**2 + 0.25), less * 0.5 / (sigma**2 + 0.25).sqrt(), (sigma**2 + 0.25).rsqrt()
    return c_skip * x + c_out * (torch.tanh(scale * c_in * x) + 0.1 * torch.cos(3 * c_in * x + sigma.log()))


class Closed(torch.nn.Module):
    """The program's network F."""

    def __init__(self, scale):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(scale, dtype=torch.float64))

    def forward(self, x, c_noise):
        return torch.tanh(self.scale * x) + 0.1 * torch.cos(3 * x + 4 * c_noise.reshape(-1, *(1,) * (x.dim() - 1)))


def edm(network, boundary=0.002):
    row = Parameterization("edm", "quarter_log_sigma", unit_input=True, sigma_data=0.5, boundary=boundary)
    return Denoiser(network, VE(Geometric(0.002, 80.0)), row)


STUDENT, TARGET = (functools.partial(Closed, scale) for scale in (1.3, 1.1))


def teacher(scale=0.7):
    return edm(Closed(scale), boundary=0.0)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("distance", ["l1", "l2"])
@pytest.mark.parametrize("scales", [2, 18, 40])
@pytest.mark.parametrize("kind", ["ct", "cd"])
def test_losses_are_those_of_the_authors_program(kind, scales, distance, weighting):
    loss = ConsistencyLoss(
        KarrasPairs(scales - 1), teacher() if kind == "cd" else None, distance=distance, weighting=weighting,
        target_decay=0.95,
    )  # fmt: skip
    loss.target = TARGET()
    grid, index = loss.pairs.grid(0, 80.0), torch.from_numpy(RECORD[f"{scales}_indices"])
    got = loss.at(edm(STUDENT()), X0, grid[index], grid[index + 1], NOISE)
    want = torch.from_numpy(RECORD[f"{kind}_{scales}_{distance}_{WEIGHTINGS[weighting]}"])
    torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("name, settings, decay", [("cd", (17,), 0.95), ("ct", (2, 150, "square_root", 1000), 0.9)])
def test_the_number_of_timesteps_and_the_decay_follow_the_authors_program(name, settings, decay):
    loss = ConsistencyLoss(KarrasPairs(*settings), target_decay=decay)
    got = [(loss.decay(k), loss.pairs.intervals_at(k) + 1) for k in range(1001)]
    np.testing.assert_allclose(got, RECORD[f"law_{name}"], rtol=1e-12)


def test_improved_training_doubles_the_timesteps():
    """Song & Dhariwal 2023, Eq. 18: N = min(s_0 2^(k // K'), s_1) + 1 with K' = K // (log2(s_1 / s_0) + 1)."""
    pairs = KarrasPairs(10, 1280, "doubling", 800)
    assert [pairs.intervals_at(k) for k in (0, 99, 100, 350, 699, 700, 799, 800, 5000)] == [
        *(10, 10, 20, 80, 640, 1280, 1280, 1280, 1280)
    ]


@pytest.mark.parametrize("levels", ["uniform", "lognormal"])
def test_intervals_are_drawn_in_proportion(levels):
    pairs, count = KarrasPairs(8, levels=levels), 40_000
    t, r = pairs.sample(0, 80.0, count, torch.Generator().manual_seed(0))
    grid = pairs.grid(0, 80.0)
    index = torch.searchsorted(-grid, -t)
    assert torch.equal(grid[index], t) and torch.equal(grid[index + 1], r)
    share = torch.full((8,), 1 / 8, dtype=torch.float64)
    if levels == "lognormal":
        erf = torch.special.erf((grid.log() + 1.1) / (math.sqrt(2) * 2.0))
        share = (erf[:-1] - erf[1:]) / (erf[0] - erf[-1])
    got = torch.bincount(index, minlength=8) / count
    assert (got - share).abs().max() < 4 * math.sqrt(0.25 / count)


def test_tuned_pairs_approach_each_other_with_every_stage():
    pairs = TunedPairs(q=2, stage_steps=100)
    t, r = pairs.sample(0, 80.0, 10_000, torch.Generator().manual_seed(0))
    assert t.log().mean().item() == pytest.approx(-1.1, abs=0.06) and t.log().std().item() == pytest.approx(
        2.0, rel=0.03
    )
    assert torch.equal(r == 0, t <= math.log(7))  # where 8 / (1 + e^t) >= 1
    for k, stage in ((0, 0), (99, 0), (100, 1), (799, 7)):
        t, r = pairs.sample(k, 80.0, 100, None)
        want = (1 - (1 + 8 / (1 + t.exp())) / 2 ** (stage + 1)).clamp(min=0) * t
        torch.testing.assert_close(r, want)
        assert (r < t).all() and pairs.refinement(k) == 2**stage


def test_tuning_with_r_at_0_is_denoising():
    """The target is x_0 itself, and the loss |D - x_0| / t."""
    denoiser = edm(STUDENT())
    t = torch.tensor([0.1, 2.0, 0.01, 70.0, 1.0, 0.3], dtype=torch.float64)
    loss = ConsistencyLoss(TunedPairs(), distance="huber", c=0.0, weighting="interval")
    x = X0 + t.reshape(-1, 1, 1, 1) * NOISE
    want = (official(1.3, x, t.log()) - X0).flatten(1).norm(dim=1) / t
    torch.testing.assert_close(loss.at(denoiser, X0, t, 0 * t, NOISE), want.detach(), check_dtype=False)


def test_pseudo_huber():
    loss = ConsistencyLoss(KarrasPairs(), distance="huber", c=0.03)
    grid = loss.pairs.grid(0, 80.0)
    t, r = grid[:6], grid[1:7]
    f = lambda n: official(1.3, X0 + n.reshape(-1, 1, 1, 1) * NOISE, n.log()).flatten(1)  # noqa: E731
    c = 0.03 * math.sqrt(48)
    want = ((f(t) - f(r)).square().sum(1) + c**2).sqrt() - c
    torch.testing.assert_close(loss.at(edm(STUDENT()), X0, t, r, NOISE), want)


@pytest.mark.parametrize("process", [VP(Linear()), VE(Geometric(0.002, 80.0))])
def test_any_continuous_process_has_the_loss_of_its_noise_to_signal_ratio(process):
    """Of D(x / alpha, sigma / alpha), with and without a teacher."""

    def network(scale, x, t):
        alpha, sigma = process.marginal(t.double() / 999, x)
        return official(scale, x / alpha, (sigma / alpha).log())

    def of(scale):
        return Denoiser(functools.partial(network, scale), process, Parameterization("x0", "time_999"))

    grid = KarrasPairs(10).grid(0, 50.0)
    for kind in (None, "teacher"):
        got, want = (
            ConsistencyLoss(KarrasPairs(10), kind and other).at(student, X0, grid[2:8], grid[3:9], NOISE)
            for student, other in ((of(1.3), of(0.7)), (edm(STUDENT()), edm(Closed(0.7))))
        )
        torch.testing.assert_close(got, want.detach(), rtol=1e-6, atol=1e-9)


def test_multistep_sampling_is_that_of_the_authors_program(monkeypatch):
    """Of the student at the times 0, 13 and 22 of 40, with its noise; the last step, without noise, is x_0."""
    grid = KarrasPairs(39).grid(0, 80.0)
    times = [grid[index].item() for index in (0, 13, 22)]
    sampler = Sampler(Consistency(0.002), times=times, unit="sigma", spacing="explicit", precision="float64")
    noises = torch.from_numpy(RECORD["sample_noises"])
    left = iter(noises[1:])
    monkeypatch.setattr("diffusion_lab.sampler.loop.stream", lambda *_: lambda: next(left))
    got = sampler.as_written(edm(STUDENT()), 80 * noises[0])
    torch.testing.assert_close(got.clamp(-1, 1), torch.from_numpy(RECORD["sample"]), rtol=1e-8, atol=1e-8)


class Dropped(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.dropout, self.masks = torch.nn.Dropout(0.5), []

    def forward(self, x, c_noise):
        mask = self.dropout(torch.ones_like(x))
        self.masks.append(mask)
        return mask * x


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_student_and_target_share_dropout_masks_and_the_next_step_has_others(decay):
    network = Dropped()
    loss, denoiser, masks = ConsistencyLoss(KarrasPairs(), teacher(), target_decay=decay), edm(network), []
    for _ in range(2):
        loss(denoiser, X0)
        masks += [network.masks[-1], network.masks[-2] if not decay else loss.target.masks[-1]]
    assert torch.equal(masks[0], masks[1]) and torch.equal(masks[2], masks[3]) and not torch.equal(masks[0], masks[2])
    assert loss.target is None or loss.target.training
    network.eval()
    loss(denoiser, X0)
    assert loss.target is None or not loss.target.training


def test_only_the_student_has_a_gradient_and_the_target_is_the_average():
    network, loss = STUDENT(), ConsistencyLoss(KarrasPairs(2, 150, total_steps=10), teacher(), target_decay=0.9)
    start, values = network.scale.item(), []
    for k in range(4):
        loss(edm(network), X0).mean().backward()
        values.append(network.scale.item())
        with torch.no_grad():
            network.scale.add_(0.1)
        loss.after_update(network)
        assert loss.updates == k + 1
    want = start
    for k in range(4):
        want += (1 - loss.decay(k)) * (start + 0.1 * (k + 1) - want)
    assert loss.target.scale.item() == pytest.approx(want, rel=1e-12) and loss.decay(0) < loss.decay(3)
    assert (
        network.scale.grad is not None
        and loss.teacher.denoiser.network.scale.grad is None
        and loss.target.scale.grad is None
    )


def test_training_goes_on_from_the_state_of_a_checkpoint():
    def fresh():
        return ConsistencyLoss(KarrasPairs(2, 150, total_steps=10), teacher(), target_decay=0.9)

    network, loss = STUDENT(), fresh()
    loss(edm(network), X0)
    with torch.no_grad():
        network.scale.add_(0.1)
    loss.after_update(network)
    state, again = loss.training_state(), fresh()
    again.load_training_state(state)
    assert torch.equal(*(one(edm(network), X0, image_generators(0, range(6))) for one in (loss, again)))
    assert again.updates == 1 and torch.equal(again.target.scale, loss.target.scale)
    with pytest.raises(ValueError, match="the weights of loss.teacher.ckpt_path are not those that this run was"):
        ConsistencyLoss(KarrasPairs(), teacher(0.8)).load_training_state(state)
    fresh().load_training_state({})


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_the_held_out_loss_of_an_item_depends_on_its_generator_alone(off):
    loss, denoiser = ConsistencyLoss(KarrasPairs(), teacher(), target_decay=0.9), edm(STUDENT()).eval()
    with off():
        whole = loss(denoiser, X0, image_generators(3, range(6)))
        parts = [loss(denoiser, X0[i : i + 1], image_generators(3, [i])) for i in range(6)]
    torch.testing.assert_close(whole, torch.cat(parts))
    loss(denoiser, X0).mean().backward()
    loss.after_update(denoiser.network)


def test_what_has_no_trajectory_is_refused():
    discrete = Denoiser(STUDENT(), DiscreteProcess(Geometric(0.002, 80.0), 10), Parameterization("x0", "log_sigma"))
    with pytest.raises(
        ValueError, match="ConsistencyLoss needs a process with continuous times: use model=consistency"
    ):
        ConsistencyLoss(KarrasPairs())(discrete, X0)
    with pytest.raises(ValueError, match="its noise process"):
        ConsistencyLoss(KarrasPairs(), FrozenDenoiser(discrete)).check(edm(STUDENT()))
    with pytest.raises(ValueError, match="last_intervals=3 must be at least intervals=17"):
        KarrasPairs(17, 3)


def test_at_the_boundary_the_estimate_is_x_itself():
    """And near it, with any network; EDM's own has this at sigma = 0."""
    denoiser, t = edm(STUDENT()), torch.tensor([1e-12], dtype=torch.float64)
    torch.testing.assert_close(denoiser(X0, t).x0, X0, rtol=1e-10, atol=1e-10)
    assert edm(STUDENT(), 0.0)(X0, t).x0.sub(X0).abs().max() > 1e-4
    with pytest.raises(ValueError, match="boundary=0.002 needs output=edm; with output=eps leave it at 0"):
        Parameterization("eps", boundary=0.002)


class AffineOfNoise(torch.nn.Module):
    """F = a(c_noise) x + b(c_noise), which has the consistency function of Gaussian data."""

    def __init__(self):
        super().__init__()
        layers = (
            torch.nn.Linear(1, 64),
            torch.nn.SiLU(),
            torch.nn.Linear(64, 64),
            torch.nn.SiLU(),
            torch.nn.Linear(64, 8),
        )
        self.net = torch.nn.Sequential(*layers)

    def forward(self, x, c_noise):
        a, b = self.net(c_noise[:, None]).chunk(2, 1)
        return a * x + b


GAUSSIAN = Gaussian(torch.tensor([0.3, -0.2, 0.1, 0.0]).double(), torch.tensor([0.05, 0.15, 0.25, 0.5]).double())


def test_a_student_of_gaussian_data_learns_the_consistency_function():
    """f(x) = m + (x - m) sqrt(l / (l + n^2)), within 25 % after 400 small batches."""
    torch.manual_seed(0)
    loss = ConsistencyLoss(TunedPairs(2, 50), distance="huber", c=0.0, weighting="interval")
    network, std = AffineOfNoise(), GAUSSIAN.variance.sqrt()
    student, optimizer = edm(network), torch.optim.RAdam(network.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 400)

    def error(n):
        x = GAUSSIAN.mean + (std**2 + n**2).sqrt() * torch.randn(1000, 4, dtype=torch.float64)
        t = student.process.time(torch.tensor([-2 * math.log(n)], dtype=torch.float64))
        want = x - n * GAUSSIAN.eps_factor(1.0, n, consistency=True) * (x - GAUSSIAN.mean)
        return ((student(x, t).x0 - want) / std).square().mean().sqrt().item()

    assert error(80.0) > 0.9
    for _ in range(400):
        x0 = (GAUSSIAN.mean + std * torch.randn(128, 4)).float()
        optimizer.zero_grad()
        loss(student, x0).mean().backward()
        optimizer.step()
        schedule.step()
        loss.after_update(network)
    assert max(map(error, (80.0, 10.0, 1.0, 0.2))) < 0.25


def test_a_target_is_compiled_as_the_network_is(monkeypatch):
    """Compiled networks draw other dropout masks."""
    compiled = []
    for wanted in (False, True):
        network, loss = STUDENT(), ConsistencyLoss(KarrasPairs(), target_decay=0.9)
        network._compiled_call_impl = network._call_impl if wanted else None
        monkeypatch.setattr(Closed, "compile", lambda self: compiled.append(self))
        loss(edm(network), X0)
        assert compiled == [loss.target] * wanted


def test_a_student_is_trained_resumed_and_sampled_from_by_commands(tmp_path):
    words = ("data=toy2d", "debug=fast", "trainer.accelerator=cpu", "logger=csv", "callback.evaluation=null")

    def command(script, *more, code=0):
        done = run(ROOT / script, *more, cwd=tmp_path)
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    command("train.py", "model=edm", *words, "hydra.run.dir=teacher")
    distil = ("model=consistency", "loss=consistency_distillation", "loss.teacher.ckpt_path=teacher")
    settings = ("loss.target_decay=0.5", "decay_steps=null", "trainer.max_steps=2")
    said = command("train.py", *distil, *words, *settings, "hydra.run.dir=student")
    assert "initialised from the ema weights" in said and "ckpt_path=student" not in said.split("sample from it:")[0]
    assert "sampler=ddim" not in said
    said = command("train.py", "ckpt_path=student", "trainer.max_steps=3")
    assert "resumes from step 2" in said
    file = max(tmp_path.glob("teacher/checkpoints/*.ckpt"))
    contents = torch.load(file, weights_only=True)
    next(iter(contents["ema"]["weights"].values())).add_(1e-3)
    torch.save(contents, file)
    said = command("train.py", "ckpt_path=student", "trainer.max_steps=4", code=2)
    assert "the weights of loss.teacher.ckpt_path are not those that this run was trained with" in said
    file.rename(tmp_path / "elsewhere.ckpt")
    said = command("train.py", "ckpt_path=student", "trainer.max_steps=4", code=2)
    assert "loss.teacher.ckpt_path" in said or "holds no checkpoint" in said
    assert said.strip().count("\n") == 0
    said = command("sample.py", "ckpt_path=student", "num_samples=4", "sampler.steps=1")
    assert "1 network evaluations per sample" in said


@pytest.mark.parametrize(
    "words, message",
    [
        ("loss=consistency_training", "needs a process with continuous times: use model=consistency"),
        ("loss=consistency_tuning model=score data=toy2d", "this model has only one: use model=consistency"),
        ("model=score_sde sde=vp_discrete loss=consistency_tuning", "use model=consistency, or sde=ve, vp or subvp"),
        ("model=consistency loss=consistency_distillation", "loss.teacher.ckpt_path must be given"),
        ("model=consistency loss=consistency_distillation loss.teacher.ckpt_path=x", "loss.teacher.ckpt_path=x does"),
        ("model=consistency loss.pairs.intervals=0", "loss.pairs.intervals=0 must be at least 1"),
        ("model=consistency loss.target_decay=1", r"loss.target_decay=1 must be in \[0, 1\)"),
        ("model=consistency trainer=fsdp", "which trainer=fsdp cannot: use trainer=default"),
        ("model=score_sde sde=vp loss=consistency_improved", None),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused_before_anything_is_imported(words, message):
    if message is None:
        return check("train", words.split())
    with pytest.raises(ConfigError, match=message):
        check("train", words.split())


@pytest.mark.parametrize(
    "weighting, official", [("x0", "uniform"), *(pair for pair in WEIGHTINGS.items() if "snr" in pair[0])]
)
@pytest.mark.parametrize("scales", [1, 4, 16])
def test_losses_of_progressive_distillation_are_those_of_the_program(scales, weighting, official):
    """On its noise levels, even in sigma^(1/7); ours end at data and not at the smallest of them."""
    process = VE(Geometric(0.001, 80.0))  # at whose start, t = 0, there is no level of the program
    both = edm(STUDENT(), boundary=0.0), teacher()
    of_student, of_teacher = (Denoiser(one.network, process, one.parameterization) for one in both)
    loss = ProgressiveLoss(FrozenDenoiser(of_teacher), scales, weighting)
    i = torch.arange(scales, dtype=torch.float64)[:, None] + torch.tensor([0.0, 0.5, 1.0])
    sigma = (80 ** (1 / 7) + i / scales * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    loss.times = lambda process: process.time(-2 * sigma.log())
    got = loss.at(of_student, X0, torch.arange(6) % scales, NOISE)
    torch.testing.assert_close(got, torch.from_numpy(RECORD[f"pd_{scales}_{official}"]), rtol=1e-8, atol=1e-14)
