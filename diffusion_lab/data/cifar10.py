"""CIFAR-10, the official batches."""

from __future__ import annotations

import tarfile
from dataclasses import dataclass
from pathlib import Path

import torch

from diffusion_lab.data.base import DataModule, Splits
from diffusion_lab.data.batches import InMemory
from diffusion_lab.data.official import fetch, missing_error, refuse_damaged
from diffusion_lab.ranges import Count, Levels
from diffusion_lab.storage.atomic_file import atomic_write


@dataclass(kw_only=True, eq=False)
class CIFAR10(DataModule):
    """50,000 train and 10,000 held-out (official test) images (3, 32, 32) in 10 classes; Krizhevsky 2009.

    Reads <data_dir>/cifar-10-batches-py and checks each file against its published md5; missing files are unpacked
    from <data_dir>/cifar-10-python.tar.gz. Raises FileNotFoundError for a missing file, ValueError for a damaged one;
    both name the file.
    """

    data_dir: str
    download: bool = False
    shape: tuple[Count, ...] = (3, 32, 32)
    grey_levels: Levels | None = 256

    class_names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

    @property
    def folder(self) -> Path:
        return Path(self.data_dir).expanduser()

    def prepare_data(self) -> None:
        """Unpack missing files from the archive; download it first if `download` is true."""
        archive, md5 = self._archive()
        absent = [path for path, _ in self._files() if not path.exists()]
        if absent and self.download and not archive.exists():
            fetch(archive, md5, [self._official().url.removesuffix(archive.name)])
        if absent and archive.exists():
            refuse_damaged(archive, md5)
            unpack(archive, absent)

    def load(self) -> Splits:
        for path, md5 in self._files():
            if not path.exists():
                raise missing_error(path, *self._archive())
            refuse_damaged(path, md5)
        return Splits(self._part(True), self._part(False), "official train and test split")

    def _part(self, train: bool) -> InMemory:
        official = self._official()(self.folder, train=train)
        return InMemory(torch.from_numpy(official.data).permute(0, 3, 1, 2), torch.tensor(official.targets))

    def _archive(self) -> tuple[Path, str]:
        official = self._official()
        return self.folder / official.filename, official.tgz_md5

    def _files(self) -> list[tuple[Path, str]]:
        official = self._official()
        meta = (official.meta["filename"], official.meta["md5"])
        listed = (*official.train_list, *official.test_list, meta)
        return [(self.folder / official.base_folder / name, md5) for name, md5 in listed]

    def _official(self) -> type:
        import torchvision

        return torchvision.datasets.CIFAR10


def unpack(archive: Path, paths: list[Path]) -> None:
    """Extract these files, <folder>/<file> in a tar archive, each atomically."""
    with tarfile.open(archive) as tar:
        for path in paths:
            with atomic_write(path) as file:
                file.write(tar.extractfile(f"{path.parent.name}/{path.name}").read())
