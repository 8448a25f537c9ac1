"""The command `python -m diffusion_lab.bench.scaling`: how cost grows with image size, batch, ranks, levels, samples.

Each curve is a time against a size. Its exponent is the slope of the least-squares line in logarithms: 1 for a cost in
proportion to the size. It bends at the size that best divides it into two lines, if two fit much better than one.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from diffusion_lab.bench import ddp
from diffusion_lab.bench.benchmark import Work, clock
from diffusion_lab.bench.unets import training_step
from diffusion_lab.denoiser import Denoiser
from diffusion_lab.network import UNet
from diffusion_lab.output import tolerant
from diffusion_lab.parameterization import Parameterization
from diffusion_lab.process import DiscreteProcess, Linear
from diffusion_lab.sampler import DDIM, Sampler

ROW = Parameterization(output="eps", c_noise="level", low=-1.0, high=1.0, unit_input=True)


@dataclass(frozen=True)
class Curve:
    """Median seconds against a size."""

    title: str
    sizes: Sequence[float]
    seconds: Sequence[float]

    def fit(self, knots: Sequence[float] = ()) -> tuple[list[float], float]:
        """Slopes of the best continuous line in logarithms, which bends at the knots, and its squared error."""
        x, y = (torch.tensor(v, dtype=torch.float64).log() for v in (self.sizes, self.seconds))
        hinges = [(x - torch.tensor(knot, dtype=torch.float64).log()).clamp(min=0) for knot in knots]
        basis = torch.stack([torch.ones_like(x), x, *hinges], dim=1)
        solution = torch.linalg.lstsq(basis, y[:, None]).solution[:, 0]
        return solution[1:].cumsum(0).tolist(), (basis @ solution - y).square().sum().item()

    @property
    def exponent(self) -> float:
        return self.fit()[0][0]

    @property
    def bend(self) -> tuple[float, float, float] | None:
        """(size, exponent below, exponent above), or None for a curve that is nearly straight."""
        inner = self.sizes[1:-1]
        if len(inner) < 2 or self.fit()[1] < len(self.sizes) * 0.05**2:
            return None
        knot = min(inner, key=lambda size: self.fit([size])[1])
        (below, above), error = self.fit([knot])
        return (knot, below, above) if error < self.fit()[1] / 4 else None

    @property
    def row(self) -> str:
        """A row of a Markdown table."""
        bend = self.bend
        bends = f"at {bend[0]:,g}: {bend[1]:.2f} below, {bend[2]:.2f} above" if bend else "no"
        return f"| {self.title} | {self.sizes[0]:,g} to {self.sizes[-1]:,g} | {self.exponent:.2f} | {bends} |"


def measured(title: str, sizes: Iterable[int], make: Callable[[int], Work], rounds: int) -> Curve:
    """Time the work of every size, the sizes in turn in each round, so that other load affects all."""
    works = {size: make(size) for size in sizes}
    seconds: dict[int, list[float]] = {size: [] for size in works}
    for work in works.values():
        work()
    for _ in range(rounds):
        for size, work in works.items():
            seconds[size].append(clock(work, torch.device("cpu"))[0])
    return Curve(title, list(works), [statistics.median(values) for values in seconds.values()])


def denoiser(size: int, channels: int, levels: int = 1000, attends: bool = False) -> Denoiser:
    """DDPM's U-Net with three resolutions and one block in each, with attention at the second or nowhere."""
    torch.manual_seed(0)
    places = (size // 2,) if attends else ()
    form = {"multipliers": (1, 2, 2), "blocks": 1, "attention": places, "dropout": 0.0, "groups": 8}
    network = UNet(3, size, channels=channels, **form)
    return Denoiser(network.to(memory_format=torch.channels_last), DiscreteProcess(Linear(), levels), ROW)


def training(size: int, batch: int, channels: int, attends: bool = False) -> Work:
    """A step of training on images (batch, 3, size, size): loss, gradient, Adam, EMA."""
    step, images = training_step(denoiser(size, channels, attends=attends)), torch.rand(batch, 3, size, size) * 2 - 1
    return lambda: step(images)


@contextmanager
def ranks(channels: int) -> Iterator[Callable[[int], Work]]:
    """A step of training 16x16 by a number of processes on a CPU, with one thread and 4 images each."""
    options, groups = ddp.parser().parse_args(["--size", "16", "--channels", str(channels)]), []

    def training_by(count: int) -> Work:
        options.threads, options.batch_size = count, 4 * count
        group = ddp.start(count, Path(folder, str(count)), options)
        groups.append(group)
        ddp.train_steps(group, 1)  # DDP rebuilds its buckets after the first step
        return lambda: ddp.train_steps(group, 1)

    with tempfile.TemporaryDirectory() as folder:
        yield training_by
        for group in groups:
            ddp.end(group)


def sampling(count: int, steps: int, size: int, channels: int, levels: int = 1000) -> Work:
    """DDIM from noise to `count` images, in batches of 64."""
    model, sampler = denoiser(size, channels, levels), Sampler(DDIM(), steps=steps, spacing="trailing")
    model.network.eval()

    @torch.no_grad()
    def work() -> list[Tensor]:
        sizes = [min(64, count - first) for first in range(0, count, 64)]
        return [sampler(model, (n, 3, size, size), torch.Generator().manual_seed(0)) for n in sizes]

    return work


def curves(small: bool, rounds: int) -> Iterator[Curve]:
    """Training against image size and batch; sampling against images, steps and levels."""

    def powers(low: int, high: int) -> list[int]:
        return [2**k for k in range(low, low + 3 if small else high + 1)]

    def curve(title: str, sizes: Sequence[int], make: Callable[[int], Work]) -> Curve:
        return measured(title, sizes, make, rounds)

    channels, size, side = (8, 8, 8) if small else (64, 32, 16)
    step = "training step, 4 images, against their side"
    yield curve(step, powers(3, 7), lambda n: training(n, 4, channels))
    yield curve(f"{step}, attention at half of it", powers(3, 7), lambda n: training(n, 4, channels, attends=True))
    yield curve(f"training step, {size}x{size}, against the batch", powers(0, 6), lambda n: training(size, n, channels))
    with ranks(32 if small else 64) as training_by:
        title = "training step, 4 images 16x16 and one thread a rank, against the ranks"
        yield curve(title, powers(0, 3)[: 2 if small else None], training_by)
    title = f"10 steps of DDIM, {side}x{side}, against the images"
    yield curve(title, powers(0, 9), lambda n: sampling(n, 10, side, 32))
    yield curve("DDIM, 1 image 8x8, against the steps", powers(1, 9), lambda n: sampling(1, n, 8, 8))
    yield curve("DDIM, 1 image 8x8, 2 steps, against the levels", powers(4, 14), lambda n: sampling(1, 2, 8, 8, n))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print how the time of training and sampling grows with each size, and draw the curves."""
    parser = argparse.ArgumentParser(prog="python -m diffusion_lab.bench.scaling", description=main.__doc__)
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    parser.add_argument("--rounds", type=int, default=5, help="timed runs of each size")
    parser.add_argument("--out", type=Path, help="file for the figure, such as scaling.png")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to test that everything runs")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    print("| cost of | range | exponent | bends |\n|---|---|--:|---|")
    found = []
    for curve in curves(options.small, options.rounds):
        print(curve.row, flush=True)
        found.append(curve)
    if options.out is not None:
        from diffusion_lab.plot.charts import curves as draw

        lines = {c.title: [(x, y / c.seconds[0]) for x, y in zip(c.sizes, c.seconds, strict=True)] for c in found}
        draw(lines, options.out, "size", "time, of the smallest size")


if __name__ == "__main__":
    tolerant()
    main()
