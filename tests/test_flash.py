"""FlashDiffusion's loss against closed forms and autograd, on Gaussian data."""

from __future__ import annotations

import math

import pytest
import torch
from zygote import run

import diffusion_lab
from diffusion_lab.denoiser import Denoiser
from diffusion_lab.loss import FlashLoss, FrozenDenoiser
from diffusion_lab.network import MLP, Discriminator, UNet
from diffusion_lab.noise import image_generators
from diffusion_lab.parameterization import Parameterization
from diffusion_lab.process import VE, VP, DiscreteProcess, Geometric, Linear
from diffusion_lab.sampler import DDIM, DPMSolver, Sampler

MEAN, STD = 0.4, 0.7
ROW = Parameterization("edm", "quarter_log_sigma", unit_input=True, sigma_data=STD)


class Exact(torch.nn.Module):
    """F of the exact denoiser of N(MEAN, STD^2), given log(sigma) / 4; the weight stands for a trained one."""

    def __init__(self, weight=1.0):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(weight, dtype=torch.float64))
        self.hidden = torch.nn.ModuleList([torch.nn.Identity()])

    def forward(self, x, c_noise):
        ratio = (4 * c_noise.reshape(-1, *(1,) * (x.dim() - 1))).exp() / STD
        x = self.hidden[0](x)
        return self.weight * (MEAN / STD / (1 + ratio**2).sqrt() * ratio + 0 * x)


def exact(weight=1.0):
    return Denoiser(Exact(weight), VE(Geometric(0.002, 80.0)), ROW)


def solver(steps=200):
    return Sampler(DDIM(), steps=steps, spacing="karras", precision="float64")


def flash(**settings):
    quiet = {"matching_weights": [0.0], "adversarial_weights": [0.0], "modes": [[1.0, 1.0]]}
    return FlashLoss(exact(), **{"solver": solver(), **quiet, **settings})


def test_the_teacher_of_gaussian_data_ends_where_its_flow_does():
    """f(x, s) = m + (x - m) sqrt((l + e^2) / (l + s^2)), and the last step to the estimate of x_0."""
    loss, teacher = flash(), exact()
    times = loss.solver.timesteps(teacher)
    x, index = torch.randn(6, 2, dtype=torch.float64), torch.tensor([0, 0, 50, 100, 199, 199])
    sigma, last = teacher.process.sigma(times[index])[:, None], teacher.process.sigma(times[-1])
    at_last = MEAN + (x - MEAN) * ((STD**2 + last**2) / (STD**2 + sigma**2)).sqrt()
    want = MEAN + (at_last - MEAN) * STD**2 / (STD**2 + last**2)
    got = loss.target(FrozenDenoiser(teacher)(teacher), x, times, index)
    torch.testing.assert_close(got, want, rtol=0, atol=0.02)
    torch.testing.assert_close(got[-2:], want[-2:], rtol=0, atol=1e-9)


@pytest.mark.parametrize("first", [0, 1, 2])
def test_the_teacher_makes_its_own_steps_from_the_time_of_x(first):
    """Euler's steps in sigma, written out."""
    loss, teacher = flash(solver=solver(3)), exact()
    times, x = loss.solver.timesteps(teacher), torch.randn(2, 2, dtype=torch.float64)
    got = loss.target(loss.teacher(teacher), x, times, torch.full((2,), first))
    for t, s in zip(times[first:-1], times[first + 1 :], strict=True):
        x = x + (teacher.process.sigma(s) - teacher.process.sigma(t)) * teacher(x, t).eps
    torch.testing.assert_close(got, teacher(x, times[-1]).x0.detach(), rtol=1e-9, atol=1e-12)


def test_the_first_term_is_the_distance_to_the_teachers_sample():
    x0 = torch.randn(5, 2, dtype=torch.float64)
    student = exact(0.3)
    for distance, of in (("l2", torch.square), ("l1", torch.abs)):
        loss = flash(distance=distance, modes=[[1.0]], solver=solver(20))
        got = loss(student, x0, torch.Generator().manual_seed(0))
        # All start at the first time, from noise alone.
        generator = torch.Generator().manual_seed(0)
        torch.rand(5, generator=generator)
        x = 80 * torch.randn(5, 2, dtype=torch.float64, generator=generator)
        times = loss.solver.timesteps(student)
        target = loss.target(loss.teacher(student), x, times, torch.zeros(5, dtype=torch.int64))
        torch.testing.assert_close(got, of(student(x, times[0]).x0 - target).mean(1))


@pytest.mark.parametrize("updates, stage", [(0, 0), (9, 0), (10, 1), (29, 2), (1000, 3)])
def test_times_are_a_mixture_of_peaks_which_changes_from_stage_to_stage(updates, stage):
    loss = FlashLoss(exact(), solver(32), total_steps=40, discriminator=Discriminator)
    loss.updates = updates
    assert loss.stage == stage
    law = loss.probabilities(32)
    weights = [[0, 0, 0.5, 0.5], [0.1, 0.3, 0.3, 0.3], [0.25] * 4, [0.4, 0.2, 0.2, 0.2]][stage]
    at_0 = weights[0] / (1 + math.exp(-2) + math.exp(-8))
    assert law.sum().item() == pytest.approx(1) and law[0].item() == pytest.approx(at_0, rel=1e-3, abs=1e-12)
    assert flash().probabilities(8).sum().item() == pytest.approx(1)  # of weights 1 and 1
    assert law[12:21].sum().item() == pytest.approx(weights[2], rel=1e-3) and law[4].item() < 1e-9


def test_distribution_matching_has_the_published_gradient():
    loss, teacher, student = flash(), exact(1.0), exact(0.2)
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(0)
    (gradient,) = torch.autograd.grad(loss.matching(student, teacher, x).sum(), x)
    torch.manual_seed(0)
    t = student.process.sample_times(4, torch.device("cpu"))
    noised = student.process.perturb(x.detach(), t, torch.randn_like(x))
    own, real = student(noised, t).x0, teacher(noised, t).x0
    want = (own - real) / (x - real).abs().mean(1, keepdim=True) / 3
    torch.testing.assert_close(gradient, want.detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("network, shape", [(lambda: MLP(2, width=16, depth=2), (2,)), (
    lambda: UNet(1, 8, channels=8, multipliers=(1, 1), blocks=1, attention=(), groups=4), (1, 8, 8)
)], ids=["points", "images"])  # fmt: skip
def test_student_and_discriminator_share_no_gradient(network, shape):
    """One optimiser of both makes the updates of two: each sees only its own loss."""
    teacher = Denoiser(network(), VE(Geometric(0.01, 10.0)), ROW)
    loss = FlashLoss(
        teacher, solver(8), matching_weights=[0.0], adversarial_weights=[0.5], modes=[[1.0]],
        discriminator=lambda channels: Discriminator(channels, 8),
    )  # fmt: skip
    loss.check(teacher, shape)
    student, x0 = torch.randn(6, *shape, requires_grad=True), torch.randn(6, *shape)
    of_d = list(loss.discriminator.parameters())

    def gradients(weight):
        torch.manual_seed(0)
        total = loss.adversarial(loss.teacher(teacher), x0, student, weight).mean()
        return torch.autograd.grad(total, [student, *of_d], allow_unused=True)

    (alone, *without), (both, *with_student) = gradients(0.0), gradients(0.5)
    assert alone is None and both.abs().max() > 0
    for one, other in zip(without, with_student, strict=True):
        torch.testing.assert_close(one, other)
    torch.manual_seed(0)
    t = torch.tensor(loss.adversarial_times)[torch.randint(4, (6,))]
    noised = teacher.process.perturb(student, t, torch.randn_like(x0))
    d = loss.discriminator(loss.features_of(loss.teacher(teacher), noised, t))
    (want,) = torch.autograd.grad(0.5 * (d - 1).square().mean(), student)
    torch.testing.assert_close(both, want)


def test_held_out_losses_do_not_depend_on_the_batch():
    loss, student = flash(modes=[[1.0, 1.0, 1.0]], solver=solver(12)), exact(0.3)
    x0 = torch.randn(5, 2, dtype=torch.float64)
    together = loss(student, x0, image_generators(0, range(5)))
    alone = [loss(student, x0[i : i + 1], image_generators(0, [i])) for i in range(5)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-12, atol=0)
    assert len({round(value.item(), 9) for value in together}) == 5


@pytest.mark.parametrize("process", [VP(Linear()), DiscreteProcess(Linear(), 100)])
def test_every_process_and_a_discriminator_train(process):
    """With DPM-Solver++ as the teacher's sampler, as published."""
    torch.manual_seed(0)
    teacher = Denoiser(MLP(2, width=16, depth=2), process, Parameterization("v", "log_sigma"))
    loss = FlashLoss(
        teacher, Sampler(DPMSolver(), steps=8, spacing="log_snr"), total_steps=4, discriminator=Discriminator
    )
    loss.check(teacher, (2,))
    loss.updates = 3
    losses = loss(teacher, torch.randn(4, 2))
    losses.mean().backward()
    assert losses.shape == (4,) and all(p.grad is not None for p in loss.discriminator.parameters())


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="one element for each stage, but have 1, 1 and 2"):
        flash(adversarial_weights=[0.0, 0.0])
    with pytest.raises(ValueError, match="above 0 need a discriminator"):
        flash(adversarial_weights=[0.1])
    with pytest.raises(ValueError, match="must not all be 0"):
        flash(modes=[[0.0, 0.0]])
    loss = flash(features="nothing")
    with pytest.raises(ValueError, match=r"loss\.features=nothing: Exact has no such module; name one of hidden"):
        loss.feature_module(Exact())


TINY = ("data=toy2d", "network.width=16", "network.depth=1", "trainer.accelerator=cpu", "logger=csv", "likelihood=none")
QUIET = ("callback.evaluation.at_end=false", "callback.samples=null", "metric=none", "data.batch_size=32")


def test_a_student_resumes_with_its_discriminator_and_needs_no_teacher_to_sample(tmp_path):
    def train(name, *words):
        done = run(
            "train.py",
            "model=edm",
            *TINY,
            *QUIET,
            f"hydra.run.dir={tmp_path}/{name}",
            f"paths.log_dir={tmp_path}",
            *words,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def weights(name):
        contents = torch.load(tmp_path / name / "checkpoints" / "step_00000005.ckpt", weights_only=True)
        return contents["state_dict"] | {
            f"{i}.{key}": value
            for i, one in contents["optimizer_states"][0]["state"].items()
            for key, value in one.items()
        }

    flash = ("loss=flash", f"loss.teacher.ckpt_path={tmp_path}/teacher", "loss.solver.steps=4", "loss.total_steps=4")
    flash = (*flash, "sampler=consistency", "decay_steps=null", "callback.checkpoint.every_n_steps=2")
    train("teacher", "trainer.max_steps=2")
    train("whole", *flash, "trainer.max_steps=5")
    train("parts", *flash, "trainer.max_steps=2")
    train("parts", f"ckpt_path={tmp_path}/parts", "trainer.max_steps=5")
    whole, parts = weights("whole"), weights("parts")
    assert any("discriminator" in name for name in whole) and whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    (tmp_path / "teacher").rename(tmp_path / "gone")
    assert diffusion_lab.load(tmp_path / "whole").sample(3).isfinite().all()
