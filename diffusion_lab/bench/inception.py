"""The command `python -m diffusion_lab.bench.inception`: our Inception features against torch-fidelity's own."""

from __future__ import annotations

import argparse
import hashlib
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from diffusion_lab.metric.features import full_precision, to_uint8
from diffusion_lab.metric.inception import InceptionFeatures
from diffusion_lab.metric.weights import plain_file


class _Untrained(FeatureExtractorInceptionV3):
    """The architecture with random weights: its constructor would read a file of trained ones."""

    def load_state_dict(self, *_: object) -> None:
        pass


def random_weights(path: Path, seed: int = 0) -> str:
    """Write random weights of InceptionV3, under which its signal neither dies out nor explodes; their sha256."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _Untrained("inception-v3-compat", ["2048"], feature_extractor_weights_path=plain_file({}))
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
            if isinstance(module, nn.BatchNorm2d):  # nothing here is 0 or 1, which would hide a mistake
                nn.init.uniform_(module.running_var, 0.5, 1.5)
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.running_mean, 0, 0.1)
                nn.init.normal_(module.bias, 0, 0.1)
    torch.save(network.state_dict(), path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def torch_fidelity_features(path: Path, device: str = "cpu") -> Callable[[Tensor], Tensor]:
    """torch-fidelity's own extractor: bytes (B, 3, H, W) to features (B, 2048)."""
    network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path))
    network.to(device)
    return lambda pixels: network(pixels)[0]


def seconds(work: Callable[[], Tensor], device: str) -> float:
    """How long `work` takes, until the device is idle."""
    start = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def compare(images: Tensor, batch_size: int, rounds: int, device: str) -> str:
    """Race both on images (N, 3, H, W) in [0, 1], turn by turn after one untimed round; a report."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "weights.pth")
        digest = random_weights(path)
        ours = InceptionFeatures(str(path), batch_size=batch_size, digest=digest)
        ours.prepare(device=device)
        theirs = torch_fidelity_features(path, device)
    images = images.to(device)

    def their_turn() -> Tensor:
        with full_precision(torch.device(device)):
            return torch.cat([theirs(pixels) for pixels in to_uint8(images).split(batch_size)])

    found, expected = ours(images).double(), their_turn().double()
    error = (found - expected).norm(dim=1) / expected.norm(dim=1)
    times = [(seconds(lambda: ours(images), device), seconds(their_turn, device)) for _ in range(rounds)]
    mine, others = ([1000 * t / len(images) for t in column] for column in zip(*times, strict=True))
    ratios = [b / a for a, b in times]
    return (
        f"InceptionFeatures {statistics.median(mine):.1f} ms an image ({min(mine):.1f} to {max(mine):.1f})\n"
        f"torch-fidelity    {statistics.median(others):.1f} ms an image ({min(others):.1f} to {max(others):.1f})\n"
        f"ratio             {statistics.median(ratios):.2f} times as fast ({min(ratios):.2f} to {max(ratios):.2f})\n"
        f"relative error    {error.max():.1e} (largest of {len(images)} images)"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the race of both extractors, with the same random weights on the same images."""
    parser = argparse.ArgumentParser(prog="python -m diffusion_lab.bench.inception", description=main.__doc__)
    parser.add_argument("--images", type=int, default=64, help="images in a round")
    parser.add_argument("--size", type=int, default=32, help="pixels of an image's side")
    parser.add_argument("--batch-size", type=int, default=64, help="images in the network at once")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds of both")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of the CPU")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    images = torch.rand(options.images, 3, options.size, options.size, generator=torch.Generator().manual_seed(0))
    print(f"{options.images} images {options.size}x{options.size}, {options.device}, {options.threads} CPU threads")
    print(compare(images, min(options.batch_size, options.images), options.rounds, options.device))


if __name__ == "__main__":
    main()
