"""Benchmarks of samplers without the cost of the network, which returns a constant."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_lab.bench import sampling_peers as peers
from diffusion_lab.bench.benchmark import Benchmark, Setting, Work
from diffusion_lab.denoiser import Denoiser
from diffusion_lab.network import UNet
from diffusion_lab.noise import image_generators
from diffusion_lab.parameterization import Parameterization
from diffusion_lab.process import VE, DiscreteProcess, Geometric, Linear
from diffusion_lab.sampler import DDIM, EDM, Ancestral, Langevin, ReverseDiffusion, Sampler

SNR = 0.16


class ConstantNetwork(nn.Module):
    """A network that always returns `answer`, for all programs."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = answer

    def __call__(self, x: Tensor, *c_noise: Any) -> Tensor:
        return self.answer


def ours(denoiser: Denoiser, sampler: Sampler, network: nn.Module, shape: tuple[int, ...], setting: Setting) -> Work:
    """Our sampler, prepared once for all batches."""
    draw = sampler.prepare(Denoiser(network, denoiser.process, denoiser.parameterization), shape, setting.device)
    generator = torch.Generator(setting.device)
    return lambda: draw(generator.manual_seed(0))


def scalars(rows: Tensor, device: torch.device) -> list[tuple[Tensor, ...]]:
    """Return each row of coefficients (S, K) as float32 scalars."""
    return [row.unbind() for row in rows.to(device, torch.float32)]


class HandWritten:
    """Hand-written loops with precomputed coefficients and in-place operations: the least that a sampler costs."""

    def __init__(self, network: ConstantNetwork, shape: tuple[int, ...], steps: int, setting: Setting) -> None:
        self.network, self.steps, self.device = network, steps, setting.device
        self.generator = torch.Generator(setting.device)
        self.x, self.other, self.z = (torch.empty(shape, device=setting.device) for _ in range(3))
        self.c_noise = torch.rand(2 * steps, shape[0], device=setting.device).unbind()

    def start(self, std: float = 1.0) -> Tensor:
        """Return new noise."""
        return self.x.normal_(generator=self.generator.manual_seed(0)).mul_(std)

    def levels(self) -> tuple[Tensor, Tensor]:
        """Return alpha and sigma of `steps` of DDPM's 1000 noise levels, in decreasing order of noise."""
        abar = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
        abar = abar[torch.arange(self.steps) * 1000 // self.steps].flip(0)
        return abar.sqrt(), (1 - abar).sqrt()

    def ddpm(self) -> Work:
        """Ho et al. 2020, Algorithm 2, with clipped x_0."""
        alpha, sigma = self.levels()
        scale = alpha[:-1] / alpha[1:]
        v = sigma[:-1] ** 2 - (scale * sigma[1:]) ** 2
        a, b, c = scale * (sigma[1:] / sigma[:-1]) ** 2, alpha[1:] * v / sigma[:-1] ** 2, v.sqrt()
        rows = scalars(torch.stack([1 / alpha[:-1], -sigma[:-1] / alpha[:-1], a, b, c], 1), self.device)
        ((p_last, q_last),) = scalars(torch.stack([1 / alpha[-1:], -sigma[-1:] / alpha[-1:]], 1), self.device)

        @torch.no_grad()
        def run() -> Tensor:
            x, x0, z, network, generator = self.start(), self.other, self.z, self.network, self.generator
            for c_noise, (p, q, a, b, c) in zip(self.c_noise, rows, strict=False):
                torch.mul(x, p, out=x0).addcmul_(network(x, c_noise), q).clamp_(-1, 1)
                x.mul_(a).addcmul_(x0, b).addcmul_(z.normal_(generator=generator), c)
            return (x * p_last).addcmul_(network(x, self.c_noise[-1]), q_last).clamp_(-1, 1)

        return run

    def ddim(self) -> Work:
        """Song, Meng & Ermon 2021, Eq. 12, for an eps network; the last step ends at clean data."""
        alpha, sigma = (torch.cat([k, k.new_tensor([end])]) for k, end in zip(self.levels(), (1.0, 0.0), strict=True))
        scale = alpha[1:] / alpha[:-1]
        rows = scalars(torch.stack([scale, sigma[1:] - scale * sigma[:-1]], 1), self.device)

        @torch.no_grad()
        def run() -> Tensor:
            x, network = self.start(), self.network
            for c_noise, (a, b) in zip(self.c_noise, rows, strict=False):
                output = network(x, c_noise)
                x.mul_(a).addcmul_(output, b)
            return x.clone()

        return run

    def heun(self) -> Work:
        """Karras et al. 2022, Algorithm 2, for a network that predicts x_0."""
        ends = 80.0 ** (1 / 7), (0.002 * 40_000**1e-5) ** (1 / 7)  # down to our t = 1e-5
        noise = torch.lerp(*torch.tensor(ends).double(), torch.linspace(0, 1, self.steps, dtype=torch.float64)) ** 7
        n, n_s = noise[:-1], noise[1:]
        # x_1 = x + h d and x_s = x + h (d + d_1) / 2, h = n_s - n: so x_s = (x + x_1 + h d_1) / 2.
        by_first = (1 + (n_s - n) / n_s) / 2
        rows = torch.stack([n_s / n, 1 - n_s / n, torch.full_like(n, 0.5), by_first, (n - n_s) / n_s / 2], 1)
        rows = scalars(rows, self.device)

        @torch.no_grad()
        def run() -> Tensor:
            x, first, network = self.start(80.0), self.other, self.network
            for c_noise, late, (a, b, e, f, g) in zip(self.c_noise, self.c_noise[1:], rows, strict=False):
                torch.mul(x, a, out=first).addcmul_(network(x, c_noise), b)
                x.mul_(e).addcmul_(first, f).addcmul_(network(first, late), g)
            return network(x, self.c_noise[-1]).clone()

        return run

    def corrected(self) -> Work:
        """Song et al. 2021, Algorithm 4, corrector first, for a score network, with a final denoising step."""
        t = torch.linspace(1, 0, self.steps, dtype=torch.float64) * (1 - 1e-5) + 1e-5
        variance = (0.01 * 5000**t) ** 2
        v = variance[:-1] - variance[1:]
        rows = [*scalars(torch.stack([v, v.sqrt()], 1), self.device), None]
        ((last,),), snr = scalars(variance[-1:, None], self.device), 2**0.5 * SNR
        (root,) = scalars(torch.tensor([[snr]]), self.device)[0]
        inside, norm = tuple(range(1, self.x.dim())), torch.linalg.vector_norm

        @torch.no_grad()
        def run() -> Tensor:
            x, z, network, generator = self.start(50.0), self.z, self.network, self.generator
            for c_noise, row in zip(self.c_noise, rows, strict=False):
                score = network(x, c_noise)
                z.normal_(generator=generator)
                r = norm(z, dim=inside).mean().div_(norm(score, dim=inside).mean()).mul_(root)
                x.addcmul_(score, r.square()).addcmul_(z, r, value=2**0.5)
                if row is not None:
                    v, std = row
                    x.addcmul_(network(x, c_noise), v).addcmul_(z.normal_(generator=generator), std)
            return x.addcmul(network(x, c_noise), last)

        return run


DDPM = Denoiser(None, DiscreteProcess(Linear(), 1000), Parameterization())
VE_X0 = Denoiser(None, VE(Geometric(0.002, 80.0)), Parameterization("x0", "log_sigma"))
VE_SCORE = Denoiser(None, VE(Geometric(0.01, 50.0)), Parameterization("score", "log_sigma"))

METHODS: dict[str, tuple[str, Denoiser, Callable[[int], Sampler], Mapping[str, peers.Peer]]] = {
    "ddpm": ("DDPM", DDPM, lambda steps: Sampler(Ancestral(), steps=steps, clip=True), peers.DDPM),
    "ddim": ("DDIM", DDPM, lambda steps: Sampler(DDIM(), steps=steps), peers.DDIM),
    "heun": ("Heun", VE_X0, lambda steps: Sampler(EDM(), steps=steps, spacing="karras"), peers.HEUN),
    "corrected": (
        "predictor and corrector",
        VE_SCORE,
        lambda steps: Sampler(ReverseDiffusion(), Langevin(SNR, norm="batch"), steps),
        peers.CORRECTED,
    ),
}
"""Method of `HandWritten` -> title, our denoiser and sampler, other programs."""

STEPS = {"ddpm": (1000, 20), "ddim": (100, 100), "heun": (18, 18), "corrected": (200, 20)}
"""Steps for a tiny image, and for 64 images of CIFAR-10's size."""


def without_fresh_noise(shape: tuple[int, ...], steps: int, setting: Setting) -> Benchmark:
    """A Langevin and a DDIM step, as in azula's predictor-corrector: noise is drawn once a step, not twice."""
    network = ConstantNetwork(0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(setting.device))
    sampler = Sampler(DDIM(), Langevin(SNR), steps)
    implementations = {
        "ours, with norms": partial(ours, VE_X0, sampler, network, shape, setting),
        "azula, without": partial(peers.azula("PCSampler", "VESchedule"), network, shape, steps, setting),
    }
    title = f"DDIM and corrector, {steps} steps, {'x'.join(map(str, shape))}, float32, outside the network"
    return Benchmark(title, implementations, "us a step", steps)


class SineNetwork(ConstantNetwork):
    """A network that depends on x, to compare samplers."""

    def __call__(self, x: Tensor, *c_noise: Any) -> Tensor:
        return self.answer + x.sin()


def difference(name: str, network: ConstantNetwork, steps: int, setting: Setting) -> str:
    """Report the difference between our images and those of the hand-written loop for the same noise."""
    varying, shape, (_, denoiser, sampler, _) = (
        SineNetwork(network.answer),
        tuple(network.answer.shape),
        METHODS[name],
    )
    got = ours(denoiser, sampler(steps), varying, shape, setting)()
    want = getattr(HandWritten(varying, shape, steps, setting), name)()()
    error = ((got - want).abs().max() / want.abs().max()).item()
    return f"ours and the hand-written loop differ by {error:.1e} of the largest value after {steps} steps"


def overhead(name: str, shape: tuple[int, ...], steps: int, setting: Setting) -> Benchmark:
    """The benchmark of one method, per step; a Heun step has two network evaluations."""
    title, denoiser, sampler, others = METHODS[name]
    generator = torch.Generator().manual_seed(1)
    network = ConstantNetwork(0.1 * torch.randn(shape, generator=generator).to(setting.device))
    implementations = {
        "ours": partial(ours, denoiser, sampler(steps), network, shape, setting),
        "hand-written": lambda: getattr(HandWritten(network, shape, steps, setting), name)(),
    }
    implementations |= {peer: partial(make, network, shape, steps, setting) for peer, make in others.items()}
    size = "x".join(map(str, shape))
    what = f"{title}, {steps} steps, {size}, float32, outside the network"
    note = lambda last: difference(name, network, 5, setting)  # noqa: E731  (a network of sines is chaotic)
    return Benchmark(what, implementations, "us a step", steps, note=note)


def end_to_end(setting: Setting) -> Benchmark:
    """DDIM with a U-Net, compared with only its network evaluations."""
    batch, steps, channels = (2, 3, 32) if setting.small else (16, 10, 64)
    shape = (batch, 3, 32, 32)
    network = UNet(3, 32, channels=channels, dropout=0.0).to(setting.device, memory_format=torch.channels_last).eval()
    denoiser, sampler = Denoiser(network, DDPM.process, DDPM.parameterization), Sampler(DDIM(), steps=steps)

    def sample() -> Tensor:
        return sampler(denoiser, shape, image_generators(0, range(batch), setting.device), setting.device)

    @torch.no_grad()
    def calls() -> Tensor:
        x, c_noise = torch.zeros(shape, device=setting.device), torch.full((batch,), 500.0, device=setting.device)
        for _ in range(steps):
            x = network(x, c_noise)
        return x

    what = f"DDIM, {steps} steps, by a U-Net of {channels} channels, {batch} images of 32x32x3"
    return Benchmark(what, {"ours": lambda: sample, "its network evaluations alone": lambda: calls}, "images/s", batch)


def benchmarks(setting: Setting) -> Iterator[Benchmark]:
    """Overhead per step for a tiny image and for a batch of CIFAR-10's size, and sampling with a network."""
    shapes = ((1, 3, 4, 4), (2, 3, 8, 8) if setting.small else (64, 3, 32, 32))
    for name, counts in STEPS.items():
        for shape, steps in zip(shapes, counts, strict=True):
            yield overhead(name, shape, 5 if setting.small else steps, setting)
    for shape, steps in zip(shapes, STEPS["corrected"], strict=True):
        yield without_fresh_noise(shape, 5 if setting.small else steps, setting)
    yield end_to_end(setting)
