"""Sampling from a model: images of a seeded series, their trajectories from noise to data, and inversion."""

from __future__ import annotations

import copy
import math
import operator
import secrets
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from diffusion_lab.control import Control
from diffusion_lab.denoiser import Denoiser
from diffusion_lab.finite import NonFinite, bad_items, shown
from diffusion_lab.memory import memory_of_machine
from diffusion_lab.model.conditions import Conditioned, Guidance
from diffusion_lab.model.labels import Label
from diffusion_lab.noise import draw, image_generators
from diffusion_lab.sampler import DDIM, Corrector, Sampler, State, Step

REMEDY = "try another checkpoint, weights=raw, more sampler.steps, sampler.clip=true or trainer.precision=32-true"
"""Advice for samples that are not finite."""


def as_integer(name: str, value: Any, least: int) -> int:
    """Return an integer argument, which may be a float with an integer value.

    Raises:
        ValueError: with the argument's name, if it is not an integer or less than `least`.
    """
    number = int(value) if isinstance(value, float) and value.is_integer() else value
    try:
        number = operator.index(number)
    except TypeError:
        number = None
    if number is None or number < least:
        raise ValueError(f"{name}={value!r} must be an integer >= {least}")
    return number


def resolve_seed(seed: int | None) -> int:
    """Return the given seed, or a random one if it is None; no global generator is changed."""
    return secrets.randbits(32) if seed is None else as_integer("seed", seed, 0)


class Sampling(Conditioned):
    """The part of a `Model` that samples, by default with its own sampler and guidance."""

    sampler_of: Callable[[str], Sampler] | None = None
    """name -> sampler, for a model loaded from a checkpoint."""

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
        control: Control | None = None,
    ) -> Tensor:
        """Images first, ..., first + count - 1 of the series `seed`, in [0, 1], (count, C, H, W); points (count, 2).

        The noise of image i depends on (seed, i) alone, so the image is the same for any batch size (bit-equal if the
        batches have equal shape), except for Langevin steps with norm="batch" and the ODE solver's tolerance.

        Args:
            seed: seed of the series; None: a random one.
            sampler, steps: replace the model's sampler (a name such as "ddim" for a model from `load`) and its steps.
            label: of a conditional model, or one guided by a classifier: a class by number or name; a list of classes,
                cycled, so that image i has `label[i % len(label)]`; "each" for all in turn; None: that of the guidance,
                or drawn with the training frequencies by (seed, i).
            guidance: changes the estimates, such as `diffusion_lab.guidance.ClassifierFree(scale=2)`.
            control: makes samples agree with a guide, such as `diffusion_lab.control.SDEdit(guide, t0=0.5)`.

        Raises ValueError for an invalid argument, or if sampler, guidance or control do not suit the model.
        """
        count, first, batch_size = (
            as_integer(*one) for one in (("count", count, 0), ("first", first, 0), ("batch_size", batch_size, 1))
        )
        seed, sampler = resolve_seed(seed), self.resolve_sampler(sampler, steps)
        if (size := count * math.prod(self.shape) * 4) > (memory := memory_of_machine()):
            raise ValueError(
                f"count={count:,} samples take {size / 2**30:,.0f} GiB, and this machine has {memory / 2**30:,.0f} GiB "
                "of memory: sample parts of the series with first=..., or write files with sample.py"
            )
        series = {"seed": seed, "first": first, "batch_size": batch_size, "label": label}
        batches = self.sample_batches(count, **series, sampler=sampler, guidance=guidance, control=control)
        return torch.cat([torch.empty(0, *self.shape), *batches])

    def resolve_sampler(self, sampler: Sampler | str | None, steps: int | None = None) -> Sampler:
        """Return the requested sampler after checking that it suits the noise process; `steps` changes only a copy.

        Raises:
            ValueError: if the sampler is unknown, has no number of steps, or does not suit the model.
        """
        if sampler is None:
            sampler = self.sampler
        elif isinstance(sampler, str) and self.sampler_of is not None:
            sampler = self.sampler_of(sampler)
        if isinstance(sampler, (type, Step, Corrector)) or not callable(sampler):
            raise ValueError(
                f"sampler={sampler!r} is not a sampler: use for example "
                "diffusion_lab.sampler.Sampler(DDIM(), steps=50), "
                'or for a model from diffusion_lab.load its name, such as "ddim"'
            )
        if steps is not None:
            if "steps" not in vars(sampler):
                raise ValueError(f"steps={steps}: {type(sampler).__name__} has no number of steps")
            sampler = copy.copy(sampler)
            sampler.steps = as_integer("steps", steps, 1)
        if hasattr(sampler, "check"):
            sampler.check(self.denoiser)
        return sampler

    def starting_noise(self, images: Sequence[int], seed: int = 0, sampler: Sampler | None = None) -> Tensor:
        """The noise z ~ N(0, I), (B, ...), from which `sample` starts images of the series `seed`; no network runs.

        Raises:
            ValueError: for a sampler that adds more noise, or a control, so that an image is not a function of z.
        """
        if self.control is not None:
            raise ValueError("noise=true: controlled samples depend on their guides, too: leave out control")
        sampler = sampler or self.sampler
        if not (hasattr(sampler, "adds_no_noise") and sampler.adds_no_noise(self.denoiser)):
            raise ValueError("noise=true: samples of this sampler depend on more noise: use sampler=ode, heun or ddim")
        generators = image_generators(seed, images, self.device)
        return draw((len(images), *self.shape), generators, sampler.dtype, self.device)

    def prepare_sampling(
        self, sampler: Sampler, size: int, denoiser: Denoiser | None = None
    ) -> Callable[[Sequence[torch.Generator]], Tensor]:
        """Return a function from a list of generators to `size` samples in the model's range; a sampler may precompute.

        `denoiser` replaces the model's own denoiser, for example by a bound or guided one.
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
        control: Control | None = None,
    ) -> Iterator[Tensor]:
        """Yield the samples of `sample` batch by batch, on the CPU; raises NonFinite with the indices of bad ones."""
        sampler, end, prepared = sampler or self.sampler, first + count, None
        with self.evaluating():
            for start in range(first, end, batch_size):
                indices = range(start, min(start + batch_size, end))
                generators = image_generators(seed, indices, self.device)
                labels = self.labels_of(indices, seed, label, guidance)
                size, needed = len(indices), (len(indices), labels if labels is None else labels.tolist())
                if (control or self.control) is not None:
                    needed = (*needed, start)  # each batch has its own guides
                if needed != prepared:
                    denoiser = self.sampling_denoiser(labels, guidance, control, indices)
                    draw_batch, prepared = self.prepare_sampling(sampler, size, denoiser), needed
                x = draw_batch(generators)
                if not isinstance(x, Tensor) or x.shape != (size, *self.shape):
                    got = tuple(x.shape) if isinstance(x, Tensor) else f"a {type(x).__name__}"
                    raise ValueError(f"the sampler returns {got}, expected a tensor {(size, *self.shape)}")
                if bad := bad_items(x):
                    chosen = {"sampler": sampler, "label": label, "guidance": guidance, "control": control}
                    self.refuse_samples([indices[i] for i in bad], seed, **chosen)
                yield self.decode(x).cpu()

    def refuse_samples(self, images: Sequence[int], seed: int, **chosen: Any) -> None:
        """Raise NonFinite for images of the series `seed`, with the sampler step at which the first became NaN."""
        when = ""
        try:
            for _ in self.trajectory(1, seed=seed, first=images[0], **chosen):
                pass
        except NonFinite as error:
            when = f"; {error}"
        except ValueError:  # a user's sampler without trajectory
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
        control: Control | None = None,
    ) -> Iterator[State]:
        """Yield the states of sampling images first, ..., first + count - 1 of the series `seed`, in the model's range.

        The arguments are those of `sample`.

        Raises:
            NonFinite: at the first state that is not finite.
        """
        count, first = as_integer("count", count, 1), as_integer("first", first, 0)
        seed, sampler = resolve_seed(seed), self.resolve_sampler(sampler)
        if not hasattr(sampler, "trajectory"):
            raise ValueError(f"{getattr(sampler, '__name__', type(sampler).__name__)} has no method trajectory(...)")
        images = range(first, first + count)
        generators = image_generators(seed, images, self.device)
        with self.evaluating():
            denoiser = self.sampling_denoiser(self.labels_of(images, seed, label, guidance), guidance, control, images)
            x = sampler.prior(denoiser, (count, *self.shape), generators, self.device)
            for step, state in enumerate(sampler.trajectory(denoiser, x, generators), start=1):
                if bad := bad_items(state.x):
                    which = shown([first + i for i in bad])
                    raise NonFinite(
                        f"sample {which} is not finite from step {step} of the sampler, t={state.t:.4g}; {REMEDY}"
                    )
                yield state

    def invert(
        self, images: Tensor, *, sampler: Sampler | str | None = None, steps: int | None = None, label: Label = None
    ) -> Tensor:
        """The noise x_1 (B, ...) from which a deterministic sampler leads to images (B, ...) like those of `sample`.

        Args:
            sampler: a deterministic sampler such as "heun" or "ode"; None: DDIM with all levels, or 1000 steps.
            steps: as in `sample`.
            label: as in `sample`; image i has label[i % len(label)].

        Raises:
            ValueError: for a sampler that adds noise, clips or is not linear, for images of another shape or range, and
                as `sample` does.
        """
        self.check_images(images)
        sampler = self.resolve_sampler(Sampler(DDIM()) if sampler is None else sampler, steps)
        with self.evaluating():
            labels = self.labels_of(range(len(images)), 0, label)
            denoiser = self.guided(self.conditional_denoiser(labels), self.guidance, labels)
            return sampler.invert(denoiser, self.encode(images.to(self.device)))

    def check_images(self, images: Tensor) -> None:
        """Raise ValueError unless images are finite real numbers of the model's shape, with grey levels in [0, 1]."""
        if not isinstance(images, Tensor) or tuple(images.shape[1:]) != self.shape:
            got = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
            raise ValueError(f"images={got} must be a tensor {('B', *self.shape)}".replace("'B'", "B"))
        if not images.is_floating_point() or not images.isfinite().all():
            raise ValueError("images must be finite real numbers, as sample returns them")
        if self.grey_levels is not None and images.numel() and not 0 <= images.min() <= images.max() <= 1:
            raise ValueError(f"images from {images.min():.4g} to {images.max():.4g} must lie in [0, 1]: rescale them")
