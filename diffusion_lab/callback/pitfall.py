"""Plots of the two pitfalls of score matching at one noise level (Song & Ermon 2019, Section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytorch_lightning as pl
import torch

from diffusion_lab.callback.ema import averaged
from diffusion_lab.callback.media import best_effort, log_pictures
from diffusion_lab.data import DataModule
from diffusion_lab.model import Model
from diffusion_lab.plot.pitfall import mode_weights_plot, score_error_plot
from diffusion_lab.ranges import Count, Seed, checked
from diffusion_lab.sampler import Sampler


class ScoreError(pl.Callback):
    """Plots the learned score of points, the true one and their difference: `<run_dir>/score_error.png`.

    The score is that at the lowest noise level, where it is learned only near the data.
    """

    def __init__(self, run_dir: str) -> None:
        self.run_dir = Path(run_dir)

    def check(self, data: DataModule, model: Model) -> None:
        """Raise ValueError for data whose score is not known."""
        if not hasattr(data, "target"):
            raise ValueError("callback.score_error needs points of a known density: choose data=toy2d")

    def is_concluded(self, step: int) -> bool:
        """Whether the plot exists."""
        return (self.run_dir / "score_error.png").exists()

    @torch.no_grad()
    def on_train_end(self, trainer: pl.Trainer, model: Model) -> None:
        if not trainer.is_global_zero:
            return
        process, data = model.denoiser.process, trainer.datamodule
        t = torch.tensor(process.t_min, dtype=torch.float64)

        def learned(x: torch.Tensor) -> torch.Tensor:
            return model.denoiser(x.to(model.device, torch.float32), t).score.to(x)

        with best_effort(self.run_dir / "score_error.png"), averaged(trainer, model), model.evaluating():
            error = score_error_plot(
                data.images("train", 5000),
                data.target,
                learned,
                self.run_dir / "score_error.png",
                sigma=process.sigma(t).item(),
                limits=(-2.0, 2.0),
            )
            log_pictures(trainer.loggers, {"score_error": self.run_dir / "score_error.png"}, trainer.global_step)
            message = f"{error.with_data:.2g} where there are data, {error.without_data:.2g} elsewhere"
            print(f"score    median error {message}")


class ModeWeights(pl.Callback):
    """Plots samples of several samplers and the data, with the weights of the modes: `<run_dir>/mode_weights.png`.

    Args:
        samplers: name -> sampler.
        count: number of samples of each.
    """

    @checked
    def __init__(self, run_dir: str, samplers: Mapping[str, Sampler], count: Count = 2000, seed: Seed = 0) -> None:
        self.run_dir, self.samplers, self.count, self.seed = Path(run_dir), dict(samplers), count, seed

    def check(self, data: DataModule, model: Model) -> None:
        """Raise ValueError for data without modes, and for samplers that do not support the model's process."""
        if not hasattr(data, "target") or data.target.modes is None:
            raise ValueError("callback.mode_weights needs points with modes: choose data=toy2d data.name=two_modes")
        for sampler in self.samplers.values():
            sampler.check(model.denoiser)

    def is_concluded(self, step: int) -> bool:
        """Whether the plot exists."""
        return (self.run_dir / "mode_weights.png").exists()

    def on_train_end(self, trainer: pl.Trainer, model: Model) -> None:
        if not trainer.is_global_zero:
            return
        data, path = trainer.datamodule, self.run_dir / "mode_weights.png"
        with best_effort(path), averaged(trainer, model):
            samples = {
                name: model.sample(self.count, seed=self.seed, batch_size=self.count, sampler=sampler)
                for name, sampler in self.samplers.items()
            }
            samples["data"] = data.images("held_out", self.count)
            weights = mode_weights_plot(samples, data.target, path, limits=(-2.0, 2.0))
            log_pictures(trainer.loggers, {"mode_weights": path}, trainer.global_step)
            for name, values in weights.items():
                print(f"modes    {' : '.join(f'{weight:.1%}' for weight in values.tolist())}  {name}")
