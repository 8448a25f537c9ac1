"""Maximum likelihood of an energy, with samples of the model by Langevin dynamics; Du & Mordatch 2019."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from diffusion_lab import ranks
from diffusion_lab.denoiser import Denoiser
from diffusion_lab.noise import Generators, stream
from diffusion_lab.ranges import Count, NonNegative, Positive, UnitInterval, checked


def energy(denoiser: Denoiser, x: Tensor, t: Tensor) -> Tensor:
    """-log p_t(x) up to a constant, (B,), in nats, for x (B, ...) and t (B,); its gradient is minus the score.

    The network's output is F = -grad E at c x + d, and the score is a F + b x: -log p_t = a E / c - b |x|^2 / 2.

    Raises:
        ValueError: if the network has no method `energy`.
    """
    if not hasattr(denoiser.network, "energy"):
        name = type(denoiser.network).__name__
        raise ValueError(f"the network {name} has no energy: use network=energy for points, energy_small for images")
    row, (alpha, sigma) = denoiser.parameterization, denoiser.process.marginal(t, x)
    one, zero = torch.ones_like(alpha), torch.zeros_like(alpha)
    a, b = (-row.eps(output, at, alpha, sigma) / sigma for output, at in ((one, zero), (zero, one)))
    c = row.network_input(one, alpha, sigma) - row.network_input(zero, alpha, sigma)
    inside = row.network_input(x, alpha, sigma).to(denoiser.network_dtype or x.dtype)
    denoiser.nfe += 1
    value = denoiser.network.energy(inside, denoiser.c_noise(t, x), **denoiser.condition_of(x)).to(x.dtype)
    return (a / c).flatten() * value - (b * x.square()).flatten(1).sum(1) / 2


class ContrastiveLoss:
    """E(x+) - E(x-) + l2 (E(x+)^2 + E(x-)^2) per image; Du & Mordatch 2019 (arXiv:1903.08689), Algorithm 1.

    E = -log p up to a constant, x+ is perturbed data and x- a sample of the model, so that without `l2` the gradient is
    that of the negative log-likelihood of the perturbed data, which score matching fits too.  x- is the end of `steps`
    Langevin steps (Eq. 1)

        x <- x - step_size / 2 grad E(x) + N(0, noise^2 I)

    from a sample of earlier steps, or, with probability `reinit`, from uniform noise.  Too few steps make x- samples of
    another distribution, and the gradient biased.  With noise = sqrt(step_size) the dynamics sample exp(-E), up to the
    finite step; less noise samples, and therefore trains, exp(-E / T) at T = noise^2 / step_size.  The authors' program
    has steps=60, step_size=20, noise=0.005, clip=0.01, l2=1 and E of spectrally normalised networks, in which T is
    about 1e-6 and exp(-E) is no density of the data.

    Args:
        steps: K, Langevin steps of a training step; each costs an evaluation of the network and its gradient.
        step_size: lambda, in squared units of the data; None: sigma^2 / 5.
        noise: standard deviation of the noise of a step; None: sqrt(step_size).
        clip: bound of each component of grad E in a step; None: no bound.
        l2: alpha, the weight of the squared energies.
        replay_size: samples of earlier steps that each rank keeps; the oldest are dropped.
        reinit: probability of a start from noise.

    Attributes:
        replay: these samples (N, ...), or None before the first step.  Checkpoints hold those of all ranks.

    Raises:
        ValueError: for numbers out of range; on a call, for a process with several noise levels, a class-conditional
            denoiser, or a network without an energy.
    """

    REFUSES: ClassVar = {
        "model.levels": "has samples of one noise level: use model=score",
        "model.process": "has samples of one noise level: use model=score",
        "model.network.energy()=false": "needs a network with an energy: use network=energy for points, "
        "network=energy_small for images",
        "data.conditional": "has samples without labels: set data.conditional=false",
        "data.augment": "has samples without labels: set data.augment=0",
    }

    @checked
    def __init__(
        self,
        steps: Count = 20,
        step_size: Positive | None = None,
        noise: NonNegative | None = None,
        clip: Positive | None = None,
        l2: NonNegative = 0.0,
        replay_size: Count = 10_000,
        reinit: UnitInterval = 0.05,
    ) -> None:
        self.steps, self.step_size, self.noise, self.clip, self.l2 = steps, step_size, noise, clip, l2
        self.replay_size, self.reinit = replay_size, reinit
        self.replay: Tensor | None = None

    def __call__(self, denoiser: Denoiser, x0: Tensor, generator: Generators = None) -> Tensor:
        """Loss of each image, shape (B,), for x0 of shape (B, ...) and one generator, or one per image.

        With a generator, as in validation, all x- start from noise, and are not kept.
        """
        refused = {"model.levels": denoiser.process.levels != 1, "data.conditional": denoiser.classes is not None}
        for key in (key for key, applies in refused.items() if applies):
            raise ValueError(f"{type(self).__name__} {self.REFUSES[key]}")
        t = torch.ones(len(x0), device=x0.device)
        noise = stream(x0.shape, generator, x0.dtype, x0.device)
        positive = denoiser.process.perturb(x0, t, noise())
        start = self.from_noise(denoiser, noise())
        negative = self.langevin(denoiser, self.replayed(start) if generator is None else start, t, noise)
        if generator is None:
            kept = negative if self.replay is None else torch.cat([self.replay.to(negative), negative])
            self.replay = kept[-self.replay_size :]
        both = energy(denoiser, torch.cat([positive, negative]), torch.cat([t, t]))
        positive, negative = both.chunk(2)
        return positive - negative + self.l2 * (positive.square() + negative.square())

    def training_state(self) -> dict[str, Tensor]:
        """The samples of all ranks, for a checkpoint; all ranks must call it together: rank r of W has r, r + W, ..."""
        if self.replay is None:
            return {}
        return {"replay": torch.stack(ranks.gather(self.replay.cpu()), 1).flatten(0, 1)}

    def load_training_state(self, state: dict[str, Tensor]) -> None:
        """Take this rank's samples of a checkpoint."""
        self.replay = ranks.shard(state["replay"]) if "replay" in state else None

    def from_noise(self, denoiser: Denoiser, z: Tensor) -> Tensor:
        """Uniform numbers in the image range (points: in that of the prior), of the shape of z ~ N(0, I)."""
        reach = denoiser.process.prior_std
        low, high = denoiser.parameterization.range_of(z.shape) or (-reach, reach)
        return low + (high - low) * torch.special.ndtr(z)

    def replayed(self, start: Tensor) -> Tensor:
        """Random samples of earlier steps, some of them replaced by `start`."""
        if self.replay is None:
            return start
        chosen = torch.randint(len(self.replay), (len(start),), device=start.device)
        anew = torch.rand(len(start), device=start.device) < self.reinit
        return torch.where(anew.reshape(-1, *(1,) * (start.dim() - 1)), start, self.replay.to(start)[chosen])

    @torch.no_grad()
    def langevin(self, denoiser: Denoiser, x: Tensor, t: Tensor, noise: Callable[[], Tensor]) -> Tensor:
        """x after `steps` steps of Langevin dynamics."""
        step_size = self.step_size or denoiser.process.sigma(t[0]).item() ** 2 / 5
        std = math.sqrt(step_size) if self.noise is None else self.noise
        for _ in range(self.steps):
            gradient = -denoiser(x, t).score
            if self.clip:
                gradient = gradient.clamp(-self.clip, self.clip)
            x = x - step_size / 2 * gradient + std * noise()
        return x
