"""SDEdit: Meng et al. 2022 (arXiv:2108.01073)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from typing_extensions import Self  # in typing from Python 3.11 on

from diffusion_lab.control.base import Control, mask_of, of_images
from diffusion_lab.ranges import Count, Time, checked


class SDEdit(Control):
    """Diffuses a guide to time t0, and samples from there; Meng et al. 2022, Algorithms 1 to 4.

        x_t0 = alpha guide + sigma z,   then any sampler from t0 to 0

    A larger t0 is more realistic, a smaller one more faithful to the guide; the paper recommends 0.3 to 0.6.  With a
    mask the states keep the guide, diffused to their time, outside the edited pixels.

    Args:
        guide: images (N, C, H, W) in [0, 1]; image i of a series has guide i mod N.
        t0: in (0, 1].
        mask: (H, W) or (N, C, H, W) that broadcasts to images; 1 where they are edited, 0 where they keep the guide.
        repeats: K in the paper; each further pass diffuses the last result to t0 again.
    """

    name = "sdedit"

    @checked
    def __init__(self, guide: Tensor, t0: Time = 0.5, mask: Tensor | None = None, repeats: Count = 1) -> None:
        if mask is not None and not ((mask == 0) | (mask == 1)).all():
            raise ValueError("a mask has the values 0 (kept) and 1 (edited) only")
        self.guide, self.t_start, self.mask, self.repeats = guide, t0, mask, repeats

    def of(self, images: Sequence[int], encode: Callable[[Tensor], Tensor], like: Tensor) -> Self:
        bound, shape = copy.copy(self), tuple(like.shape[1:])
        if tuple(self.guide.shape[1:]) != shape:
            raise ValueError(f"guide of shape {tuple(self.guide.shape[1:])} does not fit images of shape {shape}")
        bound.guide = encode(of_images(self.guide, images).to(like))
        if self.mask is not None:
            bound.mask = mask_of(self.mask, images, like)
            try:
                bound.mask.expand_as(like)
            except RuntimeError:
                raise ValueError(
                    f"mask of shape {tuple(self.mask.shape)} does not fit images of shape {shape}"
                ) from None
        return bound

    def path(self, times: list[float]) -> list[float]:
        return times * self.repeats

    def begin(self, x: Tensor, z: Tensor, alpha: float, sigma: float) -> Tensor:
        return alpha * self.guide + sigma * z

    @property
    def moves(self) -> bool:
        return self.mask is not None

    def kept(self, x: Any, guide: Any) -> Any:
        """x in the edited pixels, the guide elsewhere."""
        return x if self.mask is None else self.mask * x + (1 - self.mask) * guide

    def after(self, p: Any, x: Any, t: float, noise: Callable[..., Any]) -> Any:
        if self.mask is None:
            return x
        alpha, sigma = p.alpha_sigma(t)
        return self.kept(x, alpha * self.guide + sigma * noise())

    def finish(self, x0: Any) -> Any:
        return self.kept(x0, self.guide)
