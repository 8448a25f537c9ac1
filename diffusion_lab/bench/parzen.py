"""Compare networks trained by denoising score matching on a few points with their optimum, the Parzen density.

python -m diffusion_lab.bench.parzen [--steps 1500] [--out parzen.png]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.loss import DenoisingLoss, energy
from diffusion_lab.network import MLP, Energy
from diffusion_lab.output import say, tolerant
from diffusion_lab.parameterization import Parameterization
from diffusion_lab.process import DiscreteProcess, Geometric, NoiseProcess, SingleLevel
from diffusion_lab.sampler import Ancestral, Sampler
from diffusion_lab.verification.parzen import Parzen

POINTS = torch.tensor([[-1.1, -0.6], [-0.7, 0.8], [0.1, -1.0], [0.3, 0.2], [0.9, 1.0], [1.2, -0.5]])
SIGMAS = (0.5, 0.25, 0.1)
ANNEALED = DiscreteProcess(Geometric(0.02, 3.0), 50)
REACH, COUNT, ARROWS, BATCH, SAMPLES = 2.0, 101, 17, 256, 300


def trained(process: NoiseProcess, network: Callable[..., Tensor], c_noise: str, steps: int) -> Denoiser:
    """A network trained by denoising score matching on the points."""
    denoiser = Denoiser(network, process, Parameterization("scaled_score", c_noise))
    optimizer, loss = torch.optim.Adam(network.parameters(), 2e-3), DenoisingLoss(reduction="half_sum")
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(denoiser, POINTS[torch.randint(len(POINTS), (BATCH,))]).mean().backward()
        optimizer.step()
        decay.step()
    return denoiser.requires_grad_(False)


def score_error(denoiser: Denoiser, exact: Denoiser) -> float:
    """Root of E |s - s*|^2 / E |s*|^2 over the noised points, at the single level of a process."""
    one = torch.ones(20_000)
    x = exact.process.perturb(POINTS[torch.randint(len(POINTS), (len(one),))], one, torch.randn(len(one), 2))
    want = exact(x, one).score
    return ((denoiser(x, one).score - want).square().sum() / want.square().sum()).sqrt().item()


def distances(denoiser: Denoiser) -> tuple[Tensor, Tensor]:
    """Samples by annealed ancestral sampling, and the distance of each to the nearest training point."""
    samples = Sampler(Ancestral("fixed_small"))(denoiser, (SAMPLES, 2), torch.Generator().manual_seed(0))
    return samples, torch.cdist(samples, POINTS).amin(1)


def main(arguments: list[str] | None = None) -> None:
    """Print the errors and distances, and draw the plot where `--out` is given."""
    tolerant()
    about = __doc__.partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m diffusion_lab.bench.parzen", description=about)
    parser.add_argument("--steps", type=int, default=1500, help="training steps of each network")
    parser.add_argument("--out", help="PNG file of the plot")
    chosen = parser.parse_args(arguments)
    if chosen.steps < 1:
        parser.error(f"--steps must be at least 1, got {chosen.steps}")
    torch.manual_seed(0)
    parzen, panels = Parzen(POINTS), {}
    say(f"networks trained on {len(POINTS)} points by denoising score matching, {chosen.steps} steps")
    for sigma in SIGMAS:
        process = SingleLevel(sigma)
        network = Energy(MLP(2, width=64, depth=2, embedding=16))
        panels[sigma] = exact, ours = parzen.denoiser(process), trained(process, network, "nothing", chosen.steps)
        say(f"sigma {sigma:<5} relative error of the score {score_error(ours, exact):.3f}")
    network = MLP(2, width=128, depth=3, embedding=64)
    both = parzen.denoiser(ANNEALED), trained(ANNEALED, network, "level", 2 * chosen.steps)
    samples = [distances(one) for one in both]
    for name, (_, distance) in zip(("exact optimum", "network"), samples, strict=True):
        median, largest = distance.median().item(), distance.max().item()
        say(f"samples of the {name:<14} distance to a training point: median {median:.1e}, largest {largest:.1e}")
    if chosen.out:
        plot(parzen, panels, [one for one, _ in samples], chosen.out)


def log_density(denoiser: Denoiser, x: Tensor) -> Tensor:
    """log p of an energy at a square grid of points, normalised there."""
    logits = -energy(denoiser, x, torch.ones(len(x)))
    return logits - logits.logsumexp(0) - 2 * torch.tensor(2 * REACH / (COUNT - 1)).log()


def plot(parzen: Parzen, panels: dict[float, tuple[Denoiser, Denoiser]], samples: list[Tensor], out: str) -> None:
    """Draw densities and scores of optimum (top) and network (bottom) at every sigma, and samples of both."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    points, arrows = (square(count) for count in (COUNT, ARROWS))
    figure, axes = pyplot.subplots(2, len(panels) + 1, figsize=(14, 7.4), layout="constrained")
    figure.suptitle("The optimum of denoising score matching on six points is the score of their Parzen density")
    for column, (sigma, pair) in enumerate(panels.items()):
        exact = parzen.log_density(points, 1.0, sigma)
        densities = exact, log_density(pair[1], points).detach()
        for axis, denoiser, density in zip(axes[:, column], pair, densities, strict=True):
            image = density.exp().reshape(COUNT, COUNT)
            axis.imshow(image, origin="lower", extent=(-REACH, REACH) * 2, cmap="Blues", vmax=exact.max().exp().item())
            score = denoiser(arrows, torch.ones(len(arrows))).score.detach()
            # Arrows of a length that grows slowly: the score is about 1 / sigma where it is large.
            shown = score / (1 + score.norm(dim=1, keepdim=True))
            axis.quiver(*arrows.T, *shown.T, color="tab:orange", scale=22, width=0.005)
        axes[0, column].set_title(f"Parzen density and score, sigma = {sigma}", fontsize=10)
        axes[1, column].set_title(f"trained energy, sigma = {sigma}", fontsize=10)
    for axis, name, x in zip(axes[:, -1], ("exact optimum", "trained network"), samples, strict=True):
        axis.plot(*x.T, ".", color="tab:orange", markersize=12, label=f"{SAMPLES} samples")
        axis.set_title(f"samples of the {name}", fontsize=10)
    for axis in axes.flat:
        axis.plot(*POINTS.T, "x", color="black", label="training points")
        axis.set(xlim=(-REACH, REACH), ylim=(-REACH, REACH), aspect="equal", xticks=[], yticks=[])
    axes[0, -1].legend(fontsize=9)
    figure.savefig(out, dpi=110)
    pyplot.close(figure)


def square(count: int) -> Tensor:
    """The points of a square grid, (count^2, 2)."""
    axis = torch.linspace(-REACH, REACH, count)
    return torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).reshape(-1, 2)


if __name__ == "__main__":
    main()
