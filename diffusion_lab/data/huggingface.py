"""Image data sets from the Hugging Face hub, or on disk in a format of the package `datasets`."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import torch
from torch import Tensor

from diffusion_lab.data.base import Splits
from diffusion_lab.data.encoded import Encoded, EncodedImages, Source, hold_out
from diffusion_lab.data.framing import Resampling
from diffusion_lab.errors import in_one_line
from diffusion_lab.ranges import Fraction

if TYPE_CHECKING:
    from datasets import Dataset as Table


@dataclass(kw_only=True, eq=False)
class HuggingFace(EncodedImages):
    """Images of one column of a data set, centre-cropped and resized to `shape`.

    name: a folder (of images or parquet files, or written by `save_to_disk`), or else a data set on the hub. It is
    downloaded only if `download` is true; its code is never executed.  config: the name of a configuration on the hub.
    held_out_split: None holds out rows by the hash of their number, so that appended rows do not change the split of
    others.  image_column: images, encoded bytes or paths.  label_column: integers; None gives all images the label 0.
    data_dir: the cache; None uses Hugging Face's default.

    Raises ImportError without the package datasets, FileNotFoundError for a missing data set, ValueError for an unknown
    split or column.
    """

    name: str = field()  # without field(), an attribute of Lightning's base class would be the default
    config: str | None = None
    train_split: str = "train"
    held_out_split: str | None = None
    held_out_fraction: Fraction = 0.1
    image_column: str = "image"
    label_column: str | None = None
    resampling: Resampling = "bicubic"
    data_dir: str | None = None
    download: bool = False

    places = ("data_dir", "name")  # a folder of that name may be copied to another machine

    def prepare_data(self) -> None:
        """Download the data set if `download` is true, on one process before the others."""
        if self.download:
            self._tables()

    def load(self) -> Splits:
        tables = self._tables()
        train = self._split(tables, self.train_split)
        self.class_names = getattr(train.features.get(self.label_column), "names", None)
        if self.held_out_split is not None:
            held_out = self._split(tables, self.held_out_split)
            how = f"splits {self.train_split}, {self.held_out_split}"
        else:
            rows = [str(row) for row in range(len(train))]
            train, held_out = map(train.select, hold_out(rows, self.held_out_fraction))
            how = f"{self.held_out_fraction} held out by hash of the row"
        unused = [split for split in tables if split not in (self.train_split, self.held_out_split)]
        notes = [f"not used: {split}, {len(tables[split])} rows" for split in unused]
        return self.make_splits(self._encoded(train), self._encoded(held_out), how, notes)

    def _tables(self) -> Mapping[str, Table]:
        try:
            import datasets
        except ImportError as error:
            raise ImportError('data=huggingface needs the package datasets: pip install -e ".[huggingface]"') from error
        folder = Path(self.name).expanduser()
        cache = None if self.data_dir is None else str(Path(self.data_dir).expanduser())
        try:
            with hub_access(self.download):
                if (folder / "dataset_dict.json").exists():
                    return datasets.load_from_disk(folder)
                if (folder / "state.json").exists():
                    return {self.train_split: datasets.load_from_disk(folder)}
                return datasets.load_dataset(
                    str(folder) if folder.is_dir() else self.name, self.config, cache_dir=cache
                )
        except Exception as error:  # from the hub, a file format, or the disk
            advice = "" if self.download or folder.exists() else "; set data.download=true, or data.name to a folder"
            raise FileNotFoundError(f"data.name={self.name} cannot be read ({in_one_line(error)}){advice}") from error

    def _split(self, tables: Mapping[str, Table], split: str) -> Table:
        if split not in tables:
            raise ValueError(f"{self.name} has no split {split}: choose one of {', '.join(tables)}")
        columns = tables[split].column_names
        for key, column in (("image_column", self.image_column), ("label_column", self.label_column)):
            if column is not None and column not in columns:
                raise ValueError(f"data.{key}={column} is not in {self.name}: choose one of {', '.join(columns)}")
        return tables[split]

    def _encoded(self, table: Table) -> Encoded:
        import datasets

        try:
            images = table.select_columns(self.image_column).cast_column(
                self.image_column, datasets.Image(decode=False)
            )
            images[0]
        except Exception as error:  # Arrow's, of a type that depends on the column
            raise ValueError(f"data.image_column={self.image_column} holds no images ({in_one_line(error)})") from error
        framing = self.framing(resampling=self.resampling)
        return Encoded(Rows(self.name, images, self.image_column), self._labels(table), framing)

    def _labels(self, table: Table) -> Tensor:
        if self.label_column is None:
            return torch.zeros(len(table))
        values = table[self.label_column][:]
        if not all(type(value) is int for value in values):
            raise ValueError(f"data.label_column={self.label_column} must hold integers: set another one, or null")
        return torch.tensor(values)


class Rows(Source):
    """Rows of a table, each with the encoded bytes of an image or a path."""

    def __init__(self, name: str, table: Table, column: str) -> None:
        self.name, self.table, self.column = name, table, column

    def __len__(self) -> int:
        return len(self.table)

    def key(self, index: int) -> str:
        return str(index)

    def location(self, index: int) -> str:
        return f"{self.name}, row {index} of {len(self)}"

    def open(self, index: int) -> BinaryIO:
        image: dict[str, Any] = self.table[int(index)][self.column]
        return io.BytesIO(image["bytes"]) if image["bytes"] is not None else open(image["path"], "rb")

    def subset(self, indices: Sequence[int]) -> Rows:
        return Rows(self.name, self.table.select(indices), self.column)

    def stamp(self) -> bytes:
        files = [Path(file["filename"]) for file in self.table.cache_files]
        if self.table[0][self.column]["bytes"] is None:
            files += [Path(row[self.column]["path"]) for row in self.table]
        found = hashlib.sha256(f"{self.table._fingerprint} ".encode())
        for path in files:
            found.update(f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}\n".encode())
        return found.digest()


@contextmanager
def hub_access(allowed: bool) -> Iterator[None]:
    """Context in which `datasets` uses the network only if allowed; HF_HUB_OFFLINE=1 in the environment forbids it."""
    import datasets
    import huggingface_hub

    modules = (datasets.config, huggingface_hub.constants)
    before = [module.HF_HUB_OFFLINE for module in modules]
    try:
        for module in modules:
            module.HF_HUB_OFFLINE = module.HF_HUB_OFFLINE or not allowed
        yield
    finally:
        for module, offline in zip(modules, before, strict=True):
            module.HF_HUB_OFFLINE = offline
