"""A classifier of noised data, p(y | x_t), and the gradient of its logarithm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from diffusion_lab.denoiser import Denoiser, Preconditioning
from diffusion_lab.parameterization import Parameterization
from diffusion_lab.process import NoiseProcess


class ClassPosterior(Denoiser):
    """p(y | x_t) of the classes 0 ... classes - 1: a network that returns logits where a denoiser's returns an image.

    Args:
        network: any callable (x, c_noise (B,)) -> logits (B, classes); each item's must depend on this item alone.
        process: the noise process.
        parameterization: the noise conditioning and the scale of the network's input; its `output` has no effect.
        classes: number of classes.
        shape: of one data point; None: unknown.

    `labels` are the names and frequencies of the classes (`model.Labels`), if they are known.
    """

    labels: Any = None

    def __init__(
        self,
        network: Callable[..., Tensor],
        process: NoiseProcess,
        parameterization: Parameterization,
        classes: int,
        shape: Sequence[int] | None = None,
    ) -> None:
        super().__init__(network, process, parameterization)
        self.classes, self.shape = classes, None if shape is None else tuple(shape)

    def logits(self, x: Tensor, t: Tensor) -> Tensor:
        """The network's logits (B, classes) at x (B, ...) and t, (B,) or scalar.

        Raises:
            ValueError: if the network returns another shape.
        """
        output, _, _ = self.network_at(x, t)
        return self.checked(output, x)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.logits(x, t)

    def output_shape(self, x: Tensor) -> list[int]:
        """That of the logits for x (B, ...)."""
        return [len(x), self.classes]

    def log_prob(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        """log p(label | x_t), (B,), at x (B, ...) and t, (B,) or scalar, for labels (B,) or scalar."""
        return log_softmax_of(self.logits(x, t), label)

    def gradient(self, x: Tensor, preconditioning: Preconditioning, label: Tensor) -> Tensor:
        """The gradient of log p(label | x_t) in x for each item, of the shape of x, also where autograd is off."""
        c = preconditioning
        # A clone, because autograd cannot use tensors that were created in inference mode.
        with torch.inference_mode(False), torch.enable_grad():
            seen = x.detach().clone() if c.c_in is None else (x * c.c_in).add_(c.c_shift).detach()
            seen = seen.to(c.dtype or seen.dtype).requires_grad_()
            self.calls[0] += 1
            logits = self.checked(self.network(seen, c.c_noise.clone()), x)
            (gradient,) = torch.autograd.grad(log_softmax_of(logits, label.clone()).sum(), seen)
        gradient = gradient.to(x.dtype)
        return gradient if c.c_in is None else gradient * c.c_in

    def checked(self, logits: Tensor, x: Tensor) -> Tensor:
        """The logits, after checking their shape."""
        if list(logits.shape) != self.output_shape(x):
            raise ValueError(f"the classifier returns {tuple(logits.shape)}, expected logits (B, {self.classes})")
        return logits


def log_softmax_of(logits: Tensor, label: Tensor) -> Tensor:
    """log p(label), (B,), of logits (B, K) and labels (B,) or scalar, in at least float32."""
    log_p = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(1)
    return log_p.gather(1, label.long().expand(len(logits))[:, None])[:, 0]
