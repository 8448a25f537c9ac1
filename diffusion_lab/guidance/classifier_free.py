"""Classifier-free guidance: Ho & Salimans 2022 (arXiv:2207.12598)."""

from __future__ import annotations

from typing import ClassVar

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.guidance.guided import Guidance, Guided, NoiseInterval
from diffusion_lab.ranges import NonNegative


class ClassifierFree(Guidance):
    """score(x) + scale (score(x | label) - score(x)), where score(x) is the network's output for the null label.

    The paper's Eq. 6 is (1 + w) score(x | label) - w score(x), so scale = 1 + w: at 1 guidance is off, 0 samples
    unconditionally.  Where guidance is on, each step evaluates the network twice.

    Args:
        scale: guidance scale, >= 0.
        interval: (low, high) of sigma / alpha = exp(-log-SNR / 2) in which guidance is on; None: everywhere.

    Raises:
        ValueError: for a number out of range; on a call, for a model trained without label dropout.
    """

    name = "classifier_free"

    REFUSES: ClassVar = {
        "data.conditional=false": "needs a model with dropped labels: data.conditional=true, label_dropout > 0",
        "label_dropout=0": "needs a model with dropped labels: data.conditional=true, label_dropout > 0",
    }

    def __init__(self, scale: NonNegative = 1.5, interval: NoiseInterval | None = None) -> None:
        super().__init__(scale, interval)

    def __call__(self, denoiser: Denoiser) -> Denoiser:
        """Return the guided denoiser of a denoiser that is bound to labels."""
        if denoiser.null is None:
            why = "trained with label_dropout=0" if denoiser.classes else "trained without labels"
            raise ValueError(
                f"classifier-free guidance needs a model trained with label dropout, and this one was {why}: leave out "
                "guidance, or train with data.conditional=true and label_dropout=0.1"
            )
        return Guided(denoiser, denoiser.given(), self.scale, self.interval)
