"""The loss of a classifier of noised data."""

from __future__ import annotations

from torch import Tensor

from diffusion_lab.class_posterior import ClassPosterior
from diffusion_lab.loss.base import OneTimeLoss


class CrossEntropy(OneTimeLoss):
    """-log p(y | x_t) per image, with t sampled by a time law and eps ~ N(0, I); Dhariwal & Nichol 2021, Section 4.1.

    The labels y are those to which the classifier is bound (`given(label=y)`).
    """

    def at(self, classifier: ClassPosterior, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """Loss of each image, shape (B,), for given times t (B,) and noise eps (B, ...)."""
        if not isinstance(classifier, ClassPosterior) or "label" not in classifier.condition:
            raise ValueError("CrossEntropy needs a classifier that is bound to labels: choose model=classifier")
        return -classifier.log_prob(classifier.process.perturb(x0, t, eps), t, classifier.condition["label"])
