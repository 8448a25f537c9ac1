"""Linear operators of deepinv (https://deepinv.github.io) as ours."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from diffusion_lab.control.operator import LinearOperator


class DeepInverse(LinearOperator):
    """y = A x by `A` and `A_adjoint` of a `deepinv.physics.LinearPhysics`; its noise model is not applied.

    Controls wrap such a physics themselves: `DPS(physics, guide)`.  What is particular about A is measured with random
    images, when the operator is bound to the shape of the data.

    Raises:
        ValueError: for an object that is neither an operator of ours nor a linear physics.
    """

    def __init__(self, physics: nn.Module) -> None:
        if not (isinstance(physics, nn.Module) and hasattr(physics, "A") and hasattr(physics, "A_adjoint")):
            raise ValueError(
                f"operator={type(physics).__name__} is not a linear operator: use one of diffusion_lab.control or a "
                "LinearPhysics of deepinv.physics"
            )
        self.physics = physics

    def __str__(self) -> str:
        return type(self.physics).__name__

    def __call__(self, x: Tensor) -> Tensor:
        return self.physics.A(x)

    def transpose(self, y: Tensor) -> Tensor:
        return self.physics.A_adjoint(y)

    def of(self, images: Sequence[int], like: Tensor) -> DeepInverse:
        """This operator on the device of `like`, with `scale` and `projects` as they are for images of its shape.

        Raises:
            ValueError: if it cannot measure such images, measures each by parameters of its own, or is not linear.
        """
        bound, name = copy.copy(self), str(self)
        random = torch.Generator().manual_seed(0)
        x = torch.randn(1, *like.shape[1:], generator=random).to(like)
        try:
            bound.physics = self.physics.to(like.device, like.dtype)
            y = bound(x)
            z = torch.randn(y.shape, generator=random).to(y)
            adjoint, again, twice = bound.transpose(z), bound(bound.transpose(y)), y.shape == x.shape and bound(y)
        except Exception as error:  # of any type: it is deepinv's
            raise ValueError(f"{name}: {' '.join(str(error).split())}") from error
        if len(y) != 1 or adjoint.shape != x.shape:
            raise ValueError(f"{name} measures an image {tuple(x.shape)} as {tuple(y.shape)}, not as one measurement")
        if abs((y * z).sum() - (x * adjoint).sum()) > 1e-3 * y.norm() * z.norm():
            raise ValueError(f"{name} is not linear, or its A_adjoint is not the transpose of A")
        rate = (again * y).sum() / (y * y).sum()  # a random y is an eigenvector of A A^T only if that is c I
        bound.scale = rate.item() if torch.allclose(again, rate * y, rtol=1e-4, atol=1e-5) else None
        bound.projects = y.shape == x.shape and torch.allclose(twice, y, rtol=1e-4, atol=1e-5)
        return bound
