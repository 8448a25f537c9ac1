"""The probability-flow ODE, with the divergence of its velocity, and its solution; for sampling and for likelihood."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from diffusion_lab.denoiser import Denoiser, Preconditioning
from diffusion_lab.noise import Generators, draw
from diffusion_lab.process import NoiseProcess
from diffusion_lab.runge_kutta import Method, Slope, SolverError, integrate

Probe = Literal["rademacher", "gaussian", "exact"]
"""How the divergence is taken: Hutchinson's estimate from random signs or normals, or the trace itself."""


def directions(like: Tensor, probe: Probe, probes: int, generator: Generators = None) -> Tensor:
    """Vectors v_1, ..., v_K with sum_k v_k^T J v_k = tr J, in expectation or exactly; shape (K, B, ...).

    K = probes random vectors over sqrt(K) (Hutchinson 1990), or for "exact" the D unit vectors.  With a generator for
    each image, the vectors of image i depend on generator i alone.
    """
    batch, shape = like.shape[0], like.shape[1:]
    if probe == "exact":
        unit = torch.eye(math.prod(shape), dtype=like.dtype, device=like.device)
        return unit.reshape(-1, 1, *shape).expand(-1, batch, *shape)
    # In float64 whatever x is in: the precision of a computation does not change what is drawn.
    z = draw((batch, probes, *shape), generator, torch.float64).transpose(0, 1)
    if probe == "rademacher":
        z = torch.where(z < 0, -1.0, 1.0)
    return z.to(like) / math.sqrt(probes)


class Clock:
    """The clock u and the scale r on which the probability flow of data of unit variance stands still.

        u = asinh(sigma / alpha),   r = sqrt(alpha^2 + sigma^2),   du/dt = g^2 / (2 sigma r)

    At the end of the data u is sigma/alpha, at that of the noise the log of twice it: even where the velocity in t is
    infinite at t = 0 (VP), x grows a thousandfold (VE), or the rate of a ladder has kinks, that in u is smooth.
    """

    def __init__(self, process: NoiseProcess, low: float, high: float) -> None:
        self.process, self.low, self.high = process, low, high
        self.angles = torch.linspace(0, math.pi / 2, 1001, dtype=torch.float64)
        self.values = self.of(self.at(self.angles))

    def of(self, t: Tensor) -> Tensor:
        """u at t, of its shape."""
        alpha, sigma = self.process.alpha_sigma(t)
        return (sigma / alpha).asinh()

    def at(self, angle: Tensor) -> Tensor:
        """t, which goes from low to high in a quarter of a turn, most slowly at the ends, where u goes fastest."""
        return self.low + (self.high - self.low) * angle.sin().square()

    def time(self, u: Tensor) -> Tensor:
        """t in [low, high] at u (S,), to the last digits: Newton's iteration from a table that is linear in `at`."""
        right = torch.searchsorted(self.values, u).clamp(1, len(self.values) - 1)
        part = (u - self.values[right - 1]) / (self.values[right] - self.values[right - 1])
        t = self.at(torch.lerp(self.angles[right - 1], self.angles[right], part))
        for _ in range(4):
            alpha, sigma = self.process.alpha_sigma(t)
            rate = self.process.g(t) ** 2 / (2 * sigma * (alpha**2 + sigma**2).sqrt())
            t = (t + (u - (sigma / alpha).asinh()) / rate).clamp(self.low, self.high)
        return t


class Velocity:
    """Velocity of the probability flow (Song et al. 2021, Eq. 13) of z = x / r, on the `Clock`.

        dx/dt = f x - g^2/2 score   becomes   dz/du = eps(x, t) - sigma x / r^2

    which is the guess of the noise less that of data of unit variance: r and the drift f have been integrated exactly.

    Args:
        low, high: the times between which it is asked for.
        like: (B, ...), of the device and dtype of z.
        vectors: `directions`, for the rate of log |det dz| too: sum_k v_k^T (d velocity / dz) v_k, (B,).
    """

    def __init__(
        self, denoiser: Denoiser, low: float, high: float, like: Tensor, vectors: Tensor | None = None
    ) -> None:
        self.denoiser, self.like, self.vectors = denoiser, like, vectors
        self.clock = Clock(denoiser.process, low, high)

    def scale(self, t: Tensor) -> Tensor:
        """r at t, of its shape."""
        alpha, sigma = self.denoiser.process.alpha_sigma(t)
        return (alpha**2 + sigma**2).sqrt()

    def __call__(self, clocks: list[float]) -> list[Slope]:
        """An `Equation`: the slope of (z,), or of (z, log |det dz|), at each value of the clock."""
        t = self.clock.time(torch.tensor(clocks, dtype=torch.float64))
        (alpha, sigma), (c_skip, c_out) = self.denoiser.process.alpha_sigma(t), self.denoiser.skip_and_out(t)
        scale = (alpha**2 + sigma**2).sqrt()
        # eps = (x - alpha x_0) / sigma is linear in x and in the network's output.
        by_x, by_output = (1 - alpha * c_skip) / sigma, -alpha * c_out / sigma
        numbers = torch.stack([scale, by_x * scale - sigma / scale, by_output]).T.tolist()
        preconditionings = self.denoiser.preconditionings(t, self.like)
        return [
            self.slope(preconditioning, *each) for preconditioning, each in zip(preconditionings, numbers, strict=True)
        ]

    def slope(self, preconditioning: Preconditioning, scale: float, by_z: float, by_output: float) -> Slope:
        """dz/du = by_z z + by_output output at x = scale z."""

        def at(z: Tensor, integrals: bool) -> tuple[Tensor | None, ...]:
            differentiated = integrals and self.vectors is not None
            with torch.set_grad_enabled(differentiated):
                z = z.detach().requires_grad_(differentiated)
                output = self.denoiser.network_output(z * scale, preconditioning).to(z.dtype)
                speed = torch.add(by_z * z, output, alpha=by_output)
            if self.vectors is None:
                return (speed,)
            return speed.detach(), divergence(speed, z, self.vectors) if integrals else None

        return at


def divergence(speed: Tensor, z: Tensor, vectors: Tensor) -> Tensor:
    """The sum over k of v_k^T (d speed / dz) v_k for `directions` v, (B,): a vector-Jacobian product for each.

    The network's parameters collect no gradient.
    """
    total = z.new_zeros(len(z))
    for k, vector in enumerate(vectors, start=1):
        (product,) = torch.autograd.grad(speed, z, vector, retain_graph=k < len(vectors))
        total += (product * vector).flatten(1).sum(1)
    return total


def solve(
    denoiser: Denoiser,
    x: Tensor,
    times: Sequence[float],
    rtol: float,
    atol: float,
    method: Method = "dopri5",
    vectors: Tensor | None = None,
) -> list[tuple[Tensor, ...]]:
    """(x,) at times[1:] on the probability flow through x (B, ...) at times[0], which may run either way.

    With `directions` also log |det dx(t) / dx(times[0])|, (B,).  The tolerances are those of x on the scale where data
    of unit variance have it, x / sqrt(alpha^2 + sigma^2): of x itself at the end of the data.

    Raises:
        RuntimeError: if the solver cannot meet the tolerances.
    """
    stops = torch.tensor(times, dtype=torch.float64)
    flow = Velocity(denoiser, min(times), max(times), x, vectors)
    scales = flow.scale(stops).tolist()
    start = (x / scales[0],) if vectors is None else (x / scales[0], x.new_zeros(len(x)))
    try:
        solved = integrate(flow, start, flow.clock.of(stops).tolist(), rtol, atol, method)
    except SolverError as stuck:
        t = flow.clock.time(torch.tensor([stuck.at], dtype=torch.float64)).item()
        raise RuntimeError(
            f"the ODE solver ({method}, rtol={rtol:g}, atol={atol:g}) is stuck near t = {t:.6g}: {stuck.why}; "
            f"loosen the tolerances, or look for nan in the network"
        ) from stuck
    grown = [math.log(scale / scales[0]) * x[0].numel() for scale in scales[1:]]
    return [
        (scale * z, *(change + log for change in changes))
        for (z, *changes), scale, log in zip(solved, scales[1:], grown, strict=True)
    ]


def check_process(process: NoiseProcess) -> None:
    """Raises ValueError if the process has only one time, so that nothing flows."""
    if process.t_min >= 1:
        raise ValueError(f"the probability flow needs a process with more than one noise level, not {process.levels}")


def check_tolerances(rtol: float, atol: float) -> None:
    """Raises ValueError unless both are positive."""
    if not (rtol > 0 and atol > 0):
        raise ValueError(f"rtol and atol must be positive, got rtol={rtol} and atol={atol}")
