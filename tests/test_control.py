"""Controlled sampling against closed forms: Gaussian data, whose posterior given a linear measurement is Gaussian."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from diffusion_lab.control import DPS, BlockAverage, Blur, Grey, Mask, PiGDM, RePaint, Replacement, SDEdit
from diffusion_lab.control.operator import LinearOperator, conjugate_gradients
from diffusion_lab.guidance import ClassifierGuidance, ClassPosterior
from diffusion_lab.loss import DenoisingLoss
from diffusion_lab.model import DDPM, rehearse
from diffusion_lab.process import VE, VP, DiscreteProcess, Geometric, Linear, SubVP
from diffusion_lab.sampler import (
    DDIM,
    EDM,
    AdamsBashforth,
    Ancestral,
    DPMSolver,
    Langevin,
    ReverseDiffusion,
    Sampler,
    UniPC,
)
from diffusion_lab.sampler.ode import ProbabilityFlow
from diffusion_lab.verification.linear_gaussian import GaussianImages

PROCESSES = {
    "vp": VP(Linear()),
    "subvp": SubVP(Linear()),
    "ve": VE(Geometric(0.01, 20.0)),
    "ddpm": DiscreteProcess(Linear(), 1000),
    "ncsn": DiscreteProcess(Geometric(0.01, 20.0), 100),
}
SHAPE, COUNT = (2, 2, 2), 2000
PIXELS = 8


def eye(count=PIXELS):
    return torch.eye(count, dtype=torch.float64)


def correlated():
    root = 0.4 * torch.randn(PIXELS, PIXELS, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return root @ root.T + 0.3 * eye()


def gaussian(process, covariance, mean=0.0):
    """The exact denoiser of N(mean, covariance), for images of SHAPE."""
    return GaussianImages(SHAPE, covariance, mean).denoiser(process)


def matrix(operator: LinearOperator, shape=SHAPE):
    """A as a matrix (measured values, pixels)."""
    return GaussianImages(shape, eye()).matrix(operator)


def sampled(control, denoiser, sampler=None, count=COUNT, shape=SHAPE):
    like = torch.zeros(count, *shape, dtype=torch.float64)
    sampler = sampler or Sampler(DDIM(), steps=60, spacing="karras" if denoiser.process.levels is None else "uniform")
    sampler.dtype = torch.float64
    return sampler(control.of(range(count), lambda x: x, like)(denoiser), like.shape, torch.Generator().manual_seed(0))


OPERATORS = {
    "mask": Mask(torch.tensor([[1.0, 0.0], [1.0, 1.0]])),
    "blocks": BlockAverage(2),
    "grey": Grey(2),
    "blur": Blur(torch.tensor([[0.0, 0.2, 0.0], [0.1, 0.5, 0.1], [0.0, 0.1, 0.0]])),
}


class TestOperators:
    @pytest.mark.parametrize("name", OPERATORS)
    def test_the_transpose_and_the_inverse_are_those_of_the_matrix(self, name):
        operator, shape = OPERATORS[name], (2, 4, 4) if name == "blur" else SHAPE
        if name == "blur":
            operator = operator.of([0], torch.zeros(1, dtype=torch.float64))
        a = matrix(operator, shape)
        y = torch.randn(3, *operator(torch.zeros(1, *shape, dtype=torch.float64)).shape[1:], dtype=torch.float64)
        torch.testing.assert_close(operator.transpose(y).flatten(1), y.flatten(1) @ a, atol=1e-12, rtol=0)
        both = 0.7 * a @ a.T + 0.2 * eye(len(a))
        if name == "mask":  # measurements are 0 elsewhere
            y = operator(y)
        solved = operator.solve(y, 0.7, 0.2).flatten(1)
        solved = operator(solved.reshape(y.shape)).flatten(1) if name == "mask" else solved
        wanted = torch.linalg.solve(both, y.flatten(1).T).T
        torch.testing.assert_close(solved, wanted, atol=1e-10, rtol=0)
        if operator.scale is not None and name != "mask":
            torch.testing.assert_close(a @ a.T, operator.scale * eye(len(a)), atol=1e-12, rtol=0)

    def test_conjugate_gradients_solve_each_image_by_itself(self):
        root = torch.randn(6, 6, dtype=torch.float64)
        a, y = (
            root @ root.T + eye(6),
            torch.randn(4, 6, dtype=torch.float64) * torch.tensor([[1.0], [1e-6], [0], [1e6]]),
        )
        solved = conjugate_gradients(lambda v: v @ a, y)
        torch.testing.assert_close(solved, torch.linalg.solve(a, y.T).T, rtol=1e-7, atol=1e-12)
        torch.testing.assert_close(conjugate_gradients(lambda v: v @ a, y[1:2]), solved[1:2], rtol=1e-12, atol=0)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("name", OPERATORS)
def test_the_pseudoinverse_method_is_the_exact_posterior_score_of_white_gaussian_data(process, name):
    operator, noise, shape = OPERATORS[name], 0.3, SHAPE
    if name == "blur":
        operator = Blur(torch.tensor([[0.6]]))
    denoiser, a = gaussian(process, eye()), matrix(operator)
    x = torch.randn(5, *shape, dtype=torch.float64)
    y = operator(torch.randn(5, *shape, dtype=torch.float64))
    control = PiGDM(operator, y, noise).of(range(5), lambda x: x, x)
    mean = torch.linalg.inv(a @ a.T + noise**2 * eye(len(a)))
    gain = a.T @ mean  # of x_0 | y
    centre, covariance = (y.flatten(1) @ gain.T), eye() - gain @ a
    for t in process.timesteps(5 if process.levels is None else 20)[:4]:
        alpha, sigma = process.alpha_sigma(t)
        wanted = -(x.flatten(1) - alpha * centre) @ torch.linalg.inv(alpha**2 * covariance + sigma**2 * eye())
        score = control(denoiser)(x, t).score.flatten(1)
        torch.testing.assert_close(score, wanted, atol=1e-8, rtol=1e-6)


def moments(x):
    x = x.flatten(1)
    return x.mean(0), torch.cov(x.T)


@pytest.mark.parametrize("process", [PROCESSES["vp"], PROCESSES["ve"], PROCESSES["ddpm"]], ids=["vp", "ve", "ddpm"])
def test_the_pseudoinverse_method_draws_from_the_posterior_of_white_data(process):
    guide = torch.tensor([[[[0.8, -1.0]] * 2] * 2], dtype=torch.float64)
    control = PiGDM(OPERATORS["mask"], guide, 0.5)
    x = sampled(control, gaussian(process, eye()), Sampler(DDIM(), steps=50, spacing="uniform"))
    mean, covariance = GaussianImages(SHAPE, eye()).posterior(OPERATORS["mask"], OPERATORS["mask"](guide), 0.5)
    got, spread = moments(x)
    assert (got - mean).abs().max() < 0.08 and (spread - covariance).abs().max() < 0.12


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("kind", [Replacement, RePaint])
@pytest.mark.parametrize("name", ["mask", "blocks", "grey"])
def test_replacement_keeps_the_measurement_exactly_and_leaves_independent_pixels_alone(process, kind, name):
    operator, guide = OPERATORS[name], torch.tensor([[[[0.8, -1.0]] * 2] * 2], dtype=torch.float64)
    more = {"jump_length": 3, "resamplings": 2} if kind is RePaint else {}
    x = sampled(kind(operator, guide, **more), gaussian(process, eye()), Sampler(DDIM(), steps=12))
    measured = operator(x)
    torch.testing.assert_close(measured, operator(guide).expand_as(measured), atol=1e-9, rtol=0)
    free = x - operator.transpose(measured) / operator.scale
    assert free.mean().abs() < 0.05  # for white data the measurement says nothing about the rest


def test_repaint_comes_closer_to_the_posterior_of_correlated_data_than_replacement():
    covariance, guide = correlated(), torch.tensor([[[[0.8, -1.0]] * 2] * 2], dtype=torch.float64)
    denoiser = gaussian(PROCESSES["ddpm"], covariance)
    mean, _ = GaussianImages(SHAPE, covariance).posterior(OPERATORS["mask"], OPERATORS["mask"](guide), 0.0)
    sampler = Sampler(Ancestral("fixed_small"), steps=40)
    errors = {
        control.name: (moments(sampled(control, denoiser, sampler))[0] - mean).norm().item()
        for control in (
            Replacement(OPERATORS["mask"], guide),
            RePaint(OPERATORS["mask"], guide, jump_length=5, resamplings=8),
        )
    }
    assert errors["repaint"] < 0.6 * errors["replacement"]


def test_unipc_predicts_again_where_a_control_has_moved_x():
    """A prediction made before the measured pixels were replaced would draw the others from a wrong law."""
    covariance, guide = correlated(), torch.tensor([[[[0.8, -1.0]] * 2] * 2], dtype=torch.float64)
    denoiser, control = gaussian(PROCESSES["ddpm"], covariance), Replacement(OPERATORS["mask"], guide)
    fine = sampled(control, denoiser, Sampler(DDIM(), steps=500))
    found = sampled(control, denoiser, Sampler(UniPC(), steps=20))
    for a, b in zip(moments(found), moments(fine), strict=True):
        assert (a - b).norm() < 0.3 * b.norm()


def test_repaint_as_published_makes_2410_network_evaluations():
    path = RePaint(OPERATORS["mask"], torch.zeros(1, 2, 2, 2)).path([1 - i / 250 for i in range(250)])
    assert sum(s < t for t, s in pairwise(path)) + 1 == 2410


def test_dps_moves_each_image_by_the_gradient_of_its_own_residual():
    process, scale = PROCESSES["ddpm"], 0.4
    denoiser, guide = gaussian(process, correlated()), torch.rand(3, *SHAPE, dtype=torch.float64)
    control = DPS(OPERATORS["blocks"], guide, scale=scale)
    x = torch.randn(3, *SHAPE, dtype=torch.float64)
    sampler = Sampler(DDIM(), steps=10, denoise=False, precision="float64")
    plain = next(sampler.trajectory(denoiser, x)).x
    moved = next(sampler.trajectory(control.of(range(3), lambda x: x, x)(denoiser), x)).x

    def distance(x):
        x0 = denoiser(x, sampler.timesteps(denoiser)[0]).x0
        residual = (OPERATORS["blocks"](guide) - OPERATORS["blocks"](x0)).flatten(1)
        return residual.norm(dim=1).sum()

    gradient = torch.autograd.functional.jacobian(distance, x)
    torch.testing.assert_close(moved, plain - scale * gradient, atol=1e-9, rtol=1e-7)


CONTROLS = {
    "replacement": lambda guide: Replacement(OPERATORS["mask"], guide),
    "repaint": lambda guide: RePaint(OPERATORS["mask"], guide, jump_length=2, resamplings=2),
    "dps": lambda guide: DPS(OPERATORS["mask"], guide),
    "pigdm": lambda guide: PiGDM(OPERATORS["mask"], guide, 0.1),
    "sdedit": lambda guide: SDEdit(guide, 0.6, mask=OPERATORS["mask"].mask, repeats=2),
}


class Squash(torch.nn.Module):
    """A network that is smooth and not linear."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(0.8))

    def forward(self, x, t):
        return self.scale * x.tanh()


SAMPLERS = {
    "ancestral": Sampler(Ancestral(), steps=8),
    "heun": Sampler(EDM(), steps=6),
    "pc": Sampler(ReverseDiffusion(), Langevin(), steps=6),
    "dpm_solver": Sampler(DPMSolver(), steps=8),
    "unipc": Sampler(UniPC(), steps=8),
    "lms": Sampler(AdamsBashforth(), steps=8),
}


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", CONTROLS)
def test_an_image_does_not_depend_on_its_batch_and_recorded_steps_equal_written_ones(name, sampler):
    guide, loop = torch.rand(3, *SHAPE), SAMPLERS[sampler]
    model = DDPM(Squash(), Linear(), DenoisingLoss(), loop, shape=SHAPE)
    control = CONTROLS[name](guide)
    every = model.sample(5, control=control, sampler=loop)
    alone = model.sample(1, first=4, control=control, sampler=loop)
    torch.testing.assert_close(every[4:], alone, atol=0.01, rtol=0)  # a grey level is 1/255
    assert (every[0] - every[3]).abs().max() > 0.02  # the same guide, another noise
    denoiser = model.sampling_denoiser(None, control=control, images=range(2))
    x = torch.randn(2, *SHAPE)
    *_, last = loop.trajectory(denoiser, x, torch.Generator().manual_seed(3))
    written = loop.as_written(denoiser, x, torch.Generator().manual_seed(3))
    torch.testing.assert_close(last.x, written, atol=1e-4, rtol=1e-4)


class Logits(torch.nn.Module):
    """A classifier of images with weights."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(PIXELS, 3)

    def forward(self, x, t):
        return self.layer(x.flatten(1))


@pytest.mark.parametrize("form", ["score", "mean"])
@pytest.mark.parametrize("name", CONTROLS)
def test_a_classifier_guides_controlled_samples_too(name, form):
    torch.manual_seed(0)
    loop = Sampler(Ancestral(), steps=8)
    model = DDPM(Squash(), Linear(), DenoisingLoss(), loop, shape=SHAPE)
    model.control = CONTROLS[name](torch.rand(3, *SHAPE))
    posterior = ClassPosterior(Logits(), model.denoiser.process, model.denoiser.parameterization, 3, SHAPE)
    off, on = (ClassifierGuidance(posterior, 1, scale, form=form) for scale in (0.0, 5.0))
    model.guidance = on
    rehearse(model, torch.rand(2, *SHAPE), training=False)
    assert (model.sample(4) - model.sample(4, guidance=off)).abs().max() > 0.05


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("t0", [0.3, 0.7, 1.0])
def test_the_law_of_sdedit_given_its_guide_is_the_flow_of_the_noised_guide(process, t0):
    variance, mean, guide = 0.6, 0.5, 2.0
    denoiser = gaussian(process, variance * eye(), mean)
    control = SDEdit(torch.full((1, *SHAPE), guide, dtype=torch.float64), t0)
    sampler = Sampler(EDM(), steps=25, spacing="karras", denoise=False)
    x = sampled(control, denoiser, sampler)
    bound = control.of(range(1), lambda x: x, torch.zeros(1, *SHAPE, dtype=torch.float64))(denoiser)
    times = sampler.timesteps(bound)
    (alpha, alpha_s), (sigma, sigma_s) = process.alpha_sigma(times[[0, -1]])
    std, std_s = (alpha**2 * variance + sigma**2).sqrt(), (alpha_s**2 * variance + sigma_s**2).sqrt()
    assert abs(times[0] - t0) <= 1 / (process.levels or 1e9)
    assert x.mean().item() == pytest.approx((alpha_s * mean + alpha * (guide - mean) * std_s / std).item(), abs=0.04)
    assert x.std().item() == pytest.approx((sigma * std_s / std).item(), abs=0.04)


@pytest.mark.parametrize("process", [PROCESSES["vp"], PROCESSES["ve"], PROCESSES["ddpm"]], ids=["vp", "ve", "ddpm"])
@pytest.mark.parametrize("t0", [0.25, 0.6])
@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
def test_the_law_of_sdedit_by_the_reverse_process_is_that_of_repeated_posteriors(process, t0, repeats, masked):
    """A pass draws x_0 from p(x_0 | x_t0), and an edited pixel of independent ones does not see the kept pixels.

    With x_t0 = alpha x + sigma z the posterior has the gain k = alpha v / (alpha^2 v + sigma^2), so that a pass takes
    N(m, s^2) to N(mean + k alpha (m - mean), (k alpha s)^2 + (k sigma)^2 + v (1 - k alpha)).
    """
    variance, mean, guide = 0.6, 0.5, 2.0
    mask = torch.tensor([[1.0, 0.0], [1.0, 1.0]]) if masked else None
    control = SDEdit(torch.full((1, *SHAPE), guide, dtype=torch.float64), t0, mask, repeats)
    denoiser = gaussian(process, variance * eye(), mean)
    spacing = "uniform" if process.levels else "log_snr"
    x = sampled(control, denoiser, Sampler(Ancestral("fixed_small"), steps=150, spacing=spacing))
    x = x if mask is None else x[..., mask.bool()]
    bound = control.of(range(1), lambda x: x, torch.zeros(1, *SHAPE, dtype=torch.float64))(denoiser)
    alpha, sigma = (
        k.item() for k in process.alpha_sigma(Sampler(Ancestral(), steps=150, spacing=spacing).timesteps(bound)[0])
    )
    gain, m, square = alpha * variance / (alpha**2 * variance + sigma**2), guide, 0.0
    for _ in range(repeats):
        m = mean + gain * alpha * (m - mean)
        square = (gain * alpha) ** 2 * square + (gain * sigma) ** 2 + variance * (1 - gain * alpha)
    assert x.mean().item() == pytest.approx(m, abs=0.04)
    assert x.std().item() == pytest.approx(square**0.5, abs=0.04)


def test_sdedit_with_a_mask_keeps_the_guide_elsewhere():
    guide, mask = torch.rand(2, *SHAPE, dtype=torch.float64), torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    x = sampled(SDEdit(guide, 0.5, mask), gaussian(PROCESSES["vp"], eye()), count=4)
    torch.testing.assert_close(x[:, :, ~mask.bool()], guide.repeat(2, 1, 1, 1)[:, :, ~mask.bool()])
    assert (x[:, :, 0, 0] - guide.repeat(2, 1, 1, 1)[:, :, 0, 0]).abs().min() > 1e-3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Mask(torch.tensor([0.5])), "0 .unknown. and 1"),
        (lambda: sampled(Replacement(Grey(), torch.zeros(1, 1, 2, 2)), DENOISER, shape=(1, 2, 2)), "needs images of several"),
        (lambda: sampled(DPS(Grey(3), torch.zeros(1, 1, 2, 2)), DENOISER), "images of 3 channels, and these have 2"),
        (lambda: BlockAverage(1), "factor=1 must be at least 2"),
        (lambda: Blur(torch.ones(2, 2)), "odd number"),
        (lambda: sampled(Replacement(OPERATORS["blur"], torch.zeros(1, 2, 4, 4)), DENOISER, shape=(2, 4, 4)), "use control=pigdm or dps"),
        (lambda: Replacement(OPERATORS["grey"], torch.zeros(1, *SHAPE), noise=0.1), "takes the measurement as exact"),
        (lambda: SDEdit(torch.zeros(1, *SHAPE), 0.0), "t0=0.0 must be in"),
        (lambda: SDEdit(torch.zeros(1, *SHAPE), repeats=0), "repeats=0 must be at least 1"),
        (lambda: sampled(Replacement(OPERATORS["mask"], torch.zeros(1, 2, 3, 3)), DENOISER), "it must be .2, 2, 2."),
        (lambda: sampled(PiGDM(Mask(torch.ones(3, 3)), torch.zeros(1, *SHAPE)), DENOISER), "does not fit images"),
        (lambda: sampled(SDEdit(torch.zeros(1, 3, 2, 2)), DENOISER), "does not fit images of shape"),
        (lambda: sampled(SDEdit(torch.zeros(1, *SHAPE), mask=torch.ones(3)), DENOISER), "mask of shape .3,. does not"),
        (lambda: sampled(RePaint(OPERATORS["mask"], torch.zeros(1, *SHAPE)), DENOISER, Sampler(DDIM(), steps=10)),
         "use more sampler.steps"),
        (lambda: sampled(SDEdit(torch.zeros(1, *SHAPE)), DENOISER, ProbabilityFlow()), "sampler=ode cannot be controlled"),
    ],
)  # fmt: skip
def test_wrong_inputs_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


DENOISER = gaussian(PROCESSES["ddpm"], eye())


@pytest.mark.parametrize(
    "grid", [{"spacing": "explicit", "times": [1.0, 0.5]}, {"spacing": "sections", "sections": [3, 2]}]
)
def test_a_control_that_chooses_the_first_time_takes_no_list_of_all_times(grid):
    with pytest.raises(ValueError, match="control=sdedit chooses the first time"):
        sampled(SDEdit(torch.zeros(1, *SHAPE)), DENOISER, Sampler(DDIM(), **grid))


def test_jumps_are_checked_against_times_of_the_users_own():
    times = Sampler(DDIM(), spacing="explicit", times=[1.0, 0.5])
    with pytest.raises(ValueError, match="repaint jumps back by 10 steps, and the sampler has 2"):
        sampled(RePaint(OPERATORS["mask"], torch.zeros(1, *SHAPE)), DENOISER, times)


def test_a_measurement_is_encoded_as_the_measurement_of_the_encoded_image():
    x, like = torch.rand(1, *SHAPE), torch.zeros(1, *SHAPE)
    encode = lambda data: 2 * data - 1  # noqa: E731
    for operator in (Blur([[0.3]]), OPERATORS["mask"], OPERATORS["blocks"]):
        bound = DPS(operator, operator(x)).of([0], encode, like)
        torch.testing.assert_close(bound.guide, operator(encode(x)))
