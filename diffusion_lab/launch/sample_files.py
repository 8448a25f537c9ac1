"""The files that a sampling run makes of its samples, for people and for other programs."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from diffusion_lab import picture, ranks
from diffusion_lab.callback.samples import draw_samples, draw_trajectory, filmed
from diffusion_lab.evaluation import Series
from diffusion_lab.launch.instantiate import ConfigError


def write_samples(series: Series, count: int, out: Path, config: DictConfig, data: Any) -> None:
    """samples.png, and what else was asked for: samples.npz in one file, every image as a PNG, the trajectory."""
    if config.png and not series.images:
        raise ConfigError("png=true writes images, but these are no images: leave it out")
    if config.png:
        (out / "png").mkdir(exist_ok=True)
        with ranks.together():
            for chunk in ranks.own(series.samples.ranges(count)):
                write_pngs(series, chunk, out / "png")
    frames = filmed(series.model, 12, config.seed) if config.trajectory else None
    if ranks.rank_and_world()[0] != 0:
        return
    if config.npz:
        join(series, count, out / "samples.npz")
    shown = series.rows(range(min(count, 10_000 if len(series.model.shape) == 1 else config.grid)))[:]
    shown = shown.permute(0, 3, 1, 2).float() / 255 if series.images else shown
    draw_samples(series.model, shown, out / "samples.png", data)
    if frames is not None:
        draw_trajectory(frames, out / "trajectory.png")


def write_pngs(series: Series, chunk: range, out: Path) -> None:
    """Every image of a chunk as `<index>.png`, those that are there already left alone."""
    for index, image in zip(chunk, series.samples.read(chunk).permute(0, 3, 1, 2), strict=True):
        path = out / f"{index:06d}.png"
        if not path.exists():
            picture.save_png(image, path)


def join(series: Series, count: int, path: Path) -> None:
    """One .npz of all samples: `images` uint8 (N, H, W, C), or `points` float32 (N, 2), a chunk in memory at a time."""
    first = series.rows(range(1))
    header = {"descr": np.lib.format.dtype_to_descr(first.dtype), "fortran_order": False}
    with picture.replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        name = "images.npy" if series.images else "points.npy"
        with archive.open(name, "w", force_zip64=True) as file:
            np.lib.format.write_array_header_1_0(file, header | {"shape": (count, *first.shape[1:])})
            for chunk in series.samples.ranges(count):
                file.write(series.samples.read(chunk).numpy().tobytes())
