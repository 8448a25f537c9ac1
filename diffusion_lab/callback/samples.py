"""Pictures of what the model draws, while it trains and at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from diffusion_lab import ranks
from diffusion_lab.callback.ema import averaged
from diffusion_lab.callback.hooks import OptionalHooks
from diffusion_lab.callback.media import best_effort, log_pictures
from diffusion_lab.data import DataModule
from diffusion_lab.model import Label, Model
from diffusion_lab.model.labels import EACH
from diffusion_lab.plot import picture


class Samples(OptionalHooks):
    """Draws `count` samples every so many steps: `<run_dir>/samples/step_XXXXXXXX.png`, the same noise every time.

    When training ends it also draws the denoising trajectory of a few (`trajectory.png`, `trajectory.gif`) and the
    final grid (`samples.png`), all from the averaged weights.  Every rank draws its share, so none waits for another.
    What cannot be drawn, as a sampler may diverge, or not written is said once and left out.

    Args:
        run_dir: the run's directory.
        every_n_steps: optimiser steps between two pictures; None draws only at the end.
        count: images in a grid, or points in a plot of the plane.
        frames: pictures of a trajectory.
        seed: of the samples.
    """

    def __init__(
        self, run_dir: str, every_n_steps: int | None = 1000, count: int = 64, frames: int = 12, seed: int = 0
    ) -> None:
        self.run_dir, self.every_n_steps = Path(run_dir), every_n_steps
        self.count, self.frames, self.seed = count, frames, seed
        self._drawn = 0

    def on_train_start(self, trainer: pl.Trainer, model: Model) -> None:
        step, every = trainer.global_step, self.every_n_steps
        path = self.run_dir / "samples" / f"step_{step:08d}.png"
        if every and step and step % every == 0 and step < trainer.max_steps and not ranks.from_first(path.exists()):
            self._drawn = step
            self.draw(trainer, model, path)  # the run was stopped before

    def on_train_batch_end(self, trainer: pl.Trainer, model: Model, outputs: Any, batch: Any, batch_idx: int) -> None:
        step, every = trainer.global_step, self.every_n_steps
        # `_drawn`: several batches of an accumulation end at the same step.
        if every and step % every == 0 and self._drawn != step < trainer.max_steps:
            self._drawn = step
            self.draw(trainer, model, self.run_dir / "samples" / f"step_{step:08d}.png")

    def is_concluded(self, step: int) -> bool:
        """Whether the final picture is there."""
        return (self.run_dir / "samples.png").exists()

    def on_train_end(self, trainer: pl.Trainer, model: Model) -> None:
        self.draw(trainer, model, self.run_dir / "samples.png", film=True)

    def draw(self, trainer: pl.Trainer, model: Model, path: Path, film: bool = False) -> None:
        """Draw, each rank its share; write the picture, and the film of it on request; show both in the logs."""
        with best_effort(path), averaged(trainer, model):
            own, label = ranks.shard_range(self.count), None
            if model.labels is not None and model.label is None and model.labels.classes <= self.count:
                label = EACH
            with ranks.synchronized():
                samples = [model.sample(len(own), label=label, seed=self.seed, first=own.start)] if own else []
            samples = torch.cat([drawn for rank in ranks.gather(samples) for drawn in rank])
            film = film and hasattr(model.sampler, "trajectory")  # a user's own may have none
            frames = filmed(model, self.frames, self.seed, label) if film else None
            if not trainer.is_global_zero:
                return
            path.parent.mkdir(parents=True, exist_ok=True)
            labels = model.labels_of(range(len(samples)), self.seed, label) if label else None
            draw_samples(model, samples, path, trainer.datamodule, labels)
            if film and labels is not None:
                say_shown(model, len(samples))
            pictures = {"samples": path}
            if frames is not None:
                strip = path.with_name("trajectory.png")
                draw_trajectory(frames, strip)
                pictures |= {"trajectory": strip, "film": strip.with_suffix(".gif")}
            log_pictures(trainer.loggers, pictures, trainer.global_step)


def draw_samples(
    model: Model,
    samples: torch.Tensor,
    path: Path,
    data: DataModule | None = None,
    labels: torch.Tensor | None = None,
) -> None:
    """A grid of images; points over the true density, with the learned score at a small noise level as arrows.

    The data of points give the density, a histogram where that is not known, and the window; without them there is only
    the score.  With `labels` (N,) each class of images has rows of its own, `class_rows` many images in each.
    """
    if model.is_image:
        columns = None
        if labels is not None and len(samples) >= model.labels.classes:
            columns, rows = class_rows(len(samples), model.labels.classes)
            samples = torch.cat([samples[labels == k][: columns * rows] for k in range(model.labels.classes)])
        shown = samples if model.grey_levels else picture.in_grey(samples)
        picture.save_png(picture.grid(shown, columns), path)
        return

    def learned_score(x: torch.Tensor) -> torch.Tensor:
        t = quiet_time(model)
        with torch.no_grad(), model.evaluating():
            return model.denoiser(x.to(model.device, torch.float32), t).score.cpu()

    if model.labels is not None and model.labels.null is None:  # there is no score without a label
        learned_score = None
    truth = {} if data is None else {"reference": data.images("held_out", 5000)}
    if hasattr(data, "target"):
        truth["density"] = data.target.log_density
    picture.plane_plot(samples, path, score=learned_score, **truth)


def say_shown(model: Model, count: int) -> None:
    """Say how many of `count` samples a grid with as many images of each class shows, if not all."""
    columns, rows = class_rows(count, model.labels.classes)
    shown = columns * rows * model.labels.classes
    if model.is_image and 0 < shown < count:
        print(f"samples.png shows {shown} of {count} samples: {columns * rows} of each class", flush=True)


def class_rows(count: int, classes: int) -> tuple[int, int]:
    """(images in a row, rows of a class) of a grid of `count` images, as many of each class: about square."""
    each = count // classes
    rows = max(1, round((each / classes) ** 0.5))
    return each // rows, rows


def quiet_time(model: Model, sigma: float = 0.1) -> torch.Tensor:
    """The time at which the noise is about `sigma`: small beside the data, yet the score there was learned."""
    times = model.denoiser.process.timesteps(None)
    return times[(model.denoiser.process.sigma(times) - sigma).abs().argmin()]


def filmed(model: Model, frames: int, seed: int, label: Label = None) -> torch.Tensor:
    """Frames (T, N, ...) of a few samples on their way from noise to data, clean at the end; a rank has its share."""
    own = ranks.shard_range(8 if model.is_image else 2000)
    with ranks.synchronized():
        parts = [chosen_frames(model, own, frames, seed, label)] if own else []
    film = torch.cat([part for rank in ranks.gather(parts) for part in rank], 1)
    return picture.in_grey(film) if film.ndim == 5 and model.grey_levels is None else film


def chosen_frames(model: Model, own: range, frames: int, seed: int, label: Label = None) -> torch.Tensor:
    """Frames (T, N, ...) of the samples `own` of a series."""
    states = list(model.trajectory(len(own), label=label, seed=seed, first=own.start))
    # Evenly in the share of signal: even steps in time would show noise for the most part.
    times = torch.tensor([state.t for state in states], dtype=torch.float64)
    alpha, sigma = model.denoiser.process.alpha(times), model.denoiser.process.sigma(times)
    share = alpha / (alpha + sigma)
    wanted = torch.linspace(share[0].item(), share[-1].item(), min(frames, len(states)), dtype=share.dtype)
    keep = (share - wanted[:, None]).abs().argmin(1).tolist()
    return torch.stack([model.decode(states[i].x).cpu() for i in keep])


def draw_trajectory(film: torch.Tensor, path: Path) -> None:
    """Write `path`, a strip of the frames (T, N, ...), and for images a .gif beside it."""
    if film.ndim == 3:
        picture.trajectory_plane(film, path)
        return
    picture.save_png(picture.strip(film), path)
    picture.save_gif(film, path.with_suffix(".gif"))
