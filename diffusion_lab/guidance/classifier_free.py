"""Classifier-free guidance: Ho & Salimans 2022 (arXiv:2207.12598)."""

from __future__ import annotations

from collections.abc import Sequence

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.guidance.guided import Guidance, Guided


class ClassifierFree(Guidance):
    """score(x) + scale (score(x | label) - score(x)), the marginal score being the network's without a label.

    The paper's Eq. 6 has (1 + w) score(x | label) - w score(x), so scale = 1 + w: 1 is no guidance, 0 draws without the
    label.  Where it is on, each step calls the network twice.

    Args:
        scale: from 0 up.
        interval: (low, high) of sigma / alpha = exp(-log-SNR / 2) within which it is on; None: everywhere.

    Raises:
        ValueError: for a number out of range; on a call, for a model that has not learned to do without a label.
    """

    name = "classifier_free"

    def __init__(self, scale: float = 1.5, interval: Sequence[float] | None = None) -> None:
        super().__init__(scale, interval)

    def __call__(self, denoiser: Denoiser) -> Denoiser:
        """The guided denoiser of one that is bound to labels."""
        if denoiser.null is None:
            why = "trained with label_dropout=0" if denoiser.classes else "trained without labels"
            raise ValueError(
                f"classifier-free guidance needs a model with dropped labels, and this one was {why}: leave out "
                "guidance, or train with data.conditional=true and label_dropout=0.1"
            )
        return Guided(denoiser, denoiser.given(), self.scale, self.interval)
