"""Conditioning of a model: the labels of data or samples, and guidance."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from diffusion_lab.control import Control
from diffusion_lab.denoiser import Denoiser, check_labels
from diffusion_lab.model.labels import Label

Guidance = Callable[[Denoiser], Denoiser]
"""A denoiser bound to its condition -> the guided denoiser, such as a `diffusion_lab.guidance.Guidance`."""


class Conditioned:
    """The part of a `Model` that binds labels to its denoiser, and applies guidance and control."""

    control: Control | None = None
    """The default control of `sample`."""

    def labels_of(self, images: Sequence[int], seed: int, label: Label = None) -> Tensor | None:
        """Labels (B,) of images of the series `seed`; None for an unconditional model.

        Raises:
            ValueError: for an invalid label.
        """
        label = self.label if label is None else label
        if self.labels is not None:
            return self.labels.of(label, seed, images)
        if label is not None:
            raise ValueError("this model was trained without labels (data.conditional=false): leave out label")
        return None

    def conditional_denoiser(self, labels: Tensor | None = None, training: bool = False) -> Denoiser:
        """The denoiser bound to labels (B,), if the model is conditional; with label dropout while training."""
        if self.labels is None:
            return self.denoiser
        if labels is None:
            raise ValueError("this model is conditioned on labels: batches must be (x, label)")
        check_labels(labels, self.labels.classes)  # before dropout: the null label is not a class of the data
        labels = self.labels.with_dropout(labels) if training else labels
        return self.denoiser.given(label=labels.to(self.device))

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
        guided = self.guided(self.conditional_denoiser(labels), self.guidance if guidance is None else guidance)
        if control is None:
            return guided
        if isinstance(control, type) or not isinstance(control, Control):
            raise ValueError(
                f"control={control!r} is not a control: use for example diffusion_lab.control.SDEdit(guide, t0=0.5)"
            )
        like = torch.empty(len(images), *self.shape, device=self.device)
        return control.of(images, self.encode, like)(guided)

    def guided(self, bound: Denoiser, guidance: Guidance | None) -> Denoiser:
        """The guided denoiser of a bound one; raises ValueError if the guidance does not suit it."""
        if guidance is None:
            return bound
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
