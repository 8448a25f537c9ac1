"""Features for small labelled images: a classifier fitted on the spot, so nothing is downloaded."""

from __future__ import annotations

import hashlib
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion_lab.metric.features import QUANTISATION, to_uint8

_HIDDEN = 256  # width of the first layer
_BATCH = 100  # images of a fitting step
_RATE = 5e-3  # Adam's learning rate, falling linearly to zero
_SMOOTHING = 0.2  # label smoothing: classes stay tight and equally far apart
_NOISE = 0.1  # largest standard deviation of the noise whose strength the classifier must tell
_RIDGE = 1e-3  # least variance of a whitened direction, as a share of the mean variance
_BLOCK = 1000  # images in flight


class ClassifierFeatures:
    """Penultimate features of a perceptron, pixels -> 256 -> dimensions -> labels, fitted to training images.

    A Fréchet distance in the features of a classifier of the data set itself sees missing classes and broken
    shapes (as the Inception features of Heusel et al. 2017 do for photographs). A plain classifier learns to
    overlook noise, the very defect of an unfinished diffusion sample, so this one must also tell from each
    training image how much noise was added to it:

        loss = cross_entropy(label) + (s_hat - s / 0.1)^2,   x = clamp(image + s eps),   s ~ U[0, 0.1].

    Features are whitened by the training images' covariance (directions without variance stay small). The
    distance then depends on no linear rescaling of the features, and chance has little hold on it: of 1000 digits drawn
    with replacement from the training set it varies by 10 %; without whitening, when the accidental shares of the
    classes rule, by 20 %.
    Images are quantised by `to_uint8` first. The fit is a function of images, labels and `seed` alone: it has
    its own generator and runs in float64 on the CPU, whatever the device, precision or gradient mode of the
    caller.
    """

    short = "fd"
    learned = True

    def __init__(self, name: str = "digits", dimensions: int = 64, steps: int = 600, seed: int = 0) -> None:
        if not name.isidentifier():
            raise ValueError(f"name becomes part of a metric name: letters, digits, _ only, got {name!r}")
        if dimensions < 1 or steps < 1:
            raise ValueError(f"dimensions and steps must be at least 1, got {dimensions} and {steps}")
        self.name = name
        self.dimensions = dimensions
        self.steps = steps
        self.seed = seed
        self.classes = 0  # known once it is fitted
        self.digest = ""
        self._layers: list[Tensor] = []
        self._mean, self._whitening, self._colouring = torch.zeros(()), torch.zeros(()), torch.zeros(())
        self._shape: tuple[int, ...] = ()

    def prepare(
        self, train_images: Tensor | None, train_labels: Tensor | None, device: torch.device | str = "cpu"
    ) -> None:
        """Fit to images (N, C, H, W) in [0, 1] and labels (N,), integers from 0; `device` plays no part.

        Raises:
            ValueError: without labels, with labels that do not fit, or with fewer than two classes.
        """
        if train_images is None or train_labels is None:
            raise ValueError(
                f"metric features {self.name!r} need a labelled data set: "
                "use metric=inception, or go without: metric.features=null"
            )
        if train_images.ndim != 4 or not len(train_images) or train_labels.shape != train_images.shape[:1]:
            raise ValueError(
                f"images (N, C, H, W) and labels (N,) are needed, "
                f"got {tuple(train_images.shape)} and {tuple(train_labels.shape)}"
            )
        if train_labels.is_floating_point() or train_labels.min() < 0 or train_labels.max() < 1:
            raise ValueError(
                "the metric is a classifier trained on the labels of the data, which must be 0, 1, ... of at least two "
                "classes: use metric=inception, or go without: metric.features=null"
            )
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False):
            images = to_uint8(train_images.cpu())
            self._shape = tuple(images.shape[1:])
            self._layers = self._fit(images, train_labels.cpu().long().clone())
        self.classes = len(self._layers[-1]) - 1
        hidden = self._hidden(images)
        self._mean, self._whitening, self._colouring = _whitening(hidden)
        state = torch.cat([layer.flatten() for layer in self._layers]).numpy().tobytes()
        self.digest = hashlib.sha256(f"whitened {_RIDGE}".encode() + state).hexdigest()

    def _fit(self, images: Tensor, labels: Tensor) -> list[Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        classes = int(labels.max()) + 1
        layers = _initial((images[0].numel(), _HIDDEN, self.dimensions, classes + 1), generator)
        optimizer = torch.optim.Adam(layers, lr=_RATE)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=self.steps)
        for _ in range(self.steps):
            rows = torch.randint(len(images), (_BATCH,), generator=generator)
            clean = _unit(images[rows])
            level = torch.rand(_BATCH, 1, dtype=torch.float64, generator=generator)
            noise = torch.randn(clean.shape, dtype=torch.float64, generator=generator)
            output = _forward(layers, (clean + _NOISE * level * noise).clamp(0, 1))
            loss = F.cross_entropy(output[:, :classes], labels[rows], label_smoothing=_SMOOTHING)
            loss = loss + F.mse_loss(output[:, classes:], level)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        return [layer.detach() for layer in layers]

    def _hidden(self, pixels: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            blocks = [_forward(self._layers[:-2], _unit(block)) for block in pixels.split(_BLOCK)]
        return torch.cat(blocks).relu()

    def _scores(self, hidden: Tensor) -> Tensor:
        """Class scores (B, classes) of hidden features; the last output is the noise, no class."""
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            return F.linear(hidden, *self._layers[-2:])[:, : self.classes]

    def _ready(self) -> None:
        if not self._layers:
            raise RuntimeError(f"metric features {self.name!r} are not fitted yet: call prepare first")

    def _checked(self, images: Tensor) -> Tensor:
        self._ready()
        if images.shape[1:] != self._shape:
            raise ValueError(f"fitted to images (B, *{self._shape}), got {tuple(images.shape)}")
        return to_uint8(images).cpu()

    def __call__(self, images: Tensor) -> Tensor:
        """Float32 features (B, dimensions) of images (B, C, H, W) in [0, 1], on the device of the images."""
        hidden = self._hidden(self._checked(images))
        return ((hidden - self._mean) @ self._whitening).float().to(images.device)

    def predict(self, images: Tensor) -> Tensor:
        """The most likely label (B,) of each image, for instance to count the classes among samples."""
        return self._scores(self._hidden(self._checked(images))).argmax(dim=1).to(images.device)

    def logits(self, features: Tensor) -> Tensor:
        """The class scores (B, classes) before the softmax: the whitening undone, then the last layer."""
        self._ready()
        hidden = features.cpu().double() @ self._colouring + self._mean
        return self._scores(hidden).float().to(features.device)

    def protocol(self) -> dict[str, str | int]:
        """What changes these features."""
        self._ready()
        return {
            "extractor": self.name,
            "digest": self.digest,
            "dimensions": self.dimensions,
            "quantisation": QUANTISATION,
            "resize": "none",
            "precision": "float64",
        }


def _unit(pixels: Tensor) -> Tensor:
    return pixels.flatten(1).double() / 255


def _whitening(hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (D,), W = (covariance + ridge I)^(-1/2) (D, D) and its inverse, of hidden features (N, D)."""
    values, vectors = torch.linalg.eigh(hidden.T.cov())
    scales = (values.clamp(min=0) + _RIDGE * values.mean()).rsqrt()
    return hidden.mean(dim=0), vectors * scales @ vectors.T, vectors / scales @ vectors.T


def _initial(widths: tuple[int, ...], generator: torch.Generator) -> list[Tensor]:
    """Weights and biases, uniform within 1 / sqrt(fan in), layer by layer."""
    layers = []
    for fan_in, fan_out in pairwise(widths):
        for shape in ((fan_out, fan_in), (fan_out,)):
            values = torch.rand(shape, dtype=torch.float64, generator=generator)
            layers.append(((2 * values - 1) / fan_in**0.5).requires_grad_())
    return layers


def _forward(layers: list[Tensor], x: Tensor) -> Tensor:
    """Linear layers with a ReLU between them."""
    for i in range(0, len(layers), 2):
        x = F.linear(x.relu() if i else x, layers[i], layers[i + 1])
    return x
