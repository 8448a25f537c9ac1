"""Sampling by the probability-flow ODE with adaptive steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.flow import check_process, check_tolerances, solve
from diffusion_lab.noise import Generators
from diffusion_lab.sampler.loop import Sampler, State


class ProbabilityFlow(Sampler):
    """Solves dx/dt = f(t) x - g(t)^2 / 2 score(x, t) from t = 1 down to t_min; Song et al. 2021, Section 4.3.

    Deterministic given x_1, and invertible.  The number of network evaluations follows from the tolerances.

    Args:
        rtol, atol: tolerances of the solver, met by each image.
        method: Runge-Kutta pair of the solver.
        denoise: end with x_0 as guessed at t_min (Tweedie's formula), one evaluation more.
        frames: times at which a `trajectory` stops; drawing samples goes straight through.
        precision: dtype of everything outside the network.

    Raises:
        ValueError: if a number is out of its range; on a call, if the process has a single noise level.
        RuntimeError: on a call, if the solver cannot meet the tolerances.
    """

    steps = None
    start = "prior"

    def __init__(
        self,
        rtol: float = 1e-5,
        atol: float = 1e-5,
        method: Literal["dopri5", "dopri8", "bosh3"] = "dopri5",
        denoise: bool = True,
        frames: int = 20,
        precision: Literal["float32", "float64"] = "float32",
    ) -> None:
        check_tolerances(rtol, atol)
        if frames < 1:
            raise ValueError(f"frames must be at least 1, got {frames}")
        self.rtol, self.atol, self.method, self.denoise, self.frames = rtol, atol, method, denoise, frames
        self.dtype = {"float32": torch.float32, "float64": torch.float64}[precision]

    def check(self, denoiser: Denoiser) -> Tensor:
        """The times of a trajectory of this denoiser's process, raising what a call would."""
        check_process(denoiser.process)
        return torch.linspace(1, denoiser.process.t_min, self.frames + 1, dtype=torch.float64)

    def solve(self, denoiser: Denoiser, x: Tensor, times: Sequence[float]) -> list[Tensor]:
        """x at times[1:] of the solution through x at times[0], each of the shape of x; times may run either way."""
        return [x for (x,) in solve(denoiser, x.to(self.dtype), times, self.rtol, self.atol, self.method)]

    @torch.no_grad()
    def trajectory(self, denoiser: Denoiser, x: Tensor, generator: Generators = None) -> Iterator[State]:
        """`frames` states from x = x_1 down to t_min, even in t, and the denoised one."""
        times = self.check(denoiser)
        for t, stop in zip(times[1:], self.solve(denoiser, x, times.tolist()), strict=True):
            x0 = denoiser(stop, t).x0
            yield State(t.item(), stop, x0)
        if self.denoise:
            yield State(0.0, x0, x0)

    def prepare(
        self, denoiser: Denoiser, shape: Sequence[int], device: torch.device | str = "cpu"
    ) -> Callable[[Generators], Tensor]:
        """Gives what draws samples of `shape` (B, ...) in the model's range from a generator or one for each image."""
        t = self.check(denoiser)[-1]

        @torch.no_grad()
        def draw_samples(generator: Generators = None) -> Tensor:
            (x,) = self.solve(denoiser, self.prior(denoiser, shape, generator, device), (1.0, t.item()))
            return denoiser(x, t).x0 if self.denoise else x

        return draw_samples
