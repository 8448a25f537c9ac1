"""Linear measurements of images: y = A x, with their transposes and inverses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor

from diffusion_lab.control.base import mask_of
from diffusion_lab.ranges import Count, Positive, checked


class LinearOperator(ABC):
    """y = A x, for x (B, C, H, W).

    `scale` is c where A A^T = c I on measurements (the rows of A are orthogonal and of equal length), else None.
    """

    scale: float | None = None
    projects = False
    """Whether A A x = A x, on images of the same shape."""

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """A x."""

    @abstractmethod
    def transpose(self, y: Tensor) -> Tensor:
        """A^T y."""

    def solve(self, y: Tensor, a: float, b: float) -> Tensor:
        """(a A A^T + b I)^(-1) y, by conjugate gradients for each image where A A^T is not a multiple of I."""
        if self.scale is not None:
            return y / (a * self.scale + b)
        return conjugate_gradients(lambda v: a * self(self.transpose(v)) + b * v, y)

    def __str__(self) -> str:
        return type(self).__name__

    def of(self, images: Sequence[int], like: Tensor) -> LinearOperator:
        """This operator for the images of a series with these indices, with tensors like `like` (B, ...)."""
        return self


class Mask(LinearOperator):
    """y = m x: known pixels, and 0 elsewhere (inpainting).

    Args:
        mask: (H, W), (C, H, W) or (B, C, H, W) that broadcasts to x; True or 1 where x is known.

    Raises:
        ValueError: for values other than 0 and 1.
    """

    scale, projects = 1.0, True

    def __init__(self, mask: Tensor) -> None:
        if not ((mask == 0) | (mask == 1)).all():
            raise ValueError("a mask has the values 0 (unknown) and 1 (known) only")
        self.mask = mask

    def __call__(self, x: Tensor) -> Tensor:
        return self.mask * x

    transpose = __call__

    def of(self, images: Sequence[int], like: Tensor) -> Mask:
        return Mask(mask_of(self.mask, images, like))


class BlockAverage(LinearOperator):
    """y = averages of factor x factor blocks of pixels (super-resolution), (B, C, H / factor, W / factor)."""

    @checked
    def __init__(self, factor: Annotated[int, Ge(2)]) -> None:
        self.factor, self.scale = factor, factor**-2

    def __call__(self, x: Tensor) -> Tensor:
        if x.shape[-1] % self.factor or x.shape[-2] % self.factor:
            raise ValueError(f"images of {tuple(x.shape[-2:])} pixels do not divide into blocks of {self.factor}")
        return F.avg_pool2d(x, self.factor)

    def transpose(self, y: Tensor) -> Tensor:
        return self.scale * y.repeat_interleave(self.factor, -1).repeat_interleave(self.factor, -2)


class Grey(LinearOperator):
    """y = the mean of the channels (colorization), (B, 1, H, W).

    Its row is 1/sqrt(C) times the first axis, (1, 1, 1)/sqrt(3), of ScoreSDE's orthonormal colour basis (Song et al.
    2021, Appendix I.3), so that replacing the measured part is the same.

    Args:
        channels: of the images; None: bound with their shape.
    """

    @checked
    def __init__(self, channels: Count | None = None) -> None:
        self.channels, self.scale = channels, 1 / channels if channels else None

    def of(self, images: Sequence[int], like: Tensor) -> Grey:
        channels = like.shape[1]
        if self.channels not in (None, channels) or channels == 1:
            wanted = self.channels if channels > 1 else "several"
            raise ValueError(
                f"a grey measurement needs images of {wanted} channels, and these have {channels}: use another control"
            )
        return Grey(channels)

    def __call__(self, x: Tensor) -> Tensor:
        return x.mean(1, keepdim=True)

    def transpose(self, y: Tensor) -> Tensor:
        return self.scale * y.expand(-1, self.channels, -1, -1)


class Blur(LinearOperator):
    """y = x convolved with a kernel at periodic boundaries (deblurring), of the shape of x.

    A is diagonal in Fourier space, where `solve` is exact.

    Args:
        kernel: (K, K), odd K.
    """

    def __init__(self, kernel: Tensor | Sequence[Sequence[float]]) -> None:
        self.kernel = torch.as_tensor(kernel)
        if self.kernel.dim() != 2 or not all(size % 2 for size in self.kernel.shape):
            raise ValueError(f"a blur kernel has an odd number of rows and columns, not {tuple(self.kernel.shape)}")

    def transfer(self, x: Tensor) -> Tensor:
        """The kernel's Fourier transform on the pixels of x (B, C, H, W)."""
        height, width = x.shape[-2:]
        rows, columns = self.kernel.shape
        if rows > height or columns > width:
            raise ValueError(f"a blur kernel of {rows} x {columns} pixels is larger than images of {height} x {width}")
        padded = F.pad(self.kernel.to(x), (0, width - columns, 0, height - rows))
        return torch.fft.rfft2(padded.roll((-(rows // 2), -(columns // 2)), (0, 1)))

    def __call__(self, x: Tensor) -> Tensor:
        return self.filtered(x, self.transfer(x))

    def transpose(self, y: Tensor) -> Tensor:
        return self.filtered(y, self.transfer(y).conj())

    def solve(self, y: Tensor, a: float, b: float) -> Tensor:
        return self.filtered(y, 1 / (a * self.transfer(y).abs().square() + b))

    @staticmethod
    def filtered(x: Tensor, transfer: Tensor) -> Tensor:
        """x multiplied by a transfer function in Fourier space."""
        return torch.fft.irfft2(torch.fft.rfft2(x) * transfer, s=x.shape[-2:])


class GaussianBlur(Blur):
    """`Blur` by a Gaussian of this standard deviation in pixels, cut at 3 std."""

    @checked
    def __init__(self, std: Positive = 1.0) -> None:
        reach = max(1, round(3 * std))
        row = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=torch.float64) / std) ** 2)
        row = row / row.sum()
        super().__init__(row[:, None] * row)
        self.std = std


def conjugate_gradients(matrix: object, y: Tensor, steps: int = 200, tolerance: float = 1e-10) -> Tensor:
    """The solution v of matrix(v) = y (B, ...) for a symmetric positive definite matrix, for each image by itself."""
    inner = lambda a, b: (a * b).flatten(1).sum(1).reshape(-1, *(1,) * (a.dim() - 1))  # noqa: E731
    v, residual = torch.zeros_like(y), y.clone()
    direction, size = residual.clone(), inner(residual, residual)
    enough = tolerance**2 * size
    for _ in range(steps):
        if (size <= enough).all():
            break
        image = matrix(direction)
        rate = torch.where(size > enough, size / inner(direction, image), 0.0)
        v, residual = v + rate * direction, residual - rate * image
        size, before = inner(residual, residual), size
        direction = residual + torch.where(before > enough, size / before, 0.0) * direction
    return v
