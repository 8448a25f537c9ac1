"""Drawing from a model: samples of a numbered series, or their way from noise to data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from diffusion_lab.finite import NonFinite, bad_items, shown
from diffusion_lab.noise import image_generators
from diffusion_lab.sampler import Sampler, State

REMEDY = "try another checkpoint, weights=raw, more sampler.steps, sampler.clip=true or trainer.precision=32-true"
"""What may help where samples are not finite."""


class Drawing:
    """The part of a `Model` that draws, with its denoiser and, unless another is given, its sampler."""

    @torch.no_grad()
    def sample(
        self,
        count: int,
        *,
        seed: int = 0,
        first: int = 0,
        batch_size: int = 500,
        sampler: Sampler | None = None,
    ) -> Tensor:
        """Images first, ..., first + count - 1 of the series `seed`, in [0, 1], (count, C, H, W); points (count, 2).

        Image i is driven by noise that depends on (seed, i) alone, so it is the same whatever the batch size (bit-equal
        when the batches have equal shape).  Two samplers look at the whole batch: Langevin steps with norm="batch", by
        which an image depends on the others, and the adaptive ODE solver, by its tolerance.
        """
        batches = self.sample_batches(count, seed=seed, first=first, batch_size=batch_size, sampler=sampler)
        return torch.cat([images for images in batches])

    def sample_batches(
        self, count: int, *, seed: int, first: int, batch_size: int, sampler: Sampler | None = None
    ) -> Iterator[Tensor]:
        """What `sample` joins, a batch at a time, on the CPU.

        Raises:
            NonFinite: naming the images that hold a NaN or an infinity, which `decode` would make black or white.
        """
        sampler, end, draw = sampler or self.sampler, first + count, {}
        with self.evaluating():
            for start in range(first, end, batch_size):
                indices = range(start, min(start + batch_size, end))
                generators = image_generators(seed, indices, self.device)
                size = len(indices)
                if size not in draw:
                    draw[size] = sampler.prepare(self.denoiser, (size, *self.shape), self.device)
                x = draw[size](generators)
                if bad := bad_items(x):
                    self.refuse_samples([indices[i] for i in bad], seed, sampler)
                yield self.decode(x).cpu()

    def refuse_samples(self, images: Sequence[int], seed: int, sampler: Sampler) -> None:
        """Raise NonFinite for images of the series `seed`, saying where on its way the first was lost."""
        when = ""
        try:
            for _ in self.trajectory(1, seed=seed, first=images[0], sampler=sampler):
                pass
        except NonFinite as error:
            when = f"; {error}"
        raise NonFinite(f"samples {shown(images)} are not finite{when or '; ' + REMEDY}")

    @torch.no_grad()
    def trajectory(
        self, count: int, *, seed: int = 0, first: int = 0, sampler: Sampler | None = None
    ) -> Iterator[State]:
        """States of the sampling of images first, ..., first + count - 1 of the series `seed`, in the model's range.

        Raises:
            NonFinite: at the first state that is not finite.
        """
        sampler = sampler or self.sampler
        generators = image_generators(seed, range(first, first + count), self.device)
        with self.evaluating():
            x = sampler.prior(self.denoiser, (count, *self.shape), generators, self.device)
            for step, state in enumerate(sampler.trajectory(self.denoiser, x, generators), start=1):
                if bad := bad_items(state.x):
                    which = shown([first + i for i in bad])
                    raise NonFinite(f"sample {which} is lost at step {step} of the sampler, t={state.t:.4g}; {REMEDY}")
                yield state

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Context in which dropout is off; the mode of before comes back."""
        was_training = self.training
        self.eval()
        try:
            with self.whole():
                yield
        finally:
            self.train(was_training)
