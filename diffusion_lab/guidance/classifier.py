"""Classifier guidance: Dhariwal & Nichol 2021 (arXiv:2105.05233), Song et al. 2021 (arXiv:2011.13456, Appendix I)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from diffusion_lab.class_posterior import ClassPosterior
from diffusion_lab.denoiser import Denoiser, Preconditioning, check_labels
from diffusion_lab.guidance.gradient import GradientPreconditioning, ShiftedScore
from diffusion_lab.guidance.guided import Guidance, NoiseInterval, inside, same_noise
from diffusion_lab.ranges import NonNegative, checked

Form = Literal["score", "mean"]


class ClassifierGuidance(Guidance):
    """score(x_t) + scale grad log p(label | x_t), with a classifier p of noised data, for any model.

    - form="score": eps' = eps - sigma scale grad log p (Dhariwal & Nichol 2021, Algorithm 2; Song et al. 2021, Eq. 14):
      for every sampler and corrector.
    - form="mean": the mean of an ancestral step is shifted by variance scale grad log p, with the step's own variance
      (Algorithm 1); for ancestral sampling only.  The last step, to x_0, has no variance.

    The gradient is taken at x_t.  At scale 0 guidance is off; where it is on, each step also evaluates the classifier.

    Args:
        classifier: a `ClassPosterior`, a model that holds it as its denoiser, or a function that returns
            it on first use.
        label: the default label of samples, as in `Model.sample`.  To guide a denoiser directly: a class or labels
            (B,); None: the labels that the denoiser is conditioned on.
        scale: guidance scale, >= 0.
        interval: (low, high) of sigma / alpha = exp(-log-SNR / 2) in which guidance is on; None: everywhere.
        form: "score" or "mean".

    Raises:
        ValueError: for an option out of range, something that is not a classifier; on a call, for a classifier of
            another noise process, image range, shape or classes, or without labels.
    """

    name = "classifier"
    batch_labels: Tensor | None = None

    @checked
    def __init__(
        self,
        classifier: ClassPosterior | Callable[[], ClassPosterior],
        label: Any = None,
        scale: NonNegative = 1.0,
        interval: NoiseInterval | None = None,
        form: Form = "score",
    ) -> None:
        super().__init__(scale, interval)
        self.classifier = getattr(classifier, "denoiser", classifier)  # of a model
        self.label, self.form = label, form
        if isinstance(self.classifier, Denoiser) or not callable(self.classifier):
            self.check_classifier()

    @property
    def posterior(self) -> ClassPosterior:
        """The classifier, which is loaded on first use."""
        if not isinstance(self.classifier, Denoiser):
            self.classifier = self.classifier()
        return self.check_classifier()

    def check_classifier(self) -> ClassPosterior:
        """Return the classifier; raise ValueError if it is something else."""
        if not isinstance(self.classifier, ClassPosterior):
            raise ValueError(
                "classifier guidance needs a classifier (a ClassPosterior, or a model that holds one), and this is a "
                f"{type(self.classifier).__name__}"
            )
        return self.classifier

    def of(self, labels: Tensor | None, model: Any) -> ClassifierGuidance:
        """This guidance for a batch of samples with labels (B,) of a model, whose shape and class names are checked."""
        posterior, names = self.posterior, model.labels and model.labels.names
        if posterior.shape not in (None, model.shape):
            raise ValueError(differs(f"the shape of its data, {posterior.shape} instead of {model.shape}"))
        if names and posterior.labels and names != posterior.labels.names:
            raise ValueError(differs("the names of its classes"))
        bound = copy.copy(self)
        bound.batch_labels = labels
        return bound

    def labels_for(self, denoiser: Denoiser) -> Tensor:
        """The labels (B,) or () to which a denoiser is guided."""
        found = self.batch_labels if self.batch_labels is not None else self.label
        found = denoiser.condition.get("label") if found is None else found
        if found is None:
            raise ValueError("classifier guidance needs a label: give label=..., a class or one label for each sample")
        labels = found if isinstance(found, Tensor) else torch.as_tensor(found)
        check_labels(labels, self.posterior.classes)
        return labels

    def __call__(self, denoiser: Denoiser) -> Denoiser:
        """Return the guided denoiser."""
        check_classifier_of(denoiser, self.posterior)
        posterior, first = copy.copy(self.posterior), next(denoiser.parameters(), None)
        posterior = posterior if first is None else posterior.to(first.device)
        posterior.calls = denoiser.calls
        gradient = ClassifierGradient(posterior, self.labels_for(denoiser), self.scale, self.interval)
        return denoiser.with_mean_gradient(gradient) if self.form == "mean" else ClassifierGuided(denoiser, gradient)

    def __str__(self) -> str:
        return f"{self.name}, form {self.form}, scale {self.scale:g}{self.where}; calls of the classifier are counted"


class ClassifierGradient:
    """scale grad log p(label | x_t), and 0 outside the interval, as a function of x (B, ...) and a time t."""

    def __init__(
        self, posterior: ClassPosterior, labels: Tensor, scale: float, interval: Sequence[float] | None
    ) -> None:
        self.posterior, self.labels, self.scale, self.interval = posterior, labels, scale, interval
        self.preconditionings: dict[float, tuple[bool, Preconditioning]] = {}
        self.like: tuple[Any, ...] = ()

    def __call__(self, x: Tensor, t: float) -> Tensor | float:
        if self.like != (like := (x.shape, x.dtype, x.device)):
            self.preconditionings, self.like, self.labels = {}, like, self.labels.to(x.device)
        if t not in self.preconditionings:
            time = torch.tensor([t], dtype=torch.float64)
            on = self.scale != 0 and inside(self.interval, self.posterior.process, time).item()
            self.preconditionings[t] = on, self.posterior.preconditionings(time, x)[0]
        on, preconditioning = self.preconditionings[t]
        return self.scale * self.posterior.gradient(x, preconditioning, self.labels) if on else 0.0


class ClassifierGuided(ShiftedScore):
    """A denoiser with the gradient of a classifier added to its score."""

    def __init__(self, denoiser: Denoiser, gradient: ClassifierGradient) -> None:
        super().__init__(denoiser)
        self.gradient = gradient

    def evaluate(self, x: Tensor, c: GradientPreconditioning) -> tuple[Tensor, Tensor | None, Tensor | float]:
        output, fraction = self.unshifted.outputs(x, c.unshifted)
        return output, fraction, self.gradient(x, c.t)


def check_classifier_of(denoiser: Denoiser, posterior: ClassPosterior) -> None:
    """Raise ValueError unless a classifier has the denoiser's noise process, image range and classes."""
    ours, theirs = ((one.parameterization.bounded, one.parameterization.low, one.parameterization.high)
                    for one in (denoiser, posterior))  # fmt: skip
    if not same_noise(denoiser, posterior):
        raise ValueError(differs(f"its noise process, {noise_of(posterior)} instead of {noise_of(denoiser)}"))
    if ours != theirs:
        raise ValueError(differs("the range of its images"))
    if denoiser.classes not in (None, posterior.classes):
        raise ValueError(differs(f"its classes, {posterior.classes} instead of {denoiser.classes}"))


def noise_of(denoiser: Denoiser) -> str:
    """A noise process in words: its levels, and its smallest and largest sigma / alpha."""
    process = denoiser.process
    alpha, sigma = process.alpha_sigma(torch.tensor([process.t_min, 1.0], dtype=torch.float64))
    low, high = (sigma / alpha).tolist()
    levels = f"{process.levels:,} levels, " if process.levels else ""
    return f"{type(process).__name__} ({levels}sigma/alpha {low:.3g} to {high:.3g})"


def differs(what: str) -> str:
    """The message for a classifier that does not fit."""
    return (
        "classifier guidance needs a classifier of the model's data and noise, and this one differs in "
        f"{what}: choose another classifier"
    )
