"""The files that a sampling run writes: images, arrays, trajectories."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig
from torch import Tensor

from diffusion_lab import ranks
from diffusion_lab.callback.samples import draw_samples, draw_trajectory, print_shown, trajectory_frames
from diffusion_lab.evaluation import SampleStore
from diffusion_lab.model.labels import EACH
from diffusion_lab.output import say
from diffusion_lab.plot import picture
from diffusion_lab.run.control import write_picture

MOST = 1000
"""Samples that the picture of a control is made of."""


def write_samples(series: SampleStore, count: int, out: Path, config: DictConfig, data: Any) -> None:
    """Write samples.png and, on request, samples.npz, every image as a PNG, and the trajectory."""
    if config.png:  # those of samples that existed already
        with ranks.synchronized():
            for chunk in ranks.shard(series.samples.ranges(count)):
                write_pngs(series, chunk, out / "png")
    frames = trajectory_frames(series.model, 12, config.seed) if config.trajectory else None
    if ranks.rank_and_world()[0] != 0:
        return
    if config.npz:
        join(series, count, out / "samples.npz")
    if config.noise:
        write_noise(series, count, out / "noise.npy")
    for line in left_behind(out, count, config):
        say(line)
    shown = first_samples(series, min(count, config.grid if series.model.is_image else 10_000))
    labels = series.labels(range(len(shown))) if series.model.label == EACH else None
    draw_samples(series.model, shown, out / "samples.png", data, labels)
    if labels is not None:
        print_shown(series.model, len(shown))
    if series.model.control is not None:
        write_picture(first_samples(series, min(count, MOST)), series.model.control, out / "control.png")
    if frames is not None:
        draw_trajectory(frames, out / "trajectory.png")


def file_names(config: DictConfig, controlled: bool) -> list[str]:
    """The names of the files that `write_samples` writes."""
    of_keys = {"trajectory": "trajectory.png", "npz": "samples.npz", "noise": "noise.npy", "png": "png/"}
    return ["samples.png", *["control.png"] * controlled, *(name for key, name in of_keys.items() if config[key])]


def first_samples(series: SampleStore, count: int) -> Tensor:
    """The first samples of a series: images (N, C, H, W) in [0, 1], or points."""
    samples = series.rows(range(count))[:]
    return samples.permute(0, 3, 1, 2).float() / 255 if series.images else samples


def left_behind(out: Path, count: int, config: DictConfig) -> list[str]:
    """A line for each file of an earlier command that holds a different number of samples."""
    lines = []
    if (out / "samples.npz").exists() and not config.npz:
        with zipfile.ZipFile(out / "samples.npz") as archive, archive.open(archive.namelist()[0]) as file:
            version = np.lib.format.read_magic(file)
            reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            before = reader(file)[0][0]
        if before != count:
            lines.append(f"samples.npz was written by an earlier command: it holds {before} samples, not {count}")
    if config.png and (found := sum(1 for _ in (out / "png").glob("*.png"))) > count:
        lines.append(f"png/ holds {found} images, some from an earlier command; this command's are the first {count}")
    return lines


def write_pngs(series: SampleStore, chunk: range, out: Path) -> None:
    """Write every image of a chunk as `<index>.png`; existing files are kept."""
    paths = [out / f"{index:06d}.png" for index in chunk]
    if missing := [k for k, path in enumerate(paths) if not path.exists()]:
        images = series.samples.read(chunk).permute(0, 3, 1, 2)
        for k in missing:
            picture.save_png(images[k], paths[k])


def write_noise(series: SampleStore, count: int, path: Path) -> None:
    """Write the noise from which each sample starts, float32 (N, ...), N(0, I)."""
    with picture.replacing(path) as temporary, temporary.open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (count, *series.model.shape)}
        np.lib.format.write_array_header_1_0(file, header)
        for chunk in series.samples.ranges(count):
            noise = series.model.starting_noise(chunk, series.seed, series.sampler)
            file.write(noise.cpu().numpy().astype("<f4").tobytes())


def join(series: SampleStore, count: int, path: Path) -> None:
    """Write one .npz of all samples, one chunk in memory at a time: images uint8 (N, H, W, C), or float32 (N, ...).

    Samples are arr_0, NumPy's default key, which the evaluator of Dhariwal & Nichol (2021) reads; labels, int64 (N,),
    are arr_1, as in their programs.
    """
    first = series.rows(range(1))
    header = {"descr": np.lib.format.dtype_to_descr(first.dtype), "fortran_order": False}
    with picture.replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array_header_1_0(file, header | {"shape": (count, *first.shape[1:])})
            for chunk in series.samples.ranges(count):
                file.write(series.samples.read(chunk).numpy().tobytes())
        if (labels := series.labels(range(count))) is not None:
            with archive.open("arr_1.npy", "w") as file:
                np.lib.format.write_array(file, labels.numpy())
