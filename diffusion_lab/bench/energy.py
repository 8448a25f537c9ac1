"""Train one energy by score matching and by maximum likelihood: the error of its density against the cost.

python -m diffusion_lab.bench.energy [--scale 1] [--out energy.png]
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from diffusion_lab.data.toy2d_density import eight_gaussians
from diffusion_lab.denoiser import Denoiser
from diffusion_lab.loss import ContrastiveLoss, DenoisingLoss, ImplicitScoreMatching, SlicedScoreMatching, energy
from diffusion_lab.network import MLP, Energy
from diffusion_lab.output import say, tolerant
from diffusion_lab.parameterization import Parameterization
from diffusion_lab.process import SingleLevel

SIGMA = 0.2
"""The noise level: every method fits the density of the data perturbed by it."""

METHODS: dict[str, tuple[Callable[[], Callable[..., Tensor]], int]] = {
    "denoising score matching": (lambda: DenoisingLoss(reduction="half_sum"), 3000),
    "sliced score matching": (SlicedScoreMatching, 1500),
    "implicit score matching": (ImplicitScoreMatching, 1500),
    "contrastive, 5 Langevin steps": (lambda: ContrastiveLoss(5), 2000),
    "contrastive, 60 Langevin steps": (lambda: ContrastiveLoss(60), 350),
}
"""The loss of a method and its training steps, which take about the same time, except for the last: twice as long."""

BATCH, RATE, DECAY, CHECKS = 256, 2e-3, 0.99, 12


class Grid:
    """A square grid, and the exact density of the perturbed mixture on it."""

    def __init__(self, reach: float = 2.4, count: int = 121) -> None:
        axis = torch.linspace(-reach, reach, count)
        self.extent, self.count, self.cell = (-reach, reach, -reach, reach), count, (axis[1] - axis[0]).item() ** 2
        self.points = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).reshape(-1, 2)
        self.exact = eight_gaussians().log_density(self.points.double(), 1.0, SIGMA)

    @torch.no_grad()
    def log_density(self, denoiser: Denoiser) -> Tensor:
        """log p of the energy at the points, normalised on the grid."""
        logits = -energy(denoiser, self.points, torch.ones(len(self.points))).double()
        return logits - logits.logsumexp(0) - math.log(self.cell)

    def errors(self, log_density: Tensor) -> tuple[float, float]:
        """Total variation between the exact density p and the energy's q, and KL(p | q) in nats."""
        p, q = self.exact.exp(), log_density.exp()
        divergence = (p * (self.exact - log_density)).sum() * self.cell
        return 0.5 * ((p - q).abs().sum() * self.cell).item(), divergence.item()


@dataclass
class Curve:
    """Cost and error of a training; the density at its end."""

    seconds: list[float] = field(default_factory=list)
    evaluations: list[int] = field(default_factory=list)
    total_variation: list[float] = field(default_factory=list)
    divergence: list[float] = field(default_factory=list)
    log_density: Tensor | None = None


def small_energy() -> Denoiser:
    """The energy that every method trains, with the same initial weights."""
    torch.manual_seed(0)
    network = Energy(MLP(2, width=64, depth=2, embedding=16))
    return Denoiser(network, SingleLevel(SIGMA, prior_std=2.0), Parameterization("scaled_score", "nothing"))


def training(denoiser: Denoiser, loss: Callable[..., Tensor], data: Tensor, steps: int) -> Iterator[int]:
    """Train with Adam and a cosine decay of the learning rate; yield the number of each step after it."""
    optimizer = torch.optim.Adam(denoiser.network.parameters(), RATE)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        loss(denoiser, data[torch.randint(len(data), (BATCH,))]).mean().backward()
        torch.nn.utils.clip_grad_norm_(denoiser.network.parameters(), 1.0)
        optimizer.step()
        decay.step()
        yield step


def measure(name: str, scale: float, grid: Grid) -> Curve:
    """Train by one method; the clock does not count the checks of the density."""
    build, steps = METHODS[name]
    steps, denoiser, curve, seconds = max(2, round(scale * steps)), small_energy(), Curve(), 0.0
    data = eight_gaussians().sample(50_000, torch.Generator().manual_seed(0))
    average = AveragedModel(denoiser.network, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    checks = {round(steps * 40 ** (k / (CHECKS - 1) - 1)) for k in range(CHECKS)}
    begin = time.perf_counter()
    for step in training(denoiser, build(), data, steps):
        average.update_parameters(denoiser.network)
        if step in checks:
            seconds += time.perf_counter() - begin
            curve.log_density = grid.log_density(denoiser.with_network(average.module))
            total_variation, divergence = grid.errors(curve.log_density)
            curve.seconds.append(seconds)
            curve.evaluations.append(denoiser.nfe)
            curve.total_variation.append(total_variation)
            curve.divergence.append(divergence)
            begin = time.perf_counter()
    return curve


def main(arguments: list[str] | None = None) -> None:
    """Print the table, and draw it where `--out` is given."""
    tolerant()
    about = __doc__.partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m diffusion_lab.bench.energy", description=about)
    parser.add_argument("--scale", type=float, default=1.0, help="factor of the training steps")
    parser.add_argument("--out", help="PNG file of the plot")
    chosen = parser.parse_args(arguments)
    if not 0 < chosen.scale < math.inf:
        parser.error(f"--scale must be a positive number, got {chosen.scale}")
    grid = Grid()
    threads = torch.get_num_threads()
    say(f"error of the density of eight Gaussians perturbed by sigma = {SIGMA}, batches of {BATCH}, {threads} threads")
    say(f"{'':<32}{'seconds':>8}{'evaluations':>13}{'total variation':>17}{'KL in nats':>12}")
    curves = {}
    for name in METHODS:
        curves[name] = c = measure(name, chosen.scale, grid)
        row = f"{c.seconds[-1]:8.1f}{c.evaluations[-1]:13,}{c.total_variation[-1]:17.3f}{c.divergence[-1]:12.3f}"
        say(f"{name:<32}{row}")
    if chosen.out:
        plot(curves, grid, chosen.out)


def plot(curves: dict[str, Curve], grid: Grid, out: str) -> None:
    """Draw the exact density and that of every method, and the errors against seconds and network evaluations."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure = pyplot.figure(figsize=(13, 7.2), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(1, 1.5))
    figure.suptitle("One energy, trained by score matching and by maximum likelihood (contrastive)")
    panels = {"exact": grid.exact, **{name: curve.log_density for name, curve in curves.items()}}
    for axis, (name, log_density) in zip(top.subplots(1, len(panels)), panels.items(), strict=True):
        image = log_density.exp().reshape(grid.count, grid.count)
        axis.imshow(image, origin="lower", extent=grid.extent, vmin=0, vmax=grid.exact.max().exp().item())
        error = f"total variation {curves[name].total_variation[-1]:.3f}" if name in curves else "density"
        axis.set_title(f"{name.replace(', ', chr(10)).replace(' score', chr(10) + 'score')}\n{error}", fontsize=9)
        axis.set(xticks=[], yticks=[])
    seconds, evaluations = bottom.subplots(1, 2, sharey=True)
    for name, curve in curves.items():
        style = "-" if "score" in name else "--"
        seconds.plot(curve.seconds, curve.total_variation, style, marker="o", markersize=3, label=name)
        evaluations.plot(curve.evaluations, curve.total_variation, style, marker="o", markersize=3)
    seconds.set(xlabel="seconds of training", ylabel="total variation to the exact density")
    evaluations.set(xlabel=f"network evaluations of a batch of {BATCH}")
    for axis in (seconds, evaluations):
        axis.set(xscale="log", yscale="log")
        axis.grid(which="both", alpha=0.3)
    seconds.legend(fontsize=9)
    figure.savefig(out, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
