"""What TensorBoard shows is what was logged, by optimiser step, and no step twice."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path

import pytest
import torch
import wandb_offline
from PIL import Image

from diffusion_lab.callback.media import log_pictures
from diffusion_lab.errors import ConfigError
from diffusion_lab.logger.csv import CSVLogger
from diffusion_lab.logger.loggers import build_loggers, finish_loggers, reopen
from diffusion_lab.logger.tensorboard import TensorBoardLogger
from diffusion_lab.storage.revision import revision

pytest.importorskip("tensorboard")
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

clean = wandb_offline.clean
ON = {"tensorboard": {"enabled": True}}


def shown(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0, "tensors": 0})
    return found.Reload()


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in shown(folder).Scalars(name)]


def pictures(tmp_path: Path) -> dict[str, Path]:
    """A picture of 30 x 20 and a film of three frames."""
    Image.new("RGB", (30, 20), (200, 10, 10)).save(tmp_path / "grid.png")
    frames = [Image.new("L", (12, 10), 100 * index) for index in range(3)]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:])
    return {"samples": tmp_path / "grid.png", "film": tmp_path / "film.gif"}


def test_metrics_pictures_films_and_configuration_are_shown(clean, tmp_path):
    loggers = build_loggers(ON, tmp_path, {"model": {"width": 8}, "name": "a: b"})
    assert [type(x) for x in loggers] == [CSVLogger, TensorBoardLogger]
    for logger in loggers:
        logger.log_metrics({"train/loss": torch.tensor(0.25), "epoch": 0}, step=10)
        logger.log_metrics({"train/loss": 0.125}, step=20)
    given = pictures(tmp_path)
    log_pictures(loggers, given, step=20)
    finish_loggers(loggers)
    folder = tmp_path / "tensorboard"
    assert scalars(folder, "train/loss") == [(10, 0.25), (20, 0.125)]
    found = shown(folder)
    for name, size, frames in (("samples", (30, 20), 1), ("film", (12, 10), 3)):
        (event,) = found.Images(name)
        assert (event.step, event.width, event.height) == (20, *size)
        assert event.encoded_image_string == given[name].read_bytes()
        assert getattr(Image.open(io.BytesIO(event.encoded_image_string)), "n_frames", 1) == frames
    (text,) = found.Tensors("config/text_summary")
    lines = text.tensor_proto.string_val[0].decode().splitlines()
    assert {"    model:", "      width: 8", "    name: 'a: b'", f"    run_dir: {tmp_path}"} <= set(lines)
    assert f"    revision: {revision()}" in lines
    assert all(path.name.startswith("events.out") for path in folder.iterdir())


def test_a_resumed_run_shows_no_step_twice(clean, tmp_path):
    """Steps 1..7, then 6..10 from the checkpoint of step 5, with other values."""
    for first, last, step in ((1, 7, 0), (6, 10, 5)):
        loggers = build_loggers(ON, tmp_path, {}, step)
        for now in range(first, last + 1):
            for logger in loggers:
                logger.log_metrics({"loss": float(now + 100 * step)}, now)
            if now % 2 == 0:
                log_pictures(loggers, pictures(tmp_path), now)
        finish_loggers(loggers)
    expected = [(s, float(s)) for s in range(1, 6)] + [(s, float(s + 500)) for s in range(6, 11)]
    assert scalars(tmp_path / "tensorboard", "loss") == expected
    assert [event.step for event in shown(tmp_path / "tensorboard").Images("film")] == [2, 4, 6, 8, 10]


def test_what_was_logged_can_be_seen_at_once_after_save(clean, tmp_path):
    logger = build_loggers(ON, tmp_path, {})[1]
    for step in (1, 2, 3):
        logger.log_metrics({"loss": 0.5}, step)
    logger.save()
    assert scalars(tmp_path / "tensorboard", "loss") == [(1, 0.5), (2, 0.5), (3, 0.5)]
    logger.finalize("success")
    logger.log_metrics({"loss": 0.25}, 4)  # Lightning finalizes when fitting ends; results follow
    logger.finalize("success")
    assert scalars(tmp_path / "tensorboard", "loss")[3:] == [(4, 0.25)]


def test_a_trained_run_takes_results_later_in_a_folder_of_their_own(clean, tmp_path):
    assert reopen(tmp_path, ON) == []
    training = build_loggers(ON, tmp_path, {})
    training[1].log_metrics({"loss": 0.5}, 100)
    later = reopen(tmp_path, ON)
    for logger in later:
        logger.log_metrics({"sample/fid_1000": 12.5}, 50)
    log_pictures(later, pictures(tmp_path), 50)
    finish_loggers(later)
    training[1].log_metrics({"loss": 0.25}, 200)
    finish_loggers(training)
    assert scalars(tmp_path / "tensorboard" / "sample", "sample/fid_1000") == [(50, 12.5)]
    assert shown(tmp_path / "tensorboard" / "sample").Images("samples")[0].step == 50
    assert scalars(tmp_path / "tensorboard", "loss") == [(100, 0.5), (200, 0.25)]
    assert not (tmp_path / "metrics.csv").exists() or "fid" not in (tmp_path / "metrics.csv").read_text()


def test_a_missing_package_is_told_before_anything_is_opened(clean, tmp_path):
    find = importlib.util.find_spec
    clean.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorboard" else find(name))
    with pytest.raises(ConfigError, match=r'pip install "diffusion_lab\[tensorboard\]"'):
        build_loggers({**ON, "wandb": {"enabled": True}}, tmp_path, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home"]
