"""Benchmark of exact likelihoods, with the same network, images, probe vectors, tolerance and interval for all."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_lab.bench.benchmark import Benchmark, Setting, Work
from diffusion_lab.bench.official import module
from diffusion_lab.denoiser import Denoiser
from diffusion_lab.likelihood import FlowLikelihood, bits_per_dim
from diffusion_lab.network import UNet
from diffusion_lab.parameterization import Parameterization
from diffusion_lab.process import VP, Linear

START = 1e-5  # time of the data in the official program
CHECKED = 2  # images whose values are compared with the reference
TOLERANCES = 1e-2, 1e-3, 1e-4  # looser than a benchmark's, at which evaluations and errors are reported too


class Counted(nn.Module):
    """A network that counts its `forwards` and `backwards` passes."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.forwards, self.backwards = network, 0, 0

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        self.forwards += 1
        output = self.network(x, c_noise)
        if output.requires_grad and torch.is_grad_enabled():
            output.register_hook(self.count_backward)
        return output

    def count_backward(self, gradient: Tensor) -> None:
        """Count a backward pass."""
        self.backwards += 1


class ThreeLayers(nn.Module):
    """Three convolutions and a skip connection; the time conditions a bias and the scale of the skip."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(2, 32), nn.SiLU(), nn.Linear(32, channels + 1))
        self.conv_in = nn.Conv2d(3, channels, 3, padding=1)
        self.middle = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv_out = nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        t = c_noise[:, None].to(self.conv_out.weight) / 999
        shift, by_pass = self.time(torch.cat([t, t.sqrt()], dim=1))[..., None, None].split(
            [len(self.conv_in.bias), 1], 1
        )
        h = F.silu(self.conv_in(x) + shift)
        return by_pass * x + self.conv_out(F.silu(self.middle(h)))


def images(count: int, size: int, seed: int) -> Tensor:
    """Return smooth, dequantized random images in [-1, 1]: enlarged 4x4 noise plus finer detail."""
    generator = torch.Generator().manual_seed(seed)
    coarse, fine = (torch.randn(count, 3, side, side, generator=generator) for side in (4, size))
    x = F.interpolate(coarse, size=size, mode="bicubic") * 0.6 + 0.05 * fine
    return x.clamp(-1, 1) * 127.5 / 128 + (torch.rand(x.shape, generator=generator) - 0.5) / 128


def fitted(network: nn.Module, steps: int, size: int) -> nn.Module:
    """Return the network after some training steps: the flow of an untrained network is not realistic."""
    process, optimizer = VP(Linear()), torch.optim.Adam(network.parameters(), 2e-3)
    for step in range(steps):
        x0, generator = images(16, size, 1 + step), torch.Generator().manual_seed(step)
        t = process.sample_times(16, torch.device("cpu"), generator)
        eps = torch.randn(x0.shape, generator=generator)
        loss = (network(process.perturb(x0, t, eps), 999 * t) - eps).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


@dataclass(frozen=True)
class Problem:
    """Inputs of all implementations: network, images x (B, 3, H, W), signs of the same shape, rtol = atol."""

    network: nn.Module
    x: Tensor
    signs: Tensor
    tolerance: float

    def counted(self) -> Counted:
        return Counted(self.network)


Value = tuple[Tensor, Counted]
"""Bits per dimension (B,) of 8-bit images, and the network with its counts."""


def in_bits(log_density: Tensor, x: Tensor) -> Tensor:
    """Bits per dimension of the grey levels in [-1, 1]."""
    return bits_per_dim(log_density, x[0].numel()) + 7


def ours(problem: Problem, precision: str = "float32") -> Work:
    likelihood = FlowLikelihood(problem.tolerance, problem.tolerance, t_min=START, precision=precision)

    def run() -> Value:
        network = problem.counted()
        denoiser = Denoiser(network, VP(Linear()), Parameterization(c_noise="time_999"))
        x = problem.x.to(likelihood.dtype)
        return in_bits(-sum(likelihood.density(denoiser, x, problem.signs.to(x)[None])), x), network

    return run


def official(problem: Problem, setting: Setting) -> Work:
    program = module(setting, "score_sde_pytorch", "likelihood")
    sde = program.mutils.sde_lib.VPSDE(0.1, 20.0, 1000)
    value = program.get_likelihood_fn(
        sde, lambda x: (x + 1) / 2, rtol=problem.tolerance, atol=problem.tolerance, eps=START
    )

    def run() -> Value:
        network = problem.counted()
        with torch.random.fork_rng():
            torch.manual_seed(0)  # it draws its signs with this seed, as `signs` does
            bits, _, _ = value(network, problem.x)
        return bits, network

    return run


def signs(x: Tensor) -> Tensor:
    """The probe vectors that the official program draws after seed 0."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.randint_like(x, low=0, high=2).float() * 2 - 1


def by_torchdiffeq(problem: Problem, together: bool, method: str = "dopri5") -> Work:
    """The flow in t by torchdiffeq, with one call for velocity and divergence (`together`) or two."""
    import torchdiffeq

    def velocity(network: nn.Module, t: Tensor, x: Tensor) -> Tensor:
        beta = 0.1 + 19.9 * t
        sigma = (-torch.expm1(-0.1 * t - 9.95 * t**2)).sqrt()
        return -beta / 2 * (x - network(x, (999 * t).expand(len(x))) / sigma)

    def run() -> Value:
        network, x = problem.counted(), problem.x
        v = problem.signs.to(x)

        def slope(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            # Its first step may exceed the interval, and it rounds the end points.
            t = t.to(x.dtype).clamp(START, 1)
            speed = None if together else velocity(network, t, state[0])
            with torch.enable_grad():
                x_t = state[0].detach().requires_grad_()
                again = velocity(network, t, x_t)
            (product,) = torch.autograd.grad(again, x_t, v)
            return again.detach() if together else speed, (product * v).flatten(1).sum(1)

        with torch.no_grad():
            ends = torch.tensor([START, 1.0], dtype=torch.float64, device=x.device)
            start = (x, x.new_zeros(len(x)))
            z, change = torchdiffeq.odeint(
                slope, start, ends, rtol=problem.tolerance, atol=problem.tolerance, method=method
            )
        normal = torch.distributions.Normal(0.0, 1.0)
        return in_bits(normal.log_prob(z[-1]).flatten(1).sum(1) + change[-1], x), network

    return run


def bare(problem: Problem) -> Work:
    """Only the network evaluations of `ours`."""
    _, counts = ours(problem)()
    c_noise = torch.full((len(problem.x),), 500.0, device=problem.x.device)

    def run() -> Value:
        network = problem.counted()
        for k in range(counts.forwards):
            with torch.set_grad_enabled(k < counts.backwards):
                x = problem.x.clone().requires_grad_(k < counts.backwards)
                output = network(x, c_noise)
            if output.requires_grad:
                torch.autograd.grad(output, x, problem.signs)
        return None, network

    return run


def accuracy(problem: Problem, tolerance: float, results: Mapping[str, Value]) -> str:
    """Report the evaluations of each, and its error relative to a float64 solution with a much smaller tolerance.

    Then those of ours and of torchdiffeq at looser tolerances.
    """
    network, x, v = (
        copy.deepcopy(problem.network).double(),
        problem.x[:CHECKED].double(),
        problem.signs[:CHECKED].double(),
    )
    exact, _ = by_torchdiffeq(Problem(network, x, v, tolerance), True, "dopri8" if tolerance < 1e-7 else "dopri5")()
    values = dict(results)
    for loose in (replace(problem, tolerance=each) for each in TOLERANCES if each > problem.tolerance):
        values[f"tolerance {loose.tolerance:g}, ours"] = ours(loose)()
        values[f"tolerance {loose.tolerance:g}, torchdiffeq"] = by_torchdiffeq(loose, True)()
    lines = [f"evaluations (forward + backward), and largest error against tolerance {tolerance:g}, in bits/dim:"]
    for name, (bits, network) in values.items():
        if bits is not None:
            error = (bits[:CHECKED].double() - exact).abs().max().item()
            lines.append(f"  {name}: {network.forwards} + {network.backwards}, {error:.0e}")
    return "\n  ".join(lines)


def benchmark(setting: Setting, title: str, problem: Problem, reference: float, rounds: int | None = None) -> Benchmark:
    """The benchmark of one network."""
    implementations: dict[str, Callable[[], Work]] = {
        "ours": partial(ours, problem),
        "ours, state in float64": partial(ours, problem, "float64"),
        "score_sde_pytorch (SciPy)": partial(official, problem, setting),
        "torchdiffeq, drift and divergence apart": partial(by_torchdiffeq, problem, False),
        "torchdiffeq, one vjp for both": partial(by_torchdiffeq, problem, True),
        "hand-written: the network's part of ours": partial(bare, problem),
    }
    count, _, size, _ = problem.x.shape
    title = f"exact likelihood, {title}, {count} images 3x{size}x{size}, VP, tolerance {problem.tolerance:g}"
    return Benchmark(title, implementations, note=partial(accuracy, problem, reference), rounds=rounds)


def benchmarks(setting: Setting) -> Iterator[Benchmark]:
    """A tiny network, which shows the overhead, at the published tolerance; and a U-Net at a loose one.

    The time embedding of 999 t makes a U-Net rough in time unless it is trained for long: at tolerance 1e-5 all
    implementations would need hundreds of evaluations.
    """

    def problem(network: nn.Module, steps: int, count: int, size: int, tolerance: float) -> Problem:
        x = images(count, size, 0).to(setting.device)
        return Problem(fitted(network, steps, size).to(setting.device), x, signs(x), tolerance)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        small = ThreeLayers()
        size = 8 if setting.small else 16
        unet = UNet(3, size, channels=16, multipliers=(1, 2), blocks=1, attention=(size // 2,), groups=8, dropout=0.0)
    if setting.small:
        yield benchmark(setting, "three convolutions", problem(small, 30, 2, 8, 1e-4), 1e-7)
        yield benchmark(setting, "U-Net", problem(unet, 1, 2, 8, 1e-2), 1e-3)
    else:
        yield benchmark(setting, "three convolutions", problem(small, 300, 16, 32, 1e-5), 1e-9)
        yield benchmark(setting, "U-Net", problem(unet, 100, 4, 16, 1e-3), 1e-5, 3)
