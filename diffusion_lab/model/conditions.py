"""What a model is asked under: the labels of data or of samples, and guidance."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.model.labels import Label

Guidance = Callable[[Denoiser], Denoiser]
"""A denoiser, bound to its condition -> the denoiser to sample with, such as a `diffusion_lab.guidance.Guidance`."""


class Conditioned:
    """The part of a `Model` that binds labels to its denoiser, and guides it."""

    def labels_of(self, images: Sequence[int], seed: int, label: Label = None) -> Tensor | None:
        """Labels (B,) of images of the series `seed`; None for a model without labels.

        Raises:
            ValueError: for a label that the model cannot have.
        """
        label = self.label if label is None else label
        if self.labels is not None:
            return self.labels.of(label, seed, images)
        if label is not None:
            raise ValueError("this model was trained without labels (data.conditional=false): leave out label")
        return None

    def of_data(self, labels: Tensor | None = None, training: bool = False) -> Denoiser:
        """The denoiser of data with labels (B,): bound to them, if it takes any; a training step drops some."""
        if self.labels is None:
            return self.denoiser
        if labels is None:
            raise ValueError("this model is told labels: give batches (x, label)")
        labels = self.labels.with_dropout(labels) if training else labels
        return self.denoiser.given(label=labels.to(self.device))

    def asked(self, labels: Tensor | None, guidance: Guidance | None = None) -> Denoiser:
        """The denoiser to sample with: bound to labels (B,), then guided.

        Raises:
            ValueError: for a guidance that does not fit the model.
        """
        bound, guidance = self.of_data(labels), guidance or self.guidance
        return bound if guidance is None else guidance(bound)

    def check_asked(self, seed: int = 0) -> None:
        """Raise ValueError if sampler, label or guidance do not suit the model, before anything is drawn."""
        denoiser = self.asked(self.labels_of([0], seed))
        if hasattr(self.sampler, "check"):
            self.sampler.check(denoiser)
