"""The probability-flow ODE: its velocity, the divergence of that, and its solution; for sampling and for likelihood."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.noise import Generators, draw
from diffusion_lab.process import NoiseProcess

Method = Literal["dopri5", "dopri8", "bosh3"]
"""Adaptive Runge-Kutta pairs: of order 5 (Dormand & Prince, the published choice), 8 for tolerances far below 1e-5, or
3 for loose ones."""

Probe = Literal["rademacher", "gaussian", "exact"]
"""How the divergence is taken: Hutchinson's estimate from random signs or normals, or the trace itself."""

Velocity = Callable[..., tuple[Tensor, ...]]
"""(t, *state) -> d state / dt, each of the shape of its part of the state; t is a float64 scalar on the CPU."""


def velocity(denoiser: Denoiser, x: Tensor, t: Tensor) -> Tensor:
    """dx/dt = f(t) x - g(t)^2 / 2 score(x, t), of the shape of x; Song et al. 2021, Eq. 13.

    `t` is a scalar or of shape (B,).
    """
    process = denoiser.process
    drift, spread = (
        c.to(x.device, x.dtype).reshape(-1, *(1,) * (x.dim() - 1)) for c in (process.f(t), process.g(t) ** 2 / 2)
    )
    return drift * x - spread * denoiser(x, t).score


def directions(like: Tensor, probe: Probe, probes: int, generator: Generators = None) -> Tensor:
    """Vectors v_1, ..., v_K with sum_k v_k^T J v_k = tr J, in expectation or exactly; shape (K, B, ...).

    K = probes random vectors over sqrt(K) (Hutchinson 1990), or for "exact" the D unit vectors.  With a generator for
    each image, the vectors of image i depend on generator i alone.
    """
    batch, shape = like.shape[0], like.shape[1:]
    if probe == "exact":
        unit = torch.eye(math.prod(shape), dtype=like.dtype, device=like.device)
        return unit.reshape(-1, 1, *shape).expand(-1, batch, *shape)
    z = draw((batch, probes, *shape), generator, like.dtype, like.device).transpose(0, 1)
    if probe == "rademacher":
        z = torch.where(z < 0, -1.0, 1.0).to(like)
    return z / math.sqrt(probes)


@torch.enable_grad()
def velocity_and_divergence(denoiser: Denoiser, x: Tensor, t: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """The velocity, and the sum over k of v_k^T (d velocity / dx) v_k: its divergence, (B,), for `directions` v.

    One call of the network, and one vector-Jacobian product for each vector.  The network's parameters collect no
    gradient.
    """
    x = x.detach().requires_grad_()
    speed = velocity(denoiser, x, t)
    divergence = x.new_zeros(len(x))
    for k, vector in enumerate(vectors, start=1):
        (product,) = torch.autograd.grad(speed, x, vector, retain_graph=k < len(vectors))
        divergence += (product * vector).flatten(1).sum(1)
    return speed.detach(), divergence


@torch.no_grad()
def integrate(
    function: Velocity,
    state: tuple[Tensor, ...],
    times: Sequence[float],
    rtol: float,
    atol: float,
    method: Method = "dopri5",
    max_steps: int = 10_000,
) -> list[tuple[Tensor, ...]]:
    """Solve d state / dt = function(t, *state) from times[0] on; the states at times[1:].

    Every tensor of the state is (B, ...).  A step is accepted when the error of every sample, root mean square over
    all that the state holds of it and relative to atol + rtol |state|, is at most 1: whatever else is in the batch, a
    sample is solved at least as well as alone.  Steps end at each of the times, and the function is never called beyond
    the last.

    Raises:
        RuntimeError: if the steps shrink to nothing or more than `max_steps` lie between two times.
    """
    import torchdiffeq  # which imports half of SciPy: not before the first step of a training

    low, high = min(times), max(times)
    device, dtype, at = state[0].device, torch.float64, times[0]
    if device.type == "mps":
        dtype = torch.float32

    def bounded(t: Tensor, parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        nonlocal at
        # The solver rounds t to the precision of the state, and tries a first step of unchecked length (nan after nan).
        if not t.isnan():
            at = min(max(t.item(), low), high)
        return function(torch.tensor(at, dtype=torch.float64), *parts)

    stops = torch.tensor(times, dtype=dtype, device=device)
    options = {"norm": _worst_sample, "step_t": stops[1:], "dtype": dtype, "max_num_steps": max_steps}
    try:
        solved = torchdiffeq.odeint(bounded, state, stops, rtol=rtol, atol=atol, method=method, options=options)
    except AssertionError as error:  # all that torchdiffeq raises when it cannot go on
        raise RuntimeError(
            f"the ODE solver ({method}, rtol={rtol:g}, atol={atol:g}) is stuck near t = {at:.6g}: "
            f"{str(error).partition(chr(10))[0][:80]}; loosen the tolerances, or look for nan in the network"
        ) from error
    return list(zip(*(part[1:] for part in solved), strict=True))


def _worst_sample(parts: Sequence[Tensor]) -> Tensor:
    """The largest root mean square over the samples, each over all its parts; a scalar."""
    return torch.cat([part.reshape(len(part), -1) for part in parts], dim=1).square().mean(1).sqrt().max()


def check_process(process: NoiseProcess) -> None:
    """Raises ValueError if the process has only one time, so that nothing flows."""
    if process.t_min >= 1:
        raise ValueError(f"the probability flow needs a process with more than one noise level, not {process.levels}")


def check_tolerances(rtol: float, atol: float) -> None:
    """Raises ValueError unless both are positive."""
    if not (rtol > 0 and atol > 0):
        raise ValueError(f"rtol and atol must be positive, got rtol={rtol} and atol={atol}")
