"""The probability-flow ODE, the divergence of its velocity, and its solver; for sampling and likelihood."""

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
"""How the divergence is computed: Hutchinson's estimator with Rademacher or Gaussian vectors, or the exact trace."""


def probe_vectors(like: Tensor, probe: Probe, probes: int, generator: Generators = None) -> Tensor:
    """Vectors v_1, ..., v_K with sum_k v_k^T J v_k = tr J, in expectation or exactly; shape (K, B, ...).

    K = probes random vectors divided by sqrt(K) (Hutchinson 1990), or the D unit vectors for "exact".  With one
    generator per image, the vectors of image i depend on generator i alone.
    """
    batch, shape = like.shape[0], like.shape[1:]
    if probe == "exact":
        unit = torch.eye(math.prod(shape), dtype=like.dtype, device=like.device)
        return unit.reshape(-1, 1, *shape).expand(-1, batch, *shape)
    # Always drawn in float64, so that the random numbers do not depend on the precision of x.
    z = draw((batch, probes, *shape), generator, torch.float64).transpose(0, 1)
    if probe == "rademacher":
        z = torch.where(z < 0, -1.0, 1.0)
    return z.to(like) / math.sqrt(probes)


class FlowTime:
    """The time u in which the probability flow is solved; for data of unit variance x / r is constant in it.

        u = asinh(sigma / alpha),   r = sqrt(alpha^2 + sigma^2),   du/dt = g^2 / (2 sigma r)

    u is about sigma/alpha near the data and log(2 sigma/alpha) near the noise.  The velocity in u is smooth even where
    the velocity in t is infinite at t = 0 (VP), x grows a thousandfold (VE), or discrete noise levels cause kinks.
    """

    def __init__(self, process: NoiseProcess, low: float, high: float) -> None:
        self.process, self.low, self.high = process, low, high
        self.angles = torch.linspace(0, math.pi / 2, 1001, dtype=torch.float64)
        self.values = self.of(self.at(self.angles))

    def of(self, t: Tensor) -> Tensor:
        """u at t, of the shape of t."""
        alpha, sigma = self.process.alpha_sigma(t)
        return (sigma / alpha).asinh()

    def at(self, angle: Tensor) -> Tensor:
        """t = low + (high - low) sin^2(angle) for angles in [0, pi/2]: dense at both ends, where u changes fastest."""
        return self.low + (self.high - self.low) * angle.sin().square()

    def time(self, u: Tensor) -> Tensor:
        """t in [low, high] at u (S,), to float64 precision: Newton's method, started from a table of `at`."""
        right = torch.searchsorted(self.values, u).clamp(1, len(self.values) - 1)
        part = (u - self.values[right - 1]) / (self.values[right] - self.values[right - 1])
        t = self.at(torch.lerp(self.angles[right - 1], self.angles[right], part))
        for _ in range(4):
            alpha, sigma = self.process.alpha_sigma(t)
            rate = self.process.g(t) ** 2 / (2 * sigma * (alpha**2 + sigma**2).sqrt())
            t = (t + (u - (sigma / alpha).asinh()) / rate).clamp(self.low, self.high)
        return t


class Velocity:
    """Velocity of the probability flow (Song et al. 2021, Eq. 13) of z = x / r in the time u of `FlowTime`.

        dx/dt = f x - g^2/2 score   becomes   dz/du = eps(x, t) - sigma x / r^2

    The second term is the optimal estimate of eps for data of unit variance: r and the drift f are integrated exactly.

    Args:
        low, high: range of t in which the velocity is evaluated.
        like: (B, ...), of the device and dtype of z.
        vectors: `probe_vectors`; with them also d log |det dz| / du = sum_k v_k^T (d velocity / dz) v_k, (B,), in bits
            per dimension, the unit of the tolerance.
    """

    def __init__(
        self, denoiser: Denoiser, low: float, high: float, like: Tensor, vectors: Tensor | None = None
    ) -> None:
        self.denoiser, self.like, self.vectors = denoiser, like, vectors
        self.nats = like[0].numel() * math.log(2)  # of a bit per dimension
        self.flow_time = FlowTime(denoiser.process, low, high)

    def scale(self, t: Tensor) -> Tensor:
        """r at t, of the shape of t."""
        alpha, sigma = self.denoiser.process.alpha_sigma(t)
        return (alpha**2 + sigma**2).sqrt()

    def __call__(self, us: list[float]) -> list[Slope]:
        """An `Equation`: the slope of (z,), or of (z, log |det dz|), at each u of `us`."""
        t = self.flow_time.time(torch.tensor(us, dtype=torch.float64))
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
            needs_grad = integrals and self.vectors is not None
            with torch.set_grad_enabled(needs_grad):
                z = z.detach().requires_grad_(needs_grad)
                output = self.denoiser.network_output(z * scale, preconditioning).to(z.dtype)
                velocity = torch.add(by_z * z, output, alpha=by_output)
            if self.vectors is None:
                return (velocity,)
            return velocity.detach(), divergence(velocity, z, self.vectors).div_(self.nats) if integrals else None

        return at


def divergence(velocity: Tensor, z: Tensor, vectors: Tensor) -> Tensor:
    """sum_k v_k^T (d velocity / dz) v_k for `probe_vectors` v, (B,): one vector-Jacobian product per vector.

    The network's parameters receive no gradient.
    """
    total = z.new_zeros(len(z))
    for k, vector in enumerate(vectors, start=1):
        (product,) = torch.autograd.grad(velocity, z, vector, retain_graph=k < len(vectors))
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
    """Solve the probability-flow ODE from x (B, ...) at times[0], in either direction; return (x,) at times[1:].

    With `vectors` (of `probe_vectors`) also log |det dx(t) / dx(times[0])|, (B,), in nats.

    The tolerances bound the estimated error of each step and image, of

        z = x / sqrt(alpha^2 + sigma^2)   root mean square over its entries of error / (atol + rtol |z|) <= 1
        the log-determinant               error <= max(rtol, atol), in bits per dimension

    z has unit variance for data of unit variance and is x at t = 0.

    Raises:
        RuntimeError: if the solver cannot meet the tolerances.
    """
    stops = torch.tensor(times, dtype=torch.float64)
    flow = Velocity(denoiser, min(times), max(times), x, vectors)
    scales = flow.scale(stops).tolist()
    start = (x / scales[0],) if vectors is None else (x / scales[0], x.new_zeros(len(x)))
    try:
        solved = integrate(flow, start, flow.flow_time.of(stops).tolist(), rtol, atol, method)
    except SolverError as error:
        t = flow.flow_time.time(torch.tensor([error.at], dtype=torch.float64)).item()
        raise RuntimeError(
            f"the ODE solver ({method}, rtol={rtol:g}, atol={atol:g}) failed near t = {t:.6g}: {error.reason}; "
            f"loosen the tolerances, or check the network's output for NaN"
        ) from error
    log_dets = [math.log(scale / scales[0]) * x[0].numel() for scale in scales[1:]]  # of x = scale z
    return [
        (scale * z, *(change * flow.nats + log_det for change in changes))
        for (z, *changes), scale, log_det in zip(solved, scales[1:], log_dets, strict=True)
    ]


def check_process(process: NoiseProcess) -> None:
    """Raise ValueError if the process has a single noise level, and therefore no probability flow."""
    if process.t_min >= 1:
        raise ValueError(f"the probability flow needs a process with more than one noise level, not {process.levels}")
