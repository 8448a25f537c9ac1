"""Drawing from a model: samples of a numbered series, or their way from noise to data."""

from __future__ import annotations

import copy
import math
import operator
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.finite import NonFinite, bad_items, shown
from diffusion_lab.memory import memory_of_machine
from diffusion_lab.model.conditions import Conditioned, Guidance
from diffusion_lab.model.labels import Label
from diffusion_lab.noise import image_generators
from diffusion_lab.sampler import DDIM, Corrector, Sampler, State, Step

REMEDY = "try another checkpoint, weights=raw, more sampler.steps, sampler.clip=true or trainer.precision=32-true"
"""What may help where samples are not finite."""


def whole(name: str, value: Any, least: int) -> int:
    """A whole number that was given as one, or as a float without a fraction.

    Raises:
        ValueError: naming it, if it is none, or less than `least`.
    """
    number = int(value) if isinstance(value, float) and value.is_integer() else value
    try:
        number = operator.index(number)
    except TypeError:
        number = None
    if number is None or number < least:
        raise ValueError(f"{name}={value!r} must be a whole number of at least {least}")
    return number


def seed_of(seed: int | None) -> int:
    """A seed that was given, or one drawn at random, without a change of any generator."""
    return secrets.randbits(32) if seed is None else whole("seed", seed, 0)


class Drawing(Conditioned):
    """The part of a `Model` that draws, with its denoiser and, unless others are given, its sampler and guidance."""

    sampler_of: Callable[[str], Sampler] | None = None
    """The sampler of a name, for a model that comes out of a checkpoint."""

    @torch.no_grad()
    def sample(
        self,
        count: int,
        *,
        seed: int | None = 0,
        first: int = 0,
        batch_size: int = 500,
        sampler: Sampler | str | None = None,
        steps: int | None = None,
        label: Label = None,
        guidance: Guidance | None = None,
    ) -> Tensor:
        """Images first, ..., first + count - 1 of the series `seed`, in [0, 1], (count, C, H, W); points (count, 2).

        Image i is driven by noise that depends on (seed, i) alone, so it is the same whatever the batch size (bit-equal
        when the batches have equal shape).  Two samplers look at the whole batch: Langevin steps with norm="batch", by
        which an image depends on the others, and the adaptive ODE solver, by its tolerance.

        Args:
            seed: of the series; None draws one at random.
            sampler: another than the model's, or the name of one, such as "ddim", for a model from `load`.
            steps: the sampler's number of steps; None keeps it.
            label: for a model trained with labels, a class by number or name; several, which are cycled: image i is of
                `label[i % len(label)]`; "each" for all classes in turn; None: image i draws its class with the training
                frequencies, by (seed, i) alone.
            guidance: changes the estimates, such as `diffusion_lab.guidance.ClassifierFree(scale=2)`.

        Raises:
            ValueError: for a count, a seed, a sampler or a number of steps that is none, a label that the model cannot
                have, and a guidance that does not fit it.
        """
        count, first, batch_size = (
            whole("count", count, 0),
            whole("first", first, 0),
            whole("batch_size", batch_size, 1),
        )
        seed, sampler = seed_of(seed), self.chosen_sampler(sampler, steps)
        if (size := count * math.prod(self.shape) * 4) > (memory := memory_of_machine()):
            raise ValueError(
                f"count={count:,} samples take {size / 2**30:,.0f} GiB, and this machine has {memory / 2**30:,.0f} GiB "
                "of memory: draw parts of the series by first=..., or write files by sample.py"
            )
        asked = {"label": label, "guidance": guidance}
        batches = self.sample_batches(count, seed=seed, first=first, batch_size=batch_size, sampler=sampler, **asked)
        return torch.cat([torch.empty(0, *self.shape), *batches])

    def chosen_sampler(self, sampler: Sampler | str | None, steps: int | None = None) -> Sampler:
        """The sampler that is meant, found to suit this model's noise; the model's own is not changed by `steps`.

        Raises:
            ValueError: if it does not exist, has no steps to choose, or does not suit.
        """
        if sampler is None:
            sampler = self.sampler
        elif isinstance(sampler, str) and self.sampler_of is not None:
            sampler = self.sampler_of(sampler)
        if isinstance(sampler, (type, Step, Corrector)) or not callable(sampler):
            raise ValueError(
                f"sampler={sampler!r} is no sampler: give one such as diffusion_lab.sampler.Sampler(DDIM(), steps=50), "
                'or the name of one, such as "ddim", to a model from diffusion_lab.load'
            )
        if steps is not None:
            if "steps" not in vars(sampler):
                raise ValueError(f"steps={steps}: {type(sampler).__name__} has no number of steps to choose")
            sampler = copy.copy(sampler)
            sampler.steps = whole("steps", steps, 1)
        if hasattr(sampler, "check"):
            sampler.check(self.denoiser)
        return sampler

    def drawing(
        self, sampler: Sampler, size: int, denoiser: Denoiser | None = None
    ) -> Callable[[Sequence[torch.Generator]], Tensor]:
        """What draws `size` samples in the model's range from a generator for each; a sampler may prepare for it.

        The denoiser is the model's own, unless another is given, bound or guided.
        """
        shape, denoiser = (size, *self.shape), self.denoiser if denoiser is None else denoiser
        if hasattr(sampler, "prepare"):
            return sampler.prepare(denoiser, shape, self.device)
        return lambda generators: sampler(denoiser, shape, generators, self.device)

    def sample_batches(
        self,
        count: int,
        *,
        seed: int,
        first: int,
        batch_size: int,
        sampler: Sampler | None = None,
        label: Label = None,
        guidance: Guidance | None = None,
    ) -> Iterator[Tensor]:
        """What `sample` joins, a batch at a time, on the CPU.

        Raises:
            NonFinite: naming the images that hold a NaN or an infinity, which `decode` would make black or white.
        """
        sampler, end, prepared = sampler or self.sampler, first + count, None
        with self.evaluating():
            for start in range(first, end, batch_size):
                indices = range(start, min(start + batch_size, end))
                generators, labels = image_generators(seed, indices, self.device), self.labels_of(indices, seed, label)
                size, needed = len(indices), (len(indices), labels if labels is None else labels.tolist())
                if needed != prepared:
                    draw, prepared = self.drawing(sampler, size, self.asked(labels, guidance)), needed
                x = draw(generators)
                if not isinstance(x, Tensor) or x.shape != (size, *self.shape):
                    got = tuple(x.shape) if isinstance(x, Tensor) else f"a {type(x).__name__}"
                    raise ValueError(f"the sampler gives {got}, a tensor {(size, *self.shape)} is needed")
                if bad := bad_items(x):
                    self.refuse_samples([indices[i] for i in bad], seed, sampler, label, guidance)
                yield self.decode(x).cpu()

    def refuse_samples(
        self, images: Sequence[int], seed: int, sampler: Sampler, label: Label, guidance: Guidance | None
    ) -> None:
        """Raise NonFinite for images of the series `seed`, saying where on its way the first was lost."""
        when = ""
        try:
            for _ in self.trajectory(1, label=label, seed=seed, first=images[0], sampler=sampler, guidance=guidance):
                pass
        except NonFinite as error:
            when = f"; {error}"
        except ValueError:  # a sampler of the user's that shows no states
            pass
        raise NonFinite(f"samples {shown(images)} are not finite{when or '; ' + REMEDY}")

    @torch.no_grad()
    def trajectory(
        self,
        count: int,
        *,
        seed: int | None = 0,
        first: int = 0,
        sampler: Sampler | str | None = None,
        label: Label = None,
        guidance: Guidance | None = None,
    ) -> Iterator[State]:
        """States of the sampling of images first, ..., first + count - 1 of the series `seed`, in the model's range.

        Arguments are those of `sample`.

        Raises:
            NonFinite: at the first state that is not finite.
        """
        count, first = whole("count", count, 1), whole("first", first, 0)
        seed, sampler = seed_of(seed), self.chosen_sampler(sampler)
        if not hasattr(sampler, "trajectory"):
            raise ValueError(f"{getattr(sampler, '__name__', type(sampler).__name__)} has no trajectory(...) to follow")
        generators = image_generators(seed, range(first, first + count), self.device)
        with self.evaluating():
            denoiser = self.asked(self.labels_of(range(first, first + count), seed, label), guidance)
            x = sampler.prior(denoiser, (count, *self.shape), generators, self.device)
            for step, state in enumerate(sampler.trajectory(denoiser, x, generators), start=1):
                if bad := bad_items(state.x):
                    which = shown([first + i for i in bad])
                    raise NonFinite(f"sample {which} is lost at step {step} of the sampler, t={state.t:.4g}; {REMEDY}")
                yield state

    def invert(
        self, images: Tensor, *, sampler: Sampler | str | None = None, steps: int | None = None, label: Label = None
    ) -> Tensor:
        """The noise x_1 (B, ...) from which a deterministic sampler leads to images (B, ...) like those of `sample`.

        Args:
            sampler: DDIM over all levels, or 1000 times, unless another is given, such as "heun" or "ode".
            steps: as of `sample`.
            label: as of `sample`; image i is of label[i % len(label)].

        Raises:
            ValueError: for a sampler that draws noise, clips, or is not linear, and as `sample` does.
        """
        sampler = self.chosen_sampler(Sampler(DDIM()) if sampler is None else sampler, steps)
        with self.evaluating():
            denoiser = self.asked(self.labels_of(range(len(images)), 0, label))
            return sampler.invert(denoiser, self.encode(images.to(self.device)))

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Context in which dropout is off; the mode of before comes back."""
        was_training = self.training
        self.eval()
        try:
            with self.unsharded():
                yield
        finally:
            self.train(was_training)
