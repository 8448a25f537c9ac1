"""Checks of losses: the exact optimum is a stationary point, and items do not depend on their batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.noise import image_generators
from diffusion_lab.process import SingleLevel
from diffusion_lab.verification.cases import processes
from diffusion_lab.verification.check import Chart, Check, Finding, largest, seeded, under
from diffusion_lab.verification.problem import COUNT, Problem, problem_of, with_network

ITEMS = 12
"""Data points for the comparison of a batch with its items."""

ERRORS = 5.0
"""Standard errors within which a mean must be 0."""


def check_loss(loss: Callable[..., Tensor]) -> Iterator[Finding]:
    """Yield the checks of a loss on each process that it supports.

    Raises:
        ValueError: if it supports none.
    """
    reason, supported = "", False
    for name, process in {**processes(), "one level": SingleLevel(0.5, 1.3)}.items():
        try:
            problem = problem_of(loss, process)
            losses_of(problem, problem.optimum, 2)
        except ValueError as error:
            reason = reason or str(error)
            continue
        supported = True
        yield from under(name, check_problem(problem))
    if not supported:
        raise ValueError(reason)


def check_problem(problem: Problem) -> Iterator[Finding]:
    """Yield the checks of a loss on one process."""
    losses = losses_of(problem, problem.optimum, COUNT)
    yield Check("losses that are not finite, or not one per item", COUNT - int(losses.isfinite().sum()))
    if problem.zero:
        worse = losses_of(problem, problem.worse, COUNT).mean().item()
        yield Check("loss of the exact student / of its teacher", losses.mean().item() / worse, 0.0, 0.01)
    else:
        for name, z in zip([*DIRECTIONS, "the output"], z_scores(problem), strict=True):
            yield Check(f"gradient at the optimum along {name}, in errors", z, 0.0, ERRORS)
        away = max(map(abs, z_scores(problem, factor=0.3)))
        yield Check("largest gradient away from it, in errors", away, ERRORS, 0.0, ">=")
        yield chart(problem)
    yield from check_items(problem)
    single = gradient(problem, torch.float32)
    yield Check("gradients in float32 that are not finite", int((~single.isfinite()).sum()))


def losses_of(problem: Problem, denoiser: Denoiser, count: int, generators: Any = None, first: int = 0) -> Tensor:
    """Losses (count,) of items `first` ... of the data, in float64."""
    x0, labels = (part[first : first + count] for part in problem.data)
    if generators is None:
        generators = seeded()
    return problem.loss(bound(denoiser, labels), x0, generators).double()


def bound(denoiser: Denoiser, labels: Tensor) -> Denoiser:
    """The denoiser, bound to labels if it is class-conditional."""
    return denoiser if denoiser.classes is None else denoiser.given(label=labels)


DIRECTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "a constant": lambda x, u: torch.ones_like(x),
    "x": lambda x, u: x.tanh(),
    "x t": lambda x, u: x.tanh() * u,
    "the other axis": lambda x, u: x.flip(1).tanh(),
    "x^2": lambda x, u: x.tanh() ** 2,
}
"""Perturbations of a network's output, functions of x (B, D) and of c_noise / 999 (B, 1)."""


class Perturbed(nn.Module):
    """factor times an exact network, plus sum_k theta_k direction_k with theta (B, K + 1), a row for each item.

    The last direction is the exact output itself.
    """

    def __init__(self, exact: Any, dtype: torch.dtype, factor: float = 1.0) -> None:
        super().__init__()
        self.exact, self.factor = exact, factor
        self.theta = nn.Parameter(torch.zeros(COUNT, len(DIRECTIONS) + 1, dtype=dtype))

    def forward(self, x: Tensor, c_noise: Tensor, **condition: Tensor) -> Tensor:
        output = self.exact(x, c_noise, **condition)
        if len(x) != COUNT:  # asked for a part of the batch
            return self.factor * output
        return self.factor * output + self.perturbation(x, c_noise, output)

    def perturbation(self, x: Tensor, c_noise: Tensor, output: Tensor) -> Tensor:
        """The perturbation of the output (B, D) at x (B, 2)."""
        u, width = (c_noise / 999).to(x)[:, None], output.shape[1]
        seen = x.repeat(1, -(-width // x.shape[1]))[:, :width]  # as many as outputs
        basis = torch.stack([*(direction(seen, u) for direction in DIRECTIONS.values()), output.to(x)], 1)
        scales = torch.linspace(1, 0.3, width).to(x)  # else all logits change alike, and the loss does not
        return torch.einsum("bk,bkd->bd", self.theta.to(x), basis * scales)

    def energy(self, x: Tensor, c_noise: Tensor) -> Tensor:
        """factor times the energy of the exact network, plus its perturbation, (B,) or (2 B,)."""
        value = self.exact.energy(x, c_noise)
        parts = (one.split(COUNT) for one in (x, c_noise, value[:, None].expand(-1, x.shape[1])))
        return self.factor * value + torch.cat([self.perturbation(*one).sum(1) for one in zip(*parts, strict=True)])


def gradient(problem: Problem, dtype: torch.dtype = torch.float64, factor: float = 1.0) -> Tensor:
    """The gradients of the losses of each item in theta, (COUNT, K + 1), at theta = 0."""
    x0, labels = problem.data
    network = Perturbed(problem.optimum.network, dtype, factor)
    denoiser = bound(with_network(problem.optimum, network), labels)
    with torch.enable_grad():
        losses = problem.loss(denoiser, x0.to(dtype), seeded(1))
        return torch.autograd.grad(losses.sum(), network.theta)[0] if losses.requires_grad else 0 * network.theta


def z_scores(problem: Problem, factor: float = 1.0) -> list[float]:
    """The mean gradient in each direction, divided by its standard error; 0 where there is none."""
    each = gradient(problem, factor=factor).detach()
    error = each.std(0) / COUNT**0.5
    return (each.mean(0) / torch.where(error > 0, error, 1.0)).tolist()


def chart(problem: Problem) -> Chart:
    """The gradient along the network's output, at multiples of the optimum."""
    line = [(factor, z_scores(problem, factor)[-1]) for factor in (0.6, 0.8, 1.0, 1.2, 1.4)]
    y = "gradient along the output, in standard errors"
    return Chart("gradient", "factor of the exact output", y, {"": line}, {"0": [(0.6, 0.0), (1.4, 0.0)]})


class Recorder:
    """A network that records c_noise of its first call."""

    def __init__(self, exact: Any) -> None:
        self.exact, self.c_noise = exact, None

    def __call__(self, x: Tensor, c_noise: Tensor, **condition: Tensor) -> Tensor:
        self.c_noise = c_noise if self.c_noise is None else self.c_noise
        return self.exact(x, c_noise, **condition)

    def energy(self, x: Tensor, c_noise: Tensor) -> Tensor:
        """The energy of the exact network."""
        return self.exact.energy(x, c_noise)


def check_items(problem: Problem) -> Iterator[Check]:
    """The loss of an item, and the time at which it is evaluated, do not depend on its batch."""
    chosen = problem.worse if problem.zero else problem.optimum
    denoiser = with_network(chosen, recorder := Recorder(chosen.network))
    whole = losses_of(problem, denoiser, ITEMS, image_generators(0, range(ITEMS)))
    times, alone, own = recorder.c_noise, [], []
    for k in range(ITEMS):
        recorder.c_noise = None
        alone.append(losses_of(problem, denoiser, 1, image_generators(0, [k]), first=k))
        own.append(recorder.c_noise)
    scale = largest(whole)
    yield Check("an item alone - in a batch, of the largest loss", largest(torch.cat(alone) - whole) / scale, 0.0, 1e-6)
    yield Check("items that are not at their own time", int(((torch.cat(own) - times).abs() > 1e-6).sum()))
