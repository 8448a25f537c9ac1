"""Sampling by the probability-flow ODE with adaptive steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.flow import check_process, solve
from diffusion_lab.noise import Generators
from diffusion_lab.ranges import Count, Positive, Time, checked
from diffusion_lab.sampler.ancestral import check_mean_gradient
from diffusion_lab.sampler.inversion import first_noised
from diffusion_lab.sampler.loop import Sampler, State


class ProbabilityFlow(Sampler):
    """Solves dx/dt = f(t) x - g(t)^2 / 2 score(x, t) from t_start down to t_end; Song et al. 2021, Section 4.3.

    Deterministic given x_1, and invertible.  The number of network evaluations follows from the tolerances.  The step
    sizes are common to a batch, so that an image depends on the others in it, but by no more than the tolerances.

    Args:
        rtol, atol: tolerances of the solver, met by each image.
        method: Runge-Kutta pair of the solver.
        t_start, t_end: None takes 1 and the process's t_min.
        denoise: end with x_0 as guessed at t_end (Tweedie's formula), one evaluation more.
        frames: times at which a `trajectory` stops; drawing samples goes straight through.
        precision: dtype of everything outside the network.

    Raises:
        ValueError: if a number is out of its range; on a call, if the process has a single noise level.
        RuntimeError: on a call, if the solver cannot meet the tolerances.
    """

    ANY_OF: ClassVar = ()
    REFUSES: ClassVar = {
        "model.SINGLE_LEVEL": "makes steps between noise levels, and this model has only one: use sampler=langevin"
    }
    steps = times = None
    spacing = "trailing"  # from t = 1
    start = "prior"

    @checked
    def __init__(
        self,
        rtol: Positive = 1e-5,
        atol: Positive = 1e-5,
        method: Literal["dopri5", "bs5", "dopri8", "bosh3"] = "dopri5",
        denoise: bool = True,
        frames: Count = 20,
        precision: Literal["float32", "float64"] = "float32",
        t_start: Time | None = None,
        t_end: Time | None = None,
    ) -> None:
        self.rtol, self.atol, self.method, self.denoise, self.frames = rtol, atol, method, denoise, frames
        self.t_start, self.t_end = t_start, t_end
        self.dtype = {"float32": torch.float32, "float64": torch.float64}[precision]

    def check(self, denoiser: Denoiser) -> Tensor:
        """The times of a trajectory for this denoiser's process; raises what a call would raise."""
        check_process(denoiser.process)
        if denoiser.control is not None:
            raise ValueError("sampler=ode cannot be controlled between its steps: use another sampler, such as heun")
        check_mean_gradient(denoiser, self)
        start, end = denoiser.process.span(self.t_start, self.t_end)
        return torch.linspace(start, end, self.frames + 1, dtype=torch.float64)

    def caution(self, denoiser: Denoiser) -> None:
        """None: the ODE starts at t_start."""

    def solve(self, denoiser: Denoiser, x: Tensor, times: Sequence[float]) -> list[Tensor]:
        """x at times[1:] of the solution through x at times[0], each of the shape of x; times may run either way."""
        return [x for (x,) in solve(denoiser, x.to(self.dtype), times, self.rtol, self.atol, self.method)]

    def adds_no_noise(self, denoiser: Denoiser) -> bool:
        return True

    def invert(self, denoiser: Denoiser, x0: Tensor) -> Tensor:
        """x_1 from which the flow leads to x_0 (B, ...)."""
        times = self.check(denoiser)
        (x,) = self.solve(denoiser, first_noised(denoiser, x0.to(self.dtype), times[-1]), times[[-1, 0]].tolist())
        return x

    @torch.no_grad()
    def trajectory(self, denoiser: Denoiser, x: Tensor, generator: Generators = None) -> Iterator[State]:
        """`frames` states from x = x_1 down to t_end, even in t, and the denoised one."""
        times = self.check(denoiser)
        for t, stop in zip(times[1:], self.solve(denoiser, x, times.tolist()), strict=True):
            x0 = denoiser(stop, t).x0
            yield State(t.item(), stop, x0)
        if self.denoise:
            yield State(0.0, x0, x0)

    def prepare(
        self, denoiser: Denoiser, shape: Sequence[int], device: torch.device | str = "cpu"
    ) -> Callable[[Generators], Tensor]:
        """A function from one generator, or one per image, to samples of `shape` (B, ...) in the model's range."""
        times = self.check(denoiser)
        ends, t = (times[0].item(), times[-1].item()), times[-1]

        @torch.no_grad()
        def draw_samples(generator: Generators = None) -> Tensor:
            (x,) = self.solve(denoiser, self.prior(denoiser, shape, generator, device), ends)
            return denoiser(x, t).x0 if self.denoise else x

        return draw_samples
