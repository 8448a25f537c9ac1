"""The Inception features of FID; the file of weights is verified by its sha256 and never executed."""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from diffusion_lab.metric.features import QUANTISATION, full_precision, to_uint8
from diffusion_lab.metric.resize import resize_tensorflow1
from diffusion_lab.metric.weights import plain_file, read_weights
from diffusion_lab.ranges import Count, checked

_URL = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
_FILE = _URL.rsplit("/", 1)[-1]
_DIGEST = "6726825d"
_SIZE = 299  # of the network's input, in pixels


class InceptionFeatures:
    """The 2048 pool features of InceptionV3 (2015-12-05) with TensorFlow 1's resizing, as in torch-fidelity.

    The extractor of published FIDs (Heusel et al. 2017). Images are quantised by `to_uint8`, and grey ones repeated to
    three channels. The network runs in float32, without autocast or TF32, with batch norms folded into convolutions.
    The weights are read from the file `weights`, or else from torch.hub's folder ($TORCH_HOME/hub/checkpoints), where
    `download=True` downloads a missing file. The file's sha256 must start with `digest` (at least 8 hex digits).

    Raises:
        ImportError: without torch-fidelity.
    """

    name = "inception"
    learned = False
    short = "fid"
    dimensions = 2048
    classes = 1008

    @checked
    def __init__(
        self, weights: str | None = None, download: bool = False, batch_size: Count = 100, digest: str = _DIGEST
    ) -> None:
        if len(digest) < 8 or set(digest) - set("0123456789abcdef"):
            raise ValueError(f"digest must be at least 8 lower-case hex digits of a sha256, got {digest!r}")
        if find_spec("torch_fidelity") is None:
            raise ImportError("Inception features need torch-fidelity: pip install torch-fidelity")
        hub = Path(torch.hub.get_dir(), "checkpoints", _FILE)
        self.path = hub if weights is None else Path(weights).expanduser()
        self.batch_size = batch_size
        self.digest = digest
        self._missing = (
            f"Inception weights {self.path} are missing: put {_FILE} there (sha256 {digest}..., "
            f"from {_URL}), set metric.features.weights=PATH to a copy, metric.features.download=true "
            "(without weights), or metric.features=null to skip FID"
        )
        self._may_download = download and weights is None
        self._trunk: nn.Module | None = None
        self._classifier = torch.zeros(())
        self._device = torch.device("cpu")

    def prepare(
        self,
        train_images: Tensor | None = None,
        train_labels: Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """Read the weights (once) and move them to `device`; the training images are not used.

        Raises:
            FileNotFoundError: if the file is missing or cannot be downloaded.
            ValueError: if the file has another digest or is not a plain state dict of this network.
        """
        self._device = torch.device(device)
        if self._trunk is None:
            self._trunk, self._classifier = _network(self.state(), self.path)
        self._trunk.to(self._device)
        self._classifier = self._classifier.to(self._device)

    def state(self) -> dict[str, Tensor]:
        """Return the weights of the file, downloaded if necessary and allowed, after verifying its digest.

        Raises:
            FileNotFoundError: if the file is missing or cannot be downloaded.
            ValueError: if the file has another digest or is not a plain state dict.
        """
        if not self.path.is_file():
            self._download()
        content = self.path.read_bytes()
        found = hashlib.sha256(content).hexdigest()
        if not found.startswith(self.digest):
            raise ValueError(f"{self.path} has sha256 {found}, not {self.digest}...: truncated, or another file")
        state = read_weights(content, self.path)
        self.digest = found
        return state

    def _download(self) -> None:
        if not self._may_download:
            raise FileNotFoundError(self._missing)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # Renames the file only after verifying its digest, so an incomplete download is never used.
            torch.hub.download_url_to_file(_URL, str(self.path), hash_prefix=self.digest, progress=False)
        except (OSError, RuntimeError) as error:
            raise FileNotFoundError(f"{self._missing} (the download failed: {error})") from error

    def __call__(self, images: Tensor) -> Tensor:
        """Float32 features (B, 2048) of images (B, 1 or 3, H, W) in [0, 1], on the device of the images."""
        trunk = self._ready()
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(f"Inception takes images (B, 1 or 3, H, W), got {tuple(images.shape)}")
        pixels = to_uint8(images).to(self._device).expand(-1, 3, -1, -1)
        with full_precision(self._device):
            # The network's input is (pixel - 128) / 128, which is exact before the resize.
            blocks = ((block.float() - 128) / 128 for block in pixels.split(self.batch_size))
            features = [trunk(resize_tensorflow1(block, _SIZE)) for block in blocks]
        return torch.cat(features).to(images.device)

    def logits(self, features: Tensor) -> Tensor:
        """Return the logits W f (B, 1008) without bias, as the Inception Score uses them."""
        self._ready()
        with full_precision(self._device):
            return (features.to(self._classifier) @ self._classifier.T).to(features.device)

    def protocol(self) -> dict[str, str | int]:
        """Return all settings that affect the features."""
        self._ready()
        return {
            "extractor": self.name,
            "digest": self.digest,
            "dimensions": self.dimensions,
            "quantisation": QUANTISATION,
            "resize": f"bilinear of TensorFlow 1 to {_SIZE}",
            "precision": "float32",
        }

    def _ready(self) -> nn.Module:
        if self._trunk is None:
            raise RuntimeError("the Inception weights are not loaded yet: call prepare first")
        return self._trunk


def _network(state: dict[str, Tensor], path: Path) -> tuple[nn.Module, Tensor]:
    """Return torch-fidelity's network up to the features, for images (B, 3, 299, 299), and the classifier's weight."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    with torch.random.fork_rng(devices=[]):  # the random initial weights must not advance the global generator
        try:
            network = FeatureExtractorInceptionV3(
                "inception-v3-compat", ["2048"], feature_extractor_weights_path=plain_file(state)
            )
        except (RuntimeError, AttributeError) as error:  # other keys or shapes
            raise ValueError(f"{path} holds the weights of another network, not of InceptionV3") from error
    # Again in float32: the first copy was rounded if the default dtype has lower precision.
    network.load_state_dict(state)
    for block in list(network.modules()):
        if hasattr(block, "bn"):
            # gamma (w x - m) / sqrt(v + eps) + beta is one convolution; folded in float64, rounded once.
            block.conv = fuse_conv_bn_eval(block.conv.double(), block.bn.double()).float()
            block.bn = nn.Identity()
    # The children are in the order of the forward pass, the classifier last.
    *trunk, classifier = network.children()
    return nn.Sequential(*trunk, nn.Flatten()).to(memory_format=torch.channels_last), classifier.weight.detach()
