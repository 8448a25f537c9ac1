"""Progressive distillation: the loss against an independent computation, its exact students, and the command."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import zygote
from experiment import composed
from test_resume import STATE, assert_bit_equal

import diffusion_lab
from diffusion_lab.config.compose import check
from diffusion_lab.denoiser import Denoiser
from diffusion_lab.errors import ConfigError
from diffusion_lab.launch.distill import halvings
from diffusion_lab.loss import FrozenDenoiser, ProgressiveLoss
from diffusion_lab.loss.progressive import signal_to_noise
from diffusion_lab.noise import image_generators
from diffusion_lab.parameterization import Parameterization
from diffusion_lab.process import VE, VP, Cosine, DiscreteProcess, Geometric, Linear, ProbabilityPath, Rectified, SubVP
from diffusion_lab.sampler import DDIM, Sampler
from diffusion_lab.verification import mixture
from diffusion_lab.verification.mixture import exact_denoiser

PROCESSES = {
    "vp": VP(Cosine()),
    "subvp": SubVP(Linear()),
    "ve": VE(Geometric(0.01, 20.0)),
    "flow": ProbabilityPath(Rectified()),
    "ddpm": DiscreteProcess(Linear(), 1000),
    "ncsn": DiscreteProcess(Geometric(0.01, 20.0), 12),
}
SHAPE = (1, 8, 8)


class Wave(torch.nn.Module):
    """A network whose every output depends on its input and on the noise level."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(factor, dtype=torch.float64))
        self.seen = []

    def forward(self, x, c_noise):
        self.seen.append(x)
        return torch.sin(self.factor * x + 0.1 * c_noise.log1p()[:, None, None, None])


def denoiser_of(process, output="v", factor=0.7):
    return Denoiser(
        Wave(factor), process, Parameterization(output=output, c_noise="level" if process.levels else "time_999")
    )


def estimates(network, output, z, a, s, c_noise):
    """(x_0, eps) of a network's output at z = a x_0 + s eps, from the definitions of eps and v alone."""
    f = network(z, c_noise).detach().numpy()
    if output == "eps":
        return (z.numpy() - s * f) / a, f
    if output == "x0":
        return f, (z.numpy() - a * f) / s
    inverse = np.linalg.inv([[a, s], [-s, a]])  # z = a x + s e and v = a e - s x
    return inverse[0, 0] * z.numpy() + inverse[0, 1] * f, inverse[1, 0] * z.numpy() + inverse[1, 1] * f


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("output", ["eps", "x0", "v"])
@pytest.mark.parametrize("weighting", ["truncated_snr", "snr_plus_one", "snr", "x0"])
def test_losses_are_those_of_algorithm_2(name, output, weighting):
    """Two DDIM steps as printed, then the closed-form inversion, for each image and its own step, in float64."""
    process, count = PROCESSES[name], 3
    student, teacher = denoiser_of(process, output), denoiser_of(process, output, factor=1.3)
    loss = ProgressiveLoss(FrozenDenoiser(teacher), count, weighting)
    generator = torch.Generator().manual_seed(0)
    x0, eps = (torch.randn(4, *SHAPE, dtype=torch.float64, generator=generator) for _ in range(2))
    step = torch.tensor([0, 1, 2, 1])
    found = loss.at(student, x0, step, eps)
    levels = process.levels or 0
    grid = [*process.timesteps(2 * count, "trailing").tolist(), 0.0]
    for i, k in enumerate(step.tolist()):
        (a, s), (a1, s1), (a2, s2) = (
            (1.0, 0.0) if t == 0 else map(float, process.alpha_sigma(torch.tensor(t, dtype=torch.float64)))
            for t in grid[2 * k : 2 * k + 3]
        )
        c, c1 = (
            torch.tensor([t * levels - 1 if levels else 999 * t], dtype=torch.float64) for t in grid[2 * k : 2 * k + 2]
        )
        z = a * x0[i : i + 1] + s * eps[i : i + 1]
        x, e = estimates(teacher.network, output, z, a, s, c)
        z1 = a1 * x + s1 / s * (z.numpy() - a * x)
        np.testing.assert_allclose(z1, a1 * x + s1 * e, atol=1e-9)
        x1, _ = estimates(teacher.network, output, torch.from_numpy(z1), a1, s1, c1)
        z2 = a2 * x1 + s2 / s1 * (z1 - a1 * x1)
        target = (z2 - s2 / s * z.numpy()) / (a2 - s2 / s * a)
        ours, noise = estimates(student.network, output, z, a, s, c)
        x_error, eps_error = ((ours - target) ** 2).mean(), ((noise - (z.numpy() - a * target) / s) ** 2).mean()
        v_error = x_error + eps_error  # SNR + 1; that of v itself where alpha^2 + sigma^2 = 1
        if name in ("vp", "ddpm"):
            v, v_target = (a * n - s * d for n, d in ((noise, ours), ((z.numpy() - a * target) / s, target)))
            assert v_error == pytest.approx(((v - v_target) ** 2).mean(), rel=1e-6)
        expected = {"truncated_snr": max(x_error, eps_error), "snr_plus_one": v_error, "snr": eps_error, "x0": x_error}
        assert found[i].item() == pytest.approx(expected[weighting], rel=1e-8)


@pytest.mark.parametrize("name", PROCESSES)
def test_a_student_without_loss_samples_in_half_of_the_steps_what_its_teacher_does(name):
    """On Gaussian data, with the exact teacher, in float64."""
    process, count = PROCESSES[name], 4
    teacher = exact_denoiser(mixture.diag64(), process)
    loss = ProgressiveLoss(FrozenDenoiser(teacher), count)
    times = loss.times(process)
    called = []

    def student(x, c_noise):  # the noise that belongs to the target, which makes the loss zero
        step = len(called) % count
        called.append(c_noise)
        t = times[step]
        share = loss_share(process, t)
        x1 = teacher(x, t[:1].expand(len(x)))
        a, s = process.marginal(t[1], x)
        target = torch.lerp(teacher(a * x1.x0 + s * x1.eps, t[1:2].expand(len(x))).x0, x1.x0, share)
        alpha, sigma = process.marginal(t[0], x)
        return (x - alpha * target) / sigma

    denoiser = Denoiser(student, process, teacher.parameterization)
    samplers = (Sampler(DDIM(), steps=steps, spacing="trailing", precision="float64") for steps in (count, 2 * count))
    found, wanted = (
        sampler(one, (3, *SHAPE), image_generators(0, range(3)), "cpu")
        for sampler, one in zip(samplers, (denoiser, teacher), strict=True)
    )
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-8)
    assert len(called) == count
    called.clear()
    x0 = torch.randn(1, *SHAPE, dtype=torch.float64)
    for step in range(count):
        assert loss.at(denoiser, x0, torch.tensor([step]), torch.randn_like(x0)).item() < 1e-12


def loss_share(process, t):
    k = signal_to_noise(process, t[None])[0]
    return ((k[1] - k[0]) / (k[2] - k[0])).item()


def test_teacher_and_student_see_the_same_noise_and_the_teacher_gets_no_gradient():
    student, teacher = denoiser_of(PROCESSES["ddpm"]), denoiser_of(PROCESSES["ddpm"])
    frozen = FrozenDenoiser(teacher)
    ProgressiveLoss(frozen, 4)(student, torch.randn(3, *SHAPE)).sum().backward()
    assert (
        torch.equal(student.network.seen[0], frozen.denoiser.network.seen[0]) and student.network.factor.grad.abs() > 0
    )
    assert frozen.denoiser.network.factor.grad is None and len(frozen.denoiser.network.seen) == 2


def test_held_out_losses_depend_on_the_item_alone_and_every_step_is_taught():
    loss = ProgressiveLoss(FrozenDenoiser(denoiser_of(PROCESSES["vp"])), 3)
    student, x0 = denoiser_of(PROCESSES["vp"], factor=0.2), torch.randn(5, *SHAPE)
    together = loss(student, x0, image_generators(0, range(5)))
    alone = [loss(student, x0[i : i + 1], image_generators(0, [i])) for i in range(5)]
    torch.testing.assert_close(together, torch.cat(alone))
    loss(student, torch.randn(60, *SHAPE))
    assert len({round(x.std().item(), 9) for x in student.network.seen[-1]}) > 3
    assert loss.times(PROCESSES["vp"]).shape == (3, 3) and (loss.times(PROCESSES["vp"]).diff(dim=1) < 0).all()


@pytest.mark.parametrize("process, options, message", [
    (DiscreteProcess(Linear(), 10), {"steps": 6}, "between 1 and the model's 10 levels, got 12"),
    (DiscreteProcess(Linear(), 10), {"steps": 5, "spacing": "linspace"}, "use loss.spacing=trailing"),
    (VP(Linear()), {"steps": 4}, "differs in its noise process"),
])  # fmt: skip
def test_what_makes_no_sense_is_refused(process, options, message):
    teacher = denoiser_of(process if process.levels else VP(Cosine()))
    with pytest.raises(ValueError, match=message):
        ProgressiveLoss(FrozenDenoiser(teacher), **options).check(denoiser_of(process))


@pytest.mark.parametrize("model", ["ddpm", "edm", "score_sde"])
def test_a_student_begins_as_its_teacher_and_samples_in_its_steps_by_default(model):
    found = composed(f"model={model}", "loss=progressive", "loss.steps=6", "loss.teacher.ckpt_path=RUN", "sampler=ddim")
    assert found["init_from"] == "RUN" and (found["sampler"]["steps"], found["sampler"]["spacing"]) == (6, "trailing")
    assert found["model"]["loss"]["steps"] == 6


def test_a_classifier_is_refused_before_anything_is_loaded():
    words = ["model=classifier", "data.conditional=true", "loss=progressive", "loss.teacher.ckpt_path=."]
    with pytest.raises(ConfigError, match="not model=classifier"):
        check("train", words)


@pytest.mark.parametrize("text, message", [
    ("8,4,1", "1 must be half of 4"), ("8,x", "must be numbers"), ("0", "must be numbers"), ("", "must be numbers"),
    ("7,3", "3 must be half of 7"),
])  # fmt: skip
def test_steps_are_halved(text, message):
    assert halvings("8,4,2,1") == [8, 4, 2, 1] and halvings("[6,3]") == [6, 3]
    with pytest.raises(ConfigError, match=message):
        halvings(text)


TOY = (
    "data=toy2d", "network.width=16", "model.output=v", "callback.evaluation.at_end=false", "rehearsal=false",
    "trainer.accelerator=cpu", "callback.samples.count=10", "trainer.max_steps=12",
)  # fmt: skip


def command(*words: object, code: int = 0) -> str:
    """What a command prints."""
    done = zygote.run(*words)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def distilled(tmp_path_factory):
    """(run of the teacher, what the distillation to 2 steps and to 1 printed)."""
    run = tmp_path_factory.mktemp("progressive") / "teacher"
    command(
        "train.py",
        *TOY,
        "sampler=heun",
        "seed=3",
        "time_law=importance",
        f"hydra.run.dir={run}",
        f"paths.log_dir={run.parent}",
    )
    return run, command("-m", "diffusion_lab.distill", run, "steps=2,1", "loss.weighting=snr_plus_one")


def test_students_are_trained_one_after_another_and_sample_in_their_steps(distilled, tmp_path):
    run, said = distilled
    assert "2 steps: a student of" in said and "initialised from the ema weights of step 12 of" in said
    students = {count: diffusion_lab.load(run / f"progressive/steps_{count:04d}") for count in (2, 1)}
    for count, teacher in ((2, run), (1, run / "progressive" / "steps_0002")):
        config = students[count].config
        assert config["loss"]["teacher"]["ckpt_path"] == str(teacher / "checkpoints" / "step_00000012.ckpt")
        assert (config["loss"]["steps"], config["loss"]["weighting"], config["seed"]) == (count, "snr_plus_one", 3)
        assert config["model"]["sampler"]["spacing"] == "trailing" and config["choices"]["sampler"] == "ddim"
        students[count].denoiser.nfe = 0
        students[count].sample(3)
        assert students[count].denoiser.nfe == count
    again = command("-m", "diffusion_lab.distill", run, "steps=2,1", "loss.weighting=snr_plus_one")
    assert "2 steps: finished" in again and "1 steps: finished" in again
    said = command("-m", "diffusion_lab.distill", run, "steps=2,1", "loss.weighting=snr", code=2)
    assert "steps_0002 holds a student of other settings" in said and len(said.splitlines()) == 1


def test_a_resumed_student_is_bit_equal(distilled, tmp_path):
    words = json.loads((distilled[0] / "progressive/distill.json").read_text())["2"]
    place, less = f"hydra.run.dir={tmp_path}/run", "decay_steps=12"
    command("train.py", *words, less, "trainer.max_steps=5", place, "ckpt_path=auto")
    assert "resumes from step 5" in command("train.py", *words, less, place, "ckpt_path=auto")
    ends = [
        run / "checkpoints/step_00000012.ckpt" for run in (distilled[0] / "progressive/steps_0002", tmp_path / "run")
    ]
    whole, part = (torch.load(path, weights_only=True) for path in ends)
    assert_bit_equal({k: whole[k] for k in STATE}, {k: part[k] for k in STATE})


@pytest.mark.parametrize("words, message", [
    (["steps=4,1"], "1 must be half of 4"),
    (["steps=2", "sampler=heun"], "sampler=heun: distill sets this itself, leave it out"),
    (["steps=2", "loss.steps=3"], "loss.steps=3: distill sets this itself"),
    (["steps=2", "loss.weighting=snrr"], "did you mean snr?"),
    (["steps=2", "schedule=cosine"], "differs in its noise process"),
])  # fmt: skip
def test_the_command_refuses_in_one_line(distilled, tmp_path, words, message):
    said = command("-m", "diffusion_lab.distill", distilled[0], *words, f"out={tmp_path}/out", code=2)
    lines = [line for line in said.strip().splitlines() if "a student of" not in line]
    assert message in said and len(lines) == 1
    assert not list((tmp_path / "out").glob("*/checkpoints"))
