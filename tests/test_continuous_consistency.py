"""Consistency in continuous time against finite differences and closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from test_consistency import GAUSSIAN, NOISE, STUDENT, X0, Closed, Dropped, edm, teacher
from zygote import ROOT, run

from diffusion_lab.config.compose import check
from diffusion_lab.denoiser import Denoiser
from diffusion_lab.errors import ConfigError
from diffusion_lab.loss import ContinuousConsistencyLoss
from diffusion_lab.noise import image_generators
from diffusion_lab.parameterization import Parameterization
from diffusion_lab.process import VE, VP, DiscreteProcess, Geometric, Linear

PROCESSES = {"ve": VE(Geometric(0.002, 80.0)), "vp": VP(Linear())}
T = torch.tensor([0.2, 0.4, 0.5, 0.6, 0.7, 0.9], dtype=torch.float64)


def along(network, a, z):
    """(f, F, X) at angle a (B,) of X = cos(a) x_0 + sin(a) z, as the paper has them but for the sign of F."""
    cos, sin = (k.reshape(-1, 1, 1, 1) for k in (a.cos(), a.sin()))
    x = cos * X0 + sin * z
    f = network(x / 0.5, (0.5 * a.tan()).log() / 4)
    return cos * x + sin * 0.5 * f, f, x


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("r", [0.0, 0.3, 1.0])
def test_the_tangent_is_that_of_finite_differences(process, r):
    """g = cos^2 (dX/da + sigma_data F) + r cos sin (sigma_data dF/da - X), with z = sigma_data eps, for any process."""
    denoiser, process = edm(STUDENT(), 0.0), PROCESSES[process]
    denoiser.process = process
    a = (-process.log_snr(T) / 2).exp().div(0.5).atan()
    e, z = 1e-5, 0.5 * NOISE
    ends = [along(denoiser.network, a + k * e, z) for k in (1, -1, 0)]
    dF, dX = ((ends[0][i] - ends[1][i]) / (2 * e) for i in (1, 2))
    cos, sin = (k.reshape(-1, 1, 1, 1) for k in (a.cos(), a.sin()))
    want = cos**2 * (dX + 0.5 * ends[2][1]) + r * cos * sin * (0.5 * dF - ends[2][2])
    got, unit = ContinuousConsistencyLoss().tangent(denoiser, process.perturb(X0, T, NOISE), T, NOISE, r)
    torch.testing.assert_close(got, want.detach(), rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(unit, 0.5 * sin)


def test_the_exact_consistency_function_has_no_tangent_along_the_exact_flow():
    mean, variance = GAUSSIAN.mean, GAUSSIAN.variance

    def consistency(x, c_noise):
        return mean + (x - mean) * (variance / (variance + (8 * c_noise[:, None]).exp())).sqrt()

    def posterior_mean(x, c_noise):
        return mean + (x - mean) * variance / (variance + (8 * c_noise[:, None]).exp())

    row = Parameterization("x0", "quarter_log_sigma")
    student, flow, wrong = (
        Denoiser(function, PROCESSES["ve"], row) for function in (consistency, posterior_mean, posterior_mean)
    )
    x0, eps = torch.randn(2, 6, 4, dtype=torch.float64)
    loss = ContinuousConsistencyLoss(teacher=flow).eval()
    assert loss.at(student, x0, T, eps).max() < 1e-20 and loss.at(wrong, x0, T, eps).min() > 1e-6


def test_the_gradient_is_that_of_the_frozen_tangent():
    """2 g / (|g| + c) dF / D, of the network alone; the weight starts at 0 and learns exp(w) l - 1."""
    denoiser, loss = edm(STUDENT(), 0.0), ContinuousConsistencyLoss(warmup=2)
    loss.updates = 1
    x = denoiser.process.perturb(X0, T, NOISE)
    g, _ = loss.tangent(denoiser, x, T, NOISE, 0.5)
    g = g / (g.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1) + 0.1)
    losses = loss.at(denoiser, X0, T, NOISE)
    torch.testing.assert_close(losses, g.square().flatten(1).mean(1))
    losses.sum().backward()
    network = STUDENT()
    a = (-denoiser.process.log_snr(T) / 2).exp().div(0.5).atan()
    (2 * g * along(network, a, 0.5 * NOISE)[1] / g[0].numel()).sum().backward()
    torch.testing.assert_close(denoiser.network.scale.grad, network.scale.grad)
    assert loss.weight.linear.bias.grad.item() == pytest.approx((losses - 1).sum().item(), rel=1e-5)


def test_both_passes_share_dropout_masks():
    network = Dropped()
    ContinuousConsistencyLoss()(edm(network, 0.0), X0)
    assert torch.equal(network.masks[0], network.masks[1])


def test_a_teacher_gives_the_direction_and_is_known_again():
    loss, denoiser = ContinuousConsistencyLoss(teacher=teacher()), edm(STUDENT(), 0.0)
    x = denoiser.process.perturb(X0, T, NOISE)
    eps = teacher()(x, T).eps
    got = loss.tangent(denoiser, x, T, NOISE, 1.0)[0]
    torch.testing.assert_close(got, ContinuousConsistencyLoss().tangent(denoiser, x, T, eps, 1.0)[0])
    loss.after_update(denoiser.network)
    again = ContinuousConsistencyLoss(teacher=teacher())
    again.load_training_state(loss.training_state())
    assert again.updates == 1
    with pytest.raises(ValueError, match="the weights of loss.teacher.ckpt_path are not those that this run was"):
        ContinuousConsistencyLoss(teacher=teacher(0.8)).load_training_state(loss.training_state())


def test_the_held_out_loss_of_an_item_depends_on_its_generator_alone():
    loss, denoiser = ContinuousConsistencyLoss().eval(), edm(STUDENT(), 0.0).eval()
    with torch.inference_mode():
        whole = loss(denoiser, X0, image_generators(3, range(6)))
        parts = [loss(denoiser, X0[i : i + 1], image_generators(3, [i])) for i in range(6)]
    torch.testing.assert_close(whole, torch.cat(parts))


def test_discrete_levels_are_refused():
    discrete = Denoiser(Closed(1.0), DiscreteProcess(Geometric(0.002, 80.0), 10), Parameterization("x0", "log_sigma"))
    with pytest.raises(ValueError, match="ContinuousConsistencyLoss needs a process with continuous times"):
        ContinuousConsistencyLoss()(discrete, X0)
    with pytest.raises(ConfigError, match="which trainer=fsdp cannot: use trainer=default"):
        check("train", ["model=consistency", "loss=consistency_continuous", "trainer=fsdp"])


def test_commands_train_resume_and_sample_an_image_network_with_attention(tmp_path):
    words = ("debug=fast", "trainer.accelerator=cpu", "logger=csv", "callback.evaluation=null")

    def command(script, *more):
        done = run(ROOT / script, *more, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    command("train.py", "model=edm", *words, "hydra.run.dir=teacher")
    method = ("model=consistency", "loss=consistency_continuous_distillation", "loss.teacher.ckpt_path=teacher")
    command("train.py", *method, *words, "decay_steps=null", "trainer.max_steps=2", "hydra.run.dir=part")
    command("train.py", "ckpt_path=part", "trainer.max_steps=3")
    command("train.py", *method, *words, "decay_steps=null", "trainer.max_steps=3", "hydra.run.dir=whole")
    states = [
        torch.load(tmp_path / run / "checkpoints/step_00000003.ckpt", weights_only=True) for run in ("part", "whole")
    ]
    assert all(torch.equal(value, states[1]["state_dict"][key]) for key, value in states[0]["state_dict"].items())
    assert "1 network evaluations per sample" in command(
        "sample.py", "ckpt_path=whole", "num_samples=4", "sampler.steps=1"
    )
    assert math.isfinite(sum(value.double().sum().item() for value in states[0]["state_dict"].values()))
