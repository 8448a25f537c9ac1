"""Features for small labelled images from a classifier trained on the data set itself: nothing is downloaded."""

from __future__ import annotations

import hashlib
import io
from contextlib import suppress
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion_lab.metric.features import QUANTISATION, to_uint8
from diffusion_lab.ranges import Count, Seed, checked
from diffusion_lab.storage.atomic_file import atomic_write
from diffusion_lab.storage.machine_cache import machine_cache

_HIDDEN = 256  # width of the first layer
_BATCH = 100  # images of a fitting step
_RATE = 5e-3  # Adam's learning rate, falling linearly to zero
_SMOOTHING = 0.2  # label smoothing: keeps classes compact and equally far apart
_NOISE = 0.1  # largest standard deviation of the noise that the classifier estimates
_RIDGE = 1e-3  # added to the variances before whitening, relative to the mean variance
_BLOCK = 1000  # images per batch


class ClassifierFeatures:
    """Penultimate features of a perceptron, pixels -> 256 -> dimensions -> labels, trained on the training images.

    A Fréchet distance in these features detects missing classes and wrong shapes, as that in the Inception features of
    Heusel et al. 2017 does for photographs. A plain classifier learns to ignore noise, which is what remains in badly
    denoised samples. Therefore this one is also trained to estimate the standard deviation s of noise added to x:

        loss = cross_entropy(label) + (s_hat - s / 0.1)^2,   x = clamp(image + s eps),   s ~ U[0, 0.1].

    Features are whitened by the covariance of the training images, with a ridge. The distance is then invariant to
    linear maps of the features, and varies less by chance: for 1000 digits drawn with replacement from the training
    set by 10 %, without whitening, where the random class frequencies dominate, by 20 %.

    Images are first quantised by `to_uint8`. The result depends on images, labels and `seed` alone: training uses its
    own generator and runs in float64 on the CPU, whatever the caller's device, precision or gradient mode.

    A machine trains it once: its weights are kept in `machine_cache`, in a file named by a digest of images, labels and
    settings, unless `cache` is false.
    """

    short = "fd"
    learned = True

    @checked
    def __init__(
        self,
        name: str = "digits",
        dimensions: Count = 64,
        steps: Count = 600,
        seed: Seed = 0,
        cache: bool = True,
    ) -> None:
        if not name.isidentifier():
            raise ValueError(f"name is part of a metric name: letters, digits and _ only, got {name!r}")
        self.name = name
        self.dimensions = dimensions
        self.steps = steps
        self.seed = seed
        self.cache = cache
        self.classes = 0  # known once it is fitted
        self.digest = ""
        self._layers: list[Tensor] = []
        self._mean, self._whitening, self._colouring = torch.zeros(()), torch.zeros(()), torch.zeros(())
        self._shape: tuple[int, ...] = ()

    def prepare(
        self, train_images: Tensor | None, train_labels: Tensor | None, device: torch.device | str = "cpu"
    ) -> None:
        """Train on images (N, C, H, W) in [0, 1] and labels (N,), integers from 0; `device` is ignored.

        Raises:
            ValueError: without labels, for labels of another shape or range, or for fewer than two classes.
        """
        if train_images is None or train_labels is None:
            raise ValueError(
                f"metric features {self.name!r} need a labelled data set: use metric=inception or metric.features=null"
            )
        if train_images.ndim != 4 or not len(train_images) or train_labels.shape != train_images.shape[:1]:
            raise ValueError(
                f"images (N, C, H, W) and labels (N,) are needed, "
                f"got {tuple(train_images.shape)} and {tuple(train_labels.shape)}"
            )
        if train_labels.is_floating_point() or train_labels.min() < 0 or train_labels.max() < 1:
            raise ValueError(
                "the metric is a classifier trained on the labels of the data, which must be 0, 1, ... of at least two "
                "classes: use metric=inception or metric.features=null"
            )
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False):
            images = to_uint8(train_images.cpu())
            self._shape = tuple(images.shape[1:])
            self._layers = self._fitted(images, train_labels.cpu().long().clone())
        self.classes = len(self._layers[-1]) - 1
        hidden = self._hidden(images)
        self._mean, self._whitening, self._colouring = _whitening(hidden)
        self.digest = _digest(self._layers)

    def _fitted(self, images: Tensor, labels: Tensor) -> list[Tensor]:
        """Train the layers, or load those that were trained on the same images with the same settings."""
        if not self.cache:
            return self._fit(images, labels)
        settings = (self.dimensions, self.steps, self.seed, _HIDDEN, _BATCH, _RATE, _SMOOTHING, _NOISE)
        digest = hashlib.sha256(f"{torch.__version__} {settings} {tuple(images.shape)}".encode())
        for values in (images, labels):
            digest.update(values.contiguous().numpy())
        path = machine_cache("classifiers") / f"{digest.hexdigest()[:24]}.pt"
        with suppress(Exception):  # missing, or damaged in any way: it is trained again
            kept, checksum = torch.load(path, weights_only=True)
            if _digest(kept) == checksum:
                return kept
        layers, content = self._fit(images, labels), io.BytesIO()
        torch.save((layers, _digest(layers)), content)
        with suppress(OSError), atomic_write(path) as file:  # a read-only or full disk: the next run trains it again
            file.write(content.getbuffer())
        return layers

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
        """Return the logits (B, classes) of hidden features; the last output, the noise, is dropped."""
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            return F.linear(hidden, *self._layers[-2:])[:, : self.classes]

    def _ready(self) -> None:
        if not self._layers:
            raise RuntimeError(f"metric features {self.name!r} are not trained yet: call prepare first")

    def _checked(self, images: Tensor) -> Tensor:
        self._ready()
        if images.shape[1:] != self._shape:
            raise ValueError(f"trained on images (B, *{self._shape}), got {tuple(images.shape)}")
        return to_uint8(images).cpu()

    def __call__(self, images: Tensor) -> Tensor:
        """Float32 features (B, dimensions) of images (B, C, H, W) in [0, 1], on the device of the images."""
        hidden = self._hidden(self._checked(images))
        return ((hidden - self._mean) @ self._whitening).float().to(images.device)

    def predict(self, images: Tensor) -> Tensor:
        """Return the most likely label (B,) of each image, for example to count the classes of samples."""
        return self._scores(self._hidden(self._checked(images))).argmax(dim=1).to(images.device)

    def logits(self, features: Tensor) -> Tensor:
        """Return the logits (B, classes) of whitened features."""
        self._ready()
        hidden = features.cpu().double() @ self._colouring + self._mean
        return self._scores(hidden).float().to(features.device)

    def protocol(self) -> dict[str, str | int]:
        """Return all settings that affect the features."""
        self._ready()
        return {
            "extractor": self.name,
            "digest": self.digest,
            "dimensions": self.dimensions,
            "quantisation": QUANTISATION,
            "resize": "none",
            "precision": "float64",
        }


def _digest(layers: list[Tensor]) -> str:
    state = torch.cat([layer.flatten() for layer in layers]).numpy().tobytes()
    return hashlib.sha256(f"whitened {_RIDGE}".encode() + state).hexdigest()


def _unit(pixels: Tensor) -> Tensor:
    return pixels.flatten(1).double() / 255


def _whitening(hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean (D,) of hidden features (N, D), W = (covariance + ridge I)^(-1/2) (D, D), and its inverse."""
    values, vectors = torch.linalg.eigh(hidden.T.cov())
    scales = (values.clamp(min=0) + _RIDGE * values.mean()).rsqrt()
    return hidden.mean(dim=0), vectors * scales @ vectors.T, vectors / scales @ vectors.T


def _initial(widths: tuple[int, ...], generator: torch.Generator) -> list[Tensor]:
    """Return weights and biases of all layers, uniform in +-1 / sqrt(fan in)."""
    layers = []
    for fan_in, fan_out in pairwise(widths):
        for shape in ((fan_out, fan_in), (fan_out,)):
            values = torch.rand(shape, dtype=torch.float64, generator=generator)
            layers.append(((2 * values - 1) / fan_in**0.5).requires_grad_())
    return layers


def _forward(layers: list[Tensor], x: Tensor) -> Tensor:
    """Apply linear layers with a ReLU between them."""
    for i in range(0, len(layers), 2):
        x = F.linear(x.relu() if i else x, layers[i], layers[i + 1])
    return x
