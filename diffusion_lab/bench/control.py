"""Rank controls by their error against the exact posterior of Gaussian images, at equal network evaluations.

python -m diffusion_lab.bench.control [--nfe 250] [--samples 4000] [--out control.png]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from diffusion_lab.control import DPS, BlockAverage, Blur, Control, Grey, Mask, PiGDM, RePaint, Replacement
from diffusion_lab.control.operator import LinearOperator
from diffusion_lab.output import say, tolerant
from diffusion_lab.process import DiscreteProcess, Linear
from diffusion_lab.sampler import Ancestral, Sampler
from diffusion_lab.verification.linear_gaussian import GaussianImages, draw, errors

DATA = GaussianImages.smooth((3, 4, 4))
NOISE = 0.05
"""Standard deviation of the noise that methods for noisy measurements assume; the others take them as exact."""

PROBLEMS: dict[str, LinearOperator] = {
    "inpainting": Mask((torch.arange(4) < 2).double()),
    "super-resolution": BlockAverage(2),
    "colorization": Grey(3),
    "deblurring": Blur([[0.0, 0.1, 0.0], [0.1, 0.6, 0.1], [0.0, 0.1, 0.0]]),
}
RESAMPLINGS, JUMP = 5, 5

METHODS: dict[str, tuple[Callable[[LinearOperator, Tensor], Control], str]] = {
    "replacement": (Replacement, "biased: a step knows the measurement at its own noise only"),
    "RePaint": (
        lambda operator, y: RePaint(operator, y, jump_length=JUMP, resamplings=RESAMPLINGS),
        "less biased with more resamplings",
    ),
    "DPS": (lambda operator, y: DPS(operator, y, scale=0.3), "biased: a point estimate of x_0, a fixed step"),
    "pseudoinverse": (
        lambda operator, y: PiGDM(operator, y, NOISE),
        "exact for white data; here biased by its covariance r^2 I",
    ),
}


def steps_for(control: Control, nfe: int) -> int:
    """The largest number of steps with which a control makes at most `nfe` network evaluations."""

    def calls(steps: int) -> int:
        path = control.path([1 - i / steps for i in range(steps)])
        return sum(s < t for t, s in pairwise(path)) + 1

    return max(steps for steps in range(JUMP + 1, nfe + 1) if calls(steps) <= nfe)


def measure(problem: str, method: str, nfe: int, samples: int) -> tuple[float, float]:
    """Relative errors of the posterior's mean and covariance."""
    operator, generator = PROBLEMS[problem], torch.Generator().manual_seed(1)
    zero = torch.zeros(len(DATA.covariance), dtype=torch.float64)
    truth = draw(zero, DATA.covariance, 1, DATA.shape, generator)
    y = operator(truth)
    noise = 0.0 if method in ("replacement", "RePaint") else NOISE
    mean, covariance = DATA.posterior(operator, y, noise)
    if method == "exact":
        return errors(draw(mean, covariance, samples, DATA.shape, generator), mean, covariance)
    control = METHODS[method][0](operator, y)
    sampler = Sampler(Ancestral("fixed_small"), steps=steps_for(control, nfe), precision="float64")
    like = torch.zeros(samples, *DATA.shape, dtype=torch.float64)
    denoiser = control.of(range(samples), lambda x: x, like)(DATA.denoiser(DiscreteProcess(Linear(), 1000)))
    return errors(sampler(denoiser, like.shape, generator), mean, covariance)


def suits(problem: str, method: str) -> bool:
    """Replacement needs a measurement whose rows are orthogonal."""
    return method not in ("replacement", "RePaint") or PROBLEMS[problem].scale is not None


def main(arguments: list[str] | None = None) -> None:
    """Print the table, and draw it where `--out` is given."""
    tolerant()
    about = __doc__.partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m diffusion_lab.bench.control", description=about)
    parser.add_argument("--nfe", type=int, default=250, help="network evaluations of each method")
    parser.add_argument("--samples", type=int, default=4000, help="samples of each posterior")
    parser.add_argument("--out", help="PNG file of the plot")
    chosen = parser.parse_args(arguments)
    say(f"relative errors of mean and covariance: {chosen.nfe} network evaluations, {chosen.samples} samples, DDPM")
    results: dict[tuple[str, str], tuple[float, float]] = {}
    for problem in PROBLEMS:
        say(problem)
        for method in (*METHODS, "exact"):
            if not suits(problem, method):
                continue
            results[problem, method] = mean, covariance = measure(problem, method, chosen.nfe, chosen.samples)
            remark = METHODS[method][1] if method in METHODS else "samples of the posterior itself"
            say(f"  {method:<14}{mean:7.3f}{covariance:7.3f}   {remark}")
    if chosen.out:
        plot(results, chosen.out)


def plot(results: dict[tuple[str, str], tuple[float, float]], out: str) -> None:
    """Draw both errors of every method, a panel for each problem."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(PROBLEMS), figsize=(3 * len(PROBLEMS), 3), sharey=True, layout="constrained")
    for axis, problem in zip(axes, PROBLEMS, strict=True):
        for method in (*METHODS, "exact"):
            if (problem, method) in results:
                axis.plot(*results[problem, method], "o", label=method)
        axis.set(title=problem, xscale="log", yscale="log", xlabel="error of the mean")
    axes[0].set_ylabel("error of the covariance")
    axes[0].legend(fontsize=8)
    figure.savefig(out, dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
