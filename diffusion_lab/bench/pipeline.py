"""Sampling from noise to files, features and distance, compared with the network's calls alone."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_lab.bench.benchmark import Benchmark, Setting, Work
from diffusion_lab.bench.inception import random_weights
from diffusion_lab.data import DataModule, Digits, Patches
from diffusion_lab.evaluation import Evaluator, SampleStore
from diffusion_lab.loss import DenoisingLoss
from diffusion_lab.metric import ClassifierFeatures, Extractor, InceptionFeatures
from diffusion_lab.model import DDPM
from diffusion_lab.network import UNet
from diffusion_lab.process import Linear
from diffusion_lab.run.sample_files import join, write_pngs
from diffusion_lab.sampler import DDIM, Sampler


class TimedNetwork(nn.Module):
    """A network whose calls are timed, in `seconds`; on a CUDA device it waits for each."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.seconds = network, 0.0

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        start = time.perf_counter()
        output = self.network(x, c_noise)
        if x.device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds += time.perf_counter() - start
        return output


@dataclass(frozen=True)
class Problem:
    """What is sampled, `count` images in batches, and the features in which they are scored."""

    network: nn.Module
    data: DataModule
    features: Extractor
    count: int
    batch: int
    steps: int
    device: torch.device

    def model(self, network: nn.Module) -> DDPM:
        """A DDPM with this network and a DDIM sampler."""
        sampler = Sampler(DDIM(), steps=self.steps)
        shape, levels = self.data.shape, self.data.grey_levels
        return DDPM(network, Linear(), DenoisingLoss(), sampler, {}, None, shape, grey_levels=levels).to(self.device)


def whole(problem: Problem, scratch: str) -> Work:
    """What `sample.py png=true evaluate=true` does with a loaded model; returns seconds of parts, leaves its files."""
    network = TimedNetwork(problem.network)
    model, count = problem.model(network), problem.count
    evaluator = Evaluator(problem.features, count, measures=["frechet"], batch_size=problem.batch, cache=scratch)
    evaluator.prepare(problem.data, problem.device)

    def work() -> dict[str, float]:
        start, network.seconds = time.perf_counter(), 0.0
        folder = Path(tempfile.mkdtemp(dir=scratch))
        store = SampleStore(folder, model, batch_size=problem.batch)
        extraction = store.complete(count, problem.features, count, partial(write_pngs, store, out=folder / "png"))
        drawn = count / store.cost(count)[1]
        join(store, count, folder / "samples.npz")
        evaluator.seconds.clear()
        evaluator.quality(store, problem.data)
        parts = {"network": network.seconds, "sampler": drawn - network.seconds}
        parts |= {"features": extraction, "metrics": evaluator.seconds["metrics"]}
        return parts | {"files and the rest": time.perf_counter() - start - sum(parts.values())}

    return work


def calls(problem: Problem) -> Work:
    """The network's calls alone."""
    network = problem.network.to(problem.device).eval()
    t = torch.full((problem.batch,), 500.0, device=problem.device)

    @torch.no_grad()
    def work() -> Tensor:
        for start in range(0, problem.count, problem.batch):
            size = min(problem.batch, problem.count - start)
            x = torch.zeros(size, *problem.data.shape, device=problem.device)
            for _ in range(problem.steps):
                output = network(x, t[:size])
        return output

    return work


def shares(last: Mapping[str, Any]) -> str:
    """Report each part's share of the time."""
    parts = next(iter(last.values()))
    total = sum(parts.values())
    return "share of each part: " + ", ".join(f"{part} {100 * s / total:.1f} %" for part, s in parts.items())


def benchmarks(setting: Setting) -> Iterator[Benchmark]:
    """Digits in their classifier's features, and images of CIFAR-10's size in Inception's, by small U-Nets."""
    small, device = setting.small, setting.device
    torch.manual_seed(0)
    digits = UNet(1, 8, channels=24, multipliers=(1, 1), blocks=1, attention=(4,), dropout=0.0, groups=6)
    colour = UNet(3, 32, channels=32, multipliers=(1, 2, 2), blocks=1, attention=(16,), dropout=0.0, groups=8)
    patches = Patches(train_size=8 if small else 256, held_out_size=8 if small else 256)
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder, "weights.pth")
        inception = InceptionFeatures(str(weights), digest=random_weights(weights))
        # Images, images in a batch, steps.
        sizes = [(16, 8, 2), (8, 4, 2)] if small else [(2000, 500, 20), (128, 64, 100)]
        for title, network, data, features, size in (
            ("digits", digits, Digits(), ClassifierFeatures(), sizes[0]),
            ("32x32x3", colour, patches, inception, sizes[1]),
        ):
            problem = Problem(network, data, features, *size, device)
            count, _, steps = size
            what = f"{count} images {title}, DDIM with {steps} steps, PNG and npz files, features, distance"
            works = {
                "ours": partial(whole, problem, folder),
                "its network evaluations alone": partial(calls, problem),
            }
            yield Benchmark(what, works, "ms an image", count, note=shares)
