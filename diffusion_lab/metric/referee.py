"""Metrics of saved images by torch-fidelity: its code reads the images, runs Inception and computes the metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from diffusion_lab.metric.features import full_precision
from diffusion_lab.metric.inception import InceptionFeatures
from diffusion_lab.metric.weights import plain_file

_SPLITS = 10  # of the Inception Score
_MODES = ("L", "RGB", "P")  # PIL's modes that convert to RGB without loss


def referee(
    generated: str | Path,
    reference: str | Path,
    weights: str | None = None,
    download: bool = False,
    digest: str | None = None,
    batch_size: int = 64,
    subset_size: int = 1000,
    device: Literal["cpu", "cuda"] = "cpu",
    progress: bool = False,
) -> dict[str, float]:
    """Return FID, KID, Inception Score, precision and recall of two sets of images, computed by torch-fidelity.

    All are computed in float32 (no TF32) from Inception features, also precision and recall. Its cache, which
    identifies data sets by name only, is off, and torch-fidelity downloads nothing.

    Args:
        generated: a folder of PNG images (and its sub-folders), or a .npy or .npz file of bytes (N, H, W, 1 or 3).
        reference: the real images, in the same form.
        weights: Inception's weights; `weights`, `download` and `digest` are as in `InceptionFeatures`.
        batch_size: images in the network at once.
        subset_size: images in each of KID's 100 subsets.
        device: where the network runs.
        progress: whether torch-fidelity writes its progress to standard error.

    Returns:
        `fid`, `kid`, `kid_std`, `inception_score`, `inception_score_std`, `precision`, `recall`, `f_score`.

    Raises:
        FileNotFoundError: if images or weights are missing.
        ValueError: for files of another format, for too few images, and for other weights.
    """
    extractor = InceptionFeatures(weights, download, batch_size, **({} if digest is None else {"digest": digest}))
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda, but no GPU is usable here: use device=cpu")
    if not (extractor.path.is_file() or download):
        raise FileNotFoundError(
            f"Inception's weights {extractor.path} are missing: set weights=PATH to a copy, "
            "or download them with download=true"
        )
    if subset_size < 2:
        raise ValueError(f"subset_size must be at least 2, got {subset_size}")
    inputs = [_images(Path(place).expanduser()) for place in (generated, reference)]
    for place, images in zip((generated, reference), inputs, strict=True):
        if len(images) < max(subset_size, _SPLITS):
            raise ValueError(
                f"{place} holds {len(images)} images: KID's subsets need {subset_size} (set subset_size) "
                f"and the Inception Score {_SPLITS}"
            )
    extractor.prepare()  # raises a one-line error for weights of another network
    state = extractor.state()

    import torch_fidelity

    with full_precision(torch.device(device)), torch.random.fork_rng(devices=[]):
        found = torch_fidelity.calculate_metrics(
            input1=inputs[0],
            input2=inputs[1],
            fid=True,
            kid=True,
            isc=True,
            prc=True,
            # The default for precision and recall is VGG, which it would download.
            feature_extractor="inception-v3-compat",
            # It unpickles the file without restrictions: pass one written by us.
            feature_extractor_weights_path=plain_file(state),
            batch_size=batch_size,
            isc_splits=_SPLITS,
            kid_subset_size=subset_size,
            cuda=device == "cuda",
            cache=False,
            datasets_download=False,
            save_cpu_ram=True,  # distances in blocks, no worker processes
            verbose=progress,
        )
    return {ours: float(found[theirs]) for ours, theirs in _names(torch_fidelity).items()}


def _names(package: Any) -> dict[str, str]:
    """Return our name of each metric -> torch-fidelity's key."""
    return {
        "fid": package.KEY_METRIC_FID,
        "kid": package.KEY_METRIC_KID_MEAN,
        "kid_std": package.KEY_METRIC_KID_STD,
        "inception_score": package.KEY_METRIC_ISC_MEAN,
        "inception_score_std": package.KEY_METRIC_ISC_STD,
        "precision": package.KEY_METRIC_PRECISION,
        "recall": package.KEY_METRIC_RECALL,
        "f_score": package.KEY_METRIC_F_SCORE,
    }


class _Bytes(Dataset):
    """Images of an array of bytes (N, H, W, 1 or 3), each as (3, H, W)."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, index: int) -> Tensor:
        return torch.from_numpy(np.array(self.array[index])).permute(2, 0, 1).expand(3, -1, -1)


def _images(place: Path) -> Dataset:
    if place.is_dir():
        return _folder(place)
    if not place.is_file():
        raise FileNotFoundError(f"{place} does not exist: give a folder of PNG images, or a .npy or .npz file of bytes")
    try:
        array = np.load(place, mmap_mode="r", allow_pickle=False)
        if isinstance(array, np.lib.npyio.NpzFile):
            array = array["arr_0" if "arr_0" in array.files else array.files[0]]
    except Exception as error:  # a damaged file can raise anything
        raise ValueError(
            f"{place} is not a NumPy array or is truncated: give .npy or .npz, or a folder of PNG"
        ) from error
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] not in (1, 3):
        raise ValueError(f"{place} must hold bytes (N, H, W, 1 or 3), got {array.dtype} {array.shape}")
    return _Bytes(array)


def _folder(folder: Path) -> Dataset:
    from torch_fidelity.datasets import ImagesPathDataset

    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() == ".png")
    if not paths:
        raise FileNotFoundError(f"{folder} holds no PNG images")
    first = None
    for path in paths:
        try:
            with Image.open(path) as image:  # the header only
                size, mode = image.size, image.mode
        except OSError as error:
            raise ValueError(f"{path} is not an image or is truncated") from error
        first = first or size
        if size != first or mode not in _MODES:
            raise ValueError(
                f"{path} is {size[0]}x{size[1]} {mode}: images of one size are needed, {first[0]}x{first[1]} as "
                f"{paths[0].name}, of 8 bits without transparency"
            )
    return ImagesPathDataset([str(path) for path in paths])
