"""A classifier of noised data: Dhariwal & Nichol 2021 (arXiv:2105.05233), Section 4; Song et al. 2021, Appendix I."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from typing_extensions import Unpack  # in typing from Python 3.11 on

from diffusion_lab.class_posterior import ClassPosterior
from diffusion_lab.model.labels import Labels
from diffusion_lab.model.options import Loss, TrainingOptions
from diffusion_lab.model.training import Training
from diffusion_lab.parameterization import NoiseConditioning, Parameterization
from diffusion_lab.process import NoiseProcess
from diffusion_lab.ranges import Count, Finite, Levels, checked


class Classifier(Training):
    """p(y | x_t) for the noise process of the model that it will guide (`guidance.ClassifierGuidance`).

    It is trained by `loss.CrossEntropy`.  `c_noise`, `low`, `high` and `unit_input` are those of a `Parameterization`;
    the range [low, high] of images must be that of the guided model.

    Args:
        network: (x (B, ...), c_noise (B,)) -> logits (B, classes).
        labels: the classes, without label dropout.

    Raises:
        ValueError: without labels, or for labels with dropout.
    """

    PREDICTS_LABELS: ClassVar = True
    ORDERED: ClassVar = (("low", "high"),)
    REFUSES: ClassVar = {"label_dropout": "predicts the labels and drops none of them: leave out label_dropout"}

    @checked
    def __init__(
        self,
        network: Callable[..., torch.Tensor],
        process: NoiseProcess,
        loss: Loss,
        optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        shape: Sequence[Count] = (3, 32, 32),
        grey_levels: Levels | None = 256,
        c_noise: NoiseConditioning = "level",
        low: Finite = -1.0,
        high: Finite = 1.0,
        unit_input: bool = False,
        labels: Labels | None = None,
        **options: Unpack[TrainingOptions],
    ) -> None:
        if labels is None or labels.null is not None:
            raise ValueError(
                "a classifier needs labels without dropout: labels=diffusion_lab.model.Labels(counts, dropout=0)"
            )
        row = Parameterization(c_noise=c_noise, low=low, high=high, unit_input=unit_input)
        posterior = ClassPosterior(network, process, row, labels.classes, shape)
        posterior.labels = labels
        super().__init__(posterior, loss, optimizer, shape, grey_levels, labels=labels, **options)
