"""Reference statistics of a data set, in an .npz file that other programs can read, with their protocol."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusion_lab.metric.moments import Moments, moments
from diffusion_lab.metric.rows import finite
from diffusion_lab.storage.atomic_file import atomic_write

Value = str | int | float | bool

_EXPECTED = "floats mu (D,) and sigma (D, D) are expected, or pool_3 (N, D)"
_KEYS = {
    "mu": ("f", 1),
    "sigma": ("f", 2),
    "pool_3": ("f", 2),
    "features": ("f", 2),
    "count": ("iu", 0),
    "protocol": ("U", 0),
}
"""Array -> allowed kinds of its dtype, and its number of dimensions."""


@dataclass(frozen=True, eq=False)
class Statistics:
    """Moments of a data set's features, some of the features, and the protocol of their measurement.

    Args:
        moments: mean and covariance of all features.
        features: rows (n, D), stored in float32, for measures that need more than moments.
        protocol: name -> value of all settings that affect the features; empty if unknown.

    Raises:
        ValueError: for features of another dimension, NaN or infinity, and for a protocol value that is not a string,
            number or boolean.
    """

    moments: Moments
    features: Tensor | None = None
    protocol: Mapping[str, Value] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.features is not None:
            rows = finite(torch.as_tensor(self.features)).detach().cpu().float()
            if rows.ndim != 2 or rows.shape[1:] != self.moments.mean.shape:
                raise ValueError(
                    f"features {tuple(rows.shape)} do not fit a mean of {len(self.moments.mean)} dimensions"
                )
            object.__setattr__(self, "features", rows)
        for name, value in self.protocol.items():
            if not isinstance(value, Value):
                raise ValueError(f"protocol {name!r} must be a string, a number or true/false, got {value!r}")

    def save(self, path: str | Path) -> None:
        """Write an .npz file atomically.

        Keys: mu and sigma in float64, as pytorch-fid, EDM and clean-fid read them; count; features; and protocol as a
        JSON string.
        """
        arrays: dict[str, Any] = {"mu": self.moments.mean.numpy(), "sigma": self.moments.covariance.numpy()}
        if self.moments.count is not None:
            arrays["count"] = np.int64(self.moments.count)
        if self.features is not None:
            arrays["features"] = self.features.numpy()
        arrays["protocol"] = np.array(json.dumps(dict(self.protocol), sort_keys=True))
        with atomic_write(Path(path)) as file:
            np.savez(file, **arrays)

    @classmethod
    def load(cls, path: str | Path) -> Statistics:
        """Read a file written by `save`, one of another program with mu and sigma, or ScoreSDE's pool_3 (N, D).

        Nothing in the file is executed.

        Raises:
            FileNotFoundError: if it does not exist.
            ValueError: if it is truncated, pickled, or has other contents.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(
                f"statistics {path} are missing: compute them, or set the path of an .npz file with mu and sigma"
            )
        try:
            return cls._of(_arrays(path))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    @classmethod
    def _of(cls, arrays: dict[str, np.ndarray]) -> Statistics:
        if "mu" not in arrays and "pool_3" in arrays:
            return cls(moments(arrays["pool_3"]))
        missing = {"mu", "sigma"} - arrays.keys()
        if missing:
            raise ValueError(f"it has no {' and no '.join(sorted(missing))}: {_EXPECTED}")
        mean, covariance = (torch.from_numpy(arrays[key].astype(np.float64)) for key in ("mu", "sigma"))
        count = arrays["count"].item() if "count" in arrays else None
        features = torch.from_numpy(arrays["features"]) if "features" in arrays else None
        protocol = _protocol(arrays["protocol"].item()) if "protocol" in arrays else {}
        return cls(Moments(mean, covariance, count), features, protocol)


def _protocol(text: str) -> dict[str, Value]:
    try:
        protocol = json.loads(text)
    except ValueError:
        protocol = None
    if not isinstance(protocol, dict):
        raise ValueError(f"protocol must be a JSON mapping, not {text[:40]!r}")
    return protocol


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of an .npz file that belong to statistics."""
    if not zipfile.is_zipfile(path):
        raise ValueError(f"truncated, or not an .npz file: {_EXPECTED}")
    with np.load(path, allow_pickle=False) as file:
        return {name: _array(file, name, *kind) for name, kind in _KEYS.items() if name in file.files}


def _array(file: Mapping[str, np.ndarray], name: str, kinds: str, dimensions: int) -> np.ndarray:
    try:
        array = file[name]
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{name} is damaged: copy the file again") from error
    except ValueError as error:
        raise ValueError(f"{name} is pickled or damaged: refused, not executed") from error
    if array.dtype.kind not in kinds or array.ndim != dimensions:
        raise ValueError(f"{name} is {array.dtype} {array.shape}: {_EXPECTED}")
    return array
