"""Image grids and plots of samples, during training and at its end."""

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
from diffusion_lab.ranges import Count, Seed, checked


class Samples(OptionalHooks):
    """Generates `count` samples every `every_n_steps` steps: `<run_dir>/samples/step_XXXXXXXX.png`, with fixed noise.

    At the end of training it writes `samples.png`, and the denoising trajectory of some samples (`trajectory.png`,
    `trajectory.gif`).  All use the EMA weights, and sampling is distributed over all ranks.  If sampling fails, for
    example because the sampler diverges, or a file cannot be written, the error is printed once and training continues.

    Args:
        run_dir: the run's directory.
        every_n_steps: optimiser steps between two images; None samples only at the end.
        count: images in a grid, or points in a plot.
        frames: frames of the trajectory.
        seed: of the samples.
    """

    @checked
    def __init__(
        self, run_dir: str, every_n_steps: Count | None = 1000, count: Count = 64, frames: Count = 12, seed: Seed = 0
    ) -> None:
        self.run_dir, self.every_n_steps = Path(run_dir), every_n_steps
        self.count, self.frames, self.seed = count, frames, seed
        self._drawn = 0

    def on_train_start(self, trainer: pl.Trainer, model: Model) -> None:
        step, every = trainer.global_step, self.every_n_steps
        path = self.run_dir / "samples" / f"step_{step:08d}.png"
        if every and step and step % every == 0 and step < trainer.max_steps and not ranks.from_first(path.exists()):
            self._drawn = step
            self.draw(trainer, model, path)  # the run was stopped before this was written

    def on_train_batch_end(self, trainer: pl.Trainer, model: Model, outputs: Any, batch: Any, batch_idx: int) -> None:
        step, every = trainer.global_step, self.every_n_steps
        # `_drawn`: with gradient accumulation, several batches end at the same step.
        if every and step % every == 0 and self._drawn != step < trainer.max_steps:
            self._drawn = step
            self.draw(trainer, model, self.run_dir / "samples" / f"step_{step:08d}.png")

    def is_concluded(self, step: int) -> bool:
        """Whether the final image exists."""
        return (self.run_dir / "samples.png").exists()

    def on_train_end(self, trainer: pl.Trainer, model: Model) -> None:
        self.draw(trainer, model, self.run_dir / "samples.png", film=True)

    def draw(self, trainer: pl.Trainer, model: Model, path: Path, film: bool = False) -> None:
        """Sample on all ranks, write the image and, with `film`, the trajectory, and log them."""
        with best_effort(path), averaged(trainer, model):
            shard, label = ranks.shard_range(self.count), None
            classes = model.sampled_labels()
            if classes is not None and model.label is None and classes.classes <= self.count:
                label = EACH
            with ranks.synchronized():
                samples = [model.sample(len(shard), label=label, seed=self.seed, first=shard.start)] if shard else []
            samples = torch.cat([part for rank in ranks.gather(samples) for part in rank])
            film = film and hasattr(model.sampler, "trajectory")  # a user's sampler may have none
            frames = trajectory_frames(model, self.frames, self.seed, label) if film else None
            if not trainer.is_global_zero:
                return
            path.parent.mkdir(parents=True, exist_ok=True)
            labels = model.labels_of(range(len(samples)), self.seed, label) if label else None
            draw_samples(model, samples, path, trainer.datamodule, labels)
            if film and labels is not None:
                print_shown(model, len(samples))
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
    """Write a grid of images, or a plot of points with the true density and the learned score at a low noise level.

    For points, `data` provides the density (or a histogram) and the window; without it only the score is shown.  With
    `labels` (N,), each class of images has separate rows (see `class_rows`).
    """
    if model.is_image:
        columns = None
        if labels is not None and len(samples) >= (classes := model.sampled_labels().classes):
            columns, rows = class_rows(len(samples), classes)
            samples = torch.cat([samples[labels == k][: columns * rows] for k in range(classes)])
        shown = samples if model.grey_levels else picture.in_grey(samples)
        picture.save_png(picture.grid(shown, columns), path)
        return

    def learned_score(x: torch.Tensor) -> torch.Tensor:
        t = low_noise_time(model)
        with torch.no_grad(), model.evaluating():
            return model.denoiser(x.to(model.device, torch.float32), t).score.cpu()

    if model.labels is not None and model.labels.null is None:  # no unconditional score
        learned_score = None
    truth = {} if data is None else {"reference": data.images("held_out", 5000)}
    if hasattr(data, "target"):
        truth["density"] = data.target.log_density
    picture.plane_plot(samples, path, score=learned_score, **truth)


def print_shown(model: Model, count: int) -> None:
    """Print how many of `count` samples a grid with equally many images of each class shows, unless all."""
    classes = model.sampled_labels().classes
    columns, rows = class_rows(count, classes)
    shown = columns * rows * classes
    if model.is_image and 0 < shown < count:
        print(f"samples.png shows {shown} of {count} samples: {columns * rows} of each class", flush=True)


def class_rows(count: int, classes: int) -> tuple[int, int]:
    """Return (images per row, rows per class) of an almost square grid of `count` images."""
    each = count // classes
    rows = max(1, round((each / classes) ** 0.5))
    return each // rows, rows


def low_noise_time(model: Model, sigma: float = 0.1) -> torch.Tensor:
    """Return the time at which the noise level is about `sigma`, which is small compared with the data."""
    times = model.denoiser.process.timesteps(None)
    return times[(model.denoiser.process.sigma(times) - sigma).abs().argmin()]


def trajectory_frames(model: Model, frames: int, seed: int, label: Label = None) -> torch.Tensor:
    """Return frames (T, N, ...) of some samples from noise to data, generated on all ranks."""
    shard = ranks.shard_range(8 if model.is_image else 2000)
    with ranks.synchronized():
        parts = [shard_frames(model, shard, frames, seed, label)] if shard else []
    film = torch.cat([part for rank in ranks.gather(parts) for part in rank], 1)
    return picture.in_grey(film) if film.ndim == 5 and model.grey_levels is None else film


def shard_frames(model: Model, shard: range, frames: int, seed: int, label: Label = None) -> torch.Tensor:
    """Return frames (T, N, ...) of the samples `shard`."""
    states = list(model.trajectory(len(shard), label=label, seed=seed, first=shard.start))
    # Evenly spaced in alpha / (alpha + sigma): even spacing in time would show mostly noise.
    times = torch.tensor([state.t for state in states], dtype=torch.float64)
    alpha, sigma = model.denoiser.process.alpha(times), model.denoiser.process.sigma(times)
    signal = alpha / (alpha + sigma)
    targets = torch.linspace(signal[0].item(), signal[-1].item(), min(frames, len(states)), dtype=signal.dtype)
    keep = (signal - targets[:, None]).abs().argmin(1).tolist()
    return torch.stack([model.decode(states[i].x).cpu() for i in keep])


def draw_trajectory(film: torch.Tensor, path: Path) -> None:
    """Write `path`, a strip of the frames (T, N, ...), and for images a .gif next to it."""
    if film.ndim == 3:
        picture.trajectory_plane(film, path)
        return
    picture.save_png(picture.strip(film), path)
    picture.save_gif(film, path.with_suffix(".gif"))
