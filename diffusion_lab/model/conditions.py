"""Conditioning of a model: the labels of data or samples, and guidance."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from diffusion_lab.control import Control
from diffusion_lab.denoiser import Denoiser
from diffusion_lab.guidance import ClassifierGuidance
from diffusion_lab.model.labels import Label, Labels

Guidance = Callable[[Denoiser], Denoiser]
"""A denoiser bound to its condition -> the guided denoiser, such as a `diffusion_lab.guidance.Guidance`."""


class Conditioned:
    """The part of a `Model` that binds labels to its denoiser, and applies guidance and control."""

    control: Control | None = None
    """The default control of `sample`."""

    def chosen(self, guidance: Guidance | None) -> Guidance | None:
        """The guidance of a call, or the model's."""
        return self.guidance if guidance is None else guidance

    def sampled_labels(self, guidance: Guidance | None = None) -> Labels | None:
        """The classes of samples: those of the model, or else of the classifier that guides it; None without either."""
        posterior = getattr(self.chosen(guidance), "posterior", None)
        if self.labels is not None or posterior is None:
            return self.labels
        return posterior.labels or Labels([1] * posterior.classes, dropout=0)

    def labels_of(
        self, images: Sequence[int], seed: int, label: Label = None, guidance: Guidance | None = None
    ) -> Tensor | None:
        """Labels (B,) of images of the series `seed`; None for an unconditional model without a classifier.

        Raises:
            ValueError: for an invalid label.
        """
        label, labels = self.label if label is None else label, self.sampled_labels(guidance)
        if label is None:
            label = getattr(self.chosen(guidance), "label", None)
        if labels is not None:
            return labels.of(label, seed, images)
        if label is not None:
            raise ValueError(
                "this model was trained without labels (data.conditional=false): leave out label, or guide it by "
                "guidance=classifier (in Python guidance.ClassifierGuidance)"
            )
        return None

    def sampling_denoiser(
        self,
        labels: Tensor | None,
        guidance: Guidance | None = None,
        control: Control | None = None,
        images: Sequence[int] = (),
    ) -> Denoiser:
        """The denoiser to sample with: bound to labels (B,), then guided, then controlled.

        Args:
            images: indices of the batch's images in their series, by which a control finds their guides.

        Raises:
            ValueError: if guidance or control do not suit the model.
        """
        control = self.control if control is None else control
        guided = self.guided(self.conditional_denoiser(labels), self.chosen(guidance), labels)
        if control is None:
            return guided
        if isinstance(control, type) or not isinstance(control, Control):
            raise ValueError(
                f"control={control!r} is not a control: use for example diffusion_lab.control.SDEdit(guide, t0=0.5)"
            )
        like = torch.empty(len(images), *self.shape, device=self.device)
        return control.of(images, self.encode, like)(guided)

    def guided(self, bound: Denoiser, guidance: Guidance | None, labels: Tensor | None = None) -> Denoiser:
        """The guided denoiser of a bound one, for samples with labels (B,); raises ValueError if it does not suit."""
        if guidance is None:
            return bound
        if isinstance(guidance, ClassifierGuidance):
            guidance = guidance.of(labels, self)
        guided = None if isinstance(guidance, type) or not callable(guidance) else guidance(bound)
        if not isinstance(guided, Denoiser):
            raise ValueError(
                f"guidance={guidance!r} is not a guidance: use for example "
                "diffusion_lab.guidance.ClassifierFree(scale=2)"
            )
        return guided

    def check_sampling(self, seed: int = 0) -> None:
        """Raise ValueError if sampler, label or guidance do not suit the model."""
        denoiser = self.sampling_denoiser(self.labels_of([0], seed), images=[0])
        if hasattr(self.sampler, "check"):
            self.sampler.check(denoiser)
