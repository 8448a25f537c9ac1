"""Checks of guidance on a mixture whose classes are its components: the guided score in closed form, at every time."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.guidance import Autoguidance, ClassifierGuidance, Guidance
from diffusion_lab.process import NoiseProcess
from diffusion_lab.verification.cases import processes
from diffusion_lab.verification.check import Chart, Check, Finding, points, relative, seeded, under
from diffusion_lab.verification.mixture import Mixture, class_denoiser, exact_classifier, exact_denoiser, gmm2d

TARGET = gmm2d()
BLURRED = Mixture(TARGET.w, TARGET.m, 4 * TARGET.c, TARGET.shape)
"""What a weaker model has learned of `TARGET`."""

SCALES, INTERVAL, ITEMS = (1.0, 2.5), (0.3, 3.0), 12
"""Guidance scales besides that of the settings, an interval of sigma / alpha, and points."""

ROUNDING = 1e-6
"""Tolerance of scores, relative to the largest: at the ends of a process eps is divided by small numbers."""


@dataclass(frozen=True)
class Field:
    """A guidance of exact models, the denoiser of labels (B,) that it guides, and the score at scale 0.

    At scale s the guided score is zero + s (score of the class - zero).
    """

    guidance: Any
    denoiser: Callable[[Tensor], Denoiser]
    zero: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

    def guided(self, label: Tensor, **settings: Any) -> Denoiser:
        """The guided denoiser of labels (B,), with other settings of the guidance."""
        guidance = copy.copy(self.guidance)
        for key, value in settings.items():
            object.__setattr__(guidance, key, value)
        if isinstance(guidance, ClassifierGuidance):
            guidance.label = label
        return guidance(self.denoiser(label))

    def score(self, x: Tensor, label: Tensor, alpha: Tensor, sigma: Tensor, scale: float) -> Tensor:
        """The guided score at x (B, 2, 1, 1) in closed form."""
        zero = self.zero(x, label, alpha, sigma)
        return zero + scale * (class_score(TARGET, x, label, alpha, sigma) - zero)


def class_score(target: Mixture, x: Tensor, label: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The score of the noised component of each label."""
    return target.score(x, alpha, sigma) + target.class_gradient(x, label, alpha, sigma)


def marginal(x: Tensor, label: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The score of all classes together."""
    return TARGET.score(x, alpha, sigma)


def classifier_free(guidance: Any, process: NoiseProcess, output: str = "eps") -> Field:
    """Any other guidance: of a conditional model with a null label, from the marginal score."""
    return Field(guidance, lambda label: class_denoiser(TARGET, process, output).given(label=label), marginal)


def by_classifier(guidance: Any, process: NoiseProcess) -> Field:
    """Of an unconditional model by the exact classifier, from the marginal score."""
    guidance = copy.copy(guidance)
    guidance.classifier = exact_classifier(TARGET, process)
    return Field(guidance, lambda label: exact_denoiser(TARGET, process), marginal)


def autoguidance(guidance: Any, process: NoiseProcess) -> Field:
    """Of a conditional model by the model of blurred data, from the score of its class."""
    guidance = copy.copy(guidance)
    guidance.weak = class_denoiser(BLURRED, process)
    conditional = classifier_free(guidance, process).denoiser
    return Field(guidance, conditional, lambda x, label, *scales: class_score(BLURRED, x, label, *scales))


FIELDS: dict[type, Callable[[Any, NoiseProcess], Field]] = {
    Autoguidance: autoguidance,
    ClassifierGuidance: by_classifier,
}
"""Models of guidance other than `classifier_free`."""


def field_of(guidance: Any, process: NoiseProcess) -> Field:
    """The models with which a guidance is verified."""
    make = next((make for cls, make in FIELDS.items() if isinstance(guidance, cls)), classifier_free)
    return make(guidance, process)


def check_guidance(guidance: Guidance) -> Iterator[Finding]:
    """Yield the checks of a guidance on every process, and its charts.

    Raises:
        ValueError: for a guidance without a scale.
    """
    if not hasattr(guidance, "scale"):
        raise ValueError(f"{type(guidance).__name__} has no attribute scale, by which its closed form is known")
    for name, process in processes().items():
        yield from under(name, check_field(field_of(guidance, process), process))
    yield chart(field_of(guidance, process), process)


def check_field(field: Field, process: NoiseProcess) -> Iterator[Check]:
    """Yield the checks of a guidance on one process."""
    z = torch.randn(ITEMS, 2, 1, 1, dtype=torch.float64, generator=seeded())
    label, times = torch.arange(ITEMS) % len(TARGET.w), process.timesteps(7)
    states = []
    for t in times:
        alpha, sigma = process.alpha_sigma(t)
        states.append((t, (alpha**2 + sigma**2).sqrt() * z, alpha, sigma))
    for scale in dict.fromkeys((field.guidance.scale, *SCALES)):
        guided = field.guided(label, scale=scale, interval=None)
        errors = [relative(score(guided, x, t), field.score(x, label, *at, scale)) for t, x, *at in states]
        name = "the class's score" if scale == 1 else "its closed form"
        yield Check(f"guided score at scale {scale:g} - {name}", max(errors), 0.0, ROUNDING)
        errors = [relative(outputs(guided, x, t), guided(x, t).score) for t, x, *_ in states]
        yield Check(f"as samplers ask for it - as a call, at scale {scale:g}", max(errors), 0.0, ROUNDING)
    yield from check_interval(field, states, label)
    guided = field.guided(label, scale=SCALES[-1], interval=None)
    t, x, *_ = states[3]
    alone = [score(field.guided(label[k : k + 1], scale=SCALES[-1], interval=None), x[k : k + 1], t) for k in range(3)]
    yield Check("an item alone - in a batch", relative(torch.cat(alone), score(guided, x, t)[:3]), 0.0, 1e-9)


def check_interval(field: Field, states: list[Any], label: Tensor) -> Iterator[Check]:
    """Guidance is on inside of an interval of sigma / alpha, and outside it changes nothing."""
    if not hasattr(field.guidance, "interval"):
        return
    inside, plain = field.guided(label, scale=SCALES[-1], interval=INTERVAL), field.denoiser(label)
    every = field.guided(label, scale=SCALES[-1], interval=None)
    wrong = []
    for t, x, alpha, sigma in states:
        on = INTERVAL[0] <= (sigma / alpha).item() <= INTERVAL[1]
        wrong.append(relative(score(inside, x, t), score(every if on else plain, x, t)))
    yield Check("on inside of an interval alone: score - expected", max(wrong), 0.0, ROUNDING)


def score(denoiser: Denoiser, x: Tensor, t: Tensor) -> Tensor:
    """The score at x, with the gradient by which means of ancestral steps are shifted, if there is one."""
    shift = denoiser.mean_gradient
    return denoiser(x, t).score + (0.0 if shift is None else shift(x, t.item()))


def outputs(denoiser: Denoiser, x: Tensor, t: Tensor) -> Tensor:
    """The score by way of preconditionings and the network's output, as samplers compute it."""
    (c,) = denoiser.preconditionings(t.reshape(1), x)
    alpha, sigma = denoiser.process.alpha_sigma(t)
    x0 = c.c_skip * x + c.c_out * denoiser.network_output(x, c)
    return (alpha * x0 - x) / sigma**2


def chart(field: Field, process: NoiseProcess) -> Chart:
    """The first coordinate of the guided score of class 0 on a line through the plane, at sigma = alpha."""
    t = process.time(torch.zeros((), dtype=torch.float64))
    alpha, sigma = process.alpha_sigma(t)
    first = torch.linspace(-2.5, 2.5, 61, dtype=torch.float64)
    x = torch.stack([first, torch.zeros_like(first)], 1)[:, :, None, None]
    label = torch.zeros(len(x), dtype=torch.int64)
    lines, exact = {}, {}
    for scale in (0.0, *SCALES):
        found = score(field.guided(label, scale=scale, interval=None), x, t)
        lines[f"scale {scale:g}"] = points(first, found[:, 0, 0, 0])
        exact[f"scale {scale:g}, closed form"] = points(first, field.score(x, label, alpha, sigma, scale)[:, 0, 0, 0])
    return Chart("field", "x_1 at x_2 = 0", "guided score in x_1 of class 0, where sigma = alpha", lines, exact)
