"""LSUN, the official LMDB folders."""

from __future__ import annotations

import hashlib
import io
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import torch

from diffusion_lab.data.base import Splits
from diffusion_lab.data.encoded import Encoded, EncodedImages, Source, hold_out, parallel_map
from diffusion_lab.data.framing import Resampling
from diffusion_lab.ranges import Count, Fraction

if TYPE_CHECKING:
    from lmdb import Environment

HASHED = 10_000  # values whose bytes are hashed for a fingerprint


@dataclass(kw_only=True, eq=False)
class LSUN(EncodedImages):
    """One category of LSUN (arXiv:1506.03365): images whose smaller side has 256 pixels, label 0.

    For the ten scenes, such as bedroom or church_outdoor, reads <data_dir>/lsun/<category>_train_lmdb and, held out,
    the 300 images of <category>_val_lmdb. For the twenty objects, such as cat, reads <data_dir>/lsun/<category>, where
    images are held out by the hash of their key.

    Images are centre-cropped, then resized. At 256 pixels nothing is resampled, and all programs agree. At 128 pixels
    NCSNv2 and ScoreSDE use bilinear; at other sizes ScoreSDE uses bicubic, and ADM box.

    The length of the files is checked; no md5 is published. Raises ImportError without the package lmdb,
    FileNotFoundError for a missing folder, ValueError for a truncated file or one that is not LMDB.
    """

    data_dir: str
    category: str = "bedroom"
    held_out_fraction: Fraction = 0.01
    resampling: Resampling = "bilinear"
    shape: tuple[Count, ...] = (3, 128, 128)

    def load(self) -> Splits:
        root = Path(self.data_dir).expanduser() / "lsun"
        if (root / self.category).is_dir():
            both = Values.all(root / self.category)
            keys = [both.key(index) for index in range(len(both))]
            train, held_out = map(both.subset, hold_out(keys, self.held_out_fraction))
            how = f"{self.held_out_fraction} held out by hash of the key"
        else:
            train, held_out = (Values.all(root / f"{self.category}_{part}_lmdb") for part in ("train", "val"))
            how = "official train and val folders"
        framing = self.framing(resampling=self.resampling)
        parts = (Encoded(source, torch.zeros(len(source)), framing) for source in (train, held_out))
        return self.make_splits(*parts, how)


class Values(Source):
    """Values of an LMDB folder, by key."""

    def __init__(self, folder: Path, keys: np.ndarray) -> None:
        self.folder, self.keys = folder, keys

    @classmethod
    def all(cls, folder: Path) -> Values:
        """Return all values, after checking that the file is complete."""
        check_complete(folder)
        with environment(folder).begin() as transaction:
            keys = np.array(list(transaction.cursor().iternext(keys=True, values=False)))
        if not len(keys):
            raise ValueError(f"{folder / 'data.mdb'} holds no image: remove it and download it again")
        return cls(folder, keys)

    def __len__(self) -> int:
        return len(self.keys)

    def key(self, index: int) -> str:
        return self.keys[index].decode(errors="replace")

    def location(self, index: int) -> str:
        return f"{self.folder}/{self.key(index)}"

    def open(self, index: int) -> BinaryIO:
        with environment(self.folder).begin() as transaction:
            return io.BytesIO(transaction.get(bytes(self.keys[index])))

    def subset(self, indices: Sequence[int]) -> Values:
        return Values(self.folder, self.keys[list(indices)])

    def stamp(self) -> bytes:
        found = (self.folder / "data.mdb").stat()
        return f"{found.st_size} {found.st_mtime_ns} ".encode() + hashlib.sha256(b"\n".join(self.keys)).digest()

    def digest(self) -> bytes:
        """Return the sha256 of the number of values, all keys and lengths, and 10,000 evenly spaced values.

        In sets larger than that, such as bedroom (43 GB), a change in other values is detected only by their length.
        """
        found = hashlib.sha256(f"{len(self)} ".encode())
        with environment(self.folder).begin(buffers=True) as transaction:
            for key in self.keys:
                found.update(b"%b %d\n" % (key, len(transaction.get(bytes(key)))))
        chosen = np.unique(np.linspace(0, len(self) - 1, HASHED).round().astype(int))
        for content in parallel_map(lambda number: self._hash(int(chosen[number])), len(chosen)):
            found.update(content)
        return found.digest()


_environments: dict[Path, tuple[int, Environment]] = {}
_opening = threading.Lock()


def environment(folder: Path) -> Environment:
    """Open the folder for reading, once per process as lmdb requires; again after a fork."""
    import lmdb

    with _opening:
        process, opened = _environments.get(folder, (None, None))
        if process != os.getpid():
            if opened is not None:
                opened.close()  # only in this process, not in the parent
            opened = lmdb.open(str(folder), readonly=True, lock=False, readahead=False, meminit=False)
            _environments[folder] = os.getpid(), opened
        return opened


def check_complete(folder: Path) -> None:
    """Raise an error if the file is missing or truncated: reading a missing page would kill the process (SIGBUS)."""
    try:
        import lmdb
    except ImportError as error:
        raise ImportError('data=lsun needs the package lmdb: pip install -e ".[lsun]"') from error
    file = folder / "data.mdb"
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} is missing: download http://dl.yf.io/lsun/scenes/{folder.name}.zip (objects: http://dl.yf.io/lsun/"
            f"objects/<category>.zip) and unpack it into {folder.parent}, or set data.data_dir and data.category"
        )
    try:
        opened = environment(folder)
    except lmdb.Error as error:
        raise ValueError(f"{file} is not an LMDB file ({error}): remove it and download it again") from error
    length = (opened.info()["last_pgno"] + 1) * opened.stat()["psize"]
    if file.stat().st_size < length:
        raise ValueError(f"{file} is truncated: {file.stat().st_size} bytes of {length}: remove and download it again")
