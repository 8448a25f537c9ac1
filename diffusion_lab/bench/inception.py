"""Our Inception features compared with torch-fidelity's, with the same random weights and images."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from diffusion_lab.bench.benchmark import Benchmark, Setting, Work
from diffusion_lab.metric.features import full_precision, to_uint8
from diffusion_lab.metric.inception import InceptionFeatures
from diffusion_lab.metric.weights import plain_file


class _Untrained(FeatureExtractorInceptionV3):
    """The architecture with random weights: the constructor would load trained ones."""

    def load_state_dict(self, *_: object) -> None:
        pass


def random_weights(path: Path, seed: int = 0) -> str:
    """Write random weights of InceptionV3 that preserve the scale of activations; return their sha256."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _Untrained("inception-v3-compat", ["2048"], feature_extractor_weights_path=plain_file({}))
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
            if isinstance(module, nn.BatchNorm2d):  # not 0 or 1, which could hide an error
                nn.init.uniform_(module.running_var, 0.5, 1.5)
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.running_mean, 0, 0.1)
                nn.init.normal_(module.bias, 0, 0.1)
    torch.save(network.state_dict(), path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def torch_fidelity_features(path: Path, device: torch.device) -> Callable[[Tensor], Tensor]:
    """torch-fidelity's own extractor: bytes (B, 3, H, W) to features (B, 2048)."""
    network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path))
    network.to(device)
    return lambda pixels: network(pixels)[0]


def error(features: Mapping[str, Tensor]) -> str:
    """Report the largest relative error over the images."""
    found, expected = (f.double() for f in features.values())
    relative = (found - expected).norm(dim=1) / expected.norm(dim=1)
    return f"relative error {relative.max():.1e} (largest of {len(relative)} images)"


def benchmarks(setting: Setting) -> Iterator[Benchmark]:
    """CIFAR-10-sized images, enlarged to 299x299 as for every published FID, in float32."""
    count, size = (2, 8) if setting.small else (64, 32)
    images = torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0)).to(setting.device)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "weights.pth")
        digest = random_weights(path)

        def ours() -> Work:
            extractor = InceptionFeatures(str(path), batch_size=count, digest=digest)
            extractor.prepare(device=setting.device)
            return lambda: extractor(images)

        def torch_fidelity() -> Work:
            extractor = torch_fidelity_features(path, setting.device)

            def work() -> Tensor:
                with full_precision(setting.device):
                    return extractor(to_uint8(images))

            return work

        implementations = {"ours": ours, "torch-fidelity": torch_fidelity}
        yield Benchmark(
            f"Inception features of {count} images {size}x{size}", implementations, "ms an image", count, note=error
        )
