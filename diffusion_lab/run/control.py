"""Control on the command line: guides and masks from files, and the picture of controlled samples."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image, ImageDraw, UnidentifiedImageError
from torch import Tensor

from diffusion_lab.config.compose import plain
from diffusion_lab.config.instantiate import instantiate
from diffusion_lab.control import Control, Mask, Measured
from diffusion_lab.data.image_file import read_image, suffixes
from diffusion_lab.errors import ConfigError
from diffusion_lab.model import Model
from diffusion_lab.output import say
from diffusion_lab.plot.picture import grid, save_png

SHOWN, COLUMNS = 8, 4
"""Guides in the picture, and samples of each."""


def choose_control(config: DictConfig, model: Model) -> Control | None:
    """The control of `control=...` with the images of `guide` and `mask`; None without one.

    Raises:
        ConfigError: for files that cannot be read, or do not fit the model or the control.
    """
    settings = plain(config)["control"]
    if not settings:
        return None
    if not model.has_grey_levels:
        raise ConfigError("this model has no images with grey levels: use the Python API, model.sample(control=...)")
    made = instantiate(settings | {"_partial_": True}, "control")
    size = model.shape[1:] if config.guide_resize else None
    guide = read_images("guide", config.guide, model.shape[0], size)
    arguments: dict[str, Any] = {"guide": guide}
    operator = made.keywords.get("operator")
    if config.mask is not None:
        generated = read_mask(config.mask, model.shape[1:], len(guide))
        masked = isinstance(operator, functools.partial)
        arguments |= {"operator": operator(mask=1 - generated)} if masked else {"mask": generated}
    if config.num_samples < len(guide):
        say(f"guide={config.guide} holds {len(guide)} images; {config.num_samples} samples use the first of them")
    try:
        control = made(**arguments)
        if not isinstance(control, Control):
            raise TypeError(f"{made.func.__name__} must be a subclass of diffusion_lab.control.Control")
        control.of([0], model.encode, torch.empty(1, *model.shape))
        check_start(control, model)
    except (TypeError, ValueError) as error:
        height, width = model.shape[1:]
        other = tuple(guide.shape[2:]) != (height, width)
        resize = f"; guide_resize=true makes the guide {width}x{height}" if other else ""
        raise ConfigError(f"control: {error}{resize}") from error
    return control


def check_start(control: Control, model: Model) -> None:
    """Raise ValueError if a control begins where the model leaves no step to make."""
    process = model.denoiser.process
    if control.t_start is None or process.levels == 1:
        return
    try:
        process.span(control.t_start, None)
    except ValueError:
        raise ValueError(
            f"t0={control.t_start:g} leaves no step to make: it must be in ({process.t_min:.4g}, 1]"
        ) from None


def read_images(key: str, place: str, channels: int, size: tuple[int, int] | None = None) -> Tensor:
    """The image of a file, or those of a folder in the order of their names, (N, C, H, W) in [0, 1].

    Raises:
        ConfigError: if there is none, one cannot be read, or their sizes differ.
    """
    path = Path(place).expanduser()
    files = [path] if path.is_file() else sorted(f for f in path.glob("*") if f.suffix.lower() in suffixes())
    if not files:
        raise ConfigError(f"{key}={place} is neither an image file nor a folder of images")
    images = []
    for file in files:
        try:
            with file.open("rb") as opened:
                image, _ = read_image(opened, channels)
        except UnidentifiedImageError:
            raise ConfigError(f"{key}: {file} is not an image file that Pillow reads, such as a PNG or JPEG") from None
        except (OSError, ValueError, SyntaxError) as error:
            raise ConfigError(f"{key}: {file} cannot be read as an image of 8 bits per channel: {error}") from None
        if size is not None:
            image = image.resize(size[::-1])
        images.append(torch.from_numpy(np.array(image)).reshape(image.height, image.width, channels).movedim(-1, 0))
    if len({image.shape for image in images}) > 1:
        sizes = sorted({f"{image.shape[2]}x{image.shape[1]}" for image in images})
        raise ConfigError(f"{key}={place}: images of one size are needed, found {', '.join(sizes)}: guide_resize=true")
    return torch.stack(images) / 255


def read_mask(place: str, size: tuple[int, int], guides: int) -> Tensor:
    """A mask, or one for each guide, (N, 1, H, W): 1 where pixels are generated (white), 0 where they are kept (black).

    Raises:
        ConfigError: for another size or number, grey pixels, or a single colour.
    """
    mask = read_images("mask", place, 1)
    if tuple(mask.shape[2:]) != tuple(size):
        height, width = mask.shape[2:]
        raise ConfigError(f"mask={place} has {width}x{height} pixels, and the model's images {size[1]}x{size[0]}")
    if len(mask) not in (1, guides):
        raise ConfigError(f"mask={place} holds {len(mask)} masks for {guides} guides: give one, or one for each guide")
    if not ((mask == 0) | (mask == 1)).all():
        raise ConfigError(f"mask={place} has grey pixels: only black (kept) and white (generated) are allowed")
    if (mask.amax((1, 2, 3)) == mask.amin((1, 2, 3))).any():
        raise ConfigError(f"mask={place} has one colour only: pixels to keep are black, and pixels to generate white")
    return mask


def write_picture(samples: Tensor, control: Control, path: Path) -> None:
    """Draw a row for each of the first guides: the guide, its measurement, samples, and their spread.

    Sample i of `samples` (N, C, H, W) belongs to guide i modulo their number; the spread is the standard deviation over
    all samples of a guide, scaled to white at its largest value.
    """
    guides, like = len(control.guide), samples[:1]
    shown = min(COLUMNS, len(samples[::guides]))
    rows, titles = [], []
    for index in range(min(guides, SHOWN, len(samples))):
        results = samples[index::guides]
        known = known_images(control, index, like)
        empty = torch.ones(max(shown - len(results), 0), *like.shape[1:])
        spread = [results.std(0)] if len(results) > 1 else [torch.zeros_like(like[0])] * (len(samples) > guides)
        rows += [*known.values(), *results[:shown], *empty, *(s / s.max().clamp(min=1e-3) for s in spread)]
        titles = [*known, *(f"sample {i + 1}" for i in range(shown)), *["spread"] * len(spread)]
    save_png(titled(grid(torch.stack(rows), columns=len(titles)), titles), path)


def titled(image: Tensor, titles: list[str], height: int = 18) -> Tensor:
    """A grid (C, H, W) of bytes below a white line with the title of each of its columns."""
    band = Image.new("L", (image.shape[2], height), 255)
    write, width = ImageDraw.Draw(band), image.shape[2] / len(titles)
    for column, title in enumerate(titles):
        write.text(((column + 0.5) * width - write.textlength(title) / 2, 3), title, fill=40)
    return torch.cat([torch.from_numpy(np.array(band)).expand(len(image), -1, -1), image], dim=1)


def known_images(control: Control, index: int, like: Tensor) -> dict[str, Tensor]:
    """A guide and what a control knows of it, by title, as images (C, H, W) like `like` (1, C, H, W).

    Unknown pixels are grey.  Of a measurement of another shape, A^+ y is shown.
    """
    bound, guide = control.of([index], lambda data: data, like), control.guide[index]
    images = {"guide": guide} if guide.shape == like.shape[1:] else {}
    mask = getattr(bound, "mask", None)
    if isinstance(bound, Measured):
        operator, known = bound.operator, bound.guide
        if isinstance(operator, Mask):
            known = known + 0.5 * (1 - operator.mask)
        elif known.shape != like.shape:
            known = operator.transpose(operator.solve(known, 1.0, 0.0 if operator.scale else 1e-3))
        if images and torch.allclose(known[0], guide, atol=1e-4):
            images = {}
        images["measured"] = known[0]
    elif mask is not None:
        images["kept"] = torch.where(mask.bool(), 0.5, bound.guide)[0]
    return {title: image.clamp(0, 1) for title, image in images.items()}
