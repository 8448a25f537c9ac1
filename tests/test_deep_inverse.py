"""Operators of deepinv in our controls, against our own."""

from __future__ import annotations

import functools

import pytest
import torch

from diffusion_lab.control import DPS, BlockAverage, Blur, DeepInverse, Grey, Mask, PiGDM, Replacement
from diffusion_lab.loss import DenoisingLoss
from diffusion_lab.model import DDPM
from diffusion_lab.process import Linear
from diffusion_lab.run.sample_spec import described
from diffusion_lab.sampler import DDIM, Sampler

physics = pytest.importorskip("deepinv").physics
SHAPE = (3, 8, 8)
MASK = (torch.arange(8) < 5).float().expand(8, 8)
KERNEL = torch.tensor([[0.0, 0.1, 0.0], [0.1, 0.5, 0.2], [0.0, 0.1, 0.0]])
QUARTERS = torch.tensor([[0.25, 0.25, 0.0], [0.25, 0.25, 0.0], [0.0, 0.0, 0.0]])

PAIRS = {
    "mask": (Mask(MASK), lambda: physics.Inpainting(SHAPE, mask=MASK.expand(1, *SHAPE))),
    "blocks": (BlockAverage(2), lambda: physics.Downsampling(SHAPE, filter=QUARTERS[None, None], factor=2)),
    "grey": (Grey(3), lambda: physics.Decolorize(srf="flat")),
    "blur": (Blur(KERNEL), lambda: physics.Blur(KERNEL[None, None], padding="circular")),
}


@pytest.mark.parametrize("name", PAIRS)
def test_an_operator_of_deepinv_equals_ours(name):
    ours, make = PAIRS[name]
    x = torch.rand(2, *SHAPE)
    theirs = DeepInverse(make()).of(range(2), x)
    ours = ours.of(range(2), x)
    torch.testing.assert_close(theirs(x), ours(x), atol=1e-5, rtol=0)
    y = ours(torch.rand(2, *SHAPE))
    torch.testing.assert_close(theirs.transpose(y), ours.transpose(y), atol=1e-5, rtol=0)
    solved, wanted = (ours.transpose(operator.solve(y, 0.7, 0.2)) for operator in (theirs, ours))
    torch.testing.assert_close(solved, wanted, atol=1e-5, rtol=1e-5)
    assert theirs.projects == ours.projects
    assert theirs.scale == (ours.scale and pytest.approx(ours.scale, rel=1e-4))


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize(
    "method", [DPS, functools.partial(PiGDM, noise=0.1), Replacement], ids=["dps", "pigdm", "replacement"]
)
def test_samples_under_an_operator_of_deepinv_equal_those_under_ours(name, method):
    class Network(torch.nn.Module):
        def forward(self, x, t):
            return 0.8 * x.tanh()

    model = DDPM(Network(), Linear(), DenoisingLoss(), Sampler(DDIM(), steps=5), shape=SHAPE)
    ours, make = PAIRS[name]
    guide = torch.rand(2, *SHAPE)
    if name == "blur" and method is Replacement:
        with pytest.raises(ValueError, match=r"Blur cannot be replaced pixel by pixel"):
            model.sample(3, control=method(make(), guide))
        return
    wanted = model.sample(3, control=method(ours, guide))
    made = model.sample(3, control=method(make(), guide))
    torch.testing.assert_close(made, wanted, atol=0.01, rtol=0)  # a grey level is 1/255
    assert described(method(make(), guide)) == described(method(make(), guide))
    assert described(DeepInverse(make()))["physics"]["kind"] == type(make()).__name__


def test_operators_of_other_tensors_have_another_sample_spec():
    known, unknown = (
        described(DeepInverse(physics.Inpainting(SHAPE, mask=m.expand(1, *SHAPE)))) for m in (MASK, 1 - MASK)
    )
    assert known != unknown and known["physics"]["kind"] == "Inpainting"


def test_a_measurement_that_is_no_image_is_followed():
    """The measurement of A^+ y is y, for 60 random projections of an image."""
    sensing = physics.CompressedSensing(m=60, img_size=SHAPE, rng=torch.Generator().manual_seed(0))
    truth = torch.rand(2, *SHAPE)
    operator = DeepInverse(sensing).of(range(2), truth)
    solved = operator.transpose(operator.solve(operator(truth), 1.0, 1e-6))
    torch.testing.assert_close(operator(solved), operator(truth), atol=1e-3, rtol=0)


class Square(physics.LinearPhysics):
    def A(self, x, **_):
        return x**2

    def A_adjoint(self, y, **_):
        return y


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: torch.nn.Linear(2, 2), "operator=Linear is not a linear operator"),
        (lambda: "blur", "operator"),
        (lambda: physics.RandomPhaseRetrieval(m=10, img_size=SHAPE), "RandomPhaseRetrieval: expected scalar type"),
        (Square, "Square is not linear"),
        (lambda: physics.Inpainting((3, 4, 4), mask=torch.ones(1, 3, 4, 4)), r"does not fit images of shape \(3, 8, 8\): Inpainting: "),
        (lambda: physics.Inpainting(SHAPE, mask=torch.ones(2, *SHAPE)), "not as one measurement"),
        (lambda: physics.Downsampling(SHAPE, filter=None, factor=4), r"guide of shape \(3, 4, 4\) .* must be \(3, 2, 2\)"),
    ],
)  # fmt: skip
def test_what_is_no_linear_operator_of_such_images_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        DPS(make(), torch.rand(1, 3, 4, 4)).of([0], lambda x: x, torch.zeros(1, *SHAPE))
