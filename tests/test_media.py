"""Pictures reach every logger that shows pictures, as they are in their files."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
import wandb_offline
from PIL import Image
from pytorch_lightning.loggers import Logger

import diffusion_lab.callback.samples as samples
from diffusion_lab.callback.media import log_pictures
from diffusion_lab.callback.samples import Samples
from diffusion_lab.logger.loggers import build_loggers, finish_loggers
from diffusion_lab.sampler import DDIM, Sampler

clean, keyed = wandb_offline.clean, wandb_offline.keyed


class Shown(Logger):
    """A logger that keeps what it is shown."""

    name = version = ""

    def __init__(self) -> None:
        self.calls: list[tuple[dict[str, Path], int]] = []

    def log_metrics(self, metrics, step=None):
        pass

    def log_hyperparams(self, params):
        pass

    def log_pictures(self, pictures, step):
        self.calls.append((dict(pictures), step))


def test_only_what_exists_is_shown_and_only_where_it_can_be(tmp_path):
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    one, two = Shown(), Shown()
    given = {"a": str(tmp_path / "a.png"), "film": tmp_path / "missing.gif"}
    log_pictures([one, SimpleNamespace(log_metrics=None), two], given, step=7)
    assert one.calls == two.calls == [({"a": tmp_path / "a.png"}, 7)]
    log_pictures([one], {"film": tmp_path / "missing.gif"}, step=8)
    assert len(one.calls) == 1
    with pytest.raises(ValueError, match=r"notes: .*notes\.txt must be a \.png or \.gif file"):
        log_pictures([one], {"notes": tmp_path / "notes.txt"}, step=9)


def test_wandb_has_the_very_files(keyed, tmp_path):
    """A copy at once: the run's own picture is drawn over at the next step."""
    Image.new("RGB", (30, 20), (200, 10, 10)).save(tmp_path / "grid.png")
    frames = [Image.new("L", (12, 10), 100 * index) for index in range(3)]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:])
    loggers = build_loggers({"wandb": {}}, tmp_path, {})
    wanted = {name: (tmp_path / name).read_bytes() for name in ("grid.png", "film.gif")}
    log_pictures(loggers, {"samples": tmp_path / "grid.png", "film": tmp_path / "film.gif"}, step=20)
    for name in wanted:
        (tmp_path / name).write_bytes(b"drawn over")
    finish_loggers(loggers)
    (run,) = wandb_offline.offline_runs(tmp_path)
    (row,) = wandb_offline.history(run)
    assert row["trainer/global_step"] == 20
    assert (row["samples/_type"], row["film/_type"]) == ("image-file", "video-file")
    assert (run / "files" / row["samples/path"]).read_bytes() == wanted["grid.png"]
    assert (run / "files" / row["film/path"]).read_bytes() == wanted["film.gif"]
    assert row["film/path"].endswith(".gif")


class Drawn(pl.LightningModule):
    """A model that trains nothing and returns fixed samples, of images or of points."""

    labels = label = None
    sampler = Sampler(DDIM(), steps=2)

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape, self.w, self.unsharded = shape, torch.nn.Parameter(torch.zeros(1)), nullcontext

    def sampled_labels(self) -> None:
        return None

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return (self.w * batch[0]).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def sample(self, count: int, label: None, seed: int, first: int) -> torch.Tensor:
        assert first == 0
        return torch.rand(count, *self.shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("shape", [(1, 8, 8), (2,)])
def test_samples_strip_and_film_are_shown_at_their_steps(tmp_path, monkeypatch, shape):
    images = len(shape) == 3

    def trajectory(film, path):
        assert film is frames
        Image.new("L", (4, 4)).save(path)
        if images:
            Image.new("L", (4, 4)).save(path.with_suffix(".gif"))

    def drawn(model, values, path, data, labels):
        assert values.shape == (6, *shape)
        Image.new("L", (4, 4)).save(path)

    frames = torch.zeros(12, 8, *shape)
    monkeypatch.setattr(samples, "trajectory_frames", lambda model, count, seed, label: frames)
    monkeypatch.setattr(samples, "draw_trajectory", trajectory)
    monkeypatch.setattr(samples, "draw_samples", drawn)
    shown = Shown()
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(12, 1)))
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, max_steps=5, max_epochs=-1, logger=shown, accumulate_grad_batches=2,
        callbacks=[Samples(str(tmp_path), every_n_steps=2, count=6)], enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Drawn(shape), data)
    end = {"samples": tmp_path / "samples.png", "trajectory": tmp_path / "trajectory.png"}
    if images:
        end["film"] = tmp_path / "trajectory.gif"
    steps = [({"samples": tmp_path / "samples" / f"step_{s:08d}.png"}, s) for s in (2, 4)]
    assert shown.calls == [*steps, (end, 5)]
